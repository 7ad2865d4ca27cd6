"""End processes with the process that started them, and count the cores that they may use; import no PyTorch."""

from __future__ import annotations

import ctypes
import os
import signal
import sys
import threading
from multiprocessing import parent_process

_PR_SET_PDEATHSIG = 1  # linux/prctl.h
_libc = ctypes.CDLL(None) if sys.platform == "linux" else None


def usable_cores() -> int:
    """Return the cores that this process may use; a job or a container often has fewer than the machine."""
    return len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1


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
