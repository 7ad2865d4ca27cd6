"""Test the options of UniFormer, for videos and for images (ndim=2)."""

from __future__ import annotations

from functools import partial

import numpy as np
import pytest
import torch
from small_networks import configuration, initial

from slowfast.models import UniFormer, build_model
from slowfast.models.layers import DropPath
from slowfast.weights.load import load_weights

small = partial(initial, "uniformer")


def test_drop_path_rises_to_its_rate():
    model = UniFormer(drop_depth_rate=0.3)
    rates = [m.rate for n, m in model.named_modules() if n.endswith("drop_path")]
    assert rates == pytest.approx(np.linspace(0, 0.3, 18).tolist())


def test_a_drop_path_that_keeps_nothing_is_refused():
    with pytest.raises(ValueError, match="stochastic depth is 1"):
        UniFormer(drop_depth_rate=1.0)


def test_drop_path_keeps_the_mean_and_drops_whole_samples():
    torch.manual_seed(0)
    out = DropPath(0.25).train()(torch.ones(4000, 2, 3))
    assert all(len(row.unique()) == 1 for row in out[:50])
    assert out.mean().item() == pytest.approx(1.0, abs=0.03)
    assert sorted(out.unique().tolist()) == pytest.approx([0.0, 4 / 3])


def test_wrong_inputs_are_refused():
    with pytest.raises(ValueError, match="one pathway"):
        small()([torch.zeros(1), torch.zeros(1)])
    with pytest.raises(ValueError, match="head_dim 48 does not divide"):
        UniFormer(head_dim=48)
    with pytest.raises(ValueError, match="'Slowfast' is not known"):
        build_model(configuration({"MODEL.MODEL_NAME": "Slowfast"}))


def test_layer_scale_of_some_stages_and_its_initial_value():
    state = small(ndim=2, layer_scale=(None, None, 1e-6, 1e-6)).state_dict()
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
