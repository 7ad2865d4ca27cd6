"""RandAugment for whole clips (Cubuk et al., 2020), with timm's operations, magnitudes and strings.

One draw of operations and magnitudes serves every frame. The arithmetic follows Pillow, on which timm builds, but runs
in OpenCV on uint8 arrays: look-up tables are exact; blends, and shears and translations that stand alone, are within
one grey level; rotations and maps of several operations differ only by OpenCV's bicubic kernel (-0.75 where Pillow has
-1), its grid of 1/32 pixel, and within a pixel of the border.

`augmented_crop` applies operations and the resized crop after them in few passes, at any size of the frames:

* Operations that send a value to a value become one look-up table, with the frame's histogram sent through it too.
* A shear or a translation is a filter of four pixels along an axis. Geometric operations in a row become one map. What
  leaves the frame in any of them is grey, as it is step by step.
* Those directly before the crop join it: the result is sampled once, bilinearly, from the original pixels.
* Only the part of the frame that the crop can see is computed, wherever no statistics of the whole frame are asked for.

Nothing changes places, so the result differs from that of single steps by their repeated interpolation and its kernel.
"""

import math
import re
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import cached_property
from itertools import groupby

import cv2
import numpy as np

MAX_LEVEL = 10.0
GREY = (128, 128, 128)
LUMA = np.array([19595, 38470, 7471]) / 65536  # ITU-R 601, of red, green and blue
INTERPOLATIONS = {"bilinear": cv2.INTER_LINEAR, "bicubic": cv2.INTER_CUBIC}

Box = tuple[int, int, int, int]  # y, x, height, width
Op = tuple[str, float]

# Adding it before OpenCV rounds to the nearest integer cuts the fraction, as Pillow does.
_CUT = -0.499
# Where no frame reaches, for the maps below; OpenCV holds places as int16.
_OUTSIDE = -9999.0
_VALUES = np.arange(256)


# Tables: (256,) of every channel and frame, or (T, 3 or 1, 256) from the levels of the frames.


def _posterize(bits: float) -> np.ndarray:
    return _VALUES & (256 - 2 ** (8 - int(bits)))


def _solarize(threshold: float) -> np.ndarray:
    return np.where(threshold > _VALUES, _VALUES, 255 - _VALUES)


def _solarize_add(addend: float) -> np.ndarray:
    return np.where(_VALUES < 128, np.minimum(_VALUES + addend, 255), _VALUES)


def _blend(grey: np.ndarray | int, factor: float) -> np.ndarray:
    """Table of `grey + factor * (value - grey)`, in Pillow's single precision."""
    grey = np.asarray(grey, np.float32)
    return (grey + np.float32(factor) * (_VALUES.astype(np.float32) - grey)).clip(0, 255)


