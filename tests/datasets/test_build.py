"""Test the loaders of training, validation and test that are built from a configuration."""

import itertools
import json
import logging
import os
import re
from typing import Any, get_args

import numpy as np
import pytest
import torch

from slowfast.config import get_cfg
from slowfast.datasets import workers
from slowfast.datasets.batches import REPEATED, EpochBatchSampler
from slowfast.datasets.build import Split, build_dataset, build_loader
from slowfast.datasets.catalog import CATALOG
from slowfast.datasets.dataset import TrainDataset, VideoEvalDataset
from slowfast.datasets.lists import ListError
from slowfast.datasets.rand_augment import RandAugment
from slowfast.datasets.sampling import DenseSampler, SparseSampler
from slowfast.datasets.transforms import RandomErasing, TrainTransform


@pytest.fixture(scope="module")
def data(tmp_path_factory, write_video):
    """Make ten small videos and Kinetics-like lists of them: 10 rows for training, 5 for validation, 3 for the test."""
    folder = tmp_path_factory.mktemp("data")
    for number in range(10):
        write_video(folder / "videos" / f"{number}.mp4", frames=20 + number)
    for split, rows in (("train", 10), ("val", 5), ("test", 3)):
        (folder / f"{split}.csv").write_text("".join(f"{number}.mp4 {number % 4}\n" for number in range(rows)))
    return folder


@pytest.fixture
def make_cfg(data):
    def make(*overrides):
        cfg = get_cfg()
        cfg.merge_from_list(
            [
                *("TRAIN.DATASET", "kinetics_sparse", "TEST.DATASET", "kinetics_sparse", "MODEL.NUM_CLASSES", 4),
                *("DATA.PATH_TO_DATA_DIR", str(data), "DATA.PATH_PREFIX", str(data / "videos")),
                *("DATA.NUM_FRAMES", 4, "DATA.TRAIN_CROP_SIZE", 32, "DATA.TEST_CROP_SIZE", 48),
                *("DATA.TRAIN_JITTER_SCALES", [40, 56], "TRAIN.BATCH_SIZE", 4, "DATA_LOADER.NUM_WORKERS", 0),
                *overrides,
            ]
        )
        cfg.freeze()
        return cfg

    return make


RECIPE = [
    *("AUG.ENABLE", True, "AUG.NUM_SAMPLE", 2, "AUG.AA_TYPE", "rand-m7-n4-mstd0.5-inc1"),
    *("DATA.TRAIN_JITTER_SCALES_RELATIVE", [0.08, 1.0], "DATA.TRAIN_JITTER_ASPECT_RELATIVE", [0.75, 1.3333]),
]


def epoch_of(sampler: EpochBatchSampler, epoch: int, batch: int = 0) -> list[list[tuple[int, int]]]:
    sampler.set_position(epoch, batch)
    return list(sampler)


def test_training_batches_cover_an_epoch_once_and_differ_between_epochs():
    sampler = EpochBatchSampler(23, 4, train=True, seed=5)
    first, second = epoch_of(sampler, 0), epoch_of(sampler, 1)
    assert len(first) == len(sampler) == 5 and all(len(batch) == 4 for batch in first)
    indices = [index for batch in first for _, index in batch]
    assert len(set(indices)) == 20 and set(indices) < set(range(23))
    assert {epoch for batch in second for epoch, _ in batch} == {1}
    assert indices != [index for batch in second for _, index in batch]
    assert epoch_of(EpochBatchSampler(23, 4, train=True, seed=5), 0) == first
    assert epoch_of(EpochBatchSampler(23, 4, train=True, seed=6), 0) != first


def test_training_resumes_inside_an_epoch():
    sampler = EpochBatchSampler(23, 4, train=True)
    assert epoch_of(sampler, 2, batch=3) == epoch_of(sampler, 2)[3:]
    assert len(sampler) == 5


def test_the_global_batch_does_not_depend_on_the_number_of_processes():
    whole = epoch_of(EpochBatchSampler(23, 6, train=True), 1)
    parts = [epoch_of(EpochBatchSampler(23, 2, train=True, rank=rank, world_size=3), 1) for rank in range(3)]
    assert [left + centre + right for left, centre, right in zip(*parts, strict=True)] == whole


LABELS = np.array([0] * 14 + [1] * 7 + [4] * 2)


