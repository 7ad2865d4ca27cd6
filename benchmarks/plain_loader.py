"""Load clips in the usual ways, which `loading.py` compares with ours: decoding alone, and the official steps."""

from __future__ import annotations

import os
from collections.abc import Callable, Sequence
from typing import Any

import numpy as np
import torch
from PIL import Image
from timm.data.auto_augment import NAME_TO_OP
from torch import Tensor
from torch.nn.functional import interpolate
from torch.utils.data import Dataset, default_collate
from torchvision.transforms.functional import to_pil_image, to_tensor

from slowfast.datasets.crops import resized_crop_box, short_side_size
from slowfast.datasets.dataset import Key, TrainDataset, VideoEvalDataset, VideoReader
from slowfast.datasets.rand_augment import GREY
from slowfast.datasets.reader import read_frames
from slowfast.datasets.transforms import TrainTransform
from slowfast.utils.rng import rng_for

VideoDataset = TrainDataset | VideoEvalDataset


def reader_of(dataset: VideoDataset) -> VideoReader:
    """Return the reader of a data set of videos."""
    assert isinstance(dataset.reader, VideoReader)
    return dataset.reader


def frame_indices(dataset: VideoDataset, epoch: int, index: int, length: int, view: int) -> list[int]:
    """Return the frames of temporal view `view` of a video (of a training clip, for any `view`)."""
    if isinstance(dataset, TrainDataset):
        rng = rng_for(dataset.seed, epoch, index, "temporal")
        return reader_of(dataset).clip_indices(length, dataset.samples[index], rng)
    return dataset.reader.sampler(length, view, None)


def read_plainly(dataset: VideoDataset, index: int, choose: Callable[[int], list[int]]) -> np.ndarray:
    """Return the frames (T, H, W, 3) that `choose` selects, read as in the official code: by decord in this process."""
    sample = dataset.samples[index]
    if os.path.isdir(sample.path):
        options = {"num_frames": sample.num_frames, "image_template": reader_of(dataset).image_template}
        return read_frames(sample.path, choose, **options)
    import decord  # exists for some processors only

    video = decord.VideoReader(sample.path, num_threads=1)
    return video.get_batch(choose(len(video))).asnumpy()


class Decode(Dataset[int]):
    """Decode the frames of all clips of a video once; an item is the number of frames."""

    def __init__(self, dataset: VideoDataset) -> None:
        self.dataset = dataset

    def __getitem__(self, key: Key) -> int:
        views = self.dataset.num_views if isinstance(self.dataset, VideoEvalDataset) else 1

        def choose(length: int) -> list[int]:
            return [i for view in range(views) for i in frame_indices(self.dataset, *key, length, view)]

        return len(read_plainly(self.dataset, key[1], choose))


