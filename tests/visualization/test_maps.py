"""Maps of Grad-CAM and of attention equal what the definitions give."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from small_networks import initial
from torch import Tensor
from torch.nn import functional as F

from slowfast.visualization.maps import attention, attention_layer, cam_layer, grad_cam

CAM_LAYERS = {
    "uniformer": ["patch_embed1", "blocks1.0", "blocks2.0.conv1", "blocks3.1", "blocks3.0.mlp", "norm"],
    "uniformer_split": ["blocks3.0.attn", "blocks3.0.t_norm", "blocks4.0"],
    "light": ["blocks2.0", "blocks3.0.attn", "blocks3.1", "blocks4.0"],
    "v2": ["backbone.conv1", "backbone.transformer.resblocks.0.attn", "backbone.transformer.resblocks.1"],
}


def network(name: str) -> Any:
    model = initial(name, **{"temporal_downsample": False} if name == "v2" else {}).eval()
    for parameter in model.parameters():
        torch.nn.init.normal_(parameter, std=0.3)  # initial attention is nearly uniform
    return model


def clip() -> Tensor:
    return torch.randn(1, 3, 4, 64, 96, generator=torch.Generator().manual_seed(1))


def input_of(model: Any, name: str) -> tuple[Tensor, ...]:
    found = []
    hook = model.get_submodule(name).register_forward_pre_hook(lambda module, inputs: found.append(inputs))
    with torch.no_grad():
        model(clip())
    hook.remove()
    return found[0]


@pytest.mark.parametrize(("name", "layer"), [(name, layer) for name, layers in CAM_LAYERS.items() for layer in layers])
def test_grad_cam_has_the_positions_of_the_layer_and_no_negative_values(name, layer):
    model = network(name)
    for parameter in model.parameters():
        parameter.requires_grad_(False)  # as in a frozen network
    found = grad_cam(model, clip(), cam_layer(model, layer, 64), 2)
    assert found.ndim == 3 and found.shape[2] * 2 == found.shape[1] * 3
    assert found.min() >= 0 and torch.equal(found, grad_cam(model, clip(), layer, 2))
    assert not any(module._forward_hooks or module._forward_pre_hooks for module in model.modules())


def test_grad_cam_before_the_mean_is_the_classifier_of_each_position():
    model = network("uniformer")
    with torch.no_grad():
        features = model.forward_features(clip())[0]  # (C, T, H, W)
        maps = torch.einsum("kc,cthw->kthw", model.head.weight / features[0].numel(), features).relu()
    label = int(maps.flatten(1).amax(1).argmax())
    assert torch.allclose(grad_cam(model, clip(), "norm", label), maps[label], atol=1e-6)
    assert maps[label].max() > 0


ATTENTION_LAYERS = {
    "uniformer": ["blocks3.0", "blocks3", "blocks4.0.attn"],
    "uniformer_split": ["blocks3.0.attn", "blocks3.1.t_attn"],
    "light": ["blocks3.0", "blocks3.1.attn", "blocks4"],
    "v2": ["backbone.transformer.dec.0", "backbone.transformer.dec", "backbone.transformer.resblocks.1.attn"],
}


@pytest.mark.parametrize(
    ("name", "layer"), [(name, layer) for name, layers in ATTENTION_LAYERS.items() for layer in layers]
)
def test_attention_is_a_distribution_over_the_positions(name, layer):
    model = network(name)
    found = attention(model, clip(), layer)
    assert torch.equal(found, attention(model, clip(), attention_layer(model, layer, 64)))
    assert found.ndim == 3 and found.shape[2] * 2 == found.shape[1] * 3
    assert found.min() >= 0 and float(found.sum()) == pytest.approx(1, abs=1e-5)
    assert float(found.std()) > 0


@pytest.mark.parametrize(("layer", "fault"), [("blocks1", "blocks1.0 has no"), ("blocks9", "no layer 'blocks9'")])
def test_a_layer_without_attention_is_named(layer, fault):
    with pytest.raises(ValueError, match=fault):
        attention(network("uniformer"), clip(), layer)


def test_attention_of_a_global_block_is_that_of_its_queries_and_keys():
    model = network("uniformer")
    layer = model.get_submodule("blocks3.1.attn")
    (x,) = input_of(model, "blocks3.1.attn")
    q, k, _ = F.linear(x[0], layer.qkv.weight, layer.qkv.bias).chunk(3, 1)
    heads = [(q[:, i : i + 32] @ k[:, i : i + 32].T / 32**0.5).softmax(1).mean(0) for i in (0, 32)]
    found = attention(model, clip(), "blocks3.1.attn")
    assert torch.allclose(found.flatten(), (heads[0] + heads[1]) / 2, atol=1e-6)


def pytorch_weights(layer: Any, query: Tensor, tokens: Tensor) -> Any:
    """Return the attention of PyTorch's module, (B, heads, Q, L)."""
    parameters = {"in_proj_weight": layer.in_proj_weight, "in_proj_bias": layer.in_proj_bias, "bias_k": None}
    query, tokens = query.transpose(0, 1), tokens.transpose(0, 1)
    return F.multi_head_attention_forward(
        query, tokens, tokens, query.shape[2], layer.heads, **parameters, bias_v=None, add_zero_attn=False,
        dropout_p=0.0, out_proj_weight=layer.out_proj.weight, out_proj_bias=layer.out_proj.bias, training=False,
        average_attn_weights=False,
    )[1]  # fmt: skip


