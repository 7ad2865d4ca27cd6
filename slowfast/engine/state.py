"""Keep everything that a training run resumes from in one place."""

from __future__ import annotations

import copy
import reprlib
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from types import NoneType
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn.modules.batchnorm import _NormBase

from slowfast.engine.ema import ModelEma
from slowfast.engine.meters import TrainMeter
from slowfast.optim.build import load_optimizer_state
from slowfast.optim.sharded import ShardedOptimizer

FORMAT = 1  # of the checkpoint file; a file with a higher number was written by newer code
# Entries of a checkpoint that are read in a resume, and their types. Files of older code lack the optional ones.
REQUIRED: dict[str, Any] = {
    "model_state": Mapping,
    "optimizer_state": Mapping,
    "step": int,
    "meter_state": Mapping,
    "scaler_state": (Mapping, NoneType),
    "ema_state": (Mapping, NoneType),
    "steps_per_epoch": int,
    "best": (int, float),
}
OPTIONAL: dict[str, Any] = {
    "epochs_closed": int,
    "nonfinite": int,
    "since_best": int,
    "format": int,
    "class_names": (list, NoneType),
    "lists": Mapping,
    "world": Mapping,
}


@dataclass
class TrainState:
    """The mutable state of a run. Random streams are functions of (seed, step), so `step` represents all of them.

    Attributes:
        model: the unwrapped network.
        steps_per_epoch: optimizer steps.
        ema: None if no average of the weights is kept.
        step: optimizer steps done.
        epochs_closed: epochs whose statistics, validation and checkpoint are done too.
        nonfinite: how many of the last steps in a row were not finite; they changed nothing.
        best: best validation top-1, or mAP, so far, in percent; -1 before the first.
        since_best: validations since then.
    """

    model: nn.Module
    optimizer: torch.optim.Optimizer | ShardedOptimizer
    scaler: torch.amp.GradScaler  # pyright: ignore[reportPrivateImportUsage]
    meter: TrainMeter
    steps_per_epoch: int
    ema: ModelEma | None = None
    step: int = 0
    epochs_closed: int = 0
    nonfinite: int = 0
    best: float = -1.0
    since_best: int = 0

    @property
    def epoch(self) -> int:
        """The number of complete epochs."""
        return self.step // self.steps_per_epoch

    @property
    def within_epoch(self) -> bool:
        """Whether an epoch has begun and is not complete."""
        return self.step % self.steps_per_epoch > 0

    @property
    def models(self) -> list[nn.Module]:
        """The network and, if there is one, its average, which is the one to evaluate."""
        return [self.model, self.ema.module] if self.ema else [self.model]

    def _buffers(self) -> Iterator[Tensor]:
        return (buffer for model in self.models for buffer in model.buffers())

    def copy_statistics(self) -> tuple[list[Tensor], dict[str, Tensor]]:
        """Copy what the end of an epoch changes: the statistics of BatchNorm and the sums of the meter."""
        return [buffer.clone() for buffer in self._buffers()], self.meter.state_dict()

    def restore_statistics(self, before: tuple[list[Tensor], dict[str, Tensor]]) -> None:
        """Restore the copy that `copy_statistics` made."""
        buffers, sums = before
        for buffer, old in zip(self._buffers(), buffers, strict=True):
            buffer.copy_(old)
        self.meter.load_state_dict(sums)

    def state_dict(self) -> dict[str, Any]:
        """Return the entries of a checkpoint, the official ones first; must be called by every process."""
        return {
            "epoch": self.epoch - 1,  # the last complete one, counted from 0
            "model_state": self.model.state_dict(),
            "optimizer_state": self.optimizer.state_dict(),
            "scaler_state": self.scaler.state_dict(),
            "ema_state": self.ema.module.state_dict() if self.ema else None,
            "meter_state": self.meter.state_dict(),
            "step": self.step,
            "epochs_closed": self.epochs_closed,
            "steps_per_epoch": self.steps_per_epoch,
            "nonfinite": self.nonfinite,
            "best": self.best,
            "since_best": self.since_best,
            "format": FORMAT,
        }

    def load_state_dict(self, state: Mapping[str, Any], source: str = "the checkpoint") -> None:
        """Continue from a checkpoint of the same configuration and data.

        Args:
            state: entries of `state_dict` and of the description of the run; all are checked before anything changes.
            source: of the entries, for messages.

        Raises:
            ValueError: it is of newer code or of a list of another length, contains weights only, or has an entry that
                a run of this configuration does not write.
        """
        if isinstance(state.get("format"), int) and state["format"] > FORMAT:
            raise ValueError(f"{source} has format {state['format']}, this code reads {FORMAT}; update the code")
        if absent := [key for key in REQUIRED if key not in state]:
            raise ValueError(
                f"{source} cannot be resumed, it lacks {', '.join(absent)}; to start a new run from its weights, give "
                "it as TRAIN.CHECKPOINT_FILE_PATH with another OUTPUT_DIR"
            )
        _require_none(_entry_faults(state), source)
        if state["steps_per_epoch"] != self.steps_per_epoch:
            raise ValueError(
                f"an epoch had {state['steps_per_epoch']} steps when {source} was written and now has "
                f"{self.steps_per_epoch}: the training list or the batch changed, and with it the schedule. Undo that, "
                "or start a new run from the weights (TRAIN.CHECKPOINT_FILE_PATH) in another OUTPUT_DIR"
            )
        if self.ema and state["ema_state"] is None:
            raise ValueError(
                f"EMA.ENABLE is True, and {source} has no averaged weights: set it False, or use another OUTPUT_DIR"
            )
        scaling = bool(state["scaler_state"]) and self.scaler.is_enabled()  # only if both train in float16
        loaded = [(self.model, "model_state"), *([(self.ema.module, "ema_state")] if self.ema else [])]
        faults = [fault for model, name in loaded for fault in _weight_faults(name, state[name], model.state_dict())]
        faults += _optimizer_faults(state["optimizer_state"], self.optimizer)
        if scaling and not self.scaler.state_dict().keys() <= state["scaler_state"].keys():
            faults.append(f"scaler_state contains {', '.join(state['scaler_state'])}")
        _require_none(faults, source)

        for model, name in loaded:
            model.load_state_dict(state[name])
        load_optimizer_state(self.optimizer, state["optimizer_state"])
        if scaling:
            self.scaler.load_state_dict(state["scaler_state"])
        self.meter.load_state_dict(state["meter_state"])
        self.step, self.best = state["step"], state["best"]
        self.nonfinite, self.since_best = state.get("nonfinite", 0), state.get("since_best", 0)
        self.epochs_closed = state.get("epochs_closed", self.epoch)


