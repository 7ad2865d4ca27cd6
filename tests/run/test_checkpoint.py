"""Checkpoint files: order, pruning, damage, and disks that fail."""

from __future__ import annotations

import errno
import logging
import os
import socket
import subprocess
from pathlib import Path

import pytest
import torch

from slowfast.run import checkpoint
from slowfast.run.checkpoint import (
    CheckpointWriter,
    best_checkpoint,
    checkpoint_dir,
    damage,
    last_checkpoint,
    list_checkpoints,
    resumable_checkpoint,
)
from slowfast.utils.io import atomic_write
from slowfast.weights.tensors import load_tensors


def state(step: int, size: int = 2) -> dict:
    return {"step": step, "steps_per_epoch": 10, "model_state": {"w": torch.full((size,), float(step))}}


def save(folder: object, *steps: int, **options) -> None:
    with CheckpointWriter(str(folder), **options) as writer:
        for step in steps:
            writer.save(state(step))


def names(folder: object) -> list[str]:
    return [path.name for path in list_checkpoints(str(folder))]


def test_checkpoints_are_ordered_and_pruned_and_the_best_stays(tmp_path):
    folder = str(tmp_path)
    assert last_checkpoint(folder) is None and resumable_checkpoint(folder) is None
    with CheckpointWriter(folder, keep=3) as writer:
        for step in (10, 15, 20, 100):
            writer.save(state(step), best=step == 15)
    assert names(folder) == [
        "checkpoint_epoch_00001_step_000005.pyth",
        "checkpoint_epoch_00002.pyth",
        "checkpoint_epoch_00010.pyth",
    ]
    assert load_tensors(list_checkpoints(folder)[-1])["step"] == 100
    assert load_tensors(best_checkpoint(folder))["step"] == 15


@pytest.mark.parametrize("best", [True, False])
def test_a_file_that_is_written_before_and_after_a_validation_is_logged_once(tmp_path, caplog, best):
    with caplog.at_level(logging.INFO), CheckpointWriter(str(tmp_path)) as writer:
        for step, validated in ((10, False), (10, True), (20, False)):
            writer.save(state(step), best=best and validated)
    logged = [Path(record.getMessage().split()[-1]).name for record in caplog.records]
    expected = ["checkpoint_epoch_00001.pyth", "best.pyth", "checkpoint_epoch_00002.pyth"]
    assert logged == (expected if best else expected[::2])


def test_damaged_ones_of_more_steps_push_out_nothing(tmp_path):
    save(tmp_path, 10)
    damaged = checkpoint_dir(str(tmp_path)) / "checkpoint_epoch_00003.pyth"
    damaged.write_bytes(b"damaged")
    save(tmp_path, 15, 20, keep=1)
    assert names(tmp_path) == ["checkpoint_epoch_00002.pyth", "checkpoint_epoch_00003.pyth"]
    assert resumable_checkpoint(str(tmp_path)) == damaged.with_name("checkpoint_epoch_00002.pyth")
    save(tmp_path, 40, keep=1)  # the run has passed it
    assert names(tmp_path) == ["checkpoint_epoch_00004.pyth"]


def test_a_file_that_cannot_be_read_is_not_called_damaged(tmp_path, caplog):
    save(tmp_path, 10)
    failing = checkpoint_dir(str(tmp_path)) / "checkpoint_epoch_00002.pyth"
    failing.symlink_to("/proc/self/mem")  # reading it is an input/output error
    reason = os.strerror(errno.EIO)
    assert reason in damage(failing)
    assert resumable_checkpoint(str(tmp_path)) == failing.with_name("checkpoint_epoch_00001.pyth")
    assert reason in caplog.text
    with pytest.raises(ValueError, match=reason):
        load_tensors(failing)
    failing.with_name("checkpoint_epoch_00001.pyth").unlink()
    with pytest.raises(ValueError, match=reason):
        resumable_checkpoint(str(tmp_path))


def no_links(*_: object) -> None:
    raise OSError("Operation not permitted")


