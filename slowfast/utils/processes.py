"""End processes with the process that started them, and count the cores that they may use; import no PyTorch."""

from __future__ import annotations

import contextlib
import ctypes
import math
import os
import signal
import sys
import threading
from multiprocessing import parent_process
from pathlib import Path

_PR_SET_PDEATHSIG = 1  # linux/prctl.h
_libc = ctypes.CDLL(None) if sys.platform == "linux" else None


def usable_cores() -> int:
    """Return the cores that this process may use; a job or a container often has fewer than the machine."""
    cores = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1
    return max(1, math.ceil(min(cores, _quota())))


def _quota(groups: Path = Path("/proc/self/cgroup"), files: Path = Path("/sys/fs/cgroup")) -> float:
    """Return the processor time per time that the control groups of this process allow; infinity without a limit."""
    limits = [math.inf]
    with contextlib.suppress(OSError):  # systems without control groups
        for line in groups.read_text(errors="surrogateescape").splitlines():
            _, controllers, group = line.split(":", 2)  # "0::/GROUP" in version 2, "1:cpu,cpuacct:/GROUP" in version 1
            if not controllers or "cpu" in controllers.split(","):
                # some systems order the controllers in the name of the folder differently, and link "cpu" to it
                roots = {files / controllers, files / ("cpu" if controllers else "")}
                # within a container the group may be that of the host, and the files those of the root
                inner = (Path(group[1:]), *Path(group[1:]).parents)
                limits += [_limit(root / name) for root in roots for name in inner]
    return min(limits)


def _limit(group: Path) -> float:
    """Return the limit that the files of one control group contain."""
    with contextlib.suppress(OSError, ValueError):  # no such file, or "max"
        quota, period = (group / "cpu.max").read_text().split()
        return int(quota) / int(period)
    with contextlib.suppress(OSError, ValueError):
        quota = int((group / "cpu.cfs_quota_us").read_text())  # -1 without a limit
        return quota / int((group / "cpu.cfs_period_us").read_text()) if quota > 0 else math.inf
    return math.inf


def be_killed_with_parent() -> None:
    """Let Linux kill this process when the thread that started it exits, even while this process blocks."""
    if _libc:
        _libc.prctl(_PR_SET_PDEATHSIG, signal.SIGKILL)


def exit_with_parent() -> None:
    """Exit when the process that started this one with `multiprocessing` exits, even with a fork server."""
    threading.Thread(target=_wait_for_parent, daemon=True).start()


def _wait_for_parent() -> None:
    parent = parent_process()
    assert parent is not None
    parent.join()
    os._exit(1)
