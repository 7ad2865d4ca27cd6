"""The frames of a video, listed from its packets without decoding them, and how far that list can be trusted."""

from __future__ import annotations

import os
import struct
from bisect import bisect_left
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, NamedTuple

import av

from slowfast.datasets.container import MediaError, packets

# Where the version of an MP4 box is 0, its display matrix lies so many bytes after its start; 12 more where it is 1.
MATRIX_PLACES = {b"tkhd": 48, b"mvhd": 44}
# Containers that keep the times of presentation, and in which decord and torchcodec find frames by their number. In
# transport streams, and in AVI without an index, they give other frames.
FAST_FORMATS = ("mp4", "matroska")
# Codecs whose decoders order frames by fields of the pictures themselves, whatever the times of the packets.
MODERN_CODECS = ("h264", "hevc", "vp8", "vp9", "av1")
# Codecs of which every packet that passes `_read_packets` is one frame. Others may repeat or leave out frames in ways
# that only the decoder sees.
COUNTED_CODECS = (*MODERN_CODECS, "mpeg4", "mpeg1video", "mpeg2video", "png", "ffv1")
# First bytes of units of IDR and BLA pictures, at which decoding can start at once. Key frames of periodic intra
# refresh are not such pictures: it takes many frames until the whole picture is drawn.
START_UNITS = {"h264": {0x25, 0x45, 0x65}, "hevc": {2 * kind for kind in range(16, 21)}}
MAX_SKIPPED = 19  # an MPEG-4 packet of so few bytes may only repeat the picture; FFmpeg uses the same limit
PROGRESSIVE = (0, 1)  # AVFieldOrder; 0 is unknown


class Packet(NamedTuple):
    """The fields of a packet that the list needs."""

    time: int | None
    start: int | None  # time to seek to
    key: bool
    shown: bool
    instant: bool  # a key picture, and no later picture refers to one before it


@dataclass(frozen=True)
class FrameList:
    """The frames of a video, as far as its packets show them.

    Attributes:
        times: times of the frames in order of presentation, in units of the stream.
        keys: (number of the first frame that decoding from here shows, the time to seek to), in order.
        count: number of frames according to the packets; the length of `times` if these are known.
        doubt: why the list does not lead to the frames, which must then be decoded from the beginning to the end and
            counted; "" if it does, and the list is exact.
        settled: packets hold the times of presentation: a frame is identified by its time, even if later packets
            are never decoded.
        ordered: times are those of decoding, and frames are counted from a key frame on.
        plain: decord and torchcodec find the frames as well.
    """

    times: list[int]
    keys: list[tuple[int, int]]
    count: int
    doubt: str = ""
    settled: bool = False
    ordered: bool = False
    plain: bool = False

    @property
    def exact(self) -> bool:
        return not self.doubt


def is_progressive(codec: Any) -> bool:
    """Return whether the pictures of a stream are whole frames; this is assumed with PyAV before 18."""
    return getattr(codec, "field_order", 0) in PROGRESSIVE


def list_frames(path: str, container: Any, stream: Any) -> FrameList:
    """List the frames of a video without decoding it.

    Raises:
        MediaError: the end of the file is missing, or it is encrypted.
        av.FFmpegError: the packets cannot be read to the end.
    """
    kind, codec = container.format.name, stream.codec_context
    promised, mirrored = _check_boxes(path) if "mp4" in kind else (0, False)
    try:
        read, whole = _read_packets(path, container, stream)
    except av.FFmpegError:
        if promised:
            raise _cut_off(path, promised) from None
        raise
    if promised and max((e.pos + e.size for e in stream.index_entries), default=promised) > os.path.getsize(path):
        raise _cut_off(path, promised)
    first = next((at for at, packet in enumerate(read) if packet.key), 0)
    count = sum(packet.shown for packet in read[first:])
    decoded = [packet.time for packet in read if packet.shown]
    times = sorted(time for time in decoded if time is not None)
    doubt = _doubt(codec, read, times, len(decoded))
    if not whole:
        doubt = "its packets are not its frames, as with packed B-frames"
    if doubt:
        return FrameList([], [], count, doubt)
    # no times of presentation in the file, as in AVI: those of H.264 are then guessed from the order of decoding
    if codec.has_b_frames and decoded == times:
        return _list_in_order(codec, read, times)
    keys = _seek_targets(read, times)
    if not keys or keys[0][0]:
        return FrameList([], [], count, "it does not begin with a key frame")
    # A four-letter code in Matroska marks a stream stored as in AVI, with times of decoding only.
    fast = any(name in kind for name in FAST_FORMATS) and not ("matroska" in kind and codec.codec_tag.strip("\0"))
    settled = fast and codec.codec.canonical_name in MODERN_CODECS and is_progressive(codec)
    # decord and torchcodec select among several streams by other rules. A seek to a key frame loses frames of the group
    # before that come after it.
    plain = settled and len(container.streams.video) == 1 and not mirrored and len(read) == len(times) > 1
    plain = plain and all(p.instant and p.time == times[at] for at, p in enumerate(read) if p.key)
    return FrameList(times, keys, count, settled=settled or codec.codec.intra_only, plain=plain)


