"""What run_net.py prints before a job starts, and what it imports for that."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[2]
DEMO = ("tools/run_net.py", "--cfg", "exp/demo/config.yaml")


def test_show_does_not_import_pytorch():
    command = [sys.executable, "-X", "importtime", *DEMO, "--show"]
    done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True)
    imported = {line.rpartition("|")[2].strip() for line in done.stderr.splitlines()}
    assert done.returncode == 0 and "slowfast.config" in imported and "torch" not in imported


@pytest.mark.parametrize(
    ("pairs", "noted"),
    [
        (("TRAIN.BATCH_SIZE", "4"), True),
        (("TRAIN.BATCH_SIZE", "4", "SOLVER.ACCUMULATION_STEPS", "4"), False),
        (("TRAIN.BATCH_SIZE", "4", "SOLVER.BASE_LR", "1e-3"), False),
        (("TRAIN.BATCH_SIZE", "4", "TRAIN.ENABLE", "False"), False),
    ],
)
def test_a_rate_for_other_steps_is_noted_before_the_training(call, tmp_path, pairs, noted):
    done = call(*DEMO, "OUTPUT_DIR", tmp_path / "out", "DATA.PATH_TO_DATA_DIR", tmp_path, *pairs)  # without lists
    assert done.returncode == 2 and ("SOLVER.ACCUMULATION_STEPS 4," in done.stderr) == noted
