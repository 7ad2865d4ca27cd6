"""Count parameters and FLOPs of a model, and measure memory."""

from __future__ import annotations

import copy
import math
from typing import Any

import torch
from torch import nn

from slowfast.utils.memory import peak_resident


def count_parameters(model: nn.Module) -> int:
    """Return the number of trainable and frozen parameters; buffers do not count."""
    return sum(p.numel() for p in model.parameters())


def _batch_norm(shape: Any, *args: Any, **kwargs: Any) -> int:
    return 4 * math.prod(shape)


# Twice fvcore's counts (5 and 2 per element), because PyTorch's own counter counts a multiply-add as two.
_NORMS = {
    torch.ops.aten.native_layer_norm: lambda shape, *args, **kwargs: 10 * math.prod(shape),
    torch.ops.aten.native_batch_norm: _batch_norm,
    torch.ops.aten._native_batch_norm_legit_no_training: _batch_norm,
}


def count_flops(model: nn.Module, *input_shape: int) -> int:
    """Return the multiply-adds of one forward pass in evaluation mode (in fvcore's convention: one is one FLOP).

    The input has the shape (B, C, T, H, W), or (B, C, H, W) for images. Nothing is computed: a copy of the model on the
    meta device has shapes only.
    """
    from torch.utils.flop_counter import FlopCounterMode  # imports Triton, which no run needs

    model = copy.deepcopy(model).to("meta").eval().requires_grad_(False)
    with FlopCounterMode(display=False, custom_mapping=_NORMS) as counter, torch.device("meta"):
        model(torch.zeros(input_shape))
    return counter.get_total_flops() // 2


def peak_memory_gib(device: torch.device) -> float:
    """Return the peak memory in GiB: of the GPU since the last reset, or resident memory of this process on the CPU.

    It is 0 on Windows, where it is not available.
    """
    if device.type == "cuda":
        return torch.cuda.max_memory_allocated(device) / 2**30
    return peak_resident() / 2**30
