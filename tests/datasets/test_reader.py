"""Test the frames of video files and of frame folders with every decoder."""

import contextlib
import errno
import gc
import os
import pickle
import re
import subprocess
import sys
import threading
from fractions import Fraction
from pathlib import Path
from typing import Any

import av
import cv2
import numpy as np
import pytest
from media_zoo import encode, h264, numbered
from PIL import Image

from slowfast.datasets import container, decode, frame_list
from slowfast.datasets.backends import LIBRARIES, Unsure, check_backend
from slowfast.datasets.container import open_video, packets, video_stream
from slowfast.datasets.decode import _decode_packets
from slowfast.datasets.frame_list import list_frames
from slowfast.datasets.image import read_image
from slowfast.datasets.reader import MediaError, read_frames, stream_frames

ROOT = Path(__file__).parents[2]


def test_video_frames_have_the_requested_order(tmp_path, write_video, frame_numbers):
    path = write_video(tmp_path / "a.mp4", frames=40)
    lengths = []

    def choose(length):
        lengths.append(length)
        return [39, 3, 3, 17, 0]

    frames = read_frames(path, choose)
    assert lengths == [40]
    assert frames.shape == (5, 48, 64, 3) and frames.dtype == np.uint8
    assert frame_numbers(frames) == [39, 3, 3, 17, 0]


@pytest.mark.parametrize(("late", "frames", "chosen"), [(0, 3, 0), (9, 3, 0), (0, 0, 1)])
def test_the_first_stream_with_packets_is_read(tmp_path, late, frames, chosen):
    with av.open(str(tmp_path / "a.mkv"), "w") as made:
        streams: list[Any] = [made.add_stream("ffv1", rate=25) for _ in range(2)]
        for stream in streams:
            stream.width, stream.height, stream.pix_fmt = 32, 32, "yuv420p"
        for stream, begin, count in zip(streams, (late, 0), (frames, 3), strict=True):
            for at in range(count):
                frame = av.VideoFrame(32, 32, "yuv420p")
                frame.pts, frame.time_base = begin + at, Fraction(1, 25)
                made.mux(stream.encode(frame))
    with open_video(str(tmp_path / "a.mkv")) as found:
        assert video_stream(str(tmp_path / "a.mkv"), found).index == chosen


@pytest.mark.parametrize("b_frames", [0, 3])
def test_frames_between_a_wanted_one_and_the_next_key_frame_are_not_decoded(tmp_path, b_frames):
    path, pixels = str(tmp_path / "a.mp4"), np.random.default_rng(0).integers(0, 256, (80, 112, 3), np.uint8)
    images = np.stack([pixels[at : at + 48, at : at + 64] for at in range(32)])
    encode(Path(path), images, options={"g": "8", "bf": str(b_frames), "sc_threshold": "0"})
    everything = read_frames(path, lambda n: range(n))
    for wanted in ([2, 17], [7, 8, 24], [0, 31], [3, 12, 19, 26], [5]):
        assert np.array_equal(read_frames(path, lambda n, wanted=wanted: wanted), everything[wanted])

    passed = set[int]()
    with open_video(path) as container:
        stream = video_stream(path, container)
        listed = list_frames(path, container, stream)
        wanted = {listed.times[number] for number in (2, 17)}
        decoded = list(_decode_packets(container, stream, listed, listed.keys[0][1], wanted, passed))
    numbers = {listed.times.index(time) for time in passed}
    assert numbers.issuperset(range(8, 16)) and numbers.isdisjoint({0, 2, 16, 17})  # key and wanted frames
    assert b_frames or (numbers == {*range(3, 16)} and len(decoded) == 5)


