"""Make whole batches of the rows of a list; a video or an image is decoded once for all its clips.

`dataset[(epoch, index)]` is the batch of one row of the list; a loader requests the batch of several rows at once. The
entries of a batch are:

* "video": uint8 clips (B, C, T, H, W) or images (B, C, H, W); in an evaluation of videos, the `Views` from which the B
  clips are cut. In a worker, they are in memory that is ready to be sent.
* "label", "index" (row of the list), "view": (B,) int64; for a multi-label list, "label" is (B, K) int8, see
  `VideoList.targets`.
* "bad": list of (path, reason) of files that could not be decoded.

In training, one decoded clip gives one or more augmented copies, and a broken file is replaced by another one, which
is drawn from the same seed, epoch and row. An evaluation draws nothing and replaces nothing: a broken file has no clips
and is named in "bad".
"""

from abc import ABC, abstractmethod
from collections.abc import Callable, Sequence
from dataclasses import KW_ONLY, dataclass, field
from typing import Any

import numpy as np
import torch
from torch.utils.data import Dataset, get_worker_info

from slowfast.datasets.guarded import read_frames_within
from slowfast.datasets.image import ImageTransform, centre_view, read_image
from slowfast.datasets.lists import Sample, VideoList
from slowfast.datasets.reader import MediaError
from slowfast.datasets.sampling import FrameSampler, annotated_indices, clip_indices
from slowfast.datasets.shared import by_value, new_clips, share
from slowfast.datasets.transforms import TrainTransform
from slowfast.datasets.views import Views, shrink
from slowfast.utils.rng import rng_for

Batch = dict[str, Any]
Key = tuple[int, int]  # epoch and row of the list
MAX_TRIES = 10
NO_ROW = -1
Prepared = tuple[torch.Tensor, np.ndarray]  # frames of a video, and those of each temporal view


def as_made(batch: Any) -> Any:
    """Return the batch unchanged; this is the `collate_fn` of a loader."""
    return batch


@dataclass(frozen=True)
class VideoReader:
    """Decode the frames of videos that a sampler chooses; see `read_frames` for the options.

    Args:
        decode_timeout: limit for the read of a video in seconds; 0 for no limit.
    """

    sampler: FrameSampler
    image_template: str = "img_{:05d}.jpg"
    colors: str = "RGB"
    backend: str = "pyav"
    decode_timeout: float = 0

    def clip_shape(self, crop: int) -> tuple[int, ...]:
        """Return the shape of a training clip, (T, H, W, C)."""
        return self.sampler.num_frames, crop, crop, 3

    def clip_indices(self, length: int, sample: Sample, rng: np.random.Generator) -> list[int]:
        """Draw the frames of a training clip, from the annotated segment if there is one."""
        if sample.segment is not None:
            return annotated_indices(length, self.sampler.num_frames, sample.segment, rng)
        return clip_indices(self.sampler, length, None, rng)

    def read_clip(self, sample: Sample, make_rng: Callable[[], np.random.Generator]) -> np.ndarray:
        """Read the frames of a training clip, (T, H, W, C) uint8."""
        return self.read(sample, lambda length: self.clip_indices(length, sample, make_rng()))

    def read(self, sample: Sample, choose: Callable[[int], list[int]]) -> np.ndarray:
        """Read the frames that `choose` names, as `read_frames` does."""
        return read_frames_within(
            self.decode_timeout,
            sample.path,
            choose,
            num_frames=sample.num_frames,
            image_template=self.image_template,
            colors=self.colors,
            backend=self.backend,
        )


class ImageReader:
    """Decode images."""

    def clip_shape(self, crop: int) -> tuple[int, ...]:
        """Return the shape of a training image, (H, W, C)."""
        return crop, crop, 3

    def read_clip(self, sample: Sample, make_rng: Callable[[], np.random.Generator]) -> np.ndarray:
        """Read an image, (H, W, C) uint8."""
        return read_image(sample.path)