def test_balanced_batches_have_all_classes_equally_often():
    sampler = EpochBatchSampler(23, 1, train=True, seed=5, balanced=LABELS)
    keys = [key for batch in epoch_of(sampler, 3) for key in batch]
    rows = np.array([index for _, index in keys])
    assert sorted(np.bincount(LABELS[rows])[[0, 1, 4]].tolist()) == [7, 8, 8]
    # no clip occurs twice: a repeated row has another coordinate
    assert len(set(keys)) == 23 and {epoch % REPEATED for epoch, _ in keys} == {3}
    counts = np.bincount(rows, minlength=23)
    assert counts[:14].max() == 1 and counts[14:21].min() == 1 and counts[21:].min() >= 3
    assert epoch_of(EpochBatchSampler(23, 1, train=True, seed=5, balanced=LABELS), 3) == [[key] for key in keys]
    assert epoch_of(sampler, 4) != [[key] for key in keys]


def test_balanced_batches_do_not_depend_on_processes_and_resume():
    whole = epoch_of(EpochBatchSampler(23, 6, train=True, balanced=LABELS), 1)
    options = {"train": True, "world_size": 3, "balanced": LABELS}
    parts = [epoch_of(EpochBatchSampler(23, 2, rank=rank, **options), 1) for rank in range(3)]
    assert [[*itertools.chain(*batches)] for batches in zip(*parts, strict=True)] == whole
    assert epoch_of(EpochBatchSampler(23, 6, train=True, balanced=LABELS), 1, 2) == whole[2:]


def test_a_repeated_video_has_another_clip(make_cfg):
    cfg = make_cfg("DATA.BALANCE", True)
    loader: Any = build_loader(cfg, "train")
    assert loader.batch_sampler.balanced.tolist() == loader.dataset.samples.labels.tolist()
    first, again = (loader.dataset[(epoch, 0)]["video"] for epoch in (2, 2 + REPEATED))
    assert not torch.equal(first, again)
    evaluation: Any = build_loader(cfg, "val")
    assert evaluation.batch_sampler.balanced is None


def test_evaluation_reads_every_row_once():
    samplers = [EpochBatchSampler(11, 2, train=False, rank=rank, world_size=3) for rank in range(3)]
    batches = [list(sampler) for sampler in samplers]
    assert batches[1] == [[(0, 1), (0, 4)], [(0, 7), (0, 10)]]
    assert [len(sampler) for sampler in samplers] == [len(part) for part in batches] == [2, 2, 2]
    assert sorted(index for part in batches for batch in part for _, index in batch) == list(range(11))
    assert len(EpochBatchSampler(1, 2, train=False, rank=1, world_size=2)) == 0


def test_a_training_without_a_whole_batch_is_refused():
    assert len(EpochBatchSampler(6, 2, train=True, world_size=3)) == 1
    with pytest.raises(ValueError, match="batch_size"):
        EpochBatchSampler(5, 2, train=True, world_size=3)


def test_a_list_shorter_than_a_batch_is_refused(make_cfg):
    with pytest.raises(ValueError, match=r"\b10\b.*\b16\b.*TRAIN\.BATCH_SIZE"):
        build_loader(make_cfg("TRAIN.BATCH_SIZE", 16), "train")


def test_training_batches_count_videos_and_hold_their_copies(make_cfg):
    loader = build_loader(make_cfg(*RECIPE), "train")
    batches = list(loader)
    assert len(batches) == len(loader) == 2
    for batch in batches:
        assert batch["video"].shape == (8, 3, 4, 32, 32) and batch["video"].dtype == torch.uint8
        assert batch["index"][::2].tolist() == batch["index"][1::2].tolist()
        assert batch["view"].tolist() == [0, 1] * 4
        assert (batch["label"] == batch["index"] % 4).all() and batch["bad"] == []


@pytest.mark.parametrize(("context", "workers"), [("fork", 2), pytest.param("spawn", 1, marks=pytest.mark.slow)])
def test_batches_do_not_depend_on_workers(make_cfg, context, workers):
    cfg = make_cfg(*RECIPE, "TRAIN.BATCH_SIZE", 2)
    here = list(build_loader(cfg, "train"))
    loader = build_loader(make_cfg(*RECIPE, "TRAIN.BATCH_SIZE", 2, "DATA_LOADER.NUM_WORKERS", workers), "train")
    loader.multiprocessing_context = context
    for expected, batch in zip(here, loader, strict=True):
        assert torch.equal(expected["video"], batch["video"]) and torch.equal(expected["index"], batch["index"])
    sampler = loader.batch_sampler
    assert isinstance(sampler, EpochBatchSampler)
    sampler.set_position(1, 4)  # the same processes continue at another position
    (last,) = loader
    assert last["index"].tolist() == [i for _, i in epoch_of(sampler, 1)[4] for _ in range(2)]


