"""Run tasks in processes that can be killed: a file that blocks or crashes its decoder takes at most one timeout."""

from __future__ import annotations

import os
import threading
from collections.abc import Callable, Generator, Sequence
from concurrent.futures import FIRST_COMPLETED, wait
from concurrent.futures.process import BrokenProcessPool
from dataclasses import dataclass
from itertools import islice
from multiprocessing import get_all_start_methods, get_context, parent_process
from typing import Any, TypeVar

from pebble import ProcessExpired, ProcessPool
from tqdm import tqdm

from slowfast.datasets.container import MediaError

Task = TypeVar("Task")

# A fork server imports the decoders only once, so a killed process is replaced quickly.
_CONTEXT: Any = get_context("forkserver" if "forkserver" in get_all_start_methods() else "spawn")


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

    Args:
        function: importable, or a `functools.partial` of an importable one; an exception becomes a `Failure`.
        tasks: arguments of the calls.
        workers: number of processes.
        timeout: limit of one call in seconds.
        title: title of the progress bar.
        done: number of tasks of an earlier call, which the bar counts too.

    Yields:
        (task, result or `Failure`) in the order in which the calls end. Closing the iterator kills the processes.

    Raises:
        RuntimeError: a process cannot start, which is no fault of its task.
    """
    if _CONTEXT.get_start_method() == "forkserver":
        _CONTEXT.set_forkserver_preload([getattr(function, "func", function).__module__])
    waiting, running = iter(tasks), dict[Any, Task]()
    bar = tqdm(total=done + len(tasks), initial=done, desc=title, unit="file", disable=None)
    pool = ProcessPool(max(1, min(workers, len(tasks))), initializer=_start, context=_CONTEXT)
    try:
        while True:
            for task in islice(waiting, 2 * workers - len(running)):
                running[pool.schedule(_attempt, (function, task), timeout=timeout)] = task
            if not running:
                return
            for future in wait(running, return_when=FIRST_COMPLETED).done:
                bar.update()
                yield running.pop(future), _outcome(future, timeout)
    finally:
        bar.close()
        pool.stop()
        pool.join()


def _outcome(future: Any, timeout: float) -> Any:
    try:
        return future.result()
    except TimeoutError:
        return Failure(f"timed out after {timeout:g} s")
    except ProcessExpired as error:
        return Failure(f"the decoder crashed (exit code {error.exitcode})")
    except BrokenProcessPool as error:
        raise RuntimeError(
            "a process ended before its first task, see its message above: a script that calls this must do so under "
            "if __name__ == '__main__'"
        ) from error


def _attempt(function: Callable[[Any], Any], task: Any) -> Any:
    try:
        return function(task)
    except MediaError as error:
        return Failure(error.reason or str(error))
    except ValueError as error:
        return Failure(str(error))
    except Exception as error:
        return Failure(f"{type(error).__name__}: {error}")


def _start() -> None:
    threading.Thread(target=_exit_with_parent, daemon=True).start()
    os.dup2(os.open(os.devnull, os.O_WRONLY), 2)  # messages of decoders; results contain the reasons


def _exit_with_parent() -> None:
    parent = parent_process()
    assert parent is not None
    parent.join()
    os._exit(1)
