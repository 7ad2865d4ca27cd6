"""Work in processes that can be killed: a file that hangs or crashes its decoder costs one time-out, not the job."""

from __future__ import annotations

import math
import os
import signal
import threading
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from multiprocessing import get_all_start_methods, get_context, parent_process
from multiprocessing.connection import Connection, wait
from time import monotonic
from typing import Any, TypeVar

Task = TypeVar("Task")

# A fork server imports the decoders once: the process that follows a killed one is there at once.
_CONTEXT: Any = get_context("forkserver" if "forkserver" in get_all_start_methods() else "spawn")


@dataclass(frozen=True)
class Failure:
    """What came instead of a result."""

    reason: str


def run_killable(
    function: Callable[[Task], Any], tasks: Sequence[Task], *, workers: int, timeout: float
) -> Iterator[tuple[Task, Any]]:
    """Call `function` on every task in a pool of processes, and kill the process of a task that takes too long.

    Args:
        function: importable, or a `functools.partial` of such; its exception is the task's `Failure`.
        tasks: what it is called with.
        workers: processes.
        timeout: seconds for one task.

    Yields:
        (task, result or `Failure`) in the order in which they end. Closing the iterator kills the processes.
    """
    if _CONTEXT.get_start_method() == "forkserver":
        _CONTEXT.set_forkserver_preload([getattr(function, "func", function).__module__])
    waiting = list(reversed(tasks))
    pool = [_Worker(function) for _ in range(min(workers, len(waiting)))]
    try:
        while pool:
            nearest = min(worker.deadline for worker in pool)
            wait([worker.connection for worker in pool], None if nearest == math.inf else max(0, nearest - monotonic()))
            for worker in list(pool):
                outcome = worker.outcome(timeout)
                if outcome is _BUSY:
                    continue
                if worker.task is not None:
                    yield worker.task, outcome
                elif outcome is not None:
                    raise RuntimeError(f"a process of the pool did not start: {outcome.reason}")
                if waiting and worker.usable:
                    worker.give(waiting.pop(), timeout)
                    continue
                pool.remove(worker)
                worker.kill()
                if waiting:
                    pool.append(_Worker(function))
    finally:
        for worker in pool:
            worker.kill()


_BUSY = object()


class _Worker:
    """One process, its end of the pipe, what it works on, and until when."""

    def __init__(self, function: Callable[[Any], Any]) -> None:
        self.connection, theirs = _CONTEXT.Pipe()
        self.process = _CONTEXT.Process(target=_serve, args=(theirs, function), daemon=True)
        self.process.start()
        theirs.close()  # so that the pipe ends when the process does
        self.task: Any = None  # until it has said that it is there
        self.deadline = math.inf  # nothing can hang before the first task: importing may take its time
        self.usable = True

    def give(self, task: Any, timeout: float) -> None:
        self.task, self.deadline = task, monotonic() + timeout
        self.connection.send(task)

    def outcome(self, timeout: float) -> Any:
        """What became of the task (None: the process is ready for its first), or _BUSY."""
        if self.connection.poll():
            try:
                return self.connection.recv()
            except (EOFError, OSError):
                self.usable = False
                self.process.join()
                return Failure(f"the decoder crashed (exit code {self.process.exitcode})")
        if monotonic() < self.deadline:
            return _BUSY
        self.usable = False
        return Failure(f"timed out after {timeout:g} s")

    def kill(self) -> None:
        self.process.kill()
        self.process.join(1)  # a process that waits for a dead network drive cannot even be killed
        self.connection.close()


def _serve(connection: Connection, function: Callable[[Any], Any]) -> None:
    """The life of a worker: say that it is there, then answer tasks until the pipe ends."""
    signal.signal(signal.SIGINT, signal.SIG_IGN)  # the parent decides
    threading.Thread(target=_end_with_parent, daemon=True).start()
    silence = os.open(os.devnull, os.O_WRONLY)
    os.dup2(silence, 2)  # what decoders print about broken files; the reason comes back as a result
    connection.send(None)
    while True:
        try:
            task = connection.recv()
        except EOFError:
            return
        try:
            outcome = function(task)
        except ValueError as error:
            outcome = Failure(str(error))
        except Exception as error:
            outcome = Failure(f"{type(error).__name__}: {error}")
        connection.send(outcome)


def _end_with_parent() -> None:
    parent = parent_process()
    assert parent is not None
    parent.join()
    os._exit(1)  # whatever the main thread hangs in
