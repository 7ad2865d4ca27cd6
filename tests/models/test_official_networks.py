"""Test every network against the official implementations: names, logits, stages, gradients, initial values, costs."""

from __future__ import annotations

import gzip
import json
import re
from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from small_networks import configuration
from torch import nn

from slowfast.models import UniFormer, UniFormerLight, build_model
from slowfast.optim.groups import parameter_groups
from slowfast.optim.losses import soft_cross_entropy
from slowfast.utils.profiling import count_flops, count_parameters
from slowfast.weights.heads import HeadPolicy
from slowfast.weights.load import load_weights

GOLDEN = Path(__file__).parents[1] / "golden"
VIDEO: dict[str, Any] = json.loads((GOLDEN / "uniformer.json").read_text())
IMAGE, LIGHT, V2 = (
    json.loads(gzip.decompress((GOLDEN / f"{name}.json.gz").read_bytes())) for name in ("image", "light", "uniformerv2")
)
XXS, IMAGE_XXS = "uniformer_xxs_4x128_ls_k400", "image_uniformer_xxs_128"
VARIANTS: dict[str, dict[str, Any]] = {**VIDEO, **IMAGE, **LIGHT["variants"], **V2}
# of V2 one variant, with every option; weights/test_layouts.py compares the logits of one without local attention
LOGITS = {
    name: f"{file}_logits.npz"
    for file, variants in {"uniformer": VIDEO, "image": IMAGE, "light": LIGHT["variants"], "uniformerv2": V2}.items()
    for name, variant in variants.items()
    if "input_seed" in variant
}
BASE = {"depth": (5, 8, 20, 7)}
PLUS = {"depth": (3, 5, 9, 3), "overlapped_stem": True}
LARGE = {"depth": (5, 10, 24, 7), "embed_dim": (128, 192, 448, 640)}
IMAGE_OPTIONS: dict[str, dict[str, Any]] = {
    "image_uniformer_small": {},
    "image_uniformer_base": BASE,
    "image_uniformer_small_plus": {**PLUS, "head_dim": 32},
    "image_uniformer_small_plus_dim64": PLUS,
    "image_uniformer_base_ls": {**BASE, "layer_scale": (None, None, 1e-6, 1e-6)},
    "image_uniformer_large_ls_tl": {**LARGE, "layer_scale": 1e-6, "aux_head": True},
}


def released(name: str) -> dict[str, Any]:
    keys = ("depth", "embed_dim", "head_dim", "mlp_ratio", "prune_ratio", "trade_off")
    return {key: VARIANTS[name]["config"][f"UNIFORMER.{key.upper()}"] for key in keys}


LIGHT_OPTIONS: dict[str, dict[str, Any]] = {
    XXS: {"init_value": 0.1, **released(XXS)},  # its pruning has one entry more than stage 4 has blocks
    "uniformer_xxs_4x128_nols_k400": {},
    IMAGE_XXS: {"ndim": 2, "num_classes": 1000},
    "uniformer_xs_32x192_k400": released("uniformer_xs_32x192_k400"),
}


def configured(values: dict[str, Any]) -> nn.Module:
    return build_model(configuration(values))


NETWORKS: dict[str, Callable[[], Any]] = {
    **{name: partial(configured, variant["config"]) for name, variant in {**VIDEO, **V2}.items()},
    **{name: partial(UniFormer, num_classes=1000, ndim=2, **options) for name, options in IMAGE_OPTIONS.items()},
    **{name: partial(UniFormerLight, **options) for name, options in LIGHT_OPTIONS.items()},
}


@pytest.mark.parametrize("name", VARIANTS)
def test_names_shapes_and_parameters_are_the_official_ones(name):
    with torch.device("meta"):
        model = NETWORKS[name]()
    keys = VARIANTS[name]["keys"]
    keys = VARIANTS[keys]["keys"] if isinstance(keys, str) else keys
    assert [[key, list(value.shape)] for key, value in model.state_dict().items()] == keys
    assert count_parameters(model) == VARIANTS[name].get("param_count", count_parameters(model))


@pytest.mark.parametrize("name", [name for name, variant in VARIANTS.items() if "flops_fvcore" in variant])
def test_flops_match_the_official_count(name):
    # the scores of light networks add one row of attention per block to the official count
    with torch.device("meta"):
        model = NETWORKS[name]()
    assert count_flops(model, *VARIANTS[name]["input_shape"]) == pytest.approx(VARIANTS[name]["flops_fvcore"], rel=1e-3)


@pytest.mark.parametrize(
    "name", [name if name in LIGHT_OPTIONS else pytest.param(name, marks=pytest.mark.slow) for name in LOGITS]
)
def test_logits_and_stages_match_the_official_network(name, golden, assert_golden):
    def official_layout(stage, tokens):
        if "resblocks" in stage:  # of V2: (B, T, 1 + HW, C) -> (1 + HW, B * T, C)
            return tokens.flatten(0, 1).transpose(0, 1)
        return tokens.flatten(0, 1) if "ln_pre" in stage else tokens

    assert_golden(NETWORKS[name], VARIANTS[name], golden(LOGITS[name])[name], official_layout)


