"""Test the layers of UniFormerV2, its options, and further frame sizes and counts."""

from __future__ import annotations

from dataclasses import replace
from functools import partial
from typing import Any

import pytest
import torch
from small_networks import TOWER, configuration, initial

from slowfast.config.rules import _cut_patch
from slowfast.models import build_model
from slowfast.models.image_vit import (
    TOWERS,
    PatchConv,
    PointwiseConv,
    QueryAttention,
    QuickGELU,
    TemporalConv,
    feed_forward,
    resize_position_embedding,
)
from slowfast.models.timm_tower import VisionTower
from slowfast.models.uniformerv2 import LocalUniBlock
from slowfast.weights.load import load_weights

small = partial(initial, "v2")


CONVOLUTIONS = {
    "patch": (PatchConv, (3, 6, (1, 8, 8), (1, 8, 8)), {"bias": False}),
    "patch_of_frames": (PatchConv, (3, 6, (3, 8, 8), (2, 8, 8), (1, 0, 0)), {}),
    "pointwise": (PointwiseConv, (16, 6, 1), {}),
    "temporal": (TemporalConv, (16, 16, (3, 1, 1)), {"padding": (1, 0, 0), "groups": 16}),
}


@pytest.mark.parametrize("name", CONVOLUTIONS)
@pytest.mark.parametrize("frames", [1, 2, 3, 7])
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_convolutions_over_tokens_equal_3d_convolutions(name, frames, dtype):
    """Compare with float64, because bfloat16 gradients of PyTorch's layer are wrong for two frames, channels last."""
    torch.manual_seed(0)
    kind, shape, options = CONVOLUTIONS[name]
    layer, exact = kind(*shape, **options).to(dtype), torch.nn.Conv3d(*shape, **options).double()
    exact.load_state_dict(layer.state_dict())
    video = torch.randn(2, layer.in_channels, frames, 16, 24).to(dtype)
    leaves = [video.clone().requires_grad_(), video.double().requires_grad_()]
    if name.startswith("patch"):
        output = layer(leaves[0])
    else:  # (B, T, L, C) and back
        output = layer(leaves[0].flatten(3).permute(0, 2, 3, 1)).permute(0, 3, 1, 2).unflatten(3, (16, 24))
    expected = exact(leaves[1])
    gradient = torch.randn(expected.shape).to(dtype)
    output.backward(gradient)
    expected.backward(gradient.double())
    pairs = [(output, expected), (leaves[0].grad, leaves[1].grad)]
    pairs += [(ours.grad, theirs.grad) for ours, theirs in zip(layer.parameters(), exact.parameters(), strict=True)]
    tolerance = 1e-5 if dtype == torch.float32 else 1e-2
    for ours, theirs in pairs:
        assert (ours - theirs).norm() <= tolerance * theirs.norm()


def test_attention_of_a_query_equals_that_of_pytorch():
    torch.manual_seed(0)
    ours, theirs = QueryAttention(32, 4), torch.nn.MultiheadAttention(32, 4, batch_first=True)
    torch.nn.init.normal_(ours.in_proj_bias)
    theirs.load_state_dict(ours.state_dict())
    leaves = [[torch.randn(2, n, 32, generator=torch.Generator().manual_seed(n)) for n in (3, 50)] for _ in range(2)]
    results = []
    for layer, (query, tokens) in zip((ours, lambda q, x: theirs(q, x, x)[0]), leaves, strict=True):
        output = layer(query.requires_grad_(), tokens.requires_grad_())
        output.square().sum().backward()
        results.append([output, query.grad, tokens.grad])
    results[0] += [p.grad for p in ours.parameters()]
    results[1] += [p.grad for p in theirs.parameters()]
    for value, expected in zip(*results, strict=True):
        torch.testing.assert_close(value, expected, rtol=1e-4, atol=1e-5)


def test_quick_gelu_and_its_gradient():
    x = torch.linspace(-9, 9, 99, dtype=torch.float64, requires_grad=True)
    y = QuickGELU()(x)
    torch.testing.assert_close(y, x * torch.sigmoid(1.702 * x))
    assert torch.autograd.gradcheck(QuickGELU(), x)


@pytest.mark.parametrize("dropout", [0.0, 0.5])
def test_scaled_weights_of_a_gpu_give_the_values_and_gradients_of_the_layers(dropout):
    layers: Any = feed_forward(6, 24, dropout).double()
    results = []
    for compute in (layers, layers.with_scaled_weights):
        torch.manual_seed(1)
        x = torch.linspace(-3, 3, 60, dtype=torch.float64).view(2, 5, 6).requires_grad_()
        y = compute(x)
        results.append([y, *torch.autograd.grad(y.square().sum(), [x, *layers.parameters()])])
    torch.testing.assert_close(*results, rtol=1e-12, atol=1e-12)


def test_weights_are_scaled_for_plain_layers_and_many_tokens():
    layers: Any = feed_forward(6, 24)
    exact: Any = feed_forward(6, 24, activation="gelu")
    many, few = torch.zeros(7, 6), torch.zeros(6, 6)
    assert layers.scales_weights(many)
    assert not layers.scales_weights(few)
    assert not exact.scales_weights(many)
    for name in ("c_fc", "gelu", "c_proj"):
        hook = layers.get_submodule(name).register_forward_hook(lambda *_: None)
        assert not layers.scales_weights(many)
        hook.remove()
    assert not layers[:2].scales_weights(many)
    layers.c_fc = torch.nn.Linear(6, 24, bias=False)
    assert not layers.scales_weights(many)


