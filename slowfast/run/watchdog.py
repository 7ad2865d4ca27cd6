"""End a process that makes no progress: at last with a report of its position, soon if another one has failed."""

from __future__ import annotations

import faulthandler
import logging
import multiprocessing
import os
import sys
import threading
import time
import traceback
from collections.abc import Callable, Generator
from contextlib import contextmanager
from pathlib import Path
from typing import NoReturn

from slowfast.utils.distributed import known_failure, who

logger = logging.getLogger(__name__)

# Exit code of a process that hung, that of timeout(1).
EXIT_HUNG = 124

# Seconds after which C code ends a process that Python cannot end: something holds the interpreter, or the disk of the
# report hangs too.
LAST_RESORT = 30.0

# Seconds without progress after which a process asks whether another one has failed, and those that it gets after that.
QUIET = 10.0

_PACKAGE = str(Path(__file__).parents[1])


class _Watchdog(threading.Thread):
    def __init__(self, seconds: float, report: Path) -> None:
        super().__init__(name="watchdog", daemon=True)
        self.seconds, self.report = seconds, report
        self.done = threading.Event()
        self.renew()

    def renew(self) -> None:
        self.renewed = time.monotonic()
        faulthandler.dump_traceback_later(self.seconds + LAST_RESORT, exit=True, file=sys.__stderr__ or 2)

    def run(self) -> None:
        while not self.done.wait(min(0.5, self.seconds)):
            if time.monotonic() >= self.renewed + self.seconds:
                _exit_with_report(self.seconds, self.report)

    def follow_others(self, leave: Callable[[str], bool]) -> None:
        """Exit after the first failure of the group, if this process makes no progress.

        An exchange of gloo fails at once when a process has exited. One of NCCL need not, nor does any other wait.
        """
        failure = ""
        while not self.done.wait(QUIET):
            if time.monotonic() < self.renewed + QUIET:
                failure = ""
            elif not failure:
                failure = known_failure()
            elif leave(failure):
                logger.error("%s ends in %s, after %s", who(), _position(), failure)
                _exit(1)
            else:
                failure = ""


_watchdog: _Watchdog | None = None


@contextmanager
def watching(seconds: float, report: Path, leave: Callable[[str], bool] = lambda _: True) -> Generator[None]:
    """Exit with `EXIT_HUNG` if `progress` is not called for `seconds` within the context.

    Args:
        seconds: longest time between two calls.
        report: file for the stacks of all threads; it is written only then.
        leave: called with the first failure of another process; this one exits with 1 if it returns True.
    """
    global _watchdog
    _watchdog = _Watchdog(seconds, report)
    _watchdog.start()
    threading.Thread(target=_watchdog.follow_others, args=(leave,), name="failures", daemon=True).start()
    try:
        yield
    finally:
        _watchdog.done.set()
        _watchdog = None
        faulthandler.cancel_dump_traceback_later()


def progress() -> None:
    """Report progress to `watching`, if it is active; cheap enough for every batch."""
    # a forked child has a copy of the object, and no thread
    if _watchdog and _watchdog.is_alive() and time.monotonic() > _watchdog.renewed + min(1.0, _watchdog.seconds / 10):
        _watchdog.renew()


def _position() -> str:
    """Return the innermost line of this package, else of any code, that the main thread executes."""
    main = threading.main_thread().ident
    stack = traceback.extract_stack(sys._current_frames()[main]) if main else []
    frame = next((frame for frame in reversed(stack) if frame.filename.startswith(_PACKAGE)), stack[-1])
    return f"{frame.name} at {frame.filename}:{frame.lineno}, {frame.line}"


def _exit_with_report(seconds: float, report: Path) -> None:
    message = (
        f"{who()} made no progress for {seconds:g} s (DIST_TIMEOUT): it is in {_position()}; the stacks of all its "
        f"threads are in {report}"
    )
    print(f"error: {message}", file=sys.stderr, flush=True)
    try:
        report.parent.mkdir(parents=True, exist_ok=True)
        with open(report, "w", encoding="utf-8") as file:
            print(message, file=file, flush=True)
            faulthandler.dump_traceback(file, all_threads=True)
    except OSError as error:
        print(f"error: {report} cannot be written ({error})", file=sys.stderr)
        faulthandler.dump_traceback(sys.__stderr__ or 2, all_threads=True)
    _exit(EXIT_HUNG)


def _exit(code: int) -> NoReturn:
    for child in multiprocessing.active_children():
        child.kill()
    os._exit(code)
