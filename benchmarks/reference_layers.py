"""Define what the reference networks share: layers with the weights of ours, and stochastic depth."""

from __future__ import annotations

import copy
from typing import Any

import torch
from torch import Tensor, nn


def plain(module: Any) -> Any:
    """Return a copy of layers in which every subclass of a layer of PyTorch is that layer, with contiguous weights."""
    module = copy.deepcopy(module)
    for part in module.modules():
        part.__class__ = next(kind for kind in type(part).__mro__ if kind.__module__.startswith("torch.nn."))
    for parameter in module.parameters():
        parameter.data = parameter.data.contiguous()
    return module


class DropPath(nn.Module):
    """Stochastic depth (arXiv:1603.09382): divide by the probability to keep a sample, and multiply by 0 or 1."""

    def __init__(self, rate: float) -> None:
        super().__init__()
        self.rate = rate

    def forward(self, x: Tensor) -> Tensor:
        if not self.rate or not self.training:
            return x
        keep = 1 - self.rate
        kept = (keep + torch.rand((x.shape[0],) + (1,) * (x.ndim - 1), dtype=x.dtype, device=x.device)).floor()
        return x.div(keep) * kept
