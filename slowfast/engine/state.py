"""All that a training run resumes from, in one place."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import torch
from torch import nn

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

    def load_state_dict(self, state: dict[str, Any], steps_per_epoch: int) -> None:
        """Continue from a checkpoint of the same configuration and data; everything has to be there.

        Raises:
            ValueError: the checkpoint is of newer code, of a list of another length, or only holds weights.
        """
        if state.get("format", FORMAT) > FORMAT:
            raise ValueError(f"the checkpoint has format {state['format']}, this code reads {FORMAT}; update the code")
        absent = [key for key in ("model_state", "optimizer_state", "step", "meter_state") if key not in state]
        if absent:
            raise ValueError(
                f"the checkpoint cannot be resumed, it lacks {', '.join(absent)}; to start a new run from its weights, "
                "give it as TRAIN.CHECKPOINT_FILE_PATH with another OUTPUT_DIR"
            )
        if state["steps_per_epoch"] != steps_per_epoch:
            raise ValueError(
                f"an epoch had {state['steps_per_epoch']} steps when the checkpoint was written and now has "
                f"{steps_per_epoch}: the training list or the batch changed, and with it the schedule. Undo that, or "
                "start a new run from the weights (TRAIN.CHECKPOINT_FILE_PATH) in another OUTPUT_DIR"
            )
        self.model.load_state_dict(state["model_state"])
        self.optimizer.load_state_dict(state["optimizer_state"])
        if state["scaler_state"] and self.scaler.is_enabled():  # it is empty unless both sides train in float16
            self.scaler.load_state_dict(state["scaler_state"])
        if self.ema:
            if state["ema_state"] is None:
                raise ValueError(
                    "EMA.ENABLE is True but the checkpoint holds no averaged weights; use another OUTPUT_DIR"
                )
            self.ema.module.load_state_dict(state["ema_state"])
        self.meter.load_state_dict(state["meter_state"])
        self.step, self.best = state["step"], state["best"]
        self.nonfinite = state.get("nonfinite", 0)
        self.epochs_closed = state.get("epochs_closed", self.step // steps_per_epoch)
