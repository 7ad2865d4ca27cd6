"""Decoders of video files, PyAV, decord and torchcodec, under one policy: the same frames from each.

A video is the frames that FFmpeg shows from the beginning to the end of its first video stream that has packets and is
not a cover picture, in this order. Frame numbers follow the order of presentation, whatever the times of the frames.
First the packets are read, without decoding, to list the frames (`frame_list`); the count in the header is not used.
The frames that the decoder returns are compared with the list: if they have other times, or another order, the whole
file is decoded and counted. Only if that fails too, the file is broken. decord and torchcodec are used only for files
whose frames they are known to find; PyAV reads the others.

PyAV is the default because it can skip frames: before a wanted frame, those that no other frame depends on. In H.264
from x264, that is every second one.
"""

from __future__ import annotations

import gc
import logging
import re
from bisect import bisect_left, bisect_right
from collections.abc import Callable, Iterator, Sequence
from dataclasses import replace
from fractions import Fraction
from importlib import import_module
from typing import Any

import av
import numpy as np
from av.filter import Graph
from av.video.reformatter import VideoReformatter

from slowfast.datasets.container import (
    MediaError,
    every_frame,
    first_line,
    open_container,
    open_video,
    packets,
    video_stream,
    why_not,
)
from slowfast.datasets.frame_list import FrameList, is_progressive, list_frames, unit_reader

__all__ = ["BACKENDS", "MediaError", "check_backend", "open_container", "orientation", "read_video", "video_stream"]

logger = logging.getLogger(__name__)

# A seek empties the decoder and costs as much as decoding about this many frames: it has to save more than that.
SEEK_FRAMES = 16
# Codecs that mark pictures which no other one refers to, and mean it. HEVC's marks hold within a temporal layer only.
MARKED_CODECS = ("h264",)
NOT_REFERRED_TO = 0x01  # first byte of a unit with a part of such a picture
MAX_UNNAMED = 8  # kinds of side data
SLOW = "prepare_data.py reencode makes faster copies of videos that every read decodes from beginning to end"

_TOLD: set[str] = set()


class Unsure(Exception):
    """A decoder cannot read a file, or not in this way; another one may."""


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
        message = f"DATA.DECODING_BACKEND {name} cannot be loaded ({first_line(error)}): {cure}; or use pyav"
        raise ValueError(message) from None


def read_video(
    path: str,
    choose: Callable[[int], Sequence[int]],
    backend: str,
    report_slow: Callable[[str], None] = lambda reason: None,
) -> tuple[list[np.ndarray], list[int]]:
    """Decode the frames of a file that `choose` names, each of them once.

    Args:
        path: the file.
        choose: takes the number of frames and returns indices, in any order and with repeats; it is called again when
            that number turned out to be wrong.
        backend: which decoder to try first.
        report_slow: called with the reason before a file is decoded from the beginning to the end.

    Returns:
        The decoded frames, each (H, W, 3) uint8 RGB, upright (turned and mirrored as the file says), and for every
        index of `choose` its place among them. Pixels are not made square, fields not deinterlaced, and an alpha
        channel is left out.

    Raises:
        MediaError: the file cannot be decoded.
    """
    gc.collect(0)  # the frame of the last read that was asked how it is turned
    picture, pixels = "", 0
    try:
        # Opened once where that is safe, as FFmpeg decodes the beginning to learn what a file holds.
        with open_video(path) as container:
            stream = video_stream(path, container)
            codec = stream.codec_context
            picture, pixels = f"{codec.width}x{codec.height} {codec.name}", codec.width * codec.height
            listed = list_frames(path, container, stream)
            doubt = listed.doubt
            if not doubt:
                needed, order = np.unique(np.asarray(choose(len(listed.times))), return_inverse=True)
                try:
                    return _read_listed(path, container, stream, listed, needed.tolist(), backend), order.tolist()
                except Unsure as error:
                    doubt = str(error)
        report_slow(doubt)
        _tell(f"{SLOW} ({doubt}), such as", path)
        return _decode_all(path, choose, listed.count)
    except MediaError:
        raise
    except Exception as error:  # any exception of a library is a fault of the file
        raise MediaError(path, why_not(path, error, picture, pixels)) from error


