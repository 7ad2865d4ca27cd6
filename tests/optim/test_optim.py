"""Learning rates, parameter groups and losses against the official implementation."""

from __future__ import annotations

import copy
import json
import re
from pathlib import Path

import numpy as np
import pytest
import torch
from small_networks import configuration, small
from timm.optim import param_groups_layer_decay
from torch import nn

from slowfast.config import add_choice
from slowfast.config.keys import KEYS
from slowfast.models import UniFormer, build_model
from slowfast.optim.build import (
    OPTIMIZERS,
    SCHEDULES,
    build_loss,
    build_optimizer,
    learning_rate,
    load_optimizer_state,
    set_learning_rate,
)
from slowfast.optim.groups import parameter_groups
from slowfast.optim.losses import LOSSES, balanced_weights, soft_cross_entropy

SCHEDULE = json.loads((Path(__file__).parents[1] / "golden" / "schedule.json").read_text())


def config(**options):
    return configuration({key.replace("__", "."): value for key, value in options.items()})


@pytest.mark.parametrize("name", SCHEDULE["lr"])
def test_learning_rate_matches_the_official_schedule(name):
    case = SCHEDULE["lr"][name]
    # the golden solver values are those after the scaling by NUM_SHARDS
    cfg = config(**{f"SOLVER__{key}": value for key, value in case["solver"].items()})
    for epoch, lr in case["epoch_lr"]:
        assert learning_rate(epoch, cfg) == pytest.approx(lr, rel=1e-9), epoch


def test_learning_rate_scales_with_shards():
    one = config(SOLVER__BASE_LR=1e-4, SOLVER__WARMUP_EPOCHS=2.0, NUM_SHARDS=4)
    four = config(SOLVER__BASE_LR=1e-4, SOLVER__WARMUP_EPOCHS=2.0, NUM_SHARDS=4, SOLVER__BASE_LR_SCALE_NUM_SHARDS=True)
    for epoch in (0.0, 1.3, 2.0, 30.5):
        assert learning_rate(epoch, four) == pytest.approx(4 * learning_rate(epoch, one), rel=1e-12)


def test_step_schedule_changes_at_its_epochs():
    options = {"SOLVER__LR_POLICY": "steps_with_relative_lrs", "SOLVER__BASE_LR": 0.1, "SOLVER__WARMUP_EPOCHS": 0.0}
    options |= {"SOLVER__STEPS": [0, 10, 20], "SOLVER__LRS": [1, 0.1, 0.01]}
    for more, factor in (({}, 1), ({"NUM_SHARDS": 4, "SOLVER__BASE_LR_SCALE_NUM_SHARDS": True}, 4)):
        found = [learning_rate(epoch, config(**options, **more)) for epoch in (0, 9.99, 10, 25)]
        assert found == pytest.approx([factor * lr for lr in (0.1, 0.1, 0.01, 0.001)])


def test_a_new_schedule_follows_the_warm_up(monkeypatch):
    monkeypatch.setitem(SCHEDULES, "linear", lambda epoch, base, end, solver: base - (base - end) * epoch / 10)
    monkeypatch.setitem(KEYS, "SOLVER.LR_POLICY", KEYS["SOLVER.LR_POLICY"])
    add_choice("SOLVER.LR_POLICY", "linear")
    options = {"SOLVER__LR_POLICY": "linear", "SOLVER__BASE_LR": 1.0, "SOLVER__COSINE_END_LR": 0.5}
    options |= {"SOLVER__WARMUP_EPOCHS": 2.0, "SOLVER__WARMUP_START_LR": 0.0}
    found = [learning_rate(epoch, config(**options)) for epoch in (0, 1, 2, 6, 10)]
    assert found == pytest.approx([0, 0.45, 0.9, 0.7, 0.5])


@pytest.mark.parametrize("name", SCHEDULE["param_groups"])
def test_parameter_groups_match_the_official_ones(name, golden):
    case = SCHEDULE["param_groups"][name]
    variant = golden("uniformer.json")[name]
    model = build_model(config(**{key.replace(".", "__"): value for key, value in variant["config"].items()}))
    groups = parameter_groups(model, weight_decay=0.05)
    assert [
        {
            "weight_decay": g["weight_decay"],
            "n_tensors": len(g["params"]),
            "n_params": sum(p.numel() for p in g["params"]),
        }
        for g in groups
    ] == [{key: g[key] for key in ("weight_decay", "n_tensors", "n_params")} for g in case["groups"]]
    decay = {name: group["weight_decay"] for group in groups for name in group["names"]}
    assert decay == case["weight_decay_by_parameter"]


