"""Continue loading after the system kills a worker, usually because memory runs out."""

from __future__ import annotations

import logging
import os
import re
import signal
import threading
from collections.abc import Iterator
from functools import partial
from multiprocessing import RawArray
from typing import Any, NoReturn

from torch.utils.data import DataLoader

logger = logging.getLogger(__name__)

MAX_RESTARTS = 3  # in a row, without a batch

CURES = "lower DATA_LOADER.NUM_WORKERS, or re-encode large videos; in a test, lower TEST.NUM_ENSEMBLE_VIEWS"

_place: tuple[Any, int] | None = None  # in a worker: the array of `VideoLoader`, and the number of the worker


def note_row(row: int) -> None:
    """Record that this worker begins to read a row of the list; do nothing in other processes."""
    if _place is not None:
        places, worker = _place
        places[2 * worker + 1] = row + 1


def _start(places: Any, start_worker: Any, worker: int) -> None:
    global _place
    places[2 * worker], places[2 * worker + 1] = os.getpid(), 0
    _place = places, worker
    start_worker(worker)


class VideoLoader(DataLoader):
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

    def __iter__(self) -> Iterator[dict[str, Any]]:  # pyright: ignore[reportIncompatibleMethodOverride]
        """Yield the batches from the position of the sampler to the end of its epoch."""
        epoch, batch = self.batch_sampler.epoch, self.batch_sampler.batch  # pyright: ignore
        iterator, restarts = self._begin(epoch, batch), 0
        while True:
            try:
                content = next(iterator)
            except StopIteration:
                return
            except RuntimeError as error:
                found = re.match(r"DataLoader worker \(pid(?:\(s\))? ([\d, ]+)\)", str(error))
                if not found:
                    raise
                self._bury([int(pid) for pid in found[1].split(",")], restarts)
                iterator._shutdown_workers()  # pyright: ignore[reportAttributeAccessIssue]
                self._iterator = None  # otherwise PyTorch would use its workers again
                iterator, restarts = self._begin(epoch, batch), restarts + 1
                continue
            restarts = 0
            batch += 1
            yield content

    def _begin(self, epoch: int, batch: int) -> Iterator[dict[str, Any]]:
        """Start an iteration at a batch; keep the position of the sampler."""
        sampler: Any = self.batch_sampler
        position = sampler.epoch, sampler.batch
        before = signal.getsignal(signal.SIGCHLD)
        sampler.set_position(epoch, batch)
        iterator = super().__iter__()
        if self.num_workers:  # workers begin at once
            sampler.set_position(*position)
            # PyTorch's handler raises the error anywhere in the main thread, also in the middle of a step
            if threading.current_thread() is threading.main_thread():
                signal.signal(signal.SIGCHLD, before or signal.SIG_DFL)
        return iterator

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
            size = _size(self.dataset.manifest.path(row))  # pyright: ignore[reportAttributeAccessIssue]
            killed[row] = f"a worker was killed by the system while it read this video{size} (out of memory?): {CURES}"
        logger.warning("%s; restarting the workers", self._what(rows))

    def _give_up(self, rows: list[int]) -> NoReturn:
        raise ValueError(f"{self._what(rows)}: {CURES}")

    def _what(self, rows: list[int]) -> str:
        manifest = getattr(self.dataset, "manifest", None)
        paths = [manifest.path(row) for row in rows] if manifest else []
        files = ", ".join(f"{path}{_size(path)}" for path in paths)
        return "a worker was killed by the system (out of memory?)" + (f" while it read {files}" if files else "")


def _size(path: str) -> str:
    try:
        return f" of {os.path.getsize(path) / 1e6:,.1f} MB" if os.path.isfile(path) else ""
    except OSError:
        return ""
