"""Compute maps of the positions of a clip that a network uses: Grad-CAM (arXiv:1610.02391) and attention.

A map (T', H', W') has a value per position of a layer, which is a part of the clip.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Sequence
from contextlib import AbstractContextManager, nullcontext
from typing import Any

import torch
from torch import Tensor, nn

from slowfast.models.backbone import TimmBackbone
from slowfast.models.image_vit import QueryAttention, SelfAttention
from slowfast.models.layers import Attention, uncompiled
from slowfast.models.uniformer import FourStages
from slowfast.models.uniformer_light import PruningBlock
from slowfast.models.uniformerv2 import UniFormerV2
from slowfast.utils.tables import close_to

FINE = 6  # positions per side below which a map is too coarse to see where something is
ATTENTION = (Attention, SelfAttention, PruningBlock)
BLOCK = re.compile(r"blocks\d+\.\d+")
Sizes = tuple[int, int, int]


def grad_cam(model: nn.Module, clip: Tensor, layer: str, label: int) -> Tensor:
    """Return where a layer increases the logit of a class (section 3 of the paper).

    The weight of a channel is the mean gradient of the logit over all positions, in space and time. The map is the
    weighted sum over the channels, without its negative part.

    Args:
        model: the network, in evaluation mode.
        clip: (1, C, T, H, W).
        layer: name of a module whose output has a vector per position, see `cam_layer`.
        label: number of the class.

    Returns:
        (T', H', W') of values from 0.

    Raises:
        ValueError: the output of the layer has no positions, or the logit does not depend on it.
    """
    found: dict[str, Any] = {}
    module = model.get_submodule(layer)
    hook = module.register_forward_hook(lambda module, inputs, output: found.update(output=output))
    with hook, _record_grid(model, layer, found), uncompiled(model), torch.enable_grad():
        logits = model(clip.detach().requires_grad_())  # so that frozen networks have gradients
    output = found.get("output")
    while isinstance(output, (tuple, list)) and output:
        output = output[0]
    if not isinstance(output, Tensor):
        raise ValueError(f"layer {layer} is not used by this network in a test: choose another one")
    gradient: Tensor | None = torch.autograd.grad(logits[0, label], output, allow_unused=True)[0]
    if gradient is None:  # pyright: ignore[reportUnnecessaryComparison]
        raise ValueError(f"the logits do not depend on the output of layer {layer}: choose another one")
    features, gradient = (_as_map(value.detach().float(), found.get("grid"), layer) for value in (output, gradient))
    return (features * gradient.mean((0, 1, 2))).sum(3).relu()


@torch.no_grad()
def attention(model: nn.Module, clip: Tensor, layer: str) -> Tensor:
    """Return the attention that each position of a clip receives, mean over the heads; its sum is 1.

    In UniFormer it is the mean over the tokens that attend, in UniFormer-light the running average of the attention of
    the class token, by which its blocks choose tokens. In UniFormerV2 it is the attention of the query token in a
    global block (`dec`), and that of the class token of each frame in a block of the image ViT (`resblocks`).

    Args:
        model: the network, in evaluation mode.
        clip: (1, C, T, H, W).
        layer: name of a block or of its attention, see `attention_layer`.

    Returns:
        (T', H', W').

    Raises:
        ValueError: the network has no such layer, or does not use it, or it has no attention.
    """
    found: dict[str, Any] = {}
    layer = attention_layer(model, layer, min(clip.shape[-2:]))
    module = model.get_submodule(layer)
    if isinstance(module, PruningBlock):
        hook = module.register_forward_hook(lambda module, inputs, output: found.update(weights=output[2]))
    else:
        received = _attention_received(module)
        hook = module.register_forward_pre_hook(lambda module, inputs: found.update(weights=received(*inputs)))
    with hook, _record_grid(model, layer, found), uncompiled(model):
        model(clip)
    if "weights" not in found:
        raise ValueError(f"layer {layer} is not used by this network in a test: choose another one")
    weights, grid = found["weights"].float(), found["grid"]
    positions = _as_map(weights.unsqueeze(-1), grid, layer)[..., 0]
    return positions / positions.sum()


def cam_layer(model: nn.Module, name: str | None, side: int) -> str:
    """Return the name of a layer for Grad-CAM; by default the deepest block whose map is not too coarse.

    `side` is the smaller one of the height and width of a clip.

    Raises:
        ValueError: the network has no such layer, or has no default.
    """
    if name is None:
        return _default(model, side, 0)
    return _known(_last_block(model, name), [name for name, _ in model.named_modules() if name])


def attention_layer(model: nn.Module, name: str | None, side: int) -> str:
    """Return the name of a layer for `attention`, see `cam_layer`; that of a block means its attention.

    Raises:
        ValueError: the network has no such layer, or it has no attention.
    """
    modules = dict(model.named_modules())
    pruning = {name for name, module in modules.items() if isinstance(module, PruningBlock)}
    known = [name for name, module in modules.items() if isinstance(module, ATTENTION)]
    known = [name for name in known if name.removesuffix(".attn") not in pruning or name in pruning]
    if not known:
        raise ValueError("the network has no attention layers of this package: draw Grad-CAM")
    name = _default(model, side, 2) if name is None else _last_block(model, name)
    if name.removesuffix(".attn") in pruning:
        return name.removesuffix(".attn")
    if f"{name}.attn" in known:
        return f"{name}.attn"
    if name in modules and name not in known:
        raise ValueError(f"layer {name} has no attention: choose another one, such as {known[-1]}")
    return _known(name, known)


def _default(model: nn.Module, side: int, first: int) -> str:
    """Return the last global block of UniFormerV2, or the last block of a stage of UniFormer, from stage `first`."""
    if isinstance(model, UniFormerV2):
        transformer = model.backbone.transformer
        block = f"dec.{len(transformer.dec) - 1}" if first else f"resblocks.{len(transformer.resblocks) - 1}"
        return f"backbone.transformer.{block}"
    if not isinstance(model, FourStages):
        raise ValueError(
            f"{type(model).__name__} has no default layer: name one (--layer NAME, in Python layer=NAME); "
            "docs/FEATURES.md shows how to list the layers"
        )
    fine = [stage for stage in range(first, 4) if side // model.feature_info[stage]["reduction"] >= FINE]
    stage = fine[-1] if fine else first
    return f"blocks{stage + 1}.{model.depth[stage] - 1}"


def _last_block(model: nn.Module, name: str) -> str:
    """Return the name of the last block of a stage, for example blocks3.7 of blocks3, or the given name."""
    stage = dict(model.named_modules()).get(name)
    return f"{name}.{len(stage) - 1}" if isinstance(stage, nn.ModuleList) else name


def _known(name: str, known: Sequence[str]) -> str:
    if name not in known:
        near = close_to(name, known, 3)
        raise ValueError(f"the network has no layer {name!r}{near}: docs/FEATURES.md shows how to list the layers")
    return name


def _record_grid(model: nn.Module, layer: str, found: dict[str, Any]) -> AbstractContextManager[Any]:
    """Record the grid (T', H', W') of the positions of a layer as found["grid"] within the context."""
    if isinstance(model, UniFormerV2):
        embedding = model.backbone.conv1
        return embedding.register_forward_hook(lambda module, inputs, output: found.update(grid=output.shape[2:]))
    block = BLOCK.match(layer) if isinstance(model, TimmBackbone) else None
    if block is None:
        return nullcontext()  # outputs outside of the blocks have the shape of a grid
    source = model.get_submodule(block[0])
    return source.register_forward_pre_hook(lambda module, inputs: found.update(grid=inputs[0].shape[2:]))


def _as_map(output: Tensor, grid: Sizes | None, layer: str) -> Tensor:
    """Return the output of a layer for one clip as (T', H', W', C'); class tokens are left out."""
    if output.ndim == 5 and grid in (None, output.shape[2:]):
        return output[0].movedim(0, -1)
    if grid is not None and output.ndim in (3, 4):
        time, space = grid[0], grid[1] * grid[2]
        tokens = output.squeeze(0)
        if tokens.shape[-2] in (time * space + 1, space + 1):
            tokens = tokens[..., 1:, :]
        elif tokens.shape[-2] == time * space + time:  # UniFormerV2: class tokens of all frames, then the patches
            tokens = tokens[time:]
        if re.search(r"\.t_(attn|norm)\b", layer) and tokens.shape[:-1] == (space, time):
            return tokens.transpose(0, 1).unflatten(1, grid[1:])
        if tokens.shape[:-1] in ((time, space), (time * space,)):
            return tokens.reshape(*grid, -1)
    raise ValueError(
        f"layer {layer} returns {tuple(output.shape)}, which is no map of a clip: choose another one, such as a block"
    )


def _attention_received(module: nn.Module) -> Callable[..., Tensor]:
    """Return the function from the inputs of an attention layer to the attention (B, L) that its tokens receive."""
    if isinstance(module, QueryAttention):
        return lambda query, tokens: module.weights(query, tokens)[:, :, 0].mean(1)
    if isinstance(module, SelfAttention):
        return lambda tokens: module.weights(tokens)[:, :, 0].mean(1)
    assert isinstance(module, Attention)
    return lambda tokens: module.weights(tokens).mean((1, 2))
