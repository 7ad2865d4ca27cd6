"""Broken videos in real runs: counted once, the same for any workers, processes and resumes."""

from __future__ import annotations

import csv
import os
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pytest
import torch
from run_fixtures import losses

from slowfast.run.health import BadVideos

CPU = torch.device("cpu")


def table(output_dir: Path) -> list[list[str]]:
    with open(output_dir / "bad_videos.csv", newline="") as file:
        return list(csv.reader(file))


@pytest.fixture
def make_bad(tmp_path) -> Callable[..., BadVideos]:
    return lambda resumed=False, share=0.5: BadVideos(str(tmp_path), 10, share, CPU, resumed)


def test_a_broken_video_counts_once_and_keeps_its_first_reason(make_bad, tmp_path):
    bad = make_bad()
    bad.record([])
    assert not bad.path.exists()
    bad.record([("b.mp4", "torn, and more"), ("a.mp4", "empty")])
    assert table(tmp_path) == [["a.mp4", "empty"], ["b.mp4", "torn, and more"]]  # at once
    bad.record([("b.mp4", "another reason")])
    bad.check()
    bad.record([("a.mp4", "empty")])
    bad.check()
    assert table(tmp_path) == [["a.mp4", "empty"], ["b.mp4", "torn, and more"]]


def test_the_reason_of_the_first_batch_counts_in_any_order_of_processes(make_bad):
    parts = [[(2, "b.mp4", "later")], [(1, "c.mp4", "empty"), (1, "b.mp4", "first")]]
    assert list(make_bad()._write(parts).items()) == [("c.mp4", "empty"), ("b.mp4", "first")]


def test_a_resumed_run_goes_on_counting_and_a_fresh_one_does_not(make_bad, tmp_path, caplog):
    make_bad().record([(f"{n}.mp4", "torn") for n in range(5)])
    bad = make_bad(resumed=True)
    bad.record([("4.mp4", "torn")])
    bad.check()
    assert not caplog.records and len(table(tmp_path)) == 5
    bad.record([("5.mp4", "torn")])
    with pytest.raises(ValueError, match=r"6 of 10 .*MAX_BAD_SHARE 0\.5.*bad_videos\.csv"):
        bad.check()
    assert "(6 so far): 5.mp4: torn" in caplog.text
    make_bad()
    assert not (tmp_path / "bad_videos.csv").exists()


def test_a_full_disk_costs_the_list_and_not_the_run(make_bad, tmp_path, caplog):
    bad = make_bad()
    bad.path = tmp_path / "file" / "bad_videos.csv"
    (tmp_path / "file").touch()
    bad.record([("a.mp4", "torn")])
    bad.check()
    assert "bad_videos.csv" in caplog.text and bad.known == {"a.mp4": "torn"}
    (tmp_path / "file").unlink()
    bad.record([("b.mp4", "torn")])
    assert table(tmp_path / "file") == [["a.mp4", "torn"], ["b.mp4", "torn"]]


def test_names_that_are_not_utf8_survive_a_resume(make_bad, tmp_path):
    make_bad().record([("\udcff.mp4", "torn")])
    assert (tmp_path / "bad_videos.csv").read_bytes().startswith(b"\xff.mp4,torn")
    assert make_bad(resumed=True).known == {"\udcff.mp4": "torn"}


def test_a_single_broken_video_never_stops_a_run(make_bad):
    bad = make_bad(share=0.0)
    bad.record([("a.mp4", "torn")])
    bad.check()
    bad.record([("b.mp4", "torn")])
    with pytest.raises(ValueError, match="2 of 10 videos"):
        bad.check()