def test_the_best_is_another_name_of_the_regular_file(tmp_path, monkeypatch):
    with CheckpointWriter(str(tmp_path)) as writer:
        writer.save(state(10), best=True)
        writer.save(state(10))  # before a validation, when the name is taken
        writer.save(state(20), best=True)
    first, second = list_checkpoints(str(tmp_path))
    assert second.samefile(best_checkpoint(str(tmp_path))) and load_tensors(first)["step"] == 10
    assert len(list(checkpoint_dir(str(tmp_path)).iterdir())) == 3
    monkeypatch.setattr(os, "link", no_links)
    with CheckpointWriter(str(tmp_path)) as writer:
        writer.save(state(30), best=True)
    third = list_checkpoints(str(tmp_path))[-1]
    assert not third.samefile(best_checkpoint(str(tmp_path))) and not damage(third)
    assert third.read_bytes() == best_checkpoint(str(tmp_path)).read_bytes()


def test_the_best_is_written_first(tmp_path, monkeypatch):
    """A run that is killed between the two names, or has no room for a second file, has lost nothing."""

    def full(path: Path):
        if path.name != "best.pyth":
            raise OSError("No space left on device")
        return atomic_write(path)

    monkeypatch.setattr(os, "link", no_links)
    monkeypatch.setattr(checkpoint, "atomic_write", full)
    with pytest.raises(ValueError, match="No space left"), CheckpointWriter(str(tmp_path)) as writer:
        writer.save(state(10), best=True)
    assert resumable_checkpoint(str(tmp_path)) == best_checkpoint(str(tmp_path))


def test_a_best_that_cannot_be_written_holds_up_no_other(tmp_path):
    best = best_checkpoint(str(tmp_path))
    best.mkdir(parents=True)
    with CheckpointWriter(str(tmp_path), keep=2) as writer:
        writer.save(state(10), best=True)  # a resume would take the best for written: it begins before this epoch
        writer.wait()
        assert names(tmp_path) == []
        writer.save(state(20))
        writer.save(state(30))
        writer.wait()
        assert names(tmp_path) == ["checkpoint_epoch_00002.pyth", "checkpoint_epoch_00003.pyth"]
        best.rmdir()  # at the end it is written
    assert load_tensors(best)["step"] == 10


@pytest.mark.parametrize(("offset", "value"), [(8, 1), (10, 99)], ids=["encrypted", "unknown compression"])
def test_any_damage_is_detected(offset, value, tmp_path):
    save(tmp_path, 10, 20)
    path = list_checkpoints(str(tmp_path))[-1]
    content = bytearray(path.read_bytes())
    content[content.index(b"PK\x01\x02") + offset] = value  # of the first entry of the list of contents
    path.write_bytes(content)
    assert damage(path)
    assert resumable_checkpoint(str(tmp_path)) == list_checkpoints(str(tmp_path))[0]


def test_what_is_written_is_the_moment_of_the_call(tmp_path):
    weights = torch.zeros(1_000_000)
    with CheckpointWriter(str(tmp_path)) as writer:
        writer.save({**state(10), "model_state": {"w": weights}, "optimizer_state": {"param_groups": [{"lr": 0.1}]}})
        weights.fill_(1)
    content = load_tensors(list_checkpoints(str(tmp_path))[0])
    assert content["model_state"]["w"].sum() == 0 and content["optimizer_state"]["param_groups"] == [{"lr": 0.1}]


def test_the_newest_whole_one_is_found_by_its_content(tmp_path, caplog):
    save(tmp_path, 10, 20, 30)
    folder = checkpoint_dir(str(tmp_path))
    for age, path in enumerate(list_checkpoints(str(tmp_path))):
        clock = 2e9 - age * 1e8  # it went back each time
        os.utime(path, (clock, clock))
    assert resumable_checkpoint(str(tmp_path)) == folder / "checkpoint_epoch_00003.pyth"

    content = bytearray((folder / "checkpoint_epoch_00003.pyth").read_bytes())
    at = content.index(torch.full((2,), 30.0).numpy().tobytes())
    content[at] ^= 1  # one bit of one weight: PyTorch would load it
    (folder / "checkpoint_epoch_00003.pyth").write_bytes(content)
    assert torch.load(folder / "checkpoint_epoch_00003.pyth")["model_state"]["w"][0] != 30
    (folder / "checkpoint_epoch_00002.pyth").write_bytes(content[:300])
    assert resumable_checkpoint(str(tmp_path)) == folder / "checkpoint_epoch_00001.pyth"
    assert {Path(m.split(" is torn")[0]).name for m in caplog.messages if "torn or damaged" in m} == {
        "checkpoint_epoch_00002.pyth",
        "checkpoint_epoch_00003.pyth",
    }

    (folder / "checkpoint_epoch_00001.pyth").rename(best_checkpoint(str(tmp_path)))
    assert resumable_checkpoint(str(tmp_path)) == best_checkpoint(str(tmp_path))
    best_checkpoint(str(tmp_path)).write_bytes(b"")
    with pytest.raises(ValueError, match="none of the checkpoints"):
        resumable_checkpoint(str(tmp_path))


