"""The benchmark compares three ways to load the same clips."""

import json
import sys
from pathlib import Path

import av
import loading
import numpy as np
import pytest
import torch
from footage import make_videos, write_video
from loading import benchmark
from plain_loader import Decode, Plain

from slowfast.datasets.dataset import TrainDataset, VideoEvalDataset, VideoReader
from slowfast.datasets.lists import VideoList
from slowfast.datasets.rand_augment import RandAugment
from slowfast.datasets.reader import read_frames
from slowfast.datasets.sampling import DenseSampler
from slowfast.datasets.transforms import RandomErasing, TrainTransform, normalize
from slowfast.datasets.views import Views

MEAN, STD = [0.45] * 3, [0.225] * 3
ROOT = Path(__file__).parents[2]


@pytest.fixture(scope="module")
def videos(tmp_path_factory: pytest.TempPathFactory) -> list[str]:
    pytest.importorskip("decord")
    folder = tmp_path_factory.mktemp("videos")
    for seed in range(2):
        write_video(folder / f"{seed}.mp4", seed, seconds=2, height=64, width=86, key_frames=30)
    return [str(folder / f"{seed}.mp4") for seed in range(2)]


READER = VideoReader(DenseSampler(4, 3, 3))


def training(videos: list[str], transform: TrainTransform) -> TrainDataset:
    return TrainDataset(VideoList(videos, [3, 1]), READER, transform, num_copies=2, seed=5)


def evaluation(videos: list[str], *, crop: int = 48) -> VideoEvalDataset:
    return VideoEvalDataset(VideoList(videos, [3, 1]), READER, num_crops=3, scale=crop, crop=crop)


def test_plain_test_has_the_same_views(videos):
    for dataset in (evaluation(videos), evaluation(videos, crop=64)):
        ours = normalize(dataset[(0, 1)]["video"].cut(), MEAN, STD)
        item = Plain(dataset, MEAN, STD)[(0, 1)]
        torch.testing.assert_close(torch.stack(item["video"]), ours, atol=1e-5, rtol=0)
        assert item["label"] == [1] * 9


@pytest.mark.parametrize("ranges", [((0.2, 1.0), (0.75, 1.3333)), (None, None)])
def test_the_plain_training_has_the_same_frames_operations_and_boxes(videos, ranges):
    transform = TrainTransform(48, (56, 80), *ranges, rand_augment=RandAugment.parse("rand-m7-n4-mstd0.5-inc1"))
    dataset = training(videos, transform)
    plain = Plain(dataset, MEAN, STD)
    differences = []
    for epoch in range(12):
        ours, theirs = dataset[(epoch, 0)]["video"], torch.stack(plain[(epoch, 0)]["video"])
        assert theirs.shape == (2, 3, 4, 48, 48) and theirs.dtype == torch.float32
        differences += [(a - b).abs().mean().item() for a, b in zip(normalize(ours, MEAN, STD), theirs, strict=True)]
    assert np.median(differences) < 0.03 and max(differences) < 0.3  # a standard deviation is 1


def test_the_plain_training_erases_with_noise(videos):
    dataset = training(videos, TrainTransform(48, (48, 48), flip=False, erase=RandomErasing(1.0)))
    without = training(videos, TrainTransform(48, (48, 48), flip=False))
    erased, whole = (Plain(data, MEAN, STD)[(0, 0)]["video"] for data in (dataset, without))
    for clip, other in zip(erased, whole, strict=True):
        changed = (clip != other).any(0)
        assert (changed == changed[0]).all() and 0.01 < changed.float().mean() < 0.4


def test_decode_reads_only_the_frames_of_all_clips(videos):
    assert Decode(training(videos, TrainTransform(48, (48, 48))))[(0, 0)] == 4
    assert Decode(evaluation(videos))[(0, 0)] == 12


