"""The state of an optimizer is divided among processes; weights and checkpoints stay the same."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import pytest

from slowfast.optim.sharded import divide

ROOT = Path(__file__).parents[2]


@pytest.mark.slow
def test_sharded_training_equals_the_other_and_resumes_across_both():
    command = [sys.executable, str(Path(__file__).with_name("sharding.py"))]
    environment = {**os.environ, "OMP_NUM_THREADS": "1", "PYTHONPATH": str(ROOT)}
    done = subprocess.run(command, cwd=ROOT, env=environment, capture_output=True, text=True, timeout=200)
    assert done.returncode == 0, done.stdout + done.stderr


def test_parts_have_about_the_same_size():
    sizes = [7, 100, 1, 1, 50, 49, 3]
    parts = divide(sizes, 2)
    sums = [sum(size for size, part in zip(sizes, parts, strict=True) if part == number) for number in (0, 1)]
    assert sorted(sums) == [105, 106] and divide(sizes, 1) == [0] * 7
    assert set(divide([5], 3)) == {0}
