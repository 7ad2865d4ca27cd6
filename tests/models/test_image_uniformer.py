"""Test the image UniFormers (ndim=2) against the official implementation: names, logits, stages, their options."""

from __future__ import annotations

import gzip
import json
from functools import partial
from pathlib import Path
from typing import Any

import pytest
import torch
from small_networks import initial

from slowfast.models import UniFormer
from slowfast.utils.profiling import count_flops, count_parameters
from slowfast.weights.load import load_weights

small = partial(initial, "uniformer")

VARIANTS = json.loads(gzip.decompress((Path(__file__).parents[1] / "golden" / "image.json.gz").read_bytes()))
WITH_LOGITS = [name for name, variant in VARIANTS.items() if "input_seed" in variant]
BASE = {"depth": (5, 8, 20, 7)}
PLUS = {"depth": (3, 5, 9, 3), "overlapped_stem": True}
OPTIONS: dict[str, dict[str, Any]] = {
    "image_uniformer_small": {},
    "image_uniformer_base": BASE,
    "image_uniformer_small_plus": {**PLUS, "head_dim": 32},
    "image_uniformer_small_plus_dim64": PLUS,
    "image_uniformer_base_ls": {**BASE, "layer_scale": (None, None, 1e-6, 1e-6)},
    "image_uniformer_large_ls_tl": {
        "depth": (5, 10, 24, 7),
        "embed_dim": (128, 192, 448, 640),
        "layer_scale": 1e-6,
        "aux_head": True,
    },
}


def build(name: str) -> UniFormer:
    return UniFormer(num_classes=1000, ndim=2, **OPTIONS[name])


@pytest.mark.parametrize("name", VARIANTS)
def test_names_and_shapes_are_the_official_ones(name):
    with torch.device("meta"):
        model = build(name)
    assert [[key, list(value.shape)] for key, value in model.state_dict().items()] == VARIANTS[name]["keys"]
    if "param_count" in VARIANTS[name]:
        assert count_parameters(model) == VARIANTS[name]["param_count"]


@pytest.mark.slow
@pytest.mark.parametrize("name", WITH_LOGITS)
def test_logits_and_stages_match_the_official_network(name, golden, assert_golden):
    assert_golden(lambda: build(name), VARIANTS[name], golden("image_logits.npz")[name])


@pytest.mark.parametrize("name", ["image_uniformer_small", "image_uniformer_small_plus"])
def test_flops_match_the_official_count(name):
    variant = VARIANTS[name]
    with torch.device("meta"):
        model = build(name)
    assert count_flops(model, *variant["input_shape"]) == pytest.approx(variant["flops_fvcore"], rel=1e-3)


def test_layer_scale_of_some_stages_and_its_initial_value():
    state = small(ndim=2, layer_scale=OPTIONS["image_uniformer_base_ls"]["layer_scale"]).state_dict()
    gammas = {name: value for name, value in state.items() if "gamma" in name}
    assert {name[: len("blocks#")] for name in gammas} == {"blocks3", "blocks4"}
    assert all(torch.all(value == 1e-6) for value in gammas.values())


@pytest.mark.parametrize("none", [0, 0.0, None, (), (0, None, 0.0, 0)])
def test_layer_scale_of_zero_is_none(none):
    assert not [name for name in small(ndim=2, layer_scale=none).state_dict() if "gamma" in name]


def test_layer_scale_scales_the_branches():
    model = small(ndim=2, layer_scale=1e-12).eval()
    for name, width in (("blocks1.0", 16), ("blocks3.1", 64)):
        block, pos_embed = model.get_submodule(name), model.get_submodule(f"{name}.pos_embed")
        x = torch.randn(2, width, 4, 4)
        assert torch.allclose(block(x), x + pos_embed(x), atol=1e-6)


def test_auxiliary_head_adds_half_its_largest_position():
    model = small(ndim=2, aux_head=True).eval()
    for parameter in model.head.parameters():
        torch.nn.init.zeros_(parameter)
    bias = torch.arange(5.0)
    model.aux_head.bias.data = bias
    weight = model.state_dict()["aux_head.weight"]
    features = torch.zeros(1, 64, 2, 3)
    features[0, :, 1, 2] = weight[3]  # looks like class 3, at one position only
    expected = 0.5 * (bias + (weight @ weight[3]).clamp(min=0))
    assert torch.allclose(model.forward_head(features)[0], expected, atol=1e-6)
    model.reset_classifier(7)
    assert model(torch.randn(2, 3, 64, 64)).shape == (2, 7)
    model.reset_classifier(0)
    assert model(torch.randn(2, 3, 64, 64)).shape == (2, 64)


@pytest.mark.parametrize("options", [{"overlapped_stem": True}, {"layer_scale": 0.1}, {"aux_head": True}])
def test_video_network_starts_from_image_weights(options):
    image, video = small(ndim=2, **options), small(**options)
    report = load_weights(video, image.state_dict(), to_train=True)
    assert not (report.missing or report.unexpected or report.reshaped) and report.inflated
    assert video.eval()(torch.randn(1, 3, 4, 64, 64)).shape == (1, 5)
    assert video.forward_features(torch.randn(1, 3, 4, 64, 96)).shape == (1, 64, 2, 2, 3)
    assert image.eval().forward_features(torch.randn(1, 3, 64, 96)).shape == (1, 64, 2, 3)


def test_options_that_exclude_each_other_are_refused():
    with pytest.raises(ValueError, match="two kinds of patch embedding"):
        small(std=True, overlapped_stem=True)
    with pytest.raises(ValueError, match="divided attention has no layer scale"):
        small(split=True, layer_scale=0.1)
    with pytest.raises(ValueError, match="split and std"):
        small(split=True, ndim=2)
