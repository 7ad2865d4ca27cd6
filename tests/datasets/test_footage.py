"""Test files as cameras and converters write them: the frames are right, or the error names the reason."""

from __future__ import annotations

import io
import os
import shutil
import signal
import subprocess
import sys
from collections.abc import Callable
from fractions import Fraction
from pathlib import Path
from typing import Any

import av
import numpy as np
import pytest
from av.bitstream import BitStreamFilterContext
from media_zoo import assert_single_frames, encode
from PIL import Image, ImageOps

from slowfast.datasets.container import MediaError
from slowfast.datasets.guarded import _local, read_frames_within
from slowfast.datasets.reader import read_frames
from slowfast.prepare.check import check_media
from slowfast.prepare.reencode import Settings, reencode

ROOT = Path(__file__).parents[2]
PACKED = ROOT / "tests/golden/packed_xvid.avi"  # ffmpeg -f lavfi -i testsrc2 -c:v libxvid -bf 2 -g 10 -vtag XVID
EMPTY = ROOT / "tests/golden/empty_packets.ogv"
GROUPS = {"g": "10", "keyint_min": "10", "bf": "2", "x264-params": "scenecut=0"}
REFRESH = {"x264-params": "intra-refresh=1:keyint=12:scenecut=0:bframes=0"}