@pytest.mark.slow
def test_result_contains_times_and_ratios(videos):
    sizes = []

    def to_device(views: Views) -> None:
        sizes.append(len(views.cut()))

    result = benchmark(evaluation(videos), MEAN, STD, to_device, batch_size=1, videos=3, rounds=2, workers=2)
    assert set(sizes) == {9}
    for clock in ("cpu", "wall"):
        assert set(result[clock]) == {"decode", "ours", "plain", "ours_to_decode", "plain_to_ours"}
        assert all(np.isfinite(value) for value in result[clock].values())
    assert result["cpu"]["plain"] > 0 and result["complete"] >= result["device"] > 0
    assert result["plain_to_complete"] > 0


@pytest.mark.slow
def test_made_videos_are_ten_seconds_of_340x256(forks, tmp_path):
    listed = make_videos(tmp_path / "made", 1, 30)
    path, label = listed.read_text().strip().split(",")
    assert label == "0"
    lengths: list[int] = []
    frames = read_frames(path, lambda length: lengths.append(length) or [0, 150, 299])
    assert lengths == [300] and frames.shape == (3, 256, 340, 3)
    assert 100 < Path(path).stat().st_size * 8 / 10 / 1000 < 1000  # kbit/s
    with av.open(path) as container:
        keys = [number for number, packet in enumerate(container.demux(video=0)) if packet.is_keyframe]
    assert keys == list(range(0, 300, 30))
    assert np.abs(np.diff(frames.astype(float), axis=0)).mean() > 10  # things move
    before = Path(path).stat().st_mtime_ns
    make_videos(tmp_path / "made", 1, 30)
    assert Path(path).stat().st_mtime_ns == before


def test_the_command_prints_and_writes_figures(videos, tmp_path, capsys):
    listed = tmp_path / "mine.csv"
    listed.write_text("".join(f"{path},0\n" for path in videos))
    record = tmp_path / "record.json"
    options = "--videos 2 --rounds 1 --workers 1 --batch 2 DATA.TRAIN_CROP_SIZE 32 DATA.TEST_CROP_SIZE 32 "
    options += "DATA.TRAIN_JITTER_SCALES [32,40] TEST.NUM_ENSEMBLE_VIEWS 2 TEST.NUM_SPATIAL_CROPS 3"
    config = str(ROOT / "exp/uniformer_s16x4_k400/config.yaml")
    code = loading.main(["--cfg", config, "--list", str(listed), "--json", str(record), *options.split()])
    out, error = capsys.readouterr()
    assert code == 0, error
    assert "train: 2 clips" in out and "test: 6 clips" in out and "torch" in out
    written = json.loads(record.read_text())
    assert written["test"]["results"][0]["cpu"]["plain"] > 0 and written["machine"]["CPU"]


def test_without_decord_the_command_exits_with_code_2(tmp_path, monkeypatch, capsys):
    write_video(tmp_path / "a.mp4", 0, seconds=1, height=64, width=86, key_frames=30)
    (tmp_path / "mine.csv").write_text(f"{tmp_path / 'a.mp4'},0\n")
    monkeypatch.setitem(sys.modules, "decord", None)
    config = str(ROOT / "exp/uniformer_s16x4_k400/config.yaml")
    assert loading.main(["--cfg", config, "--list", str(tmp_path / "mine.csv"), "--videos", "1", "--rounds", "1"]) == 2
    assert "decord" in capsys.readouterr().err


@pytest.mark.parametrize(
    ("argument", "message"),
    [
        (["--rounds", "0"], "at least 1"),
        (["--list", "nowhere.csv"], "nowhere.csv"),
        (["MODEL.MODEL_NAME", "Uniformer_image", "TRAIN.DATASET", "imagenet", "TEST.DATASET", "imagenet"], "imagenet"),
        ([], "PATH_TO_DATA_DIR"),
    ],
)
def test_wrong_arguments_exit_with_code_2(argument, message, capsys):
    config = str(ROOT / "exp/uniformer_s16x4_k400/config.yaml")
    assert loading.main(["--cfg", config, *argument]) == 2
    assert message in capsys.readouterr().err
