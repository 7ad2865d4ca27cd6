"""Names, order and pruning of checkpoint files; atomic writing."""

from __future__ import annotations

import os

import pytest
import torch

from slowfast.engine.checkpoint import best_checkpoint, last_checkpoint, list_checkpoints, save_checkpoint
from slowfast.utils.io import atomic_write, load_tensors


def state(step: int) -> dict:
    return {"step": step, "steps_per_epoch": 10, "model_state": {"w": torch.full((2,), float(step))}}


def test_order_best_and_pruning(tmp_path):
    folder = str(tmp_path)
    assert last_checkpoint(folder) is None
    for step in (10, 15, 20, 100):
        save_checkpoint(state(step), folder, keep=3, best=step == 15)
    names = [path.name for path in list_checkpoints(folder)]
    assert names == [
        "checkpoint_epoch_00001_step_000005.pyth",
        "checkpoint_epoch_00002.pyth",
        "checkpoint_epoch_00010.pyth",
    ]
    assert load_tensors(list_checkpoints(folder)[-1])["step"] == 100
    assert load_tensors(best_checkpoint(folder))["step"] == 15
    save_checkpoint(state(110), folder, regular=False, best=True)
    assert (
        load_tensors(best_checkpoint(folder))["step"] == 110
        and load_tensors(list_checkpoints(folder)[-1])["step"] == 100
    )


def test_atomic_write_leaves_the_old_file_when_it_fails(tmp_path):
    path = tmp_path / "file"
    path.write_bytes(b"old")
    with pytest.raises(RuntimeError), atomic_write(path) as file:
        file.write(b"half")
        raise RuntimeError
    assert path.read_bytes() == b"old" and os.listdir(tmp_path) == ["file"]
