"""Run tasks in processes that can be killed: a file that blocks or crashes its decoder takes at most one timeout."""

from __future__ import annotations

from collections.abc import Callable, Generator, Sequence
from dataclasses import dataclass
from multiprocessing.connection import Connection
from multiprocessing.pool import ThreadPool
from threading import Event, get_ident
from typing import Any, TypeVar

from tqdm import tqdm

from slowfast.datasets.container import MediaError
from slowfast.datasets.guarded import Ended, Killable

Task = TypeVar("Task")


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
    processes: dict[int, Killable] = {}  # of each thread
    closed = Event()

    def call(task: Task) -> tuple[Task, Any]:
        process = processes.get(get_ident())
        if process is None or not process.alive():
            if closed.is_set():  # this thread has the next task before the pool ends
                return task, Failure("not started")
            process = processes[get_ident()] = Killable(_make_runner, function)
        try:
            return task, process.call(0 if closed.is_set() else timeout, task)
        except Ended as end:
            crash = f"the decoder crashed (exit code {end.code})"
            return task, Failure(f"timed out after {timeout:g} s" if end.code is None else crash)

    bar = tqdm(total=done + len(tasks), initial=done, desc=title, unit="file", disable=None)
    with bar, ThreadPool(workers) as pool:
        try:
            for outcome in pool.imap_unordered(call, tasks):
                bar.update()
                yield outcome
        finally:
            closed.set()
            for process in [*processes.values()]:
                process.process.kill()


def _make_runner(_: Connection, function: Callable[[Task], Any]) -> Callable[[Task], Any]:
    def run(task: Task) -> Any:
        try:
            return function(task)
        except MediaError as error:
            return Failure(error.reason or str(error))
        except ValueError as error:
            return Failure(str(error))
        except Exception as error:
            return Failure(f"{type(error).__name__}: {error}")

    return run
