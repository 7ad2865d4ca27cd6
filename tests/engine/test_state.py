"""The content of a checkpoint is checked before a run resumes from it."""

from __future__ import annotations

import copy

import numpy as np
import pytest
import torch
from torch import nn

from slowfast.config import load_config
from slowfast.engine.ema import ModelEma
from slowfast.engine.meters import TrainMeter
from slowfast.engine.start import new_state
from slowfast.engine.state import REQUIRED, TrainState
from slowfast.run.checkpoint import CheckpointWriter, list_checkpoints
from slowfast.weights.tensors import load_tensors

STEPS = 10  # per epoch


def make(width: int = 3, scaling: bool = True) -> TrainState:
    torch.manual_seed(0)
    model = nn.Sequential(nn.Linear(2, width), nn.BatchNorm1d(width))
    optimizer = torch.optim.AdamW([{"params": model[0].parameters()}, {"params": model[1].parameters()}], lr=0.1)
    model(torch.randn(4, 2)).square().sum().backward()
    optimizer.step()
    scaler = torch.amp.GradScaler("cpu", enabled=scaling)  # pyright: ignore[reportPrivateImportUsage]
    return TrainState(
        model, optimizer, scaler, TrainMeter(torch.device("cpu")), STEPS, ModelEma(model, 0.9), 23, 2, 0, 50.0
    )


@pytest.fixture
def content() -> dict:
    description = {"class_names": ["a", "b"], "lists": {"train": "x"}, "world": {"processes": 1}, "cfg": "A: 1\n"}
    return copy.deepcopy(make().state_dict()) | description


def train(state: TrainState, steps: int) -> None:
    for _ in range(steps):
        torch.manual_seed(state.step)
        state.model(torch.randn(4, 3, 2, 4, 4)).square().mean().backward()
        state.optimizer.step()
        state.optimizer.zero_grad()
        state.step += 1


def make_with(method: str) -> TrainState:
    """Return the state of a run with parameters of 1, 2 and 5 dimensions."""
    torch.manual_seed(0)
    layers = nn.Conv3d(3, 8, (1, 3, 3)), nn.Flatten(), nn.Linear(64, 5)
    model = nn.Sequential(*layers)
    return new_state(load_config(None, ["SOLVER.OPTIMIZING_METHOD", method]), model, STEPS, torch.device("cpu"))


# Their states are factored, scalar, different for each parameter, of a group, or of another type than the parameter.
METHODS = ("sgd", "adam", "adamw", *(f"timm/{name}" for name in ("adafactor", "adafactorbv", "lamb", "lion", "muon")))


@pytest.mark.parametrize("method", METHODS)
def test_every_optimizer_continues_bit_for_bit(method, tmp_path):
    state, resumed = make_with(method), make_with(method)
    train(state, 3)
    with CheckpointWriter(str(tmp_path)) as writer:
        writer.save(state.state_dict())
    resumed.load_state_dict(load_tensors(list_checkpoints(str(tmp_path))[0]))
    assert resumed.step == 3
    train(state, 2)
    train(resumed, 2)
    for ours, theirs in zip(state.model.parameters(), resumed.model.parameters(), strict=True):
        assert torch.equal(ours, theirs)


def test_a_lack_of_memory_is_not_a_fault_of_the_checkpoint(content, monkeypatch):
    def fail(*_: object) -> None:
        raise torch.OutOfMemoryError("CUDA out of memory")

    state = make()
    monkeypatch.setattr(type(state.optimizer), "load_state_dict", fail)
    with pytest.raises(torch.OutOfMemoryError):
        state.load_state_dict(content)


def weights(content: dict) -> dict:
    return content["model_state"]


FAULTS = {
    **{f"no {key}": lambda c, key=key: c.pop(key) for key in REQUIRED},
    "other sums": lambda c: c.update(meter_state={}),
    "no param_groups": lambda c: c["optimizer_state"].pop("param_groups"),
    "no state": lambda c: c["optimizer_state"].pop("state"),
    "a missing group": lambda c: c["optimizer_state"]["param_groups"].pop(),
    "a missing parameter": lambda c: c["optimizer_state"]["param_groups"][0]["params"].pop(),
    "a scale of NumPy": lambda c: c["scaler_state"].update(scale=np.float32(4)),
    "scaler without a scale": lambda c: c["scaler_state"].pop("scale"),
    "a missing weight": lambda c: weights(c).pop("0.weight"),
    "a surplus weight": lambda c: weights(c).update(more=torch.ones(1)),
    "a weight of another shape": lambda c: weights(c).update({"0.weight": torch.ones(4, 2)}),
    "an average of another shape": lambda c: c["ema_state"].update({"0.weight": torch.ones(4, 2)}),
}


@pytest.mark.parametrize("fault", FAULTS)
def test_a_checkpoint_that_does_not_fit_is_named(fault, content, tmp_path):
    FAULTS[fault](content)
    path = tmp_path / "checkpoint_epoch_00002.pyth"
    torch.save(content, path)
    with pytest.raises(ValueError, match=r"checkpoint_epoch_00002\.pyth cannot be resumed") as caught:
        make().load_state_dict(load_tensors(path), str(path))
    assert "\n" not in str(caught.value) and len(str(caught.value)) < 600


def test_what_is_written_is_accepted(content, tmp_path):
    with CheckpointWriter(str(tmp_path)) as writer:
        writer.save(content)
    (path,) = list_checkpoints(str(tmp_path))
    state = make()
    state.step = state.best = 0
    state.load_state_dict(load_tensors(path), str(path))
    assert (state.step, state.best, state.epochs_closed) == (23, 50.0, 2)
    for old in ("nonfinite", "epochs_closed", "since_best", "format", "class_names", "lists", "world", "cfg"):
        content.pop(old)
        make().load_state_dict(content)
    content["scaler_state"] = {}  # trained in bfloat16
    make().load_state_dict(content)
    make(scaling=False).load_state_dict({**content, "scaler_state": None})


def test_an_epoch_has_begun_after_its_first_step_and_is_complete_after_its_last():
    state = make()
    found = []
    for state.step in (0, 1, STEPS - 1, STEPS, STEPS + 1):
        found.append((state.epoch, state.within_epoch))
    assert found == [(0, False), (0, True), (0, True), (1, False), (1, True)]