def running_statistics(model: nn.Module) -> list[Tensor]:
    """Return the buffers that BatchNorm changes in a training step; none if it is frozen."""
    norms = (module for module in model.modules() if isinstance(module, _NormBase) and module.training)
    return [buffer for norm in norms for buffer in norm.buffers(recurse=False)]


def _require_none(faults: Sequence[str], source: str) -> None:
    if faults:
        raise ValueError(
            f"{source} cannot be resumed: {'; '.join(faults)}. Move it away to continue without it, or choose another "
            "OUTPUT_DIR"
        )


def _entry_faults(state: Mapping[str, Any]) -> list[str]:
    """Return the entries of another type than a run writes, or else the counters that contradict each other."""
    types = {**REQUIRED, **OPTIONAL}
    if wrong := [
        f"{key} is {_shown(state[key])}"
        for key in types.keys() & state.keys()
        if not isinstance(state[key], types[key]) or isinstance(state[key], bool)
    ]:
        return wrong
    sums, step, per_epoch = state["meter_state"].get("sums"), state["step"], state["steps_per_epoch"]
    done = step // per_epoch if per_epoch > 0 else -1
    closed = state.get("epochs_closed", done)
    if not isinstance(sums, Tensor) or sums.ndim != 2:
        return [f"meter_state has the sums {_shown(sums)}"]
    if not 0 <= closed <= done <= closed + 1:  # an epoch is closed before the next one begins
        return [f"step is {step}, steps_per_epoch {per_epoch} and epochs_closed {closed}"]
    return []


def _shown(value: Any) -> str:
    if isinstance(value, Tensor):
        return f"a tensor of shape {tuple(value.shape)}" + ", not finite" * (not value.isfinite().all())
    return reprlib.repr(value) if isinstance(value, (int, float, str)) else f"a {type(value).__name__}"


def _weight_faults(name: str, found: Mapping[str, Any], expected: Mapping[str, Tensor]) -> list[str]:
    """Compare weights with those of this run in names and shapes; return one line or none."""
    wrong = [f"{key}, which the model lacks" for key in found.keys() - expected.keys()]
    for key, tensor in expected.items():
        shown, shape = _shown(found.get(key)), f"a tensor of shape {tuple(tensor.shape)}"
        if shown != shape:
            wrong.append(f"{key} as {shown} instead of {shape}")
    return [f"{name} has {', '.join(wrong[:3])}" + f" and {len(wrong) - 3} more" * (len(wrong) > 3)] if wrong else []


def _optimizer_faults(found: Mapping[str, Any], optimizer: torch.optim.Optimizer | ShardedOptimizer) -> list[str]:
    """Check an optimizer state by a step of a copy of the optimizer; return one line or none."""
    try:
        if isinstance(optimizer, ShardedOptimizer):
            found, optimizer = optimizer.part_of(found), optimizer.local
        trial = object.__new__(type(optimizer))
        trial.__dict__.update(copy.deepcopy(optimizer.__dict__))
        load_optimizer_state(trial, copy.deepcopy(dict(found)))  # a step changes tensors in place
        parameters = [parameter for group in trial.param_groups for parameter in group["params"]]
        if surplus := trial.state.keys() - set(parameters):
            raise ValueError(f"there is no parameter {surplus.pop()}")
        for parameter in parameters:
            parameter.grad = torch.zeros_like(parameter)
        trial.step()
    except torch.OutOfMemoryError:
        raise  # no fault of the state, which must not be moved away for it
    except Exception as error:  # an optimizer may raise any for a state that is not its own
        reason = str(error).partition("\n")[0][:200]
        return [f"optimizer_state does not fit this optimizer ({type(error).__name__}: {reason})"]
    return []