def _read_listed(
    path: str, container: Any, stream: Any, listed: FrameList, needed: list[int], backend: str
) -> list[np.ndarray]:
    """Read the frames of a list without decoding all; Unsure if none of the ways returns the frames of the list."""
    if backend != "pyav":
        reason = "its frames are not known to be right for files of this kind"
        try:
            if listed.plain:
                return LIBRARIES[backend](path, listed, stream, needed)
        except Unsure as error:
            reason = str(error)
        _tell(f"{backend} cannot read some videos, PyAV reads them ({reason}), such as", path)
    if listed.ordered:
        with open_video(path) as again:
            return _decode_groups(again, video_stream(path, again), listed, needed)
    try:
        if "mp4" in container.format.name:
            return _seek_and_decode(container, stream, listed, needed)
        with open_video(path) as again:  # a demuxer, such as that of AVI, may take passed packets for key frames
            return _seek_and_decode(again, video_stream(path, again), listed, needed)
    except Unsure:
        if len(listed.keys) == 1:
            raise
    # With periodic intra refresh, a picture is drawn over many frames: it is complete only from the beginning on.
    with open_video(path) as again:
        return _seek_and_decode(again, video_stream(path, again), replace(listed, keys=listed.keys[:1]), needed)


def _decode_all(path: str, choose: Callable[[int], Sequence[int]], length: int) -> tuple[list[np.ndarray], list[int]]:
    """Decode from the beginning to the end; once more if there are not `length` frames."""
    while True:
        needed, order = np.unique(np.asarray(choose(length) if length else []), return_inverse=True)
        wanted, rgb, images, count = set(needed.tolist()), _Rgb(), [], 0
        with open_video(path) as container:
            for frame in every_frame(container, video_stream(path, container)):
                if count in wanted:
                    images.append(rgb(frame))
                count += 1
        if count == 0:
            raise MediaError(path, "the video stream has no frames")
        if count == length:
            return images, order.tolist()
        length = count


def _decord(path: str, listed: FrameList, stream: Any, needed: list[int]) -> list[np.ndarray]:
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
        reason = first_line(error).replace(path, "...")
    # The reader ends here, and not with the traceback of an exception: one that is destroyed in a fork of this process
    # waits for its threads, which are not there.
    del video
    if frames is None:
        raise Unsure(reason)
    if len(frames) != len(needed) or frames.shape[-1] != 3:
        raise Unsure(f"its frames have the shape {frames.shape[1:]}")  # some narrow pictures
    return list(frames)


def _torchcodec(path: str, listed: FrameList, stream: Any, needed: list[int]) -> list[np.ndarray]:
    from torchcodec.decoders import VideoDecoder  # pyright: ignore[reportMissingImports]

    try:
        video = VideoDecoder(path, stream_index=stream.index, dimension_order="NHWC", num_ffmpeg_threads=1)
        if len(video) != len(listed.times):
            raise Unsure(f"it counts {len(video)} frames instead of {len(listed.times)}")
        frames = video.get_frames_at(needed)
    except (RuntimeError, ValueError, IndexError) as error:
        raise Unsure(first_line(error).replace(path, "...")) from None
    times = [round(seconds / stream.time_base) for seconds in frames.pts_seconds.tolist()]
    if times != [listed.times[number] for number in needed]:
        raise Unsure("its frames have other times")
    return list(frames.data.numpy())


def _seek_and_decode(container: Any, stream: Any, listed: FrameList, needed: list[int]) -> list[np.ndarray]:
    """Decode forward, and seek where a key frame lies ahead."""
    rgb, images = _Rgb(), []
    runs: list[tuple[int, int, list[int]]] = []  # key frame, the time to seek to, wanted frames
    for number in needed:
        key, start = listed.keys[bisect_right(listed.keys, number, key=lambda entry: entry[0]) - 1]
        if not runs or key > runs[-1][2][-1] + SEEK_FRAMES:
            runs.append((key, start, []))
        runs[-1][2].append(number)
    try:
        for key, start, wanted in runs:
            container.seek(start, stream=stream)
            images += [rgb(frame) for frame in _decode_run(container, stream, listed, key, wanted)]
    except av.FFmpegError as error:
        raise Unsure(error.strerror) from None
    return images


def _decode_run(container: Any, stream: Any, listed: FrameList, number: int, wanted: list[int]) -> Iterator[Any]:
    """Decode from frame `number` on, yield the wanted frames, and compare all frames with the list.

    A frame that is out of order makes the list doubtful: Unsure. If packets may lack the times of presentation, so does
    a missing frame, up to the one after the last wanted frame.
    """
    times, settled, rest, begun = listed.times, listed.settled, set(wanted), False
    needed, passed = {times[n] for n in wanted}, set()
    for frame in _decode(container, stream, needed) if settled else _decode_warily(container, stream, needed, passed):
        if not begun and frame.pts is not None and frame.pts < times[number]:
            continue  # not every seek leads to the key frame, some lead to frames before it
        begun = True
        if settled and frame.pts is not None:
            number = bisect_left(times, frame.pts, lo=number)
        while number < len(times) and times[number] in passed:
            number += 1
        if number == len(times) or times[number] != frame.pts:
            raise Unsure("its frames come out of the decoder in another order than their times")
        if number in rest:
            rest.remove(number)
            yield frame
        elif not (rest or settled):
            return
        number += 1
    if rest or not (settled or passed.issuperset(times[number:])):
        raise Unsure("its packets do not lead to its frames")


