"""Compute the mean output of any layer of a network."""

from __future__ import annotations

from collections.abc import Sequence
from difflib import get_close_matches
from typing import Any

import torch
from torch import Tensor, nn

from slowfast.models.backbone import TimmBackbone

POOLED = "pooled"
SHOWN = 5  # names that an error shows


class _Reached(Exception):
    """The output of the layer is known, so the layers after it need not run."""


class LayerFeatures(nn.Module):
    """A network up to a layer: clips (B, C, T, H, W) -> the mean output (B, C') of the layer over all positions.

    Outputs of four and more dimensions have their channels second, others last. The dimension that contains the clips
    is found by a run with one and with two clips, so tokens (L, B, C') and frames of a clip that are processed as
    images, (B * T, ...), are possible too.

    Args:
        model: the network, in evaluation mode.
        layer: name of one of its modules; "pooled" is the input of the classifier.

    Raises:
        ValueError: the network does not have the layer.
    """

    def __init__(self, model: nn.Module, layer: str = POOLED) -> None:
        super().__init__()
        modules = dict(model.named_modules())
        self.takes_input = layer == POOLED and POOLED not in modules
        name = _classifier(model) if self.takes_input else layer
        if not name or name not in modules:
            raise ValueError(_unknown(layer, [POOLED, *filter(None, modules)]))
        self.model, self.layer, self.name = model, modules[name], layer
        self.batch_axis: int | None = None
        self.train(model.training)  # an evaluation restores it

    def forward(self, clips: Tensor) -> Tensor:
        """Return (B, C') of clips (B, C, T, H, W) or images (B, C, H, W)."""
        if self.batch_axis is None:
            self.batch_axis = self._find_batch_axis(clips[:1])
        return self._pool(self._run(clips), len(clips), self.batch_axis)

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
            raise ValueError(f"layer {self.name} returns a {type(output).__name__}, no tensor: choose another one")
        return output

    def _find_batch_axis(self, clip: Tensor) -> int:
        one, two = self._run(clip).shape, self._run(torch.cat([clip, clip])).shape
        axes = [axis for axis, (a, b) in enumerate(zip(one, two, strict=True)) if b == 2 * a]
        if len(axes) != 1 or len(one) < 2:
            raise ValueError(f"layer {self.name} returns {tuple(one)} for a clip, no features: choose another one")
        return axes[0]

    @staticmethod
    def _pool(output: Tensor, clips: int, batch_axis: int) -> Tensor:
        channels = 1 if output.ndim >= 4 else output.ndim - 1
        if batch_axis == channels:
            raise ValueError(f"an output {tuple(output.shape)} of {clips} clips has no dimension of channels")
        output = output.movedim((batch_axis, channels), (0, -1)).flatten(1, -2) if output.ndim > 2 else output
        # a clip may be several rows, its frames
        return output.reshape(clips, -1, output.shape[-1]).float().mean(1)


def _classifier(model: nn.Module) -> str:
    """Return the name of the first classifier of a network; "" if it is not known."""
    if isinstance(model, TimmBackbone):
        return model.classifier_names()[0]
    return next(iter(getattr(model, "head_names", ())), "")


def _unknown(layer: str, known: Sequence[str]) -> str:
    near = get_close_matches(layer, known, SHOWN, 0.5)
    shown = f"near names are {', '.join(near)}" if near else f"names are {', '.join(known[:SHOWN])}, ..."
    return f"the network has no layer {layer!r}: {shown} ({len(known)} in all; docs/FEATURES.md lists them)"