def test_bfloat16_gradients_are_those_of_float32():
    """Two frames after the first convolution: fewer than the kernels of the temporal convolutions have."""
    model, gradients = small(mlp_dropout=0.0, cls_dropout=0.0).train(), []
    with torch.no_grad():
        for parameter in model.parameters():
            parameter += 0.05 * torch.randn(parameter.shape)
    video = torch.randn(2, 3, 4, 32, 32)
    for enabled in (False, True):
        model.zero_grad()
        with torch.autocast("cpu", dtype=torch.bfloat16, enabled=enabled):
            logits = model(video)
        logits.float().square().sum().backward()
        gradients.append({name: p.grad for name, p in model.named_parameters() if "dpe" not in name})
    total = torch.stack([value.norm() for value in gradients[0].values()]).norm()
    for name, expected in gradients[0].items():
        assert (gradients[1][name] - expected).norm() <= 0.05 * expected.norm() + 1e-3 * total, name


def test_position_embedding_keeps_its_grid_and_its_class_token():
    embedding = torch.randn(17, 8)
    assert resize_position_embedding(embedding, (4, 4)) is embedding
    smooth = torch.cat([embedding[:1], torch.linspace(0, 1, 4).repeat(4).view(16, 1).expand(-1, 8)])
    resized = resize_position_embedding(smooth, (6, 8))
    assert torch.equal(resized[0], smooth[0]) and resized.shape == (49, 8)
    rows = resized[1:].view(6, 8, 8)[..., 0]
    assert torch.allclose(rows, rows[:1].expand(6, -1), atol=1e-5) and (rows[0].diff() > 0).all()


def test_a_frozen_network_starts_from_weights_of_one_that_is_not():
    """It leaves out the weight of the class tokens, so it gives another result, and a test must refuse it."""
    trained, model = small(no_lmhra=True), small(frozen=True, no_lmhra=True)
    report = load_weights(model, trained.state_dict(), to_train=True)
    assert report.left_out == ["backbone.transformer.balance"] and not (report.dropped or report.missing)
    assert all(torch.equal(value, trained.state_dict()[name]) for name, value in model.state_dict().items())
    with pytest.raises(ValueError, match=r"unexpected 1 \(backbone\.transformer\.balance\)"):
        load_weights(model, trained.state_dict())
    with pytest.raises(ValueError, match=r"missing 1 \(backbone\.transformer\.balance\)"):
        load_weights(trained, model.state_dict(), to_train=True)


def test_frozen_trains_only_new_parameters():
    model = small(frozen=True, no_lmhra=True)
    trained = {name.split(".")[2] for name, parameter in model.named_parameters() if parameter.requires_grad}
    assert trained == {"temporal_cls_token", "dpe", "dec", "proj"}
    assert not any("balance" in name for name in model.state_dict())
    outputs = []
    for block in (model.backbone.transformer.resblocks[-1], model.backbone.transformer.dec[-1]):
        block.register_forward_hook(lambda _m, _i, out: outputs.append(out))
    model.train()(torch.randn(1, 3, 4, 32, 32))
    assert [output.requires_grad for output in outputs] == [False, True]  # the image ViT keeps no activations


def test_drop_path_drops_whole_videos():
    tower = VisionTower(width=8, layers=1, heads=2, patch=8, resolution=32)
    block = LocalUniBlock(tower, local=False, double=False, reduction=1.5, drop_path=0.5).train()
    x = torch.randn(6, 4, 5, 8)
    with torch.no_grad():
        block.mlp.get_parameter("c_proj.weight").zero_()
        block.mlp.get_parameter("c_proj.bias").zero_()
        dropped = (block(x) == x).flatten(1)
    assert all(len(video.unique()) == 1 for video in dropped)
    assert dropped.any() and not dropped.all()


def test_every_image_vit_is_built_with_the_default_crop_sizes():
    """A network accepts any size that is a multiple of the patch size; the configuration checks the sizes of a run."""
    with torch.device("meta"):
        for name, tower in TOWERS.items():
            values = {"BACKBONE": name, "N_DIM": tower.width, "N_HEAD": tower.heads}
            values = {f"UNIFORMERV2.{key}": value for key, value in values.items()}
            cfg = configuration({"MODEL.MODEL_NAME": "Uniformerv2"}, values)
            assert _cut_patch(cfg, tower.patch + 1) == tower.patch
            model = build_model(cfg).eval()
            assert model(torch.zeros(1, 3, 2, 2 * tower.patch, 3 * tower.patch)).shape == (1, 400)


def test_wrong_options_are_refused():
    with pytest.raises(ValueError, match="'b32' is not known"):
        small(backbone="b32")
    with pytest.raises(ValueError, match=r"return_list \[1, 3\]"):
        small(return_list=(1, 3))
    with pytest.raises(ValueError, match="mlp_dropout has 1 rates"):
        small(mlp_dropout=[0.5])
    with pytest.raises(ValueError, match=r"n_head 5 .* 32 channels: set it to 4"):
        small(n_head=5)
    with pytest.raises(ValueError, match=r"5 heads .* 32 channels"):
        small(backbone=replace(TOWER, heads=5))
    with pytest.raises(ValueError, match="whole patches of 8"):
        small()(torch.zeros(1, 3, 2, 36, 32))
