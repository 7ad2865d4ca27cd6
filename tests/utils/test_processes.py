"""The cores that a process may use are those of its container."""

from __future__ import annotations

import math
import os
import subprocess
import sys
from pathlib import Path

import pytest

from slowfast.utils.processes import _quota, usable_cores

ROOT = Path(__file__).parents[2]
COUNT = "from slowfast.utils.processes import usable_cores; print(usable_cores())"


@pytest.fixture
def group():
    """Return a control group without a limit, and a function that limits its processor time to a number of cores."""
    one, two = Path("/sys/fs/cgroup/cpu"), Path("/sys/fs/cgroup")
    folder = (one if (one / "cpu.cfs_quota_us").exists() else two) / f"slowfast_test_{os.getpid()}"

    def limit(cores: float) -> None:
        if folder.parent == one:
            (folder / "cpu.cfs_quota_us").write_text(str(int(100_000 * cores)))
        else:
            (folder / "cpu.max").write_text(f"{int(100_000 * cores)} 100000")

    try:
        folder.mkdir()
        limit(1000)
    except OSError as error:
        if folder.exists():
            folder.rmdir()
        pytest.skip(f"no control group can be made here: {error}")
    yield folder, limit
    folder.rmdir()


@pytest.mark.parametrize(("cores", "usable"), [(1, 1), (0.3, 1), (1.5, 2), (1000, 10**6)])
def test_the_processor_time_of_a_container_counts(cores, usable, group):
    folder, limit = group
    limit(cores)
    enter = ["sh", "-c", f'echo $$ > {folder}/cgroup.procs && exec "$@"', "sh"]
    done = subprocess.run([*enter, sys.executable, "-c", COUNT], cwd=ROOT, capture_output=True, text=True, check=True)
    assert int(done.stdout) == min(usable, usable_cores())


@pytest.mark.parametrize(
    ("groups", "limits", "quota"),
    [
        ("0::/a/b\n", {"a/b/cpu.max": "max 100000", "a/cpu.max": "150000 100000"}, 1.5),
        ("0::/a/b\n", {"a/b/cpu.max": "100000 100000", "a/cpu.max": "300000 100000"}, 1),
        ("0::/\n", {"cpu.max": "max 100000", "a/cpu.max": "100000 100000"}, math.inf),
        ("0::/../of_the_host\n", {"cpu.max": "200000 100000"}, 2),
        ("2:cpu,cpuacct:/a\n1:cpuset:/b\n0::/\n", {"cpu,cpuacct/a": 3, "cpuset/b": 1}, 3),
        ("4:cpuacct,cpu:/a\n", {"cpu/a": 3, "cpu": -1}, 3),  # CentOS 7
        ("4:cpuacct:/a\n", {"cpuacct/a": 3}, math.inf),
    ],
)
def test_the_lowest_limit_of_the_nested_groups_counts(groups, limits, quota, tmp_path):
    (tmp_path / "groups").write_text(groups)
    for path, limit in limits.items():
        folder = (tmp_path / path).parent if path.endswith("cpu.max") else tmp_path / path
        folder.mkdir(parents=True, exist_ok=True)
        if isinstance(limit, str):
            (folder / "cpu.max").write_text(f"{limit}\n")
        else:
            (folder / "cpu.cfs_quota_us").write_text(f"{max(-1, limit * 50_000)}\n")
            (folder / "cpu.cfs_period_us").write_text("50000\n")
    assert _quota(tmp_path / "groups", tmp_path) == quota
    assert _quota(tmp_path / "none", tmp_path) == math.inf


def test_cores_of_the_affinity_are_usable():
    first = min(os.sched_getaffinity(0))
    command = ["taskset", "-c", str(first), sys.executable, "-c", COUNT]
    assert subprocess.run(command, cwd=ROOT, capture_output=True, text=True, check=True).stdout == "1\n"
