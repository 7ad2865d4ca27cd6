"""Decoders of video files, PyAV, decord and torchcodec, under one policy: the same frames from each.

A video is the frames that FFmpeg shows from the beginning to the end of its first video stream that is not a cover
picture, in this order. Frame numbers follow the order of presentation, whatever the times of the frames. First the
packets are read, without decoding, to list the frames; the count in the header is not believed. decord and torchcodec
are asked for files whose list they are known to understand. Wherever one of them fails PyAV takes its place, and where
the list turns out to be wrong the whole file is decoded and counted; only when that fails too, the file is broken.

PyAV comes first because it can be told which pictures to leave out: on the way to a wanted one, those that no other is
made from. In H.264 as x264 writes it, that is every second one.
"""

from __future__ import annotations

import gc
import logging
import os
import re
import struct
from bisect import bisect_left, bisect_right
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from importlib import import_module
from typing import Any

import av
import numpy as np
from av.stream import Disposition
from av.video.reformatter import VideoReformatter

logger = logging.getLogger(__name__)

# A seek empties the decoder and costs as much as decoding about this many frames: it has to save more than that.
SEEK_FRAMES = 16
# Codecs that mark pictures which no other one refers to, and mean it. HEVC's marks hold within a temporal layer only.
MARKED_CODECS = ("h264",)
# Where the version of an MP4 box is 0, its display matrix lies so many bytes after its start; 12 more where it is 1.
MATRIX_PLACES = {b"tkhd": 48, b"mvhd": 44}
# Containers in which decord and torchcodec find frames by their number. In transport streams, and in AVI without an
# index, they give other frames.
FAST_FORMATS = ("mp4", "matroska")

# Before version 19, PyAV refuses a file with titles that are not UTF-8 unless it is asked not to.
TITLES: dict[str, Any] = {"metadata_errors": "replace"} if int(av.__version__.partition(".")[0]) < 19 else {}

_TOLD: set[str] = set()


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


class Unsure(Exception):
    """A decoder cannot read a file, or not in this way; another one may."""


@dataclass(frozen=True)
class FrameList:
    """What the packets of a video tell of its frames.

    Attributes:
        times: of the frames in order of presentation, in units of the stream.
        keys: (number of a key frame, the time to seek to), in order.
        exact: the times lead to the frames; otherwise the video has to be decoded from the beginning.
        plain: decord and torchcodec find the frames, too.
    """

    times: list[int]
    keys: list[tuple[int, int]]
    exact: bool
    plain: bool


def check_backend(name: str) -> None:
    """Load a backend, without reading anything.

    Args:
        name: pyav, decord or torchcodec (DATA.DECODING_BACKEND).

    Raises:
        ValueError: it is unknown or cannot be loaded, with the way to get it.
    """
    if name not in BACKENDS:
        raise ValueError(f"DATA.DECODING_BACKEND {name!r} is unknown: use one of {', '.join(BACKENDS)}")
    module = {"pyav": "av", "torchcodec": "torchcodec.decoders"}.get(name, name)
    try:
        import_module(module)
    except (ImportError, OSError, RuntimeError) as error:
        cure = f"pip install {module.split('.')[0]}"
        if name == "torchcodec":
            cure += (
                " in the release made for this PyTorch (its README has the table), and FFmpeg's shared libraries by "
                "apt-get install ffmpeg or conda install -c conda-forge ffmpeg"
            )
        message = f"DATA.DECODING_BACKEND {name} cannot be loaded ({_words(error)}): {cure}; or use pyav"
        raise ValueError(message) from None


def read_video(path: str, choose: Callable[[int], Sequence[int]], backend: str) -> tuple[list[np.ndarray], list[int]]:
    """Decode the frames of a file that `choose` names, each of them once.

    Args:
        path: the file.
        choose: takes the number of frames and returns indices, in any order and with repeats; it is called again when
            that number turned out to be wrong.
        backend: which decoder to try first.

    Returns:
        The decoded frames, each (H, W, 3) uint8 RGB, upright (turned and mirrored as the file says), and for every
        index of `choose` its place among them. Pixels are not made square, fields not deinterlaced, and an alpha
        channel is left out.

    Raises:
        MediaError: the file cannot be decoded.
    """
    gc.collect(0)  # the frame of the last read that was asked how it is turned
    try:
        # Opened once where that is safe, as FFmpeg decodes the beginning to learn what a file holds.
        with _open(path) as container:
            stream = video_stream(path, container)
            listed = list_frames(path, container, stream)
            if listed.exact:
                needed, order = np.unique(np.asarray(choose(len(listed.times))), return_inverse=True)
                doubt = ""
                for name in dict.fromkeys((backend if listed.plain else "pyav", "pyav")):
                    try:
                        if name != "pyav":
                            frames = LIBRARIES[name](path, listed, needed.tolist())
                        elif "mp4" in container.format.name:
                            frames = _seek_and_decode(container, stream, listed, needed.tolist())
                        else:  # what a demuxer has passed it may take for key frames, as that of AVI does
                            with _open(path) as again:
                                frames = _seek_and_decode(again, video_stream(path, again), listed, needed.tolist())
                    except Unsure as reason:
                        doubt = doubt or str(reason)
                        continue
                    if doubt:
                        _tell(f"{backend} cannot read some videos, PyAV reads them ({doubt}), such as", path)
                    return frames, order.tolist()
        length = sum(1 for _ in _all_frames(path))
        if length == 0:
            raise MediaError(path, "the video stream has no frames")
        needed, order = np.unique(np.asarray(choose(length)), return_inverse=True)
        wanted = set(needed.tolist())
        rgb = _Rgb()
        return [rgb(frame) for number, frame in enumerate(_all_frames(path)) if number in wanted], order.tolist()
    except av.FFmpegError as error:
        raise MediaError(path, f"damaged, not all of it can be decoded ({error.strerror})") from None


