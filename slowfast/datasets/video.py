"""The one video data set: an item is a video, decoded once, that gives all the clips it is wanted for."""

from collections.abc import Callable, Sequence
from dataclasses import replace
from typing import Any, Literal

import numpy as np
import torch
from torch.utils.data import Dataset

from slowfast.datasets.guarded import read_frames_within
from slowfast.datasets.lists import Sample, VideoList
from slowfast.datasets.reader import MediaError
from slowfast.datasets.sampling import annotated_indices, dense_indices, sparse_indices
from slowfast.datasets.shared import reserve, share, stack, take
from slowfast.datasets.transforms import TrainTransform, Views, to_small_tensor
from slowfast.datasets.workers import note_row
from slowfast.utils.rng import rng_for

MAX_TRIES = 10


class VideoDataset(Dataset[dict[str, Any]]):
    """Clips of the videos of a list, for training (with `transform`) or for validation and test (without).

    `dataset[(epoch, index)]` is a dict of one video with V clips:

    * "video": V uint8 clips (C, T, H, W) in training; in an evaluation the `Views` that V clips are cut out of.
    * "label", "index" (row of the list), "view": (V,) int64.
    * "bad": list of (path, reason) of videos that could not be decoded.

    In training the V clips are augmented copies of the same frames, and a broken video gives way to another one, drawn
    by the same coordinates. In an evaluation clip v is temporal view `v // num_crops` and spatial crop `v % num_crops`,
    nothing is random and nothing is substituted: a broken video is an item without clips, named in "bad".

    Args:
        samples: the samples.
        sampling: "dense" (a window) or "sparse" (one frame per segment); annotated segments count in training only.
        num_frames: T.
        sampling_rate: frames of the video per frame of a dense clip.
        use_offset: dense views start at whole frames.
        seed: first coordinate of every draw.
        transform: augmentation of a training clip; None makes this an evaluation.
        num_copies: V of training.
        num_views: temporal views of an evaluation.
        num_crops: spatial crops of an evaluation, 1 (the centre) or 3.
        scale: short side that an evaluation resizes to, in pixels.
        crop: side of the crops of an evaluation, in pixels.
        shuffle_frames: give the frames of every evaluation clip in random order, to see what a model makes of motion.
        image_template: name of image number k of a frame folder.
        colors: order of the channels, "RGB" or "BGR".
        reverse_channels: turn that order around at the very end.
        backend: decoder of video files: "pyav", "decord" or "torchcodec".
        decode_timeout: seconds after which a read is given up and its video counts as broken; 0 waits for ever.
    """

    def __init__(
        self,
        samples: VideoList,
        *,
        sampling: Literal["dense", "sparse"],
        num_frames: int,
        sampling_rate: int = 1,
        use_offset: bool = True,
        seed: int = 0,
        transform: TrainTransform | None = None,
        num_copies: int = 1,
        num_views: int = 1,
        num_crops: int = 1,
        scale: int = 224,
        crop: int = 224,
        shuffle_frames: bool = False,
        image_template: str = "img_{:05d}.jpg",
        colors: str = "RGB",
        reverse_channels: bool = False,
        backend: str = "pyav",
        decode_timeout: float = 0,
    ) -> None:
        assert num_crops in (1, 3), num_crops
        self.samples = samples
        self.sampling = sampling
        self.num_frames = num_frames
        self.sampling_rate = sampling_rate
        self.use_offset = use_offset
        self.seed = seed
        self.transform = transform
        self.num_copies = num_copies
        self.num_views = num_views
        self.num_crops = num_crops
        self.scale = scale
        self.crop = crop
        self.shuffle_frames = shuffle_frames
        self.image_template = image_template
        self.colors = colors
        self.reverse_channels = reverse_channels
        self.backend = backend
        self.decode_timeout = decode_timeout
        self.killed: dict[int, str] = {}  # rows during whose reading a worker was killed -> reason

    def __len__(self) -> int:
        return len(self.samples)

    def __getitem__(self, key: tuple[int, int]) -> dict[str, Any]:
        epoch, index = key
        if self.transform is None:
            return self._evaluation_item(index)
        return self._training_item(epoch, index, self.transform)

    def __getitems__(self, keys: Sequence[tuple[int, int]]) -> list[dict[str, Any]]:
        """The items of a batch, which a loader asks for together: training clips are made where they are sent from."""
        if self.transform is not None:
            reserve(len(keys) * self.num_copies, self._clip(self.transform))
        try:
            return [self[key] for key in keys]
        finally:
            note_row(None)

    def _clip(self, transform: TrainTransform) -> torch.Tensor:
        """What a training clip is like, without memory."""
        shape = (self.num_frames, transform.crop, transform.crop, 3)
        return torch.empty(shape, dtype=torch.uint8, device="meta").movedim(-1, 0)

    def _training_item(self, epoch: int, index: int, transform: TrainTransform) -> dict[str, Any]:
        def choose(length: int) -> list[int]:
            rng = rng_for(self.seed, epoch, index, "temporal")
            if sample.segment is not None:
                return annotated_indices(length, self.num_frames, sample.segment, rng)
            return self._indices(length, None, rng)

        bad = []
        row = index
        for attempt in range(MAX_TRIES):
            sample = self.samples[row]
            try:
                frames = self._read(row, sample, choose)
                break
            except MediaError as error:
                bad.append((error.path, error.reason))
                others = max(len(self) - 1, 1)
                step = rng_for(self.seed, epoch, index, "substitute", attempt).integers(others)
                row = (index + 1 + int(step)) % len(self)
        else:
            listed = "".join(f"\n  {path}: {reason}" for path, reason in bad)
            raise MediaError(f"{MAX_TRIES} videos in a row cannot be decoded:{listed}")
        clips = take(self.num_copies, self._clip(transform))
        for copy, clip in enumerate(clips):
            transform(frames, rng_for(self.seed, epoch, index, copy), clip.movedim(0, -1).numpy())
            if self.reverse_channels:
                clip.copy_(clip.flip(0))
        return self._item(list(clips), len(clips), row, bad)

    def _evaluation_item(self, index: int) -> dict[str, Any]:
        def choose(length: int) -> list[int]:
            return [i for view in range(self.num_views) for i in self._clip_indices(length, view, index)]

        try:
            frames = self._read(index, self.samples[index], choose)
        except MediaError as error:
            return self._views([], index, [(error.path, error.reason)])
        return self._views([to_small_tensor(frames, self.scale)], index, [])

    def _views(self, videos: list[torch.Tensor], index: int, bad: list[tuple[str, str]]) -> dict[str, Any]:
        positions = (1,) if self.num_crops == 1 else (0, 1, 2)
        videos = [video.flip(0) if self.reverse_channels else video for video in videos]
        views = Views(videos, self.num_frames, self.scale, self.crop, positions)
        return self._item(views, len(videos) * self.num_views * self.num_crops, index, bad)

    def _clip_indices(self, length: int, view: int, index: int) -> list[int]:
        indices = self._indices(length, view, None)
        if self.shuffle_frames:
            rng_for(self.seed, index, view, "shuffle").shuffle(indices)
        return indices

    def _indices(self, length: int, view: int | None, rng: np.random.Generator | None) -> list[int]:
        if self.sampling == "dense":
            return dense_indices(
                length, self.num_frames, self.sampling_rate, view, self.num_views, rng, self.use_offset
            )
        return sparse_indices(length, self.num_frames, view, self.num_views, rng)

    def _read(self, row: int, sample: Sample, choose: Callable[[int], list[int]]) -> np.ndarray:
        if row in self.killed:
            raise MediaError(sample.path, self.killed[row])
        note_row(row)
        return read_frames_within(
            self.decode_timeout,
            sample.path,
            choose,
            num_frames=sample.num_frames,
            image_template=self.image_template,
            colors=self.colors,
            backend=self.backend,
        )

    def _item(
        self, video: list[torch.Tensor] | Views, clips: int, row: int, bad: list[tuple[str, str]]
    ) -> dict[str, Any]:
        return {
            "video": video,
            "label": torch.full((clips,), int(self.samples.labels[row])),
            "index": torch.full((clips,), row),
            "view": torch.arange(clips),
            "bad": bad,
        }


def collate(items: Sequence[dict[str, Any]]) -> dict[str, Any]:
    """Join the clips of several videos: "video", B of them, "label", "index", "view" (B,), and the "bad" of all.

    B is the sum of the V's, and 0 if every video was skipped: images are then an empty tensor of one dimension.
    """
    batch: dict[str, Any] = {name: torch.cat([item[name] for item in items]) for name in ("label", "index", "view")}
    videos = [item["video"] for item in items]
    if isinstance(videos[0], Views):
        batch["video"] = replace(videos[0], frames=share([frames for views in videos for frames in views.frames]))
    else:
        clips = [clip for video in videos for clip in video]
        batch["video"] = stack(clips) if clips else torch.empty(0, dtype=torch.uint8)
    return {**batch, "bad": [entry for item in items for entry in item["bad"]]}