@dataclass(eq=False)
class ClipDataset(Dataset[Batch], ABC):
    """Make batches of the rows of a list.

    Args:
        samples: the list.
        seed: first coordinate of every draw.
        reverse_channels: reverse the order of the channels as the last step.

    Attributes:
        killed: rows that a worker was reading when the system killed it, with the reason; they count as broken.
        reading: in a worker of a `VideoLoader`, memory shared with it: the row that each worker reads, or `NO_ROW`.
    """

    samples: VideoList
    _: KW_ONLY
    seed: int = 0
    reverse_channels: bool = False
    killed: dict[int, str] = field(default_factory=dict, init=False)
    reading: Any = field(default=None, init=False)

    def __len__(self) -> int:
        return len(self.samples)

    def __getitem__(self, key: Key) -> Batch:
        return self.__getitems__([key])

    def __getitems__(self, keys: Sequence[Key]) -> Batch:
        """Return the batch of several rows; a loader passes it to its `collate_fn`."""
        try:
            return self._make_batch(keys)
        finally:
            self._note(NO_ROW)

    @abstractmethod
    def _make_batch(self, keys: Sequence[Key]) -> Batch: ...

    def _begin(self, row: int) -> Sample:
        """Return the sample of the row that is read next, and record that it is being read.

        Raises:
            MediaError: the row is one of `killed`.
        """
        if row in self.killed:
            raise MediaError(self.samples.path(row), self.killed[row])
        self._note(row)
        return self.samples[row]

    @property
    def sends(self) -> bool:
        """Whether this is the data set of a worker, which sends its batches to another process.

        A worker of a user's data set may have one too, for example in a network that it predicts with.
        """
        worker = get_worker_info()
        return worker is not None and worker.dataset is self

    def _note(self, row: int) -> None:
        worker = get_worker_info()
        if worker is not None and self.reading is not None:
            self.reading[worker.id] = row

    def _batch(self, video: Any, rows: list[int], clips: int, bad: list[tuple[str, str]]) -> Batch:
        """Describe a batch of `clips` clips of each row."""
        index, send = torch.tensor(rows, dtype=torch.int64), self.sends
        return {
            "video": video,
            "label": by_value(torch.from_numpy(self.samples.targets(rows)).repeat_interleave(clips, 0), send),
            "index": by_value(index.repeat_interleave(clips), send),
            "view": by_value(torch.arange(clips).repeat(len(rows)), send),
            "bad": bad,
        }


@dataclass(eq=False)
class TrainDataset(ClipDataset):
    """Make batches of `num_copies` augmented clips of each video, or augmented copies of each image."""

    reader: VideoReader | ImageReader
    transform: TrainTransform | ImageTransform
    num_copies: int = field(default=1, kw_only=True)

    def _make_batch(self, keys: Sequence[Key]) -> Batch:
        clips, video = new_clips(
            (len(keys) * self.num_copies, *self.reader.clip_shape(self.transform.crop)), self.sends
        )
        rows: list[int] = []
        bad: list[tuple[str, str]] = []
        for place, (epoch, index) in enumerate(keys):
            row, frames = self._read(epoch, index, bad)
            rows.append(row)
            for copy in range(self.num_copies):
                clip = clips[place * self.num_copies + copy]
                self.transform(frames, rng_for(self.seed, epoch, index, copy), clip)
                if self.reverse_channels:
                    clip[...] = clip[..., ::-1].copy()
        return self._batch(video, rows, self.num_copies, bad)

    def _read(self, epoch: int, index: int, bad: list[tuple[str, str]]) -> tuple[int, np.ndarray]:
        """Return the first row that can be decoded, and its frames; add the others to `bad`.

        Raises:
            MediaError: none of `MAX_TRIES` rows can be decoded.
        """
        row, before = index, len(bad)
        for attempt in range(MAX_TRIES):
            try:
                return row, self.reader.read_clip(
                    self._begin(row), lambda: rng_for(self.seed, epoch, index, "temporal")
                )
            except MediaError as error:
                bad.append((error.path, error.reason))
                step = rng_for(self.seed, epoch, index, "substitute", attempt).integers(max(len(self) - 1, 1))
                row = (index + 1 + int(step)) % len(self)
        listed = "".join(f"\n  {path}: {reason}" for path, reason in dict.fromkeys(bad[before:]))
        raise MediaError(f"{MAX_TRIES} reads in a row failed:{listed}")


