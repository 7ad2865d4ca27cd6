"""Checkpoint files of a run: named by progress, written atomically, pruned."""

from __future__ import annotations

import logging
import re
from pathlib import Path
from typing import Any

import torch

from slowfast.utils.io import atomic_write, load_tensors

logger = logging.getLogger(__name__)

_NAME = re.compile(r"checkpoint_epoch_(\d+)(?:_step_(\d+))?\.pyth$")


def checkpoint_dir(output_dir: str) -> Path:
    """Folder of the checkpoints of a run."""
    return Path(output_dir) / "checkpoints"


def best_checkpoint(output_dir: str) -> Path:
    """The checkpoint with the best validation top-1."""
    return checkpoint_dir(output_dir) / "best.pyth"


def list_checkpoints(output_dir: str) -> list[Path]:
    """Checkpoints of a run from the oldest to the newest, the best one not among them."""
    found = []
    for path in checkpoint_dir(output_dir).glob("checkpoint_epoch_*.pyth"):
        if match := _NAME.match(path.name):
            found.append((int(match[1]), int(match[2] or 0), path))
    return [path for *_, path in sorted(found)]


def last_checkpoint(output_dir: str) -> Path | None:
    """The newest checkpoint of a run, or None."""
    return (list_checkpoints(output_dir) or [None])[-1]


def resumable_checkpoint(output_dir: str) -> Path | None:
    """The newest checkpoint that can be read, None if there is none; a torn one is passed over with a warning.

    Raises:
        ValueError: there are checkpoints, and none can be read.
    """
    checkpoints = list_checkpoints(output_dir)
    for path in reversed(checkpoints):
        try:
            load_tensors(path)
        except ValueError as error:
            logger.warning("going on from an older checkpoint: %s", error)
        else:
            return path
    if checkpoints:
        raise ValueError(
            f"none of the checkpoints in {checkpoint_dir(output_dir)} can be read; delete them to start anew"
        )
    return None


def save_checkpoint(
    state: dict[str, Any], output_dir: str, keep: int = 0, regular: bool = True, best: bool = False
) -> None:
    """Write `state` under the name of its progress, as the best, or both.

    Args:
        state: from `TrainState.state_dict`, with anything else of plain containers and tensors.
        keep: how many of the newest to leave; 0 leaves all.
        regular: write the checkpoint that a resume finds.
        best: replace the best checkpoint.
    """
    epochs, steps = divmod(state["step"], state["steps_per_epoch"])
    name = f"checkpoint_epoch_{epochs:05d}" + (f"_step_{steps:06d}" if steps else "") + ".pyth"
    path = checkpoint_dir(output_dir) / name
    targets = [path] * regular + [best_checkpoint(output_dir)] * best
    for target in targets:
        with atomic_write(target) as file:
            torch.save(state, file)
    if keep:
        for old in list_checkpoints(output_dir)[:-keep]:
            old.unlink()
    logger.info("saved %s", " and ".join(map(str, targets)))
