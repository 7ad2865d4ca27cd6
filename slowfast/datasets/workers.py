"""Continue loading after the system kills a worker, usually because memory runs out."""

from __future__ import annotations

import logging
import os
import signal
import threading
import time
from collections.abc import Iterator
from functools import partial
from multiprocessing import RawArray
from typing import Any, NoReturn

from torch.utils.data import DataLoader
from torch.utils.data._utils import signal_handling

logger = logging.getLogger(__name__)

MAX_RESTARTS = 3  # in a row, without a batch
MAX_WAIT = 5.0  # seconds from the end of a worker's connections to its own

CURES = "lower the number of workers, or re-encode large videos; in a test, lower the number of temporal views"

_place: tuple[Any, int] | None = None  # in a worker: the array of `VideoLoader`, and the number of the worker


def note_row(row: int | None) -> None:
    """Record that this worker begins to read a row of the list, or none; do nothing in other processes."""
    if _place is not None:
        places, worker = _place
        places[2 * worker + 1] = 0 if row is None else row + 1


def _start(places: Any, start_worker: Any, worker: int) -> None:
    global _place
    places[2 * worker], places[2 * worker + 1] = os.getpid(), 0
    _place = places, worker
    start_worker(worker)


class VideoLoader(DataLoader[dict[str, Any]]):
    """A `DataLoader` that restarts its workers after one was killed, and continues at the same batch.

    The video that the worker was reading counts as broken from then on: it is added to `killed` of the data set, a
    dictionary from rows of the list to reasons. A data set without that attribute ends with an error.

    Args:
        dataset: data set, which must call `note_row`.
        batch_sampler: an `EpochBatchSampler`.
        num_workers: number of workers.
        worker_init_fn: called in each worker with its number.
        options: of `DataLoader`.
    """

    def __init__(self, dataset: Any, *, batch_sampler: Any, num_workers: int, worker_init_fn: Any, **options: Any):
        self.places = RawArray("q", 2 * num_workers)  # of each worker: process id, 1 + row of the list
        super().__init__(
            dataset,
            batch_sampler=batch_sampler,
            num_workers=num_workers,
            worker_init_fn=partial(_start, self.places, worker_init_fn),
            **options,
        )

    def check_worker_number_rationality(self) -> None:
        """Leave the warning about too many workers to `build_loader`, which counts all processes of a node."""

    def __iter__(self) -> Iterator[dict[str, Any]]:  # pyright: ignore[reportIncompatibleMethodOverride]
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
                pids = self._killed(error)
                if not pids:
                    raise
                self._bury(pids, restarts)
                self._iterator._shutdown_workers()  # pyright: ignore
                self._iterator = None  # otherwise PyTorch would use its workers again
                iterator, restarts = None, restarts + 1
                continue
            restarts = 0
            batch += 1
            yield content

    def _begin(self, epoch: int, batch: int) -> Iterator[dict[str, Any]]:
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
        """Return the process ids of workers that ended before their time, which may be the reason of an error.

        PyTorch raises RuntimeError. A worker that is killed while it sends a batch shows first as an error of the
        connection (reset, refused, its end, a socket that is gone, a message without file descriptors).
        """
        workers = getattr(self._iterator, "_workers", [])
        passed_on = str(error).startswith("Caught ")  # by PyTorch, from the code of a worker
        end = time.monotonic() + (MAX_WAIT if workers and not passed_on else 0)
        while True:
            pids = [worker.pid for worker in workers if worker.exitcode]
            if pids or time.monotonic() >= end:
                return pids
            time.sleep(0.01)

    def _bury(self, pids: list[int], restarts: int) -> None:
        """Record the videos that killed workers were reading as broken.

        Raises:
            ValueError: there were too many in a row, or videos cannot be left out.
        """
        rows = [self.places[i + 1] - 1 for i in range(0, len(self.places), 2) if self.places[i] in pids]
        rows = sorted({row for row in rows if row >= 0})
        killed: dict[int, str] | None = getattr(self.dataset, "killed", None)
        if killed is None or restarts == MAX_RESTARTS:
            self._give_up(rows)
        for row in rows:
            size = _size(self.dataset.samples.path(row))  # pyright: ignore[reportAttributeAccessIssue]
            killed[row] = f"a worker was killed by the system while it read this video{size} (out of memory?): {CURES}"
        logger.warning("%s; restarting the workers", self._what(rows))

    def _give_up(self, rows: list[int]) -> NoReturn:
        raise ValueError(f"{self._what(rows)}: {CURES}")

    def _what(self, rows: list[int]) -> str:
        samples = getattr(self.dataset, "samples", None)
        paths = [samples.path(row) for row in rows] if samples else []
        files = ", ".join(f"{path}{_size(path)}" for path in paths)
        return "a worker was killed by the system (out of memory?)" + (f" while it read {files}" if files else "")


def _size(path: str) -> str:
    try:
        return f" of {os.path.getsize(path) / 1e6:,.1f} MB" if os.path.isfile(path) else ""
    except OSError:
        return ""
