"""Test tasks in processes that are killed when they block, and the check of videos that uses them."""

from __future__ import annotations

import csv
import os
import re
import signal
import subprocess
import sys
import time
from contextlib import closing
from itertools import islice
from pathlib import Path
from typing import Any

import av
import numpy as np
import pytest
from media_zoo import encode

from slowfast.datasets import guarded
from slowfast.prepare.check import COLUMNS, QUARANTINE, REPORT, check_media
from slowfast.prepare.killable import Failure, run_killable
from slowfast.prepare.reencode import Settings, reencode


def work(task: Any) -> Any:
    """Open a path (a pipe blocks forever), or exit by the signal with a number."""
    if isinstance(task, str):
        with open(task) as file:
            return file.read()
    if task == 0:
        raise KeyError("zero")
    if task < 0:
        raise ValueError("below zero")
    os.kill(os.getpid(), task)


@pytest.fixture
def pipe(tmp_path) -> str:
    os.mkfifo(tmp_path / "pipe.mp4")
    return str(tmp_path / "pipe.mp4")


@pytest.mark.slow
@pytest.mark.parametrize("workers", [1, 3])
def test_tasks_that_hang_or_crash_cost_only_themselves(pipe, tmp_path, workers):
    (tmp_path / "whole").write_text("content")
    tasks = [
        pipe,
        str(tmp_path / "whole"),
        0,
        -1,
        int(signal.SIGSEGV),
        str(tmp_path / "none"),
        pipe,
        str(tmp_path / "whole"),
    ]
    outcomes = [(str(task), outcome) for task, outcome in run_killable(work, tasks, workers=workers, timeout=1)]
    assert sorted(task for task, _ in outcomes) == sorted(map(str, tasks))
    by_task = dict(outcomes)
    assert by_task[str(tmp_path / "whole")] == "content"
    assert by_task[pipe] == Failure("timed out after 1 s")
    assert by_task["0"] == Failure("KeyError: 'zero'") and by_task["-1"] == Failure("below zero")
    assert by_task[str(int(signal.SIGSEGV))] == Failure(f"the decoder crashed (exit code {-signal.SIGSEGV})")
    assert "FileNotFoundError" in by_task[str(tmp_path / "none")].reason


def test_no_tasks_start_no_process():
    assert list(run_killable(work, [], workers=2, timeout=1)) == []


def test_a_process_that_cannot_start_is_an_error_and_no_fault_of_a_file(tmp_path, monkeypatch):
    monkeypatch.setattr(guarded, "START_LIMIT", 0.0)
    with pytest.raises(RuntimeError, match="has not started within 0 s"):
        check_media(tmp_path, {"a.mp4": None, "b.mp4": None}, tmp_path / "report", workers=1)
    assert (tmp_path / "report" / REPORT).read_text().splitlines() == [",".join(COLUMNS)]
    assert not (tmp_path / "report" / QUARANTINE).exists()


def test_workers_end_with_the_process_that_started_them(pipe, tmp_path):
    """A worker that is blocked in the middle of a file exits too, after a kill that no handler can catch."""
    command = (
        "import sys; sys.path += sys.argv[2:]; import test_check as t\n"
        "from slowfast.prepare.killable import run_killable\n"
        "list(run_killable(t.work, [sys.argv[1]], workers=1, timeout=600))"
    )
    process = subprocess.Popen([sys.executable, "-c", command, pipe, *map(str, Path(__file__).parents[:2])])
    # a writer can open the pipe as soon as the worker reads from it
    while True:
        try:
            writer = os.open(pipe, os.O_WRONLY | os.O_NONBLOCK)
            break
        except OSError:
            assert process.poll() is None
            time.sleep(0.05)
    process.kill()
    process.wait()
    with pytest.raises(BrokenPipeError):  # no process reads any more
        while True:
            os.write(writer, b"x")
            time.sleep(0.05)
    os.close(writer)


