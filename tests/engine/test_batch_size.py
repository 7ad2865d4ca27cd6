"""The largest batch that fits, found by measured steps."""

from __future__ import annotations

import re
from typing import Any

import pytest
from small_networks import configuration

from slowfast.engine.batch_size import Fit, Steps, describe, find_batch, fit
from slowfast.models.build import build_model

MIB = 2**20


def config(**options: Any) -> Any:
    values = {"NUM_GPUS": 0, "TRAIN.BATCH_SIZE": 8, "MODEL.NUM_CLASSES": 5, "OUTPUT_DIR": "/nowhere/to/write"}
    values |= {"DATA.NUM_FRAMES": 8, "DATA.TRAIN_CROP_SIZE": 64, "SOLVER.OPTIMIZING_METHOD": "adamw"}
    values |= {"UNIFORMER.DEPTH": [1, 1, 1, 1], "UNIFORMER.EMBED_DIM": [32, 32, 32, 32], "UNIFORMER.HEAD_DIM": 16}
    return configuration(values, {name.replace("__", "."): value for name, value in options.items()})


@pytest.mark.parametrize("verify", [False, True])
@pytest.mark.parametrize("limit", [99, 100, 119, 120, 180, 1000, 1019])
def test_the_largest_number_below_a_limit_is_found(limit, verify):
    assert fit(lambda videos: 80 + 20 * videos, limit, verify).videos == max(0, (limit - 80) // 20)


def test_the_number_is_lowered_until_its_steps_fit():
    def peak(videos: int) -> int | None:
        return None if videos > 30 else 100 + 10 * videos if videos < 20 else 10 * videos + 300

    found = fit(peak, 1000, verify=True)
    assert 28 <= found.videos <= 30 and found.needed(found.videos) == pytest.approx(300 + 10 * found.videos)
    assert fit(lambda videos: None if videos > 2 else 10, 1000, verify=True).videos == 2
    assert fit(lambda videos: None if videos > 1 else 10, 1000, verify=True).videos == 1
    assert fit(lambda videos: None, 1000, verify=True).videos == 0


def test_memory_for_no_video_is_an_error_with_a_cure():
    cfg = config()
    assert "TRAIN.BATCH_SIZE 3 " in describe(cfg, Fit(3, 30.0 * MIB, 5.0 * MIB, 100 * MIB))
    with pytest.raises(ValueError, match=r"MODEL\.USE_CHECKPOINT"):
        describe(cfg, fit(lambda videos: 30 * MIB * videos, 10 * MIB, False))


@pytest.mark.parametrize(
    ("videos", "options", "noted"),
    [
        (1, {}, True),
        (2, {}, False),
        (1, {"MODEL__FROZEN_BN": True}, False),
        (1, {"AUG__ENABLE": True, "AUG__NUM_SAMPLE": 2}, False),
        (1, {"NUM_PROCESSES": 2}, True),
    ],
)
def test_a_batch_of_one_clip_with_which_a_network_cannot_learn_is_noted(videos, options, noted):
    text = describe(config(**options), Fit(videos, 30.0 * MIB, 5.0 * MIB, 100 * MIB))
    assert ("MODEL.FROZEN_BN" in text) == noted


@pytest.mark.parametrize(
    ("videos", "options", "kept"),
    [
        (3, {}, [("2", "4")]),  # of 8 videos
        (7, {"SOLVER__ACCUMULATION_STEPS": 3}, [("6", "4")]),
        (3, {"TRAIN__BATCH_SIZE": 24, "NUM_PROCESSES": 2}, [("6", "4")]),
        (8, {}, []),  # the batch fits
        (1, {}, []),  # the network cannot learn from one clip
        (1, {"MODEL__FROZEN_BN": True}, [("1", "8")]),
    ],
)
def test_a_smaller_batch_comes_with_the_accumulation_that_keeps_the_videos_of_a_step(videos, options, kept):
    text = describe(config(**options), Fit(videos, 30.0 * MIB, 5.0 * MIB, (30 * videos + 20) * MIB))
    assert re.findall(r"TRAIN\.BATCH_SIZE (\d+) SOLVER\.ACCUMULATION_STEPS (\d+)", text) == kept


@pytest.mark.parametrize(("steps", "kept"), [(1, ("2", "4")), (2, ("4", "4"))])
def test_memory_of_gradients_is_left_free_for_an_accumulation_that_was_not_measured(steps, kept):
    cfg = config(SOLVER__ACCUMULATION_STEPS=steps)
    gradients = sum(value.nbytes for value in build_model(cfg).parameters())
    text = describe(cfg, Fit(4, 30.0 * MIB, 5.0 * MIB, 125 * MIB + gradients // 2))
    assert re.findall(r"TRAIN\.BATCH_SIZE (\d+) SOLVER\.ACCUMULATION_STEPS (\d+)", text) == [kept]


@pytest.mark.slow
def test_the_program_prints_the_batch_and_writes_nothing(experiment, call, tmp_path):
    larger = ("DATA.NUM_FRAMES", 8, "DATA.TRAIN_CROP_SIZE", 64, "UNIFORMER.EMBED_DIM", [32, 32, 32, 32])
    options = ("TRAIN.BATCH_SIZE", 6, "EMA.ENABLE", True, "SOLVER.ACCUMULATION_STEPS", 3, "AUG.ENABLE", True,
               "AUG.NUM_SAMPLE", 2, "NUM_PROCESSES", 2)  # fmt: skip
    done = call("tools/run_net.py", "--cfg", experiment, "--find-batch", *larger, *options)
    assert done.returncode == 0, done.stderr
    found, configured = map(int, re.findall(r"TRAIN\.BATCH_SIZE (\d+)", done.stdout))
    assert found > 6 == configured and found % 2 == 0 and not (tmp_path / "out").exists()
    per_clip, fixed, limit, needed = map(float, re.findall(r"([\d.-]+) GiB", done.stdout))
    assert 0 < per_clip < 0.1 < fixed < needed < limit < fixed + 1.2 * per_clip * (found + 2)


@pytest.mark.gpu
def test_on_a_gpu_more_memory_fits_more_videos_whose_steps_are_measured():
    cfg = config(NUM_GPUS=1)
    peaks = Steps(cfg)
    one, nine = peaks.peak(1), peaks.peak(9)
    assert one and nine and one < nine
    few, many = (find_batch(cfg, limit) for limit in (nine, 2 * nine))
    assert 7 <= few.videos <= 11 and few.videos < many.videos
    for found in (few, many):
        assert (peaks.peak(found.videos) or 0) <= found.limit * 1.02


def test_steps_of_a_multi_label_list_with_one_class_are_measured():
    options = {"DATA__MULTI_LABEL": True, "MODEL__NUM_CLASSES": 1, "MODEL__LOSS_FUNC": "bce", "MIXUP__ENABLE": True}
    assert (Steps(config(**options)).peak(2) or 0) > 0
