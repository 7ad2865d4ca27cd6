"""Sliding windows are cut from one decode, with memory for one window."""

from __future__ import annotations

import os
import threading
import time
from dataclasses import replace
from pathlib import Path

import av
import numpy as np
import pytest
import torch

from slowfast.datasets import decode
from slowfast.datasets.reader import MediaError, read_frames, stream_frames
from slowfast.inference.draw import write_timeline
from slowfast.inference.network import with_values
from slowfast.inference.results import Class
from slowfast.inference.windows import Timeline, WindowCutter, ahead, join, predict_windows, run_windows


@pytest.fixture
def decoded(monkeypatch) -> list[int]:
    """Return a list that gets the number of every frame that a decoder gives."""
    numbers: list[int] = []
    every_frame = decode.every_frame

    def counted(*args):
        for number, frame in enumerate(every_frame(*args)):
            numbers.append(number)
            yield frame

    monkeypatch.setattr(decode, "every_frame", counted)
    return numbers


@pytest.mark.parametrize(("window", "stride"), [(8, 3), (4, 4), (16, 1), (5, 9)])
def test_windows_contain_the_frames_that_a_test_would_choose(one_crop, write_video, tmp_path, window, stride):
    path = write_video(tmp_path / "video.mp4", 40)
    found = [*WindowCutter(one_crop, path, window, stride)]
    assert [each.first for each in found] == [*range(0, 41 - window, stride)]
    sampler = replace(one_crop.dataset.reader.sampler, num_views=1)
    for each in found:
        numbers = [each.first + offset for offset in sampler(window, 0, None)]
        expected = one_crop.transform(read_frames(path, lambda length, numbers=numbers: numbers))
        assert each.numbers == numbers and torch.equal(one_crop.transform_prepared([join([each])]), expected)
        assert each.begin == pytest.approx(each.first / 25) and each.end == pytest.approx((each.first + window) / 25)


def test_dense_networks_get_evenly_spread_frames(one_crop, write_video, tmp_path):
    path = write_video(tmp_path / "video.mp4", 40)
    cfg = with_values(one_crop.cfg, "TEST.DATASET", "kinetics")
    dense = type(one_crop)(one_crop.model, cfg, one_crop.class_names, one_crop.device, one_crop.weights)
    assert WindowCutter(dense, path, 4, 2).offsets == [0, 1, 2, 3]
    assert WindowCutter(dense, path, 16, 2).offsets == [0, 5, 10, 15]


def test_all_windows_need_one_decode(one_crop, write_video, decoded, tmp_path):
    path = write_video(tmp_path / "video.mp4", 60)
    cutter = WindowCutter(one_crop, path, 16, 2)
    assert len([*cutter]) == 23
    assert decoded == [*range(60)]
    assert (cutter.length, cutter.seconds) == (60, pytest.approx(2.4))


def test_a_short_video_is_one_window(one_crop, write_video, tmp_path):
    path = write_video(tmp_path / "video.mp4", 6)
    (only,) = WindowCutter(one_crop, path, 16, 4)
    sampler = one_crop.dataset.reader.sampler
    expected = read_frames(path, lambda length: replace(sampler, num_views=1)(length, 0, None))
    assert torch.equal(one_crop.transform_prepared([join([only])]), one_crop.transform(expected))


def test_frames_of_a_stream_are_those_of_a_read(write_video, write_folder, tmp_path):
    for path, template in (
        (write_video(tmp_path / "video.mp4", 20), "img_{:05d}.jpg"),
        (write_folder(tmp_path / "frames", 20), "img_{:05d}.jpg"),
    ):
        for colors in ("RGB", "BGR"):
            stream = [*stream_frames(path, lambda number: number % 3 == 0, image_template=template, colors=colors)]
            wanted = [number for number, _, _, pixels in stream if pixels is not None]
            expected = read_frames(path, lambda length: range(0, length, 3), image_template=template, colors=colors)
            assert wanted == [*range(0, 20, 3)]
            assert np.array_equal(np.stack([pixels for *_, pixels in stream if pixels is not None]), expected)
            assert [begin for _, begin, _, _ in stream] == pytest.approx(np.arange(20) / 25)


