"""RandAugment for whole clips (Cubuk et al., 2020), with timm's operations, magnitudes and strings.

One draw of operations and magnitudes serves every frame. The arithmetic follows Pillow, on which timm builds, but runs
in OpenCV on uint8 arrays: look-up tables are exact, blends are within one grey level, and geometric operations differ
only by OpenCV's bicubic kernel (-0.75 where Pillow has -1) and within a pixel of the border.
"""

import math
import re
from collections.abc import Callable
from dataclasses import dataclass

import cv2
import numpy as np

MAX_LEVEL = 10.0
GREY = (128, 128, 128)
LUMA = np.array([19595, 38470, 7471]) / 65536  # ITU-R 601, of red, green and blue
INTERPOLATIONS = {"bilinear": cv2.INTER_LINEAR, "bicubic": cv2.INTER_CUBIC}

# Adding it before OpenCV rounds to the nearest integer cuts the fraction, as Pillow does.
_CUT = -0.499


def _look_up(frames: np.ndarray, table: np.ndarray) -> np.ndarray:
    """Send every value of `(T, H, W, 3)` frames through a table of 256 bytes."""
    t, h, w, c = frames.shape
    return cv2.LUT(frames.reshape(t * h, w * c), table.astype(np.uint8)).reshape(frames.shape)


def _auto_contrast(frames: np.ndarray, _: float) -> np.ndarray:
    out = np.empty_like(frames)
    for source, target in zip(frames, out, strict=True):
        tables = np.tile(np.arange(256, dtype=np.float64), (3, 1))
        for channel, plane in enumerate(cv2.split(source)):
            low, high = int(plane.min()), int(plane.max())
            if high > low:
                scale = 255.0 / (high - low)
                tables[channel] = np.trunc(tables[channel] * scale - low * scale).clip(0, 255)
        cv2.LUT(source, tables.T[None].astype(np.uint8), dst=target)
    return out


def _equalize(frames: np.ndarray, _: float) -> np.ndarray:
    out = np.empty_like(frames)
    for source, target in zip(frames, out, strict=True):
        tables = np.tile(np.arange(256), (3, 1))
        for channel in range(3):
            counts = cv2.calcHist([source], [channel], None, [256], [0, 256]).ravel().astype(np.int64)
            used = counts[counts > 0]
            step = (used.sum() - used[-1]) // 255
            if len(used) > 1 and step > 0:
                before = np.cumsum(counts) - counts
                tables[channel] = ((step // 2 + before) // step).clip(0, 255)
        cv2.LUT(source, tables.T[None].astype(np.uint8), dst=target)
    return out


def _invert(frames: np.ndarray, _: float) -> np.ndarray:
    return ~frames


def _posterize(frames: np.ndarray, bits: float) -> np.ndarray:
    return frames & np.uint8(256 - 2 ** (8 - int(bits)))


def _solarize(frames: np.ndarray, threshold: float) -> np.ndarray:
    values = np.arange(256)
    return _look_up(frames, np.where(values < threshold, values, 255 - values))


def _solarize_add(frames: np.ndarray, addend: float) -> np.ndarray:
    values = np.arange(256)
    return _look_up(frames, np.where(values < 128, np.minimum(values + addend, 255), values))


def _blend_table(grey: int, factor: float) -> np.ndarray:
    """Table of `grey + factor * (value - grey)`, in Pillow's single precision."""
    values = np.float32(grey) + np.float32(factor) * (np.arange(256, dtype=np.float32) - np.float32(grey))
    return values.clip(0, 255).astype(np.uint8)


def _brightness(frames: np.ndarray, factor: float) -> np.ndarray:
    return _look_up(frames, _blend_table(0, factor))


def _contrast(frames: np.ndarray, factor: float) -> np.ndarray:
    out = np.empty_like(frames)
    for source, target in zip(frames, out, strict=True):
        grey = int(LUMA @ cv2.mean(source)[:3] + 0.5)
        cv2.LUT(source, _blend_table(grey, factor), dst=target)
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


def _warp(frames: np.ndarray, matrix: np.ndarray, interpolation: int) -> np.ndarray:
    """Sample each output pixel centre at `matrix` (2 x 3) times its place, (0, 0) being the corner of the image."""
    out = np.empty_like(frames)
    # OpenCV measures from the centre of the first pixel, half a pixel from the corner.
    matrix = np.hstack([matrix[:, :2], matrix[:, 2:] + matrix[:, :2].sum(1, keepdims=True) / 2 - 0.5])
    for source, target in zip(frames, out, strict=True):
        cv2.warpAffine(
            source,
            matrix,
            source.shape[1::-1],
            dst=target,
            flags=interpolation | cv2.WARP_INVERSE_MAP,
            borderMode=cv2.BORDER_CONSTANT,
            borderValue=GREY,
        )
    return out


def _rotation(degrees: float, height: int, width: int) -> np.ndarray:
    turn = math.radians(degrees)
    rotation = np.array([[math.cos(turn), -math.sin(turn)], [math.sin(turn), math.cos(turn)]])
    centre = np.array([[width / 2], [height / 2]])
    return np.hstack([rotation, centre - rotation @ centre])


PIXEL_OPS: dict[str, Callable[[np.ndarray, float], np.ndarray]] = {
    "AutoContrast": _auto_contrast,
    "Equalize": _equalize,
    "Invert": _invert,
    "Posterize": _posterize,
    "Solarize": _solarize,
    "SolarizeAdd": _solarize_add,
    "Color": _color,
    "Contrast": _contrast,
    "Brightness": _brightness,
    "Sharpness": _sharpness,
}
# From (argument, height, width) to the matrix that finds the source of an output pixel.
GEOMETRIC_OPS: dict[str, Callable[[float, int, int], np.ndarray]] = {
    "Rotate": _rotation,
    "ShearX": lambda factor, height, width: np.array([[1, factor, 0], [0, 1, 0.0]]),
    "ShearY": lambda factor, height, width: np.array([[1, 0, 0], [factor, 1, 0.0]]),
    "TranslateXRel": lambda share, height, width: np.array([[1, 0, share * width], [0, 1, 0.0]]),
    "TranslateYRel": lambda share, height, width: np.array([[1, 0, 0], [0, 1, share * height]]),
}
OP_NAMES = (*PIXEL_OPS, *GEOMETRIC_OPS)


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
        if name in PIXEL_OPS:
            return PIXEL_OPS[name](frames, argument)
        height, width = frames.shape[1:3]
        matrix = GEOMETRIC_OPS[name](argument, height, width)
        return _warp(frames, matrix, INTERPOLATIONS[self.interpolation])

    def __call__(self, frames: np.ndarray, rng: np.random.Generator) -> np.ndarray:
        """Draw and apply; `frames`, (T, H, W, 3) uint8, are not changed, but may be returned as they are."""
        for name, argument in self.draw(rng):
            frames = self.apply(frames, name, argument)
        return frames
