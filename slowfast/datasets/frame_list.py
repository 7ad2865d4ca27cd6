"""List the frames of a video from its packets, without decoding them, and determine whether the list is reliable."""

from __future__ import annotations

import os
from bisect import bisect_left
from collections.abc import Callable
from dataclasses import dataclass, field
from itertools import accumulate, pairwise
from typing import Any, NamedTuple

from slowfast.datasets.container import MediaError, packets

# Containers that store the times of presentation, and in which decord and torchcodec find frames by their number. In
# transport streams, and in AVI files without an index, they return wrong frames.
FAST_FORMATS = ("mp4", "matroska")
# Codecs whose decoders order frames by fields of the pictures, not by the times of the packets.
MODERN_CODECS = ("h264", "hevc", "vp8", "vp9", "av1")
# Codecs in which every packet that `_read_packets` accepts is one frame. Other codecs may repeat or omit frames in ways
# that only the decoder detects.
COUNTED_CODECS = (*MODERN_CODECS, "mpeg4", "mpeg1video", "mpeg2video", "png", "ffv1")
# First bytes of units of IDR and BLA pictures, at which decoding can start. Key frames of periodic intra refresh are
# not such pictures: a picture is complete only many frames later.
START_UNITS = {"h264": {0x25, 0x45, 0x65}, "hevc": {2 * kind for kind in range(16, 21)}}
INTRA_SLICES = ((4, 0b1011), (8, 0b10001000))  # number and value of bits: types 2 (I) and 7 (only I in this picture)
MAX_KEPT = 16 << 20  # bytes of a file whose packets are kept in memory
MAX_SKIPPED = 19  # bytes; an MPEG-4 packet up to this size may only repeat a picture (FFmpeg's limit)
PROGRESSIVE = (0, 1)  # AVFieldOrder; 0 is unknown


class Packet(NamedTuple):
    """The fields of a packet that the list needs."""

    time: int | None
    start: int | None  # time to seek to; None if decoding cannot start here
    key: bool
    shown: bool
    instant: bool  # a key picture such that no later picture refers to an earlier one


@dataclass(frozen=True)
class FrameList:
    """The frames of a video, as far as its packets show them.

    Attributes:
        times: times of the frames in order of presentation, in units of the stream.
        keys: for each key frame (number of the first frame that decoding from it shows, time to seek to), in order.
        count: number of frames according to the packets; the length of `times` if the times are known.
        doubt: reason why frames cannot be found by the list, so that the file must be decoded from the beginning to
            the end and its frames counted; "" if the list is exact.
        settled: packets contain the times of presentation, so a frame is identified by its time even if later packets
            are never decoded.
        ordered: times are those of decoding, and frames are counted from a key frame on.
        plain: decord and torchcodec find the same frames.
        packets: the packets in order of decoding, if they were kept, so that the file need not be read again.
        groups: time of a frame -> number of its group. In order of decoding, a group begins with each key frame at
            which decoding can start; no frame refers to a frame of another group.
    """

    times: list[int]
    keys: list[tuple[int, int]]
    count: int
    doubt: str = ""
    settled: bool = False
    ordered: bool = False
    plain: bool = False
    packets: list[Any] = field(default_factory=list)
    groups: dict[int, int] = field(default_factory=dict)


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
    try:
        read, fault, kept = _read_packets(path, container, stream)
    finally:
        if "mp4" in kind:
            _check_end(path, stream)
    first = next((at for at, packet in enumerate(read) if packet.key), 0)
    count = sum(packet.shown for packet in read[first:])
    decoded = [packet.time for packet in read if packet.shown]
    times = sorted(time for time in decoded if time is not None)
    # If the file has no times of presentation, as in AVI, FFmpeg guesses those of H.264 from the order of decoding.
    ordered = codec.has_b_frames and decoded == times
    if ordered:
        keys = [(at, packet.start) for at, packet in enumerate(read) if packet.instant and packet.start is not None]
    else:
        keys = _seek_targets(read, times)
    doubt = _doubt(codec, read, fault, times, keys, ordered)
    if doubt or ordered:
        return FrameList(times, keys, count, doubt, ordered=ordered)
    # A four-letter code in Matroska marks a stream stored as in AVI, with times of decoding only.
    fast = any(name in kind for name in FAST_FORMATS) and not ("matroska" in kind and codec.codec_tag.strip("\0"))
    settled = fast and codec.codec.canonical_name in MODERN_CODECS and is_progressive(codec)
    # decord and torchcodec select a stream by other rules. A seek to a key frame loses frames of the group before it
    # whose packets come after the key frame.
    plain = settled and len(container.streams.video) == 1 and len(read) == len(times) > 1
    plain = plain and all(p.instant and p.time == times[at] for at, p in enumerate(read) if p.key)
    instants = accumulate(int(packet.instant) for packet in read)
    groups = {packet.time: group for packet, group in zip(read, instants, strict=True) if packet.time is not None}
    settled = settled or codec.codec.intra_only
    return FrameList(times, keys, count, settled=settled, plain=plain, packets=kept if plain else [], groups=groups)


