"""Turn the scores of an evaluation into probabilities, and rank samples by them."""

from __future__ import annotations

import torch
from torch import Tensor
from torch.nn import functional

CELLS = 1 << 20  # scores that are sorted at once


def log_probabilities(scores: Tensor, probabilities: bool, summed: int) -> Tensor:
    """Return the logarithms of the probabilities of the classes, (N, K) float64.

    Args:
        scores: (N, K) sums or maxima over the views of a video.
        probabilities: whether they are of probabilities, not of logits.
        summed: views that a score is the sum of; 1 for maxima, which are normalized if they are of probabilities.
    """
    if not probabilities:
        return (scores.double() / summed).log_softmax(1)
    smallest = torch.finfo(torch.float32).tiny  # a probability may be too small for its type
    return (scores.double() / scores.double().sum(1, keepdim=True)).clamp(min=smallest).log()


def multi_label_losses(scores: Tensor, targets: Tensor, probabilities: bool, summed: int) -> Tensor:
    """Return the mean binary cross-entropy over the classes of each sample, (N,) float64.

    Args:
        scores: (N, K) as for `log_probabilities`, of a sigmoid per class.
        targets: (N, K), 1 where a sample belongs to a class, else 0.
        probabilities: whether the scores are of probabilities, not of logits.
        summed: views that a score is the sum of; 1 for maxima.
    """
    loss = functional.binary_cross_entropy if probabilities else functional.binary_cross_entropy_with_logits
    return loss(scores.double() / summed, targets.double(), reduction="none").mean(1)


def average_precisions(scores: Tensor, targets: Tensor) -> Tensor:
    """Return the average precision of each class, (K,) float64; NaN for a class without positive samples.

    It is the sum over the thresholds of the precision times the gain in recall, without interpolation. Samples with
    equal scores share a threshold. Only a few classes are sorted at once, to save memory.

    Args:
        scores: (N, K), any increasing function of the probabilities.
        targets: (N, K), not zero where a sample belongs to a class.
    """
    parts = zip(*(each.split(max(1, CELLS // max(1, len(scores))), dim=1) for each in (scores, targets)), strict=True)
    return torch.cat([_average_precisions(*part) for part in parts])


def _average_precisions(scores: Tensor, targets: Tensor) -> Tensor:
    ordered, order = scores.sort(0, descending=True)
    positive = targets.ne(0).gather(0, order).double()
    hits = positive.cumsum(0)
    ranks = torch.arange(1, len(scores) + 1, dtype=torch.float64, device=scores.device).unsqueeze(1)
    last = torch.ones_like(positive, dtype=torch.bool)  # of the samples with equal scores
    last[:-1] = ordered[1:] != ordered[:-1]
    # hits at the threshold before: counts never fall, so that the largest one above a row is the latest one
    at_threshold = torch.where(last, hits, 0.0).cummax(0).values
    before = torch.cat([torch.zeros_like(hits[:1]), at_threshold[:-1]])
    gained = torch.where(last, hits - before, 0.0)
    return (hits / ranks * gained).sum(0) / positive.sum(0)


def mean_average_precision(scores: Tensor, targets: Tensor) -> float:
    """Return the mean of the average precisions of the classes that have positive samples, 0 to 1; NaN if none has.

    Scores and targets are those of `average_precisions`.
    """
    return average_precisions(scores, targets).nanmean().item()
