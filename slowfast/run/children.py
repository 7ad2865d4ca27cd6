"""Forked processes, such as the workers of a loader, obey the process that forked them and never outlive it."""

from __future__ import annotations

import ctypes
import multiprocessing
import os
import signal
import sys
from collections.abc import Iterator
from contextlib import contextmanager

_PR_SET_PDEATHSIG = 1
_libc = ctypes.CDLL(None) if sys.platform == "linux" else None

# A scheduler and a terminal send these to every process of a job; what a worker has to do about it, its parent decides.
_FOR_PARENTS = (signal.SIGINT, signal.SIGTERM, signal.SIGUSR1, signal.SIGUSR2)

_active = False
_registered = False


def _after_fork() -> None:
    if not _active:
        return
    signal.pthread_sigmask(signal.SIG_BLOCK, _FOR_PARENTS)
    if _libc:
        _libc.prctl(_PR_SET_PDEATHSIG, signal.SIGKILL)


@contextmanager
def end_with_this_process() -> Iterator[None]:
    """Children forked within live no longer than the context, however this process ends (on Linux, even by SIGKILL)."""
    global _active, _registered
    if not _registered:
        os.register_at_fork(after_in_child=_after_fork)
        _registered = True
    before = set(multiprocessing.active_children())
    _active = True
    try:
        yield
    finally:
        _active = False
        watched = signal.signal(signal.SIGCHLD, signal.SIG_DFL)  # PyTorch's handler takes a worker's end for an error
        for child in set(multiprocessing.active_children()) - before:
            child.kill()  # one that hangs in a read does not hear anything else
            child.join(5)
        signal.signal(signal.SIGCHLD, watched)
