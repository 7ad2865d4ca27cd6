"""All that a training run resumes from, in one place."""

from __future__ import annotations

import reprlib
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from types import NoneType
from typing import Any

import torch
from torch import Tensor, nn

from slowfast.engine.ema import ModelEma
from slowfast.engine.meters import TrainMeter

FORMAT = 1  # of the checkpoint file; a file with a higher number was written by newer code


@dataclass
class TrainState:
    """The moving parts of a run. Random streams are functions of (seed, step), so `step` represents all of them.

    Attributes:
        model: the unwrapped network.
        steps_per_epoch: optimizer steps.
        ema: None if no average of the weights is kept.
        step: optimizer steps done.
        epochs_closed: epochs whose statistics, validation and checkpoint are done too.
        nonfinite: how many of the last steps in a row were not finite; they changed nothing.
        best: best validation top-1 so far, in percent; -1 before the first.
    """

    model: nn.Module
    optimizer: torch.optim.Optimizer
    scaler: torch.amp.GradScaler  # pyright: ignore[reportPrivateImportUsage]
    meter: TrainMeter
    steps_per_epoch: int
    ema: ModelEma | None = None
    step: int = 0
    epochs_closed: int = 0
    nonfinite: int = 0
    best: float = -1.0

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

    def copy_statistics(self) -> tuple[list[Tensor], dict[str, Tensor]]:
        """Copy what the end of an epoch changes: the statistics of BatchNorm and the sums of the meter."""
        return [buffer.clone() for model in self.models for buffer in model.buffers()], self.meter.state_dict()

    def restore_statistics(self, copy: tuple[list[Tensor], dict[str, Tensor]]) -> None:
        """Return to the state when `copy_statistics` made the copy."""
        buffers, sums = copy
        for buffer, before in zip((b for model in self.models for b in model.buffers()), buffers, strict=True):
            buffer.copy_(before)
        self.meter.load_state_dict(sums)

    def state_dict(self) -> dict[str, Any]:
        """Return the entries of a checkpoint: the official names, then those of an exact resume.

        It must be called by every process.
        """
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
        check_entries(state, source)
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
        faults = [
            *_weight_faults("model_state", state["model_state"], self.model.state_dict()),
            *(_weight_faults("ema_state", state["ema_state"], self.ema.module.state_dict()) if self.ema else ()),
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
        self.epochs_closed = state.get("epochs_closed", self.epoch)


# Entry of a checkpoint -> its types. Files of older code lack those that are not in `REQUIRED`.
ENTRIES: dict[str, type | tuple[type, ...]] = {
    "model_state": Mapping,
    "optimizer_state": Mapping,
    "step": int,
    "meter_state": Mapping,
    "scaler_state": (Mapping, NoneType),
    "ema_state": (Mapping, NoneType),
    "steps_per_epoch": int,
    "best": (int, float),
    "epochs_closed": int,
    "nonfinite": int,
    "format": int,
    "class_names": (list, NoneType),
    "lists": Mapping,
    "world": Mapping,
}
REQUIRED = tuple(ENTRIES)[: tuple(ENTRIES).index("best") + 1]


def check_entries(state: Mapping[str, Any], source: str) -> None:
    """Check the entries of a checkpoint as far as possible without the run that resumes from it.

    Raises:
        ValueError: an entry is absent, of newer code or another type, or contradicts another.
    """
    written_as = state.get("format")
    if isinstance(written_as, int) and written_as > FORMAT:
        raise ValueError(f"{source} has format {written_as}, this code reads {FORMAT}; update the code")
    if absent := [key for key in REQUIRED if key not in state]:
        raise ValueError(
            f"{source} cannot be resumed, it lacks {', '.join(absent)}; to start a new run from its weights, give it "
            "as TRAIN.CHECKPOINT_FILE_PATH with another OUTPUT_DIR"
        )
    kinds = {key: kind for key, kind in ENTRIES.items() if key in state}
    faults = [f"{key} is {_shown(state[key])}" for key, kind in kinds.items() if not _fits(state[key], kind)]
    _raise_faults(faults, source)
    sums, steps, per_epoch = state["meter_state"].get("sums"), state["step"], state["steps_per_epoch"]
    closed = state.get("epochs_closed", steps // max(1, per_epoch))
    if not isinstance(sums, Tensor) or sums.ndim != 2:
        faults.append(f"meter_state has the sums {_shown(sums)}")
    # an epoch is closed before the next one begins
    if per_epoch == 0 or not 0 <= steps // per_epoch - closed <= 1:
        faults.append(f"step is {steps}, steps_per_epoch {per_epoch} and epochs_closed {closed}")
    _raise_faults(faults, source)


def _fits(value: Any, kind: type | tuple[type, ...]) -> bool:
    """Return whether a value is of a type, or of one of several; integers are counts, so not negative."""
    return isinstance(value, kind) and not isinstance(value, bool) and not (kind is int and value < 0)


def _shown(value: Any) -> str:
    return reprlib.repr(value) if isinstance(value, (int, float, str)) else f"a {type(value).__name__}"


def _raise_faults(faults: Sequence[str], source: str) -> None:
    if faults:
        raise ValueError(
            f"{source} cannot be resumed: {'; '.join(faults)}. Move it away to continue without it, or choose another "
            "OUTPUT_DIR"
        )


def _weight_faults(name: str, theirs: Mapping[str, Any], mine: Mapping[str, Tensor]) -> list[str]:
    """Describe how weights differ from those of this run in names and shapes, in one line or none."""
    wrong = [f"has {key}, which the model lacks" for key in theirs if key not in mine]
    for key, expected in mine.items():
        found = theirs.get(key)
        if not isinstance(found, Tensor):
            wrong.append(f"lacks the tensor {key}")
        elif found.shape != expected.shape:
            wrong.append(f"has {key} of shape {tuple(found.shape)} instead of {tuple(expected.shape)}")
        elif not found.isfinite().all():
            wrong.append(f"has numbers in {key} that are not finite")
    return [f"{name} {', '.join(wrong[:3])}{f' and {len(wrong) - 3} more' if len(wrong) > 3 else ''}"] if wrong else []


def _optimizer_faults(theirs: Mapping[str, Any], optimizer: torch.optim.Optimizer) -> list[str]:
    """Describe how the state of an optimizer differs from `optimizer` in groups, entries and shapes."""
    expected = [len(group["params"]) for group in optimizer.param_groups]
    try:
        sizes = [len(group["params"]) for group in theirs["param_groups"] if "lr" in group]
        numbers = [number for group in theirs["param_groups"] for number in group["params"]]
        kinds = {tuple(sorted(entry)) for entry in theirs["state"].values()}
    except (LookupError, TypeError, AttributeError) as error:
        return [f"optimizer_state is not the state of an optimizer ({error!r})"]
    if sizes != expected or len(numbers) != sum(expected):
        return [f"optimizer_state has groups of {sizes} parameters instead of {expected}"]
    if len(kinds) > 1:
        return [f"optimizer_state has different entries for its parameters: {sorted(kinds)}"]
    parameters = dict(zip(numbers, (p for group in optimizer.param_groups for p in group["params"]), strict=True))
    for number, entry in theirs["state"].items():
        shape = parameters[number].shape if number in parameters else None
        for key, value in entry.items():
            if isinstance(value, Tensor) and value.ndim and value.shape != shape:
                return [f"optimizer_state has {key} of shape {tuple(value.shape)} for parameter {number} of {shape}"]
    return []
