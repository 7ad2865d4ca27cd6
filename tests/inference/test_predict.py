"""slowfast-predict: tables, files, pictures and exit codes."""

from __future__ import annotations

import csv
import io
import json
import os
from functools import partial
from itertools import pairwise
from pathlib import Path

import av
import numpy as np
import pytest
import torch
from list_fixtures import make_classes
from make_demo_data import make_demo_data
from PIL import Image
from run_fixtures import run_command

from slowfast.config import load_config
from slowfast.datasets.catalog import DATASETS
from slowfast.datasets.lists import read_list
from slowfast.inference.command import find_videos
from slowfast.inference.network import Network
from slowfast.models.build import build_model
from slowfast.prepare.split import lists_from_folders
from slowfast.prepare.write import write_lists

PACKED = Path(__file__).parents[1] / "golden/packed_xvid.avi"  # some of its frames have the same time


predict, extract = partial(run_command, "predict"), partial(run_command, "extract")


@pytest.fixture(scope="module")
def sounding(videos, tmp_path_factory) -> Path:
    """Return a video of 2 s with sound."""
    path = tmp_path_factory.mktemp("sound") / "sounding.mp4"
    with av.open(str(path), "w") as target, av.open(str(videos / "train_0.mp4")) as source:
        stream, sound = target.add_stream("libx264", rate=24), target.add_stream("aac", rate=16000)
        assert isinstance(stream, av.VideoStream) and isinstance(sound, av.AudioStream)
        stream.width, stream.height, stream.pix_fmt, sound.layout = 96, 64, "yuv420p", "mono"
        images = [frame.to_image().resize((96, 64)) for frame in source.decode(video=0)]
        for number in range(48):
            target.mux(stream.encode(av.VideoFrame.from_image(images[number % len(images)])))
        target.mux(stream.encode())
        for start in range(0, 32000, 1024):
            wave = (8000 * np.sin((start + np.arange(1024)) / 5)).astype(np.int16)[None]
            frame = av.AudioFrame.from_ndarray(wave, format="s16", layout="mono")
            frame.sample_rate, frame.pts = 16000, start
            target.mux(sound.encode(frame))
        target.mux(sound.encode())
    return path


def test_files_contain_the_predictions_of_the_network(net, trained, videos, tmp_path, capsys):
    paths = [str(videos / f"val_{i}.mp4") for i in range(3)]
    assert predict(*paths, "--weights", trained, "--json", tmp_path / "a.json", "--csv", tmp_path / "a.csv") == 0
    expected = net.predict(paths)
    found = json.loads((tmp_path / "a.json").read_text())
    assert found == [prediction.as_dict() for prediction in expected]
    with open(tmp_path / "a.csv", newline="") as file:
        rows = [*csv.DictReader(file)]
    assert [row["top1"] for row in rows] == [prediction.top[0].name for prediction in expected]
    assert float(rows[0]["probability1"]) == pytest.approx(expected[0].top[0].probability, rel=1e-5)
    assert expected[0].top[0].name in capsys.readouterr().out


def test_a_network_for_images_takes_the_images_in_a_folder(tmp_path):
    make_demo_data(tmp_path / "data", train=2, test=3, images=True)
    cfg, names = load_config(Path(__file__).parents[2] / "exp/demo_image/config.yaml"), [*"abcdefgh"]
    Network(build_model(cfg).eval(), cfg, names, torch.device("cpu"), "").save_pretrained(tmp_path / "net")
    options = ["--weights", tmp_path / "net", "--device", "cpu"]
    assert predict(tmp_path / "data/val", *options, "--json", tmp_path / "a.json") == 0
    images = sorted(str(path) for path in (tmp_path / "data/val").rglob("*.*"))
    found = json.loads((tmp_path / "a.json").read_text())
    assert [row["path"] for row in found] == images and len(images) == 3
    assert predict(tmp_path / "data/val", *options, "--sheet", tmp_path / "sheets") == 2
    assert extract(tmp_path / "data/val", *options, "--out", tmp_path / "windows") == 2
    assert extract(tmp_path / "data/val", *options, "--out", tmp_path / "f", "--per-video") == 0
    assert len([*(tmp_path / "f").rglob("*.npy")]) == 3


