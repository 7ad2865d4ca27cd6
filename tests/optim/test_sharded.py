"""The state of an optimizer is divided among processes; weights and checkpoints stay the same."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import pytest
import torch
from torch import nn

from slowfast.config import get_cfg
from slowfast.optim import build
from slowfast.optim.sharded import divide

ROOT = Path(__file__).parents[2]


@pytest.mark.slow
def test_sharded_training_equals_the_other_and_resumes_across_both():
    command = [sys.executable, str(Path(__file__).with_name("sharding.py"))]
    environment = {**os.environ, "OMP_NUM_THREADS": "1", "PYTHONPATH": str(ROOT)}
    done = subprocess.run(command, cwd=ROOT, env=environment, capture_output=True, text=True, timeout=200)
    assert done.returncode == 0, done.stdout + done.stderr


def test_an_optimizer_that_divides_its_groups_is_refused(monkeypatch):
    def one_by_one(groups, solver):
        parts = [{**group, "params": [one]} for group in groups for one in group["params"]]
        return torch.optim.SGD(parts, lr=solver.BASE_LR)

    monkeypatch.setitem(build.OPTIMIZERS, "sgd", one_by_one)
    monkeypatch.setattr(build, "world_size", lambda: 2)  # of a group with one process, which owns all parameters
    cfg = get_cfg()
    cfg.DDP.SHARDING = "zero1"
    model = nn.Sequential(nn.Linear(2, 2), nn.Linear(2, 2))
    with pytest.raises(ValueError, match=r"sgd.* 4 .* 1, .*DDP\.SHARDING none"):
        build.build_optimizer(model, cfg)


def test_parts_have_about_the_same_size():
    sizes = [7, 100, 1, 1, 50, 49, 3]
    parts = divide(sizes, 2)
    sums = [sum(size for size, part in zip(sizes, parts, strict=True) if part == number) for number in (0, 1)]
    assert sorted(sums) == [105, 106] and divide(sizes, 1) == [0] * 7
    assert set(divide([5], 3)) == {0}
