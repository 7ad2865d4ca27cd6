"""Decode frames of a video file by their numbers; every decoder returns the same frames.

The frames of a video are those that FFmpeg shows when it plays the first video stream that has packets and is not a
cover picture. They are numbered in the order of presentation; their times do not matter.

First the packets are read, without decoding, to list the frames (`frame_list`); the count in the header is not used.
The frames that the decoder returns are compared with the list. If they have other times, or another order, the whole
file is decoded and its frames are counted. If that fails too, the file is broken. The optional decoders (`backends`)
are used only for files whose frames they are known to find; PyAV reads the others.

PyAV is the default because it can skip frames on the way to a wanted frame: those to which no other frame refers (every
second one in files that x264 has written), and those between a wanted frame and the next key frame.
"""

from __future__ import annotations

import errno
import gc
import logging
import re
from bisect import bisect_left, bisect_right
from collections import Counter
from collections.abc import Callable, Iterator, Sequence
from contextlib import nullcontext
from dataclasses import replace
from fractions import Fraction
from itertools import dropwhile
from typing import Any

import av
import numpy as np
from av.filter import Graph
from av.video.reformatter import VideoReformatter

from slowfast.datasets.backends import LIBRARIES, Unsure
from slowfast.datasets.container import MediaError, every_frame, open_video, packets, video_stream, why_not
from slowfast.datasets.frame_list import FrameList, is_progressive, list_frames, unit_reader

logger = logging.getLogger(__name__)

# A seek empties the decoder and takes as long as decoding about this many frames, so it must save more frames.
SEEK_FRAMES = 16
# Codecs that reliably mark pictures to which no other refers. In HEVC a mark is valid in its temporal layer only.
MARKED_CODECS = ("h264",)
NOT_REFERRED_TO = 0x01  # first byte of a unit that contains a part of such a picture
SLOW = "prepare_data.py reencode makes faster copies of videos that every read decodes from beginning to end"
UNSPECIFIED, SIMILAR = 2, {10: 9}  # AVColorSpace; BT.2020 of constant luminance is read as that of non-constant one
UPRIGHT = (False, False, False)

_LOGGED: set[str] = set()


def read_video(
    path: str,
    choose: Callable[[int], Sequence[int]],
    pictures: Pictures,
    backend: str,
    report_slow: Callable[[str], None] = lambda reason: None,
) -> None:
    """Decode the frames of a file that `choose` names, each of them once, to `pictures`; see `reader.read_frames`.

    Raises:
        MediaError: the file cannot be decoded.
    """
    _free_frames()
    picture, pixels = "", 0
    try:
        # Open the file once where that is safe: FFmpeg decodes its beginning to find the properties of its streams.
        with open_video(path) as container:
            stream = video_stream(path, container)
            codec = stream.codec_context
            picture, pixels = f"{codec.width}x{codec.height} {codec.name}", codec.width * codec.height
            listed = list_frames(path, container, stream)
            alone, doubt = listed.count == 1, listed.doubt  # alone: like an image, in which some seeks find nothing
            if not (alone or doubt):
                needed = pictures.plan(choose(len(listed.times)))
                try:
                    return _read_listed(path, container, stream, listed, needed, pictures, backend)
                except Unsure as error:
                    doubt = str(error)
        if not alone:
            report_slow(doubt)
            _log_once(f"{SLOW} ({doubt}), for example", path)
        return _decode_all(path, choose, listed.count, pictures)
    except MediaError:
        raise
    except Exception as error:  # any exception of a library is a fault of the file
        raise MediaError(path, why_not(path, error, picture, pixels)) from error


def stream_video(path: str, wanted: Callable[[int], bool]) -> Iterator[tuple[float, float, np.ndarray | None]]:
    """Yield begin and end in seconds of every frame of a file, and its RGB pixels if its number is wanted.

    The frames and their numbers are those of `read_video`. Times count from the first frame.

    Raises:
        MediaError: the file cannot be decoded.
    """
    rgb, start, end = _Rgb(), None, 0.0
    try:
        with open_video(path) as container:
            stream = video_stream(path, container)
            duration = 1 / float(frame_rate(stream))
            for number, frame in enumerate(every_frame(container, stream)):
                # the last frames have no time base of their own
                time = None if frame.pts is None else float(frame.pts * stream.time_base)
                start = time if start is None else start
                begin = end if time is None or start is None else max(end - duration, time - start)
                end = begin + duration
                yield begin, end, rgb(frame).copy() if wanted(number) else None
    except av.FFmpegError as error:
        raise MediaError(path, why_not(path, error)) from error


