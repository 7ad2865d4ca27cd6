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
    layer_decay: float = 1.0,
) -> list[dict[str, Any]]:
    """Split the trainable parameters by weight decay and learning-rate factor.

    Args:
        model: the network.
        weight_decay: weight decay of the parameters to which no other rule applies.
        bn_weight_decay: weight decay of the parameters of BatchNorm.
        zero_wd_1d: whether other one-dimensional parameters (biases, LayerNorm) and those in `model.no_weight_decay()`
            get no weight decay.
        backbone_lr_ratio: factor of the learning rate of everything outside `model.head_names`, ("head",) by default.
        layer_decay: factor of the learning rate from each layer to the one before it, as for VideoMAE
            (arXiv:2203.12602). The last layer has the factor 1; layers are those of `model.group_matcher()`.

    Returns:
        Non-empty groups, in the order BatchNorm, decayed, not decayed (head after backbone within each), with
        "params", "names", "weight_decay" and "lr_scale". With `layer_decay`, deeper layers follow within each.

    Raises:
        ValueError: `layer_decay` is not 1, and the model has no `group_matcher`.
    """
    no_decay = model.no_weight_decay() if hasattr(model, "no_weight_decay") else set()  # pyright: ignore
    batch_norm = {
        f"{prefix}.{name}" if prefix else name
        for prefix, module in model.named_modules()
        if isinstance(module, _BatchNorm)
        for name, _ in module.named_parameters(recurse=False)
    }
    heads = tuple(f"{head}." for head in getattr(model, "head_names", ("head",)))
    depth_scale = _depth_scales(model, layer_decay) if layer_decay != 1.0 else {}

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
        scale = (1.0 if name.startswith(heads) else backbone_lr_ratio) * depth_scale.get(name, 1.0)
        group = groups.setdefault((kind, scale), {"params": [], "names": [], "weight_decay": decay, "lr_scale": scale})
        group["params"].append(parameter)
        group["names"].append(name)
    return [groups[key] for key in sorted(groups)]


def _depth_scales(model: nn.Module, layer_decay: float) -> dict[str, float]:
    """Return parameter -> `layer_decay` to the power of the number of layers after its own."""
    from timm.models import group_parameters  # slow to import, and most runs do not need it

    matcher = getattr(model, "group_matcher", None)
    if matcher is None:
        raise ValueError(
            f"layer_decay {layer_decay} needs the layers of a network in order, and {type(model).__name__} has no "
            "group_matcher: define it as in timm, or use layer_decay 1"
        )
    layers: Any = group_parameters(model, matcher(coarse=False), reverse=True)
    last = max(layers.values())
    return {name: layer_decay ** (last - layer) for name, layer in layers.items()}
