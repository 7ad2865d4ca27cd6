"""The benchmark of a network runs, and compares the networks that it measures."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[2]


@pytest.mark.slow
@pytest.mark.parametrize("experiment", ["demo", "demo_v2"])
def test_figures_of_both_networks_and_their_difference(experiment, tmp_path):
    command = [sys.executable, "benchmarks/model.py", experiment, "--batch", "2", "--device", "cpu", "--rounds", "1"]
    environment = {**os.environ, "PYTHONPATH": str(ROOT)}
    subprocess.run([*command, "--json", str(tmp_path / "out.json")], cwd=ROOT, env=environment, check=True)
    record = json.loads((tmp_path / "out.json").read_text())
    assert max(record["errors"].values()) < 1e-5
    for kinds in record["figures"].values():
        for values in kinds.values():
            assert values["clips_per_s"] > 0 and values["cpu_s"] > 0 and 0 < values["share_of_matrix_rate"] < 1