def test_backbone_learning_rate_and_frozen_parameters():
    model = UniFormer(num_classes=3, depth=(1, 1, 1, 1), embed_dim=(8, 8, 16, 16), head_dim=16)
    model.get_parameter("patch_embed1.proj.weight").requires_grad_(False)
    cfg = config(SOLVER__BACKBONE_LR_RATIO=0.1, SOLVER__OPTIMIZING_METHOD="adamw")
    optimizer = build_optimizer(model, cfg)
    set_learning_rate(optimizer, 1e-3)
    lr = {name: group["lr"] for group in optimizer.param_groups for name in group["names"]}
    assert "patch_embed1.proj.weight" not in lr
    assert lr.pop("head.weight") == lr.pop("head.bias") == 1e-3
    assert set(lr.values()) == {1e-4}


@pytest.mark.parametrize("case", SCHEDULE["targets_metrics"]["soft_cross_entropy"])
def test_soft_cross_entropy_matches_the_official_loss(case):
    seed, rows, classes = (int(n) for n in re.findall(r"\d+", case["logits"])[:3])
    logits = np.random.RandomState(seed).standard_normal((rows, classes)).astype(np.float32) * 3
    logits = torch.from_numpy(logits).requires_grad_()
    target = torch.full((rows, classes), case["smoothing"] / classes)
    for row, (a, b) in enumerate(zip(case["labels"], case["labels"][::-1], strict=True)):
        target[row, a] += (1 - case["smoothing"]) * case["lam"]
        target[row, b] += (1 - case["smoothing"]) * (1 - case["lam"])
    loss = soft_cross_entropy(logits, target)
    loss.backward()
    assert loss.item() == pytest.approx(case["loss_mean"], rel=1e-6)
    assert logits.grad.flatten()[:8].tolist() == pytest.approx(case["grad_first8"], abs=1e-7)
    hard = build_loss(config(MODEL__LOSS_FUNC="cross_entropy"))(logits, torch.tensor(case["labels"]))
    assert hard.item() == pytest.approx(case["hard_cross_entropy_mean"], rel=1e-6)


@pytest.mark.parametrize(
    ("momentum", "dampening", "nesterov", "moved"),
    # the gradient is 1, the learning rate 0.1: two steps by hand
    [(0.0, 0.0, False, 0.2), (0.5, 0.0, False, 0.25), (0.5, 0.5, False, 0.2), (0.5, 0.0, True, 0.325)],
)
def test_sgd_takes_momentum_dampening_and_nesterov(momentum, dampening, nesterov, moved):
    model = nn.Linear(1, 1, bias=False)
    options = {"MOMENTUM": momentum, "DAMPENING": dampening, "NESTEROV": nesterov, "WEIGHT_DECAY": 0.0}
    optimizer = build_optimizer(
        model,
        config(SOLVER__OPTIMIZING_METHOD="sgd", SOLVER__BASE_LR=0.1, **{f"SOLVER__{k}": v for k, v in options.items()}),
    )
    before = model.weight.item()
    for _ in range(2):
        model.weight.grad = torch.ones(1, 1)
        optimizer.step()
    assert before - model.weight.item() == pytest.approx(moved, rel=1e-5)


@pytest.mark.parametrize("name", ["lamb", "lion", "lookahead_adamw", "sgd"])
def test_an_optimizer_of_timm_takes_our_parameter_groups(name):
    model = nn.Sequential(nn.Linear(4, 4), nn.LayerNorm(4))
    options = {"SOLVER__BASE_LR": 0.1, "SOLVER__WEIGHT_DECAY": 0.3, "SOLVER__ZERO_WD_1D_PARAM": True}
    options |= {"SOLVER__MOMENTUM": 0.3}
    optimizer = build_optimizer(model, config(SOLVER__OPTIMIZING_METHOD=f"timm/{name}", **options))
    decay = {name: group["weight_decay"] for group in optimizer.param_groups for name in group["names"]}
    assert decay == {"0.weight": 0.3, "0.bias": 0.0, "1.weight": 0.0, "1.bias": 0.0}
    layer = model.get_parameter("0.weight")
    before = layer.detach().clone()
    set_learning_rate(optimizer, 0.01)
    model(torch.ones(2, 4)).square().sum().backward()
    optimizer.step()
    assert not torch.equal(layer, before)
    assert name != "sgd" or {group["momentum"] for group in optimizer.param_groups} == {0.3}


@pytest.mark.parametrize("options", [{"MOMENTUM": 0}, {"DAMPENING": 0.1}])
def test_nesterov_without_its_momentum_is_an_error(options):
    with pytest.raises(ValueError, match="Nesterov"):
        build_optimizer(nn.Linear(1, 1), config(**{f"SOLVER__{name}": value for name, value in options.items()}))


