"""Checkpoints of the official programs in an output folder: recognised, resumed, and never called damaged."""

from __future__ import annotations

from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import torch
from small_networks import UNIFORMER_KEYS, UNIFORMERV2_KEYS, configuration
from torch import nn

from slowfast.config import load_config
from slowfast.engine.meters import TrainMeter
from slowfast.engine.official import adopt
from slowfast.engine.start import resume
from slowfast.engine.state import TrainState
from slowfast.engine.test import find_checkpoint
from slowfast.models.build import build_model
from slowfast.optim.build import build_optimizer
from slowfast.run.checkpoint import (
    CheckpointWriter,
    best_checkpoint,
    checkpoint_dir,
    epochs_done,
    list_checkpoints,
    official_best,
    peek,
    resumable_checkpoint,
)

CPU = torch.device("cpu")
STEPS = 5  # per epoch
RECIPE = {
    "SOLVER.OPTIMIZING_METHOD": "adamw", "SOLVER.ZERO_WD_1D_PARAM": True, "SOLVER.BASE_LR": 0.01, "NUM_GPUS": 0,
    "MODEL.NUM_CLASSES": 8,
}  # fmt: skip


@pytest.fixture(params=[UNIFORMER_KEYS, UNIFORMERV2_KEYS], ids=["uniformer", "uniformerv2"])
def cfg(request, tmp_path):
    return configuration(request.param, RECIPE, {"OUTPUT_DIR": str(tmp_path)})


def official_optimizer(model: nn.Module) -> torch.optim.Optimizer:
    """AdamW over the groups of the official code: BatchNorm, the other tensors, the other one-dimensional ones."""
    groups: list[list[nn.Parameter]] = [[], [], []]
    for module in model.modules():
        for parameter in module.parameters(recurse=False):
            kind = 0 if isinstance(module, nn.BatchNorm3d) else 2 if parameter.ndim == 1 else 1
            groups[kind].append(parameter)
    decays = (0.0, 0.05, 0.0)
    return torch.optim.AdamW(
        [{"params": p, "weight_decay": d} for p, d in zip(groups, decays, strict=True) if p], lr=1e-4
    )


def official_checkpoint(cfg, epoch: int = 6) -> tuple[dict[str, Any], dict[str, torch.Tensor]]:
    """Make a checkpoint after some steps, and the first moment of every parameter by name."""
    torch.manual_seed(0)
    model = build_model(cfg)
    optimizer = official_optimizer(model)
    for _ in range(3):
        for parameter in model.parameters():
            parameter.grad = torch.randn_like(parameter)
        optimizer.step()
    moments = {name: optimizer.state[parameter]["exp_avg"].clone() for name, parameter in model.named_parameters()}
    factors = {"growth_factor": 2.0, "backoff_factor": 0.5, "growth_interval": 2000}
    scaler = {"scale": 1024.0, "_growth_tracker": 3, **factors}
    checkpoint = {
        "epoch": epoch,
        "model_state": model.state_dict(),
        "optimizer_state": optimizer.state_dict(),
        "scaler": scaler,
        "cfg": "SOLVER:\n  BASE_LR: 0.02\n  MAX_EPOCH: 300\nRESNET: {DEPTH: 50}\n",
    }
    return checkpoint, moments


def fresh(cfg) -> TrainState:
    torch.manual_seed(1)
    model = build_model(cfg)
    scaler = torch.amp.GradScaler("cpu", enabled=True)
    return TrainState(model, build_optimizer(model, cfg), scaler, TrainMeter(CPU), STEPS)


def moments_of(state: TrainState) -> dict[str, torch.Tensor]:
    names: dict[torch.Tensor, str] = {value: name for name, value in state.model.named_parameters()}
    return {names[value]: moments["exp_avg"] for value, moments in state.optimizer.state.items()}


@pytest.mark.parametrize("ratio", [1.0, 0.1])
def test_weights_optimizer_and_epoch_are_resumed(cfg, ratio, caplog):
    """The state is loaded also if our groups differ, because the classifier has its own learning rate."""
    cfg.SOLVER.BACKBONE_LR_RATIO = ratio
    checkpoint, moments = official_checkpoint(cfg)
    state = fresh(cfg)
    groups = [dict(group) for group in state.optimizer.param_groups]
    adopt(checkpoint, state, cfg, None)
    assert (state.step, state.epochs_closed, state.best) == (35, 7, -1.0)
    weights = state.model.state_dict()
    assert all(torch.equal(weights[name], value) for name, value in checkpoint["model_state"].items())
    found = moments_of(state)
    assert found.keys() == moments.keys() and all(torch.equal(found[name], moments[name]) for name in moments)
    assert all(float(values["step"]) == 3 for values in state.optimizer.state.values())
    for before, after in zip(groups, state.optimizer.param_groups, strict=True):  # of this recipe
        assert before["names"] == after["names"] and before["weight_decay"] == after["weight_decay"]
    assert state.scaler.get_scale() == 1024
    (warning,) = [record.getMessage() for record in caplog.records if record.levelname == "WARNING"]
    assert "SOLVER.BASE_LR 0.02 there, 0.01 here" in warning and "MAX_EPOCH" not in warning


def sgd(optimizer: dict[str, Any]) -> dict[str, Any]:
    return {number: {"momentum_buffer": values["exp_avg"]} for number, values in optimizer["state"].items()}


