"""The output folder: the files that a run writes, those that it keeps, and the comparison before a resume."""

from __future__ import annotations

import io
import pickle
import re
import tempfile
from pathlib import Path

import pytest
import torch

from slowfast.config import load_config
from slowfast.config.keys import KEYS
from slowfast.datasets.lists import VideoList
from slowfast.run.checkpoint import checkpoint_dir
from slowfast.run.resume import (
    check_resume,
    describe_run,
    prepare_output_dir,
    require_writable,
    warn_of_weights_only,
)

OWN = "resolved_config.yaml"


def cfg(folder: Path, *overrides: object):
    return load_config(None, ["OUTPUT_DIR", str(folder), "NUM_GPUS", "0", *map(str, overrides)])


def leave_checkpoint(folder: Path, epochs: int = 2, **entries: object) -> Path:
    """Write the entries of a checkpoint that a resume compares, after `epochs` of 5 steps."""
    path = checkpoint_dir(str(folder)) / f"checkpoint_epoch_{epochs:05d}.pyth"
    path.parent.mkdir(parents=True, exist_ok=True)
    written = {"step": 5 * epochs, "steps_per_epoch": 5, "cfg": cfg(folder, "SOLVER.MAX_EPOCH", 10).dump()}
    torch.save(written | entries, path)
    return path


def test_a_folder_that_cannot_be_written_is_an_error(tmp_path):
    (tmp_path / "file").touch()
    with pytest.raises(ValueError, match=r"OUTPUT_DIR .*file"):
        require_writable(str(tmp_path / "file" / "out"))
    require_writable(str(tmp_path / "new" / "out"))
    assert list((tmp_path / "new" / "out").iterdir()) == []


def test_a_folder_of_checkpoints_that_cannot_be_written_is_an_error(tmp_path):
    (tmp_path / "checkpoints").touch()
    with pytest.raises(ValueError, match=r"/checkpoints"):
        prepare_output_dir(cfg(tmp_path))


def test_a_full_disk_is_an_error(tmp_path, monkeypatch):
    monkeypatch.setattr(tempfile, "TemporaryFile", lambda **_: io.FileIO("/dev/full", "w"))
    with pytest.raises(ValueError, match="No space left"):
        require_writable(str(tmp_path))


def test_the_file_given_by_cfg_is_not_changed(tmp_path):
    """All official scripts write into the folder of their config.yaml."""
    text = "# mine\nTRAIN:\n  BATCH_SIZE: 8  # small\n"
    for name in ("config.yaml", OWN):
        (tmp_path / name).write_text(text)
    (tmp_path / "other").mkdir()
    (tmp_path / "other" / "config.yaml").write_text(text)
    prepare_output_dir(cfg(tmp_path))
    prepare_output_dir(cfg(tmp_path / "other"))
    assert (tmp_path / "config.yaml").read_text() == (tmp_path / OWN).read_text() == text
    assert sorted(path.name for path in (tmp_path / "other").iterdir()) == ["config.yaml", OWN]
    assert load_config(str(tmp_path / "other" / OWN)) == cfg(tmp_path / "other")


def test_the_resolved_configuration_is_that_of_the_last_attempt(tmp_path):
    prepare_output_dir(cfg(tmp_path))
    leave_checkpoint(tmp_path)
    prepare_output_dir(cfg(tmp_path, "SOLVER.MAX_EPOCH", 10, "LOG_PERIOD", 3))
    assert load_config(str(tmp_path / OWN)).LOG_PERIOD == 3


def test_the_resolved_configuration_names_the_origins_also_in_another_process(tmp_path):
    prepare_output_dir(pickle.loads(pickle.dumps(cfg(tmp_path, "LOG_PERIOD", 3))))
    (line,) = [line for line in (tmp_path / OWN).read_text().splitlines() if line.startswith("LOG_PERIOD")]
    assert line.split() == ["LOG_PERIOD:", "3", "#", "command", "line"]


def test_a_resume_compares_with_the_newest_checkpoint(tmp_path):
    """An output folder of an older version, whose config.yaml was written by the run, is resumed too."""
    same = ("SOLVER.MAX_EPOCH", 10)
    leave_checkpoint(tmp_path, 1, cfg=cfg(tmp_path, "SOLVER.MAX_EPOCH", 9).dump())
    leave_checkpoint(tmp_path, 2)
    (tmp_path / "config.yaml").write_text("TRAIN: {BATCH_SIZE: 3}\n")  # written by the user later
    prepare_output_dir(cfg(tmp_path, *same))
    with pytest.raises(ValueError, match=r"SOLVER\.BASE_LR 0\.1 there, 0\.2 here"):
        prepare_output_dir(cfg(tmp_path, *same, "SOLVER.BASE_LR", 0.2))
    leave_checkpoint(tmp_path, 3).write_bytes(b"PK")  # torn: the one before is used
    with pytest.raises(ValueError, match=r"SOLVER\.BASE_LR"):
        prepare_output_dir(cfg(tmp_path, *same, "SOLVER.BASE_LR", 0.2))
    # keys that a later version no longer has are not a difference
    leave_checkpoint(tmp_path, 4, cfg=cfg(tmp_path, *same).dump() + "TRAIN.GONE: 5\n")
    prepare_output_dir(cfg(tmp_path, *same))


