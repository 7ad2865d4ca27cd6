"""A fault or a fact that one process finds reaches all processes."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import pytest

from slowfast.utils.distributed import SharedError, on_main

ROOT = Path(__file__).parents[2]


@pytest.mark.slow
def test_two_processes_agree(tmp_path):
    command = [sys.executable, str(Path(__file__).with_name("agreement.py")), str(tmp_path)]
    environment = {**os.environ, "OMP_NUM_THREADS": "1", "PYTHONPATH": str(ROOT)}
    done = subprocess.run(command, cwd=ROOT, env=environment, capture_output=True, text=True, timeout=100)
    assert done.returncode == 0, done.stdout + done.stderr


def test_one_process_agrees_with_itself():
    assert on_main(lambda: 3) == 3
    with pytest.raises(SharedError, match="invalid literal"):
        on_main(lambda: int("x"))
    with pytest.raises(FileNotFoundError):
        on_main(lambda: Path("/nothing").read_text())
