"""Load with workers of one thread, and go on after the system kills one, usually because memory runs out."""

from __future__ import annotations

import gc
import logging
import os
import signal
import threading
from collections.abc import Iterator
from functools import cache
from multiprocessing import RawArray, connection, get_all_start_methods
from typing import Any

import cv2
import torch
from torch.utils.data import DataLoader
from torch.utils.data._utils import signal_handling

from slowfast.datasets.batches import EpochBatchSampler
from slowfast.datasets.container import size_of
from slowfast.datasets.dataset import NO_ROW, Batch, ClipDataset, as_made
from slowfast.utils.memory import keep_memory

logger = logging.getLogger(__name__)

MAX_RESTARTS = 3  # in a row, without a batch
MAX_WAIT = 5.0  # seconds from the end of a worker's connections to its own
KILLED = "a worker was killed by the system"
CURES = "lower the number of workers, or re-encode large videos; in a test, lower the number of temporal views"


def usable_cores() -> int:
    """Return the cores that this process may use; a job or a container often has fewer than the machine."""
    return len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1


@cache
def warn_of_few_cores(workers: int, processes: int) -> None:
    """Warn, once, if a node has fewer cores than workers."""
    cores = usable_cores()
    if workers * processes > cores:
        logger.warning(
            "%d workers in each of %d processes are more than the %d usable cores: set num_workers to %d, which loads "
            "as fast and takes less memory", workers, processes, cores, max(1, cores // processes),
        )  # fmt: skip


def start_worker(_: int) -> None:
    """Make a process a worker of a loader: one thread, and memory that it keeps for the next clip.

    What the process inherited as garbage must not be collected here: a decoder with threads would wait for them for
    ever, because a fork has none of them.
    """
    gc.freeze()
    use_one_thread()
    keep_memory()


def use_one_thread(_: int = 0) -> None:
    """Keep a worker to its own core, and off the thread pools of the process it was forked from.

    OpenCV's pool can be forked while one of its locks is held, about once in 3,000 times; a call that uses it then
    blocks for ever.
    """
    torch.set_num_threads(1)
    cv2.setNumThreads(0)


class VideoLoader(DataLoader[Batch]):
    """A `DataLoader` that restarts its workers after one was killed, and continues at the same batch.

    The video that the worker was reading counts as broken from then on: it is added to `killed` of the data set.

    Args:
        dataset: makes the batches.
        sampler: their rows.
        num_workers: number of workers.
        pin_memory: copy batches to page-locked memory.
    """

    def __init__(
        self, dataset: ClipDataset, sampler: EpochBatchSampler, num_workers: int, *, pin_memory: bool = False
    ) -> None:
        dataset.reading = RawArray("q", [NO_ROW] * num_workers)
        super().__init__(
            dataset,
            batch_sampler=sampler,
            collate_fn=as_made,
            num_workers=num_workers,
            persistent_workers=num_workers > 0,
            # The default in a spawned process is to spawn workers, each of which would import everything again.
            multiprocessing_context="fork" if num_workers and "fork" in get_all_start_methods() else None,
            worker_init_fn=start_worker,
            pin_memory=pin_memory,
            generator=torch.Generator(),  # the loader draws a seed for its workers: not from the model's stream
        )

    def check_worker_number_rationality(self) -> None:
        """Leave the warning about too many workers to `warn_of_few_cores`, which counts all processes of a node."""

    def __iter__(self) -> Iterator[Batch]:  # pyright: ignore[reportIncompatibleMethodOverride]
        """Yield the batches from the position of the sampler to the end of its epoch."""
        epoch, batch = self.batch_sampler.epoch, self.batch_sampler.batch  # pyright: ignore
        iterator, restarts = None, 0
        while True:
            try:
                iterator = iterator or self._begin(epoch, batch)
                content = next(iterator)
            except StopIteration:
                return
            except (RuntimeError, OSError, EOFError) as error:
                killed = self._killed(error)
                if not killed:
                    raise
                self._bury(killed, restarts)
                self._iterator._shutdown_workers()  # pyright: ignore
                self._iterator = None  # otherwise PyTorch would use its workers again
                iterator, restarts = None, restarts + 1
                continue
            restarts = 0
            batch += 1
            yield content

    def _begin(self, epoch: int, batch: int) -> Iterator[Batch]:
        """Start an iteration at a batch; keep the position of the sampler."""
        sampler: Any = self.batch_sampler
        position = sampler.epoch, sampler.batch
        before = signal.getsignal(signal.SIGCHLD)
        if before is None or getattr(before, "__module__", "") == signal_handling.__name__:  # set by another loader
            before = signal.SIG_DFL
        sampler.set_position(epoch, batch)
        try:
            return super().__iter__()
        finally:
            if self.num_workers:  # workers begin at once
                sampler.set_position(*position)
                # PyTorch's handler raises the error anywhere in the main thread, also in the middle of a step
                if threading.current_thread() is threading.main_thread():
                    signal.signal(signal.SIGCHLD, before)

    def _killed(self, error: Exception) -> list[int]:
        """Return the numbers of workers that ended before their time, which may be the reason of an error.

        PyTorch raises RuntimeError. A worker that is killed while it sends a batch shows first as an error of the
        connection (reset, refused, its end, a socket that is gone, a message without file descriptors).
        """
        workers = getattr(self._iterator, "_workers", [])
        passed_on = str(error).startswith("Caught ")  # by PyTorch, from the code of a worker
        ended = connection.wait([w.sentinel for w in workers], MAX_WAIT if workers and not passed_on else 0)
        for worker in workers:
            if worker.sentinel in ended:
                worker.join(MAX_WAIT)
        return [number for number, worker in enumerate(workers) if worker.exitcode]

    def _bury(self, killed: list[int], restarts: int) -> None:
        """Record the videos that killed workers were reading as broken; ValueError if there were too many in a row."""
        data: Any = self.dataset
        reading = data.reading
        rows = {reading[number] for number in killed} - {NO_ROW}
        reading[:] = [NO_ROW] * self.num_workers
        paths = {row: data.samples.path(row) for row in sorted(rows)}
        files = " and ".join(f"{path} ({size_of(path)})" for path in paths.values())
        what = f"{KILLED} (out of memory?)" + (f" while it read {files}" if files else "")
        if restarts == MAX_RESTARTS:
            raise ValueError(f"{what}: {CURES}")
        for row, path in paths.items():
            data.killed[row] = f"{KILLED} while it read this video, {size_of(path)} (out of memory?): {CURES}"
        logger.warning("%s; restarting the workers", what)
