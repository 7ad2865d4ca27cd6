"""Networks that other programs have rewritten: layers wrapped and quantized, exported, traced, compiled."""

from __future__ import annotations

import copy

import pytest
import torch
from small_networks import SMALL, small, video_for
from torch import Tensor, nn


class LowRank(nn.Module):
    """A layer with a low-rank update, as LoRA has it (arXiv 2106.09685): a module without `weight`."""

    def __init__(self, base: nn.Linear) -> None:
        super().__init__()
        self.base, self.scale = base, 0.0
        self.down, self.up = nn.Linear(base.in_features, 2, bias=False), nn.Linear(2, base.out_features, bias=False)

    def forward(self, x: Tensor) -> Tensor:
        return self.base(x) + self.scale * self.up(self.down(x))


@pytest.mark.parametrize("name", SMALL)
@torch.no_grad()
def test_every_linear_layer_may_be_wrapped(name):
    model, video = small(name), video_for(name)
    expected = model(video)
    layers = {layer: module for layer, module in model.named_modules() if isinstance(module, nn.Linear)}
    wrappers = {layer: LowRank(module) for layer, module in layers.items()}
    for layer, wrapper in wrappers.items():
        model.set_submodule(layer, wrapper)
    assert torch.equal(model(video), expected)
    for layer, wrapper in wrappers.items():
        wrapper.scale = 1.0
        bypassed = torch.equal(model(video), expected)
        assert bypassed == (layer == "head_cls"), layer  # which is for training only
        wrapper.scale = 0.0


@pytest.mark.parametrize("name", SMALL)
@pytest.mark.filterwarnings("ignore:.*quant:DeprecationWarning", "ignore:.*quant:UserWarning")
@torch.no_grad()
def test_dynamic_int8_quantization(name):
    model, video = small(name), video_for(name)
    expected = model(video)
    quantized = torch.ao.quantization.quantize_dynamic(copy.deepcopy(model), {nn.Linear}, dtype=torch.qint8)
    assert not any(type(module) is nn.Linear for module in quantized.modules())
    assert (quantized(video) - expected).norm() < 0.1 * expected.norm()