class Plain(Dataset[dict[str, Any]]):
    """Make the clips of `dataset` in the usual way: {"video": list of float32 (C, T, H, W), "label": list}.

    Args:
        dataset: gives the clips of an item: augmented copies in training, all views in a test.
        mean: mean of the normalization, per channel.
        std: standard deviation of the normalization, per channel.
    """

    def __init__(self, dataset: VideoDataset, mean: Sequence[float], std: Sequence[float]) -> None:
        self.dataset = dataset
        self.mean, self.std = torch.tensor(mean), torch.tensor(std)

    def __getitem__(self, key: Key) -> dict[str, list[Any]]:
        data = self.dataset
        if isinstance(data, TrainDataset):
            assert isinstance(data.transform, TrainTransform)
            frames = self._decode(key, 0)
            rngs = (rng_for(data.seed, *key, copy) for copy in range(data.num_copies))
            clips = [self._augment(frames, data.transform, rng) for rng in rngs]
        else:
            positions = (1,) if data.num_crops == 1 else range(data.num_crops)
            views = range(data.num_views)
            clips = [self._view(data, key, view, position) for view in views for position in positions]
        return {"video": clips, "label": [int(data.samples.labels[key[1]])] * len(clips)}

    def _decode(self, key: Key, view: int) -> np.ndarray:
        return read_plainly(self.dataset, key[1], lambda n: frame_indices(self.dataset, *key, n, view))

    def _normalize(self, frames: np.ndarray) -> Tensor:
        return self._normalize_floats(torch.from_numpy(frames).float() / 255)

    def _normalize_floats(self, frames: Tensor) -> Tensor:
        return ((frames - self.mean) / self.std).permute(3, 0, 1, 2)

    def _view(self, dataset: VideoEvalDataset, key: Key, view: int, position: int) -> Tensor:
        clip = self._normalize(self._decode(key, view))
        crop = dataset.crop
        height, width = clip.shape[2:]
        if min(height, width) != dataset.scale:
            height, width = short_side_size(height, width, dataset.scale)
            clip = interpolate(clip, size=(height, width), mode="bilinear", align_corners=False)
        y, x = -((crop - height) // 2), -((crop - width) // 2)
        if height > width:
            y = (0, y, height - crop)[position]
        else:
            x = (0, x, width - crop)[position]
        return clip[:, :, y : y + crop, x : x + crop]

    def _augment(self, frames: np.ndarray, transform: TrainTransform, rng: np.random.Generator) -> Tensor:
        if transform.rand_augment is not None:
            clip = self._normalize_floats(self._rand_augment(frames, transform, rng))
        else:
            clip = self._normalize(frames)
        side = transform.crop
        height, width = clip.shape[2:]
        if transform.area_range is not None:
            y, x, h, w = resized_crop_box(height, width, transform.area_range, transform.aspect_range, rng)
            clip = clip[:, :, y : y + h, x : x + w]
            clip = interpolate(clip, size=(side, side), mode="bilinear", align_corners=False)
        else:
            size = short_side_size(height, width, round(rng.uniform(*transform.jitter_scales)))
            clip = interpolate(clip, size=size, mode="bilinear", align_corners=False)
            y, x = (int(rng.integers(length - side + 1)) for length in size)
            clip = clip[:, :, y : y + side, x : x + side]
        if transform.flip and rng.random() < 0.5:
            clip = clip.flip(-1)
        if transform.erase is not None and rng.random() < transform.erase.prob:
            share, log_aspect = rng.uniform(0.02, 1 / 3), rng.uniform(np.log(0.3), -np.log(0.3))
            h, w = (round(np.sqrt(side * side * share * np.exp(sign * log_aspect))) for sign in (1, -1))
            if h < side and w < side:
                y, x = int(rng.integers(side - h + 1)), int(rng.integers(side - w + 1))
                clip[:, :, y : y + h, x : x + w] = torch.randn(*clip.shape[:2], h, w)
        return clip

    def _rand_augment(self, frames: np.ndarray, transform: TrainTransform, rng: np.random.Generator) -> Tensor:
        """Return (T, H, W, 3) with values from 0 to 1."""
        assert transform.rand_augment is not None
        resample = {"bilinear": Image.Resampling.BILINEAR, "bicubic": Image.Resampling.BICUBIC}
        options = {"fillcolor": GREY, "resample": resample[transform.rand_augment.interpolation]}
        images = [to_pil_image(frame) for frame in torch.from_numpy(frames).permute(0, 3, 1, 2)]
        for name, argument in transform.rand_augment.draw(rng):
            arguments = () if name in ("AutoContrast", "Equalize", "Invert") else (argument,)
            if name == "Posterize" and argument < 1:  # newer versions of Pillow reject 0 bits
                arguments = (1,)
            images = [NAME_TO_OP[name](image, *arguments, **options) for image in images]
        return torch.stack([to_tensor(image) for image in images]).permute(0, 2, 3, 1)


def plain_collate(items: Sequence[dict[str, list[Any]]]) -> dict[str, Tensor]:
    """Join the clips of several videos."""
    return {name: default_collate([entry for item in items for entry in item[name]]) for name in items[0]}
