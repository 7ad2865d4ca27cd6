"""Read the frames of a clip from a video file or a folder of numbered images."""

import os
from collections.abc import Callable, Iterator, Sequence

import cv2
import numpy as np

from slowfast.datasets.container import MediaError, despite_faults, why_not
from slowfast.datasets.decode import Pictures, read_video, stream_video

__all__ = ["MediaError", "count_images", "read_frames", "stream_frames"]

FOLDER_RATE = 25  # frames per second that are assumed for a folder of images


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
    """Decode the frames that `choose` returns, each of them once, in this process; see also `despite_faults`.

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
        image_template: name of image number k of a folder, as in `image_template.format(k)`; `{folder}` in it is the
            name of the folder.
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

    def read() -> np.ndarray:
        folder = os.path.isdir(path)
        pictures = Pictures(path, allocate, _channels(colors, folder))
        try:
            if folder:
                count = count_images(path, image_template) if num_frames is None else num_frames
                for number in pictures.plan(asked(count)):
                    pictures.add(_read_image(path, image_template, number, count))
            else:
                _check_file(path)
                read_video(path, asked, pictures, backend, report_slow)
            return pictures.array
        except (OSError, MemoryError, cv2.error) as error:
            raise MediaError(path, why_not(path, error)) from error

    try:
        return despite_faults(read)
    except _NotTheFile as other:
        raise other.error from None


def stream_frames(
    path: str,
    wanted: Callable[[int], bool],
    *,
    image_template: str = "img_{:05d}.jpg",
    colors: str = "RGB",
) -> Iterator[tuple[int, float, float, np.ndarray | None]]:
    """Decode a video from its beginning to its end, with memory for a few frames.

    A folder has `FOLDER_RATE` frames per second. `wanted` returns whether the pixels of the frame with a given number
    are needed. The other arguments are those of `read_frames`.

    Yields:
        Number of each frame, from 0; times in seconds at which it begins and ends, from the beginning of the video; and
        (H, W, 3) uint8 pixels, or None if they are not wanted.

    Raises:
        MediaError: the video is missing, empty, damaged or not a video.
    """
    folder, number = os.path.isdir(path), None
    channels = _channels(colors, folder)
    try:
        if folder:
            source = _stream_folder(path, wanted, image_template)
        else:
            _check_file(path)
            source = stream_video(path, wanted)
        for number, (begin, end, pixels) in enumerate(source):
            yield number, begin, end, None if pixels is None else np.ascontiguousarray(pixels[..., channels])
        if number is None:
            raise MediaError(path, "the video stream has no frames")
    except (OSError, MemoryError, cv2.error) as error:
        raise MediaError(path, why_not(path, error)) from error


def _stream_folder(
    path: str, wanted: Callable[[int], bool], image_template: str
) -> Iterator[tuple[float, float, np.ndarray | None]]:
    count = count_images(path, image_template)
    for number in range(count):
        pixels = _read_image(path, image_template, number, count) if wanted(number) else None
        yield number / FOLDER_RATE, (number + 1) / FOLDER_RATE, pixels


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
        reason = "no such file or folder; check the path, and the folder that the paths of a list start from"
    except OSError as error:
        raise MediaError(path, f"cannot be opened ({error.strerror})") from error
    else:
        reason = "the file is empty; download it again"
    raise MediaError(path, reason)


def _channels(colors: str, folder: bool) -> slice:
    """Return the index of the channels `colors` of a picture; those of a folder are BGR, those of a video RGB."""
    return np.s_[::-1] if (colors == "RGB") == folder else np.s_[:]


def count_images(path: str, image_template: str) -> int:
    """Return the number of images in a folder whose names are like a template; raise MediaError if there are none."""
    image_template = of_folder(image_template, path)
    start, end = image_template[: image_template.find("{")], image_template[image_template.rfind("}") + 1 :]
    names = os.listdir(path)
    count = sum(name.startswith(start) and name.endswith(end) for name in names)
    if not count:
        first = min(names, default="not there")
        raise MediaError(path, f"no image is named {image_template}, the first file is {first}; check image_template")
    return count


def of_folder(image_template: str, folder: str) -> str:
    """Return the template for one folder, whose name replaces `{folder}`."""
    name = os.path.basename(os.path.normpath(folder)).replace("{", "{{").replace("}", "}}")
    return image_template.replace("{folder}", name)


def _read_image(folder: str, image_template: str, number: int, num_frames: int) -> np.ndarray:
    name = of_folder(image_template, folder).format(number + 1)
    try:
        content = np.fromfile(os.path.join(folder, name), np.uint8)
    except OSError as error:
        first = min(os.listdir(folder), default="not there")
        raise MediaError(
            folder,
            f"{name} of {num_frames} images: {error.strerror}, the first file is {first}; check image_template and the "
            "list's frame count",
        ) from error
    image = cv2.imdecode(content, cv2.IMREAD_COLOR) if len(content) else None
    if image is None:
        raise MediaError(folder, f"{name} is damaged or not an image")
    return image
