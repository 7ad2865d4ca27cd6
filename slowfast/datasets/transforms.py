"""Transform the pixels of clips, which are uint8 until they are normalized on the device.

Training uses uint8 and OpenCV, which is fastest on the single core of a worker; an evaluation uses `views`.
"""

import math
from collections.abc import Sequence
from dataclasses import dataclass, replace
from functools import lru_cache
from typing import Literal

import numpy as np
import torch

from slowfast.datasets.crops import ResizedCrop, resized_crop_box, short_side_size
from slowfast.datasets.rand_augment import RandAugment, augmented_crop


def normalize(
    video: torch.Tensor, mean: torch.Tensor | Sequence[float], std: torch.Tensor | Sequence[float]
) -> torch.Tensor:
    """Scale pixels from 0..255 to 0..1, subtract `mean` and divide by `std`, per channel.

    Args:
        video: (B, C, T, H, W), uint8 or float in 0..255, on any device; it is not changed.
        mean: C values; a tensor on the video's device is used without a copy.
        std: C values, as `mean`.

    Returns:
        float32 tensor of the same shape.
    """
    centre, width = (torch.as_tensor(v, dtype=torch.float32, device=video.device) for v in (mean, std))
    result = video.to(torch.float32, copy=True).div_(255)
    rows = result.movedim(1, -1)
    if rows.is_contiguous():  # channels last: three channels are too few for a fast loop, so take whole rows
        rows.flatten(3).sub_(centre.repeat(rows.shape[3])).div_(width.repeat(rows.shape[3]))
    else:
        rows.sub_(centre).div_(width)
    return result


@lru_cache
def _noise(mean: tuple[float, ...], std: tuple[float, ...], count: int) -> np.ndarray:
    """Return (count, C) pixels of normal noise: a copy from a random place is ten times as fast as a draw."""
    normal = np.random.default_rng(0).standard_normal((count, len(mean)), np.float32)
    return (255 * (normal * np.array(std, np.float32) + np.array(mean, np.float32)) + 0.5).clip(0, 255).astype(np.uint8)


@dataclass(frozen=True)
class RandomErasing:
    """Replace boxes of a clip by noise, the same boxes in every frame (random erasing, arXiv:1708.04896, as in timm).

    The noise is standard normal in normalized space; it is converted to the 0..255 of the clip and clipped.

    Args:
        prob: probability per clip.
        mode: "pixel" uses one value per pixel, channel and frame, from a random place of a fixed field of noise; "rand"
            uses one value per channel; "const" uses the mean.
        count: largest number of boxes, which share the area.
        mean: mean of the normalization, per channel.
        std: standard deviation of the normalization, per channel.

    Raises:
        ValueError: the mode is unknown.
    """

    prob: float
    mode: Literal["pixel", "rand", "const"] = "pixel"
    count: int = 1
    mean: tuple[float, ...] = (0.45, 0.45, 0.45)
    std: tuple[float, ...] = (0.225, 0.225, 0.225)

    def __post_init__(self) -> None:
        if self.mode not in ("pixel", "rand", "const"):
            raise ValueError(f"unknown mode {self.mode!r} of random erasing: use pixel, rand or const")

    def __call__(self, frames: np.ndarray, rng: np.random.Generator) -> np.ndarray:
        """Erase in `frames`, (T, H, W, C) uint8, which is changed in place and returned."""
        if rng.random() >= self.prob:
            return frames
        height, width = frames.shape[1:3]
        boxes = int(rng.integers(1, self.count, endpoint=True))
        for _ in range(boxes):
            for _ in range(10):
                area = height * width * rng.uniform(0.02, 1 / 3) / boxes
                aspect = math.exp(rng.uniform(math.log(0.3), -math.log(0.3)))
                h, w = round(math.sqrt(area * aspect)), round(math.sqrt(area / aspect))
                if h < height and w < width:
                    y, x = int(rng.integers(height - h + 1)), int(rng.integers(width - w + 1))
                    self._fill(frames[:, y : y + h, x : x + w], rng)
                    break
        return frames

    def _fill(self, box: np.ndarray, rng: np.random.Generator) -> None:
        if self.mode == "const":
            box[...] = (255 * np.array(self.mean) + 0.5).clip(0, 255)
            return
        shape = box.shape[:3] if self.mode == "pixel" else (1, 1, 1)
        count = math.prod(shape)
        noise = _noise(self.mean, self.std, 1 << max(20, (2 * count).bit_length()))
        start = int(rng.integers(len(noise) - count))
        box[...] = noise[start : start + count].reshape(*shape, len(self.mean))  # not -1: a box may be empty


@dataclass(frozen=True)
class TrainTransform:
    """Augment a copy of a clip: RandAugment, random crop, horizontal flip, random erasing.

    Args:
        crop: side of the square result in pixels.
        jitter_scales: smallest and largest short side, used only without `area_range`.
        area_range: smallest and largest share of the area of a random resized crop; None for the jitter instead.
        aspect_range: smallest and largest width / height of a random resized crop.
        flip: mirror half of the clips.
        rand_augment: the RandAugment; None to leave it out.
        erase: the random erasing; None to leave it out.

    Raises:
        ValueError: the crop exceeds the smallest short side of the jitter.
    """

    crop: int
    jitter_scales: tuple[int, int]
    area_range: tuple[float, float] | None = None
    aspect_range: tuple[float, float] = (0.75, 1.3333)
    flip: bool = True
    rand_augment: RandAugment | None = None
    erase: RandomErasing | None = None

    def __post_init__(self) -> None:
        if self.area_range is None and self.jitter_scales[0] < self.crop:
            raise ValueError(
                f"a crop of {self.crop} pixels does not fit a short side of {self.jitter_scales[0]}: lower the crop or "
                "raise jitter_scales"
            )

    def __call__(self, frames: np.ndarray, rng: np.random.Generator, out: np.ndarray | None = None) -> np.ndarray:
        """Augment `frames`, (T, H, W, C) uint8, into a (T, crop, crop, C) uint8 array, `out` or a new one."""
        ops = [] if self.rand_augment is None else self.rand_augment.draw(rng)
        crop = self._draw_crop(frames.shape[1], frames.shape[2], rng)
        crop = replace(crop, flip=self.flip and rng.random() < 0.5)
        interpolation = "bilinear" if self.rand_augment is None else self.rand_augment.interpolation
        clip = augmented_crop(frames, ops, crop, interpolation, out)
        return clip if self.erase is None else self.erase(clip, rng)

    def _draw_crop(self, height: int, width: int, rng: np.random.Generator) -> ResizedCrop:
        if self.area_range is not None:
            box = resized_crop_box(height, width, self.area_range, self.aspect_range, rng)
            return ResizedCrop(box, (self.crop, self.crop), (0, 0), self.crop)
        size = short_side_size(height, width, round(rng.uniform(*self.jitter_scales)))
        y, x = (int(rng.integers(length - self.crop + 1)) for length in size)
        return ResizedCrop((0, 0, height, width), size, (y, x), self.crop)