def _decode(container: Any, stream: Any, wanted: set[int]) -> Iterator[Any]:
    """Decode from here as few frames as the times `wanted` need, which are removed from it."""
    codec = stream.codec_context
    marked = codec.name in MARKED_CODECS
    for packet in packets(container, stream):
        if marked:  # one thread: the packet is decoded before the next one comes
            codec.skip_frame = "DEFAULT" if packet.pts is None or packet.pts in wanted else "NONREF"
        yield from packet.decode()
        wanted.discard(packet.pts)
        if not wanted:
            break
    yield from codec.decode(None)  # what it holds back to put pictures in order


def _decode_warily(container: Any, stream: Any, wanted: set[int], passed: set[int]) -> Iterator[Any]:
    """Decode from here to the end; add the times of skipped frames to `passed`."""
    codec = stream.codec_context
    marked = codec.name in MARKED_CODECS and is_progressive(codec)
    units = unit_reader(codec)
    for packet in packets(container, stream):
        if marked and packet.pts not in wanted and NOT_REFERRED_TO in units(packet):
            passed.add(packet.pts)
        else:
            yield from packet.decode()
    yield from codec.decode(None)


def _decode_groups(container: Any, stream: Any, listed: FrameList, needed: list[int]) -> list[np.ndarray]:
    """Count frames from the IDR picture in front of them; there are no times to compare with."""
    rgb, images = _Rgb(), []
    ends = [number for number, _ in listed.keys[1:]] + [len(listed.times)]
    try:
        for (first, start), end in zip(listed.keys, ends, strict=True):
            wanted = needed[bisect_left(needed, first) : bisect_left(needed, end)]
            number = first
            for frame in _decode_group(container, stream, start, end - first) if wanted else ():
                if number in wanted:
                    images.append(rgb(frame))
                if number == wanted[-1]:
                    break
                number += 1
            else:
                if wanted:
                    raise Unsure("its packets do not lead to its frames")
    except av.FFmpegError as error:
        raise Unsure(error.strerror) from None
    return images


def _decode_group(container: Any, stream: Any, start: int, length: int) -> Iterator[Any]:
    container.seek(start, stream=stream)
    for count, packet in enumerate(packets(container, stream)):
        if count == 0 and start not in (packet.pts, packet.dts):
            raise Unsure("a seek does not lead to its key frames")
        yield from packet.decode()
        if count + 1 == length:
            break
    yield from stream.codec_context.decode(None)


# From (path, list, stream, sorted numbers of frames) to as many (H, W, 3) frames.
LIBRARIES: dict[str, Callable[[str, FrameList, Any, list[int]], list[np.ndarray]]] = {
    "decord": _decord,
    "torchcodec": _torchcodec,
}
BACKENDS = ("pyav", *LIBRARIES)


def orientation(frame: Any) -> tuple[bool, bool, bool]:
    """How FFmpeg turns a decoded frame upright: swap rows and columns, then mirror left-right, then top-bottom.

    A display matrix sends column and row (x, y) to (a x + c y, b x + d y); angles between quarter turns are rounded.
    """
    matrix = _side_data(frame).get("DISPLAYMATRIX")
    if matrix is None:
        return False, False, False
    a, b, _, c, d, *_ = np.frombuffer(matrix, np.int32).tolist()
    swap = abs(b) + abs(c) > abs(a) + abs(d)
    return (True, c < 0, b < 0) if swap else (False, a < 0, d < 0)


def _side_data(frame: Any) -> Any:
    """Return the side data of a frame without the kinds that PyAV has no name for, such as Exif."""
    for _ in range(MAX_UNNAMED):
        try:
            return frame.side_data
        except ValueError as error:  # "31 is not a valid Type"
            kind = str(error).partition(" ")[0]
        graph = Graph()
        source = graph.add_buffer(
            width=frame.width, height=frame.height, format=frame.format, time_base=frame.time_base or Fraction(1, 25)
        )
        graph.link_nodes(source, graph.add("sidedata", f"mode=delete:type={kind}"), graph.add("buffersink")).configure()
        graph.push(frame)
        frame = graph.pull()
    return frame.side_data


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


def _tell(message: str, path: str) -> None:
    """Log a message of a kind once; numbers do not make another kind."""
    kind = re.sub(r"\d+", "", message)
    if kind not in _TOLD:
        _TOLD.add(kind)
        logger.info("%s %s", message, path)
