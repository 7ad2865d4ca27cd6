"""Count parameters and FLOPs of a model, and measure memory."""

from __future__ import annotations

import contextlib
import copy
import math
import re
import resource
import sys
from collections.abc import Callable
from pathlib import Path

import torch
from torch import nn


def count_parameters(model: nn.Module) -> int:
    """Return the number of trainable and frozen parameters; buffers do not count."""
    return sum(p.numel() for p in model.parameters())


def _per_element(count: int) -> Callable[..., int]:
    return lambda shape, *args, **kwargs: count * math.prod(shape)


# Twice fvcore's counts (5 and 2 per element), because PyTorch's own counter counts a multiply-add as two.
_NORMS = {
    torch.ops.aten.native_layer_norm: _per_element(10),
    torch.ops.aten.native_batch_norm: _per_element(4),
    torch.ops.aten._native_batch_norm_legit_no_training: _per_element(4),
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


def peak_memory(device: torch.device) -> int:
    """Return the peak memory in bytes: of the GPU since the last reset, or of this process (resident) on the CPU."""
    if device.type == "cuda":
        return torch.cuda.max_memory_allocated(device)
    with contextlib.suppress(OSError):
        # `ru_maxrss` begins with the memory of the parent process, which may be larger
        if found := re.search(r"VmHWM:\s*(\d+) kB", Path("/proc/self/status").read_text()):
            return int(found[1]) * 2**10
    unit = 1 if sys.platform == "darwin" else 2**10  # bytes there, KiB elsewhere
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * unit