def frame_rate(stream: Any) -> Fraction:
    """Return the mean number of frames per second of a stream; 25 if the file does not contain it."""
    return stream.average_rate or stream.guessed_rate or Fraction(25)


def _read_listed(
    path: str,
    container: Any,
    stream: Any,
    listed: FrameList,
    needed: list[int],
    pictures: Pictures,
    backend: str,
) -> None:
    """Read the frames of a list without decoding the whole file; raise Unsure if no method returns these frames."""
    if backend != "pyav":
        try:
            for image in _read_by_library(path, container, stream, listed, needed, backend):
                pictures.add(image)
            return
        except Unsure as error:
            _log_once(f"{backend} cannot read some videos, so PyAV reads them ({error}), for example", path)
    # Demuxers other than MP4's (for example AVI's) may treat packets already read as key frames: open the file again.
    again = "mp4" not in container.format.name
    # With periodic intra refresh, a picture builds up over many frames: decoding must start at the first key frame.
    reason = ""
    for keys in (listed.keys, listed.keys[:1]):
        try:
            with open_video(path) if again else nullcontext(container) as source:
                source_stream = video_stream(path, source) if again else stream
                return _decode_listed(source, source_stream, replace(listed, keys=keys), needed, pictures)
        except Unsure as error:
            again, reason, listed = True, str(error), replace(listed, packets=[])
            pictures.clear()
    raise Unsure(reason)


def _read_by_library(
    path: str, container: Any, stream: Any, listed: FrameList, needed: list[int], backend: str
) -> list[np.ndarray]:
    if not listed.plain:
        raise Unsure("its frames are not known to be right for files of this kind")
    width, height, colors = stream.codec_context.width, stream.codec_context.height, stream.codec_context.format
    if any(component.bits > 8 for component in colors.components):
        raise Unsure("its colours of more than 8 bits would be converted in another way")
    if (width % 2 or height % 2) and colors.chroma_width(2) * colors.chroma_height(2) < 4:
        raise Unsure("a side is odd, and its colours of half the size would be converted in another way")
    container.seek(listed.keys[0][1], stream=stream)
    try:
        first = next(container.decode(stream))
        turned, size = orientation(first) != UPRIGHT, (first.height, first.width)
        fields = first.interlaced_frame
    except (av.FFmpegError, StopIteration):
        raise Unsure("its first frame cannot be decoded") from None
    del first
    _free_frames()
    if turned:
        raise Unsure("its frames are turned or mirrored")
    if fields:
        raise Unsure("its frames are interlaced, and PyAV 17 converts their colours in another way")
    images = LIBRARIES[backend](path, listed, stream, needed)
    if any(image.shape[:2] != size for image in images):
        raise Unsure("its frames have another size than its header says")
    return images


def _decode_all(path: str, choose: Callable[[int], Sequence[int]], length: int, pictures: Pictures) -> None:
    """Decode from the beginning to the end; repeat it with the new count if there are not `length` frames."""
    while True:
        wanted, rgb, count = set(pictures.plan(choose(length) if length else [])), _Rgb(), 0
        with open_video(path) as container:
            for frame in every_frame(container, video_stream(path, container)):
                if count in wanted:
                    pictures.add(rgb(frame))
                count += 1
        if count == 0:
            raise MediaError(path, "the video stream has no frames")
        if count == length:
            return
        length = count