def test_attention_of_the_query_token_is_that_of_the_keys_which_are_not_computed():
    model = network("v2")
    name = "backbone.transformer.dec.1.attn"
    query, tokens = input_of(model, name)
    weights = pytorch_weights(model.get_submodule(name), query, tokens)[0, :, 0].mean(0)[4:]  # 4 frames, class tokens
    assert torch.allclose(attention(model, clip(), name).flatten(), weights / weights.sum(), atol=1e-6)


def test_attention_of_the_image_vit_is_that_of_the_class_token_of_each_frame():
    model = network("v2")
    name = "backbone.transformer.resblocks.1.attn"
    (tokens,) = input_of(model, name)
    weights = pytorch_weights(model.get_submodule(name), tokens[0], tokens[0])[:, :, 0, 1:].mean(1)
    assert torch.allclose(attention(model, clip(), name).flatten(), (weights / weights.sum()).flatten(), atol=1e-6)


def test_attention_over_time_is_summed_over_the_places_that_attend():
    model = network("uniformer_split")
    name = "blocks3.0.t_attn"
    (x,) = input_of(model, name)  # (H * W, T, C)
    received = model.get_submodule(name).weights(x).mean((1, 2)).T.flatten()
    assert torch.allclose(attention(model, clip(), name).flatten(), received / received.sum(), atol=1e-6)


def test_scores_of_the_light_network_are_those_of_its_class_token():
    model = network("light")
    _, scores = model.get_submodule("blocks3.0.attn")(*input_of(model, "blocks3.0.attn"))
    assert torch.allclose(attention(model, clip(), "blocks3.0").flatten(), (scores / scores.sum())[0], atol=1e-6)


def test_the_default_is_the_deepest_block_whose_map_is_not_coarse():
    model = network("uniformer")
    assert [cam_layer(model, None, side) for side in (48, 112, 224)] == ["blocks2.0", "blocks3.1", "blocks4.0"]
    assert [attention_layer(model, None, side) for side in (48, 224)] == ["blocks3.1.attn", "blocks4.0.attn"]
    v2 = network("v2")
    assert attention_layer(v2, None, 64).endswith("dec.1.attn") and cam_layer(v2, None, 64).endswith("resblocks.2")


@pytest.mark.parametrize("choose", [cam_layer, attention_layer])
def test_an_unknown_layer_is_refused_with_near_names(choose):
    with pytest.raises(ValueError, match=r"blocks3\.1"):
        choose(network("uniformer"), "block3.1.atn", 64)


@pytest.mark.parametrize("layer", ["head", "patch_embed1.norm", "aux_head"])
def test_a_layer_without_positions_is_refused(layer):
    with pytest.raises(ValueError, match=layer):
        grad_cam(network("uniformer"), clip(), layer, 0)
