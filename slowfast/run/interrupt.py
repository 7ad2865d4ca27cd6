"""Stop on request: signals set a flag, training saves at the end of its step and raises `Interruption`."""

from __future__ import annotations

import contextlib
import multiprocessing
import os
import signal
import sys
from types import FrameType
from typing import NoReturn

# Exit code of a job that stopped on request and has saved: sysexits' EX_TEMPFAIL, "start it again".
EXIT_REQUEUE = 75

# Exit code of a second Ctrl-C: that of a shell.
EXIT_INTERRUPTED = 130

# SIGHUP: the terminal was closed; SIGXCPU: the soft limit of processor time (ulimit -t) was reached.
SIGNALS = (signal.SIGTERM, signal.SIGINT, signal.SIGUSR1, signal.SIGUSR2, signal.SIGHUP, signal.SIGXCPU)

_received: list[signal.Signals] = []


class Interruption(Exception):
    """The job stops on request; the same command continues it.

    Args:
        reason: the request, for a message.
        saved: nothing is lost; otherwise all since the last checkpoint may be.
    """

    def __init__(self, reason: str, saved: bool = True) -> None:
        super().__init__(reason)
        self.saved = saved


def listen() -> None:
    """Let the signals of Ctrl-C, schedulers and time limits only set `received` from now on.

    A second Ctrl-C ends this process and its children at once. A SIGHUP that nohup ignores stays ignored.
    """
    _received.clear()
    for number in SIGNALS:
        if number != signal.SIGHUP or signal.getsignal(number) != signal.SIG_IGN:
            signal.signal(number, _handle)


def ignore() -> None:
    """Ignore requests to stop until the process exits, because the job is complete or has saved.

    With the default handlers, which Python restores while it exits, a late signal would turn a success into a failure.
    """
    for number in SIGNALS:
        signal.signal(number, signal.SIG_IGN)


def adopt(number: float) -> None:
    """Count a signal that another process has received as one of this process; 0 is none.

    The main process must know whether to put the job into the queue again. A Ctrl-C comes to each process itself, and
    a second one would end it.
    """
    if number not in (0, signal.SIGINT) and not _received:
        _received.append(signal.Signals(int(number)))


def received() -> signal.Signals | None:
    """Return the first signal since `listen`, or None."""
    return _received[0] if _received else None


def _handle(number: int, _: FrameType | None) -> None:
    again = number == signal.SIGINT and signal.SIGINT in _received
    _received.append(signal.Signals(number))
    if again:
        leave()
    if number == signal.SIGINT:
        _print("stopping after this step; a second Ctrl-C exits at once")
    if number == signal.SIGXCPU:  # it comes again each second, also while a process that has saved exits
        signal.signal(number, signal.SIG_IGN)


def leave() -> NoReturn:
    """Exit at once, without waiting for children and threads, such as one that writes a checkpoint."""
    for child in multiprocessing.active_children():
        child.kill()
    _print("interrupted; the same command continues from the last checkpoint")
    for stream in (sys.stdout, sys.stderr):
        with contextlib.suppress(OSError, RuntimeError):  # the reader has exited, or the signal came within a print
            stream.flush()
    os._exit(EXIT_INTERRUPTED)


def _print(text: str) -> None:
    """Print in one process of a job; the signal may have interrupted another print."""
    if "RANK" not in os.environ:
        with contextlib.suppress(OSError):
            os.write(2, f"\n{text}\n".encode())