class _Levels:
    """What the values of frames are like after a table: what an operation asks for, and no more, is counted.

    Args:
        frames: (T, H, W, 3) uint8.
        table: (T or 1, 3 or 1, 256) that their values are sent through; None leaves them.
    """

    def __init__(self, frames: np.ndarray, table: np.ndarray | None) -> None:
        self.frames, self.table = frames, table

    @cached_property
    def counts(self) -> np.ndarray:
        """(T, 3, 256) histograms."""
        frames = self.frames
        counts = [cv2.calcHist([frame], [channel], None, [256], [0, 256]) for frame in frames for channel in range(3)]
        counts = np.reshape(counts, (len(frames), 3, 256)).astype(np.int64)
        if self.table is None:
            return counts
        rows = np.arange(counts.size // 256).reshape(-1, 1)  # one per frame and channel
        places = np.broadcast_to(self.table, counts.shape).reshape(-1, 256) + 256 * rows
        return np.bincount(places.ravel(), counts.ravel(), counts.size).astype(np.int64).reshape(counts.shape)

    def means(self) -> np.ndarray:
        """(T, 3)."""
        if self.table is None:
            return np.array([cv2.mean(frame)[:3] for frame in self.frames])
        return self.counts @ _VALUES / self.counts.sum(-1)

    def ends(self) -> tuple[np.ndarray, np.ndarray]:
        """Lowest and highest value, (T, 3, 1) each."""
        if self.table is None and "counts" not in vars(self):
            t, h, w, c = self.frames.shape
            low, high = (
                extreme.reduce(extreme.reduce(self.frames.reshape(t, h, w * c), 1).reshape(t, w, c), 1)
                for extreme in (np.minimum, np.maximum)
            )
            return low[..., None].astype(np.int64), high[..., None].astype(np.int64)
        found = self.counts > 0
        return found.argmax(-1, keepdims=True), 255 - found[..., ::-1].argmax(-1, keepdims=True)


def _contrast(levels: _Levels, factor: float) -> np.ndarray:
    return _blend(np.floor(levels.means() @ LUMA + 0.5)[:, None, None], factor)


def _auto_contrast(levels: _Levels, _: float) -> np.ndarray:
    low, high = levels.ends()
    scale = 255.0 / np.maximum(high - low, 1)
    return np.where(high > low, np.trunc(_VALUES * scale - low * scale).clip(0, 255), _VALUES)


def _equalize(levels: _Levels, _: float) -> np.ndarray:
    counts = levels.counts
    total = counts.sum(-1, keepdims=True)
    step = (total - np.take_along_axis(counts, levels.ends()[1], -1)) // 255
    before = np.cumsum(counts, -1) - counts
    return np.where(step > 0, ((step // 2 + before) // np.maximum(step, 1)).clip(0, 255), _VALUES)


FIXED_TABLES: dict[str, Callable[[float], np.ndarray]] = {
    "Invert": lambda _: 255 - _VALUES,
    "Posterize": _posterize,
    "Solarize": _solarize,
    "SolarizeAdd": _solarize_add,
    "Brightness": lambda factor: _blend(0, factor),
}
FRAME_TABLES: dict[str, Callable[[_Levels, float], np.ndarray]] = {
    "AutoContrast": _auto_contrast,
    "Equalize": _equalize,
    "Contrast": _contrast,
}


def _tables(frames: np.ndarray, ops: Sequence[Op]) -> np.ndarray:
    """Chain operations that map values to values: (T or 1, 3 or 1, 256) uint8; statistics are those of `frames`."""
    table = None
    for name, argument in ops:
        if name in FIXED_TABLES:
            step = FIXED_TABLES[name](argument).reshape(1, 1, 256).astype(np.uint8)
        else:
            step = FRAME_TABLES[name](_Levels(frames, table), argument).astype(np.uint8)
        if table is not None:
            shape = np.broadcast_shapes(step.shape, table.shape)
            step = np.take_along_axis(np.broadcast_to(step, shape), np.broadcast_to(table, shape).astype(np.int64), -1)
        table = step
    assert table is not None
    return table


def _look_up(frames: np.ndarray, tables: np.ndarray) -> np.ndarray:
    out = np.empty(frames.shape, np.uint8)
    _, height, width, channels = frames.shape
    for source, target, table in zip(
        frames, out, np.broadcast_to(tables, (len(frames), *tables.shape[1:])), strict=True
    ):
        if len(table) == 1:
            cv2.LUT(source.reshape(height, width * channels), table[0], dst=target.reshape(height, width * channels))
        else:
            cv2.LUT(source, np.ascontiguousarray(table.T[None]), dst=target)
    return out


def _color(frames: np.ndarray, factor: float) -> np.ndarray:
    t, h, w, c = frames.shape
    blend = np.hstack([factor * np.eye(3) + (1 - factor) * LUMA, np.full((3, 1), _CUT)])
    return cv2.transform(frames.reshape(t * h, w, c), blend).reshape(frames.shape)


def _sharpness(frames: np.ndarray, factor: float) -> np.ndarray:
    t, h, w, c = frames.shape
    kernel = np.full((3, 3), (1 - factor) / 13)
    kernel[1, 1] = factor + (1 - factor) * 5 / 13
    out = cv2.filter2D(frames.reshape(t * h, w, c), -1, kernel, delta=_CUT).reshape(frames.shape)
    for edge in (np.s_[:, 0], np.s_[:, -1], np.s_[:, :, 0], np.s_[:, :, -1]):  # Pillow does not smooth the border
        out[edge] = frames[edge]
    return out


FILTERS: dict[str, Callable[[np.ndarray, float], np.ndarray]] = {"Color": _color, "Sharpness": _sharpness}


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
# Draws are numbers of this list.
OP_NAMES = (
    "AutoContrast",
    "Equalize",
    "Invert",
    "Posterize",
    "Solarize",
    "SolarizeAdd",
    "Color",
    "Contrast",
    "Brightness",
    "Sharpness",
    *GEOMETRIC_OPS,
)


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

    def __call__(self, part: np.ndarray) -> np.ndarray:
        """Turn `part`, the (T, h, w, 3) pixels of the box, into a new (T, side, side, 3) clip."""
        out = np.empty((len(part), self.side, self.side, part.shape[3]), part.dtype)
        y, x = self.corner
        for source, target in zip(part, out, strict=True):
            if self.size == (self.side, self.side) and not self.flip:
                cv2.resize(source, self.size, dst=target)
                continue
            resized = source if self.size == self.box[2:] else cv2.resize(source, self.size[::-1])
            square = resized[y : y + self.side, x : x + self.side]
            if self.flip:
                cv2.flip(square, 1, dst=target)
            else:
                target[...] = square
        return out


def _source(
    ops: Sequence[Op], height: int, width: int, rows: np.ndarray, columns: np.ndarray
) -> tuple[np.ndarray, Box]:
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
    return places, _grow((top, left, bottom - top + 1, right - left + 1), 2, height, width)  # 2: of a cubic kernel


def _grow(box: Box, margin: int, height: int, width: int) -> Box:
    y, x, h, w = box
    top, left = max(y - margin, 0), max(x - margin, 0)
    return top, left, min(y + h + margin, height) - top, min(x + w + margin, width) - left


def _warp(part: np.ndarray, origin: tuple[int, int], places: np.ndarray, interpolation: int) -> np.ndarray:
    """Sample `part`, whose first pixel is `origin` (y, x) of the frame, at `places`; outside of the frame is grey."""
    whole, fraction = cv2.convertMaps(places[0] - origin[1], places[1] - origin[0], cv2.CV_16SC2)  # for all frames
    out = np.empty((len(part), *places.shape[1:], part.shape[3]), np.uint8)
    for source, target in zip(part, out, strict=True):
        cv2.remap(source, whole, fraction, interpolation, target, cv2.BORDER_CONSTANT, GREY)
    return out


def _shifts(op: Op, box: Box, width: int) -> np.ndarray:
    """How far along x the sources of the pixels of `box` lie: a number for each row, or one for all."""
    name, argument = op
    return argument * (np.arange(box[0], box[0] + box[2]) + 0.5) if name == "ShearX" else np.array([argument * width])


def _slide_source(op: Op, box: Box, height: int, width: int) -> Box:
    """The part of the frame that a slide makes the pixels of `box` from."""
    if op[0] in VERTICAL_SLIDES:
        return _swap(_slide_source((VERTICAL_SLIDES[op[0]], op[1]), _swap(box), width, height))
    shifts = _shifts(op, box, width)
    y, x, h, w = box
    left, right = x + math.floor(shifts.min()) - 2, x + w + math.ceil(shifts.max()) + 2  # 2: of a cubic kernel
    left = min(max(left, 0), width - 1)
    return y, left, h, max(min(right, width) - left, 1)


def _slide(part: np.ndarray, box: Box, given: Box, op: Op, height: int, width: int, interpolation: str) -> np.ndarray:
    """Make the pixels of `given` from `part`, which holds `box`, by filters of four pixels in a row."""
    if op[0] in VERTICAL_SLIDES:
        op = VERTICAL_SLIDES[op[0]], op[1]
        turned = _slide(_transpose(part), _swap(box), _swap(given), op, width, height, interpolation)
        return _transpose(turned)
    out = np.full((len(part), *given[2:], part.shape[3]), GREY[0], np.uint8)
    part = np.ascontiguousarray(part)
    shifts = _shifts(op, given, width)
    if len(shifts) == 1:
        images = zip(part, out, shifts.repeat(len(part)), strict=True)
    else:  # the same row of all frames is an image, too
        images = zip(part.swapaxes(0, 1), out.swapaxes(0, 1), shifts, strict=True)
    for source, target, shift in images:
        whole, d = math.floor(shift), shift - math.floor(shift)
        # columns whose place is in the frame
        start = max(given[1], math.ceil(-0.5 - shift))
        stop = min(given[1] + given[3], math.ceil(width - 0.5 - shift))
        if start >= stop:
            continue
        weights = WEIGHTS[interpolation](d)
        made = cv2.filter2D(source, -1, weights[None], anchor=(1, 0), delta=_CUT, borderType=cv2.BORDER_REPLICATE)
        if start + whole < 0:  # less than half a pixel before the first one
            first, second = source[:, :1], source[:, min(1, source.shape[1] - 1) :][:, :1]
            target[:, start - given[1]] = cv2.addWeighted(first, 1 - weights[3], second, weights[3], _CUT)[:, 0]
            start += 1
        target[:, start - given[1] : stop - given[1]] = made[:, start + whole - box[1] : stop + whole - box[1]]
    return out


def _swap(box: Box) -> Box:
    return box[1], box[0], box[3], box[2]


def _transpose(frames: np.ndarray) -> np.ndarray:
    t, h, w, c = frames.shape
    out = np.empty((t, w, h, c), np.uint8)
    for source, target in zip(frames, out, strict=True):
        cv2.transpose(source, dst=target)
    return out


def _stage(op: Op) -> str:
    name = op[0]
    return "warp" if name in GEOMETRIC_OPS else name if name in FILTERS else "tables"


def augmented_crop(
    frames: np.ndarray, ops: Sequence[Op], crop: ResizedCrop | None, interpolation: str = "bicubic"
) -> np.ndarray:
    """Apply `ops`, as `RandAugment.draw` returns them, then `crop`, in as few passes as the order of `ops` allows.

    Args:
        frames: (T, H, W, 3) uint8, left as they are.
        ops: (name, argument) in order.
        crop: None returns whole frames.
        interpolation: "bilinear" or "bicubic", of geometric operations that do not come right before the crop.

    Returns:
        A new (T, side, side, 3) uint8 array, or (T, H, W, 3) without `crop`.
    """
    height, width = frames.shape[1:3]
    stages = [(kind, list(group)) for kind, group in groupby(ops, _stage)]
    whole = (0, 0, height, width)
    last = None  # the crop as a map, together with the geometric operations before it
    wanted = whole if crop is None else crop.box
    if crop is not None and stages and stages[-1][0] == "warp":
        last, wanted = _source(stages.pop()[1], height, width, *crop.places())

    # Backwards: which box each stage has to give, and where a warp takes it from.
    plan: list[tuple[str, list[Op], Box, np.ndarray | None]] = []
    for kind, group in reversed(stages):
        places = None
        given = wanted
        if kind == "warp" and len(group) == 1 and group[0][0] in SLIDES:
            wanted = _slide_source(group[0], wanted, height, width)
        elif kind == "warp":
            y, x, h, w = wanted
            places, wanted = _source(group, height, width, np.arange(y, y + h), np.arange(x, x + w))
        elif kind == "tables" and any(name in FRAME_TABLES for name, _ in group):
            wanted = whole
        elif kind == "Sharpness":
            wanted = _grow(wanted, len(group), height, width)
        plan.append((kind, group, given, places))

    part, box = _cut(frames, whole, wanted), wanted
    for kind, group, given, places in reversed(plan):
        if places is not None:
            part = _warp(part, box[:2], places, INTERPOLATIONS[interpolation])
        elif kind == "warp":
            part = _slide(part, box, given, group[0], height, width, interpolation)
        elif kind == "tables":
            tables = _tables(part, group)
            part = _look_up(_cut(part, box, given), tables)
        else:
            part = np.ascontiguousarray(part)
            for name, argument in group:
                part = FILTERS[name](part, argument)
            part = _cut(part, box, given)
        box = given
    if last is not None:
        return _warp(part, box[:2], last, cv2.INTER_LINEAR)
    if crop is not None:
        return crop(part)
    return part if plan else part.copy()


def _cut(part: np.ndarray, box: Box, inner: Box) -> np.ndarray:
    """View of `inner` in `part`, which holds `box`; both in pixels of the frame."""
    y, x = inner[0] - box[0], inner[1] - box[1]
    return part[:, y : y + inner[2], x : x + inner[3]]


def op_argument(name: str, level: float, sign: int, increasing: bool) -> float:
    """Translate a magnitude into what the operation takes: bits, a threshold, a blend factor, degrees, a share.

    Args:
        name: one of `OP_NAMES`.
        level: magnitude from 0 to 10.
        sign: +1 or -1, the direction of operations that have two.
        increasing: use the set in which a higher level always means a stronger effect.
    """
    share = level / MAX_LEVEL
    match name:
        case "Posterize":
            return 4 - int(share * 4) if increasing else int(share * 4)
        case "Solarize":
            return 256 - int(share * 256) if increasing else int(share * 256)
        case "SolarizeAdd":
            return int(share * 110)
        case "Color" | "Contrast" | "Brightness" | "Sharpness":
            return max(0.1, 1 + sign * share * 0.9) if increasing else share * 1.8 + 0.1
        case "Rotate":
            return sign * share * 30
        case "ShearX" | "ShearY":
            return sign * share * 0.3
        case "TranslateXRel" | "TranslateYRel":
            return sign * share * 0.45
    return 0.0  # AutoContrast, Equalize and Invert have no strength


@dataclass(frozen=True)
class RandAugment:
    """Operations drawn uniformly with replacement, each applied with probability one half.

    Args:
        magnitude: mean level, 0 to 10.
        num_ops: operations drawn per clip.
        std: of the Gaussian noise on the level, which is clipped to 0..10; above 100 the level is drawn uniformly
            between 0 and `magnitude`.
        increasing: use the set in which a higher level always means a stronger effect.
        interpolation: "bilinear" or "bicubic", of the geometric operations.
    """

    magnitude: float = MAX_LEVEL
    num_ops: int = 2
    std: float = 0.0
    increasing: bool = False
    interpolation: str = "bicubic"

    @classmethod
    def parse(cls, text: str, interpolation: str = "bicubic") -> "RandAugment":
        """Read timm's notation, e.g. `rand-m7-n4-mstd0.5-inc1`: magnitude, operations, noise, increasing set.

        Raises:
            ValueError: the notation or the interpolation is not understood; the message names the part.
        """
        if interpolation not in INTERPOLATIONS:
            raise ValueError(f"AUG.INTERPOLATION {interpolation!r} is unknown: use one of {sorted(INTERPOLATIONS)}")
        name, *parts = text.split("-")
        values = {"m": MAX_LEVEL, "n": 2.0, "mstd": 0.0, "inc": 0.0}
        for part in parts:
            found = re.fullmatch(r"(m|n|mstd|inc)(\d+(?:\.\d+)?)", part)
            if found is None:
                name = ""
                break
            values[found[1]] = float(found[2])
        if name != "rand":
            raise ValueError(
                f"AUG.AA_TYPE {text!r} is not understood: write 'rand', then any of -m<magnitude>, -n<operations>, "
                "-mstd<noise>, -inc<0 or 1>, e.g. 'rand-m7-n4-mstd0.5-inc1', or '' for no RandAugment"
            )
        if values["m"] > MAX_LEVEL or values["n"] % 1 or values["n"] < 1 or values["inc"] not in (0, 1):
            raise ValueError(
                f"AUG.AA_TYPE {text!r}: m runs from 0 to {MAX_LEVEL:.0f}, n is a whole number from 1, inc is 0 or 1"
            )
        return cls(values["m"], int(values["n"]), values["mstd"], values["inc"] == 1, interpolation)

    def draw(self, rng: np.random.Generator) -> list[tuple[str, float]]:
        """Draw the operations of one clip, in order, as (name, argument)."""
        ops = []
        for index in rng.integers(len(OP_NAMES), size=self.num_ops):
            if rng.random() < 0.5:
                continue
            level = rng.uniform(0, self.magnitude) if self.std > 100 else rng.normal(self.magnitude, self.std)
            sign = 1 if rng.random() < 0.5 else -1
            name = OP_NAMES[index]
            ops.append((name, op_argument(name, min(max(level, 0.0), MAX_LEVEL), sign, self.increasing)))
        return ops

    def apply(self, frames: np.ndarray, name: str, argument: float) -> np.ndarray:
        """Apply one operation to all `frames`, (T, H, W, 3) uint8, and return new ones."""
        return augmented_crop(frames, [(name, argument)], None, self.interpolation)

    def __call__(self, frames: np.ndarray, rng: np.random.Generator) -> np.ndarray:
        """Draw and apply to `frames`, (T, H, W, 3) uint8, and return new ones of the same size."""
        return augmented_crop(frames, self.draw(rng), None, self.interpolation)
