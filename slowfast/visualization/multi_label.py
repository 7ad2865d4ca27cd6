"""Analyse the predictions of a multi-label test or validation: average precision per class, largest losses."""

from __future__ import annotations

import os
from dataclasses import dataclass
from typing import NamedTuple

import numpy as np
import torch

from slowfast.utils.scores import average_precisions, multi_label_losses


@dataclass(frozen=True)
class MultiLabelOutcomes:
    """What a network predicted for each of N videos that have any number of classes.

    Attributes:
        paths: (N,) of the videos.
        targets: (N, K) whether a video belongs to a class.
        probabilities: (N, K), independent of each other.
        loss: (N,) mean binary cross-entropy over the classes.
        precisions: (K,) average precision of each class, 0 to 1; NaN for a class without videos.
        names: (K,) of the classes.
    """

    paths: np.ndarray
    targets: np.ndarray
    probabilities: np.ndarray
    loss: np.ndarray
    precisions: np.ndarray
    names: list[str]

    def true(self, row: int) -> list[str]:
        """Return the names of the classes of a video."""
        return [self.names[k] for k in np.flatnonzero(self.targets[row]).tolist()]

    def predicted(self, row: int) -> list[str]:
        """Return the names of the most probable classes, as many as the video has, in the order of the classes."""
        count = max(1, int(self.targets[row].sum()))
        return [self.names[k] for k in sorted(np.argsort(-self.probabilities[row], kind="stable")[:count].tolist())]


def read_multi_label(path: str | os.PathLike[str]) -> MultiLabelOutcomes | None:
    """Read a scores.npz file; return None if it is not of a multi-label list with videos whose classes are known."""
    with np.load(path) as file:
        label, scores = file["label"], file["scores"]
        if label.ndim != 2 or not len(known := np.flatnonzero(label[:, 0] >= 0)):
            return None
        paths, names = file["id"][known], file["class_names"].tolist()
        probabilities, summed = bool(file["probabilities"]), int(file["summed"])
    values, targets = torch.from_numpy(scores[known]), torch.from_numpy(label[known])
    loss = multi_label_losses(values, targets, probabilities, summed).numpy()
    mean = values / summed if probabilities else (values / summed).sigmoid()
    names = names or [str(k) for k in range(label.shape[1])]
    precisions = average_precisions(values, targets).numpy()
    return MultiLabelOutcomes(paths, label[known] > 0, mean.numpy(), loss, precisions, names)


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
