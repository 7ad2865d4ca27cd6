"""Analyse the predictions of a test or validation: accuracy per class, confusion, calibration."""

from __future__ import annotations

import os
from dataclasses import dataclass
from typing import NamedTuple

import numpy as np
import torch

from slowfast.utils.scores import average_precisions, log_probabilities, multi_label_losses

CHUNK = 4096  # videos whose probabilities are in memory at once
BINS = 15  # of the calibration, as in arXiv 1706.04599, section 2


@dataclass(frozen=True)
class Outcomes:
    """The predictions of a network for N labelled videos."""

    paths: np.ndarray  # (N,) of the videos
    labels: np.ndarray  # (N,) true classes
    predicted: np.ndarray  # (N,) classes with the highest score
    rank: np.ndarray  # (N,) place of the true class, from 0; of equal scores, that of the first class is the highest
    confidence: np.ndarray  # (N,) probability of the predicted class
    loss: np.ndarray  # (N,) negative logarithm of the probability of the true class
    names: list[str]  # (K,) of the classes

    @property
    def wrong(self) -> np.ndarray:
        """(N,) whether the prediction is another class than the label."""
        return self.predicted != self.labels


@dataclass(frozen=True)
class MultiLabelOutcomes:
    """The predictions of a network for N videos that have any number of classes."""

    paths: np.ndarray  # (N,) of the videos
    targets: np.ndarray  # (N, K) whether a video belongs to a class
    probabilities: np.ndarray  # (N, K), independent of each other
    loss: np.ndarray  # (N,) mean binary cross-entropy over the classes
    precisions: np.ndarray  # (K,) average precision of each class, 0 to 1; NaN for a class without videos
    names: list[str]  # (K,) of the classes

    def true(self, row: int) -> list[str]:
        """Return the names of the classes of a video."""
        return [self.names[k] for k in np.flatnonzero(self.targets[row]).tolist()]

    def predicted(self, row: int) -> list[str]:
        """Return the names of the most probable classes, as many as the video has, in the order of the classes."""
        count = max(1, int(self.targets[row].sum()))
        return [self.names[k] for k in sorted(np.argsort(-self.probabilities[row], kind="stable")[:count].tolist())]


def read_outcomes(path: str | os.PathLike[str]) -> Outcomes | MultiLabelOutcomes | None:
    """Read a scores.npz file; return None if it has no labelled videos, or is of a version without probabilities."""
    with np.load(path) as file:
        if "probabilities" not in file:
            return None
        label, scores, names = file["label"], file["scores"], file["class_names"].tolist()
        known = np.flatnonzero(label.reshape(len(label), -1)[:, 0] >= 0)
        paths, probabilities, summed = file["id"][known], bool(file["probabilities"]), int(file["summed"])
    if not len(known):
        return None
    names = names or [str(k) for k in range(scores.shape[1])]
    read = _multi_label_outcomes if label.ndim == 2 else _outcomes
    return read(paths, label[known], scores[known], names, probabilities, summed)


def _outcomes(
    paths: np.ndarray, labels: np.ndarray, scores: np.ndarray, names: list[str], probabilities: bool, summed: int
) -> Outcomes:
    parts: list[tuple[np.ndarray, ...]] = []
    for start in range(0, len(labels), CHUNK):
        own, part = labels[start : start + CHUNK, None], scores[start : start + CHUNK]
        logs = log_probabilities(torch.from_numpy(part), probabilities, summed).numpy()
        true = np.take_along_axis(part, own, 1)
        before = (part > true) | ((part == true) & (np.arange(part.shape[1]) < own))
        parts.append((part.argmax(1), before.sum(1), np.exp(logs.max(1)), -np.take_along_axis(logs, own, 1)[:, 0]))
    predicted, rank, confidence, loss = (np.concatenate(column) for column in zip(*parts, strict=True))
    return Outcomes(paths, labels, predicted, rank, confidence, loss, names)


def _multi_label_outcomes(
    paths: np.ndarray, label: np.ndarray, scores: np.ndarray, names: list[str], probabilities: bool, summed: int
) -> MultiLabelOutcomes:
    values, targets = torch.from_numpy(scores), torch.from_numpy(label)
    loss = multi_label_losses(values, targets, probabilities, summed).numpy()
    mean = values / summed if probabilities else (values / summed).sigmoid()
    precisions = average_precisions(values, targets).numpy()
    return MultiLabelOutcomes(paths, label > 0, mean.numpy(), loss, precisions, names)


def confusion(outcomes: Outcomes) -> np.ndarray:
    """Return the number of videos per true and predicted class, (K, K)."""
    classes = len(outcomes.names)
    counts = np.bincount(outcomes.labels * classes + outcomes.predicted, minlength=classes**2)
    return counts.reshape(classes, classes)


