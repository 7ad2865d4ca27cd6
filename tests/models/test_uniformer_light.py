"""Test UniFormer-light against the official implementation: names, logits, gradients, initial values, pruning."""

from __future__ import annotations

import gzip
import json
import re
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from slowfast.models.uniformer import BlockOptions
from slowfast.models.uniformer_light import PruningBlock, UniFormerLight
from slowfast.optim.groups import parameter_groups
from slowfast.optim.losses import soft_cross_entropy
from slowfast.utils.profiling import count_flops, count_parameters
from slowfast.weights.heads import HeadPolicy
from slowfast.weights.load import load_weights

LIGHT = json.loads(gzip.decompress((Path(__file__).parents[1] / "golden" / "light.json.gz").read_bytes()))
VARIANTS = LIGHT["variants"]
WITH_LOGITS = [name for name, variant in VARIANTS.items() if "input_seed" in variant]
XXS, IMAGE = "uniformer_xxs_4x128_ls_k400", "image_uniformer_xxs_128"


def released(name: str) -> dict[str, Any]:
    keys = ("depth", "embed_dim", "head_dim", "mlp_ratio", "prune_ratio", "trade_off")
    return {key: VARIANTS[name]["config"][f"UNIFORMER.{key.upper()}"] for key in keys}


OPTIONS: dict[str, dict[str, Any]] = {
    XXS: {"init_value": 0.1, **released(XXS)},  # its pruning has one entry more than stage 4 has blocks
    "uniformer_xxs_4x128_nols_k400": {},
    IMAGE: {"ndim": 2, "num_classes": 1000},
    "uniformer_xs_32x192_k400": released("uniformer_xs_32x192_k400"),
}


@pytest.mark.parametrize("name", OPTIONS)
def test_names_and_shapes_are_the_official_ones(name):
    with torch.device("meta"):
        model = UniFormerLight(**OPTIONS[name])
    assert [[key, list(value.shape)] for key, value in model.state_dict().items()] == VARIANTS[name]["keys"]
    if "param_count" in VARIANTS[name]:
        assert count_parameters(model) == VARIANTS[name]["param_count"]


@pytest.mark.parametrize("name", WITH_LOGITS)
def test_logits_and_stages_match_the_official_network(name, golden, assert_golden):
    assert_golden(lambda: UniFormerLight(**OPTIONS[name]), VARIANTS[name], golden("light_logits.npz")[name])


@pytest.mark.gpu
@pytest.mark.parametrize("name", WITH_LOGITS)
@pytest.mark.parametrize("dtype", [torch.float32, torch.float16])
def test_logits_on_gpu_match_the_official_network(name, dtype, golden, golden_state, golden_input):
    variant = VARIANTS[name]
    model = UniFormerLight(**OPTIONS[name]).eval()
    model.load_state_dict(golden_state(model.state_dict()))
    torch.backends.cudnn.allow_tf32 = False
    with torch.no_grad(), torch.autocast("cuda", dtype=dtype, enabled=dtype is not torch.float32):
        logits = model.cuda()(golden_input(variant["input_seed"], variant["input_shape"]).cuda())[0].float().cpu()
    expected = golden("light_logits.npz")[name]
    difference = np.abs(logits.numpy() - expected)
    if dtype is torch.float32:
        assert difference.max() <= 1e-4 * np.abs(expected).max()
    else:  # half precision may choose other tokens where scores are near each other
        assert np.sqrt(np.mean(difference**2)) <= 0.05 * expected.std()


def test_gradients_match_the_official_network(golden, golden_state, golden_input):
    case = LIGHT["train_mode"]
    with torch.device("meta"):  # all values are replaced
        model = UniFormerLight(**OPTIONS[case["variant"]]).train()
    model.load_state_dict(golden_state(model.state_dict()), assign=True)
    video = torch.cat([golden_input(seed, (1, 3, 4, 128, 128)) for seed in (1004, 2004)])
    target = torch.full((2, 400), 0.1 / 400)
    for row, label in enumerate([(7, 101), (101, 7)]):
        target[row, label[0]] += 0.9 * 0.3
        target[row, label[1]] += 0.9 * 0.7
    outputs = model(video)
    loss = 0.5 * soft_cross_entropy(outputs[0], target) + 0.5 * soft_cross_entropy(outputs[1], target)
    loss.backward()
    for logits, head in zip(outputs, ("head", "head_cls"), strict=True):
        expected = golden("light_logits.npz")[f"train_{head}"]
        assert np.abs(logits.detach().numpy() - expected).max() <= 1e-5 * np.abs(expected).max()
    assert loss.item() == pytest.approx(case["loss"], rel=1e-6)
    norms = {name: parameter.grad.double().norm().item() for name, parameter in model.named_parameters()}
    for name, norm in case["grad_norm"].items():
        if norm > 1e-6 * case["total_grad_norm"]:
            assert norms[name] == pytest.approx(norm, rel=1e-4), name
    for name, (mean, std) in case["bn_running_stats_after [mean, std]"].items():
        buffer = model.state_dict()[name]
        assert buffer.mean().item() == pytest.approx(mean, rel=1e-4, abs=1e-5), name
        assert buffer.std(correction=0).item() == pytest.approx(std, rel=1e-4, abs=1e-5), name