def test_more_workers_than_cores_are_logged_once_with_their_number(make_cfg, caplog, monkeypatch):
    monkeypatch.setattr(os, "sched_getaffinity", lambda _: {0, 1, 2}, raising=False)
    workers.warn_of_few_cores.cache_clear()
    monkeypatch.setattr(logging.getLogger("slowfast"), "propagate", True)
    for split in get_args(Split):
        build_loader(make_cfg("DATA_LOADER.NUM_WORKERS", 2), split, local_world_size=1)
    build_loader(make_cfg("DATA_LOADER.NUM_WORKERS", 1), "train", local_world_size=4)  # fewer are not possible
    assert not caplog.messages
    for split in ("train", "val"):
        build_loader(make_cfg("DATA_LOADER.NUM_WORKERS", 2), split, local_world_size=2)
    assert len(caplog.messages) == 1 and "DATA_LOADER.NUM_WORKERS to 1," in caplog.messages[0]


def test_a_loader_leaves_the_global_random_state_alone(make_cfg):
    torch.manual_seed(0)
    state = torch.get_rng_state()
    next(iter(build_loader(make_cfg(*RECIPE), "train")))
    assert torch.equal(torch.get_rng_state(), state)


def test_world_size_does_not_change_the_clips(make_cfg):
    cfg = make_cfg(*RECIPE)
    whole = list(build_loader(cfg, "train"))
    parts = [list(build_loader(cfg, "train", rank=r, world_size=2, local_world_size=2)) for r in range(2)]
    for batch, left, right in zip(whole, *parts, strict=True):
        assert torch.equal(batch["video"], torch.cat([left["video"], right["video"]]))
    with pytest.raises(ValueError, match=r"TRAIN\.BATCH_SIZE 4 .*\b3\b"):
        build_loader(cfg, "train", world_size=3, local_world_size=3)


def test_validation_is_the_test_with_one_view_and_one_crop(make_cfg):
    (batch, last) = build_loader(make_cfg("TEST.NUM_ENSEMBLE_VIEWS", 4), "val")
    assert batch["index"].tolist() == [0, 1, 2, 3] and last["index"].tolist() == [4]
    cfg = make_cfg("TEST.NUM_ENSEMBLE_VIEWS", 1, "TEST.NUM_SPATIAL_CROPS", 1)
    tested = next(iter(build_loader(cfg, "test")))
    clips = ([*itertools.islice(b["video"].cut(), 3)] for b in (batch, tested))
    assert all(torch.equal(a, b) for a, b in zip(*clips, strict=True))


@pytest.mark.parametrize(("clips", "processes", "sizes"), [(24, 1, [2, 1]), (1, 1, [1, 1, 1]), (64, 2, [2, 1])])
def test_test_batches_count_clips(make_cfg, clips, processes, sizes):
    cfg = make_cfg("TEST.BATCH_SIZE", clips, "TEST.NUM_ENSEMBLE_VIEWS", 4, "TEST.NUM_SPATIAL_CROPS", 3)
    loader = build_loader(cfg, "test", local_world_size=processes)
    batches = list(loader)
    assert [len([*batch["video"].cut()]) for batch in batches] == [12 * size for size in sizes]
    assert [len(batch["label"]) for batch in batches] == [12 * size for size in sizes]
    assert batches[-1]["view"].tolist()[-12:] == list(range(12))


def test_missing_files_are_reported_by_rank_0_unless_switched_off(make_cfg, data):
    wrong = ["DATA.PATH_PREFIX", str(data)]
    with pytest.raises(ListError, match="10 of 10 videos"):
        build_loader(make_cfg(*wrong), "train")
    assert len(build_loader(make_cfg(*wrong), "train", rank=1, world_size=2)) == 1
    assert len(build_loader(make_cfg(*wrong, "DATA.CHECK_FILES", False), "train")) == 2


def test_no_key_is_named_for_an_argument_in_the_path_of_a_frame_folder(make_cfg, tmp_path):
    folder = tmp_path / "prefix"
    folder.mkdir()
    (folder / "train.csv").write_text("0 100 0\n" * 4)
    (folder / "0").mkdir()
    (folder / "0/00001.jpg").touch()
    values = {"TRAIN.DATASET": "sth", "DATA.LABEL_PATH_TEMPLATE": "{}.csv", "DATA.IMAGE_TEMPLATE": "{:05d}.jpg"}
    folders = {key: str(folder) for key in ("DATA.PATH_TO_DATA_DIR", "DATA.PATH_PREFIX")}
    with pytest.raises(ListError, match="names 100, and 1 exist") as error:
        build_loader(make_cfg(*itertools.chain(*(values | folders).items())), "train")
    assert "DATA." not in str(error.value)