def test_a_terminal_that_lacks_characters_shows_others(trained, videos, tmp_path, monkeypatch):
    shown, path = io.BytesIO(), tmp_path / os.fsdecode("\u89c6 ".encode() + b"\xe9.mp4")
    path.write_bytes((videos / "val_0.mp4").read_bytes())
    monkeypatch.setattr("sys.stdout", io.TextIOWrapper(shown, encoding="latin-1", write_through=True))
    assert predict(path, "--weights", trained, "--top", 1) == 0
    assert shown.getvalue().splitlines()[-2].endswith(b"/? ?.mp4")


def test_unreadable_files_are_listed_and_the_others_predicted(trained, videos, tmp_path, capsys):
    broken = tmp_path / "broken.mp4"
    broken.write_text("no video")
    assert predict(broken, videos / "val_0.mp4", "--weights", trained, "--json", tmp_path / "a.json") == 1
    found = json.loads((tmp_path / "a.json").read_text())
    assert "error" in found[0] and len(found[1]["top"]) == 5
    assert str(broken) in capsys.readouterr().err


def test_pictures_of_several_videos_are_in_a_folder(trained, videos, tmp_path):
    paths = [videos / "val_0.mp4", videos / "val_1.mp4"]
    assert predict(*paths, "--weights", trained, "--sheet", tmp_path / "s", "--video", tmp_path / "v") == 0
    for path in paths:
        with Image.open(tmp_path / "s" / f"{path.stem}.png") as sheet:
            assert sheet.width > 300 and sheet.height > 300
        with av.open(str(tmp_path / "v" / f"{path.stem}.mp4")) as made, av.open(str(path)) as given:
            assert sum(1 for _ in made.decode(video=0)) == sum(1 for _ in given.decode(video=0))


def test_windows_become_segments_a_time_line_and_a_video_with_sound(trained, sounding, tmp_path):
    out = [tmp_path / name for name in ("seg.json", "over.mp4")]
    options = ["--window", 1, "--segments", out[0], "--video", out[1]]
    assert predict(sounding, "--weights", trained, *options) == 0
    found = json.loads(out[0].read_text())
    assert (found["window"], found["stride"]) == (1, 0.25)
    (video,) = found["videos"]
    parts = video["segments"]
    assert video["seconds"] == pytest.approx(2, abs=0.05)
    assert parts[0]["begin"] == 0 and parts[-1]["end"] == video["seconds"]
    assert all(a["end"] == b["begin"] and a["index"] != b["index"] for a, b in pairwise(parts))
    with Image.open(tmp_path / "seg.png") as picture:
        assert picture.width > 800
    with av.open(str(out[1])) as made:
        assert made.streams.video[0].frames == 48 and made.streams.video[0].height > 360
        assert sum(1 for packet in made.demux(audio=0) if packet.size) > 25


def test_a_stride_below_a_frame_is_one_frame(trained, write_video, tmp_path):
    path = write_video(tmp_path / "a.mp4", frames=4)
    options = ["--window", 0.05, "--segments", tmp_path / "a.json"]
    assert predict(path, "--weights", trained, *options) == 0
    assert json.loads((tmp_path / "a.json").read_text())["videos"][0]["segments"][0]["begin"] == 0


def test_sound_is_in_time_with_a_video_whose_times_start_late(trained, sounding, tmp_path):
    late, out = tmp_path / "late.ts", tmp_path / "over.mp4"
    with av.open(str(sounding)) as source, av.open(str(late), "w") as target:
        streams = {stream.index: target.add_stream_from_template(stream) for stream in source.streams}
        for packet in source.demux():
            if packet.pts is not None and packet.dts is not None:
                shift = round(2 / packet.time_base)
                packet.pts, packet.dts = packet.pts + shift, packet.dts + shift
                packet.stream = streams[packet.stream.index]
                target.mux(packet)
    assert predict(late, "--weights", trained, "--video", out) == 0
    starts = []
    for path in (late, out):
        with av.open(str(path)) as made:
            starts += [float(stream.start_time * stream.time_base) for stream in made.streams]
    assert starts[0] > 1 and starts[2] == 0 and starts[3] == pytest.approx(starts[1] - starts[0], abs=0.07)


