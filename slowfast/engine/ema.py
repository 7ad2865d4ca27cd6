"""Keep an exponential moving average of weights."""

from __future__ import annotations

import copy

import torch
from torch import Tensor, nn


class ModelEma:
    """A copy of a model whose parameters are a moving average of the model's, and whose buffers are the model's.

    Each step keeps the share `decay` of the average.
    """

    def __init__(self, model: nn.Module, decay: float) -> None:
        self.module = copy.deepcopy(model).eval().requires_grad_(False)
        self.decay = decay

    @torch.no_grad()
    def update(self, model: nn.Module, kept: Tensor) -> None:
        """Move the average towards `model` by a share of 1 - decay, if `kept` () is True on the device."""
        # A step of SGD along the half squared distance to the weights, average - weights, is the moving average. The
        # kernel updates all tensors at once and reads on the device whether to do it, which `_foreach_lerp_` does not.
        torch._fused_sgd_(
            list(self.module.parameters()), list(model.parameters()), [], maximize=True, weight_decay=1.0,
            lr=1.0 - self.decay, momentum=0.0, dampening=0.0, nesterov=False, is_first_step=False,
            found_inf=(~kept).float(),
        )  # fmt: skip
        for mine, other in zip(self.module.buffers(), model.buffers(), strict=True):
            mine.copy_(torch.where(kept, other, mine))
