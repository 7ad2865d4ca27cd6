"""Real media made on the spot: the brightness of a frame shows its number."""

from collections.abc import Callable
from pathlib import Path

import av
import cv2
import numpy as np
import pytest

from slowfast.datasets.backends import BACKENDS


def numbered_frames(count: int, height: int = 48, width: int = 64) -> np.ndarray:
    """(T, H, W, 3) RGB; frame t has brightness 10 + 4 t, 40 more in red, and is 10 darker in its right half."""
    frames = np.repeat(10 + 4 * np.arange(count), height * width * 3).reshape(count, height, width, 3)
    frames[..., 0] += 40
    frames[:, :, width // 2 :] -= 10
    return frames.clip(0, 255).astype(np.uint8)


@pytest.fixture(scope="session")
def write_video() -> Callable[..., str]:
    """`write_video(path, frames=30)` encodes H.264 and returns the path."""

    def write(path: Path, frames: int = 30, height: int = 48, width: int = 64) -> str:
        path.parent.mkdir(parents=True, exist_ok=True)
        options = {"movflags": "faststart"} if path.suffix == ".mp4" else {}
        with av.open(str(path), "w", options=options) as container:
            stream = container.add_stream("libx264" if path.suffix == ".mp4" else "libvpx", rate=25)
            assert isinstance(stream, av.VideoStream)
            stream.width, stream.height, stream.pix_fmt, stream.bit_rate = width, height, "yuv420p", 2_000_000
            for image in numbered_frames(frames, height, width):
                container.mux(stream.encode(av.VideoFrame.from_ndarray(image, format="rgb24")))
            container.mux(stream.encode())
        return str(path)

    return write


@pytest.fixture(scope="session")
def write_folder() -> Callable[..., str]:
    """`write_folder(path, frames=30, template=...)` writes JPEG images and returns the path."""

    def write(path: Path, frames: int = 30, template: str = "img_{:05d}.jpg", height: int = 48, width: int = 64) -> str:
        path.mkdir(parents=True, exist_ok=True)
        for number, image in enumerate(numbered_frames(frames, height, width), 1):
            cv2.imwrite(str(path / template.format(number)), np.ascontiguousarray(image[..., ::-1]))
        return str(path)

    return write


@pytest.fixture(scope="session")
def frame_numbers() -> Callable[[np.ndarray], list[int]]:
    """Read the numbers of decoded (T, H, W, 3) frames, RGB or BGR."""

    def read(frames: np.ndarray) -> list[int]:
        return np.round((np.median(frames[:, :, :8], axis=(1, 2)).min(axis=1) - 8.75) / 4).astype(int).tolist()

    return read


@pytest.fixture(params=BACKENDS)
def backend(request) -> str:
    """Return every installed decoder; an installed one that does not load fails."""
    pytest.importorskip("av" if request.param == "pyav" else request.param)
    return request.param
