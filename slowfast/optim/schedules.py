"""Compute the learning rate as a pure function of the fractional epoch."""

from __future__ import annotations

import math
from bisect import bisect_right
from collections.abc import Sequence


def cosine_lr(epoch: float, base: float, end: float, start_epoch: float, max_epoch: float) -> float:
    """Return half a cosine from `base` at `start_epoch` to `end` at `max_epoch` (arXiv:1608.03983, no restarts)."""
    progress = (epoch - start_epoch) / (max_epoch - start_epoch)
    return end + (base - end) * (math.cos(math.pi * progress) + 1.0) * 0.5


def steps_lr(epoch: float, base: float, steps: Sequence[float], factors: Sequence[float]) -> float:
    """Return `base` times the factor of the last step at or before `epoch`; `steps` starts with 0."""
    return base * factors[bisect_right(list(steps), epoch) - 1]


def warmup_lr(epoch: float, start: float, end: float, warmup_epochs: float) -> float:
    """Return a linear interpolation from `start` at epoch 0 to `end` at `warmup_epochs`."""
    return start + (end - start) * epoch / warmup_epochs
