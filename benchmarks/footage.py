"""Make videos that are as hard to decode as camera footage, for benchmarks."""

from __future__ import annotations

from concurrent.futures import ProcessPoolExecutor
from functools import partial
from multiprocessing import get_context
from pathlib import Path

import av
import cv2
import numpy as np
from tqdm import tqdm

from slowfast.utils.processes import usable_cores
from slowfast.utils.rng import rng_for


def _texture(rng: np.random.Generator, height: int, width: int) -> np.ndarray:
    """Return noise with the spectrum of photographs: the contrast decreases by 0.72 per octave."""
    total = np.zeros((height, width, 3), np.float32)
    for octave in range(2, 9):
        coarse = rng.standard_normal((max(2, height >> (9 - octave)), max(2, width >> (9 - octave)), 3), np.float32)
        total += cv2.resize(coarse, (width, height), interpolation=cv2.INTER_CUBIC) * 0.72**octave
    total -= total.min()
    return (total * (255 / total.max())).astype(np.uint8)


def write_video(
    path: Path, seed: int, *, seconds: float = 10, height: int = 256, width: int = 340, key_frames: int
) -> None:
    """Write H.264 at 30 frames per second with x264's defaults (crf 23, medium), except the distance of key frames.

    A camera moves over a landscape, three objects move through the picture, and the sensor is noisy.
    """
    rng = rng_for(seed, "benchmark")
    landscape = _texture(rng, 2 * height, 2 * width)
    h, w = height // 3, width // 3
    objects = [_texture(rng, h, w) for _ in range(3)]
    phase, speed = rng.uniform(0, 2 * np.pi, 10), rng.uniform(0.2, 1.2, 10)
    with av.open(str(path), "w") as container:
        stream = container.add_stream("libx264", rate=30)
        assert isinstance(stream, av.VideoStream)
        stream.width, stream.height, stream.pix_fmt = width, height, "yuv420p"
        stream.options = {"preset": "medium", "crf": "23", "g": str(key_frames), "threads": "1"}
        for number in range(round(seconds * 30)):
            sway = np.sin(speed * number / 30 + phase)
            camera = cv2.getRotationMatrix2D((width, height), 8 * sway[0], 1.1 + 0.2 * sway[1])
            camera[:, 2] += width * (sway[2] / 4 - 0.5), height * (sway[3] / 4 - 0.5)
            image = cv2.warpAffine(landscape, camera, (width, height), borderMode=cv2.BORDER_REFLECT)
            for thing, y, x in zip(objects, sway[4:7], sway[7:], strict=True):
                top, left = round((height - h) * (y + 1) / 2), round((width - w) * (x + 1) / 2)
                image[top : top + h, left : left + w] = thing
            image = (image + 2 * rng.standard_normal((height, width, 1), np.float32)).clip(0, 255).astype(np.uint8)
            container.mux(stream.encode(av.VideoFrame.from_ndarray(image, format="rgb24")))
        container.mux(stream.encode())


def make_videos(folder: Path, count: int, key_frames: int, seconds: float = 10) -> Path:
    """Write `count` videos with all cores, except those that exist, and their list; return the path of the list."""
    folder = folder / f"key_frames_{key_frames}"
    folder.mkdir(parents=True, exist_ok=True)
    names = [f"{number:04d}.mp4" for number in range(count)]
    missing = [number for number, name in enumerate(names) if not (folder / name).exists()]
    make = partial(_make_video, folder, key_frames=key_frames, seconds=seconds)
    with ProcessPoolExecutor(min(usable_cores(), max(len(missing), 1)), mp_context=get_context("spawn")) as pool:
        for _ in tqdm(pool.map(make, missing), "make videos", len(missing), disable=None):
            pass
    listed = folder / "list.csv"
    listed.write_text("".join(f"{(folder / name).resolve()},0\n" for name in names))
    return listed


def _make_video(folder: Path, number: int, key_frames: int, seconds: float) -> None:
    cv2.setNumThreads(0)
    unfinished = folder / f".{number:04d}.mp4"
    write_video(unfinished, number, seconds=seconds, key_frames=key_frames)
    unfinished.replace(folder / f"{number:04d}.mp4")