def test_a_value_that_cannot_be_used_is_a_difference(tmp_path):
    """An extension that this process does not import has added the loss."""
    before = cfg(tmp_path).dump().replace("LOSS_FUNC: cross_entropy", "LOSS_FUNC: focal")
    leave_checkpoint(tmp_path, 1, cfg=before)
    with pytest.raises(ValueError, match=r"MODEL\.LOSS_FUNC 'focal' there, 'cross_entropy' here"):
        prepare_output_dir(cfg(tmp_path))


def test_a_resume_without_a_module_of_the_run_is_a_warning(tmp_path, caplog, monkeypatch):
    lists = {split: VideoList(["a.mp4"], [0]) for split in ("train", "val")}
    monkeypatch.setenv("SLOWFAST_IMPORT", "my_augmentations")
    before = describe_run(cfg(tmp_path), lists)
    check_resume(before, cfg(tmp_path), lists)
    assert not caplog.messages
    monkeypatch.delenv("SLOWFAST_IMPORT")
    check_resume(before, cfg(tmp_path), lists)
    (message,) = caplog.messages
    assert message.startswith("SLOWFAST_IMPORT not set instead of my_augmentations: ")


def test_a_resume_names_the_lists_that_have_changed(tmp_path, caplog):
    old, new = (
        {name: VideoList(["a.mp4"], [label], source=f"{name}.csv") for name in ("train", "val")} for label in (0, 1)
    )
    before = describe_run(cfg(tmp_path), old)
    check_resume({"cfg": before["cfg"]}, cfg(tmp_path), new)  # a checkpoint of another program
    assert not caplog.messages
    check_resume(before, cfg(tmp_path), old | {"val": new["val"]})
    check_resume(before, cfg(tmp_path), new | {"val": old["val"]})
    assert [message.partition(" ")[0] for message in caplog.messages] == ["val.csv", "train.csv"]


@pytest.mark.parametrize(("count", "named", "others"), [(8, 8, None), (9, 8, 1), (12, 8, 4)])
def test_a_refusal_names_eight_differences_and_counts_the_others(tmp_path, count, named, others):
    leave_checkpoint(tmp_path)
    now = cfg(tmp_path, "SOLVER.MAX_EPOCH", 10).clone()
    now.defrost()
    keys = [key.name for key in KEYS.values() if key.name.startswith("UNIFORMERV2.") and not key.may_differ][:count]
    assert len(keys) == count
    for key in keys:
        now.UNIFORMERV2[key.removeprefix("UNIFORMERV2.")] = "other"
    with pytest.raises(ValueError, match=r"another configuration") as error:
        prepare_output_dir(now)
    assert str(error.value).count(" there, ") == named
    found = re.search(r"(\d+) more", str(error.value))
    assert (found and int(found[1])) == others


@pytest.mark.parametrize(
    ("changes", "named"),
    [
        (("TRAIN.BATCH_SIZE", 4), True),
        (("SOLVER.ACCUMULATION_STEPS", 2), True),
        (("TRAIN.BATCH_SIZE", 4, "SOLVER.WEIGHT_DECAY", 0.5), False),
        (("TRAIN.BATCH_SIZE", 4, "SOLVER.ACCUMULATION_STEPS", 16), None),  # the videos of a step stay the same
    ],
)
def test_a_refusal_names_the_accumulation_that_continues_a_run(tmp_path, changes, named):
    leave_checkpoint(tmp_path)
    now = cfg(tmp_path, "SOLVER.MAX_EPOCH", 10, *changes)
    if named is None:
        return prepare_output_dir(now)
    with pytest.raises(ValueError, match=r"another configuration") as error:
        prepare_output_dir(now)
    assert ("same product" in str(error.value)) == named


def test_a_finished_run_takes_more_epochs(tmp_path):
    leave_checkpoint(tmp_path, 9)
    with pytest.raises(ValueError, match=r"SOLVER\.MAX_EPOCH 10 there, 20 here"):
        prepare_output_dir(cfg(tmp_path, "SOLVER.MAX_EPOCH", 20))
    leave_checkpoint(tmp_path, 10)
    prepare_output_dir(cfg(tmp_path, "SOLVER.MAX_EPOCH", 20))
    with pytest.raises(ValueError, match=r"SOLVER\.MAX_EPOCH 10 there, 8 here"):
        prepare_output_dir(cfg(tmp_path, "SOLVER.MAX_EPOCH", 8))


def test_a_start_from_a_checkpoint_warns_that_only_weights_are_used(tmp_path, caplog):
    entries = {"epoch": 6, "model_state": {}, "optimizer_state": {}}

    def warned(**content: object) -> str:
        caplog.clear()
        torch.save(content, tmp_path / "x.pyth")
        start = ("SOLVER.MAX_EPOCH", 10, "TRAIN.CHECKPOINT_FILE_PATH", tmp_path / "x.pyth")
        warn_of_weights_only(cfg(tmp_path, *start))
        return caplog.text

    there = checkpoint_dir(str(tmp_path)) / "checkpoint_epoch_00007.pyth"
    assert f"from epoch 7, copy it to {there}" in warned(**entries)
    own = warned(**entries, step=35, steps_per_epoch=5)
    assert "only the weights" in own and "copy it" not in own
    assert not warned(model_state={})
