"""Run tasks in processes that can be killed: a file that blocks or crashes its decoder takes at most one timeout."""

from __future__ import annotations

import contextlib
import os
import signal
from collections.abc import Callable, Generator, Sequence
from dataclasses import dataclass
from itertools import islice
from multiprocessing import get_context
from multiprocessing.connection import Connection, wait
from time import monotonic
from typing import Any, TypeVar

from tqdm import tqdm

from slowfast.datasets.container import MediaError
from slowfast.utils.processes import exit_with_parent

Task = TypeVar("Task")

START_LIMIT = 300.0  # seconds until a process must be ready; imports from a busy network drive take long

# A fork server imports the decoders only once, so a killed process is replaced quickly.
_CONTEXT: Any = get_context("forkserver")


@dataclass(frozen=True)
class Failure:
    """The reason why a task has no result."""

    reason: str


def run_killable(
    function: Callable[[Task], Any],
    tasks: Sequence[Task],
    *,
    workers: int,
    timeout: float,
    title: str = "",
    done: int = 0,
) -> Generator[tuple[Task, Any]]:
    """Call a function with every task in a pool of processes, and kill the process of a task that takes too long.

    The function must be importable, or a `functools.partial` of an importable one; an exception becomes a `Failure`.
    The limit of one call is `timeout` seconds. The progress bar counts `done` tasks of an earlier call, too.

    Yields:
        (task, result or `Failure`) in the order in which the calls end. Closing the iterator kills the processes.

    Raises:
        RuntimeError: a process cannot start, which is no fault of its task.
    """
    _CONTEXT.set_forkserver_preload([getattr(function, "func", function).__module__])
    waiting = iter(tasks)
    free: list[_Process] = []
    busy: list[_Process] = []
    bar = tqdm(total=done + len(tasks), initial=done, desc=title, unit="file", disable=None)
    try:
        while True:
            for task in islice(waiting, workers - len(busy)):
                busy.append(free.pop() if free else _Process(function))
                busy[-1].start(task, timeout)
            if not busy:
                return
            nearest = min(process.deadline for process in busy)
            wait([process.connection for process in busy], max(0.0, nearest - monotonic()))
            for process in [process for process in busy if process.is_done()]:
                outcome = process.outcome(timeout)
                busy.remove(process)
                if not process.connection.closed:
                    free.append(process)
                bar.update()
                yield process.task, outcome
    finally:
        bar.close()
        for process in busy + free:
            process.kill()


class _Process:
    """A process, its pipe, its task and the time at which it is killed.

    Its first message says that it is ready: the time of a task does not include the imports.
    """

    def __init__(self, function: Callable[[Any], Any]) -> None:
        self.connection, theirs = _CONTEXT.Pipe()
        self.process = _CONTEXT.Process(target=_serve, args=(theirs, function), daemon=True)
        self.process.start()
        theirs.close()  # so that the pipe ends with the process
        try:
            if self.connection.poll(START_LIMIT) and self.connection.recv():
                return
            reason = f"is not ready after {START_LIMIT:g} s"
        except (EOFError, OSError):
            self.process.join()
            reason = f"ended with exit code {self.process.exitcode} before its first task, see its message above"
        self.kill()
        raise RuntimeError(f"a process {reason}: a script that calls this must do so under if __name__ == '__main__'")

    def start(self, task: Any, timeout: float) -> None:
        self.task, self.deadline = task, monotonic() + timeout
        with contextlib.suppress(OSError):  # it was killed: `outcome` returns the reason
            self.connection.send(task)

    def is_done(self) -> bool:
        return self.connection.poll() or monotonic() >= self.deadline

    def outcome(self, timeout: float) -> Any:
        reason = f"timed out after {timeout:g} s"
        try:
            if self.connection.poll():
                return self.connection.recv()
        except (EOFError, OSError):
            self.process.join()
            reason = f"the decoder crashed (exit code {self.process.exitcode})"
        self.kill()
        return Failure(reason)

    def kill(self) -> None:
        self.process.kill()
        self.process.join(1)  # even a killed process does not exit while it waits for an unreachable network drive
        self.connection.close()


def _serve(connection: Connection, function: Callable[[Any], Any]) -> None:
    signal.signal(signal.SIGINT, signal.SIG_IGN)  # Ctrl-C ends the parent, which kills this process
    exit_with_parent()
    os.dup2(os.open(os.devnull, os.O_WRONLY), 2)  # messages of decoders; results contain the reasons
    connection.send(True)
    with contextlib.suppress(EOFError):
        while True:
            task = connection.recv()
            try:
                outcome = function(task)
            except MediaError as error:
                outcome = Failure(error.reason or str(error))
            except ValueError as error:
                outcome = Failure(str(error))
            except Exception as error:
                outcome = Failure(f"{type(error).__name__}: {error}")
            connection.send(outcome)
