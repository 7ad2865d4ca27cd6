"""Test UniFormer against the official implementation: names, logits, stages, gradients, initial values."""

from __future__ import annotations

import json
import re
from functools import partial
from pathlib import Path

import numpy as np
import pytest
import torch
from small_networks import configuration, initial

from slowfast.models import UniFormer, build_model
from slowfast.models.layers import DropPath
from slowfast.optim.losses import soft_cross_entropy
from slowfast.utils.profiling import count_flops, count_parameters

small = partial(initial, "uniformer")

VARIANTS = json.loads((Path(__file__).parents[1] / "golden" / "uniformer.json").read_text())
WITH_LOGITS = [name for name, variant in VARIANTS.items() if "input_seed" in variant]


def keys(name: str) -> list:
    stored = VARIANTS[name]["keys"]
    return keys(stored) if isinstance(stored, str) else stored


@pytest.mark.parametrize("name", VARIANTS)
def test_names_and_shapes_are_the_official_ones(name):
    with torch.device("meta"):
        model = build_model(configuration(VARIANTS[name]["config"]))
    assert [[key, list(value.shape)] for key, value in model.state_dict().items()] == keys(name)


@pytest.mark.slow
@pytest.mark.parametrize("name", WITH_LOGITS)
def test_logits_and_stages_match_the_official_network(name, golden, assert_golden):
    variant = VARIANTS[name]
    assert_golden(lambda: build_model(configuration(variant["config"])), variant, golden("uniformer_logits.npz")[name])


@pytest.mark.gpu
@pytest.mark.parametrize("name", WITH_LOGITS)
@pytest.mark.parametrize(("dtype", "tolerance"), [(torch.float32, 1e-4), (torch.bfloat16, 3e-2)])
def test_logits_on_gpu_match_the_official_network(name, dtype, tolerance, golden, golden_state, golden_input):
    variant = VARIANTS[name]
    model = build_model(configuration(variant["config"])).eval()
    model.load_state_dict(golden_state(model.state_dict()))
    torch.backends.cudnn.allow_tf32 = False
    with torch.no_grad(), torch.autocast("cuda", dtype=dtype, enabled=dtype is not torch.float32):
        logits = model.cuda()(golden_input(variant["input_seed"], variant["input_shape"]).cuda())[0].float().cpu()
    expected = golden("uniformer_logits.npz")[name]
    assert np.abs(logits.numpy() - expected).max() <= tolerance * np.abs(expected).max()


@pytest.mark.parametrize("layout", [torch.contiguous_format, torch.channels_last_3d])
def test_gradients_match_the_official_network(layout, golden, golden_state, golden_input):
    case = golden("train_mode.json")
    with torch.device("meta"):  # all values are replaced
        model = build_model(configuration(VARIANTS[case["variant"]]["config"] | case["changes"])).train()
    model.load_state_dict(golden_state(model.state_dict()), assign=True)
    model.to(memory_format=layout)
    video = torch.cat([golden_input(seed, (1, 3, 8, 64, 64)) for seed in (1008, 2008)])
    target = torch.full((2, 400), 0.1 / 400)
    for row, (label, weight) in enumerate([((7, 101), 0.3), ((101, 7), 0.3)]):
        target[row, label[0]] += 0.9 * weight
        target[row, label[1]] += 0.9 * (1 - weight)
    loss = soft_cross_entropy(model(video.contiguous(memory_format=layout)), target)
    loss.backward()
    assert loss.item() == pytest.approx(case["loss"], rel=1e-6)
    norms = {name: parameter.grad.double().norm().item() for name, parameter in model.named_parameters()}
    for name, norm in case["grad_norm"].items():
        if norm > 1e-6 * case["total_grad_norm"]:
            assert norms[name] == pytest.approx(norm, rel=1e-4), name
    for name, (mean, std) in case["bn_running_stats_after [mean, std]"].items():
        buffer = model.state_dict()[name].float()
        assert buffer.mean().item() == pytest.approx(mean, rel=1e-4, abs=1e-5), name
        assert buffer.std(correction=0).item() == pytest.approx(std, rel=1e-4, abs=1e-5), name


@pytest.mark.parametrize("name", ["uniformer_s_8x224_k400", "uniformer_s_16x224_split_k400"])
def test_initial_values_are_distributed_like_the_official_ones(name, golden):
    torch.manual_seed(0)
    model, stored = build_model(configuration(VARIANTS[name]["config"])), golden("init_stats.json")[name]
    for key, value in model.state_dict().items():
        if key.endswith("num_batches_tracked"):
            continue
        expected = stored[re.sub(r"\.\d+\.", ".#.", key)]
        if "constant" in expected:
            assert torch.all(value == expected["constant"]), key
        else:
            low, high = expected["std_range"]
            slack = 0.05 + 2 / value.numel() ** 0.5  # another seed, and small tensors scatter
            assert low * (1 - slack) <= value.std(correction=0).item() <= high * (1 + slack), key


@pytest.mark.parametrize("name", WITH_LOGITS)
def test_parameters_and_flops_match_the_official_count(name):
    variant = VARIANTS[name]
    with torch.device("meta"):
        model = build_model(configuration(variant["config"]))
    assert count_parameters(model) == variant["param_count"]
    assert count_flops(model, *variant["input_shape"]) == pytest.approx(variant["flops_fvcore"], rel=1e-3)


def test_drop_path_rises_to_its_rate():
    model = UniFormer(drop_depth_rate=0.3)
    rates = [m.rate for n, m in model.named_modules() if n.endswith("drop_path")]
    assert rates == pytest.approx(np.linspace(0, 0.3, 18).tolist())


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