@pytest.mark.parametrize("kind", ["h264", "rgb", "fallback", "damaged"])
def test_at_most_one_decoded_frame_stays_in_memory_after_a_read(kind, tmp_path, write_video, monkeypatch):
    if kind == "rgb":  # frames that need no conversion
        path = str(tmp_path / "a.mov")
        encode(Path(path), numbered(40), "png", "rgb24")
    else:
        path = write_video(tmp_path / "a.mkv", frames=40)
    if kind == "damaged":
        content = bytearray(Path(path).read_bytes())
        content[len(content) // 2 :: 7] = bytes(len(content[len(content) // 2 :: 7]))
        Path(path).write_bytes(content)

    def unsure(*_):
        raise Unsure("not this one")

    monkeypatch.setitem(LIBRARIES, "decord", unsure)
    gc.disable()
    gc.freeze()  # objects of other tests are not listed below
    try:
        for _ in range(5):
            with contextlib.suppress(MediaError):
                read_frames(path, lambda n: [0, n // 2, n - 1], backend="decord" if kind == "fallback" else "pyav")
            assert sum(type(kept) is av.VideoFrame for kept in gc.get_objects()) <= 1
    finally:
        gc.unfreeze()
        gc.enable()


def test_folder_frames_are_numbered_from_one(tmp_path, write_folder, frame_numbers):
    path = write_folder(tmp_path / "clip", frames=12, template="{:05d}.jpg")
    frames = read_frames(path, lambda length: [length - 1, 0, 5], image_template="{:05d}.jpg")
    assert frame_numbers(frames) == [11, 0, 5]
    counted = read_frames(path, lambda length: [length - 1], num_frames=7, image_template="{:05d}.jpg")
    assert frame_numbers(counted) == [6]  # the list's count decides


def test_frames_may_be_named_like_their_folder(tmp_path, write_folder, frame_numbers):
    for name in ("78687", "a{b}"):
        template = f"{name.replace('{', '{{').replace('}', '}}')}_{{:06d}}.jpg"
        path = write_folder(tmp_path / name, frames=12, template=template)
        (tmp_path / name / "other_000001.jpg").touch()
        frames = read_frames(f"{path}/", lambda length: [length - 1, 0], image_template="{folder}_{:06d}.jpg")
        assert frame_numbers(frames) == [11, 0]
        streamed = stream_frames(path, lambda number: number == 3, image_template="{folder}_{:06d}.jpg")
        shown = [None if pixels is None else frame_numbers(pixels[None])[0] for *_, pixels in streamed]
        assert shown == [3 if number == 3 else None for number in range(12)]


def test_channels_have_the_requested_order_for_every_source(tmp_path, write_video, write_folder):
    for path in (write_video(tmp_path / "a.mp4"), write_folder(tmp_path / "a")):
        rgb = read_frames(path, lambda _: [10]).astype(int)
        bgr = read_frames(path, lambda _: [10], colors="BGR").astype(int)
        assert (rgb == bgr[..., ::-1]).all()
        assert (rgb[..., 0] - rgb[..., 2]).mean() == pytest.approx(40, abs=4)


@pytest.mark.parametrize("limit", [frame_list.MAX_KEPT, 0])
@pytest.mark.parametrize("backend", ["pyav", "decord"])  # decord cannot read turned pictures, so PyAV reads them
def test_packets_of_small_files_are_read_once(tmp_path, monkeypatch, limit, backend):
    pytest.importorskip("av" if backend == "pyav" else backend)
    path, wanted = str(tmp_path / "a.mp4"), [3, 14, 70, 71]
    h264(Path(path), 90, setup=lambda stream: stream.set_display_rotation(180))
    everything = read_frames(path, lambda length: range(length))
    monkeypatch.setattr(frame_list, "MAX_KEPT", limit)
    read_again: list[int] = []
    monkeypatch.setattr(decode, "packets", lambda *streams: read_again.append(1) or packets(*streams))
    assert np.array_equal(read_frames(path, lambda length: wanted, backend=backend), everything[wanted])
    assert bool(read_again) == (limit == 0)


def _fragmented(path: Path, source: Path) -> list[int]:
    """Write a fragmented copy of a video, and return the places of its fragments."""
    with av.open(str(source)) as container, av.open(str(path), "w", options={"movflags": "frag_every_frame"}) as copy:
        stream = copy.add_stream_from_template(container.streams.video[0])
        for packet in container.demux(video=0):
            if packet.size:
                packet.stream = stream
                copy.mux(packet)
    data = path.read_bytes()
    return [found.start() - 4 for found in re.finditer(b"moof", data)]


def test_a_cut_fragment_is_not_a_shorter_video(tmp_path, write_video):
    write_video(tmp_path / "a.mp4", frames=60)
    places = _fragmented(tmp_path / "b.mp4", tmp_path / "a.mp4")
    data = (tmp_path / "b.mp4").read_bytes()
    assert len(places) > 2 and len(read_frames(str(tmp_path / "b.mp4"), range)) == 60
    for end in (places[-1] + 4, places[-1] + 12, places[-1] + 40, len(data) - 3):
        (tmp_path / "c.mp4").write_bytes(data[:end])
        with pytest.raises(MediaError, match=r"cut off|not a readable"):
            read_frames(str(tmp_path / "c.mp4"), lambda length: range(length))


def test_broken_folders_are_named_with_the_image(tmp_path, write_folder):
    path = write_folder(tmp_path / "clip", frames=4)
    with pytest.raises(MediaError, match=r"img_00005\.jpg of 6 images: No such file.*img_00001\.jpg.*image_template"):
        read_frames(path, lambda length: range(length), num_frames=6)
    (tmp_path / "clip" / "img_00002.jpg").write_bytes(b"\xff\xd8 not much of a JPEG")
    with pytest.raises(MediaError, match=r"img_00002\.jpg is damaged"):
        read_frames(path, lambda length: range(length))
    cv2.imwrite(str(tmp_path / "clip" / "img_00002.jpg"), np.zeros((8, 8, 3), np.uint8))
    with pytest.raises(MediaError, match="differ in size"):
        read_frames(path, lambda length: range(length))


def test_the_error_can_be_sent_by_a_worker():
    error = pickle.loads(pickle.dumps(MediaError("a.mp4", "broken")))
    assert (str(error), error.path, error.reason) == ("a.mp4: broken", "a.mp4", "broken")
    assert str(MediaError(str(error))) == "a.mp4: broken"  # how a data loader rebuilds it


def test_a_backend_is_checked(backend):
    check_backend(backend)
    with pytest.raises(ValueError, match=r"'opencv'.*pyav, decord, torchcodec"):
        check_backend("opencv")


@pytest.mark.parametrize(
    ("name", "machine", "cure"),
    [
        ("torchcodec", "aarch64", "pip install torchcodec .*apt-get install ffmpeg.*; or use pyav"),
        ("decord", "x86_64", "pip install decord; or use pyav"),
        ("decord", "aarch64", "no release for aarch64; use pyav"),  # where `pip install decord` fails
    ],
)
def test_a_backend_that_cannot_be_loaded_says_how_to_get_it(tmp_path, name, machine, cure):
    (tmp_path / "torchcodec").mkdir()
    (tmp_path / "torchcodec" / "__init__.py").write_text("raise RuntimeError('Could not load libtorchcodec.')\n")
    (tmp_path / "decord.py").write_text("raise ImportError('No module named decord')\n")
    code = f"import platform; platform.machine = lambda: {machine!r}; "
    code += f"from slowfast.datasets.backends import check_backend; check_backend({name!r})"
    environment = {**os.environ, "PYTHONPATH": os.pathsep.join((str(tmp_path), str(ROOT)))}
    done = subprocess.run([sys.executable, "-c", code], env=environment, capture_output=True, text=True)
    assert re.search(rf"ValueError: .*{name} cannot be loaded .*{cure}", done.stderr)


def test_names_and_titles_need_not_be_utf8(tmp_path, write_video, frame_numbers, backend):
    source = Path(write_video(tmp_path / "title.mp4"))
    with av.open(str(source)) as container, av.open(str(tmp_path / "titled.mp4"), "w") as copy:
        stream = copy.add_stream_from_template(container.streams.video[0])
        copy.metadata["title"] = "ABCDEFGH"
        for packet in container.demux(video=0):
            if packet.size:
                packet.stream = stream
                copy.mux(packet)
    content = (tmp_path / "titled.mp4").read_bytes()
    assert b"ABCDEFGH" in content
    path = os.fsdecode(os.fsencode(tmp_path) + b"/\xff\xe9.mp4")
    Path(path).write_bytes(content.replace(b"ABCDEFGH", b"\xff\xe9\xff\xe9ABCD"))
    assert frame_numbers(read_frames(path, lambda length: [length - 1, 4], backend=backend)) == [29, 4]


@pytest.mark.parametrize("suffix", ["jpg", "png", "gif"])
def test_an_image_is_not_reported_as_a_slow_video(tmp_path, suffix, caplog, monkeypatch):
    monkeypatch.setattr(decode, "_LOGGED", set())
    path, slow = tmp_path / f"00116.{suffix}", []
    pixels = np.random.default_rng(0).integers(0, 256, (48, 64, 3), np.uint8)  # FFmpeg has two readers of JPEG
    Image.fromarray(pixels).save(path)
    with caplog.at_level("INFO", logger="slowfast"):
        frames = read_frames(str(path), lambda length: [0] * (length + 1), report_slow=slow.append)
    assert (slow, caplog.messages) == ([], [])
    assert frames.shape == (2, 48, 64, 3) and np.abs(frames.mean((1, 2)) - pixels.mean((0, 1))).max() < 3


@pytest.fixture
def failing_until(monkeypatch):
    """Return a function that makes `path` a file whose reads fail, and that becomes `good` after some seconds."""
    monkeypatch.setattr(container, "WAITS", (0.1, 2.0))

    def make(path, good, seconds):
        path.symlink_to("/proc/self/mem")  # reading it is an input/output error
        (path.parent / "next").symlink_to(good)
        timer = threading.Timer(seconds, lambda: (path.parent / "next").replace(path))
        timer.start()
        return timer

    return make


@pytest.mark.skipif(not os.path.exists("/proc/self/mem"), reason="the file that fails is one of Linux")
@pytest.mark.parametrize("kind", ["video", "image"])
def test_a_read_outlasts_a_short_failure_of_the_file_system(kind, tmp_path, write_video, failing_until):
    if kind == "video":
        good, read = write_video(tmp_path / "good.mp4", frames=8), lambda path: read_frames(path, lambda n: [0, n - 1])
    else:
        good, read = str(tmp_path / "good.png"), read_image
        Image.fromarray(np.arange(48, dtype=np.uint8).reshape(4, 4, 3)).save(good)
    timer = failing_until(tmp_path / "a", good, 0.5)
    assert np.array_equal(read(str(tmp_path / "a")), read(good))
    timer.join()


@pytest.mark.skipif(not os.path.exists("/proc/self/mem"), reason="the file that fails is one of Linux")
def test_a_lasting_failure_of_the_file_system_is_a_fault_of_the_file(tmp_path, monkeypatch):
    monkeypatch.setattr(container, "WAITS", (0.1,))
    (tmp_path / "a").symlink_to("/proc/self/mem")
    with pytest.raises(MediaError, match=os.strerror(errno.EIO)):
        read_frames(str(tmp_path / "a"), lambda n: [0])
