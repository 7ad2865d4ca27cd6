"""Transform the pixels of clips, which are uint8 until they are normalized on the device.

Training uses uint8 and OpenCV, which is fastest on the single core of a worker. An evaluation resizes in float32 as the
official code does, because the published accuracies depend on it.
"""

import math
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace
from functools import lru_cache

import cv2
import numpy as np
import torch
from torch.nn.functional import interpolate

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
    shape = (-1, 1, 1, 1)
    centre, width = (torch.as_tensor(v, dtype=torch.float32, device=video.device).view(shape) for v in (mean, std))
    return (video.float() / 255).sub_(centre).div_(width)


def to_tensor(frames: np.ndarray) -> torch.Tensor:
    """Rearrange `(T, H, W, C)` frames into a contiguous `(C, T, H, W)` tensor."""
    num_frames, height, width, channels = frames.shape
    clip = np.empty((channels, num_frames, height, width), frames.dtype)
    for t, frame in enumerate(frames):
        cv2.split(frame, list(clip[:, t]))  # ten times faster than a strided copy
    return torch.from_numpy(clip)


def resize_short_side(clip: torch.Tensor, scale: int) -> torch.Tensor:
    """Resize a (C, T, H, W) clip to a short side of `scale` pixels, on its device.

    The resize is bilinear without antialiasing, with align_corners False, in float32 as in the official code. A clip
    whose short side is already `scale` is returned unchanged.
    """
    height, width = clip.shape[2:]
    if min(height, width) == scale:
        return clip
    # OpenCV's float resize computes sample positions in double precision; its result differs from the official numbers
    # by 1e-4. Contiguous planes, here C images of T channels, are resized several times faster than interleaved ones.
    size = short_side_size(height, width, scale)
    return interpolate(clip.float(), size=size, mode="bilinear", align_corners=False)


def crop_views(clip: torch.Tensor, scale: int, crop: int, positions: Sequence[int]) -> list[torch.Tensor]:
    """Resize the short side to `scale` once, and return square crops along the long side, which share memory.

    Args:
        clip: (C, T, H, W), uint8, or float in 0..255, on any device.
        scale: short side in pixels.
        crop: side of the crops in pixels, at most `scale`.
        positions: 0 for the start (left or top), 1 for the centre, 2 for the end.

    Returns:
        One (C, T, crop, crop) tensor per position, with the type of `clip` if nothing was resized, else float32.

    Raises:
        ValueError: the crop is larger than the resized frame.
    """
    if crop > scale:
        raise ValueError(f"a crop of {crop} pixels does not fit a short side of {scale}: lower the crop")
    clip = resize_short_side(clip, scale)
    height, width = clip.shape[2:]
    crops = []
    for position in positions:
        y, x = math.ceil((height - crop) / 2), math.ceil((width - crop) / 2)
        if height > width:
            y = (0, y, height - crop)[position]
        else:
            x = (0, x, width - crop)[position]
        crops.append(clip[:, :, y : y + crop, x : x + crop])
    return crops


def to_small_tensor(frames: np.ndarray, scale: int) -> torch.Tensor:
    """Return frames as by `to_tensor`, with the short side resized to `scale` if that takes fewer bytes.

    Large frames are resized one by one: 64 frames of 4K at once would take 8 GB.
    """
    num_frames, height, width, channels = frames.shape
    size = short_side_size(height, width, scale)
    if height * width <= 4 * math.prod(size):  # four bytes for a float
        return to_tensor(frames)
    clip = torch.empty(channels, num_frames, *size)
    for t in range(num_frames):
        clip[:, t : t + 1] = resize_short_side(to_tensor(frames[t : t + 1]), scale)
    return clip


@dataclass(frozen=True)
class Views:
    """Views of videos that are not cut out yet: a worker sends whole frames, and clips are made on the device.

    Args:
        frames: (C, V * T, H, W) per video, with V temporal views one after the other; uint8, or float in 0..255.
        num_frames: T.
        scale: short side of the resized frames in pixels.
        crop: side of the crops in pixels.
        positions: positions of the crops in each temporal view, see `crop_views`.
    """

    frames: Sequence[torch.Tensor]
    num_frames: int
    scale: int
    crop: int
    positions: tuple[int, ...]

    def cut(self, device: torch.device | str = "cpu") -> Iterator[torch.Tensor]:
        """Yield the (C, T, crop, crop) clips on `device`, video by video, view by view, crop by crop."""
        for video in self.frames:
            for start in range(0, video.shape[1], self.num_frames):
                clip = video[:, start : start + self.num_frames].to(device, non_blocking=True)
                yield from crop_views(clip, self.scale, self.crop, self.positions)

    def pin_memory(self) -> "Views":
        """Copy the frames to page-locked memory; the loader calls this."""
        return replace(self, frames=[video.pin_memory() for video in self.frames])


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
    mode: str = "pixel"
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
        box[...] = noise[start : start + count].reshape(*shape, -1)


@dataclass(frozen=True)
class TrainTransform:
    """Augment a copy of a clip: RandAugment, random crop, horizontal flip, random erasing.

    Args:
        crop: side of the square result in pixels.
        jitter_scales: smallest and largest short side, used only without `area_range` and `aspect_range`.
        area_range: smallest and largest share of the area of a random resized crop; None for the jitter instead.
        aspect_range: smallest and largest width / height of a random resized crop; None for the jitter instead.
        flip: mirror half of the clips.
        rand_augment: the RandAugment; None to leave it out.
        erase: the random erasing; None to leave it out.

    Raises:
        ValueError: only one of the two ranges is given, or the crop exceeds the smallest short side of the jitter.
    """

    crop: int
    jitter_scales: tuple[int, int]
    area_range: tuple[float, float] | None = None
    aspect_range: tuple[float, float] | None = None
    flip: bool = True
    rand_augment: RandAugment | None = None
    erase: RandomErasing | None = None

    def __post_init__(self) -> None:
        if (self.area_range is None) != (self.aspect_range is None):
            raise ValueError(
                f"area_range {self.area_range} with aspect_range {self.aspect_range}: give both, or neither"
            )
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
        if self.area_range is not None and self.aspect_range is not None:
            box = resized_crop_box(height, width, self.area_range, self.aspect_range, rng)
            return ResizedCrop(box, (self.crop, self.crop), (0, 0), self.crop)
        size = short_side_size(height, width, round(rng.uniform(*self.jitter_scales)))
        y, x = (int(rng.integers(length - self.crop + 1)) for length in size)
        return ResizedCrop((0, 0, height, width), size, (y, x), self.crop)