def _decode_listed(container: Any, stream: Any, listed: FrameList, needed: list[int], pictures: Pictures) -> None:
    """Decode forward, and seek to a key frame where that saves enough frames."""
    rgb = _Rgb()
    runs: list[tuple[int, int, list[int]]] = []  # key frame, the time to seek to, wanted frames
    for number in needed:
        key, start = listed.keys[bisect_right(listed.keys, number, key=lambda entry: entry[0]) - 1]
        if not runs or key > runs[-1][2][-1] + SEEK_FRAMES:
            runs.append((key, start, []))
        runs[-1][2].append(number)
    try:
        for key, start, wanted in runs:
            for frame in _decode_run(container, stream, listed, key, start, wanted):
                pictures.add(rgb(frame))
    except av.FFmpegError as error:
        raise Unsure(error.strerror) from None


def _decode_run(
    container: Any, stream: Any, listed: FrameList, key: int, start: int, wanted: list[int]
) -> Iterator[Any]:
    """Decode from a key frame on, and yield the wanted frames; raise Unsure if a frame is not in its place."""
    rest, passed = set(wanted), set[int]()
    frames = _decode_packets(container, stream, listed, start, {listed.times[number] for number in wanted}, passed)
    for number, frame in _number_frames(frames, listed, key, passed):
        if number in rest:
            rest.remove(number)
            yield frame
        elif not rest:  # the frame after the last wanted one is in its place too
            return
    if rest:
        raise Unsure("some of its packets give no frame")


def _decode_packets(
    container: Any, stream: Any, listed: FrameList, start: int, wanted: set[int], passed: set[int]
) -> Iterator[Any]:
    """Decode from time `start` on only the packets that `wanted` needs; add the times of skipped packets to `passed`.

    If the list is settled (see `FrameList`), the packets after the wanted ones are not decoded.
    """
    codec = stream.codec_context
    marked = codec.name in MARKED_CODECS and is_progressive(codec) and not listed.ordered
    units = unit_reader(codec)
    left = Counter(listed.groups.get(time) for time in wanted)  # wanted frames that are not decoded yet, by group
    for count, packet in enumerate(_packets_from(start, container, stream, listed)):
        if count == 0 and listed.ordered and start not in (packet.pts, packet.dts):
            raise Unsure("a seek does not lead to its key frames")
        needed, group = packet.pts in wanted, listed.groups.get(packet.pts)
        if marked and not needed and ((listed.settled and not left[group]) or NOT_REFERRED_TO in units(packet)):
            passed.add(packet.pts)
            continue
        yield from packet.decode()
        wanted.discard(packet.pts)
        left[group] -= needed
        if listed.settled and not wanted:
            break
    yield from codec.decode(None)  # frames that the decoder still holds because it reorders them


def _packets_from(start: int, container: Any, stream: Any, listed: FrameList) -> Iterator[Any]:
    """Return the packets from time `start` on, and prepare the decoder for them."""
    if not listed.packets:
        container.seek(start, stream=stream)
        return packets(container, stream)
    stream.codec_context.flush_buffers()
    return dropwhile(lambda packet: packet.pts != start, listed.packets)


def _number_frames(
    frames: Iterator[Any], listed: FrameList, number: int, passed: set[int]
) -> Iterator[tuple[int, Any]]:
    """Count the frames of a decoder from key frame `number` on, and compare their times with the list.

    Frames of skipped packets are missing. If the list is settled, so are those of packets after the wanted ones.
    """
    times, settled, ordered = listed.times, listed.settled, listed.ordered
    begun = ordered
    for frame in frames:
        if not begun and frame.pts is not None and frame.pts < times[number]:
            continue  # some seeks lead to frames before the key frame
        begun = True
        if settled and frame.pts is not None:
            number = bisect_left(times, frame.pts, lo=number)
        while number < len(times) and times[number] in passed:
            number += 1
        if number == len(times) or (times[number] != frame.pts and not ordered):
            raise Unsure("its frames come out of the decoder in another order than their times")
        yield number, frame
        number += 1
    if not (settled or passed.issuperset(times[number:])):
        raise Unsure("some of its packets give no frame")