def list_frames(path: str, container: Any, stream: Any) -> FrameList:
    """List the frames of a video without decoding it; av.FFmpegError if the packets cannot be read to the end."""
    kind = container.format.name
    mirrored = "mp4" in kind and _check_boxes(path)
    reordered = bool(stream.codec_context.has_b_frames)
    found, hidden = [], 0
    for packet in container.demux(stream):
        if packet.is_discard:  # before or after what an edit list shows
            hidden += 1
        elif packet.size:
            # Matroska keeps no decoding times, and in MP4 a seek to those lands a key frame too early
            by_pts = packet.dts is None or "mp4" in kind
            found.append((packet.pts, packet.pts if by_pts else packet.dts, packet.is_keyframe))
    decoded = [pts for pts, _, _ in found]
    if not found or None in decoded:
        return FrameList([], [], exact=False, plain=False)
    times = sorted(decoded)
    numbers = [
        (bisect_left(times, pts), position, start) for position, (pts, start, is_key) in enumerate(found) if is_key
    ]
    # a recording may begin inside a group of pictures, whose frames are then lost
    exact = len(set(times)) == len(times) and numbers[:1] != [] and numbers[0][:2] == (0, 0)
    # no times of presentation in the file, as in AVI: those of H.264 are then guessed from the order of decoding
    exact = exact and not (reordered and decoded == times)
    # frames that belong to the group before, but come after the key frame, are lost by a seek to it
    closed = all(number == position for number, position, _ in numbers)
    fast = any(name in kind for name in FAST_FORMATS)
    plain = exact and closed and fast and not hidden and not mirrored and len(times) > 1
    return FrameList(times, [(number, start) for number, _, start in numbers], exact, plain)


def _decord(path: str, listed: FrameList, needed: list[int]) -> list[np.ndarray]:
    import decord

    decord.logging.set_level(decord.logging.QUIET)  # FFmpeg's remarks about every odd packet
    reason, frames, video = "", None, None
    try:
        # One thread: the workers already fill the cores. A frame that does not decode is not to repeat its neighbour.
        video = decord.VideoReader(path, num_threads=1, fault_tol=1e-9)  # pyright: ignore[reportArgumentType]
        if len(video) == len(listed.times):
            frames = video.get_batch(needed).asnumpy()
        else:
            reason = f"it counts {len(video)} frames instead of {len(listed.times)}"
    except (decord.DECORDError, decord.DECORDLimitReachedError, RuntimeError, AssertionError, UnicodeError) as error:
        reason = _words(error).replace(path, "...")
    # The reader ends here, and not with the traceback of an exception: one that is destroyed in a fork of this process
    # waits for its threads, which are not there.
    del video
    if frames is None:
        raise Unsure(reason)
    if len(frames) != len(needed) or frames.shape[-1] != 3:
        raise Unsure(f"its frames have the shape {frames.shape[1:]}")  # some narrow pictures
    return list(frames)


def _torchcodec(path: str, listed: FrameList, needed: list[int]) -> list[np.ndarray]:
    from torchcodec.decoders import VideoDecoder  # pyright: ignore[reportMissingImports]

    try:
        video = VideoDecoder(path, dimension_order="NHWC", num_ffmpeg_threads=1)
        if len(video) != len(listed.times):
            raise Unsure(f"it counts {len(video)} frames instead of {len(listed.times)}")
        return list(video.get_frames_at(needed).data.numpy())
    except (RuntimeError, ValueError, IndexError) as error:
        raise Unsure(_words(error).replace(path, "...")) from None


def _seek_and_decode(container: Any, stream: Any, listed: FrameList, needed: list[int]) -> list[np.ndarray]:
    """Decode forward, and seek where a key frame lies ahead."""
    rgb, images = _Rgb(), []
    frames: Iterator[Any] = iter(())
    shown = len(listed.times)  # number of the last frame out of the decoder; the first wanted one lies before
    try:
        for number in needed:
            key, start = listed.keys[bisect_right(listed.keys, number, key=lambda entry: entry[0]) - 1]
            if number < shown or key > shown + SEEK_FRAMES:
                container.seek(start, stream=stream)
                frames = _decode(container, stream, {listed.times[n] for n in needed if n >= number})
            time = listed.times[number]
            frame = next((f for f in frames if f.pts is None or f.pts >= time), None)
            if frame is None or frame.pts != time:
                raise Unsure("the list of packets does not lead to the frames")
            images.append(rgb(frame))
            shown = number
    except av.FFmpegError as error:
        raise Unsure(error.strerror) from None
    return images


