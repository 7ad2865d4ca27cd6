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
@pytest.mark.parametrize("network", ["demo"])
def test_figures_of_both_networks_and_their_difference(network, tmp_path):
    command = [sys.executable, "benchmarks/model.py", network, "--batch", "2", "--device", "cpu", "--rounds", "1"]
    environment = {**os.environ, "PYTHONPATH": str(ROOT)}
    out = [*command, "--threads", "1", "--profile", "--json", str(tmp_path / "out.json")]
    printed = subprocess.run(out, cwd=ROOT, env=environment, check=True, capture_output=True, text=True).stdout
    assert "share of copies" in printed
    record = json.loads((tmp_path / "out.json").read_text())
    assert max(record["errors"]["ours"].values()) < 1e-4 and record["threads"] == 1
    for kinds in record["figures"].values():
        for values in kinds.values():
            assert values["clips_per_s"] > 0 and values["cpu_s"] > 0 and 0 < values["share_of_matrix_rate"] < 1
            assert values["peak_gib"] > 0 or not sys.platform.startswith("linux")
