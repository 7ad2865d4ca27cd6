"""End forked processes, such as the workers of a loader, with the process that forked them."""

from __future__ import annotations

import functools
import multiprocessing
import os
import signal
import sys
import threading
from collections.abc import Generator
from contextlib import contextmanager
from types import TracebackType

from tqdm import tqdm

from slowfast.run.interrupt import SIGNALS
from slowfast.utils.processes import be_killed_with_parent

_active = False


def use_own_lock() -> None:
    """Give the progress bars, above which the log is printed, a lock of this process only.

    A fork inherits tqdm's lock as it is: it would block for ever if a thread of its parent was printing. In a spawned
    process, that lock is also a file in /dev/shm, which SIGKILL of the whole job would leave there.
    """
    tqdm.set_lock(threading.RLock())


def _after_fork() -> None:
    if not _active:
        return
    use_own_lock()
    # schedulers and terminals send these signals to every process of a job; only the parent handles them
    signal.pthread_sigmask(signal.SIG_BLOCK, SIGNALS)
    be_killed_with_parent()
    sys.excepthook = _report


def _report(kind: type[BaseException], error: BaseException, trace: TracebackType | None) -> None:
    """Print an exception, except the one that is raised if the parent exits while a thread sends it tensors."""
    if not issubclass(kind, ConnectionError):
        sys.__excepthook__(kind, error, trace)


@functools.cache
def _register() -> None:
    """Register the hook; Python has no way to remove it."""
    os.register_at_fork(after_in_child=_after_fork)


@contextmanager
def end_with_this_process() -> Generator[None]:
    """End children forked within the context at its end, or when this process exits (on Linux, even by SIGKILL)."""
    global _active
    _register()
    before = set(multiprocessing.active_children())
    _active = True
    try:
        yield
    finally:
        _active = False
        # PyTorch's handler treats the exit of a worker as an error
        watched = signal.signal(signal.SIGCHLD, signal.SIG_DFL)
        for child in set(multiprocessing.active_children()) - before:
            child.kill()  # one that blocks in a read handles nothing else
            child.join(5)
        signal.signal(signal.SIGCHLD, watched)
