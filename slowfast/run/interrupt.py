"""Being asked to stop: signals set a flag, training saves at the end of its step and raises `Interruption`."""

from __future__ import annotations

import contextlib
import os
import signal
import sys
from types import FrameType
from typing import NoReturn

# Exit code of a job that was asked to stop and has saved: sysexits' EX_TEMPFAIL, "start it again".
EXIT_REQUEUE = 75

# Exit code of a second Ctrl-C: that of a shell.
EXIT_INTERRUPTED = 130

SIGNALS = (signal.SIGTERM, signal.SIGINT, signal.SIGUSR1, signal.SIGUSR2)

# What a first and a second Ctrl-C print.
ASKED = "asked to stop, at the end of this step; a second Ctrl-C leaves at once"
INTERRUPTED = "interrupted; the same command goes on from the last checkpoint"

# Seconds after a second Ctrl-C in which the program can end in order.
PATIENCE = 10

_received: list[signal.Signals] = []


class Interruption(Exception):
    """The job was asked to stop; the same command goes on.

    Args:
        reason: who asked, for a person.
        saved: nothing is lost; otherwise all since the last checkpoint may be.
    """

    def __init__(self, reason: str, saved: bool = True) -> None:
        super().__init__(reason)
        self.reason, self.saved = reason, saved

    @property
    def outlook(self) -> str:
        """What a person may expect of the same command."""
        if self.saved:
            return "everything is saved, the same command goes on from there"
        return "the same command goes on from the last checkpoint"


def listen() -> None:
    """From now on the signals of people (Ctrl-C), schedulers and time limits only set `received`.

    A second Ctrl-C does not wait: it raises KeyboardInterrupt where the program is.
    """
    _received.clear()
    for number in SIGNALS:
        signal.signal(number, _handle)


def ignore() -> None:
    """From now on, to the end of the process, requests to stop are ignored: the job is over and ends by itself.

    Python gives signals back to the system while it ends, which would make a failure of a success.
    """
    for number in SIGNALS:
        signal.signal(number, signal.SIG_IGN)


def received() -> signal.Signals | None:
    """The first signal since `listen`, or None."""
    return _received[0] if _received else None


def _handle(number: int, _: FrameType | None) -> None:
    again = number == signal.SIGINT and signal.SIGINT in _received
    _received.append(signal.Signals(number))
    if number == signal.SIGINT and not again and "RANK" not in os.environ:  # one process of a job tells
        with contextlib.suppress(OSError):
            os.write(2, f"\n{ASKED}\n".encode())  # print may be what was interrupted
    if again:
        signal.signal(signal.SIGALRM, _leave_anyway)
        signal.alarm(PATIENCE)
        raise KeyboardInterrupt


def _leave_anyway(*_: object) -> NoReturn:
    """The exception got lost: in a destructor, for example, Python only prints it."""
    with contextlib.suppress(OSError, RuntimeError):  # nobody reads any more, or it came within another print
        print(INTERRUPTED, file=sys.stderr, flush=True)
    leave()


def leave() -> NoReturn:
    """End this process at once: nobody waits for its threads, such as one that writes a checkpoint."""
    for stream in (sys.stdout, sys.stderr):
        with contextlib.suppress(OSError):
            stream.flush()
    os._exit(EXIT_INTERRUPTED)