@pytest.fixture
def videos(tmp_path, write_video, write_folder) -> Path:
    """Make six good media and six bad ones."""
    folder = tmp_path / "videos"
    for name in ("a/0.mp4", "a/x, y.mp4", "b/é.mp4", "b/2.mp4", "b/3.mp4"):
        write_video(folder / name, frames=24)
    write_folder(folder / "b/frames", frames=5)
    whole = (folder / "b/3.mp4").read_bytes()
    (folder / "bad").mkdir()
    (folder / "bad/empty.mp4").write_bytes(b"")
    (folder / "bad/noise.mp4").write_bytes(bytes(range(256)) * 20)
    (folder / "bad/torn.mp4").write_bytes(whole[: len(whole) // 2])
    os.mkfifo(folder / "bad/pipe.mp4")
    write_folder(folder / "bad/frames", frames=5)
    (folder / "bad/frames/img_00003.jpg").write_bytes(b"no image")
    return folder


def media(videos: Path) -> dict[str, int | None]:
    found = [*videos.rglob("*.mp4"), *videos.rglob("frames")]
    return dict.fromkeys([*(path.relative_to(videos).as_posix() for path in found), "bad/missing.mp4"])


def test_a_report_separates_good_files_from_bad(videos, tmp_path):
    rows = {row.path: row for row in check_media(videos, media(videos), tmp_path / "out", workers=2, timeout=2)}
    assert len(rows) == 12 and {path for path, row in rows.items() if not row.ok} == {
        "bad/empty.mp4", "bad/noise.mp4", "bad/torn.mp4", "bad/pipe.mp4", "bad/frames", "bad/missing.mp4",
    }  # fmt: skip
    assert all(row.reason and not row.frames for row in rows.values() if not row.ok)
    good = rows["a/x, y.mp4"]
    assert (good.frames, good.width, good.height, good.fps, good.codec, good.seconds) == (
        24,
        64,
        48,
        25.0,
        "h264",
        0.96,
    )
    assert int(good.size) == (videos / good.path).stat().st_size
    assert (rows["b/frames"].frames, rows["b/frames"].codec) == (5, "images")
    lines = (tmp_path / "out" / REPORT).read_text().splitlines()
    assert lines[0] == ",".join(COLUMNS) and len(lines) == 13
    assert (tmp_path / "out" / QUARANTINE).read_text().splitlines() == sorted(p for p in rows if p.startswith("bad"))


@pytest.mark.slow
def test_a_repeated_check_continues_an_interrupted_one(videos, tmp_path):
    out, everything = tmp_path / "out", media(videos)
    check_media(videos, dict(islice(everything.items(), 5)), out, workers=1, timeout=2)
    report = out / REPORT
    # what a killed call leaves: whole lines, and one that is torn
    lines = report.read_text().splitlines(keepends=True)
    marked = [line.replace(",1,,24,", ",1,,99,") for line in lines]
    report.write_text("".join(marked) + "b/é.mp4,1,,2")
    rows = {row.path: row for row in check_media(videos, everything, out, workers=1, timeout=2)}
    assert len(rows) == 12
    kept = [row.path for row in rows.values() if row.frames == "99"]
    assert len(kept) == sum(",1,,99," in line for line in marked) > 0  # not decoded again
    # a changed file and, with recheck, a bad file is checked again; others are not
    (videos / "bad/noise.mp4").write_bytes((videos / "a/0.mp4").read_bytes())
    os.utime(videos / kept[0], ns=(1, 1))
    rows = {row.path: row for row in check_media(videos, everything, out, workers=1, timeout=2)}
    assert rows["bad/noise.mp4"].ok and rows[kept[0]].frames == 24
    assert [row.path for row in rows.values() if row.frames == "99"] == kept[1:]
    with open(report, newline="") as file:
        table = [[*row[:2], "marked", *row[3:]] if row[0] == "bad/torn.mp4" else row for row in csv.reader(file)]
    with open(report, "w", newline="") as file:
        csv.writer(file, lineterminator="\n").writerows(table)
    assert "marked" in {row.reason for row in check_media(videos, everything, out, workers=1, timeout=2)}
    rows = {row.path: row for row in check_media(videos, everything, out, workers=1, timeout=2, recheck=True)}
    assert "marked" not in rows["bad/torn.mp4"].reason


@pytest.mark.slow
@pytest.mark.parametrize(("name", "codec"), [("a.mp4", "libx264"), ("a.ts", "libx264"), ("a.avi", "mpeg4")])
def test_a_full_check_finds_damage_between_the_ends_and_the_middle(tmp_path, name, codec):
    path = tmp_path / "videos" / name
    path.parent.mkdir()
    rng = np.random.default_rng(0)
    scene = rng.integers(0, 256, (25, 32, 3), np.uint8).repeat(8, 0).repeat(8, 1)
    images = np.stack([scene[t : t + 96, t : t + 128] for t in range(80)])  # a camera moves over a scene
    encode(path, images, codec, options={"g": "10"})
    good = {name: None}
    [row] = check_media(path.parent, good, tmp_path / "good", workers=1, full=True)
    assert (row.ok, row.frames, row.full) == (1, 80, 1)

    content = bytearray(path.read_bytes())
    start = len(content) * 3 // 8
    content[start : start + 600] = rng.integers(0, 256, 600, np.uint8).tobytes()
    path.write_bytes(content)
    out = tmp_path / "out"
    [row] = check_media(path.parent, good, out, workers=1)
    assert (row.ok, row.full) == (1, "")
    [row] = check_media(path.parent, good, out, workers=1, full=True)
    assert row.ok == 0 and 10 <= int(re.findall(r"\d+", row.reason)[0]) <= 40
    # the row of a full check is good enough for a quick one, and a bad row is bad for both
    [row] = check_media(path.parent, good, out, workers=1)
    assert row.ok == 0 and (out / QUARANTINE).read_text() == f"{name}\n"


def test_a_full_check_finds_damage_in_the_frames_that_the_decoder_returns_last(tmp_path):
    path, scene = tmp_path / "videos/a.mp4", np.random.default_rng(0).integers(0, 255, (96, 96, 3), np.uint8)
    path.parent.mkdir()
    images = np.stack([np.roll(scene, 2 * t, 1) for t in range(24)])
    encode(path, images, options={"g": "48", "bf": "2", "b_strategy": "0"})
    with av.open(str(path)) as container:
        last = [packet for packet in container.demux(video=0) if packet.size][-1]
        place, size = last.pos, last.size
    assert place is not None
    content = bytearray(path.read_bytes())
    for at in range(place + size // 2, place + size):
        content[at] ^= 0x5A
    path.write_bytes(content)
    [row] = check_media(path.parent, {"a.mp4": None}, tmp_path / "out", workers=1, full=True)
    assert row.ok == 0 and int(re.findall(r"\d+", row.reason)[0]) >= 20


def test_a_slow_file_is_good_and_the_report_contains_the_reason(tmp_path):
    folder, out = Path(__file__).parents[1] / "golden", tmp_path / "out"
    [row] = check_media(folder, {"packed_xvid.avi": None}, out, workers=1)
    assert row.ok and row.reason and (out / QUARANTINE).read_text() == ""
    copies = tmp_path / "copies"
    reencode(folder, ["packed_xvid.avi"], copies, Settings(), workers=1)
    [row] = check_media(copies, {"packed_xvid.avi": None}, out, workers=1)
    assert row.ok and not row.reason


def test_a_full_check_decodes_every_image(tmp_path, write_folder):
    folder = tmp_path / "videos"
    write_folder(folder / "frames", frames=8)
    (folder / "frames/img_00003.jpg").write_bytes(b"no image")
    assert check_media(folder, {"frames": None}, tmp_path / "out", workers=1)[0].ok
    [row] = check_media(folder, {"frames": None}, tmp_path / "out", workers=1, full=True)
    assert not row.ok and row.reason.startswith("img_00003.jpg")


def test_rows_that_are_not_of_a_report_are_checked_again(tmp_path, write_video):
    write_video(tmp_path / "a.mp4", frames=24)
    for torn in ("\n", "a.mp4,x\n", f"a.mp4,?{',' * (len(COLUMNS) - 2)}\n"):
        (tmp_path / REPORT).write_text(f"{','.join(COLUMNS)}\n{torn}")
        [row] = check_media(tmp_path, {"a.mp4": None}, tmp_path, workers=1)
        assert (row.ok, row.frames) == (1, 24)


def test_a_foreign_report_is_not_touched(videos, tmp_path):
    (tmp_path / REPORT).write_text("a,b\n1,2\n")
    with pytest.raises(ValueError, match=r"report\.csv"):
        check_media(videos, media(videos), tmp_path, workers=1, timeout=2)
    assert (tmp_path / REPORT).read_text() == "a,b\n1,2\n"


@pytest.mark.parametrize("tasks", [1, 3])
def test_an_interrupted_check_leaves_no_process(pipe, tasks, monkeypatch):
    started: list[subprocess.Popen[Any]] = []
    popen = subprocess.Popen
    monkeypatch.setattr(guarded.subprocess, "Popen", lambda *a, **k: started.append(popen(*a, **k)) or started[-1])
    with closing(run_killable(work, [0, *[pipe] * tasks], workers=2, timeout=600)) as outcomes:
        next(outcomes)
    # the time limit of the test ends this if a process stays
    while len(started) < 2 or any(process.poll() is None for process in started):
        time.sleep(0.05)


def test_seconds_of_a_report_are_those_of_the_video_stream(tmp_path, write_video):
    """The sound, of 3 s, is longer."""
    source = write_video(tmp_path / "silent.mp4", frames=24)
    with av.open(source) as silent, av.open(str(tmp_path / "loud.mp4"), "w") as loud:
        sound = loud.add_stream("aac", rate=8000)
        video = loud.add_stream_from_template(silent.streams.video[0])
        for packet in silent.demux(video=0):
            if packet.dts is not None:
                packet.stream = video
                loud.mux(packet)
        frame = av.AudioFrame.from_ndarray(np.zeros((1, 24000), np.float32), format="fltp", layout="mono")
        frame.sample_rate = 8000
        loud.mux([*sound.encode(frame), *sound.encode(None)])
    (tmp_path / "silent.mp4").unlink()
    rows = check_media(tmp_path, {"loud.mp4": None}, tmp_path / "out", workers=1)
    assert [(row.frames, row.seconds) for row in rows] == [(24, 0.96)]
