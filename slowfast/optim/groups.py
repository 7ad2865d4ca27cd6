"""Group parameters by weight decay and learning rate."""

from __future__ import annotations

from typing import Any

from torch import nn
from torch.nn.modules.batchnorm import _BatchNorm


def parameter_groups(
    model: nn.Module,
    weight_decay: float,
    bn_weight_decay: float = 0.0,
    zero_wd_1d: bool = True,
    backbone_lr_ratio: float = 1.0,
) -> list[dict[str, Any]]:
    """Split the trainable parameters by weight decay and learning-rate factor.

    BatchNorm parameters get `bn_weight_decay`; with `zero_wd_1d` all other one-dimensional tensors (biases, LayerNorm)
    and those in `model.no_weight_decay()` get none; the rest get `weight_decay`.

    Args:
        model: the network.
        weight_decay: weight decay of the parameters to which no other rule applies.
        bn_weight_decay: weight decay of the parameters of BatchNorm.
        zero_wd_1d: whether one-dimensional parameters and `model.no_weight_decay()` get no weight decay.
        backbone_lr_ratio: factor of the learning rate of everything outside `model.head_names`, ("head",) by default.

    Returns:
        Non-empty groups, in the order BatchNorm, decayed, not decayed (head after backbone within each), with
        "params", "names", "weight_decay" and "lr_scale".
    """
    no_decay = model.no_weight_decay() if hasattr(model, "no_weight_decay") else set()  # pyright: ignore
    batch_norm = {
        f"{prefix}.{name}" if prefix else name
        for prefix, module in model.named_modules()
        if isinstance(module, _BatchNorm)
        for name, _ in module.named_parameters(recurse=False)
    }
    heads = tuple(f"{head}." for head in getattr(model, "head_names", ("head",)))

    groups: dict[tuple[int, float], dict[str, Any]] = {}
    for name, parameter in model.named_parameters():
        if not parameter.requires_grad:
            continue
        if name in batch_norm:
            kind, decay = 0, bn_weight_decay
        elif zero_wd_1d and (parameter.ndim <= 1 or name in no_decay):
            kind, decay = 2, 0.0
        else:
            kind, decay = 1, weight_decay
        scale = 1.0 if name.startswith(heads) else backbone_lr_ratio
        group = groups.setdefault((kind, scale), {"params": [], "names": [], "weight_decay": decay, "lr_scale": scale})
        group["params"].append(parameter)
        group["names"].append(name)
    return [groups[key] for key in sorted(groups)]
