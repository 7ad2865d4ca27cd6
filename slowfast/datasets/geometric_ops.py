"""RandAugment's operations that move pixels, and the resized crop, which can join them in one map.

A shear or a translation is a filter of four pixels along an axis, within one grey level of Pillow's. A map, of
rotations and of several operations, differs by OpenCV's bicubic kernel (-0.75 where Pillow has -1), its grid of 1/32
pixel, and within a pixel of the border.
"""

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass

import cv2
import numpy as np

from slowfast.datasets.value_ops import CUT, Op

Box = tuple[int, int, int, int]  # y, x, height, width

GREY = (128, 128, 128)
INTERPOLATIONS = {"bilinear": cv2.INTER_LINEAR, "bicubic": cv2.INTER_CUBIC}
# Where no frame reaches, for the maps below; OpenCV holds places as int16.
_OUTSIDE = -9999.0


def _rotation(degrees: float, height: int, width: int) -> np.ndarray:
    turn = math.radians(degrees)
    rotation = np.array([[math.cos(turn), -math.sin(turn)], [math.sin(turn), math.cos(turn)]])
    centre = np.array([[width / 2], [height / 2]])
    return np.hstack([rotation, centre - rotation @ centre])


# From (argument, height, width) to the matrix that finds the source of an output pixel; the frame's corner is (0, 0).
GEOMETRIC_OPS: dict[str, Callable[[float, int, int], np.ndarray]] = {
    "Rotate": _rotation,
    "ShearX": lambda factor, height, width: np.array([[1, factor, 0], [0, 1, 0.0]]),
    "ShearY": lambda factor, height, width: np.array([[1, 0, 0], [factor, 1, 0.0]]),
    "TranslateXRel": lambda share, height, width: np.array([[1, 0, share * width], [0, 1, 0.0]]),
    "TranslateYRel": lambda share, height, width: np.array([[1, 0, 0], [0, 1, share * height]]),
}
# All pixels of a row, or of a column, go equally far along it: filters do that several times faster than a map.
VERTICAL_SLIDES = {"ShearY": "ShearX", "TranslateYRel": "TranslateXRel"}
SLIDES = (*VERTICAL_SLIDES, *VERTICAL_SLIDES.values())
# Pillow's, of the pixels -1, 0, 1 and 2 for a place that lies d after pixel 0.
WEIGHTS: dict[str, Callable[[float], np.ndarray]] = {
    "bilinear": lambda d: np.array([0, 1 - d, d, 0]),
    "bicubic": lambda d: np.array([-d + 2 * d**2 - d**3, 1 - 2 * d**2 + d**3, d + d**2 - d**3, -(d**2) + d**3]),
}


@dataclass(frozen=True)
class ResizedCrop:
    """A part of a frame, resized bilinearly without antialiasing, and a square cut out of that.

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
        """Rows and columns of the frame that the square's lie on, counted from the centre of the first pixel."""
        y, x = (
            start + ((np.arange(corner, corner + self.side) + 0.5) * length / size - 0.5).clip(0, length - 1)
            for start, length, size, corner in zip(self.box[:2], self.box[2:], self.size, self.corner, strict=True)
        )
        return y, x[::-1] if self.flip else x

    def __call__(self, part: np.ndarray, out: np.ndarray | None = None) -> np.ndarray:
        """Turn `part`, the (T, h, w, 3) pixels of the box, into a (T, side, side, 3) clip, in `out` or new."""
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


def source(ops: Sequence[Op], height: int, width: int, rows: np.ndarray, columns: np.ndarray) -> tuple[np.ndarray, Box]:
    """Where the geometric `ops` take the pixels of these rows and columns from.

    Args:
        ops: (name, argument) in order.
        height: of the frame.
        width: of the frame.
        rows: rising.
        columns: rising or falling.

    Returns:
        Places (2, rows, columns), x then y, and a box of the frame that has all pixels their interpolation needs.
    """
    x, y = columns.astype(np.float32) + 0.5, rows.astype(np.float32)[:, None] + 0.5
    outside = np.zeros((len(rows), len(columns)), bool)
    for name, argument in reversed(ops):
        (a, b, c), (d, e, f) = GEOMETRIC_OPS[name](argument, height, width).astype(np.float32)
        x, y = a * x + (b * y + c), d * x + (e * y + f)
        outside |= (x < 0) | (x >= width) | (y < 0) | (y >= height)
    places = np.empty((2, *outside.shape), np.float32)
    for place, target, length in zip((x, y), places, (width, height), strict=True):
        np.clip(place - np.float32(0.5), 0, length - 1, out=target)
    corners = places[:, [0, 0, -1, -1], [0, -1, 0, -1]]  # between them lies all the rest
    (left, top), (right, bottom) = map(int, corners.min(1)), map(math.ceil, corners.max(1))
    places[:, outside] = _OUTSIDE
    return places, grow((top, left, bottom - top + 1, right - left + 1), 2, height, width)  # 2: of a cubic kernel


