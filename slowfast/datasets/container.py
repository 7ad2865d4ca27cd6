"""Open video files with PyAV, select the video stream, and report why a file cannot be read."""

from __future__ import annotations

import errno
import os
import re
import time
from collections.abc import Callable, Iterator
from typing import Any, TypeVar

import av
from av.stream import Disposition

from slowfast.utils.io import STORAGE_ERRORS

T = TypeVar("T")

# Before version 19, PyAV by default refuses a file whose metadata (titles) are not UTF-8.
TITLES: dict[str, Any] = {"metadata_errors": "replace"} if int(av.__version__.partition(".")[0]) < 19 else {}
HELD_FRAMES = 16  # maximum of reference frames in H.264 and HEVC
NO_MEMORY = r"Errno 12\]|Cannot allocate|[Ii]nsufficient memory"


class MediaError(ValueError):
    """A video file or folder cannot be decoded; `reason` is what is wrong, and the cure if there is one."""

    def __init__(self, path: str, reason: str = "") -> None:
        # A data loader rebuilds the exception from its text alone, which becomes `path`.
        super().__init__(f"{path}: {reason}" if reason else path)
        self.path = path
        self.reason = reason


WAITS = (1.0, 5.0, 20.0)  # seconds before a file is read again


def despite_faults(read: Callable[[], T]) -> T:
    """Return `read()`; if a file system fails, wait and call it again.

    A file server that restarts, or that has dropped a client (NFS, Lustre), fails for some seconds, and no file is bad.
    """
    for wait in WAITS:
        try:
            return read()
        except MediaError as error:
            if getattr(error.__cause__, "errno", None) not in STORAGE_ERRORS:
                raise
        time.sleep(wait)
    return read()


def address(path: str) -> str:
    """Return a path as FFmpeg's address of a file; FFmpeg would read the path `a:b.mp4` as an address itself."""
    return f"file:{path}"


def open_video(path: str) -> Any:
    """Open a file with PyAV, with titles in any encoding; raise MediaError if it is not a video."""
    try:
        return av.open(address(path), **TITLES)
    except av.FFmpegError as error:
        if error.errno == errno.ENOMEM:
            raise
        raise MediaError(path, f"not a readable video ({error.strerror})") from error


def video_stream(path: str, container: Any) -> Any:
    """Return the first video stream that has packets and is not a cover picture, with decoding in this thread only.

    Raises:
        MediaError: there is no such stream, or FFmpeg has no decoder for it.
    """
    streams = [s for s in container.streams.video if not s.disposition & Disposition.attached_pic]
    if not streams:
        raise MediaError(path, "not a readable video (no video stream)")
    stream = streams[0] if len(streams) == 1 else _first_with_packets(path, streams)
    if stream.codec_context is None:
        raise MediaError(
            path,
            "FFmpeg has no decoder for its codec: convert it with a program that plays it, or write the lists without "
            "it (prepare_data.py check --clean)",
        )
    stream.codec_context.thread_count = 1
    return stream


def seconds_of(container: Any, stream: Any) -> float:
    """Return the length of a stream in seconds, or of the whole file if only that is known; 0.0 if neither is."""
    if stream.duration:
        return float(stream.duration * stream.time_base)
    return (container.duration or 0) / av.time_base


def packets(container: Any, streams: Any) -> Iterator[Any]:
    """Yield the packets of streams, without empty packets.

    An empty packet repeats a picture, for example in Ogg. A decoder interprets it as the end of the stream, and refuses
    all later packets.
    """
    return (packet for packet in container.demux(streams) if packet.size)


def every_frame(container: Any, stream: Any) -> Iterator[Any]:
    """Decode a stream from its beginning to its end."""
    for packet in packets(container, stream):
        yield from packet.decode()
    yield from stream.codec_context.decode(None)


def _first_with_packets(path: str, streams: list[Any]) -> Any:
    """Return the first stream with packets; a file for several bit rates may declare streams without any."""
    found: set[int] = set()
    with open_video(path) as container:
        for packet in packets(container, [container.streams[stream.index] for stream in streams]):
            found.add(packet.stream_index)
            if streams[0].index in found:
                break
    return next((stream for stream in streams if stream.index in found), streams[0])


def why_not(path: str, error: Exception, picture: str = "", pixels: int = 0) -> str:
    """Return the reason of a `MediaError` for an exception of a library.

    `picture` is the size of the frames and the codec, for example "3840x2160 hevc". `pixels`, the number of pixels of a
    frame, is needed because some decoders report damage when memory runs out.
    """
    text = first_line(error)
    by_ffmpeg = isinstance(error, av.FFmpegError)
    if isinstance(error, MemoryError) or re.search(NO_MEMORY, text) or (by_ffmpeg and not _is_free(pixels)):
        return f"out of memory ({', '.join(filter(None, (picture, size_of(path))))})"
    if by_ffmpeg:
        return f"damaged, not all of it can be decoded ({error.strerror})"
    about = f" of {picture}" if picture else ""
    return f"its frames{about} cannot be read ({type(error).__name__}: {text})"


def size_of(path: str) -> str:
    """Return the size of a file in words."""
    try:
        return f"{os.path.getsize(path):,} bytes"
    except OSError:
        return "its size is unknown"


def _is_free(pixels: int) -> bool:
    """Return whether there is enough memory for the frames that a decoder keeps, at 12 bits per pixel."""
    try:
        bytearray(HELD_FRAMES * pixels * 3 // 2)
    except MemoryError:
        return False
    return True


def first_line(error: BaseException) -> str:
    """Return the first line of an exception's message."""
    text = str(error).strip().split("\n")[0] or type(error).__name__
    return re.sub(r"\[[\d:]+\] \S+\.cc:\d+: ", "", text)  # decord's clock and source lines