def test_broken_test_videos_are_named_and_have_no_clips(make_cfg, data):
    wrong = ["DATA.PATH_PREFIX", str(data), "DATA.CHECK_FILES", False, "DATA_LOADER.NUM_WORKERS", 1]
    batch = next(iter(build_loader(make_cfg(*wrong), "test")))
    assert batch["video"].frames == [] and len(batch["label"]) == 0 and len(batch["bad"]) == 1
    path, reason = batch["bad"][0]
    assert path.endswith("0.mp4") and "no such file" in reason


def test_augmentation_follows_the_configuration(make_cfg):
    def training(*overrides) -> tuple[TrainTransform, int]:
        dataset = build_dataset(make_cfg(*overrides), "train")
        assert isinstance(dataset, TrainDataset) and isinstance(dataset.transform, TrainTransform)
        return dataset.transform, dataset.num_copies

    transform, copies = training(*RECIPE, "AUG.RE_COUNT", 2, "DATA.RANDOM_FLIP", False)
    assert copies == 2
    assert transform.rand_augment == RandAugment(7, 4, 0.5, True, "bicubic")
    assert transform.erase == RandomErasing(0.25, "pixel", 2)
    assert transform.area_range == (0.08, 1.0) and transform.flip is False
    plain, copies = training("AUG.NUM_SAMPLE", 2)
    assert plain.rand_augment is plain.erase is plain.area_range is None and copies == 1
    bare, copies = training(*RECIPE, "AUG.AA_TYPE", "", "AUG.RE_PROB", 0.0)
    assert bare.rand_augment is bare.erase is None and copies == 2


@pytest.mark.parametrize(
    ("overrides", "key"),
    [
        (("AUG.ENABLE", True, "AUG.AA_TYPE", "rand-m11"), "AUG.AA_TYPE"),
        (("DATA.TRAIN_JITTER_SCALES", [24, 56]), "DATA.TRAIN_JITTER_SCALES"),
    ],
)
def test_a_wrong_augmentation_names_its_key(make_cfg, overrides, key):
    with pytest.raises(ValueError, match=re.escape(key)):
        build_dataset(make_cfg(*overrides), "train")


def scale_of(cfg) -> int:
    dataset = build_dataset(cfg, "test")
    assert isinstance(dataset, VideoEvalDataset)
    return dataset.scale


@pytest.mark.parametrize(
    ("name", "crops", "scale"),
    [("kinetics", 1, 64), ("kinetics", 3, 48), ("kinetics_sparse", 1, 48), ("mit", 1, 48)],
)
def test_test_frames_are_resized_to_the_short_side(make_cfg, name, crops, scale):
    cfg = make_cfg("TEST.DATASET", name, "TEST.NUM_SPATIAL_CROPS", crops, "DATA.TRAIN_JITTER_SCALES", [64, 80])
    dataset = build_dataset(cfg, "test")
    assert isinstance(dataset, VideoEvalDataset)
    assert (dataset.scale, dataset.crop, dataset.num_crops) == (scale, 48, crops)
    assert type(dataset.reader.sampler) is (DenseSampler if name == "kinetics" else SparseSampler)
    assert scale_of(make_cfg("TEST.DATASET", name, "TEST.NUM_SPATIAL_CROPS", 1)) == 48
    cfg.defrost()
    cfg.MODEL.ARCH = "uniformerv2"  # its official code always resizes to the crop
    assert scale_of(cfg) == 48


def test_frame_folder_sets_name_their_lists_by_the_template(make_cfg, tmp_path, write_folder):
    write_folder(tmp_path / "f" / "clip", frames=9, template="{:05d}.jpg")
    for split in ("train", "val"):
        (tmp_path / f"somesomev1_rgb_{split}_split.txt").write_text("clip 9 2\n")
    folders = ["DATA.PATH_TO_DATA_DIR", str(tmp_path), "DATA.PATH_PREFIX", str(tmp_path / "f")]
    for name in ("sth", "hmdb"):
        cfg = make_cfg(*folders, "TRAIN.DATASET", name, "TEST.DATASET", name, "DATA.PATH_LABEL_SEPARATOR", ",")
        dataset = build_dataset(cfg, "test")  # reads the val list
        assert isinstance(dataset, VideoEvalDataset) and dataset.reader.colors == "BGR"
        assert dataset.samples[0].num_frames == 9
        clips = [*dataset[(0, 0)]["video"].cut()]
        assert len(clips) == 30 and clips[0].shape == (3, 4, 48, 48)
        assert build_dataset(cfg, "train")[(0, 0)]["label"].tolist() == [2]