def grow(box: Box, margin: int, height: int, width: int) -> Box:
    """`box` and so many pixels around it, as far as the frame reaches."""
    y, x, h, w = box
    top, left = max(y - margin, 0), max(x - margin, 0)
    return top, left, min(y + h + margin, height) - top, min(x + w + margin, width) - left


def warp(
    part: np.ndarray,
    origin: tuple[int, int],
    places: np.ndarray,
    interpolation: str,
    out: np.ndarray | None = None,
) -> np.ndarray:
    """Sample `part`, whose first pixel is `origin` (y, x) of the frame, at `places`; outside of the frame is grey.

    The result is in `out`, or new.
    """
    whole, fraction = cv2.convertMaps(places[0] - origin[1], places[1] - origin[0], cv2.CV_16SC2)  # for all frames
    if out is None:
        out = np.empty((len(part), *places.shape[1:], part.shape[3]), np.uint8)
    for image, target in zip(part, out, strict=True):
        cv2.remap(image, whole, fraction, INTERPOLATIONS[interpolation], target, cv2.BORDER_CONSTANT, GREY)
    return out


def _shifts(op: Op, box: Box, width: int) -> np.ndarray:
    """How far along x the sources of the pixels of `box` lie: a number for each row, or one for all."""
    name, argument = op
    return argument * (np.arange(box[0], box[0] + box[2]) + 0.5) if name == "ShearX" else np.array([argument * width])


def slide_source(op: Op, box: Box, height: int, width: int) -> Box:
    """The part of the frame that a slide makes the pixels of `box` from."""
    if op[0] in VERTICAL_SLIDES:
        return _swap(slide_source((VERTICAL_SLIDES[op[0]], op[1]), _swap(box), width, height))
    shifts = _shifts(op, box, width)
    y, x, h, w = box
    left, right = x + math.floor(shifts.min()) - 2, x + w + math.ceil(shifts.max()) + 2  # 2: of a cubic kernel
    left = min(max(left, 0), width - 1)
    return y, left, h, max(min(right, width) - left, 1)


def slide(part: np.ndarray, box: Box, given: Box, op: Op, height: int, width: int, interpolation: str) -> np.ndarray:
    """Make the pixels of `given` from `part`, which holds `box`, by filters of four pixels in a row."""
    if op[0] in VERTICAL_SLIDES:
        op = VERTICAL_SLIDES[op[0]], op[1]
        turned = slide(_transpose(part), _swap(box), _swap(given), op, width, height, interpolation)
        return _transpose(turned)
    out = np.full((len(part), *given[2:], part.shape[3]), GREY[0], np.uint8)
    part = np.ascontiguousarray(part)
    shifts = _shifts(op, given, width)
    if len(shifts) == 1:
        images = zip(part, out, shifts.repeat(len(part)), strict=True)
    else:  # the same row of all frames is an image, too
        images = zip(part.swapaxes(0, 1), out.swapaxes(0, 1), shifts, strict=True)
    for image, target, shift in images:
        whole, d = math.floor(shift), shift - math.floor(shift)
        # columns whose place is in the frame
        start = max(given[1], math.ceil(-0.5 - shift))
        stop = min(given[1] + given[3], math.ceil(width - 0.5 - shift))
        if start >= stop:
            continue
        weights = WEIGHTS[interpolation](d)
        made = cv2.filter2D(image, -1, weights[None], anchor=(1, 0), delta=CUT, borderType=cv2.BORDER_REPLICATE)
        if start + whole < 0:  # less than half a pixel before the first one
            first, second = image[:, :1], image[:, min(1, image.shape[1] - 1) :][:, :1]
            target[:, start - given[1]] = cv2.addWeighted(first, 1 - weights[3], second, weights[3], CUT)[:, 0]
            start += 1
        target[:, start - given[1] : stop - given[1]] = made[:, start + whole - box[1] : stop + whole - box[1]]
    return out


def _swap(box: Box) -> Box:
    return box[1], box[0], box[3], box[2]


def _transpose(frames: np.ndarray) -> np.ndarray:
    t, h, w, c = frames.shape
    out = np.empty((t, w, h, c), np.uint8)
    for frame, target in zip(frames, out, strict=True):
        cv2.transpose(frame, dst=target)
    return out


def cut(part: np.ndarray, box: Box, inner: Box) -> np.ndarray:
    """View of `inner` in `part`, which holds `box`; both in pixels of the frame."""
    y, x = inner[0] - box[0], inner[1] - box[1]
    return part[:, y : y + inner[2], x : x + inner[3]]