def test_initial_values_are_distributed_like_the_official_ones():
    torch.manual_seed(0)
    for key, value in UniFormerLight(init_value=0.1).state_dict().items():
        if key.endswith("num_batches_tracked"):
            continue
        expected = LIGHT["init_stats"][re.sub(r"\.\d+\.", ".#.", key)]
        if "constant" in expected:
            assert torch.all(value == expected["constant"]), key
        elif not re.fullmatch(r"patch_embed1\.proj\.[14]\.(weight|bias)", key):
            low, high = expected["std_range"]
            slack = 0.05 + 2 / value.numel() ** 0.5  # another seed, and small tensors scatter
            assert low * (1 - slack) <= value.std(correction=0).item() <= high * (1 + slack), key


def test_parameter_groups_match_the_official_ones():
    case = LIGHT["weight_decay"]
    groups = parameter_groups(UniFormerLight(init_value=0.1), weight_decay=0.1)
    assert [
        (group["weight_decay"], len(group["params"]), sum(p.numel() for p in group["params"])) for group in groups
    ] == [(group["weight_decay"], group["n_tensors"], group["n_params"]) for group in case["groups"]]
    assert {name: g["weight_decay"] for g in groups for name in g["names"]} == case["weight_decay_by_parameter"]


@pytest.mark.parametrize("name", [XXS, IMAGE])
def test_flops_match_the_official_count(name):
    # our scores add one row of attention per block to the official count
    with torch.device("meta"):
        model = UniFormerLight(**OPTIONS[name])
    assert count_flops(model, *VARIANTS[name]["input_shape"]) == pytest.approx(VARIANTS[name]["flops_fvcore"], rel=1e-3)


def test_video_network_starts_from_image_weights(golden, golden_state, golden_input):
    with torch.device("meta"):  # all values are replaced
        model = UniFormerLight(**OPTIONS[XXS]).eval()
        image = UniFormerLight(**OPTIONS[IMAGE])
    model.load_state_dict(golden_state(model.state_dict()), assign=True)
    report = load_weights(model, golden_state(image.state_dict()), HeadPolicy("fresh"), to_train=True)
    assert not report.unexpected and len(report.inflated) == 57
    expected = golden("light_logits.npz")["uniformer_xxs_4x128_ls_from_image_xxs"]
    with torch.no_grad():
        logits = model(golden_input(1004, (1, 3, 4, 128, 128)))[0].numpy()
    assert np.abs(logits - expected).max() <= 1e-5 * np.abs(expected).max()


def small(**options: Any) -> UniFormerLight:
    torch.manual_seed(0)
    halves = ((), (), (1.0, 0.5, 0.5), (0.5,))
    options = {"prune_ratio": halves, "trade_off": halves, **options}
    return UniFormerLight(num_classes=5, depth=(1, 1, 3, 1), embed_dim=(16, 32, 64, 64), head_dim=32, **options)


def test_every_clip_chooses_its_own_tokens_and_models_share_nothing():
    one, other = small().eval(), small(ndim=2).eval()
    video = torch.randn(3, 3, 4, 64, 96)
    with torch.no_grad():
        apart = torch.cat([one(clip) for clip in video.split(1)])
        expected = one(video)
        other(video[:, :, 0])
        assert torch.equal(one(video), expected)
    assert torch.allclose(apart, expected, atol=1e-6)


