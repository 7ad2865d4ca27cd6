"""The cores that a process may use are those of its container."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import pytest

from slowfast.utils.processes import usable_cores

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


def test_cores_of_the_affinity_are_usable():
    first = min(os.sched_getaffinity(0))
    command = ["taskset", "-c", str(first), sys.executable, "-c", COUNT]
    assert subprocess.run(command, cwd=ROOT, capture_output=True, text=True, check=True).stdout == "1\n"
