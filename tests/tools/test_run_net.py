"""What run_net.py imports before a job starts."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

ROOT = Path(__file__).parents[2]
DEMO = ("tools/run_net.py", "--cfg", "exp/demo/config.yaml")


def test_show_does_not_import_pytorch():
    command = [sys.executable, "-X", "importtime", *DEMO, "--show"]
    done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True)
    imported = {line.rpartition("|")[2].strip() for line in done.stderr.splitlines()}
    assert done.returncode == 0 and "slowfast.config" in imported and "torch" not in imported