@pytest.mark.gpu
@pytest.mark.parametrize("name", [name for name in LOGITS if name in VIDEO or name in LIGHT_OPTIONS])
@pytest.mark.parametrize("half", [False, True])
def test_logits_on_gpu_match_the_official_network(name, half, golden, golden_state, golden_input):
    variant, light = VARIANTS[name], name in LIGHT_OPTIONS
    model = NETWORKS[name]().eval()
    model.load_state_dict(golden_state(model.state_dict()))
    torch.backends.cudnn.allow_tf32 = False
    with torch.no_grad(), torch.autocast("cuda", dtype=torch.float16 if light else torch.bfloat16, enabled=half):
        logits = model.cuda()(golden_input(variant["input_seed"], variant["input_shape"]).cuda())[0].float().cpu()
    expected = golden(LOGITS[name])[name]
    difference = np.abs(logits.numpy() - expected)
    if half and light:  # half precision may choose other tokens where scores are near each other
        assert np.sqrt(np.mean(difference**2)) <= 0.05 * expected.std()
    else:
        assert difference.max() <= (3e-2 if half else 1e-4) * np.abs(expected).max()


@pytest.mark.parametrize(
    ("case", "frames", "size", "layout"),
    [
        ("train_mode.json", 8, 64, torch.contiguous_format),
        ("train_mode.json", 8, 64, torch.channels_last_3d),
        ("light", 4, 128, torch.contiguous_format),
        pytest.param("uniformerv2_train_mode.json", 4, 224, torch.contiguous_format, marks=pytest.mark.slow),
    ],
)
def test_gradients_match_the_official_network(case, frames, size, layout, golden, golden_state, golden_input):
    case = LIGHT["train_mode"] if case == "light" else golden(case)
    name = case["variant"]
    with torch.device("meta"):  # all values are replaced
        model = configured(VARIANTS[name]["config"] | case["changes"]) if "changes" in case else NETWORKS[name]()
    model.load_state_dict(golden_state(model.state_dict()), assign=True)
    model.train().to(memory_format=layout)
    video = torch.cat([golden_input(seed + frames, (1, 3, frames, size, size)) for seed in (1000, 2000)])
    outputs = model(video.contiguous(memory_format=layout))
    outputs = outputs if isinstance(outputs, tuple) else (outputs,)
    classes = outputs[0].shape[1]
    hot = nn.functional.one_hot(torch.tensor(case["labels"]), classes) * 0.9 + 0.1 / classes
    loss = torch.stack([soft_cross_entropy(logits, 0.3 * hot + 0.7 * hot.flip(0)) for logits in outputs]).mean()
    loss.backward()
    assert loss.item() == pytest.approx(case["loss"], rel=1e-6)
    for logits, head in zip(outputs, ("head", "head_cls"), strict=False):
        if name in LIGHT_OPTIONS:
            expected = golden("light_logits.npz")[f"train_{head}"]
            assert np.abs(logits.detach().numpy() - expected).max() <= 1e-5 * np.abs(expected).max()
    for key, parameter in model.named_parameters():
        norm = case["grad_norm"][key]
        if norm > 1e-6 * case["total_grad_norm"]:
            assert parameter.grad.double().norm().item() == pytest.approx(norm, rel=1e-4), key
    for key, (mean, std) in case.get("bn_running_stats_after [mean, std]", {}).items():
        buffer = model.state_dict()[key].float()
        assert buffer.mean().item() == pytest.approx(mean, rel=1e-4, abs=1e-5), key
        assert buffer.std(correction=0).item() == pytest.approx(std, rel=1e-4, abs=1e-5), key


@pytest.mark.parametrize("name", ["uniformer_s_8x224_k400", "uniformer_s_16x224_split_k400", XXS])
def test_initial_values_are_distributed_like_the_official_ones(name, golden):
    torch.manual_seed(0)
    stored = LIGHT["init_stats"] if name == XXS else golden("init_stats.json")[name]
    for key, value in NETWORKS[name]().state_dict().items():
        if key.endswith("num_batches_tracked"):
            continue
        expected = stored[re.sub(r"\.\d+\.", ".#.", key)]
        if "constant" in expected:
            assert torch.all(value == expected["constant"]), key
        elif not re.fullmatch(r"patch_embed1\.proj\.[14]\.(weight|bias)", key):  # norms, stored with convolutions
            low, high = expected["std_range"]
            slack = 0.05 + 2 / value.numel() ** 0.5  # another seed, and small tensors scatter
            assert low * (1 - slack) <= value.std(correction=0).item() <= high * (1 + slack), key


def test_parameter_groups_of_a_light_network_match_the_official_ones():
    case = LIGHT["weight_decay"]
    groups = parameter_groups(NETWORKS[XXS](), weight_decay=0.1)
    assert [
        (group["weight_decay"], len(group["params"]), sum(p.numel() for p in group["params"])) for group in groups
    ] == [(group["weight_decay"], group["n_tensors"], group["n_params"]) for group in case["groups"]]
    assert {name: g["weight_decay"] for g in groups for name in g["names"]} == case["weight_decay_by_parameter"]


def test_a_light_video_network_starts_from_image_weights(golden, golden_state, golden_input):
    with torch.device("meta"):  # all values are replaced
        model, image = NETWORKS[XXS]().eval(), NETWORKS[IMAGE_XXS]()
    model.load_state_dict(golden_state(model.state_dict()), assign=True)
    report = load_weights(model, golden_state(image.state_dict()), HeadPolicy("fresh"), to_train=True)
    assert not report.unexpected and len(report.inflated) == 57
    expected = golden("light_logits.npz")["uniformer_xxs_4x128_ls_from_image_xxs"]
    with torch.no_grad():
        logits = model(golden_input(1004, (1, 3, 4, 128, 128)))[0].numpy()
    assert np.abs(logits - expected).max() <= 1e-5 * np.abs(expected).max()
