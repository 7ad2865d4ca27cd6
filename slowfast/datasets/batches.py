"""Choose the rows of a list that make up the batches of a process."""

from collections.abc import Iterator
from dataclasses import KW_ONLY, dataclass

import numpy as np
from torch.utils.data import Sampler

from slowfast.utils.rng import rng_for

REPEATED = 1 << 32  # added to the epoch of a row per repetition in it, so that the clips of a repeated row differ


def balanced_order(labels: np.ndarray, rng: np.random.Generator) -> list[tuple[int, int]]:
    """Return as many (repetition, row) as there are rows, in random order, with the same number of each class.

    The numbers of two classes differ by at most one. All rows of a class are drawn before one of them is repeated.
    `labels` (N,) contains the class of each row.
    """
    _, sizes = np.unique(labels, return_counts=True)
    share, rest = divmod(len(labels), len(sizes))
    longer = set(rng.permutation(len(sizes))[:rest].tolist())
    drawn: list[tuple[int, int]] = []
    for number, rows in enumerate(np.split(np.argsort(labels, kind="stable"), np.cumsum(sizes)[:-1])):
        for place in range(0, share + (number in longer), len(rows)):
            wanted = share + (number in longer) - place
            drawn += [(place // len(rows), row) for row in rng.permutation(rows)[:wanted].tolist()]
    return [drawn[place] for place in rng.permutation(len(drawn)).tolist()]


@dataclass(eq=False)
class EpochBatchSampler(Sampler[list[tuple[int, int]]]):
    """Yield batches of (epoch, index) for one process; the position is the only state.

    In training, the global batch g of an epoch is the g-th part of a permutation that depends on the seed and the epoch
    only; each process takes a contiguous part of it, and the incomplete last batch is dropped. In an evaluation,
    process r of n takes the rows r, r + n, r + 2n, ...; no row is repeated, so the numbers of rows of two processes may
    differ by one.

    Args:
        num_videos: rows of the list.
        batch_size: videos per batch and process.
        balanced: labels (N,) of the rows, to draw all classes equally often; the epoch of a repeated row is increased
            by `REPEATED` per repetition.

    Raises:
        ValueError: the list has fewer rows than a batch of all processes, so that a training would take no step.
    """

    num_videos: int
    batch_size: int
    _: KW_ONLY
    train: bool
    seed: int = 0
    rank: int = 0
    world_size: int = 1
    balanced: np.ndarray | None = None

    def __post_init__(self) -> None:
        self.set_position(0)
        if self.train and not len(self):
            raise ValueError(
                f"the training list has {self.num_videos} videos, fewer than one batch of {self.batch_size} x "
                f"{self.world_size} processes: lower batch_size"
            )

    def set_position(self, epoch: int, batch: int = 0) -> None:
        """Make the next iteration begin at `batch` of `epoch`."""
        self.epoch = epoch
        self.batch = batch

    def __len__(self) -> int:
        """Return the number of batches of a whole epoch in this process; it does not depend on the position."""
        if self.train:
            return self.num_videos // (self.batch_size * self.world_size)
        return -(-len(range(self.rank, self.num_videos, self.world_size)) // self.batch_size)

    def __iter__(self) -> Iterator[list[tuple[int, int]]]:
        """Yield the batches from the position to the end of the epoch."""
        if self.train:
            order = self._keys()
            first, step = self.rank * self.batch_size, self.batch_size * self.world_size
        else:
            order = [(self.epoch, index) for index in range(self.rank, self.num_videos, self.world_size)]
            first, step = 0, self.batch_size
        for batch in range(self.batch, len(self)):
            start = first + batch * step
            yield order[start : start + self.batch_size]

    def _keys(self) -> list[tuple[int, int]]:
        """Return the (epoch, index) of all rows of an epoch of training, in order."""
        rng = rng_for(self.seed, self.epoch, "order")
        if self.balanced is None:
            return [(self.epoch, index) for index in rng.permutation(self.num_videos).tolist()]
        return [(self.epoch + REPEATED * times, index) for times, index in balanced_order(self.balanced, rng)]
