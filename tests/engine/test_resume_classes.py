"""A run resumes only if its labels still mean the same classes."""

from __future__ import annotations

from functools import partial
from pathlib import Path

import pytest
import run_net as program

from slowfast.config import get_cfg
from slowfast.run.checkpoint import checkpoint_dir
from slowfast.run.resume import _check_classes


def test_renamed_classes_are_not_resumed(experiment, videos, tmp_path, run_here):
    lists = tmp_path / "lists"
    lists.mkdir()
    for name in ("train.csv", "val.csv", "test.csv", "class_names.txt"):
        (lists / name).write_text((videos / name).read_text())

    run = partial(
        run_here, program, "--cfg", experiment, "DATA.PATH_TO_DATA_DIR", lists, "TEST.ENABLE", False, "TRAIN.MAX_STEPS"
    )
    assert run(1).returncode == 0
    names = (lists / "class_names.txt").read_text().split()
    (lists / "class_names.txt").write_text("\n".join([names[0], names[2], names[1], *names[3:]]) + "\n")
    kept = sorted(path.read_bytes() for path in Path(checkpoint_dir(str(tmp_path / "out"))).iterdir())
    done = run(2)
    message = done.stderr
    assert done.returncode == 2 and f"OUTPUT_DIR {tmp_path / 'out'}" in message
    assert repr(names[1]) in message and repr(names[2]) in message and "MODEL.HEAD_ROWS names" in message
    assert kept == sorted(path.read_bytes() for path in Path(checkpoint_dir(str(tmp_path / "out"))).iterdir())
    (lists / "class_names.txt").unlink()  # nothing to compare with
    assert run(2).returncode == 0


@pytest.mark.parametrize(
    ("before", "now", "words"),
    [
        (["a", "b"], ["a", "b", "c"], "class 2 is missing there and 'c' here"),
        (["a", "b"], ["a"], "class 1 is 'b' there and missing here"),
        (["a", "b"], ("a", "b"), ""),
        (None, ["a"], ""),
        (["a"], None, ""),
    ],
)
def test_the_first_difference_is_named(before, now, words):
    if words:
        with pytest.raises(ValueError, match=words):
            _check_classes(get_cfg(), before, now)
    else:
        _check_classes(get_cfg(), before, now)