@pytest.mark.parametrize("name", ["timm/nothing", "timm/", "timm/adahessian"])
def test_an_unknown_or_unusable_optimizer_is_an_error(name):
    with pytest.raises(ValueError, match=rf"SOLVER\.OPTIMIZING_METHOD .*{name}.*(lamb|adamw)"):
        build_optimizer(nn.Linear(1, 1), config(SOLVER__OPTIMIZING_METHOD=name))


@pytest.mark.parametrize("name", ["bce", "bce_logit"])
def test_binary_cross_entropy_takes_logits(name):
    logits, target = torch.tensor([[0.0, 2.0]]), torch.tensor([[1.0, 0.0]])
    expected = (np.log(2) + np.log(1 + np.exp(2))) / 2
    assert build_loss(config(MODEL__LOSS_FUNC=name))(logits, target).item() == pytest.approx(expected, rel=1e-6)


def test_a_loss_is_not_a_class(monkeypatch):
    monkeypatch.setitem(LOSSES, "bce", nn.BCEWithLogitsLoss)
    with pytest.raises(ValueError, match=r"'bce'.*BCEWithLogitsLoss\(\)"):
        build_loss(config(MODEL__LOSS_FUNC="bce"))
    monkeypatch.setitem(LOSSES, "bce", nn.BCEWithLogitsLoss())
    assert build_loss(config(MODEL__LOSS_FUNC="bce"))(torch.zeros(1, 2), torch.eye(2)[:1]).item() == pytest.approx(
        np.log(2)
    )


def test_own_rows_with_other_arguments_are_refused(monkeypatch):
    monkeypatch.setitem(LOSSES, "bce", lambda logits: logits.mean())
    with pytest.raises(ValueError, match="a loss is a function of logits and targets"):
        build_loss(config(MODEL__LOSS_FUNC="bce"))
    monkeypatch.setitem(SCHEDULES, "cosine", lambda epoch: 0.1)
    with pytest.raises(ValueError, match="a schedule is a function of the epoch"):
        learning_rate(0.0, config())
    model = nn.Linear(2, 2)
    monkeypatch.setitem(OPTIMIZERS, "sgd", lambda parameters: torch.optim.SGD(parameters))
    with pytest.raises(ValueError, match="an optimizer is a function of the parameter groups"):
        build_optimizer(model, config())
    monkeypatch.setitem(OPTIMIZERS, "sgd", lambda groups, solver: torch.optim.SGD(model.parameters()))
    with pytest.raises(ValueError, match="no lr_scale"):
        build_optimizer(model, config())


def test_batch_norm_has_its_own_weight_decay():
    model = nn.Sequential(nn.Conv3d(3, 4, 1), nn.BatchNorm3d(4))
    optimizer = build_optimizer(model, config(BN__WEIGHT_DECAY=0.01, SOLVER__WEIGHT_DECAY=0.3))
    decay = {name: group["weight_decay"] for group in optimizer.param_groups for name in group["names"]}
    assert decay == {"0.weight": 0.3, "0.bias": 0.3, "1.weight": 0.01, "1.bias": 0.01}


def test_a_module_of_the_class_batch_norm_keeps_its_submodules_apart():
    class Outer(nn.BatchNorm1d):
        def __init__(self) -> None:
            super().__init__(2)
            self.inner = nn.Linear(2, 2)

    groups = parameter_groups(nn.Sequential(Outer()), weight_decay=0.3, bn_weight_decay=0.01)
    decay = {name: group["weight_decay"] for group in groups for name in group["names"]}
    assert decay == {"0.weight": 0.01, "0.bias": 0.01, "0.inner.weight": 0.3, "0.inner.bias": 0.0}


@pytest.mark.parametrize("method", ["adamw", "sgd"])
def test_a_state_of_another_layout_and_implementation_continues_the_same_steps(method):
    def train(model, optimizer, steps):
        for step in steps:
            optimizer.zero_grad()
            torch.manual_seed(step)
            (model.weight * torch.randn(model.weight.shape)).sum().backward()
            optimizer.step()

    options = {"SOLVER__OPTIMIZING_METHOD": method, "SOLVER__BASE_LR": 0.1}
    first = nn.Conv2d(3, 4, 2, bias=False)
    optimizer = build_optimizer(first, config(**options))
    train(first, optimizer, range(3))
    state = copy.deepcopy(optimizer.state_dict())
    for group in state["param_groups"]:
        group["fused"] = False  # as in a checkpoint of older code
    second = nn.Conv2d(3, 4, 2, bias=False).to(memory_format=torch.channels_last)
    with torch.no_grad():
        second.weight.copy_(first.weight)
    resumed = build_optimizer(second, config(**options))
    load_optimizer_state(resumed, state)
    train(first, optimizer, range(3, 6))
    train(second, resumed, range(3, 6))
    assert not second.weight.is_contiguous() and resumed.param_groups[0]["fused"]
    assert torch.equal(first.weight, second.weight)