def test_frames_with_the_same_time_are_written(trained, tmp_path):
    assert predict(PACKED, "--weights", trained, "--video", tmp_path / "over.mp4") == 0
    with av.open(str(tmp_path / "over.mp4")) as made:
        assert sum(1 for _ in made.decode(video=0)) == 28


@pytest.mark.slow
def test_processes_give_the_scores_of_one(trained, videos, tmp_path):
    paths = [videos / f"val_{i}.mp4" for i in range(5)]
    assert predict(*paths, "--weights", trained, "--json", tmp_path / "1.json") == 0
    assert predict(*paths, "--weights", trained, "--json", tmp_path / "2.json", "--processes", 2) == 0
    assert (tmp_path / "1.json").read_text() == (tmp_path / "2.json").read_text()


def test_files_folders_patterns_and_lists_name_videos(videos, tmp_path, monkeypatch):
    for name in ("a/1.mp4", "a/b/2.webm", "c/3.mp4", "d e/4.mp4", "frames/img_00001.jpg"):
        (tmp_path / name).parent.mkdir(parents=True, exist_ok=True)
        (tmp_path / name).touch()
    (tmp_path / "a/._1.mp4").touch()  # what macOS writes beside a file
    (tmp_path / "list.csv").write_text("a/1.mp4,3\nd e/4.mp4,2\nmissing.mp4,1\n")
    (tmp_path / "several.csv").write_text('a/1.mp4 3,17\nd e/4.mp4 "2"\na/1.mp4,"3,17"\nd e/4.mp4,""\n')
    (tmp_path / "list.txt").write_text("a/1.mp4 3\n")
    (tmp_path / "lost.csv").write_text('b, c/1 2.mp4 3\nb/1.mp4,3\nb/2.mp4 3,17\n"b/3.mp4","3,17"\nb/4.mp4\n')
    monkeypatch.chdir(tmp_path)
    assert find_videos(["lost.csv"]) == ["b, c/1 2.mp4", *(f"b/{n}.mp4" for n in range(1, 5))]
    assert find_videos(["a"]) == ["a/1.mp4", "a/b/2.webm"]
    assert find_videos(["*/*.mp4", "a/1.mp4"]) == ["a/1.mp4", "c/3.mp4", "d e/4.mp4"]
    assert find_videos(["several.csv"]) == ["a/1.mp4", "d e/4.mp4"]
    assert find_videos(["list.csv"]) == ["a/1.mp4", "d e/4.mp4", "missing.mp4"]
    assert find_videos(["list.txt", "frames"]) == ["a/1.mp4", "frames"]
    monkeypatch.chdir("/")
    assert find_videos([str(tmp_path / "list.txt")]) == [str(tmp_path / "a/1.mp4")]


@pytest.mark.parametrize("absolute", [True, False])
def test_a_list_of_prepare_data_needs_no_further_option(tmp_path, monkeypatch, absolute):
    made, out = make_classes(tmp_path / "films, new/\u00fc", 9), tmp_path / "lists"
    recipe = tmp_path / "repository/exp/finetune/config.yaml"
    write_lists(lists_from_folders(made), out, made, DATASETS["own"], recipe=recipe)
    if not absolute:
        text = (out / "data.yaml").read_text()
        (out / "data.yaml").write_text(text.replace(str(tmp_path), "."))
    monkeypatch.chdir(tmp_path)
    prefix = made if absolute else "./films, new/\u00fc"
    train = read_list(out / "train.csv", prefix=str(prefix))
    expected = [sample.path for sample in train]
    assert all(map(os.path.isfile, expected)) and len(expected) > 9
    assert find_videos(["lists/train.csv"]) == expected
    os.remove(expected[0])
    assert find_videos(["lists/train.csv"]) == expected


@pytest.mark.parametrize("text", ["names: [a]\n", "DATA: x\n", "DATA: {PATH_PREFIX: 3}\n", "[", "\0", ""])
def test_a_file_of_the_same_name_may_belong_to_another_program(tmp_path, text):
    for name, content in (("data.yaml", text), ("1.mp4", ""), ("list.txt", "1.mp4 0\n2, 3.mp4 1\n")):
        (tmp_path / name).write_text(content)
    assert find_videos([str(tmp_path / "list.txt")]) == [str(tmp_path / name) for name in ("1.mp4", "2, 3.mp4")]
