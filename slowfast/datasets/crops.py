"""Compute boxes in a frame, and resize the crops that they select."""

import math
from dataclasses import dataclass

import cv2
import numpy as np

Box = tuple[int, int, int, int]  # y, x, height, width


def cut(part: np.ndarray, box: Box, inner: Box) -> np.ndarray:
    """Return a view of the pixels of `inner` in `part`, the (T, h, w, C) pixels of `box`, which contains `inner`."""
    y, x = inner[0] - box[0], inner[1] - box[1]
    return part[:, y : y + inner[2], x : x + inner[3]]


def grow(box: Box, margin: int, frame: Box) -> Box:
    """Add `margin` pixels around a box, as far as the frame reaches."""
    y, x, height, width = box
    top, left = max(y - margin, 0), max(x - margin, 0)
    return top, left, min(y + height + margin, frame[2]) - top, min(x + width + margin, frame[3]) - left


def swap(box: Box) -> Box:
    """Exchange the axes of a box."""
    return box[1], box[0], box[3], box[2]


def transpose(frames: np.ndarray) -> np.ndarray:
    """Return new frames (T, W, H, C) with the axes of (T, H, W, C) uint8 frames exchanged."""
    t, height, width, channels = frames.shape
    out = np.empty((t, width, height, channels), np.uint8)
    for frame, target in zip(frames, out, strict=True):
        cv2.transpose(frame, dst=target)  # several times faster than a strided copy
    return out


def short_side_size(height: int, width: int, scale: int) -> tuple[int, int]:
    """Return (height, width) after a resize of the short side to `scale`; the long side is rounded down."""
    if height < width:
        return scale, math.floor(width / height * scale)
    return math.floor(height / width * scale), scale


def resized_crop_box(
    height: int,
    width: int,
    area_range: tuple[float, float],
    aspect_range: tuple[float, float],
    rng: np.random.Generator,
) -> Box:
    """Draw the box of a random resized crop (Inception, arXiv:1409.4842, section 6; ten tries, as in torchvision).

    The box is (y, x, height, width). Its share of the frame's area is drawn from `area_range`, its width / height
    log-uniformly from `aspect_range`. If no draw fits, it is the largest centred box with an aspect ratio in the range.
    """
    log_narrow, log_wide = map(math.log, aspect_range)
    for _ in range(10):
        area = height * width * rng.uniform(*area_range)
        aspect = math.exp(rng.uniform(log_narrow, log_wide))
        h, w = round(math.sqrt(area / aspect)), round(math.sqrt(area * aspect))
        if 0 < h <= height and 0 < w <= width:
            return int(rng.integers(height - h + 1)), int(rng.integers(width - w + 1)), h, w
    aspect = min(max(width / height, aspect_range[0]), aspect_range[1])
    h, w = min(height, round(width / aspect)), min(width, round(height * aspect))
    return (height - h) // 2, (width - w) // 2, h, w


@dataclass(frozen=True)
class ResizedCrop:
    """Resize a part of each frame, bilinearly without antialiasing, and cut a square out of the result.

    Args:
        box: (y, x, height, width) of the part.
        size: (height, width) it is resized to.
        corner: (y, x) of the square in it.
        side: of the square in pixels.
        flip: mirror the square.
    """

    box: Box
    size: tuple[int, int]
    corner: tuple[int, int]
    side: int
    flip: bool = False

    def places(self) -> tuple[np.ndarray, np.ndarray]:
        """Return the rows and columns of the frame at which the square is sampled; 0 is the centre of a first pixel."""
        y, x = (
            start + ((np.arange(corner, corner + self.side) + 0.5) * length / size - 0.5).clip(0, length - 1)
            for start, length, size, corner in zip(self.box[:2], self.box[2:], self.size, self.corner, strict=True)
        )
        return y, x[::-1] if self.flip else x

    def __call__(self, part: np.ndarray, out: np.ndarray | None = None) -> np.ndarray:
        """Return a (T, side, side, 3) clip, in `out` or new, of `part`, the (T, h, w, 3) pixels of the box."""
        if out is None:
            out = np.empty((len(part), self.side, self.side, part.shape[3]), part.dtype)
        y, x = self.corner
        for image, target in zip(part, out, strict=True):
            if self.size == (self.side, self.side) and not self.flip:
                cv2.resize(image, self.size, dst=target)
                continue
            resized = image if self.size == self.box[2:] else cv2.resize(image, self.size[::-1])
            square = resized[y : y + self.side, x : x + self.side]
            if self.flip:
                cv2.flip(square, 1, dst=target)
            else:
                target[...] = square
        return out