def scales(model, **options):
    groups = parameter_groups(model, weight_decay=0.05, **options)
    return {name: (group["lr_scale"], group["weight_decay"]) for group in groups for name in group["names"]}


@pytest.mark.parametrize("name", ["uniformer", "light", "v2", "v2_frozen"])
def test_layer_decay_gives_each_parameter_the_factor_of_timm(name):
    model = small(name)
    found = scales(model, layer_decay=0.75)
    names = {parameter: name for name, parameter in model.named_parameters()}
    expected = {
        names[parameter]: (group["lr_scale"], group["weight_decay"])
        for group in param_groups_layer_decay(model, weight_decay=0.05, layer_decay=0.75)
        for parameter in group["params"]
    }
    # BatchNorm is one-dimensional, so timm gives it no weight decay either
    assert found == expected


def test_layer_decay_follows_the_blocks_of_a_uniformer():
    found = scales(small("uniformer"), layer_decay=0.5, backbone_lr_ratio=0.1)
    # 5 blocks between the stem and the classifier: stages of 1, 1, 2 and 1 blocks
    powers = {"patch_embed1": 6, "blocks1.0": 5, "patch_embed2": 4, "blocks2.0": 4, "blocks3.0": 3, "blocks3.1": 2}
    powers |= {"patch_embed3": 3, "patch_embed4": 1, "blocks4.0": 1, "norm": 1}
    for name, (scale, _) in found.items():
        power = next((power for prefix, power in powers.items() if name.startswith(f"{prefix}.")), 0)
        assert scale == pytest.approx((1.0 if name.startswith("head.") else 0.1) * 0.5**power), name


def test_layer_decay_sets_the_learning_rates_of_the_optimizer():
    options = {"SOLVER__LAYER_DECAY": 0.5, "SOLVER__OPTIMIZING_METHOD": "adamw"}
    optimizer = build_optimizer(small("v2"), config(**options))
    set_learning_rate(optimizer, 1.0)
    lr = {name: group["lr"] for group in optimizer.param_groups for name in group["names"]}
    # stem, 3 blocks of the image ViT, 2 global blocks, classifier
    assert lr["backbone.conv1.weight"] == 0.5**6 and lr["backbone.transformer.proj.2.weight"] == 1.0
    assert lr["backbone.transformer.resblocks.0.mlp.c_fc.weight"] == 0.5**5
    assert lr["backbone.transformer.dec.0.mlp.c_fc.weight"] == 0.5**2


def test_layer_decay_needs_the_order_of_the_layers():
    with pytest.raises(ValueError, match="group_matcher"):
        parameter_groups(nn.Linear(1, 1), weight_decay=0.1, layer_decay=0.5)
    with pytest.raises(ValueError, match=r"^layer_decay 0\.5 .*SOLVER\.LAYER_DECAY"):
        build_optimizer(nn.Linear(1, 1), config(SOLVER__LAYER_DECAY=0.5))
    assert len(parameter_groups(nn.Linear(1, 1), weight_decay=0.1)) == 2


def test_balanced_weights_are_those_of_scikit_learn():
    labels = np.array([0, 0, 0, 1, 3, 3])
    # number of labels / (classes that occur * labels of the class)
    assert balanced_weights(labels, 5).tolist() == pytest.approx([6 / 9, 2.0, 1.0, 1.0, 1.0])
    assert balanced_weights(labels, 5)[labels].mean().item() == pytest.approx(1.0)


def test_class_weights_multiply_the_loss_of_each_sample():
    logits, target = torch.randn(6, 3, generator=torch.Generator().manual_seed(0)), torch.tensor([0, 0, 0, 0, 1, 2])
    weights = torch.tensor([0.5, 2.0, 2.0])
    each = nn.functional.cross_entropy(logits, target, reduction="none")
    options = {"MODEL__CLASS_WEIGHTS": "balanced", "MODEL__NUM_CLASSES": 3}
    hard = build_loss(config(**options), target.numpy())
    soft = build_loss(config(**options, MODEL__LOSS_FUNC="soft_cross_entropy"), target.numpy())
    expected = (weights[target] * each).mean().item()
    assert hard(logits, target).item() == pytest.approx(expected, rel=1e-6)
    assert soft(logits, nn.functional.one_hot(target, 3).float()).item() == pytest.approx(expected, rel=1e-6)
    # the parts of a batch on two processes have the same mean as the whole
    halves = (hard(logits[:3], target[:3]) + hard(logits[3:], target[3:])) / 2
    assert halves.item() == pytest.approx(expected, rel=1e-6)