@dataclass(eq=False)
class EvalDataset(ClipDataset):
    """Make batches of the views of videos or images, without random draws.

    Args:
        scale: short side that frames are resized to, in pixels.
        crop: side of the crops, in pixels.
    """

    num_views = 1
    num_crops = 1
    scale: int = field(default=224, kw_only=True)
    crop: int = field(default=224, kw_only=True)

    def _make_batch(self, keys: Sequence[Key]) -> Batch:
        made: list[Any] = []
        rows: list[int] = []
        bad: list[tuple[str, str]] = []
        for _, row in keys:
            try:
                made.append(self._read(self._begin(row), row))
                rows.append(row)
            except MediaError as error:
                bad.append((error.path, error.reason))
        return self._batch(self.views(made), rows, self.num_views * self.num_crops, bad)

    @abstractmethod
    def _read(self, sample: Sample, row: int) -> Any: ...

    @abstractmethod
    def views(self, made: Sequence[Any]) -> Any:
        """Return the entry "video" of a batch of what `_read` returned."""


@dataclass(eq=False)
class VideoEvalDataset(EvalDataset):
    """Make batches of the views of videos: clip v is temporal view `v // num_crops` and spatial crop `v % num_crops`.

    Args:
        reader: decodes the videos; its sampler has the temporal views.
        num_crops: number of spatial crops per temporal view, 1 (the centre) or 3.
        shuffle_frames: put the frames of every clip into random order, which shows whether a model uses motion.
    """

    reader: VideoReader
    _: KW_ONLY
    num_crops: int = 1
    shuffle_frames: bool = False

    def __post_init__(self) -> None:
        assert self.num_crops in (1, 3), self.num_crops
        self.num_views = self.reader.sampler.num_views

    def frame_indices(self, length: int, row: int) -> list[int]:
        """Return the frames of all views of a video of `length` frames, view by view."""
        indices: list[int] = []
        for view in range(self.num_views):
            clip = clip_indices(self.reader.sampler, length, view, None)
            if self.shuffle_frames:
                rng_for(self.seed, row, view, "shuffle").shuffle(clip)
            indices += clip
        return indices

    def _read(self, sample: Sample, row: int) -> Prepared:
        order: list[int] = []

        def choose(length: int) -> list[int]:
            needed, order[:] = np.unique(self.frame_indices(length, row), return_inverse=True)
            return needed.tolist()

        return self.prepare(self.reader.read(sample, choose), order)

    def prepare(self, frames: np.ndarray, order: Sequence[int] | None = None) -> Prepared:
        """Return a video as `views` takes it.

        Args:
            frames: (N, H, W, C) uint8.
            order: frame of each place in the temporal views, view by view; None for 0, 1, 2 and so on.
        """
        video = shrink(frames, self.scale)
        places = np.arange(len(frames)) if order is None else np.array(order)
        return video.flip(-1) if self.reverse_channels else video, places.reshape(-1, self.reader.sampler.num_frames)

    def views(self, made: Sequence[Prepared]) -> Views:
        """Return the views of videos that `prepare` returned."""
        positions = (1,) if self.num_crops == 1 else (0, 1, 2)
        frames = share([video for video, _ in made], self.sends)
        return Views(frames, [order for _, order in made], self.scale, self.crop, positions)


class ImageEvalDataset(EvalDataset):
    """Make batches of the centre of each image."""

    def _read(self, sample: Sample, row: int) -> np.ndarray:
        image = centre_view(read_image(sample.path), self.scale, self.crop)
        return image[..., ::-1] if self.reverse_channels else image

    def views(self, made: Sequence[np.ndarray]) -> Any:
        images, video = new_clips((len(made), self.crop, self.crop, 3), self.sends)
        for target, image in zip(images, made, strict=True):
            target[...] = image
        return video
