"""What a model costs: parameters, FLOPs, memory."""

from __future__ import annotations

import copy
from typing import Any

import torch
from fvcore.nn import FlopCountAnalysis
from torch import nn


def count_parameters(model: nn.Module) -> int:
    """Number of trainable and frozen parameters, buffers not counted."""
    return sum(p.numel() for p in model.parameters())


def _attention_flops(inputs: list[Any], outputs: list[Any]) -> int:
    """Multiply-adds of QK^T and AV: 2 * B * heads * L_q * L_k * D, as two batched matrix products would count."""
    *batch, queries, width = inputs[0].type().sizes()
    keys = inputs[1].type().sizes()[-2]
    flops = 2 * queries * keys * width
    for size in batch:
        flops *= size
    return flops


def count_flops(model: nn.Module, *input_shape: int) -> int:
    """Multiply-adds of one forward pass in evaluation mode (fvcore's convention: one multiply-add is one FLOP).

    Args:
        input_shape: shape of the input, (B, C, T, H, W).
    """
    model = copy.deepcopy(model).cpu().eval()
    counter = FlopCountAnalysis(model, torch.zeros(input_shape))
    counter.set_op_handle("aten::scaled_dot_product_attention", _attention_flops)
    counter.unsupported_ops_warnings(False).uncalled_modules_warnings(False)
    return int(counter.total())


def peak_memory_gib(device: torch.device) -> float:
    """Peak memory in GiB: of the GPU since the last reset, or resident memory of this process on the CPU."""
    if device.type == "cuda":
        return torch.cuda.max_memory_allocated(device) / 2**30
    import resource  # not on Windows

    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 2**20
