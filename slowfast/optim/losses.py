"""Compute losses of logits (B, K)."""

from __future__ import annotations

from collections.abc import Callable

import numpy as np
import torch
from torch import Tensor
from torch.nn import functional as F


def balanced_weights(labels: np.ndarray, num_classes: int) -> Tensor:
    """Return weights (K,) such that all classes in `labels` (N,) weigh the same; their mean over the labels is 1.

    Classes that do not occur have the weight 1.
    """
    counts = np.bincount(labels, minlength=num_classes)
    weights = len(labels) / (np.count_nonzero(counts) * np.maximum(counts, 1))
    return torch.from_numpy(np.where(counts > 0, weights, 1.0).astype(np.float32))


def cross_entropy(logits: Tensor, target: Tensor, weight: Tensor | None = None) -> Tensor:
    """Return the mean over B of -weight_y log softmax(logits)_y; `target` (B,) holds the classes y, `weight` is (K,).

    It is no weighted mean, which would depend on the other samples of a batch and so on the number of processes.
    """
    if weight is None:
        return F.cross_entropy(logits, target)
    return F.cross_entropy(logits, target, weight, reduction="none").mean()


def soft_cross_entropy(logits: Tensor, target: Tensor, weight: Tensor | None = None) -> Tensor:
    """Return the mean over B of -sum_k weight_k target_k log softmax(logits)_k; `target` (B, K) are probabilities."""
    target = target if weight is None else target * weight
    return -(target * F.log_softmax(logits, dim=1)).sum(1).mean()


# A loss takes logits (B, K) and targets, and returns a scalar. Targets are class numbers (B,) for "cross_entropy" and
# class probabilities (B, K) for the others. Those that end in cross_entropy also take `weight` (K,).
LOSSES: dict[str, Callable[..., Tensor]] = {
    "cross_entropy": cross_entropy,
    "soft_cross_entropy": soft_cross_entropy,
    "bce": F.binary_cross_entropy_with_logits,
    "bce_logit": F.binary_cross_entropy_with_logits,
}
