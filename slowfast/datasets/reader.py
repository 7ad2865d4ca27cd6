"""Read the frames of a clip from a video file or a folder of numbered images."""

import os
from collections.abc import Callable, Sequence

import cv2
import numpy as np

from slowfast.datasets.container import MediaError, why_not
from slowfast.datasets.decode import read_video

__all__ = ["MediaError", "read_frames"]


def read_frames(
    path: str,
    choose: Callable[[int], Sequence[int]],
    *,
    num_frames: int | None = None,
    image_template: str = "img_{:05d}.jpg",
    colors: str = "RGB",
    backend: str = "pyav",
    allocate: Callable[[tuple[int, ...]], np.ndarray] = lambda shape: np.empty(shape, np.uint8),
    report_slow: Callable[[str], None] = lambda reason: None,
) -> np.ndarray:
    """Decode the frames that `choose` returns, each of them once, in this process.

    Every backend returns the same frames (see `slowfast.datasets.decode`):

    * Frames are numbered in the order of presentation and counted as they are shown; the count in the header, times, a
      late start and a variable rate do not matter. Frames that an edit list hides are not counted.
    * The rotation and mirroring of the first wanted frame are applied. Pixels are not made square, fields are not
      deinterlaced, alpha is left out; grey and 10-bit pictures become 8-bit RGB.
    * Cover pictures are not videos; a single image is a video of one frame.
    * A stream that ends early is a shorter video. An MP4 file that is cut off is an error, and so is a file that cannot
      be decoded at a wanted frame.

    Args:
        path: video file, or folder of images numbered from 1.
        choose: function of the number of frames of the video that returns 0-based indices, in any order and with
            repeats. It is called again if that number was wrong, so it must be a pure function.
        num_frames: number of images in the folder according to the list; None counts them. Ignored for a video file.
        image_template: name of image number k of a folder, as in `image_template.format(k)`.
        colors: order of the channels, "RGB" or "BGR".
        backend: decoder of video files to try first: "pyav", "decord" or "torchcodec".
        allocate: function of a shape that returns the uint8 array for the frames.
        report_slow: function that is called with the reason before a file is decoded from the beginning to the end
            because its frames cannot be found in another way.

    Returns:
        (T, H, W, 3) uint8, one frame per index, in the order of the indices.

    Raises:
        MediaError: the video is missing, empty, damaged or not a video.
    """

    def asked(length: int) -> Sequence[int]:
        try:
            return choose(length)
        except Exception as error:
            raise _NotTheFile(error) from None

    picture = ""
    try:
        if os.path.isdir(path):
            frames, order = _read_folder(path, asked, num_frames, image_template)
            native = "BGR"
        else:
            _check_file(path)
            frames, order = read_video(path, asked, backend, report_slow)
            native = "RGB"
        if len({frame.shape for frame in frames}) > 1:
            raise MediaError(path, "its pictures differ in size; encode the video again, or resize the images")
        shape = (len(order), *frames[0].shape)
        picture = f"{shape[0]} frames of {shape[2]}x{shape[1]}"
        out = allocate(shape)
        channels = np.s_[:] if colors == native else np.s_[::-1]
        for row, number in enumerate(order):
            out[row] = frames[number][..., channels]
        return out
    except _NotTheFile as other:
        raise other.error from None
    except (OSError, MemoryError, cv2.error) as error:
        raise MediaError(path, why_not(path, error, picture)) from error


class _NotTheFile(BaseException):
    """An exception of `choose`, which must not be reported as a fault of the file."""

    def __init__(self, error: Exception) -> None:
        self.error = error


def _check_file(path: str) -> None:
    try:
        with open(path, "rb") as file:
            if file.read(1):
                return
    except FileNotFoundError:
        reason = "no such file or folder; the prefix must be the folder that the paths of the list start from"
    except OSError as error:
        reason = f"cannot be opened ({error.strerror})"
    else:
        reason = "the file is empty; download it again"
    raise MediaError(path, reason)


def _read_folder(
    path: str, choose: Callable[[int], Sequence[int]], num_frames: int | None, image_template: str
) -> tuple[list[np.ndarray], list[int]]:
    if num_frames is None:
        start, end = image_template[: image_template.find("{")], image_template[image_template.rfind("}") + 1 :]
        num_frames = sum(name.startswith(start) and name.endswith(end) for name in os.listdir(path))
    if num_frames == 0:
        raise MediaError(path, f"no image is named like image_template {image_template!r}")
    needed, order = np.unique(np.asarray(choose(num_frames)), return_inverse=True)
    return [_read_image(path, image_template.format(index + 1), num_frames) for index in needed], order.tolist()


def _read_image(folder: str, name: str, num_frames: int) -> np.ndarray:
    try:
        content = np.fromfile(os.path.join(folder, name), np.uint8)
    except OSError as error:
        reason = f"{name} of {num_frames} images: {error.strerror}; check image_template and the list's frame count"
        raise MediaError(folder, reason) from None
    image = cv2.imdecode(content, cv2.IMREAD_COLOR) if len(content) else None
    if image is None:
        raise MediaError(folder, f"{name} is damaged or not an image")
    return image