def test_the_official_something_something_files_are_read(make_cfg, tmp_path):
    for name, entries in (("train", ["1", "2"]), ("validation", ["3"])):
        content = [{"id": entry, "template": "Holding [something]"} for entry in entries]
        (tmp_path / f"something-something-v2-{name}.json").write_text(json.dumps(content))
    labels = {"Lifting something": "1", "Holding something": "3", "Moving something": "0", "Turning something": "2"}
    (tmp_path / "something-something-v2-labels.json").write_text(json.dumps(labels))
    options = (
        *("DATA.PATH_TO_DATA_DIR", str(tmp_path), "DATA.LABEL_PATH_TEMPLATE", "something-something-v2-{}.json"),
        *("TRAIN.DATASET", "sth", "TEST.DATASET", "sth"),
    )
    cfg = make_cfg(*options, "MODEL.NUM_CLASSES", 4)
    training, validation, test = (build_dataset(cfg, split) for split in get_args(Split))
    assert (len(training), len(validation), len(test)) == (2, 1, 1)
    assert training.samples.labels.tolist() == [3, 3] and training.samples.class_names
    assert training.samples.class_names[3] == "Holding something"
    with pytest.raises(ListError, match=r"labels\.json .*400.*MODEL\.NUM_CLASSES"):
        build_dataset(make_cfg(*options, "MODEL.NUM_CLASSES", 400), "train")


def test_official_frame_lists_with_validation_in_their_name_are_found(make_cfg, tmp_path):
    """The lists are those of the official folder sthv2: train, validation and test; the test list has no classes."""
    for split, rows in (("train", "1 9 2\n2 9 0\n"), ("validation", "3 9 1\n"), ("test", "4 9 0\n5 9 0\n")):
        (tmp_path / f"somesomev2_rgb_{split}_split.txt").write_text(rows)
    options = ("DATA.PATH_TO_DATA_DIR", str(tmp_path), "TRAIN.DATASET", "sth", "TEST.DATASET", "sth")
    cfg = make_cfg(
        *options, "DATA.LABEL_PATH_TEMPLATE", "somesomev2_rgb_{}_split.txt", "DATA.PATH_LABEL_SEPARATOR", ","
    )
    assert [len(build_dataset(cfg, split)) for split in get_args(Split)] == [2, 1, 1]
    (tmp_path / "somesomev2_rgb_val_split.txt").write_text("3 9 1\n2 9 1\n")
    assert len(build_dataset(cfg, "val")) == 2
    wrong = make_cfg(*options, "DATA.LABEL_PATH_TEMPLATE", "somesomev1_rgb_{}_split.txt")
    for split in get_args(Split):
        with pytest.raises(ListError, match=r"somesomev2_rgb_train_split.*DATA\.LABEL_PATH_TEMPLATE$"):
            build_dataset(wrong, split)


def test_a_missing_list_names_a_key_that_has_an_effect(make_cfg, tmp_path):
    (tmp_path / "train.csv").write_text("1.mp4 2\n")
    cfg = make_cfg("DATA.PATH_TO_DATA_DIR", str(tmp_path))
    with pytest.raises(ListError, match=r"val\.csv .* train\.csv.*DATA\.PATH_TO_DATA_DIR(?!.*TEMPLATE)"):
        build_dataset(cfg, "val")
    with pytest.raises(ListError, match=r"gone.* does not exist.*DATA\.PATH_TO_DATA_DIR"):
        build_dataset(make_cfg("DATA.PATH_TO_DATA_DIR", str(tmp_path / "gone")), "train")
    with pytest.raises(ListError, match=r"test\.csv .*TEST\.ENABLE False"):
        build_dataset(cfg, "test")
    with pytest.raises(ListError, match=r"test\.csv (?!.*TEST\.ENABLE)"):
        build_dataset(make_cfg("DATA.PATH_TO_DATA_DIR", str(tmp_path), "TRAIN.ENABLE", "False"), "test")


def test_annotated_segments_are_read(make_cfg, tmp_path, data):
    (tmp_path / "train.csv").write_text("5.mp4 1.0 0.25 0.5 1\n")
    cfg = make_cfg("TRAIN.DATASET", "anet", "DATA.PATH_TO_DATA_DIR", str(tmp_path))
    assert build_dataset(cfg, "train").samples[0].segment == (1.0, 0.25, 0.5)


def test_every_row_of_the_catalog_is_complete():
    for spec in CATALOG.values():
        assert spec.about and spec.columns[0] == "path" and "label" in spec.columns
        assert (spec.list_file is None) == ("num_frames" in spec.columns)
