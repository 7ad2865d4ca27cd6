"""Apply RandAugment (arXiv:1909.13719) to whole clips, with timm's operations, magnitudes and notation.

All frames of a clip get the same operations. timm uses Pillow; here OpenCV computes the same results. Look-up tables
are exact except Contrast, which is within one grey level, as are filters, shears and translations. A map (a rotation,
or several geometric operations in a row) differs by OpenCV's bicubic kernel (-0.75 instead of -1), by its grid of 1/32
pixel, and within one pixel of the border.

`augmented_crop` applies the operations and the resized crop after them in few passes:

* Geometric operations in a row become one map. What leaves the frame in any of them is grey, as in single steps.
* Geometric operations directly before the crop join it: the result is sampled once, bilinearly.
* Only the part of the frame that the crop can see is computed, except where statistics of the whole frame are needed.

The order never changes, so the result differs from that of single steps only by the repeated interpolation of the
latter. To add an operation, write its function and a row of `OPERATIONS`.
"""

import math
import re
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from itertools import groupby
from typing import Literal, NamedTuple

import cv2
import numpy as np

from slowfast.datasets.crops import Box, ResizedCrop, cut, grow, swap, transpose

Op = tuple[str, float]  # name and argument
Step = tuple[Box, Callable[[np.ndarray], np.ndarray]]  # a function of pixels, and the box of the frame that it takes
MAX_LEVEL = 10.0
GREY = (128, 128, 128)
INTERPOLATIONS = {"bilinear": cv2.INTER_LINEAR, "bicubic": cv2.INTER_CUBIC}
REACH = 2  # pixels: how far a bicubic kernel extends beyond the pixel before the sampled place
LUMA = np.array([19595, 38470, 7471]) / 65536  # ITU-R 601, of red, green and blue
CUT = -0.499  # added before OpenCV rounds to the nearest integer, so that the fraction is cut off, as in Pillow
_OUTSIDE = -9999.0  # a place outside of any frame; OpenCV stores places as int16
_VALUES = np.arange(256)
_NOTATION = r"-(mstd|inc|m|n)(\d+(?:\.\d+)?)"


# Functions of tables return (256,) for every channel and frame, or (T, 3 or 1, 256) from the statistics of the frames.


def _blend(grey: np.ndarray | int, factor: float) -> np.ndarray:
    """Return the table of `grey + factor * (value - grey)`, in Pillow's single precision."""
    grey = np.asarray(grey, np.float32)
    return (grey + np.float32(factor) * (_VALUES.astype(np.float32) - grey)).clip(0, 255)


def _contrast(factor: float, frames: np.ndarray) -> np.ndarray:
    means = np.array([cv2.mean(frame)[:3] for frame in frames])
    return _blend(np.floor(means @ LUMA + 0.5)[:, None, None], factor)


def _auto_contrast(_: float, frames: np.ndarray) -> np.ndarray:
    low, high = (extreme(extreme(frames, 1), 1)[..., None].astype(int) for extreme in (np.min, np.max))
    scale = 255.0 / np.maximum(high - low, 1)
    return np.where(high > low, np.trunc(_VALUES * scale - low * scale).clip(0, 255), _VALUES)


