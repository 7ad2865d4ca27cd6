"""The largest batch that fits, found by measured steps."""

from __future__ import annotations

import re
from typing import Any

import pytest

from slowfast.config import get_cfg
from slowfast.engine.batch_size import Steps, describe, find_batch, fit

MIB = 2**20


def config(**options: Any) -> Any:
    cfg = get_cfg()
    values = {"NUM_GPUS": 0, "TRAIN.BATCH_SIZE": 8, "MODEL.NUM_CLASSES": 5, "OUTPUT_DIR": "/nowhere/to/write"}
    values |= {"DATA.NUM_FRAMES": 8, "DATA.TRAIN_CROP_SIZE": 64, "SOLVER.OPTIMIZING_METHOD": "adamw"}
    values |= {"UNIFORMER.DEPTH": [1, 1, 1, 1], "UNIFORMER.EMBED_DIM": [32, 32, 32, 32], "UNIFORMER.HEAD_DIM": 16}
    values |= {name.replace("__", "."): value for name, value in options.items()}
    cfg.merge_from_list([item for pair in values.items() for item in pair])
    return cfg


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


@pytest.mark.slow
def test_more_memory_fits_more_videos_and_the_estimate_holds():
    cfg = config(EMA__ENABLE=True, SOLVER__ACCUMULATION_STEPS=3)
    small = find_batch(cfg, 2000 * MIB)
    assert small.videos > 1 and 0 < small.fixed < 2000 * MIB
    assert small.needed(small.videos) <= 2000 * MIB < small.needed(small.videos + 1)
    limits = [small.fixed + small.per_video * videos for videos in (2.5, 10.5, 20.5)]
    found = [fit(lambda videos: int(small.needed(videos)), int(limit), False).videos for limit in limits]
    assert found == [2, 10, 20]
    assert str(small.videos) in describe(cfg, small)
    with pytest.raises(ValueError, match=r"MODEL\.USE_CHECKPOINT"):
        describe(cfg, fit(lambda videos: int(small.needed(videos)), 10 * MIB, False))


@pytest.mark.slow
def test_the_program_prints_the_batch_and_writes_nothing(experiment, call, tmp_path):
    arguments = ("--find-batch", "TRAIN.BATCH_SIZE", 6, "AUG.ENABLE", True, "AUG.NUM_SAMPLE", 2, "NUM_PROCESSES", 2)
    done = call("tools/run_net.py", "--cfg", experiment, *arguments)
    assert done.returncode == 0, done.stderr
    found, configured = map(int, re.findall(r"TRAIN\.BATCH_SIZE (\d+)", done.stdout))
    assert found > 6 == configured and found % 2 == 0 and not (tmp_path / "out").exists()


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
