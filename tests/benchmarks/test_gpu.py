"""The unattended run of all checks works without a GPU, on small networks."""

from __future__ import annotations

import json
import os
import subprocess
from pathlib import Path

import pytest
from run_fixtures import write_python

ROOT = Path(__file__).parents[2]


def run(out: Path, *options: str, **variables: str) -> subprocess.CompletedProcess:
    command = ["bash", "benchmarks/gpu.sh", str(out), *options]
    environment = {**os.environ, "OMP_NUM_THREADS": "1", **variables}
    return subprocess.run(command, cwd=ROOT, env=environment, capture_output=True, text=True)


@pytest.mark.slow
def test_every_part_leaves_its_record(warm, tmp_path):
    write_python(tmp_path / "python", warm)
    done = run(tmp_path, "--device", "cpu", "--quick", PYTHON=str(tmp_path / "python"))
    parts = {part["part"]: part for part in json.loads((tmp_path / "summary.json").read_text())["parts"]}
    assert {name: part["exit_code"] for name, part in parts.items()} == dict.fromkeys(
        ("probe", "tests", "demo", "uniformer_s16", "training"), 0
    ), (tmp_path / "summary.txt").read_text()
    assert done.returncode == 0
    for name in ("probe", "demo", "uniformer_s16", "training"):
        assert json.loads((tmp_path / f"{name}.json").read_text())
    training = json.loads((tmp_path / "training.json").read_text())
    assert min(training["seconds"].values()) > 0 and set(training["seconds"]) == {"bare", "loop", "loaded"}


def test_a_failed_part_does_not_stop_the_others(tmp_path):
    done = run(tmp_path, "--device", "cpu", "--quick", PYTHON="false")
    assert done.returncode == 1
    parts = [json.loads(line) for line in (tmp_path / "parts").read_text().splitlines()]
    assert len(parts) == 5 and all(part["exit_code"] == 1 for part in parts)