def test_windows_of_a_broken_file_are_an_error(one_crop, tmp_path):
    path = tmp_path / "broken.mp4"
    path.write_text("no video")
    with pytest.raises(MediaError):
        next(run_windows(one_crop, WindowCutter(one_crop, str(path), 8, 2), one_crop.model, 2))


def test_outputs_of_windows_are_those_of_the_network(one_crop, write_video, tmp_path):
    path = write_video(tmp_path / "video.mp4", 40)
    windows = [*WindowCutter(one_crop, path, 8, 3)]
    outputs = [output for _, output in run_windows(one_crop, WindowCutter(one_crop, path, 8, 3), one_crop.layer(), 3)]
    assert len(outputs) == len(windows)
    for window, output in zip(windows, outputs, strict=True):
        with torch.no_grad():
            clips = one_crop.transform_prepared([join([window])])
            expected = one_crop.model.forward_head(one_crop.model.forward_features(clips), pre_logits=True)
        assert np.abs(output - expected.numpy()).max() < 1e-5


def test_nothing_is_read_after_an_early_end():
    taken: list[int] = []

    def slowly():
        for number in range(100):
            time.sleep(0.01)
            taken.append(number)
            yield number

    items = ahead(slowly(), 4)  # pyright: ignore[reportArgumentType]
    next(items)
    items.close()  # pyright: ignore[reportAttributeAccessIssue]
    assert len(taken) <= 4 and not [t for t in threading.enumerate() if t.name.startswith("decode")]


def test_items_ahead_are_given_in_order_and_errors_arrive():
    assert [*ahead(iter(range(20)), 4)] == [*range(20)]  # pyright: ignore[reportArgumentType]

    def fails():
        yield 1
        raise KeyError("x")

    items = ahead(fails(), 4)  # pyright: ignore[reportArgumentType]
    assert next(items) == 1
    with pytest.raises(KeyError):
        next(items)


def test_segments_of_equal_class_are_merged_without_gaps():
    a, b = Class("a", 0, 0.6), Class("b", 1, 0.8)
    timeline = Timeline("v", [0.0, 1.0, 2.0, 3.0], [(a,), (Class("a", 0, 0.8),), (b,), (a,)], 5.0)
    found = timeline.segments()
    assert [(each.begin, each.end, each.found.name) for each in found] == [(0, 2, "a"), (2, 3, "b"), (3, 5, "a")]
    assert found[0].found.probability == pytest.approx(0.7)
    assert [timeline.at(time)[0].name for time in (-1, 0, 1.9, 2, 2.9, 4, 9)] == ["a", "a", "a", "b", "b", "a", "a"]


def test_a_time_line_takes_names_as_they_are(tmp_path):
    name = "from $\\some_{ to $5 \udce9"  # matplotlib would parse what is between two dollars; a byte that is not UTF-8
    write_timeline(Timeline(f"{name}.mp4", [0.0], [(Class(name, 0, 0.6),)], 1.0), str(tmp_path / "a.png"))
    assert (tmp_path / "a.png").stat().st_size > 5000


@pytest.mark.slow
def test_a_long_video_takes_flat_memory(one_crop, tmp_path):
    path = tmp_path / "long.mp4"
    write_long(path, minutes=3)
    sizes: list[int] = []

    def note(time: float) -> None:
        sizes.append(int(Path("/proc/self/statm").read_text().split()[1]) * os.sysconf("SC_PAGE_SIZE"))

    timeline = predict_windows(one_crop, str(path), 24, 12, 8, note)
    assert timeline.seconds == pytest.approx(180, abs=0.1) and len(timeline.tops) == 3 * 60 * 12 // 12 - 1
    assert max(sizes[len(sizes) // 4 :]) - sizes[len(sizes) // 4] < 20 << 20


def write_long(path: Path, minutes: int) -> None:
    """Write a video of noise with 12 frames per second."""
    picture = np.random.default_rng(0).integers(0, 256, (96, 128, 3), np.uint8)
    with av.open(str(path), "w") as container:
        stream = container.add_stream("libx264", rate=12, options={"preset": "ultrafast"})
        assert isinstance(stream, av.VideoStream)
        stream.width, stream.height, stream.pix_fmt = 128, 96, "yuv420p"
        for number in range(minutes * 60 * 12):
            image = np.roll(picture, number, axis=1)
            container.mux(stream.encode(av.VideoFrame.from_ndarray(image, format="rgb24")))
        container.mux(stream.encode())
