"""From a video file or a folder of numbered images to the few frames a clip needs."""

import os
import re
from collections.abc import Callable, Sequence

import cv2
import decord
import numpy as np

decord.logging.set_level(decord.logging.QUIET)  # FFmpeg's remarks about every odd packet


class MediaError(ValueError):
    """A video cannot be decoded.

    Args:
        path: the video file or folder.
        reason: what is wrong, and the cure where there is one.
    """

    def __init__(self, path: str, reason: str = "") -> None:
        # A data loader rebuilds the exception from its text alone, which then arrives as `path`.
        super().__init__(f"{path}: {reason}" if reason else path)
        self.path = path
        self.reason = reason


def read_frames(
    path: str,
    choose: Callable[[int], Sequence[int]],
    *,
    num_frames: int | None = None,
    image_template: str = "img_{:05d}.jpg",
    colors: str = "RGB",
) -> np.ndarray:
    """Decode the frames that `choose` names, each of them once.

    Args:
        path: video file, or folder of images numbered from 1.
        choose: takes the number of frames of the video and returns 0-based indices, in any order and with repeats.
        num_frames: images in the folder if the list tells; None counts them. A video file is always asked.
        image_template: name of image number k of a folder, as in `image_template.format(k)`.
        colors: order of the channels, "RGB" or "BGR".

    Returns:
        (T, H, W, 3) uint8, one frame per index, in the order of the indices.

    Raises:
        MediaError: the video is missing, empty, damaged or not a video.
    """
    if os.path.isdir(path):
        frames = _read_folder(path, choose, num_frames, image_template)
        native = "BGR"
    else:
        frames = _read_video(path, choose)
        native = "RGB"
    return frames if colors == native else np.ascontiguousarray(frames[..., ::-1])


def _read_video(path: str, choose: Callable[[int], Sequence[int]]) -> np.ndarray:
    if not os.path.exists(path):
        raise MediaError(path, "no such file or folder; set DATA.PATH_PREFIX to the folder the list starts from")
    if os.path.getsize(path) == 0:
        raise MediaError(path, "the file is empty; fetch it again")
    try:
        # One thread: the workers already fill the cores. The reader closes when it goes out of scope.
        video = decord.VideoReader(path, num_threads=1)
        length = len(video)
    except (decord.DECORDError, RuntimeError) as error:
        raise MediaError(path, f"not a readable video ({_words(error)})") from None
    if length == 0:
        raise MediaError(path, "the video stream has no frames")
    needed, order = np.unique(np.asarray(choose(length)), return_inverse=True)
    try:
        frames = video.get_batch(needed.tolist()).asnumpy()
    except (decord.DECORDError, RuntimeError, IndexError) as error:
        raise MediaError(path, f"damaged: of {length} frames, not all decode ({_words(error)})") from None
    if len(frames) != len(needed):
        raise MediaError(path, f"damaged: {len(needed)} frames asked for, {len(frames)} decoded")
    return frames[order]


def _read_folder(
    path: str, choose: Callable[[int], Sequence[int]], num_frames: int | None, image_template: str
) -> np.ndarray:
    if num_frames is None:
        start, end = image_template[: image_template.find("{")], image_template[image_template.rfind("}") + 1 :]
        num_frames = sum(name.startswith(start) and name.endswith(end) for name in os.listdir(path))
    if num_frames == 0:
        raise MediaError(path, f"no image is named like DATA.IMAGE_TEMPLATE {image_template!r}")
    needed, order = np.unique(np.asarray(choose(num_frames)), return_inverse=True)
    images = [_read_image(path, image_template.format(index + 1), num_frames) for index in needed]
    if len({image.shape for image in images}) > 1:
        raise MediaError(path, "the images differ in size")
    return np.stack(images)[order]


def _read_image(folder: str, name: str, num_frames: int) -> np.ndarray:
    try:
        content = np.fromfile(os.path.join(folder, name), np.uint8)
    except OSError as error:
        reason = (
            f"{name} of {num_frames} images: {error.strerror}; check DATA.IMAGE_TEMPLATE and the list's frame count"
        )
        raise MediaError(folder, reason) from None
    image = cv2.imdecode(content, cv2.IMREAD_COLOR) if len(content) else None
    if image is None:
        raise MediaError(folder, f"{name} is damaged or not an image")
    return image


def _words(error: Exception) -> str:
    first_line = str(error).strip().split("\n")[0]
    return re.sub(r"\[[\d:]+\] \S+\.cc:\d+: ", "", first_line)  # decord's clock and source lines
