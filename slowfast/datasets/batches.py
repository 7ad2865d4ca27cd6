"""Choose the rows of a list that make up the batches of a process."""

from collections.abc import Iterator

from torch.utils.data import Sampler

from slowfast.utils.rng import rng_for


class EpochBatchSampler(Sampler[list[tuple[int, int]]]):
    """Yield batches of (epoch, index) for one process; the position is the only state.

    In training, the global batch g of an epoch is the g-th part of a permutation that depends on the seed and the epoch
    only; each process takes a contiguous part of it, and the incomplete last batch is dropped. In an evaluation,
    process r of n takes the rows r, r + n, r + 2n, ...; no row is repeated, so the numbers of rows of two processes may
    differ by one.

    Args:
        num_videos: rows of the list.
        batch_size: videos per batch and process.
        train: shuffle and drop the incomplete batch.
        seed: of the permutation.
        rank: of this process.
        world_size: number of processes.

    Raises:
        ValueError: the list has fewer rows than a batch of all processes, so that a training would take no step.
    """

    def __init__(
        self, num_videos: int, batch_size: int, *, train: bool, seed: int = 0, rank: int = 0, world_size: int = 1
    ) -> None:
        self.num_videos = num_videos
        self.batch_size = batch_size
        self.train = train
        self.seed = seed
        self.rank = rank
        self.world_size = world_size
        self.set_position(0)
        if train and not len(self):
            raise ValueError(
                f"the training list has {num_videos} videos, fewer than one batch of {batch_size} x {world_size} "
                "processes: lower batch_size"
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
            order = rng_for(self.seed, self.epoch, "order").permutation(self.num_videos).tolist()
            first, step = self.rank * self.batch_size, self.batch_size * self.world_size
        else:
            order = range(self.rank, self.num_videos, self.world_size)
            first, step = 0, self.batch_size
        epoch = self.epoch
        for batch in range(self.batch, len(self)):
            start = first + batch * step
            yield [(epoch, index) for index in order[start : start + self.batch_size]]
