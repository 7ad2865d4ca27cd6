"""A process that makes no progress writes down where it is and ends, so that nobody waits for it without a word."""

from __future__ import annotations

import faulthandler
import multiprocessing
import os
import sys
import threading
import time
import traceback
from pathlib import Path

from slowfast.utils.distributed import who

# Exit code of a process that hung, that of timeout(1).
EXIT_HUNG = 124

# Seconds after which C code ends a process whose Python cannot: something holds the interpreter, or the disk of the
# report hangs too.
LAST_RESORT = 30.0

_PACKAGE = str(Path(__file__).parents[1])


class _Watchdog(threading.Thread):
    def __init__(self) -> None:
        super().__init__(name="watchdog", daemon=True)
        self.pid = os.getpid()  # a forked child has a copy of this object and no thread
        self.order: tuple[float, float, Path] | None = None  # deadline, seconds, report
        self.start()

    def run(self) -> None:
        while True:
            time.sleep(0.5)
            order = self.order
            if order and time.monotonic() >= order[0]:
                _give_up(order[1], order[2])


_watchdog: _Watchdog | None = None


def watch(seconds: float, path: str | os.PathLike) -> None:
    """Promise to call again, or `unwatch`, within `seconds`; a process that does not is ended with `EXIT_HUNG`.

    Args:
        seconds: until the promise is broken; each call starts anew.
        path: file for the stacks of all threads; it is written only then.
    """
    global _watchdog
    if _watchdog is None or _watchdog.pid != os.getpid():
        _watchdog = _Watchdog()
    _watchdog.order = (time.monotonic() + seconds, seconds, Path(path))
    faulthandler.dump_traceback_later(seconds + LAST_RESORT, exit=True, file=sys.__stderr__ or 2)


def progress() -> None:
    """Renew the promise of `watch`, if there is one; cheap enough for every batch."""
    if _watchdog is None or _watchdog.pid != os.getpid() or _watchdog.order is None:
        return
    deadline, seconds, path = _watchdog.order
    if time.monotonic() - (deadline - seconds) >= min(1.0, seconds / 10):
        watch(seconds, path)


def unwatch() -> None:
    """The promise of `watch` no longer holds."""
    if _watchdog:
        _watchdog.order = None
    faulthandler.cancel_dump_traceback_later()


def _give_up(seconds: float, path: Path) -> None:
    main = threading.main_thread().ident
    stack = traceback.extract_stack(sys._current_frames()[main]) if main else []
    frame = next((frame for frame in reversed(stack) if frame.filename.startswith(_PACKAGE)), stack[-1])
    message = (
        f"{who()} made no progress for {seconds:g} s (DIST_TIMEOUT): it is in {frame.name} at {frame.filename}:"
        f"{frame.lineno}, {frame.line}; the stacks of all its threads are in {path}"
    )
    print(f"error: {message}", file=sys.stderr, flush=True)
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        with open(path, "w", encoding="utf-8") as file:
            print(message, file=file, flush=True)
            faulthandler.dump_traceback(file, all_threads=True)
    except OSError as error:
        print(f"error: {path} cannot be written ({error})", file=sys.stderr)
        faulthandler.dump_traceback(sys.__stderr__ or 2, all_threads=True)
    for child in multiprocessing.active_children():
        child.kill()
    os._exit(EXIT_HUNG)