def _decode(container: Any, stream: Any, wanted: set[int]) -> Iterator[Any]:
    """Decode from here on, without most of the pictures whose times are not `wanted`; takes those it reads from it."""
    codec = stream.codec_context
    marked = codec.name in MARKED_CODECS
    for packet in container.demux(stream):
        if marked:  # one thread: the packet is decoded before the next one comes
            codec.skip_frame = "DEFAULT" if packet.pts is None or packet.pts in wanted else "NONREF"
        yield from packet.decode()
        wanted.discard(packet.pts)
        if not wanted:  # what it holds back to put pictures in order comes out without more packets
            yield from codec.decode(None)
            return


# From (path, list, sorted numbers of frames) to as many (H, W, 3) frames.
LIBRARIES: dict[str, Callable[[str, FrameList, list[int]], list[np.ndarray]]] = {
    "decord": _decord,
    "torchcodec": _torchcodec,
}
BACKENDS = ("pyav", *LIBRARIES)


def orientation(frame: Any) -> tuple[bool, bool, bool]:
    """How FFmpeg turns a decoded frame upright: swap rows and columns, then mirror left-right, then top-bottom.

    A display matrix sends column and row (x, y) to (a x + c y, b x + d y); angles between quarter turns are rounded.
    """
    matrix = frame.side_data.get("DISPLAYMATRIX")
    if matrix is None:
        return False, False, False
    a, b, _, c, d, *_ = np.frombuffer(matrix, np.int32).tolist()
    swap = abs(b) + abs(c) > abs(a) + abs(d)
    return (True, c < 0, b < 0) if swap else (False, a < 0, d < 0)


class _Rgb:
    """From decoded frames to (H, W, 3), upright; one converter for all frames of a video, as making one takes time."""

    def __init__(self) -> None:
        self.converter = VideoReformatter()
        self.turn: tuple[bool, bool, bool] | None = None

    def __call__(self, frame: Any) -> np.ndarray:
        # Only one frame is asked: PyAV ties it to its side data, and it then waits for the garbage collector, as long
        # as nothing else holds it.
        self.turn = self.turn or orientation(frame)
        swap, left_right, top_bottom = self.turn
        rgb = self.converter.reformat(frame, format="rgb24")
        image = rgb.to_ndarray()
        if rgb is frame:
            image = image.copy()
        image = image.swapaxes(0, 1) if swap else image
        return image[:: -1 if top_bottom else 1, :: -1 if left_right else 1]


def open_container(path: str) -> Any:
    """Open a file with PyAV, whatever its titles are made of; av.FFmpegError if it is none."""
    return av.open(path, **TITLES)


def _open(path: str) -> Any:
    try:
        return open_container(path)
    except av.FFmpegError as error:
        raise MediaError(path, f"not a readable video ({error.strerror})") from None


def _check_boxes(path: str) -> bool:
    """An MP4 file tells how long each of its parts is, and so whether its end is there.

    Returns:
        Whether a display matrix mirrors the picture.

    Raises:
        MediaError: the end is not there.
    """
    size, start, mirrored = os.path.getsize(path), 0, False
    with open(path, "rb") as file:
        while start + 8 <= size:
            file.seek(start)
            length, kind, long_length = struct.unpack(">I4sQ", file.read(16).ljust(16, b"\0"))
            head, length = (16, long_length) if length == 1 else (8, length)
            if length < head:  # 0 is up to the end, wherever that is; others are no box
                break
            if start + length > size and kind in (b"mdat", b"moov", b"moof"):
                raise MediaError(path, f"damaged, cut off after {size} of {start + length} bytes; fetch it again")
            if kind in MATRIX_PLACES:
                file.seek(start + 8)
                file.seek(start + MATRIX_PLACES[kind] + (12 if file.read(1) == b"\1" else 0))
                a, b, c, d = struct.unpack(">ii4xii", file.read(20).ljust(20, b"\0"))
                mirrored |= a * d < b * c
            start += head if kind in (b"moov", b"trak") else length
    return mirrored


def video_stream(path: str, container: Any) -> Any:
    """The first video stream that is not a cover picture, set to decode in this thread alone."""
    streams = [s for s in container.streams.video if not s.disposition & Disposition.attached_pic]
    if not streams:
        raise MediaError(path, "not a readable video (no video stream)")
    streams[0].codec_context.thread_count = 1
    return streams[0]


def _all_frames(path: str) -> Iterator[Any]:
    with _open(path) as container:
        yield from container.decode(video_stream(path, container))


def _tell(message: str, path: str) -> None:
    """Log a message of a kind once; numbers do not make another kind."""
    kind = re.sub(r"\d+", "", message)
    if kind not in _TOLD:
        _TOLD.add(kind)
        logger.info("%s %s", message, path)


def _words(error: BaseException) -> str:
    first_line = str(error).strip().split("\n")[0] or type(error).__name__
    return re.sub(r"\[[\d:]+\] \S+\.cc:\d+: ", "", first_line)  # decord's clock and source lines
