"""Odd and broken video files, made on the spot: `ODD`, `BROKEN`, and how to encode one."""

from __future__ import annotations

import os
import platform
import struct
from collections.abc import Callable, Sequence
from fractions import Fraction
from pathlib import Path
from typing import Any

import av
import cv2
import numpy as np
from av.stream import Disposition

from slowfast.datasets.reader import read_frames


def numbered(count: int, height: int = 48, width: int = 64) -> np.ndarray:
    """(T, H, W, 3) RGB; the brightness is the number of a frame, the upper left is red, the right half darker."""
    frames = np.repeat(20 + 6 * np.arange(count), height * width * 3).reshape(count, height, width, 3)
    frames[:, : height // 2, : width // 2, 0] += 40
    frames[:, :, width // 2 :] -= 10
    return frames.clip(0, 255).astype(np.uint8)


def encode(
    path: Path,
    frames: np.ndarray,
    codec: str = "libx264",
    pix_fmt: str = "yuv420p",
    *,
    rate: int = 25,
    ticks: Sequence[int] | None = None,
    options: dict[str, str] | None = None,
    muxer: dict[str, str] | None = None,
    file_format: str | None = None,
    audio: bool = False,
    cover: bool = False,
    empty_first: bool = False,
    setup: Callable[[Any], None] = lambda stream: None,
) -> None:
    """Write `frames`; frame t is shown at `ticks[t]` / (10 * rate) seconds."""
    rgb = "gray" if frames.ndim == 3 else "rgba" if frames.shape[-1] == 4 else "rgb24"
    with av.open(str(path), "w", format=file_format, options=muxer or {}) as container:
        sound = container.add_stream("aac", rate=44100) if audio else None
        for _ in range(1 + empty_first):
            stream = container.add_stream(codec, rate=rate, options={"threads": "1", **(options or {})})
            assert isinstance(stream, av.VideoStream)
            stream.width, stream.height, stream.pix_fmt, stream.bit_rate = *frames.shape[2:0:-1], pix_fmt, 2_000_000
        stream.codec_context.time_base = Fraction(1, 10 * rate if ticks is not None else rate)
        setup(stream)
        if cover:
            _add_cover(container)
        if sound is not None:
            _play(container, sound)
        for t, image in enumerate(frames):
            picture = av.VideoFrame.from_ndarray(np.ascontiguousarray(image), format=rgb)
            picture.pts, picture.time_base = ticks[t] if ticks is not None else t, stream.codec_context.time_base
            container.mux(stream.encode(picture))
        container.mux(stream.encode())


def _play(container: Any, stream: Any) -> None:
    frame = av.AudioFrame.from_ndarray(np.zeros((1, 44100), np.float32), format="fltp", layout="mono")
    frame.sample_rate = 44100
    container.mux(stream.encode(frame))
    container.mux(stream.encode())


def _add_cover(container: Any) -> None:
    """Make a picture as players show it beside music: a stream of one frame with its own disposition."""
    stream = container.add_stream("mjpeg", rate=1)
    stream.width, stream.height, stream.pix_fmt = 320, 320, "yuvj420p"
    stream.disposition = Disposition.attached_pic
    image = np.full((320, 320, 3), 255, np.uint8)
    packets = stream.encode(av.VideoFrame.from_ndarray(image, format="rgb24"))
    container.start_encoding()
    container.mux(packets)
    container.mux(stream.encode())


def boxes(data: bytes | bytearray, start: int = 0, end: int | None = None) -> list[tuple[bytes, int, int]]:
    """(type, start, end) of the MP4 boxes in a stretch of a file."""
    found, end = [], len(data) if end is None else end
    while start + 8 <= end:
        size, kind = struct.unpack(">I4s", data[start : start + 8])
        found.append((kind, start, start + size))
        start += size
    return found


def mdat(data: bytes | bytearray) -> tuple[int, int]:
    """Where the compressed frames of an MP4 file are."""
    return next((start + 8, end) for kind, start, end in boxes(data) if kind == b"mdat")


def cut(path: Path, keep: Callable[[bytes], bytes]) -> None:
    path.write_bytes(keep(path.read_bytes()))


FAST = {"movflags": "faststart"}  # the index in front
GOP = {"g": "8", "keyint_min": "8", "bf": "2", "x264-params": "scenecut=0"}
NO_B = {**GOP, "bf": "0"}
OPEN = {**GOP, "flags": "-cgop", "x264-params": "open-gop=1:scenecut=0"}
FIELDS = {**GOP, "flags": "+ildct+ilme", "x264-params": "tff=1:scenecut=0"}
HEVC = {"x265-params": "log-level=none:pools=1:bframes=2"}
FRAGMENTS = {"movflags": "frag_keyframe+empty_moov"}
VFR = [0, 10, 12, 15, 40, 41, 42, 60, 75, 76, 100, 130]


def h264(path: Path, count: int = 24, height: int = 48, width: int = 64, **options: Any) -> None:
    muxer = FAST if path.suffix == ".mp4" else {}
    encode(path, numbered(count, height, width), **{"options": GOP, "muxer": muxer, **options})


def noisy(count: int, height: int = 96, width: int = 128) -> np.ndarray:
    noise = np.random.default_rng(1).integers(-20, 21, (count, height, width, 3))
    return (numbered(count, height, width) + noise).clip(0, 255).astype(np.uint8)


def transparent(count: int) -> np.ndarray:
    frames = numbered(count)
    return np.concatenate([frames, np.full_like(frames[..., :1], 128)], -1)


def rotated(degrees: int) -> Callable[[Path], None]:
    return lambda path: h264(path, setup=lambda stream: stream.set_display_rotation(degrees))


def first_frames_cut_off(path: Path) -> None:
    """Make an edit list that starts at frame 5, between two key frames."""
    h264(path, options=NO_B)
    data = bytearray(path.read_bytes())
    at = data.index(b"elst") + 4
    version, entries = data[at], struct.unpack(">I", data[at + 4 : at + 8])[0]
    assert (version, entries) == (0, 1)
    scale = struct.unpack(">I", data[data.index(b"mdhd") + 16 :][:4])[0]
    data[at + 12 : at + 16] = struct.pack(">i", 5 * scale // 25)
    path.write_bytes(data)


def matrix(a: int, b: int, c: int, d: int) -> Callable[[Path], None]:
    """Make an MP4 whose header sends column and row (x, y) of the picture to (a x + c y, b x + d y)."""

    def make(path: Path) -> None:
        h264(path, height=64)  # square, so that the shape of a frame does not show a missing turn
        data = bytearray(path.read_bytes())
        at = data.index(b"tkhd") + 4 + 40
        data[at : at + 20] = struct.pack(">5i", a << 16, b << 16, 0, c << 16, d << 16)
        path.write_bytes(data)

    return make


def without_presentation_times(path: Path) -> None:
    """H.264 with B-frames, copied from an AVI to MP4: the table of the distances to their times is missing."""
    h264(path)
    data = path.read_bytes()
    assert data.count(b"ctts") == data.count(b"elst") == 1  # the edit list would hide the first two
    path.write_bytes(data.replace(b"ctts", b"free").replace(b"elst", b"free"))


def cover_first(path: Path) -> None:
    """Make a cover picture that is the first stream: the box that holds it stands in front of the track."""
    h264(path, cover=True)
    data = path.read_bytes()
    moov, end = next((start, end) for kind, start, end in boxes(data) if kind == b"moov")
    inside = {kind: data[start:stop] for kind, start, stop in boxes(data, moov + 8, end)}
    path.write_bytes(data[: moov + 8] + b"".join(inside[kind] for kind in (b"mvhd", b"udta", b"trak")) + data[end:])


def header_counts(count: int) -> Callable[[Path], None]:
    """Make an AVI whose main and stream header count other frames than the file has."""

    def make(path: Path) -> None:
        encode(path, numbered(24), "mpeg4", options={"bf": "0"})
        data = bytearray(path.read_bytes())
        for box, place in ((b"avih", 16), (b"strh", 32)):
            at = data.index(box) + 8 + place
            data[at : at + 4] = struct.pack("<I", count)
        path.write_bytes(data)

    return make


def no_key_frame_in_front(path: Path) -> None:
    """Make a recording that begins within a group of pictures, whose frames up to the next key frame are lost."""
    h264(path, file_format="mpegts", options=NO_B)
    with av.open(str(path)) as container:
        starts = [packet.pos for packet in container.demux(video=0) if packet.size]
    cut(path, lambda data: data[: 3 * 188] + data[starts[3] :])


def no_index(codec: str) -> Callable[[Path], None]:
    """Make a recording that was broken off; its content moves, so that a picture with a wrong reference is visible."""

    def make(path: Path) -> None:
        frames = numbered(36, 96, 128)
        scene = np.random.default_rng(0).integers(0, 256, (12, 8, 3)).astype(np.uint8).repeat(8, 0).repeat(8, 1)
        for number, frame in enumerate(frames):
            frame[:, 64:] = np.roll(scene, 3 * number, 0)
        encode(path, frames, codec, options={"g": "12"})
        cut(path, lambda data: data[: data.rindex(b"idx1")])

    return make


def picture(path: Path) -> None:
    path.write_bytes(cv2.imencode(".jpg", numbered(1)[0, ..., ::-1])[1].tobytes())


def full_range(stream: Any) -> None:
    stream.codec_context.color_range = 2


def bt709(stream: Any) -> None:
    context = stream.codec_context
    context.color_primaries = context.color_trc = context.colorspace = 1


def twice_as_wide(stream: Any) -> None:
    stream.codec_context.sample_aspect_ratio = Fraction(2, 1)


def bottom_up(stream: Any) -> None:
    stream.codec_context.extradata = b"BottomUp\0"


def coded(codec: str, frames: np.ndarray | None = None, pix_fmt: str = "yuv420p", **options: Any) -> Any:
    return lambda path: encode(path, numbered(24) if frames is None else frames, codec, pix_fmt, **options)


# file name -> (how it is made: a function, or the options of `h264`; frames it has)
ODD: dict[str, tuple[Callable[[Path], Any] | dict[str, Any], int]] = {
    "plain.mp4": ({}, 24),
    "rotated_90.mp4": (rotated(90), 24),
    "rotated_180.mp4": (rotated(180), 24),
    "rotated_270.mp4": (rotated(-90), 24),
    "mirrored_h.mp4": (matrix(-1, 0, 0, 1), 24),
    "mirrored_v.mp4": (matrix(1, 0, 0, -1), 24),
    "mirrored_transpose.mp4": (matrix(0, 1, 1, 0), 24),
    "mirrored_transverse.mp4": (matrix(0, -1, -1, 0), 24),
    "h264_b_frames.avi": ({}, 24),
    "h264_pyramid.avi": ({"options": {**GOP, "bf": "3", "b_strategy": "0"}}, 24),
    "h264_b_frames.wmv": ({"file_format": "asf"}, 24),
    "h264_b_frames.mxf": ({}, 24),
    "h264_b_frames.flv": ({}, 24),
    "without_presentation_times.mp4": (without_presentation_times, 24),
    "mpeg1_b_frames.wmv": (coded("mpeg1video", options={"bf": "2"}, file_format="asf"), 24),
    "hevc_b_frames.hevc": ({"codec": "libx265", "options": HEVC}, 24),
    "variable_rate.mp4": ({"count": 12, "ticks": VFR}, 12),
    "variable_rate.mkv": ({"count": 12, "ticks": VFR}, 12),
    "late_start.mkv": ({"ticks": range(5000, 5240, 10)}, 24),
    "late_start.ts": ({"ticks": range(5000, 5240, 10)}, 24),
    "first_frames_cut_off.mp4": (first_frames_cut_off, 19),
    "header_counts_too_few.avi": (header_counts(7), 24),
    "header_counts_too_many.avi": (header_counts(240), 24),
    "width_72.mp4": ({"height": 46, "width": 72}, 24),
    "width_98.mp4": ({"height": 54, "width": 98}, 24),
    "width_426.mp4": ({"height": 240, "width": 426}, 24),
    "odd_both_ways.mp4": ({"height": 49, "width": 65, "pix_fmt": "yuv444p"}, 24),
    "odd_height.mp4": ({"height": 49, "pix_fmt": "yuv422p", "options": {"bf": "0"}}, 24),
    "tiny.mp4": ({"height": 16, "width": 16}, 24),
    "grey.mp4": ({"pix_fmt": "gray", "setup": full_range}, 24),
    "ten_bit.mp4": ({"pix_fmt": "yuv420p10le"}, 24),
    "hevc.mp4": ({"codec": "libx265", "options": {"x265-params": "log-level=none:pools=1"}}, 24),
    "bt709.mp4": ({"setup": bt709}, 24),
    "full_range.mp4": ({"pix_fmt": "yuvj420p"}, 24),
    "alpha.mov": (coded("png", transparent(10), "rgba"), 10),
    "alpha.webm": (coded("libvpx-vp9", transparent(10), "yuva420p"), 10),
    "interlaced.mp4": ({"height": 64, "options": FIELDS}, 24),
    "interlaced.mpg": (coded("mpeg2video", options={"flags": "+ildct+ilme"}), 24),
    "broadcast.ts": ({"audio": True}, 24),
    "vp8.webm": (coded("libvpx", noisy(24), options={"auto-alt-ref": "1", "lag-in-frames": "8"}), 24),
    "vp9.webm": (coded("libvpx-vp9", noisy(24), options={"lag-in-frames": "8", "cpu-used": "8"}), 24),
    "wmv2_without_index.avi": (no_index("wmv2"), 36),
    "msmpeg4_without_index.avi": (no_index("msmpeg4"), 36),
    "mpeg4.avi": (coded("mpeg4", options={"bf": "2"}), 24),
    "mjpeg.avi": (coded("mjpeg", pix_fmt="yuvj422p"), 24),
    "one_frame.mp4": ({"count": 1}, 1),
    "two_frames.mp4": ({"count": 2}, 2),
    "animation.gif": (coded("gif", numbered(10), "gray"), 10),
    "picture.mp4": (picture, 1),
    "cover_first.mp4": (cover_first, 24),
    "with_cover.mp4": ({"audio": True, "cover": True}, 24),
    "audio_first.mkv": ({"audio": True}, 24),
    "fragments.mp4": ({"muxer": FRAGMENTS}, 24),
    "open_groups.mp4": ({"options": OPEN}, 24),
    "open_groups.ts": ({"options": OPEN}, 24),
    "thousand_per_second.mp4": ({"rate": 1000}, 24),
    "pixels_not_square.mp4": ({"setup": twice_as_wide}, 24),
    "no_key_frame_in_front.ts": (no_key_frame_in_front, 16),
    "no_suffix": ({"file_format": "mp4"}, 24),
    "bottom_up.nut": (coded("rawvideo", numbered(24)[:, ::-1], "rgb24", setup=bottom_up), 24),
    "raw.h264": ({"file_format": "h264"}, 24),
}


def garbage_in_the_middle(path: Path) -> None:
    encode(path, noisy(48), options=GOP, muxer=FAST)
    data = bytearray(path.read_bytes())
    start, end = mdat(data)
    third = (end - start) // 3
    data[start + third : start + 2 * third] = np.random.default_rng(0).bytes(third)
    path.write_bytes(data)


def index_cut_off(path: Path) -> None:
    encode(path, numbered(24))  # the index comes last
    cut(path, lambda data: data[: mdat(data)[1] - 10])


def frames_cut_off(path: Path) -> None:
    encode(path, noisy(24), options=GOP, muxer=FAST)
    cut(path, lambda data: data[: sum(mdat(data)) // 2])


def no_samples(path: Path) -> None:
    """Write an index without an entry."""
    h264(path, muxer=FRAGMENTS)
    cut(path, lambda data: data[: next(end for kind, _, end in boxes(data) if kind == b"moov")])


def header_only(path: Path) -> None:
    h264(path)
    cut(path, lambda data: data[:200])


def only_audio(path: Path, cover: bool = False) -> None:
    with av.open(str(path), "w") as container:
        stream = container.add_stream("aac", rate=44100)
        if cover:
            _add_cover(container)
        _play(container, stream)


def size_changes(path: Path) -> None:
    other = path.with_name("other.ts")
    h264(path, file_format="mpegts")
    h264(other, height=64, width=96)
    cut(path, lambda data: data + other.read_bytes())


def folder(path: Path) -> None:
    path.mkdir()
    (path / "readme.txt").touch()


LATE = ("first_frames_cut_off.mp4", "no_key_frame_in_front.ts")  # whose first frames are not shown

# file name -> (how it is made, words of the error)
BROKEN: dict[str, tuple[Callable[[Path], Any], str]] = {
    "missing.mp4": (lambda path: None, "no such file.*check the path"),
    "empty.mp4": (lambda path: path.touch(), "empty; download it again"),
    "text.mp4": (
        lambda path: path.write_text("<title>404 Not Found</title>\n" * 40),
        "not a readable video",
    ),
    "zeros.mp4": (lambda path: path.write_bytes(bytes(4096)), "not a readable video"),
    "folder.mp4": (folder, "image_template"),
    "only_audio.mp4": (only_audio, "no video stream"),
    "music_with_cover.mp4": (lambda path: only_audio(path, cover=True), "no video stream"),
    "no_samples.mp4": (no_samples, "no frames"),
    "index_cut_off.mp4": (index_cut_off, "not a readable video"),
    "frames_cut_off.mp4": (frames_cut_off, "damaged, cut off after"),
    "garbage_in_the_middle.mp4": (garbage_in_the_middle, "damaged, not all of it can be decoded"),
    "size_changes.ts": (size_changes, "differ in size"),
    "pipe.mp4": (lambda path: os.mkfifo(path), "longer than 1 s"),
    "header_only.mp4": (header_only, "not a readable video"),
}


def numbers(frames: np.ndarray) -> list[int]:
    """Numbers of decoded frames, by the blue of their lower left quarter."""
    _, height, width, _ = frames.shape
    quarter = frames[:, height * 5 // 8 :, : width * 3 // 8, 2]
    return np.round((np.median(quarter, axis=(1, 2)) - 20) / 6).astype(int).tolist()


MIRRORS: dict[str, Callable[[np.ndarray], np.ndarray]] = {
    "mirrored_h.mp4": lambda frames: frames[:, :, ::-1],
    "mirrored_v.mp4": lambda frames: frames[:, ::-1],
    "mirrored_transpose.mp4": lambda frames: frames.swapaxes(1, 2),
    "mirrored_transverse.mp4": lambda frames: frames[:, ::-1, ::-1].swapaxes(1, 2),
}


def upright(name: str, frames: np.ndarray) -> np.ndarray:
    """Return the picture that was put in; players turn it counterclockwise by the angle in the name."""
    if name in MIRRORS:
        return MIRRORS[name](frames)
    angle = int(name.split("_")[1].split(".")[0]) if name.startswith("rotated") else 0
    return np.rot90(frames, -angle // 90, axes=(1, 2))


def assert_same_pixels(found: np.ndarray, expected: np.ndarray, backend: str) -> None:
    """Check that frames of a backend are those of PyAV.

    On ARM, releases of FFmpeg convert colours by different instructions, and torchcodec uses the release of the system.
    """
    limit = 3 if backend == "torchcodec" and platform.machine() == "aarch64" else 0
    assert found.shape == expected.shape and np.abs(found.astype(int) - expected).max() <= limit


def assert_single_frames(
    path: str,
    shown: Sequence[np.ndarray],
    count: int,
    backend: str,
    turn: Callable[[np.ndarray], np.ndarray] = lambda frame: frame,
) -> None:
    """Check that each frame, read alone and turned, is that of a full decode, which has `count` frames."""
    assert len(shown) == count
    lengths: list[int] = []
    for number, whole in enumerate(shown):
        (frame,) = read_frames(path, lambda length, number=number: lengths.append(length) or [number], backend=backend)
        assert_same_pixels(turn(frame), whole, backend)
    assert {*lengths[-count:]} == {count}
