"""Analyse the predictions of a test or validation: confusion, accuracy per class, calibration, largest losses."""

from __future__ import annotations

import os
from dataclasses import dataclass
from typing import NamedTuple

import numpy as np
import torch

from slowfast.utils.scores import log_probabilities

CHUNK = 4096  # videos that are read at once
BINS = 15  # of the calibration, as in arXiv 1706.04599, section 2


@dataclass(frozen=True)
class Outcomes:
    """What a network predicted for each of N labelled videos.

    Attributes:
        paths: (N,) of the videos.
        labels: (N,) true classes.
        predicted: (N,) classes with the highest score.
        rank: (N,) number of classes with a higher score than the true one.
        confidence: (N,) probability of the predicted class.
        loss: (N,) negative logarithm of the probability of the true class.
        names: (K,) of the classes.
    """

    paths: np.ndarray
    labels: np.ndarray
    predicted: np.ndarray
    rank: np.ndarray
    confidence: np.ndarray
    loss: np.ndarray
    names: list[str]

    @property
    def wrong(self) -> np.ndarray:
        """(N,) whether the prediction is another class than the label."""
        return self.predicted != self.labels


def read_outcomes(path: str | os.PathLike[str]) -> Outcomes | None:
    """Read a scores.npz file; return None if it has no labelled videos, or is of a version without probabilities.

    For a multi-label list, it also returns None; see `read_multi_label`.
    """
    with np.load(path) as file:
        if "probabilities" not in file or file["label"].ndim == 2:
            return None
        label, scores = file["label"], file["scores"]
        known = np.flatnonzero(label >= 0)
        if not len(known):
            return None
        paths, names = file["id"][known], file["class_names"].tolist()
        probabilities, summed = bool(file["probabilities"]), int(file["summed"])
    parts: list[tuple[np.ndarray, ...]] = []
    for rows in (known[start : start + CHUNK] for start in range(0, len(known), CHUNK)):
        logs = log_probabilities(torch.from_numpy(scores[rows]), probabilities, summed).numpy()
        own = logs[np.arange(len(rows)), label[rows]]
        predicted = scores[rows].argmax(1)
        higher = (scores[rows] > scores[rows, label[rows]][:, None]).sum(1)
        parts.append((predicted, higher, np.exp(logs.max(1)), -own))
    predicted, rank, confidence, loss = (np.concatenate(column) for column in zip(*parts, strict=True))
    names = names or [str(k) for k in range(scores.shape[1])]
    return Outcomes(paths, label[known], predicted, rank, confidence, loss, names)


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
    confused: str  # class that they are predicted as most often, when the prediction is wrong
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
        times, top1, top5 = int(mistakes[k, most[k]]), 100 * counts[k, k] / videos[k], 100 * in_top5[k] / videos[k]
        confused = outcomes.names[most[k]] if times else ""
        rows.append(ClassRow(outcomes.names[k], int(videos[k]), top1, top5, losses[k] / videos[k], confused, times))
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
