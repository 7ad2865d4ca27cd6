"""Exponential moving average of weights."""

from __future__ import annotations

import copy

import torch
from torch import nn


class ModelEma:
    """A copy of a model that follows it slowly; buffers are copied. Nothing here waits for the device.

    Args:
        decay: share of the average that stays at each step.
    """

    def __init__(self, model: nn.Module, decay: float) -> None:
        self.module = copy.deepcopy(model).eval().requires_grad_(False)
        self.decay = decay

    @torch.no_grad()
    def update(self, model: nn.Module) -> None:
        """Move the average towards `model` by a share of 1 - decay."""
        torch._foreach_lerp_(list(self.module.parameters()), list(model.parameters()), 1.0 - self.decay)
        self.copy_buffers(model)

    @torch.no_grad()
    def copy_buffers(self, model: nn.Module) -> None:
        """Take over `model`'s BatchNorm statistics."""
        for mine, other in zip(self.module.buffers(), model.buffers(), strict=True):
            mine.copy_(other)