BROKEN = {
    "groups in another order": lambda c: c["optimizer_state"]["param_groups"].reverse(),
    "numbers in another order": lambda c: c["optimizer_state"]["param_groups"][-1]["params"].reverse(),
    "weights in another order": lambda c: c.update(model_state=dict(reversed(c["model_state"].items()))),
    "moments of SGD": lambda c: c["optimizer_state"].update(state=sgd(c["optimizer_state"])),
    "no optimizer": lambda c: c.update(optimizer_state={}),
}


@pytest.mark.parametrize("kind", BROKEN)
def test_an_optimizer_that_cannot_be_mapped_starts_without_a_state(cfg, kind, caplog):
    checkpoint, _ = official_checkpoint(cfg)
    BROKEN[kind](checkpoint)
    state = fresh(cfg)
    adopt(checkpoint, state, cfg, None)
    assert state.step == 35 and not moments_of(state)
    weights = state.model.state_dict()
    assert all(torch.equal(weights[name], value) for name, value in checkpoint["model_state"].items())
    assert "optimizer starts without" in caplog.text


@pytest.mark.parametrize("name", ["adafactor", "lion"])
def test_an_optimizer_of_timm_starts_without_a_state(cfg, name, caplog):
    checkpoint, _ = official_checkpoint(cfg)
    cfg.SOLVER.OPTIMIZING_METHOD = f"timm/{name}"
    state = fresh(cfg)
    adopt(checkpoint, state, cfg, None)
    assert state.step == 35 and not state.optimizer.state
    assert "optimizer starts without" in caplog.text


def test_a_checkpoint_of_other_classes_names_the_keys_that_start_from_its_weights(cfg, tmp_path):
    path = tmp_path / "checkpoint_epoch_00001.pyth"
    torch.save(official_checkpoint(cfg)[0], path)
    cfg.MODEL.NUM_CLASSES = 6
    lists: Any = {"train": SimpleNamespace(class_names=None)}
    with pytest.raises(ValueError, match=r"MODEL\.NUM_CLASSES to 8") as error:
        resume(fresh(cfg), path, cfg, lists)
    assert {"TRAIN.CHECKPOINT_FILE_PATH", "MODEL.RESET_HEAD"} <= set(str(error.value).split())
    assert str(error.value).startswith(str(path)) and "reset_head" not in str(error.value)


def test_the_newest_checkpoint_is_resumed_whatever_wrote_it(tmp_path):
    folder = checkpoint_dir(str(tmp_path))
    folder.mkdir()
    official = {"model_state": {}, "optimizer_state": {}, "cfg": ""}
    torch.save({"epoch": 3, **official}, official_best(str(tmp_path)))
    assert resumable_checkpoint(str(tmp_path)) == official_best(str(tmp_path))
    torch.save({"epoch": 8, **official}, folder / "checkpoint_epoch_00009.pyth")
    torch.save({"epoch": 1, **official}, folder / "checkpoint_epoch_00002.pyth", _use_new_zipfile_serialization=False)
    assert resumable_checkpoint(str(tmp_path)) == folder / "checkpoint_epoch_00009.pyth"
    torch.save({"step": 50, "steps_per_epoch": 5}, folder / "checkpoint_epoch_00010.pyth")
    assert resumable_checkpoint(str(tmp_path)) == folder / "checkpoint_epoch_00010.pyth"
    assert epochs_done(peek(folder / "checkpoint_epoch_00002.pyth")) == 2
    # files of other programs are never deleted
    with CheckpointWriter(str(tmp_path), keep=1) as writer:
        for step in (55, 60):
            writer.save({"step": step, "steps_per_epoch": 5, "model_state": {}})
    assert [path.name[-7:-5] for path in list_checkpoints(str(tmp_path))] == ["02", "09", "12"]


NO_NUMBER = {"epoch": torch.tensor(3), "model_state": {}, "optimizer_state": {}}


@pytest.mark.parametrize(
    "content", [{"model_state": {}}, {"w": torch.zeros(1)}, {"x": Path("x")}, NO_NUMBER, b"<html>", b"\x80"]
)
def test_a_file_that_cannot_be_resumed_is_refused_and_kept(content, tmp_path):
    path = checkpoint_dir(str(tmp_path)) / "checkpoint_epoch_00009.pyth"
    path.parent.mkdir()
    path.write_bytes(content) if isinstance(content, bytes) else torch.save(content, path)
    with pytest.raises(ValueError, match="another OUTPUT_DIR") as error:
        resumable_checkpoint(str(tmp_path))
    assert ("TRAIN.CHECKPOINT_FILE_PATH" in str(error.value)) == isinstance(content, dict) and path.exists()


def test_the_best_checkpoint_of_the_official_programs_is_tested(tmp_path):
    torch.save({"epoch": 3, "model_state": {}, "optimizer_state": {}}, official_best(str(tmp_path)))
    cfg = load_config(None, ["OUTPUT_DIR", str(tmp_path), "TEST.TEST_BEST", "True"])
    assert find_checkpoint(cfg) == str(official_best(str(tmp_path)))
    best_checkpoint(str(tmp_path)).parent.mkdir()
    torch.save({}, best_checkpoint(str(tmp_path)))
    assert find_checkpoint(cfg) == str(best_checkpoint(str(tmp_path)))
