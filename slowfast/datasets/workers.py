"""Load with single-threaded workers, and continue after the system kills one, usually because memory runs out."""

from __future__ import annotations

import gc
import logging
import signal
import threading
from collections.abc import Iterator
from functools import cache, partial
from multiprocessing import RawArray, connection, get_all_start_methods
from typing import Any

import cv2
import torch
from torch.utils.data import DataLoader, get_worker_info
from torch.utils.data._utils import signal_handling

from slowfast.datasets.batches import EpochBatchSampler
from slowfast.datasets.container import size_of
from slowfast.datasets.dataset import NO_ROW, Batch, ClipDataset, as_made
from slowfast.utils.memory import keep_memory
from slowfast.utils.processes import usable_cores

logger = logging.getLogger(__name__)

MAX_RESTARTS = 3  # in a row, without a batch
MAX_WAIT = 5.0  # seconds between the end of a worker's connections and its exit
KILLED = "a worker was killed by the system"
CURES = "lower the number of workers, or re-encode large videos; in a test, lower the number of temporal views"


@cache
def warn_of_few_cores(workers: int, processes: int, name: str = "num_workers") -> None:
    """Warn, once, if fewer workers would occupy all cores of a node; `name` is the setting that the cure names."""
    cores = usable_cores()
    enough = max(1, cores // processes)
    if workers > enough:
        logger.warning(
            "%d workers in each of %d processes are more than the %d usable cores: set %s to %d, which loads as fast "
            "and takes less memory", workers, processes, cores, name, enough,
        )  # fmt: skip


def start_worker(_: int) -> None:
    """Prepare a worker of a loader: limit it to one thread, and keep freed memory for the next clip.

    Objects that the process inherited must not be garbage-collected here: a decoder with threads would block for ever,
    because a fork does not have its threads.
    """
    gc.freeze()
    use_one_thread()
    keep_memory()


def use_one_thread(_: int = 0) -> None:
    """Limit a worker to one thread, so that it does not use the thread pools of the process that forked it.

    About one fork in 3,000 happens while a lock of OpenCV's pool is held; a call that uses the pool then blocks for
    ever.
    """
    torch.set_num_threads(1)
    cv2.setNumThreads(0)


def _start_reader(reading: Any, number: int) -> None:
    """Make a process a worker whose data set writes the row that it reads to the memory of the loader."""
    worker: Any = get_worker_info()
    worker.dataset.reading = reading
    start_worker(number)


class VideoLoader(DataLoader[Batch]):
    """A `DataLoader` that restarts its workers after one was killed, and continues at the same batch.

    From then on, the video that the worker was reading counts as broken: its row is added to `killed` of the data set.
    """

    def __init__(
        self, dataset: ClipDataset, sampler: EpochBatchSampler, num_workers: int, *, pin_memory: bool = False
    ) -> None:
        self.reading = RawArray("q", [NO_ROW] * num_workers)
        super().__init__(
            dataset,
            batch_sampler=sampler,
            collate_fn=as_made,
            num_workers=num_workers,
            persistent_workers=num_workers > 0,
            # In a spawned process, workers would by default be spawned too, and each would import everything again.
            multiprocessing_context="fork" if num_workers and "fork" in get_all_start_methods() else None,
            worker_init_fn=partial(_start_reader, self.reading),
            pin_memory=pin_memory,
            generator=torch.Generator(),  # its draw for the workers must not advance the global one
        )

    def check_worker_number_rationality(self) -> None:
        """Do nothing: `warn_of_few_cores`, which counts all processes of a node, warns of too many workers."""

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
            if self.num_workers:  # the iterator has already taken batches from the sampler
                sampler.set_position(*position)
                # PyTorch's handler raises the error anywhere in the main thread, also in the middle of a step
                if threading.current_thread() is threading.main_thread():
                    signal.signal(signal.SIGCHLD, before)

    def _killed(self, error: Exception) -> list[int]:
        """Return the numbers of the workers that exited too early, which may be the reason for an error.

        PyTorch raises RuntimeError. If a worker is killed while it sends a batch, there is an error of the connection
        first (reset, refused, end of file, missing socket, message without file descriptors).
        """
        workers = getattr(self._iterator, "_workers", [])
        passed_on = str(error).startswith("Caught ")  # PyTorch passes on an error of the worker's code
        ended = connection.wait([w.sentinel for w in workers], MAX_WAIT if workers and not passed_on else 0)
        for worker in workers:
            if worker.sentinel in ended:
                worker.join(MAX_WAIT)
        return [number for number, worker in enumerate(workers) if worker.exitcode]

    def _bury(self, killed: list[int], restarts: int) -> None:
        """Record the videos that killed workers were reading as broken; ValueError after too many kills in a row."""
        data: Any = self.dataset
        reading = self.reading
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
