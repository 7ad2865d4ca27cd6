"""All that a training run resumes from, in one place."""

from __future__ import annotations

import reprlib
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn

from slowfast.engine.ema import ModelEma
from slowfast.engine.meters import TrainMeter

FORMAT = 1  # of the checkpoint file; a file with a higher number was written by newer code


@dataclass
class TrainState:
    """The moving parts of a run. Random streams are functions of (seed, step), so `step` stands for all of them.

    Attributes:
        model: the unwrapped network.
        step: optimizer steps done.
        epochs_closed: epochs whose end is over too: statistics, validation, checkpoint.
        nonfinite: how many of the last steps in a row were not finite; they changed nothing.
        best: best validation top-1 so far, in percent; -1 before the first.
    """

    model: nn.Module
    optimizer: torch.optim.Optimizer
    scaler: torch.amp.GradScaler  # pyright: ignore[reportPrivateImportUsage]
    meter: TrainMeter
    ema: ModelEma | None = None
    step: int = 0
    epochs_closed: int = 0
    nonfinite: int = 0
    best: float = -1.0

    def state_dict(self, steps_per_epoch: int) -> dict[str, Any]:
        """Checkpoint entries: the official names, then what an exact resume needs. Call it in every process."""
        return {
            "epoch": self.step // steps_per_epoch - 1,  # the last complete one, counted from 0
            "model_state": self.model.state_dict(),
            "optimizer_state": self.optimizer.state_dict(),
            "scaler_state": self.scaler.state_dict(),
            "ema_state": self.ema.module.state_dict() if self.ema else None,
            "meter_state": self.meter.state_dict(),
            "step": self.step,
            "epochs_closed": self.epochs_closed,
            "steps_per_epoch": steps_per_epoch,
            "nonfinite": self.nonfinite,
            "best": self.best,
            "format": FORMAT,
        }

    def load_state_dict(self, state: Mapping[str, Any], steps_per_epoch: int, source: str = "the checkpoint") -> None:
        """Continue from a checkpoint of the same configuration and data; everything has to be there.

        Args:
            state: entries of `state_dict`, and those of `facts`; all are checked before anything changes.
            steps_per_epoch: of this run.
            source: of the entries, for messages.

        Raises:
            ValueError: it is of newer code or of a list of another length, contains weights only, or has an entry that
                a run of this configuration does not write.
        """
        check_entries(state, source)
        if state["steps_per_epoch"] != steps_per_epoch:
            raise ValueError(
                f"an epoch had {state['steps_per_epoch']} steps when {source} was written and now has "
                f"{steps_per_epoch}: the training list or the batch changed, and with it the schedule. Undo that, or "
                "start a new run from the weights (TRAIN.CHECKPOINT_FILE_PATH) in another OUTPUT_DIR"
            )
        scaling = bool(state["scaler_state"]) and self.scaler.is_enabled()  # only if both sides train in float16
        if self.ema and state["ema_state"] is None:
            raise ValueError(
                f"EMA.ENABLE is True, and {source} has no averaged weights: set it False, or use another OUTPUT_DIR"
            )
        faults = [
            *_differences("model_state", state["model_state"], self.model.state_dict()),
            *(_differences("ema_state", state["ema_state"], self.ema.module.state_dict()) if self.ema else ()),
            *_optimizer_faults(state["optimizer_state"], self.optimizer),
        ]
        if scaling and not self.scaler.state_dict().keys() <= state["scaler_state"].keys():
            faults.append(f"scaler_state contains {', '.join(state['scaler_state'])}")
        _raise_faults(faults, source)

        self.model.load_state_dict(state["model_state"])
        self.optimizer.load_state_dict(dict(state["optimizer_state"]))
        if scaling:
            self.scaler.load_state_dict(state["scaler_state"])
        if self.ema:
            self.ema.module.load_state_dict(state["ema_state"])
        self.meter.load_state_dict(state["meter_state"])
        self.step, self.best = state["step"], state["best"]
        self.nonfinite = state.get("nonfinite", 0)
        self.epochs_closed = state.get("epochs_closed", self.step // steps_per_epoch)


def _is_count(value: Any) -> bool:
    return type(value) is int and value >= 0


def _is_state_dict(value: Any) -> bool:
    return isinstance(value, Mapping) and all(isinstance(tensor, Tensor) for tensor in value.values())


def _is_optimizer_state(value: Any) -> bool:
    if not isinstance(value, Mapping) or not isinstance(value.get("state"), Mapping):
        return False
    groups, entries = value.get("param_groups"), value["state"].values()
    return (
        isinstance(groups, list)
        and all(
            isinstance(group, Mapping) and isinstance(group.get("params"), list) and "lr" in group for group in groups
        )
        and all(isinstance(entry, Mapping) for entry in entries)
        and len({frozenset(entry) for entry in entries}) <= 1  # all have the same keys
    )


def _is_meter_state(value: Any) -> bool:
    sums = value.get("sums") if isinstance(value, Mapping) else None
    return isinstance(sums, Tensor) and sums.shape == (2, 4)


def _is_finite(value: Any) -> bool:
    return all(bool(tensor.isfinite().all()) for tensor in value.values() if tensor.is_floating_point())


# Entry of a checkpoint -> (check, required content). Those after `best` are absent in files of older code.
ENTRIES: dict[str, tuple[Callable[[Any], bool], str]] = {
    "model_state": (_is_state_dict, "a state_dict"),
    "optimizer_state": (_is_optimizer_state, "the state of an optimizer"),
    "step": (_is_count, "a number of steps"),
    "meter_state": (_is_meter_state, "sums of shape (2, 4)"),
    "scaler_state": (lambda value: value is None or isinstance(value, Mapping), "the state of a gradient scaler"),
    "ema_state": (lambda value: value is None or _is_state_dict(value), "a state_dict, or None"),
    "steps_per_epoch": (lambda value: _is_count(value) and value > 0, "a number of steps"),
    "best": (lambda value: type(value) in (int, float), "an accuracy in percent"),
    "epochs_closed": (_is_count, "a number of epochs"),
    "nonfinite": (_is_count, "a number of steps"),
    "format": (_is_count, "a number"),
    "class_names": (lambda value: value is None or isinstance(value, list), "a list of names"),
    "lists": (lambda value: isinstance(value, Mapping), "checksums of lists"),
    "world": (lambda value: isinstance(value, Mapping), "facts about the processes"),
}
REQUIRED = tuple(ENTRIES)[: tuple(ENTRIES).index("best") + 1]


def check_entries(state: Mapping[str, Any], source: str) -> None:
    """Check the entries of a checkpoint as far as possible without the run that resumes from it.

    Raises:
        ValueError: an entry is absent, of newer code or another type, or contradicts another; weights are not finite.
    """
    if _is_count(state.get("format")) and state["format"] > FORMAT:
        raise ValueError(f"{source} has format {state['format']}, this code reads {FORMAT}; update the code")
    absent = [key for key in REQUIRED if key not in state]
    if absent:
        raise ValueError(
            f"{source} cannot be resumed, it lacks {', '.join(absent)}; to start a new run from its weights, give it "
            "as TRAIN.CHECKPOINT_FILE_PATH with another OUTPUT_DIR"
        )
    faults = [
        f"{key} is not {kind} but {_shown(state[key])}"
        for key, (fits, kind) in ENTRIES.items()
        if key in state and not fits(state[key])
    ]
    _raise_faults(faults, source)
    epochs = state["step"] // state["steps_per_epoch"]
    if not 0 <= epochs - state.get("epochs_closed", epochs) <= 1:  # an epoch ends before the next one begins
        faults.append(f"step {state['step']} is in epoch {epochs}, and epochs_closed is {state['epochs_closed']}")
    faults += [
        f"{key} contains numbers that are not finite"
        for key in ("model_state", "ema_state")
        if state[key] is not None and not _is_finite(state[key])
    ]
    _raise_faults(faults, source)


def _shown(value: Any) -> str:
    if isinstance(value, Mapping):
        return f"a dictionary of {reprlib.repr(list(value))}"
    return reprlib.repr(value) if isinstance(value, (int, float, str, type(None))) else f"a {type(value).__name__}"


def _raise_faults(faults: Sequence[str], source: str) -> None:
    if faults:
        raise ValueError(
            f"{source} cannot be resumed: {'; '.join(faults)}. Move it away to continue without it, or choose another "
            "OUTPUT_DIR"
        )


def _differences(name: str, theirs: Mapping[str, Tensor], mine: Mapping[str, Tensor]) -> list[str]:
    """Describe how two state_dicts differ in names and shapes, in one line or none."""
    wrong = [f"lacks {key}" for key in mine if key not in theirs]
    wrong += [f"has {key}, which the model lacks" for key in theirs if key not in mine]
    wrong += [
        f"has {key} of shape {tuple(theirs[key].shape)} instead of {tuple(value.shape)}"
        for key, value in mine.items()
        if key in theirs and theirs[key].shape != value.shape
    ]
    return [f"{name} {', '.join(wrong[:3])}{f' and {len(wrong) - 3} more' if len(wrong) > 3 else ''}"] if wrong else []


def _optimizer_faults(theirs: Mapping[str, Any], optimizer: torch.optim.Optimizer) -> list[str]:
    """Describe how the state of an optimizer differs from `optimizer` in groups and shapes."""
    groups = theirs["param_groups"]
    sizes, expected = [len(group["params"]) for group in groups], [len(g["params"]) for g in optimizer.param_groups]
    if sizes != expected:
        return [f"optimizer_state has groups of {sizes} parameters instead of {expected}"]
    numbers = [number for group in groups for number in group["params"]]
    parameters = dict(zip(numbers, (p for group in optimizer.param_groups for p in group["params"]), strict=True))
    for number, entry in theirs["state"].items():
        shape = parameters[number].shape if number in parameters else None
        for key, value in entry.items():
            if isinstance(value, Tensor) and value.ndim and value.shape != shape:
                return [f"optimizer_state has {key} of shape {tuple(value.shape)} for parameter {number} of {shape}"]
    return []
