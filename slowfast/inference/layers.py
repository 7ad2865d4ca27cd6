"""Compute the mean output of any layer of a network."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor, nn

from slowfast.models.backbone import TimmBackbone
from slowfast.models.layers import uncompiled
from slowfast.models.uniformerv2 import UniFormerV2
from slowfast.utils.tables import close_to

POOLED = "pooled"
SMALL = 64  # pixels; smaller clips may be too small for a network


class _Reached(Exception):
    """The output of the layer is known, so the layers after it need not run."""


class LayerFeatures(nn.Module):
    """A network up to a layer: clips (B, C, T, H, W) -> the mean output (B, C') of the layer over all positions.

    Layers arrange clips, positions and channels in any order, for example (B, C', T, H, W), (B, T, L, C') or, for
    frames that are processed as images, (B * T, L, C'). Runs with one clip, two clips and a clip of another size show
    which dimension is which: that of clips changes with their number, those of positions with the size of a clip.

    Args:
        model: the network, in evaluation mode.
        layer: name of one of its modules; "pooled" is the input of the classifier.
        tokens: return all positions, (B, L, C'), not their mean.

    Raises:
        ValueError: the network does not have the layer.
    """

    def __init__(self, model: nn.Module, layer: str = POOLED, tokens: bool = False) -> None:
        super().__init__()
        modules = dict(model.named_modules())
        self.takes_input = layer == POOLED and POOLED not in modules
        name = _classifier(model) if self.takes_input else layer
        if not name or name not in modules:
            near = close_to(layer, [POOLED, *modules], 3)
            raise ValueError(f"the network has no layer {layer!r}{near}: docs/FEATURES.md shows how to list the layers")
        self.model, self.layer, self.name, self.tokens = model, modules[name], layer, tokens
        self.axes: tuple[int, int] | None = None  # of the clips and of the channels
        self.train(model.training)  # an evaluation restores it

    def forward(self, clips: Tensor) -> Tensor:
        """Return (B, C'), or the tokens, of clips (B, C, T, H, W) or images (B, C, H, W)."""
        if self.axes is None:
            self.axes = self._find_axes(clips[:1])
        output = self._run(clips).movedim(self.axes, (0, -1))
        # a clip may be several rows, its frames
        tokens = output.reshape(len(clips), -1, output.shape[-1]).float()
        return tokens if self.tokens else tokens.mean(1)

    def _run(self, clips: Tensor) -> Tensor:
        """Return the first tensor of the output of the layer."""
        outputs: list[Any] = []

        def keep(value: Any) -> None:
            outputs.append(value)
            raise _Reached

        if self.takes_input:
            hook = self.layer.register_forward_pre_hook(lambda module, inputs: keep(inputs))
        else:
            hook = self.layer.register_forward_hook(lambda module, inputs, output: keep(output))
        try:
            with uncompiled(self.model):
                self.model(clips)
        except _Reached:
            pass
        finally:
            hook.remove()
        if not outputs:
            raise ValueError(f"layer {self.name} is not used by this network in a test: choose another one")
        output = outputs[0]
        while isinstance(output, (tuple, list)) and len(output):
            output = output[0]
        if not isinstance(output, Tensor):
            raise ValueError(f"layer {self.name} returns a {type(output).__name__}, not a tensor: choose another one")
        return output

    def _find_axes(self, clip: Tensor) -> tuple[int, int]:
        """Return the dimensions of the clips and of the channels in the output of the layer."""
        time, size = clip.shape[-3], clip.shape[-1]
        patch = self.model.patch if isinstance(self.model, UniFormerV2) else 1  # it takes whole patches
        half = size // 2 // patch * patch
        other = clip[..., :half, :half] if size > SMALL else torch.cat([torch.cat([clip] * 2, -1)] * 2, -2)
        if clip.ndim == 5:
            other = other[:, :, : max(1, time // 2)]
        one, two, resized = (self._run(clips).shape for clips in (clip, torch.cat([clip, clip]), other))
        batch = [axis for axis in range(len(one)) if two[axis] == 2 * one[axis]]
        channels = [axis for axis in range(len(one)) if axis not in batch and resized[axis] == one[axis]]
        if len(batch) != 1 or not channels or len(two) != len(one) or len(resized) != len(one):
            raise ValueError(f"layer {self.name} returns {tuple(one)} for a clip, no features: choose another one")
        return batch[0], max(channels, key=lambda axis: one[axis])


def _classifier(model: nn.Module) -> str:
    """Return the name of the first classifier of a network; "" if it is not known."""
    if isinstance(model, TimmBackbone):
        return model.classifier_names()[0]
    return next(iter(getattr(model, "head_names", ())), "")