def test_what_a_killed_writer_left_is_removed(tmp_path):
    save(tmp_path, 10)
    torn = checkpoint_dir(str(tmp_path)) / ".checkpoint_epoch_00002.pyth.x1y2"
    torn.write_bytes(b"half")
    save(tmp_path, 20)
    assert not torn.exists() and len(names(tmp_path)) == 2


@pytest.fixture
def small_disk(tmp_path):
    """Make a file system of one megabyte."""
    folder = tmp_path / "disk"
    folder.mkdir()
    mount = ["mount", "-t", "tmpfs", "-o", "size=1m", "tmpfs", str(folder)]
    if os.geteuid() or subprocess.run(mount, capture_output=True).returncode:
        pytest.skip("mounting a file system needs root")
    yield folder
    subprocess.run(["umount", "-l", str(folder)], check=True)


def test_a_full_disk_keeps_the_old_checkpoints(small_disk):
    with CheckpointWriter(str(small_disk), keep=1) as writer:
        writer.save(state(10, 100_000))
        writer.save(state(20, 200_000))  # 0.4 + 0.8 MB: goes on without it
        writer.wait()
        assert names(small_disk) == ["checkpoint_epoch_00001.pyth"]
        writer.save(state(30, 200_000))
        with pytest.raises(ValueError, match=r"No space left"):
            writer.wait(stop_on_error=True)
        writer.save(state(40, 100_000))
    assert names(small_disk) == ["checkpoint_epoch_00004.pyth"]
    assert resumable_checkpoint(str(small_disk)) == checkpoint_dir(str(small_disk)) / "checkpoint_epoch_00004.pyth"
    assert len(os.listdir(checkpoint_dir(str(small_disk)))) == 1  # no torn parts


def test_a_folder_that_cannot_be_made_is_an_error(tmp_path):
    (tmp_path / "checkpoints").write_text("a file is in the way")
    with pytest.raises(ValueError, match="could not be written"), CheckpointWriter(str(tmp_path)) as writer:
        writer.save(state(10))
    with CheckpointWriter(str(tmp_path)) as writer:
        writer.save(state(10))
        writer.save(state(20))
        with pytest.raises(ValueError, match="could not be written"):
            writer.wait(stop_on_error=True)


def test_a_folder_that_vanishes_comes_back(tmp_path):
    with CheckpointWriter(str(tmp_path / "run")) as writer:
        writer.save(state(10))
        writer.wait()
        subprocess.run(["rm", "-r", str(tmp_path / "run")], check=True)
        writer.save(state(20))
    assert names(tmp_path / "run") == ["checkpoint_epoch_00002.pyth"]


def test_atomic_write_leaves_the_old_file_when_it_fails(tmp_path: Path):
    path = tmp_path / "file"
    path.write_bytes(b"old")
    with pytest.raises(RuntimeError), atomic_write(path) as file:
        file.write(b"half")
        raise RuntimeError
    assert path.read_bytes() == b"old" and os.listdir(tmp_path) == ["file"]


@pytest.mark.parametrize("kind", ["pipe", "socket", "folder", "device"])
def test_only_regular_files_are_checkpoints(kind, tmp_path, monkeypatch):
    save(tmp_path, 10)
    monkeypatch.chdir(checkpoint_dir(str(tmp_path)))
    for name in ("checkpoint_epoch_00002.pyth", "best.pyth"):
        path = checkpoint_dir(str(tmp_path)) / name
        if kind == "pipe":
            os.mkfifo(path)
        elif kind == "socket":
            socket.socket(socket.AF_UNIX).bind(name)
        elif kind == "folder":
            path.mkdir()
        else:
            path.symlink_to("/dev/zero")
    assert names(tmp_path) == ["checkpoint_epoch_00001.pyth"]
    assert resumable_checkpoint(str(tmp_path)) == list_checkpoints(str(tmp_path))[0]
    save(tmp_path, 30, keep=1)
    assert names(tmp_path) == ["checkpoint_epoch_00003.pyth"]