def cluster_order(counts: np.ndarray) -> np.ndarray:
    """Return an order of the classes, (K,), in which those that are confused are neighbours."""
    from scipy.cluster.hierarchy import leaves_list, linkage  # slow to import, and for many classes only
    from scipy.spatial.distance import squareform

    shares = counts / np.maximum(counts.sum(1, keepdims=True), 1)
    distance = 1 - (shares + shares.T) / 2
    np.fill_diagonal(distance, 0)
    return leaves_list(linkage(squareform(distance, checks=False), "average"))


class ClassRow(NamedTuple):
    """Results of the videos of one class; accuracies in percent."""

    name: str
    videos: int
    top1: float
    top5: float
    loss: float
    confused: str  # most frequent wrong prediction for these videos
    times: int


def class_rows(outcomes: Outcomes, counts: np.ndarray) -> list[ClassRow]:
    """Return the results of each class that has videos, the lowest accuracy first."""
    classes = len(outcomes.names)
    videos = counts.sum(1)
    mistakes = counts * (1 - np.eye(classes, dtype=counts.dtype))
    most = mistakes.argmax(1)
    in_top5 = np.bincount(outcomes.labels, weights=outcomes.rank < 5, minlength=classes)
    losses = np.bincount(outcomes.labels, weights=outcomes.loss, minlength=classes)
    rows: list[ClassRow] = []
    for k in np.flatnonzero(videos).tolist():
        count, times, top1, top5 = int(videos[k]), int(mistakes[k, most[k]]), int(counts[k, k]), float(in_top5[k])
        shares = 100 * top1 / count, 100 * top5 / count, float(losses[k]) / count
        confused = outcomes.names[most[k]] if times else ""
        rows.append(ClassRow(outcomes.names[k], count, *shares, confused, times))
    return sorted(rows, key=lambda row: (row.top1, -row.loss))


class Pair(NamedTuple):
    """A class that is taken for another one: `rows` of the outcomes, the most confident mistakes first."""

    true: str
    predicted: str
    times: int
    videos: int
    rows: list[int]


def confused_pairs(outcomes: Outcomes, counts: np.ndarray, limit: int) -> list[Pair]:
    """Return the `limit` most frequent confusions."""
    classes = len(outcomes.names)
    mistakes = (counts * (1 - np.eye(classes, dtype=counts.dtype))).ravel()
    pairs: list[Pair] = []
    for cell in np.argsort(-mistakes, kind="stable")[:limit].tolist():
        if mistakes[cell] == 0:
            break
        true, predicted = divmod(cell, classes)
        rows = np.flatnonzero((outcomes.labels == true) & (outcomes.predicted == predicted))
        rows = rows[np.argsort(-outcomes.confidence[rows], kind="stable")].tolist()
        videos = int(counts[true].sum())
        pairs.append(Pair(outcomes.names[true], outcomes.names[predicted], int(mistakes[cell]), videos, rows))
    return pairs


class Calibration(NamedTuple):
    """Accuracy against confidence: per bin, and the expected calibration error in percent."""

    confidence: np.ndarray
    accuracy: np.ndarray
    videos: np.ndarray
    ece: float


def calibration(outcomes: Outcomes) -> Calibration:
    """Return mean confidence and accuracy, both from 0 to 1, of `BINS` equal intervals; 0 in an empty one."""
    bins = np.minimum((outcomes.confidence * BINS).astype(int), BINS - 1)
    videos = np.bincount(bins, minlength=BINS)
    filled = np.maximum(videos, 1)
    confidence = np.bincount(bins, weights=outcomes.confidence, minlength=BINS) / filled
    accuracy = np.bincount(bins, weights=~outcomes.wrong, minlength=BINS) / filled
    error = float((videos * np.abs(confidence - accuracy)).sum() / videos.sum())
    return Calibration(confidence, accuracy, videos, 100 * error)


class PrecisionRow(NamedTuple):
    """Results of a class, in percent: its average precision, and that of a random order (its share of the videos)."""

    name: str
    videos: int
    precision: float
    random: float


def precision_rows(outcomes: MultiLabelOutcomes) -> list[PrecisionRow]:
    """Return the results of each class that has videos, the lowest average precision first."""
    videos, count = outcomes.targets.sum(0).tolist(), len(outcomes.targets)
    rows = [
        PrecisionRow(name, number, 100 * precision, 100 * number / count)
        for name, number, precision in zip(outcomes.names, videos, outcomes.precisions.tolist(), strict=True)
        if number
    ]
    return sorted(rows, key=lambda row: row.precision)