@pytest.mark.parametrize(("keep", "left_out"), [(1.0, 0), (0.5, 12), (0.3, 17), (0.01, 24)])
def test_tokens_left_out_share_one_update(keep, left_out):
    torch.manual_seed(0)
    block = PruningBlock(BlockOptions(16, 2.0, head_dim=8), keep, 0.5).eval()
    for parameter in block.pos_embed.parameters():
        torch.nn.init.zeros_(parameter)
    x, scores = torch.randn(2, 16, 2, 3, 4), torch.rand(2, 24)
    out, cls_token, new = block(x, torch.randn(2, 1, 16), scores)
    assert out.shape == x.shape and cls_token.shape == (2, 1, 16) and new.shape == scores.shape
    for b in range(2):
        lowest = scores[b].argsort()
        update = (out - x).flatten(2)[b][:, lowest]
        assert torch.allclose(update[:, :left_out], update[:, :1], atol=1e-5) or not left_out
        assert not torch.isclose(update[:, left_out:].T, update[:, :1].T, atol=1e-3).all(1)[not left_out :].any()
        unchanged = (new[b] == scores[b])[lowest]
        assert unchanged[:left_out].all() and not unchanged[left_out:].any()


def test_scores_keep_their_sum_in_every_clip_when_the_map_shrinks():
    model, seen = small().eval(), {}
    model.get_submodule("blocks3.2").register_forward_hook(lambda _m, _i, out: seen.update(before=out[2]))
    model.get_submodule("blocks4.0").register_forward_pre_hook(lambda _m, inputs: seen.update(after=inputs[2]))
    with torch.no_grad():
        model(torch.randn(2, 3, 4, 80, 64))
    assert seen["before"].shape == (2, 2 * 5 * 4) and seen["after"].shape == (2, 2 * 2 * 2)
    assert torch.allclose(seen["after"].sum(1), seen["before"].sum(1))
    grid = seen["before"].view(2, 2, 5, 4)[:, :, :4].unflatten(2, (2, 2)).unflatten(4, (2, 2)).mean((3, 5)).flatten(1)
    assert torch.allclose(seen["after"] / seen["after"][:, :1], grid / grid[:, :1])


def test_training_gives_two_logits_and_a_test_one():
    model, video = small(), torch.randn(2, 3, 4, 64, 64)
    logits, logits_cls = model.train()(video)
    assert logits.shape == logits_cls.shape == (2, 5)
    (logits.sum() + logits_cls.sum()).backward()
    assert all(parameter.grad is not None for parameter in model.parameters())
    assert torch.is_tensor(model.eval()(video))
    assert model.forward_features(video).shape == (2, 64, 2, 2, 2)
    assert torch.equal(model.forward_head(model.forward_features(video)), model(video))


def test_bfloat16_gives_finite_gradients_and_float32_scores():
    # oneDNN reads uninitialised memory for the bfloat16 gradient of a depthwise kernel that is longer than the clip
    model, video = small(init_value=0.1), torch.randn(2, 3, 10, 64, 64)
    with torch.autocast("cpu", dtype=torch.bfloat16):
        loss = torch.stack(model.train()(video)).float().logsumexp(2).sum()
    loss.backward()
    assert all(parameter.grad.isfinite().all() for parameter in model.parameters())
    scores = {}
    model.get_submodule("blocks3.0.attn").register_forward_hook(lambda _m, _i, out: scores.update(dtype=out[1].dtype))
    with torch.autocast("cpu", dtype=torch.bfloat16), torch.no_grad():
        model.eval()(video)
    assert scores["dtype"] is torch.float32


def test_reset_classifier_changes_both_output_widths():
    model = small()
    model.reset_classifier(9)
    assert [tuple(logits.shape) for logits in model.train()(torch.randn(2, 3, 4, 64, 64))] == [(2, 9), (2, 9)]
    model.reset_classifier(0)
    assert model.eval()(torch.randn(1, 3, 4, 32, 32)).shape == (1, 64)


def test_wrong_pruning_is_refused():
    with pytest.raises(ValueError, match=r"trade_off \[1.0, 0.5\] .*\b3\b"):
        small(trade_off=((), (), (1.0, 0.5), (0.5,)))
    with pytest.raises(ValueError, match=r"prune_ratio \[1.0, 2.0, 0.5\] .*\b3\b"):
        small(prune_ratio=((), (), (1.0, 2.0, 0.5), (0.5,)))
    with pytest.raises(ValueError, match=r"prune_ratio of stage 3 starts with 0\.5"):
        small(prune_ratio=((), (), (0.5, 0.5, 0.5), (0.5,)))
    with pytest.raises(ValueError, match=r"trade_off with 0\.0"):  # the output would be NaN
        small(trade_off=((), (), (0.0, 0.5, 0.5), (0.5,)))
    with pytest.raises(ValueError, match="head_dim 48 does not divide"):
        UniFormerLight(head_dim=48)
