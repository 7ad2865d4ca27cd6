"""Keep everything that a training run resumes from in one place."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn.modules.batchnorm import _NormBase

from slowfast.engine.ema import ModelEma
from slowfast.engine.meters import TrainMeter
from slowfast.optim.build import load_optimizer_state
from slowfast.optim.sharded import ShardedOptimizer

FORMAT = 1  # of the checkpoint file; a file with a higher number was written by newer code
# Entries of a checkpoint that a resume needs; files of older code lack the others.
REQUIRED = (
    "model_state", "optimizer_state", "step", "meter_state", "scaler_state", "ema_state", "steps_per_epoch", "best",
)  # fmt: skip


@dataclass
class TrainState:
    """The mutable state of a run. Random streams are functions of (seed, step), so `step` represents all of them."""

    model: nn.Module  # the unwrapped network
    optimizer: torch.optim.Optimizer | ShardedOptimizer
    scaler: torch.amp.GradScaler  # pyright: ignore[reportPrivateImportUsage]
    meter: TrainMeter
    steps_per_epoch: int  # optimizer steps
    ema: ModelEma | None = None  # None if no average of the weights is kept
    step: int = 0  # optimizer steps done
    epochs_closed: int = 0  # epochs whose statistics, validation and checkpoint are done too
    nonfinite: int = 0  # how many of the last steps in a row were not finite; they changed nothing
    best: float = -1.0  # best validation top-1, or mAP, so far, in percent; -1 before the first
    since_best: int = 0  # validations since then

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
        """Continue from the entries of a checkpoint of the same configuration and data; messages name its `source`.

        Raises:
            ValueError: it is of newer code or of a list of another length, contains weights only, or does not fit the
                network or the optimizer.
        """
        if state.get("format", FORMAT) > FORMAT:
            raise ValueError(f"{source} has format {state['format']}, this code reads {FORMAT}; update the code")
        if absent := [key for key in REQUIRED if key not in state]:
            raise ValueError(
                f"{source} cannot be resumed, it lacks {', '.join(absent)}; to start a new run from its weights, give "
                "it as TRAIN.CHECKPOINT_FILE_PATH with another OUTPUT_DIR"
            )
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
        try:
            self._load_parts(state)
        except torch.OutOfMemoryError:
            raise  # no fault of the checkpoint, which must not be moved away for it
        except (RuntimeError, ValueError, TypeError, LookupError, AttributeError) as error:
            raise ValueError(
                f"{source} cannot be resumed ({' '.join(str(error).split())[:300]}): move it away to continue without "
                "it, or choose another OUTPUT_DIR"
            ) from error
        self.step, self.best = state["step"], state["best"]
        self.nonfinite, self.since_best = state.get("nonfinite", 0), state.get("since_best", 0)
        self.epochs_closed = state.get("epochs_closed", self.epoch)

    def _load_parts(self, state: Mapping[str, Any]) -> None:
        self.model.load_state_dict(state["model_state"])
        if self.ema:
            self.ema.module.load_state_dict(state["ema_state"])
        load_optimizer_state(self.optimizer, state["optimizer_state"])
        if state["scaler_state"] and self.scaler.is_enabled():  # only if both train in float16
            numbers = {key: value + 0 for key, value in state["scaler_state"].items()}  # an error for other values
            self.scaler.load_state_dict(numbers)
        self.meter.load_state_dict(state["meter_state"])


def running_statistics(model: nn.Module) -> list[Tensor]:
    """Return the buffers that BatchNorm changes in a training step; none if it is frozen."""
    norms = (module for module in model.modules() if isinstance(module, _NormBase) and module.training)
    return [buffer for norm in norms for buffer in norm.buffers(recurse=False)]