def _read_packets(path: str, container: Any, stream: Any) -> tuple[list[Packet], bool]:
    """Read the packets in order of decoding, and find out whether each of them is one picture."""
    name, in_mp4 = stream.codec_context.codec.canonical_name, "mp4" in container.format.name
    units, starts = unit_reader(stream.codec_context), START_UNITS.get(name)
    found: list[Packet] = []
    whole = True
    for packet in packets(container, stream):
        if not found and packet.has_sidedata("encryption_info"):
            raise MediaError(path, "encrypted, as protected films are; decrypt it first")
        shown, key, pts, dts = not packet.is_discard, packet.is_keyframe, packet.pts, packet.dts
        if name == "vp8":
            shown = shown and bool(memoryview(packet)[0] & 16)
        elif name == "mpeg4":
            whole = whole and packet.size > MAX_SKIPPED and bytes(packet).count(b"\0\0\1\xb6") == 1
        # Matroska keeps no decoding times, and in MP4 a seek to them ends one key frame too early
        start = pts if dts is None or in_mp4 else dts
        instant = key and (starts is None or not starts.isdisjoint(units(packet)))
        found.append(Packet(pts, start, key, shown, instant))
    return found, whole


def _doubt(codec: Any, packets: list[Packet], times: list[int], shown: int) -> str:
    """Return why times do not lead to frames, or ""."""
    if len(times) < shown or not times:
        return "it contains no times of its frames"
    if not (codec.codec.intra_only or codec.codec.canonical_name in COUNTED_CODECS):
        return f"frames of {codec.codec.canonical_name} cannot be counted without decoding them"
    if len(set(times)) < len(times):
        return "some of its frames have the same time"
    return "" if packets[0].key else "it does not begin with a key frame"


def _list_in_order(codec: Any, packets: list[Packet], times: list[int]) -> FrameList:
    """List frames in order of decoding: an IDR picture of H.264 separates pictures, so its place is its number."""
    keys = [(at, packet.start) for at, packet in enumerate(packets) if packet.instant and packet.start is not None]
    usable = codec.codec.canonical_name == "h264" and is_progressive(codec) and len(packets) == len(times)
    if usable and keys[:1] == [(0, packets[0].start)]:
        return FrameList(times, keys, len(times), ordered=True)
    return FrameList([], [], len(times), "it contains no times of presentation")


def _seek_targets(packets: list[Packet], times: list[int]) -> list[tuple[int, int]]:
    """Return key frames, hidden ones too, except those after which no frame is shown up to the next one."""
    targets: list[tuple[int, int]] = []
    earliest: int | None = None  # of what is shown up to the next key frame
    for packet in reversed(packets):
        if packet.shown and packet.time is not None:
            earliest = packet.time if earliest is None else min(earliest, packet.time)
        if packet.key:
            time = packet.time if packet.shown else earliest
            if time is not None and packet.start is not None:
                targets.append((bisect_left(times, time), packet.start))
            earliest = None
    return sorted(reversed(targets), key=lambda target: target[0])


def unit_reader(codec: Any) -> Callable[[Any], list[int]]:
    """Return a function from a packet of H.264 or HEVC to the first bytes of its units, which contain their type."""
    extradata = codec.extradata or b""
    place = 21 if codec.name == "hevc" else 4
    length = (extradata[place] & 3) + 1 if extradata[:1] == b"\1" and len(extradata) > place else 0

    def read(packet: Any) -> list[int]:
        data, at, found = bytes(packet), 0, []
        if not length:
            return [unit[0] for unit in data.split(b"\0\0\1")[1:] if unit]
        while at + length < len(data):
            found.append(data[at + length])
            at += length + int.from_bytes(data[at : at + length], "big")
        return found

    return read


def _cut_off(path: str, promised: int) -> MediaError:
    return MediaError(path, f"damaged, cut off after {os.path.getsize(path)} of {promised} bytes; download it again")


def _check_boxes(path: str) -> tuple[int, bool]:
    """Check whether the end of an MP4 file is there; its header contains the length of each part.

    Returns:
        The size that the file must have if pictures or later parts are missing, else 0; whether a display matrix
        mirrors the picture.

    Raises:
        MediaError: the end of an index is not there.
    """
    size, start, mirrored = os.path.getsize(path), 0, False
    with open(path, "rb") as file:
        while start + 8 <= size:
            file.seek(start)
            length, kind, long_length = struct.unpack(">I4sQ", file.read(16).ljust(16, b"\0"))
            head, length = (16, long_length) if length == 1 else (8, length)
            if length < head:  # 0 means up to the end of the file; other values are not a box
                break
            if start + length > size and kind == b"mdat":
                return start + length, mirrored
            if start + length > size and kind in (b"moov", b"moof"):
                raise _cut_off(path, start + length)
            if kind in MATRIX_PLACES:
                file.seek(start + 8)
                file.seek(start + MATRIX_PLACES[kind] + (12 if file.read(1) == b"\1" else 0))
                a, b, c, d = struct.unpack(">ii4xii", file.read(20).ljust(20, b"\0"))
                mirrored |= a * d < b * c
            start += head if kind in (b"moov", b"trak") else length
    return 0, mirrored
