"""Compute losses of logits (B, K)."""

from __future__ import annotations

from collections.abc import Callable

from torch import Tensor
from torch.nn import functional as F


def soft_cross_entropy(logits: Tensor, target: Tensor) -> Tensor:
    """Return the mean over B of -sum_k target_k log softmax(logits)_k; `target` (B, K) holds class probabilities."""
    return -(target * F.log_softmax(logits, dim=1)).sum(1).mean()


# A loss takes logits (B, K) and targets, and returns a scalar. Targets are class numbers (B,) for "cross_entropy" and
# class probabilities (B, K) for the others.
LOSSES: dict[str, Callable[[Tensor, Tensor], Tensor]] = {
    "cross_entropy": F.cross_entropy,
    "soft_cross_entropy": soft_cross_entropy,
    "bce": F.binary_cross_entropy_with_logits,
    "bce_logit": F.binary_cross_entropy_with_logits,
}
