"""Make small pictures of videos as data URIs."""

from __future__ import annotations

import base64
import time

import cv2
import numpy as np

from slowfast.datasets.container import MediaError
from slowfast.datasets.guarded import read_frames_within

HEIGHT, WIDTH = 84, 112  # of a frame, in pixels
FRAMES = 3
QUALITY = 70
READ_LIMIT = 10.0  # seconds per video


class Thumbnails:
    """Make thumbnails; when `seconds` have passed for all of them together, no further video is read."""

    def __init__(self, seconds: float, image_template: str) -> None:
        self.until = time.monotonic() + seconds
        self.image_template = image_template

    def __call__(self, path: str) -> str:
        """Return three frames of a video as the data URI of a JPEG image; "" if it cannot be read."""
        if time.monotonic() > self.until:
            return ""
        try:
            frames = read_frames_within(READ_LIMIT, path, _spread, image_template=self.image_template, colors="BGR")
        except MediaError:
            return ""
        content = cv2.imencode(".jpg", _strip(frames), [cv2.IMWRITE_JPEG_QUALITY, QUALITY])[1]
        return "data:image/jpeg;base64," + base64.b64encode(content.tobytes()).decode()


def _spread(length: int) -> list[int]:
    """Return evenly spaced frames; one of a video of one frame."""
    return sorted({(2 * k + 1) * length // (2 * FRAMES) for k in range(FRAMES)})


def _strip(frames: np.ndarray) -> np.ndarray:
    """Join frames (T, H, W, C) side by side, small, cut to 4:3."""
    height, width = frames.shape[1:3]
    cut = min(width, round(height * WIDTH / HEIGHT))
    left, scale = (width - cut) // 2, min(HEIGHT / height, 1.0)
    size = max(1, round(cut * scale)), max(1, round(height * scale))
    return np.hstack([cv2.resize(f[:, left : left + cut], size, interpolation=cv2.INTER_AREA) for f in frames])
