"""Test copies that decode fast: they are complete and smaller, with the same pictures at the same times."""

from __future__ import annotations

import json
import os
import subprocess
import sys
import time
from fractions import Fraction
from pathlib import Path

import av
import numpy as np
import pytest
from media_zoo import encode

from slowfast.datasets.frame_list import list_frames
from slowfast.datasets.lists import read_list
from slowfast.datasets.reader import read_frames
from slowfast.prepare.reencode import WITHOUT_COPY, Settings, access_times, reencode, without_copy

ROOT = Path(__file__).parents[2]


def write(
    path: Path,
    *,
    size: tuple[int, int] = (64, 48),
    times: list[int] | None = None,
    pix_fmt: str = "yuv420p",
    codec: str = "libx264",
    rotation: int = 0,
    audio: bool = False,
    noise: bool = False,
) -> Path:
    """Write 30 frames with a red upper left quarter and growing brightness, at `times` in units of 1/100 s."""
    width, height = size
    times = times or [4 * t for t in range(30)]
    path.parent.mkdir(parents=True, exist_ok=True)
    options = {"movflags": "faststart"} if path.suffix == ".mp4" else {}
    base = Fraction(1, 25 if codec == "mpeg4" else 100)
    with av.open(str(path), "w", options=options) as container:
        stream = container.add_stream(codec, rate=25)
        assert isinstance(stream, av.VideoStream)
        stream.width, stream.height, stream.pix_fmt, stream.bit_rate = width, height, pix_fmt, 3_000_000
        stream.time_base = stream.codec_context.time_base = base
        stream.options = {"g": "250", "bf": "0", "sc_threshold": "0"} if codec == "libx264" else {}
        sound = container.add_stream("aac", rate=8000) if audio else None
        for t, time in enumerate(times):
            image = np.full((height, width, 3), 20 + 6 * t, np.uint8)
            image[: height // 2, : width // 2] = (220, 0, 0)
            if noise:
                image = np.random.default_rng(t // 3).integers(0, 256, image.shape, np.uint8)
            frame = av.VideoFrame.from_ndarray(image, format="rgb24").reformat(format=pix_fmt)
            frame.pts, frame.time_base = int(time * base.denominator) // 100, base
            container.mux(stream.encode(frame))
        container.mux(stream.encode())
        if sound is not None:
            silence = av.AudioFrame.from_ndarray(np.zeros((1, 8000), np.float32), format="fltp", layout="mono")
            silence.sample_rate = 8000
            container.mux(sound.encode(silence))
            container.mux(sound.encode(None))
    if rotation:
        data = bytearray(path.read_bytes())
        cos, sin = {90: (0, 1), 180: (-1, 0), 270: (0, -1)}[rotation]
        matrix = np.array([cos << 16, sin << 16, 0, -sin << 16, cos << 16, 0, 0, 0, 1 << 30], ">i4").tobytes()
        place = data.index(b"tkhd") + 4 + 40  # version 0: the matrix follows 40 bytes
        data[place : place + 36] = matrix
        path.write_bytes(data)
    return path


def frames_of(path: Path) -> tuple[list[float], np.ndarray, tuple[str, str, object]]:
    """Return times, pictures, codec, pixel format and rate."""
    with av.open(str(path)) as container:
        stream = container.streams.video[0]
        frames = list(container.decode(stream))
        return (
            [float(frame.time or 0) for frame in frames],
            np.stack([f.to_ndarray(format="rgb24") for f in frames]),
            (stream.codec_context.name, stream.pix_fmt or "", stream.average_rate),
        )


def key_frames(path: Path) -> list[int]:
    with av.open(str(path)) as container:
        return [number for number, packet in enumerate(container.demux(video=0)) if packet.is_keyframe]


def copy(path: Path, out: Path, **settings) -> Path:
    assert not reencode(path.parent, [path.name], out, Settings(**settings), workers=1, timeout=60)
    return out / path.name


def test_copies_keep_pictures_and_times_and_shrink(tmp_path):
    source = write(tmp_path / "in/a.mp4", size=(160, 120), audio=True)
    target = copy(source, tmp_path / "out", short_side=60, key_frames=5)
    (before, pictures, _), (after, small, encoded) = frames_of(source), frames_of(target)
    assert after == pytest.approx(before, abs=1e-6) and small.shape == (30, 60, 80, 3)
    assert encoded == ("h264", "yuv420p", 25)
    assert np.abs(small[:, 45, 60].astype(int) - pictures[:, 90, 120]).max() <= 3
    assert np.abs(small[:, 15, 20].astype(int) - pictures[:, 30, 40]).max() <= 6
    places = key_frames(target)
    assert max(np.diff([*places, 30])) <= 5 and len(key_frames(source)) == 1
    with av.open(str(target)) as container:
        assert [stream.type for stream in container.streams] == ["video"]


def test_a_reader_can_skip_most_pictures(tmp_path):
    """No other picture refers to them: on the way to a frame, a decoder skips three of four pictures."""
    source = tmp_path / "in" / "a.mp4"
    source.parent.mkdir()
    scene = np.random.default_rng(0).integers(0, 256, (12, 16, 3), np.uint8).repeat(8, 0).repeat(8, 1)
    encode(source, np.stack([scene[t : t + 48, t : t + 64] for t in range(30)]))  # a camera moves over a scene
    for distance in (1, 2, 3, 16):  # every backend finds the frames of the copies
        target = copy(source, tmp_path / f"out_{distance}", key_frames=distance)
        with av.open(str(target)) as container:
            listed = list_frames(str(target), container, container.streams.video[0])
        assert not listed.doubt and listed.plain and len(listed.times) == 30
    target = tmp_path / "out_16" / "a.mp4"
    with av.open(str(target)) as container:
        container.streams.video[0].codec_context.skip_frame = "NONREF"
        assert sum(1 for _ in container.decode(video=0)) <= 10
    assert len(frames_of(target)[0]) == 30


def test_nothing_is_enlarged(tmp_path):
    assert frames_of(copy(write(tmp_path / "in/a.mp4"), tmp_path / "out", short_side=320))[1].shape[1:3] == (48, 64)


@pytest.mark.parametrize(("size", "pix_fmt"), [((75, 51), "yuv444p"), ((64, 48), "yuv420p10le"), ((64, 48), "gray")])
def test_odd_sizes_and_formats_are_copied(tmp_path, size, pix_fmt):
    target = copy(write(tmp_path / "in/a.mp4", size=size, pix_fmt=pix_fmt), tmp_path / "out")
    times, pictures, encoded = frames_of(target)
    assert len(times) == 30 and encoded[1] == "yuv420p"
    assert pictures.shape[1:3] == (size[1] // 2 * 2, size[0] // 2 * 2) or pictures.shape[1:3] == (52, 76)
    assert abs(int(pictures[20, -6, -6].mean()) - 140) <= 4


@pytest.mark.parametrize("rotation", [90, 180, 270])
def test_rotation_is_applied(tmp_path, rotation):
    source = write(tmp_path / "in/a.mp4", rotation=rotation)
    with av.open(str(source)) as container:
        frame = next(container.decode(video=0))
        assert frame.rotation % 180 == rotation % 180
        upright = np.rot90(frame.to_ndarray(format="rgb24"), frame.rotation // 90)
    pictures = frames_of(copy(source, tmp_path / "out"))[1]
    assert pictures[0].shape == upright.shape
    assert np.abs(pictures[0].astype(int) - upright).mean() < 6
    with av.open(str(tmp_path / "out/a.mp4")) as container:
        assert next(container.decode(video=0)).rotation == 0


def test_times_of_a_variable_frame_rate_are_kept(tmp_path):
    times = np.cumsum([7, 3, 3, 10, 1] * 6).tolist()  # the first one is not zero
    source = write(tmp_path / "in/a.mkv", times=times)
    after, pictures, _ = frames_of(copy(source, tmp_path / "out"))
    assert len(pictures) == 30
    assert after == pytest.approx([(time - times[0]) / 100 for time in times], abs=0.0011)  # mkv counts milliseconds


@pytest.mark.parametrize(("name", "codec"), [("a.mkv", "libx264"), ("a.webm", "libvpx"), ("a.wmv", "wmv2")])
@pytest.mark.parametrize("start", [25, 1000])
def test_a_late_first_frame_is_not_a_fault(tmp_path, name, codec, start):
    """These containers count the duration from time 0, as after `ffmpeg -i a.mkv -c copy -output_ts_offset 0.25`."""
    source = write(tmp_path / "in" / name, times=[start + 4 * t for t in range(30)], codec=codec)
    with av.open(str(source)) as container:
        assert (container.duration or 0) / av.time_base == pytest.approx(start / 100 + 1.2, abs=0.05)
    after, _, _ = frames_of(copy(source, tmp_path / "out"))
    assert after == pytest.approx([0.04 * t for t in range(30)], abs=0.0011)


@pytest.mark.parametrize("suffix", [".mp4", ".mkv"])
def test_a_last_frame_that_is_shown_for_long_is_not_a_fault(tmp_path, suffix):
    """Programs that record screens write such files."""
    source = tmp_path / f"in/a{suffix}"
    source.parent.mkdir()
    with av.open(str(write(tmp_path / f"b{suffix}"))) as reader, av.open(str(source), "w") as writer:
        packets = [packet for packet in reader.demux(video=0) if packet.size]
        stream = writer.add_stream_from_template(reader.streams.video[0])
        packets[-1].duration = round(3 / packets[-1].time_base)
        for packet in packets:
            packet.stream = stream
            writer.mux(packet)
    with av.open(str(source)) as reader:
        if [packet.duration for packet in reader.demux(video=0) if packet.size][-1] < 3000:
            pytest.skip("FFmpeg before version 8.1.2 does not read how long a single frame of Matroska is shown")
    after, _, _ = frames_of(copy(source, tmp_path / "out"))
    assert after == pytest.approx([0.04 * t for t in range(30)], abs=0.0011)


def test_lists_stay_valid_with_any_suffix(tmp_path):
    for name, codec in (("x/a b.mp4", "libx264"), ("é/c.webm", "libvpx"), ("d.avi", "mpeg4")):
        write(tmp_path / "in" / name, codec=codec)
    (tmp_path / "train.csv").write_text("x/a b.mp4 0\né/c.webm 1\nd.avi 2\n")
    samples = read_list(tmp_path / "train.csv")
    paths = [sample.path for sample in samples]
    assert not reencode(tmp_path / "in", paths, tmp_path / "out", Settings(), workers=2, timeout=60)
    for path in paths:
        frames = read_frames(str(tmp_path / "out" / path), lambda length: [0, length - 1])
        assert frames.shape == (2, 48, 64, 3)
    before, after = access_times([tmp_path / "in", tmp_path / "out"], paths)
    assert before > 0 and after > 0


def test_broken_inputs_are_listed_and_whole_ones_are_not_made_again(tmp_path):
    source = write(tmp_path / "in/a.mp4")
    content = source.read_bytes()
    start = content.index(b"mdat")
    (tmp_path / "in/torn.mp4").write_bytes(content[: len(content) // 2])
    (tmp_path / "in/noise.mp4").write_bytes(content[: start + 40] + os.urandom(len(content) - start - 40))
    (tmp_path / "in/empty.mp4").write_bytes(b"")
    os.mkfifo(tmp_path / "in/pipe.mp4")
    matroska = write(tmp_path / "in/short.mkv").read_bytes()
    (tmp_path / "in/short.mkv").write_bytes(matroska[: len(matroska) // 2])
    paths = ["a.mp4", "torn.mp4", "short.mkv", "noise.mp4", "empty.mp4", "pipe.mp4"]
    broken = reencode(tmp_path / "in", paths, tmp_path / "out", Settings(), workers=2, timeout=2)
    assert set(broken) == set(paths[1:])
    assert broken["torn.mp4"].startswith("it does not decode to the end")
    assert " of 1.20 s" in broken["short.mkv"]
    assert sorted(without_copy(tmp_path / "out")) == sorted(paths[1:])
    assert broken["pipe.mp4"] == "timed out after 2 s"
    assert sorted(path.name for path in (tmp_path / "out").iterdir()) == ["a.mp4", "reencode.json", WITHOUT_COPY]
    assert len((tmp_path / "out" / WITHOUT_COPY).read_text().splitlines()) == 6

    made = (tmp_path / "out/a.mp4").stat().st_ino
    write(tmp_path / "in/torn.mp4")  # fetched again
    (tmp_path / "out/.torn.mp4.part").write_bytes(b"of a killed call")
    broken = reencode(tmp_path / "in", ["a.mp4", "torn.mp4"], tmp_path / "out", Settings(), workers=1, timeout=30)
    assert without_copy(tmp_path / "out") == []
    assert not broken and not (tmp_path / "out/.torn.mp4.part").exists()
    assert (tmp_path / "out/a.mp4").stat().st_ino == made


def test_a_killed_call_that_is_repeated_gives_the_same_bytes(tmp_path):
    """Sizes include some that are not multiples of 16, for which assembler code reads earlier content of memory."""
    paths = [f"{i}.mp4" for i in range(6)]
    for i, path in enumerate(paths):
        write(tmp_path / "in" / path, size=(160, 130 + 2 * i), noise=True)
    undisturbed, killed = tmp_path / "undisturbed", tmp_path / "killed"
    reencode(tmp_path / "in", paths, undisturbed, Settings(short_side=75), workers=1)
    command = [sys.executable, str(ROOT / "tools/prepare_data.py"), "reencode", "in", "--out", "killed"]
    command += ["--short-side", "75", "--measure", "0", "--workers", "1"]
    process = subprocess.Popen(command, cwd=tmp_path, env={**os.environ, "PYTHONPATH": str(ROOT)})
    while not list(killed.glob("*.mp4")):
        assert process.poll() is None
        time.sleep(0.001)
    process.kill()
    process.wait()
    missing = without_copy(killed)
    assert missing and set(missing) == {path for path in paths if not (killed / path).exists()}
    subprocess.run(command, cwd=tmp_path, env={**os.environ, "PYTHONPATH": str(ROOT)}, check=True)
    assert without_copy(killed) == []
    for path in paths:
        assert (killed / path).read_bytes() == (undisturbed / path).read_bytes()
        assert (killed / path).stat().st_mtime_ns == (undisturbed / path).stat().st_mtime_ns
    assert len(list(killed.iterdir())) == 8


@pytest.mark.parametrize("change", ["newer source", "older source", "empty copy", "copy written later"])
def test_stale_and_empty_copies_are_made_again(tmp_path, change):
    source = write(tmp_path / "in/a.mp4")
    target = copy(source, tmp_path / "out")
    time = source.stat().st_mtime_ns
    assert target.stat().st_mtime_ns == time
    whole = target.read_bytes()
    target.write_bytes(b"" if change == "empty copy" else b"stale")
    os.utime(target, ns=(time, time + (change == "copy written later")))
    if "source" in change:  # an older one may have been moved there from elsewhere
        time += {"newer source": 1, "older source": -(10**9)}[change]
        os.utime(source, ns=(time, time))
    copy(source, tmp_path / "out")
    assert target.read_bytes() == whole and target.stat().st_mtime_ns == time


@pytest.mark.parametrize("unit", [100, 1000, 10**9])
def test_copies_stay_where_a_file_system_cuts_off_their_times(tmp_path, unit):
    source = write(tmp_path / "in/a.mp4")
    os.utime(source, ns=(10**18 + 123_456_789, 10**18 + 123_456_789))
    target = copy(source, tmp_path / "out")
    time = target.stat().st_mtime_ns // unit * unit
    os.utime(target, ns=(time, time))
    made = target.stat().st_ino
    copy(source, tmp_path / "out")
    assert (target.stat().st_ino, target.stat().st_mtime_ns) == (made, time)


def test_the_copy_of_a_source_that_no_longer_decodes_is_kept_and_reported(tmp_path):
    source = write(tmp_path / "in/a.mp4")
    target = copy(source, tmp_path / "out")
    whole = target.read_bytes()
    source.write_bytes(source.read_bytes()[:500])
    kept, without = (
        reencode(source.parent, ["a.mp4"], tmp_path / name, Settings(), workers=1, timeout=30)["a.mp4"]
        for name in ("out", "new")
    )
    assert target.read_bytes() == whole and without_copy(tmp_path / "out") == []
    assert kept.startswith(without) and kept != without and kept in (tmp_path / "out" / WITHOUT_COPY).read_text()


def test_a_source_that_vanished_is_broken(tmp_path):
    source = write(tmp_path / "in/a.mp4")
    copy(source, tmp_path / "out")
    write(tmp_path / "in/b.mp4")
    source.unlink()
    broken = reencode(tmp_path / "in", ["a.mp4", "b.mp4"], tmp_path / "out", Settings(), workers=1, timeout=30)
    assert broken.keys() == {"a.mp4"} and "No such file" in broken["a.mp4"]


def test_a_folder_belongs_to_one_setting_and_is_never_the_source(tmp_path):
    source = write(tmp_path / "in/a.mp4")
    copy(source, tmp_path / "out")
    with pytest.raises(ValueError, match="crf"):
        reencode(source.parent, ["a.mp4"], tmp_path / "out", Settings(crf=30), workers=1)
    for out in (source.parent, source.parent / "small", tmp_path):
        with pytest.raises(ValueError, match="--out"):
            reencode(source.parent, ["a.mp4"], out, Settings(), workers=1)
    assert json.loads((tmp_path / "out/reencode.json").read_text())["crf"] == 20