def orientation(frame: Any) -> tuple[bool, bool, bool]:
    """Return how FFmpeg turns a frame upright: swap rows and columns, then mirror left-right, then top-bottom.

    A display matrix maps column and row (x, y) to (a x + c y, b x + d y); angles are rounded to quarter turns.
    """
    try:
        matrix = frame.side_data.get("DISPLAYMATRIX")
    except ValueError as error:  # PyAV has no name for a kind of side data, for example Exif: "31 is not a valid Type"
        return orientation(_without_side_data(frame, kind=str(error).partition(" ")[0]))
    if matrix is None:
        return UPRIGHT
    a, b, _, c, d, *_ = np.frombuffer(matrix, np.int32).tolist()
    swap = abs(b) + abs(c) > abs(a) + abs(d)
    return (True, c < 0, b < 0) if swap else (False, a < 0, d < 0)


def _without_side_data(frame: Any, kind: str) -> Any:
    graph = Graph()
    source = graph.add_buffer(
        width=frame.width, height=frame.height, format=frame.format, time_base=frame.time_base or Fraction(1, 25)
    )
    graph.link_nodes(source, graph.add("sidedata", f"mode=delete:type={kind}"), graph.add("buffersink")).configure()
    graph.push(frame)
    return graph.pull()


def _free_frames() -> None:
    """Free frames whose side data was read: the two refer to each other, so only the garbage collector frees them."""
    gc.collect(0)


class Pictures:
    """Memory for the wanted pictures of a video, which is allocated when their size is known.

    Args:
        path: of the video.
        allocate: function of the shape (T, H, W, 3) that returns the uint8 array.
        channels: index of the channels of an added picture.
    """

    def __init__(self, path: str, allocate: Callable[[tuple[int, ...]], np.ndarray], channels: slice) -> None:
        self.path, self.allocate, self.channels = path, allocate, channels
        self.rows: list[list[int]] = []  # of each frame to add, its rows of the array
        self.clear()

    def plan(self, numbers: Sequence[int]) -> list[int]:
        """Return the numbers of the frames to add, in this order, so that those of `numbers` become the pictures."""
        needed, order = np.unique(np.asarray(numbers), return_inverse=True)
        self.rows = [[] for _ in needed]
        for row, place in enumerate(order.tolist()):
            self.rows[place].append(row)
        self.clear()
        return needed.tolist()

    def clear(self) -> None:
        """Start again with the first picture."""
        self.count, self.array = 0, np.empty((0, 0, 0, 3), np.uint8)

    def add(self, picture: np.ndarray) -> None:
        """Copy the next picture (H, W, 3)."""
        if not self.count:
            self.array = self.allocate((sum(map(len, self.rows)), *picture.shape))
        if picture.shape != self.array.shape[1:]:
            raise MediaError(self.path, "its pictures differ in size; encode the video again, or resize the images")
        for row in self.rows[self.count]:
            self.array[row] = picture[..., self.channels]
        self.count += 1


class _Rgb:
    """Convert decoded frames to upright (H, W, 3) arrays; make one per video, because a new converter takes time."""

    def __init__(self) -> None:
        self.converter = VideoReformatter()
        self.turn: tuple[bool, bool, bool] | None = None

    def __call__(self, frame: Any) -> np.ndarray:
        """Return the pixels of a frame, which may be in the memory of the decoder."""
        self.turn = self.turn or orientation(frame)
        swap, left_right, top_bottom = self.turn
        image = self._convert(frame).to_ndarray()
        image = image.swapaxes(0, 1) if swap else image
        return image[:: -1 if top_bottom else 1, :: -1 if left_right else 1]

    def _convert(self, frame: Any) -> Any:
        """Convert the colours, also of matrices that FFmpeg 8 refuses, as decord and torchcodec do."""
        try:
            return self.converter.reformat(frame, format="rgb24", threads=1)
        except OSError as error:
            if error.errno != errno.ENOTSUP:
                raise
        frame.colorspace = SIMILAR.get(frame.colorspace, UNSPECIFIED)
        return self.converter.reformat(frame, format="rgb24", threads=1)


def _log_once(message: str, path: str) -> None:
    """Log a message once per process; messages that differ only in numbers count as the same."""
    kind = re.sub(r"\d+", "", message)
    if kind not in _LOGGED:
        _LOGGED.add(kind)
        logger.info("%s %s", message, path)
