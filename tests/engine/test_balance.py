"""A training on classes of unequal size resumes exactly, with balanced batches or with weights of the classes."""

from __future__ import annotations

import shutil

import pytest
from run_fixtures import losses

pytestmark = pytest.mark.slow


@pytest.mark.parametrize("option", [("DATA.BALANCE", True), ("MODEL.CLASS_WEIGHTS", "balanced")])
def test_a_balanced_training_resumes_exactly(experiment, videos, run_net, tmp_path, option):
    lists = tmp_path / "lists"
    lists.mkdir()
    for name in ("val.csv", "class_names.txt"):
        shutil.copy(videos / name, lists)
    (lists / "train.csv").write_text("".join(f"train_{i}.mp4 {max(0, i - 16)}\n" for i in range(24)))
    options = (*option, "DATA.PATH_TO_DATA_DIR", lists, "TEST.ENABLE", False)

    for output, steps in (("whole", 0), ("parts", 9), ("parts", 0)):
        run_net(experiment, *options, "OUTPUT_DIR", tmp_path / output, "TRAIN.MAX_STEPS", steps)
    run_net(experiment, *options[2:], "OUTPUT_DIR", tmp_path / "plain", "TRAIN.MAX_STEPS", 4)
    whole, parts, plain = (losses(tmp_path / name) for name in ("whole", "parts", "plain"))
    assert parts == whole and len(whole) == 12
    assert plain != whole[:4]
