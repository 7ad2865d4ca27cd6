"""Being asked to stop: signals set a flag, training saves at the end of its step and raises `Interruption`."""

from __future__ import annotations

import signal
from types import FrameType

# Exit code of a job that was asked to stop and has saved: sysexits' EX_TEMPFAIL, "start it again".
EXIT_REQUEUE = 75

SIGNALS = (signal.SIGTERM, signal.SIGINT, signal.SIGUSR1, signal.SIGUSR2)

_received: list[signal.Signals] = []


class Interruption(Exception):
    """The job was asked to stop and has saved what it could; the same command goes on from there.

    Args:
        reason: who asked, for a person.
    """

    def __init__(self, reason: str) -> None:
        super().__init__(reason)
        self.reason = reason


def listen() -> None:
    """From now on the signals of people (Ctrl-C), schedulers and time limits only set `received`.

    A second Ctrl-C does not wait: it raises KeyboardInterrupt where the program is.
    """
    _received.clear()
    for number in SIGNALS:
        signal.signal(number, _handle)


def received() -> signal.Signals | None:
    """The first signal since `listen`, or None."""
    return _received[0] if _received else None


def _handle(number: int, _: FrameType | None) -> None:
    again = number == signal.SIGINT and signal.SIGINT in _received
    _received.append(signal.Signals(number))
    if again:
        raise KeyboardInterrupt