@pytest.fixture(scope="module")
def broken(videos, tmp_path_factory) -> Path:
    """Return lists of 40 training videos, one cut off and one that hangs, and of 7 test videos, one empty."""
    folder = tmp_path_factory.mktemp("broken")
    content = (videos / "train_0.mp4").read_bytes()
    (folder / "cut.mp4").write_bytes(content[: len(content) // 2])
    os.mkfifo(folder / "hangs.mp4")
    (folder / "empty.mp4").touch()
    good = [f"{videos}/train_{n % 24}.mp4 {n % 24 % 8}\n" for n in range(38)]
    good.insert(30, f"{folder}/hangs.mp4 1\n")
    good.insert(7, f"{folder}/cut.mp4 2\n")
    tests = (videos / "val.csv").read_text().splitlines(keepends=True)
    tests = [f"{videos}/{row}" for row in tests]
    tests[3] = f"{folder}/empty.mp4 3\n"
    for name, rows in (("train", good), ("val", tests), ("test", tests)):
        (folder / f"{name}.csv").write_text("".join(rows))
    return folder


def options(broken: Path, out: Path, *more: object) -> tuple:
    """One epoch of ten steps, logged step by step."""
    return (
        *("DATA.PATH_TO_DATA_DIR", broken, "DATA_LOADER.DECODE_TIMEOUT", 3, "DATA.MAX_BAD_SHARE", 0.05),
        *("OUTPUT_DIR", out, "SOLVER.MAX_EPOCH", 1, "SOLVER.WARMUP_EPOCHS", 0, "TEST.ENABLE", False),
        *("MODEL.FROZEN_BN", True, *more),
    )


@pytest.mark.slow
def test_broken_videos_are_counted_alike_by_any_workers_processes_and_resumes(broken, experiment, run_net, tmp_path):
    runs = {name: tmp_path / name for name in ("zero", "two", "processes", "resumed")}

    def run(name: str, *more: object, ranks: int = 0) -> None:
        run_net(experiment, *options(broken, runs[name], *more), ranks=ranks)

    with ThreadPoolExecutor(2) as pool:  # all wait most of the time
        alone = [pool.submit(run, name, "DATA_LOADER.NUM_WORKERS", n) for name, n in (("zero", 0), ("two", 2))]
        alone.append(pool.submit(run, "processes", "DATA_LOADER.NUM_WORKERS", 1, ranks=2))
        for steps in (7, 10):
            pool.submit(run, "resumed", "TRAIN.MAX_STEPS", steps).result()
        for done in alone:
            done.result()

    expected = [
        [f"{broken}/cut.mp4", "not a readable video"],
        [f"{broken}/hangs.mp4", "decoding took longer than 3 s (decode_timeout)"],
    ]
    for out in runs.values():
        rows = table(out)
        assert rows == table(runs["zero"])
        assert [
            [path, reason[: len(start)]] for (path, reason), (_, start) in zip(rows, expected, strict=True)
        ] == expected
    first = losses(runs["zero"])
    assert len(first) == 10
    assert first == losses(runs["two"]) == losses(runs["resumed"])
    assert losses(runs["processes"]) == pytest.approx(first, abs=1e-5)


@pytest.mark.slow
def test_too_many_broken_videos_stop_the_run(broken, call, experiment, tmp_path):
    done = call("tools/run_net.py", "--cfg", experiment, *options(broken, tmp_path / "out", "DATA.MAX_BAD_SHARE", 0.01))
    assert done.returncode == 2 and "Traceback" not in done.stderr, done.stdout + done.stderr
    assert "error: 2 of 40 " in done.stderr and "DATA.MAX_BAD_SHARE 0.01" in done.stderr
    assert len(table(tmp_path / "out")) == 2


@pytest.mark.slow
def test_validations_report_a_broken_video_once(broken, experiment, run_net, tmp_path):
    out = tmp_path / "out"
    every_epoch = ("SOLVER.MAX_EPOCH", 2, "TRAIN.EVAL_PERIOD", 1, "TRAIN.BATCH_SIZE", 20)
    run_net(experiment, *options(broken, out, *every_epoch))
    log = (out / "log.txt").read_text()
    assert log.count("(6 videos") == 2 and log.count(f"{broken}/empty.mp4") == 1