def moving(count: int, height: int, width: int) -> list[np.ndarray]:
    """Draw pictures of a camera that moves over a scene; each is different."""
    scene = np.random.default_rng(0).integers(0, 256, (height // 8 + 40, width // 8, 3), np.uint8).repeat(8, 0)
    scene = scene.repeat(8, 1)
    return [np.ascontiguousarray(scene[5 * t : 5 * t + height]) for t in range(count)]


def write(
    path: Path,
    options: dict[str, str] = GROUPS,
    *,
    codec: str = "libx264",
    count: int = 40,
    size: tuple[int, int] = (48, 64),
    **how: Any,
) -> Path:
    encode(path, np.stack(moving(count, *size)), codec, options=options, **how)
    return path


def copy_streams(path: Path, sources: list[Path], first: int = 0, muxer: dict[str, str] | None = None) -> None:
    """Copy packets as `ffmpeg -c copy` does; an edit list hides those before time `first`."""
    with av.open(str(path), "w", options=muxer or {}) as target:
        opened = [av.open(str(source)) for source in sources]
        streams = [target.add_stream_from_template(source.streams.video[0]) for source in opened]
        for source, stream in zip(opened, streams, strict=True):
            for packet in source.demux(video=0):
                if packet.size and packet.dts is not None and packet.pts is not None:
                    packet.pts, packet.dts, packet.stream = packet.pts - first, packet.dts - first, stream
                    target.mux(packet)
            source.close()


def lossless_cut(path: Path) -> None:
    source = write(path.with_name("whole.mp4"))
    copy_streams(path, [source], first=13 * 512, muxer={"avoid_negative_ts": "disabled"})


def two_streams(path: Path) -> None:
    copy_streams(path, [write(path.with_name("small.mp4")), write(path.with_name("large.mp4"), size=(96, 128))])


def joined(path: Path) -> None:
    """Join two recordings, the second of which has earlier times, as after a restart of the camera."""
    late = write(path.with_name("late.ts"), ticks=range(5000, 5400, 10))
    early = path.with_name("early.ts")
    encode(early, np.stack(moving(40, 48, 64)[::-1]), options=GROUPS)
    path.write_bytes(late.read_bytes() + early.read_bytes())


def palette(path: Path) -> None:
    """Write raw pictures as numbers of 256 grey colours, which only the first packet contains."""
    colors = np.repeat(np.arange(256, dtype=np.uint8)[:, None], 4, axis=1)
    with av.open(str(path), "w") as container:
        stream = container.add_stream("rawvideo", rate=25)
        assert isinstance(stream, av.VideoStream)
        stream.width, stream.height, stream.pix_fmt = 64, 48, "pal8"
        for image in moving(40, 48, 64):
            frame = av.VideoFrame.from_ndarray((np.ascontiguousarray(image[..., 0]), colors), format="pal8")  # pyright: ignore[reportArgumentType]
            container.mux(stream.encode(frame))
        container.mux(stream.encode())


def cropped(path: Path) -> None:
    """Crop pictures on the left, which decoders do in steps of 32 pixels only: they are wider than the header says."""
    with (
        av.open(str(write(path.with_name("uncropped.mp4"), size=(96, 128)))) as source,
        av.open(str(path), "w") as target,
    ):
        stream = source.streams.video[0]
        copy = target.add_stream_from_template(stream)
        crop = BitStreamFilterContext("h264_metadata=crop_left=16", stream, copy)
        for packet in source.demux(stream):
            for changed in crop.filter(packet if packet.size else None):
                changed.stream = copy
                target.mux(changed)


def longer_mdat(path: Path) -> None:
    data = bytearray(write(path, muxer={"movflags": "faststart"}).read_bytes())
    at = data.index(b"mdat") - 4
    data[at : at + 4] = (int.from_bytes(data[at : at + 4], "big") + 37).to_bytes(4, "big")
    path.write_bytes(data)


def exif_pictures(path: Path, orientation: int = 6) -> None:
    """Write Motion JPEG as a camera that puts Exif data into each picture."""
    exif = Image.Exif()
    exif[0x0112] = orientation
    with av.open(str(path), "w") as container:
        stream = container.add_stream("mjpeg", rate=25)
        assert isinstance(stream, av.VideoStream)
        stream.width, stream.height, stream.pix_fmt = 64, 48, "yuvj420p"
        for number, image in enumerate(moving(12, 48, 64)):
            content = io.BytesIO()
            Image.fromarray(image).save(content, "jpeg", exif=exif, quality=95)
            packet = av.Packet(content.getvalue())
            packet.pts = packet.dts = number
            packet.stream, packet.time_base, packet.is_keyframe = stream, Fraction(1, 25), True
            container.mux(packet)


def other_codec(path: Path) -> None:
    data = write(path).read_bytes()
    head, tail = data.rsplit(b"avc1", 1)  # the first one is a brand
    path.write_bytes(head + b"dav9" + tail)


ENCRYPTION = {
    "encryption_scheme": "cenc-aes-ctr",
    "encryption_key": "76a6c65c5ea762046bd749a2e632ccbb",
    "encryption_kid": "a7e61c373e219033c21091fa607bf3b8",
}

# file name -> (how it is made, frames it has)
GOOD: dict[str, tuple[Callable[[Path], object], int]] = {
    "packed_b_frames.avi": (lambda path: path.write_bytes(PACKED.read_bytes()), 28),
    "intra_refresh.mp4": (lambda path: write(path, REFRESH), 40),
    "intra_refresh.mkv": (lambda path: write(path, REFRESH), 40),
    "intra_refresh.ts": (lambda path: write(path, REFRESH), 40),
    "short_intra_refresh.mp4": (lambda path: write(path, {"x264-params": f"{REFRESH['x264-params']}:keyint=8"}), 40),
    "joined.ts": (joined, 80),
    "odd_sides.webm": (lambda path: write(path, {"g": "10"}, codec="libvpx", size=(49, 65)), 40),
    "palette.avi": (palette, 40),
    "two_streams.mp4": (two_streams, 40),
    "lossless_cut.mp4": (lossless_cut, 27),
    "mpeg2.mpg": (lambda path: write(path, {"bf": "2", "g": "10"}, codec="mpeg2video"), 40),
    "mpeg2.ts": (lambda path: write(path, {"bf": "2", "g": "10"}, codec="mpeg2video"), 40),
    "mpeg4_b_frames.mkv": (lambda path: write(path, {"bf": "2", "g": "10"}, codec="mpeg4"), 40),
    "h264.avi": (write, 40),
    "h264.flv": (write, 40),
    "h264.ts": (write, 40),
    "h264.asf": (lambda path: write(path, file_format="asf"), 40),
    "several_bit_rates.wmv": (
        lambda path: write(path, {}, codec="wmv2", file_format="asf", empty_first=True), 40,
    ),
    "cropped.mp4": (cropped, 40),
    "longer_mdat.mp4": (longer_mdat, 40),
    "exif.avi": (exif_pictures, 12),
}  # fmt: skip

BAD: dict[str, tuple[Callable[[Path], object], str]] = {
    "other_codec.mp4": (other_codec, "no decoder for its codec"),
    "encrypted.mp4": (lambda path: write(path, muxer=ENCRYPTION), "encrypted"),
}


@pytest.fixture(scope="module")
def footage(made_once) -> Path:
    return made_once("footage", make_footage)


def make_footage(folder: Path) -> None:
    for name, (make, _) in {**GOOD, **BAD}.items():
        make(folder / name)


def upright(frame: av.VideoFrame) -> np.ndarray:
    return np.rot90(frame.to_ndarray(format="rgb24"), frame.rotation // 90)


@pytest.mark.parametrize("name", GOOD)
def test_every_single_frame_equals_that_of_a_full_decode(footage, name, backend):
    path, count = str(footage / name), GOOD[name][1]
    with av.open(path) as container:
        shown = [upright(frame) for frame in container.decode(video=int("bit_rates" in name))]
    assert_single_frames(path, shown, count, backend)
    frames = read_frames(path, lambda n: [n - 1, 3, 0, 3], backend=backend)
    assert all(np.abs(frames[i].astype(int) - shown[n]).max() <= 16 for i, n in enumerate((-1, 3, 0, 3)))


@pytest.mark.parametrize(("matrix", "similar"), [(8, 2), (10, 9), (14, 2)])
def test_colours_of_rare_matrices_are_those_of_a_similar_one(tmp_path, matrix, similar, backend):
    frames = []
    for number in (matrix, similar):
        path = write(tmp_path / f"{number}.mp4", setup=lambda s, n=number: setattr(s.codec_context, "colorspace", n))
        with av.open(str(path)) as container:
            assert next(container.decode(video=0)).colorspace == number
        frames.append(read_frames(str(path), range, backend=backend))
    assert len(frames[0]) == 40 and np.array_equal(*frames)


def test_empty_packets_do_not_end_a_video(tmp_path, backend):
    """An encoder of Theora writes empty packets for pictures that do not change."""
    shutil.copy(EMPTY, tmp_path)
    with av.open(str(EMPTY)) as container:
        stream = container.streams.video[0]
        frames = [frame for packet in container.demux(stream) if packet.size for frame in packet.decode()]
        shown = [frame.to_ndarray(format="rgb24") for frame in [*frames, *stream.codec_context.decode(None)]]
    for number, whole in enumerate(shown):
        (frame,) = read_frames(str(EMPTY), lambda length, number=number: [number] * (length > 0), backend=backend)
        assert np.array_equal(frame, whole)
    for full in (False, True):
        (row,) = check_media(tmp_path, {EMPTY.name: None}, tmp_path / f"{full}", workers=1, timeout=30, full=full)
        assert (row.ok, row.frames) == (1, len(shown))
    assert reencode(tmp_path, [EMPTY.name], tmp_path.with_name("copies"), Settings(), workers=1) == {}


def test_a_colon_in_a_name_makes_no_address_of_it(tmp_path, monkeypatch, backend):
    monkeypatch.chdir(tmp_path)
    Path("in:1").mkdir()
    write(tmp_path / "in:1/a:b.mp4", count=6)
    assert len(read_frames("in:1/a:b.mp4", range, backend=backend)) == 6
    assert reencode("in:1", ["a:b.mp4"], "out:1", Settings(), workers=1) == {}
    assert len(read_frames("out:1/a:b.mp4", range, backend=backend)) == 6


@pytest.mark.parametrize("orientation", range(1, 9))
def test_pictures_with_exif_data_are_turned_and_mirrored(tmp_path, orientation):
    exif_pictures(tmp_path / "a.avi", orientation)
    (frame,) = read_frames(str(tmp_path / "a.avi"), lambda length: [4])
    exif = Image.Exif()
    exif[0x0112] = orientation
    content = io.BytesIO()
    Image.fromarray(moving(5, 48, 64)[4]).save(content, "png", exif=exif)
    expected = np.asarray(ImageOps.exif_transpose(Image.open(content)))
    assert frame.shape == expected.shape and np.abs(frame.astype(int) - expected).mean() < 4


@pytest.mark.parametrize("name", BAD)
def test_a_file_that_cannot_be_decoded_is_named_with_its_reason(footage, name, backend):
    for limit in (0, 60):
        with pytest.raises(MediaError, match=BAD[name][1]) as caught:
            read_frames_within(limit, str(footage / name), lambda length: [0], backend=backend)
        assert caught.value.path == str(footage / name)


@pytest.mark.parametrize("name", ["lossless_cut.mp4", "h264.avi", "h264.ts", "mpeg2.ts", "two_streams.mp4"])
def test_frames_are_found_without_decoding_everything(footage, name):
    slow: list[str] = []
    for number in (0, 5, 25):
        read_frames(str(footage / name), lambda length, number=number: [number], report_slow=slow.append)
    assert slow == []


def test_a_full_decode_happens_once(footage):
    lengths = []
    read_frames(str(footage / "packed_b_frames.avi"), lambda length: lengths.append(length) or [3])
    assert lengths == [28]


def test_a_timeout_names_the_reason_and_the_cure(footage):
    path = str(footage / "packed_b_frames.avi")
    read_frames_within(60, path, lambda length: [0])

    def stop(length: int) -> list[int]:
        os.kill(vars(_local)["pyav"].process.pid, signal.SIGSTOP)  # a decoder that never answers
        return list(range(length))

    with pytest.raises(MediaError, match=r"\b1 s\b.*packed B-frames.*reencode"):
        read_frames_within(1, path, stop)


MEMORY = """
import resource, sys
from slowfast.datasets.container import MediaError
from slowfast.datasets.reader import read_frames
used = 1024 * int(next(line for line in open("/proc/self/status") if line.startswith("VmSize")).split()[1])
resource.setrlimit(resource.RLIMIT_AS, (used + int(sys.argv[2]) * 2**20,) * 2)
try:
    read_frames(sys.argv[1], lambda length: [k % length for k in range(400)])
except MediaError as error:
    print(error.reason)
"""


@pytest.mark.parametrize("megabytes", [10, 40, 100])
def test_a_decoder_that_runs_out_of_memory_is_a_fault_of_the_file(tmp_path, megabytes):
    path = write(tmp_path / "large.mp4", {"preset": "ultrafast"}, count=3, size=(1088, 1920))
    command = [sys.executable, "-c", MEMORY, str(path), str(megabytes)]
    done = subprocess.run(command, capture_output=True, text=True, cwd=ROOT)
    assert done.returncode == 0 and "out of memory (" in done.stdout, done.stdout + done.stderr
    assert f"{path.stat().st_size:,} bytes" in done.stdout


@pytest.mark.parametrize("error", [KeyError, MemoryError, OSError, ValueError, av.FFmpegError])
def test_an_exception_of_the_caller_is_not_a_fault_of_the_file(footage, error):
    def choose(length: int) -> list[int]:
        raise error(5, "not the file")

    for name in ("h264.avi", "packed_b_frames.avi"):
        with pytest.raises(error) as caught:
            read_frames(str(footage / name), choose)
        assert type(caught.value) is error or error is OSError