def _read_packets(path: str, container: Any, stream: Any) -> tuple[list[Packet], str, list[Any]]:
    """Read the packets in order of decoding: their fields, a reason not to rely on them, the packets of a small MP4."""
    name, in_mp4 = stream.codec_context.codec.canonical_name, "mp4" in container.format.name
    units, starts = unit_reader(stream.codec_context), START_UNITS.get(name)
    found: list[Packet] = []
    fault, kept = "", list[Any]()
    keep = in_mp4 and os.path.getsize(path) <= MAX_KEPT
    for packet in packets(container, stream):
        if not found and packet.has_sidedata("encryption_info"):
            raise MediaError(path, "encrypted, as protected films are; decrypt it first")
        if not found and packet.has_sidedata("palette"):
            fault = "its colours come with its first frame only"
        shown, key, pts, dts = not packet.is_discard, packet.is_keyframe, packet.pts, packet.dts
        if name == "vp8":
            shown = shown and bool(memoryview(packet)[0] & 16)
        elif name == "mpeg4" and not (packet.size > MAX_SKIPPED and bytes(packet).count(b"\0\0\1\xb6") == 1):
            fault = "its packets are not its frames, as with packed B-frames"
        # Matroska keeps no decoding times, and in MP4 a seek to them ends one key frame too early
        start = pts if dts is None or in_mp4 else dts
        instant = key and (starts is None or not starts.isdisjoint(units(packet)))
        if key and not instant and name == "h264" and _builds_up(units, packet):
            start = None
        found.append(Packet(pts, start, key, shown, instant))
        keep = keep and not packet.has_sidedata("new_extradata")  # which concerns later packets too
        if keep:
            kept.append(packet)
    return found, fault, kept if keep else []


def _check_end(path: str, stream: Any) -> None:
    """Raise MediaError if the index of an MP4 file names frames beyond its end, or a fragment of it is incomplete."""
    size, end = os.path.getsize(path), max((entry.pos + entry.size for entry in stream.index_entries), default=0)
    end = max(end, _end_of_fragments(path))
    if end > size:
        raise MediaError(path, f"damaged, cut off after {size} of {end} bytes; download it again") from None


def _end_of_fragments(path: str) -> int:
    """Return where the last box of a fragmented MP4 file ends, 0 for other files; FFmpeg ignores an incomplete one."""
    at, kinds = 0, set[bytes]()
    with open(path, "rb", buffering=0) as file:
        while head := file.read(16):
            length = int.from_bytes(head[:4], "big")
            length = int.from_bytes(head[8:16], "big") if length == 1 else length
            if length < 8:  # 0: to the end of the file
                break
            kinds.add(head[4:8])
            at += length
            file.seek(at)
    return at if b"moof" in kinds else 0


def _doubt(
    codec: Any, read: list[Packet], fault: str, times: list[int], keys: list[tuple[int, int]], ordered: bool
) -> str:
    """Return the reason why frames cannot be found by times and key frames; "" if they can."""
    name = codec.codec.canonical_name
    shown = sum(packet.shown for packet in read)
    # An IDR picture of H.264 separates pictures, so its place in the order of decoding is its number.
    countable = name == "h264" and is_progressive(codec) and len(read) == len(times)
    doubts = {
        fault: bool(fault),
        "it contains no times of its frames": len(times) < shown or not times,
        f"frames of {name} cannot be counted without decoding them": not codec.codec.intra_only
        and name not in COUNTED_CODECS,
        "some of its frames have the same time": len(set(times)) < len(times),
        "its times go back, as in joined recordings": _goes_back(read),
        "it contains no times of presentation": ordered and not countable,
        "it does not begin with a key frame": not (read and read[0].key and keys and keys[0][0] == 0),
    }
    return next((reason for reason, found in doubts.items() if found), "")


def _goes_back(read: list[Packet]) -> bool:
    """Return whether a key frame has an earlier time than a packet before it, so that times are not the order."""
    latest = None
    for packet in read:
        if packet.time is None:
            continue
        if latest is not None and packet.key and packet.time < latest:
            return True
        latest = packet.time if latest is None else max(latest, packet.time)
    return False


def _seek_targets(read: list[Packet], times: list[int]) -> list[tuple[int, int]]:
    """Return the key frames, also hidden ones, without those that have no shown frame before the next key frame."""
    places = [at for at, packet in enumerate(read) if packet.key]
    targets: list[tuple[int, int]] = []
    for at, end in pairwise([*places, len(read)]):
        key = read[at]
        group = [packet.time for packet in read[at:end] if packet.shown and packet.time is not None]
        time = key.time if key.shown else min(group, default=None)
        if time is not None and key.start is not None:
            targets.append((bisect_left(times, time), key.start))
    return sorted(targets, key=lambda target: target[0])


def _builds_up(units: Callable[..., list[int]], packet: Any) -> bool:
    """Return whether a key picture of H.264 refers to others, as with periodic intra refresh.

    The second byte of the first slice begins with the number of its first block, 0 (1 bit), and its type, in a code of
    variable length. FFmpeg shows pictures after such a key picture too early if their numbers start again at 0.
    """
    slices = [second for first, second in zip(units(packet), units(packet, 1), strict=True) if first & 31 == 1]
    return bool(slices) and not any(slices[0] >> 8 - bits == code for bits, code in INTRA_SLICES)


def unit_reader(codec: Any) -> Callable[..., list[int]]:
    """Return a function from a packet of H.264 or HEVC to the bytes of its units at a place: their type is at 0."""
    extradata = codec.extradata or b""
    header = 21 if codec.name == "hevc" else 4
    length = (extradata[header] & 3) + 1 if extradata[:1] == b"\1" and len(extradata) > header else 0

    def read(packet: Any, place: int = 0) -> list[int]:
        data, at, found = bytes(packet), 0, []
        if not length:
            return [unit[place] for unit in data.split(b"\0\0\1")[1:] if len(unit) > 1]
        while at + length + 1 < len(data):
            found.append(data[at + length + place])
            at += length + int.from_bytes(data[at : at + length], "big")
        return found

    return read