def _equalize(_: float, frames: np.ndarray) -> np.ndarray:
    counts = [cv2.calcHist([frame], [channel], None, [256], [0, 256]) for frame in frames for channel in range(3)]
    counts = np.reshape(counts, (len(frames), 3, 256)).astype(np.int64)
    highest = 255 - (counts[..., ::-1] > 0).argmax(-1, keepdims=True)
    step = (counts.sum(-1, keepdims=True) - np.take_along_axis(counts, highest, -1)) // 255
    before = np.cumsum(counts, -1) - counts
    return np.where(step > 0, ((step // 2 + before) // np.maximum(step, 1)).clip(0, 255), _VALUES)


def _color(factor: float, frames: np.ndarray) -> np.ndarray:
    t, h, w, c = frames.shape
    blend = np.hstack([factor * np.eye(3) + (1 - factor) * LUMA, np.full((3, 1), CUT)])
    return cv2.transform(frames.reshape(t * h, w, c), blend).reshape(frames.shape)


def _sharpness(factor: float, frames: np.ndarray) -> np.ndarray:
    t, h, w, c = frames.shape
    kernel = np.full((3, 3), (1 - factor) / 13)
    kernel[1, 1] = factor + (1 - factor) * 5 / 13
    out = cv2.filter2D(frames.reshape(t * h, w, c), -1, kernel, delta=CUT).reshape(frames.shape)
    for edge in (np.s_[:, 0], np.s_[:, -1], np.s_[:, :, 0], np.s_[:, :, -1]):  # Pillow does not smooth the border
        out[edge] = frames[edge]
    return out


def _rotate(degrees: float, height: int, width: int) -> np.ndarray:
    """Return the matrix from an output pixel to its source; the corner of the frame is (0, 0)."""
    turn = math.radians(degrees)
    rotation = np.array([[math.cos(turn), -math.sin(turn)], [math.sin(turn), math.cos(turn)]])
    centre = np.array([[width / 2], [height / 2]])
    return np.hstack([rotation, centre - rotation @ centre])


def _signed(most: float) -> Callable[[float, int, bool], float]:
    return lambda share, sign, _: sign * share * most


def _factor(share: float, sign: int, increasing: bool) -> float:
    return max(0.1, 1 + sign * share * 0.9) if increasing else share * 1.8 + 0.1


def _falling(most: int) -> Callable[[float, int, bool], float]:
    return lambda share, _, increasing: most - int(share * most) if increasing else int(share * most)


class Operation(NamedTuple):
    """An operation of RandAugment.

    Attributes:
        kind: "table", "filter" or "geometric"; geometric operations in a row are applied together.
        make: function of the argument and the frames that returns a table or, for a filter, new frames; for a geometric
            operation, function of the argument, height and width that returns a matrix.
        argument: function of (level / 10, sign, increasing), which returns the argument: bits, a threshold, a blend
            factor, degrees, or a share of the frame. The sign, +1 or -1, is the direction of operations that have two.
        whole: whether a table needs statistics of the whole frame.
    """

    kind: Literal["table", "filter", "geometric"]
    make: Callable[..., np.ndarray]
    argument: Callable[[float, int, bool], float] = lambda share, sign, increasing: 0.0
    whole: bool = False


OPERATIONS: dict[str, Operation] = {  # a draw is the number of a row: add new rows at the end
    "AutoContrast": Operation("table", _auto_contrast, whole=True),
    "Equalize": Operation("table", _equalize, whole=True),
    "Invert": Operation("table", lambda *_: 255 - _VALUES),
    "Posterize": Operation("table", lambda bits, *_: _VALUES & (256 - 2 ** (8 - int(bits))), _falling(4)),
    "Solarize": Operation("table", lambda start, *_: np.where(start > _VALUES, _VALUES, 255 - _VALUES), _falling(256)),
    "SolarizeAdd": Operation(
        "table",
        lambda addend, *_: np.where(_VALUES < 128, np.minimum(_VALUES + addend, 255), _VALUES),
        lambda share, sign, increasing: int(share * 110),
    ),
    "Color": Operation("filter", _color, _factor),
    "Contrast": Operation("table", _contrast, _factor, whole=True),
    "Brightness": Operation("table", lambda factor, *_: _blend(0, factor), _factor),
    "Sharpness": Operation("filter", _sharpness, _factor),
    "Rotate": Operation("geometric", _rotate, _signed(30)),
    "ShearX": Operation("geometric", lambda s, h, w: np.array([[1, s, 0], [0, 1, 0.0]]), _signed(0.3)),
    "ShearY": Operation("geometric", lambda s, h, w: np.array([[1, 0, 0], [s, 1, 0.0]]), _signed(0.3)),
    "TranslateXRel": Operation("geometric", lambda s, h, w: np.array([[1, 0, s * w], [0, 1, 0.0]]), _signed(0.45)),
    "TranslateYRel": Operation("geometric", lambda s, h, w: np.array([[1, 0, 0], [0, 1, s * h]]), _signed(0.45)),
}
# All pixels of a row or column move equally far along it: a filter does this several times faster than a map.
TURNED_SLIDES = {"ShearY": "ShearX", "TranslateYRel": "TranslateXRel"}
SLIDES = (*TURNED_SLIDES, *TURNED_SLIDES.values())


def augmented_crop(
    frames: np.ndarray,
    ops: Sequence[Op],
    crop: ResizedCrop | None,
    interpolation: str = "bicubic",
    out: np.ndarray | None = None,
) -> np.ndarray:
    """Apply `ops` (see `RandAugment.draw`), then `crop`, in as few passes as the order of `ops` allows.

    Args:
        frames: (T, H, W, 3) uint8; not changed.
        ops: (name, argument) in order.
        crop: None returns whole frames.
        interpolation: "bilinear" or "bicubic", for geometric operations that are not directly before the crop.
        out: contiguous array for the result of `crop`; None makes a new one.

    Returns:
        (T, side, side, 3) uint8, or a new (T, H, W, 3) without `crop`.
    """
    height, width = frames.shape[1:3]
    groups: list[list[Op]] = []
    for kind, row in groupby(ops, lambda op: OPERATIONS[op[0]].kind):
        group = list(row)
        groups += [group] if kind == "geometric" else [[op] for op in group]
    steps: list[Callable[[np.ndarray], np.ndarray]] = []  # the last one first
    box = whole = (0, 0, height, width)
    if crop is not None and ops and OPERATIONS[ops[-1][0]].kind == "geometric":
        box, step = _plan_map(groups.pop(), *crop.places(), whole, "bilinear", out)
        steps.append(step)
    elif crop is not None:
        box = crop.box
        steps.append(lambda part: crop(part, out))
    for group in reversed(groups):  # each step makes the box that the next one takes
        box, step = _plan(group, box, whole, interpolation)
        steps.append(step)
    part = cut(frames, whole, box)
    for step in reversed(steps):
        part = step(part)
    return part if steps else part.copy()


def _plan(ops: Sequence[Op], wanted: Box, whole: Box, interpolation: str) -> Step:
    """Plan one operation, or geometric ones in a row."""
    name, argument = ops[0]
    operation = OPERATIONS[name]
    if operation.kind == "table":
        seen = whole if operation.whole else wanted
        return seen, lambda part: _look_up(cut(part, seen, wanted), operation.make(argument, part))
    if operation.kind == "filter":
        area = grow(wanted, 1, whole)  # a filter needs the neighbours of a pixel
        return area, lambda part: cut(operation.make(argument, np.ascontiguousarray(part)), area, wanted)
    if len(ops) == 1 and name in SLIDES:
        return _plan_slide(name, argument, wanted, whole, interpolation)
    rows, columns = (np.arange(start, start + length) for start, length in zip(wanted[:2], wanted[2:], strict=True))
    return _plan_map(ops, rows, columns, whole, interpolation)


def _look_up(frames: np.ndarray, tables: np.ndarray) -> np.ndarray:
    """Return new (T, H, W, 3) frames with the values replaced by those of tables, broadcast to (T, 3 or 1, 256)."""
    out = np.empty(frames.shape, np.uint8)
    _, height, width, channels = frames.shape
    tables = np.array(tables, np.uint8, ndmin=3)
    tables = np.broadcast_to(tables, (len(frames), *tables.shape[1:]))
    for source, target, table in zip(frames, out, tables, strict=True):
        if len(table) == 1:
            cv2.LUT(source.reshape(height, width * channels), table[0], dst=target.reshape(height, width * channels))
        else:
            cv2.LUT(source, np.ascontiguousarray(table.T[None]), dst=target)
    return out


def _plan_map(
    ops: Sequence[Op],
    rows: np.ndarray,
    columns: np.ndarray,
    whole: Box,
    interpolation: str,
    out: np.ndarray | None = None,
) -> Step:
    """Plan geometric `ops` for the pixels of these rows (rising) and columns (rising or falling)."""
    height, width = whole[2:]
    x, y = columns.astype(np.float32) + 0.5, rows.astype(np.float32)[:, None] + 0.5
    outside = np.zeros((len(rows), len(columns)), bool)
    for name, argument in reversed(ops):
        (a, b, c), (d, e, f) = OPERATIONS[name].make(argument, height, width).astype(np.float32)
        x, y = a * x + (b * y + c), d * x + (e * y + f)
        outside |= (x < 0) | (x >= width) | (y < 0) | (y >= height)
    places = np.empty((2, *outside.shape), np.float32)
    for place, target, length in zip((x, y), places, (width, height), strict=True):
        np.clip(place - np.float32(0.5), 0, length - 1, out=target)
    corners = places[:, [0, 0, -1, -1], [0, -1, 0, -1]]  # all other places lie between them
    (left, top), (right, bottom) = map(int, corners.min(1)), map(math.ceil, corners.max(1))
    places[:, outside] = _OUTSIDE
    box = grow((top, left, bottom - top + 1, right - left + 1), REACH, whole)

    def remap(part: np.ndarray) -> np.ndarray:
        whole_places, fractions = cv2.convertMaps(places[0] - box[1], places[1] - box[0], cv2.CV_16SC2)
        result = np.empty((len(part), *outside.shape, 3), np.uint8) if out is None else out
        for image, target in zip(part, result, strict=True):
            cv2.remap(image, whole_places, fractions, INTERPOLATIONS[interpolation], target, cv2.BORDER_CONSTANT, GREY)
        return result

    return box, remap


def _plan_slide(name: str, argument: float, wanted: Box, whole: Box, interpolation: str) -> Step:
    """Plan a shear or a translation; a vertical one is computed as a horizontal one of transposed frames."""
    if name in TURNED_SLIDES:
        box, slide = _plan_slide(TURNED_SLIDES[name], argument, swap(wanted), swap(whole), interpolation)
        return swap(box), lambda part: transpose(slide(transpose(part)))
    y, x, h, w = wanted
    width = whole[3]
    shifts = argument * (np.arange(y, y + h) + 0.5) if name == "ShearX" else np.array([argument * width])
    left, right = x + math.floor(shifts.min()) - REACH, x + w + math.ceil(shifts.max()) + REACH
    left = min(max(left, 0), width - 1)
    box = y, left, h, max(min(right, width) - left, 1)
    return box, lambda part: _slide(part, left, (x, w), shifts, width, interpolation)


def _slide(
    part: np.ndarray, left: int, wanted: tuple[int, int], shifts: np.ndarray, width: int, interpolation: str
) -> np.ndarray:
    """Move pixels along x by filters of four pixels.

    `part` (T, h, w, 3) begins at column `left` of a frame of `width` columns; `wanted` is the first column and the
    number of columns of the result. `shifts` are the distances in pixels, to the right, from a pixel to its source: one
    per row, or one for all rows.
    """
    (first, count), part = wanted, np.ascontiguousarray(part)
    out = np.full((*part.shape[:2], count, part.shape[3]), GREY[0], np.uint8)
    if len(shifts) == 1:
        images = zip(part, out, shifts.repeat(len(part)), strict=True)
    else:  # the same row of all frames is treated as one image
        images = zip(part.swapaxes(0, 1), out.swapaxes(0, 1), shifts, strict=True)
    for image, target, shift in images:
        whole, d = math.floor(shift), shift - math.floor(shift)
        start, stop = max(first, math.ceil(-0.5 - shift)), min(first + count, math.ceil(width - 0.5 - shift))
        if start >= stop:  # no column has its source in the frame
            continue
        weights = _weights(d, interpolation)
        made = cv2.filter2D(image, -1, weights[None], anchor=(1, 0), delta=CUT, borderType=cv2.BORDER_REPLICATE)
        if start + whole < 0:  # less than half a pixel before the first one
            one, two = image[:, :1], image[:, min(1, image.shape[1] - 1) :][:, :1]
            target[:, start - first] = cv2.addWeighted(one, 1 - weights[3], two, weights[3], CUT)[:, 0]
            start += 1
        target[:, start - first : stop - first] = made[:, start + whole - left : stop + whole - left]
    return out


def _weights(d: float, interpolation: str) -> np.ndarray:
    """Return Pillow's weights of the pixels -1, 0, 1 and 2 for a place at distance d after pixel 0."""
    cubic = [-d + 2 * d**2 - d**3, 1 - 2 * d**2 + d**3, d + d**2 - d**3, -(d**2) + d**3]
    return np.array(cubic if interpolation == "bicubic" else [0, 1 - d, d, 0])


@dataclass(frozen=True)
class RandAugment:
    """Draw operations uniformly with replacement, and apply each with probability one half.

    Args:
        magnitude: mean level, 0 to 10.
        num_ops: operations drawn per clip.
        std: standard deviation of the Gaussian noise on the level, which is clipped to 0..10; above 100, the level is
            drawn uniformly between 0 and `magnitude`.
        increasing: use the set in which a higher level always means a stronger effect.
        interpolation: "bilinear" or "bicubic", for the geometric operations.
    """

    magnitude: float = MAX_LEVEL
    num_ops: int = 2
    std: float = 0.0
    increasing: bool = False
    interpolation: str = "bicubic"

    @classmethod
    def parse(cls, text: str, interpolation: str = "bicubic") -> "RandAugment":
        """Read timm's notation, for example `rand-m7-n4-mstd0.5-inc1`: magnitude, operations, noise, increasing set.

        Raises:
            ValueError: the notation or a value is wrong.
        """
        values = {"m": MAX_LEVEL, "n": 2.0, "mstd": 0.0, "inc": 0.0}
        values |= {name: float(number) for name, number in re.findall(_NOTATION, text)}
        right = values["m"] <= MAX_LEVEL and values["n"] >= 1 and values["n"] % 1 == 0 and values["inc"] in (0, 1)
        if not (right and re.fullmatch(f"rand({_NOTATION})*", text)):
            raise ValueError(
                f"RandAugment {text!r} is not understood: write 'rand', then any of -m<0 to 10>, -n<operations>, "
                "-mstd<noise>, -inc<0 or 1>, for example 'rand-m7-n4-mstd0.5-inc1'"
            )
        if interpolation not in INTERPOLATIONS:
            raise ValueError(f"unknown interpolation {interpolation!r}: use one of {', '.join(INTERPOLATIONS)}")
        return cls(values["m"], int(values["n"]), values["mstd"], values["inc"] == 1, interpolation)

    def draw(self, rng: np.random.Generator) -> list[Op]:
        """Draw the operations of one clip, in order, as (name, argument)."""
        ops: list[Op] = []
        names = tuple(OPERATIONS)
        for index in rng.integers(len(names), size=self.num_ops):
            if rng.random() < 0.5:
                continue
            level = rng.uniform(0, self.magnitude) if self.std > 100 else rng.normal(self.magnitude, self.std)
            sign = 1 if rng.random() < 0.5 else -1
            name = names[index]
            share = min(max(level, 0.0), MAX_LEVEL) / MAX_LEVEL
            ops.append((name, OPERATIONS[name].argument(share, sign, self.increasing)))
        return ops

    def __call__(self, frames: np.ndarray, rng: np.random.Generator) -> np.ndarray:
        """Draw operations, apply them to (T, H, W, 3) uint8 frames, and return new frames of the same size."""
        return augmented_crop(frames, self.draw(rng), None, self.interpolation)
