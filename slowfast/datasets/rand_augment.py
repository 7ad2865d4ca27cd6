"""RandAugment for whole clips (Cubuk et al., 2020), with timm's operations, magnitudes and strings.

One draw of operations and magnitudes serves every frame. The arithmetic follows Pillow, on which timm builds, but runs
in OpenCV on uint8 arrays; `value_ops` and `geometric_ops` say how close it is.

`augmented_crop` applies operations and the resized crop after them in few passes, at any size of the frames:

* Operations that send a value to a value become one look-up table, with the frame's histogram sent through it too.
* A shear or a translation is a filter of four pixels along an axis. Geometric operations in a row become one map. What
  leaves the frame in any of them is grey, as it is step by step.
* Those directly before the crop join it: the result is sampled once, bilinearly, from the original pixels.
* Only the part of the frame that the crop can see is computed, wherever no statistics of the whole frame are asked for.

Nothing changes places, so the result differs from that of single steps by their repeated interpolation and its kernel.
"""

import re
from collections.abc import Sequence
from dataclasses import dataclass
from itertools import groupby

import numpy as np

from slowfast.datasets.geometric_ops import (
    GEOMETRIC_OPS,
    INTERPOLATIONS,
    SLIDES,
    Box,
    ResizedCrop,
    cut,
    grow,
    slide,
    slide_source,
    source,
    warp,
)
from slowfast.datasets.value_ops import FILTERS, FRAME_TABLES, Op, build_tables, look_up

MAX_LEVEL = 10.0
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


def _stage(op: Op) -> str:
    name = op[0]
    return "warp" if name in GEOMETRIC_OPS else name if name in FILTERS else "tables"


def augmented_crop(
    frames: np.ndarray,
    ops: Sequence[Op],
    crop: ResizedCrop | None,
    interpolation: str = "bicubic",
    out: np.ndarray | None = None,
) -> np.ndarray:
    """Apply `ops`, as `RandAugment.draw` returns them, then `crop`, in as few passes as the order of `ops` allows.

    Args:
        frames: (T, H, W, 3) uint8, left as they are.
        ops: (name, argument) in order.
        crop: None returns whole frames.
        interpolation: "bilinear" or "bicubic", of geometric operations that do not come right before the crop.
        out: contiguous array for the result of `crop`; None makes a new one.

    Returns:
        (T, side, side, 3) uint8, or a new (T, H, W, 3) without `crop`.
    """
    height, width = frames.shape[1:3]
    stages = [(kind, list(group)) for kind, group in groupby(ops, _stage)]
    whole = (0, 0, height, width)
    last = None  # the crop as a map, together with the geometric operations before it
    wanted = whole if crop is None else crop.box
    if crop is not None and stages and stages[-1][0] == "warp":
        last, wanted = source(stages.pop()[1], height, width, *crop.places())

    # Backwards: which box each stage has to give, and where a warp takes it from.
    plan: list[tuple[str, list[Op], Box, np.ndarray | None]] = []
    for kind, group in reversed(stages):
        places = None
        given = wanted
        if kind == "warp" and len(group) == 1 and group[0][0] in SLIDES:
            wanted = slide_source(group[0], wanted, height, width)
        elif kind == "warp":
            y, x, h, w = wanted
            places, wanted = source(group, height, width, np.arange(y, y + h), np.arange(x, x + w))
        elif kind == "tables" and any(name in FRAME_TABLES for name, _ in group):
            wanted = whole
        elif kind == "Sharpness":
            wanted = grow(wanted, len(group), height, width)
        plan.append((kind, group, given, places))

    part, box = cut(frames, whole, wanted), wanted
    for kind, group, given, places in reversed(plan):
        if places is not None:
            part = warp(part, box[:2], places, interpolation)
        elif kind == "warp":
            part = slide(part, box, given, group[0], height, width, interpolation)
        elif kind == "tables":
            tables = build_tables(part, group)
            part = look_up(cut(part, box, given), tables)
        else:
            part = np.ascontiguousarray(part)
            for name, argument in group:
                part = FILTERS[name](part, argument)
            part = cut(part, box, given)
        box = given
    if last is not None:
        return warp(part, box[:2], last, "bilinear", out)
    if crop is not None:
        return crop(part, out)
    return part if plan else part.copy()


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

    def draw(self, rng: np.random.Generator) -> list[Op]:
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
