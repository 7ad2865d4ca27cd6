"""RandAugment's operations that leave every pixel in its place: look-up tables, and two filters.

The arithmetic is Pillow's: tables are exact but for that of Contrast, which like the filters is within one grey level.
"""

from collections.abc import Callable, Sequence

import cv2
import numpy as np

Op = tuple[str, float]

LUMA = np.array([19595, 38470, 7471]) / 65536  # ITU-R 601, of red, green and blue
# Adding it before OpenCV rounds to the nearest integer cuts the fraction, as Pillow does.
CUT = -0.499
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


# What the values of `frames`, (T, H, W, 3), are like after `table`, (T or 1, 3 or 1, 256), or None; no more than is
# asked for is counted.


def _histograms(frames: np.ndarray, table: np.ndarray | None) -> np.ndarray:
    """(T, 3, 256)."""
    counts = [cv2.calcHist([frame], [channel], None, [256], [0, 256]) for frame in frames for channel in range(3)]
    counts = np.reshape(counts, (len(frames), 3, 256)).astype(np.int64)
    if table is None:
        return counts
    rows = np.arange(counts.size // 256).reshape(-1, 1)  # one per frame and channel
    places = np.broadcast_to(table, counts.shape).reshape(-1, 256) + 256 * rows
    return np.bincount(places.ravel(), counts.ravel(), counts.size).astype(np.int64).reshape(counts.shape)


def _means(frames: np.ndarray, table: np.ndarray | None) -> np.ndarray:
    """(T, 3)."""
    if table is None:
        return np.array([cv2.mean(frame)[:3] for frame in frames])
    counts = _histograms(frames, table)
    return counts @ _VALUES / counts.sum(-1)


def _ends(frames: np.ndarray, table: np.ndarray | None) -> tuple[np.ndarray, np.ndarray]:
    """Lowest and highest value, (T, 3, 1) each."""
    if table is None:
        t, h, w, c = frames.shape
        low, high = (
            extreme.reduce(extreme.reduce(frames.reshape(t, h, w * c), 1).reshape(t, w, c), 1)
            for extreme in (np.minimum, np.maximum)
        )
        return low[..., None].astype(np.int64), high[..., None].astype(np.int64)
    counts = _histograms(frames, table)
    return (counts > 0).argmax(-1, keepdims=True), _highest(counts)


def _highest(counts: np.ndarray) -> np.ndarray:
    """The last value that occurs, (T, 3, 1)."""
    return 255 - (counts[..., ::-1] > 0).argmax(-1, keepdims=True)


def _contrast(frames: np.ndarray, table: np.ndarray | None, factor: float) -> np.ndarray:
    return _blend(np.floor(_means(frames, table) @ LUMA + 0.5)[:, None, None], factor)


def _auto_contrast(frames: np.ndarray, table: np.ndarray | None, _: float) -> np.ndarray:
    low, high = _ends(frames, table)
    scale = 255.0 / np.maximum(high - low, 1)
    return np.where(high > low, np.trunc(_VALUES * scale - low * scale).clip(0, 255), _VALUES)


def _equalize(frames: np.ndarray, table: np.ndarray | None, _: float) -> np.ndarray:
    counts = _histograms(frames, table)
    step = (counts.sum(-1, keepdims=True) - np.take_along_axis(counts, _highest(counts), -1)) // 255
    before = np.cumsum(counts, -1) - counts
    return np.where(step > 0, ((step // 2 + before) // np.maximum(step, 1)).clip(0, 255), _VALUES)


FIXED_TABLES: dict[str, Callable[[float], np.ndarray]] = {
    "Invert": lambda _: 255 - _VALUES,
    "Posterize": _posterize,
    "Solarize": _solarize,
    "SolarizeAdd": _solarize_add,
    "Brightness": lambda factor: _blend(0, factor),
}
FRAME_TABLES: dict[str, Callable[[np.ndarray, np.ndarray | None, float], np.ndarray]] = {
    "AutoContrast": _auto_contrast,
    "Equalize": _equalize,
    "Contrast": _contrast,
}


def build_tables(frames: np.ndarray, ops: Sequence[Op]) -> np.ndarray:
    """Chain operations that map values to values: (T or 1, 3 or 1, 256) uint8; statistics are those of `frames`."""
    table = None
    for name, argument in ops:
        if name in FIXED_TABLES:
            step = FIXED_TABLES[name](argument).reshape(1, 1, 256).astype(np.uint8)
        else:
            step = FRAME_TABLES[name](frames, table, argument).astype(np.uint8)
        if table is not None:
            shape = np.broadcast_shapes(step.shape, table.shape)
            step = np.take_along_axis(np.broadcast_to(step, shape), np.broadcast_to(table, shape).astype(np.int64), -1)
        table = step
    assert table is not None
    return table


def look_up(frames: np.ndarray, tables: np.ndarray) -> np.ndarray:
    """Send the values of (T, H, W, 3) frames through tables of `build_tables`, into new ones."""
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
    blend = np.hstack([factor * np.eye(3) + (1 - factor) * LUMA, np.full((3, 1), CUT)])
    return cv2.transform(frames.reshape(t * h, w, c), blend).reshape(frames.shape)


def _sharpness(frames: np.ndarray, factor: float) -> np.ndarray:
    t, h, w, c = frames.shape
    kernel = np.full((3, 3), (1 - factor) / 13)
    kernel[1, 1] = factor + (1 - factor) * 5 / 13
    out = cv2.filter2D(frames.reshape(t * h, w, c), -1, kernel, delta=CUT).reshape(frames.shape)
    for edge in (np.s_[:, 0], np.s_[:, -1], np.s_[:, :, 0], np.s_[:, :, -1]):  # Pillow does not smooth the border
        out[edge] = frames[edge]
    return out


FILTERS: dict[str, Callable[[np.ndarray, float], np.ndarray]] = {"Color": _color, "Sharpness": _sharpness}
