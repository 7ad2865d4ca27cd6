"""Two runs in one folder: the second is refused, and a dead holder on any machine is replaced."""

from __future__ import annotations

import dataclasses
import json
import multiprocessing
import os
import signal
import threading
import time
from pathlib import Path

import pytest

from slowfast.run import interrupt, lock
from slowfast.run.lock import Holder, hold, is_held

FORK = multiprocessing.get_context("fork")


@pytest.fixture
def path(tmp_path) -> Path:
    return tmp_path / "out" / "train.lock"


def held_elsewhere(path: Path, age: float = 0.0) -> Holder:
    """Make a lease of a process on another machine that was renewed `age` seconds ago."""
    holder = dataclasses.replace(Holder(), host="node7", machine="node7 another start", token="t0")
    path.parent.mkdir(exist_ok=True)
    path.write_text(json.dumps(dataclasses.asdict(holder)))
    moment = time.time() - age
    os.utime(path, (moment, moment))
    return holder


def wins(path: Path) -> bool:
    """Return whether a lease can be taken; it is not released."""
    try:
        lock._take(path, Holder(), patience=0)
    except ValueError:
        return False
    return True


def test_a_second_run_is_refused_until_the_holder_ends_or_is_killed(path):
    def run(ready, kept):
        with hold(path):
            ready.set()
            kept.wait(30)

    for kill in (False, True):
        ready, kept = FORK.Event(), FORK.Event()
        child = FORK.Process(target=run, args=(ready, kept))
        child.start()
        assert ready.wait(10)
        with pytest.raises(ValueError) as refused, hold(path, patience=0.3):
            pass
        message = str(refused.value)
        assert f"process {child.pid} on " in message and time.strftime("%Y-%m-") in message and "\n" not in message
        os.kill(child.pid or 0, signal.SIGKILL) if kill else kept.set()
        child.join(10)
        assert path.exists() is kill
        begun = time.monotonic()
        with hold(path):
            assert json.loads(path.read_text())["pid"] == os.getpid() and time.monotonic() < begun + 1
        assert list(path.parent.iterdir()) == []


def test_a_reused_process_id_is_a_dead_holder(path):
    with hold(path):
        content = json.loads(path.read_text())
    path.write_text(json.dumps(content | {"started": "1", "token": "t0"}))
    with hold(path, patience=0):
        assert json.loads(path.read_text())["token"] != "t0"


def test_a_silent_holder_on_another_machine_is_dead_after_a_while(path, monkeypatch):
    held_elsewhere(path, age=lock.STALE + 60)
    begun = time.monotonic()
    with hold(path, patience=0):
        assert time.monotonic() < begun + 1
    monkeypatch.setattr(lock, "STALE", 1.0)
    held_elsewhere(path)
    with hold(path, patience=0):
        assert 0.5 < time.monotonic() - begun < 5


def test_a_lease_counts_while_its_holder_runs(path):
    assert not is_held(path)
    with hold(path):
        assert is_held(path)
    assert not is_held(path)
    held_elsewhere(path, age=lock.STALE + 5)
    assert not is_held(path)
    held_elsewhere(path)
    assert is_held(path)


def test_a_living_holder_on_another_machine_is_kept(path):
    held_elsewhere(path, age=60)
    child = FORK.Process(target=lambda: (time.sleep(0.5), os.utime(path)))
    child.start()
    with pytest.raises(ValueError, match=r"process \d+ on node7"), hold(path, patience=0):
        pass
    child.join()


def test_a_request_to_stop_ends_the_wait(path, monkeypatch):
    held_elsewhere(path)
    received: list[signal.Signals] = []
    monkeypatch.setattr(interrupt, "_received", received)
    threading.Timer(0.5, received.append, [signal.SIGUSR2]).start()
    begun = time.monotonic()
    with pytest.raises(interrupt.Interruption), hold(path, patience=20):
        pass
    assert 0.4 < time.monotonic() - begun < 5 and path.exists()


@pytest.mark.slow
@pytest.mark.parametrize("left", ["nothing", "dead", "half written", "half taken over"])
def test_one_of_many_simultaneous_starts_gets_the_lease(left, path):
    path.parent.mkdir()
    if left != "nothing":
        held_elsewhere(path, age=1000)
    if left == "half written":
        path.write_text("")
        os.utime(path, (0, 0))
    if left == "half taken over":
        (path.parent / "train.lock.t0").write_text(path.read_text().replace('"t0"', '"t1"'))
        os.utime(path.parent / "train.lock.t0", (0, 0))
    go, results = FORK.Event(), FORK.Queue()

    def run():
        go.wait(10)
        results.put(wins(path))
        end.wait(30)

    end = FORK.Event()
    children = [FORK.Process(target=run) for _ in range(8)]
    for child in children:
        child.start()
    go.set()
    assert sorted(results.get(timeout=30) for _ in children) == [False] * 7 + [True]
    end.set()
    for child in children:
        child.join(10)
    assert [file.name for file in path.parent.iterdir()] == ["train.lock"]


def test_a_holder_whose_lease_was_replaced_exits(path, monkeypatch, capfd):
    monkeypatch.setattr(lock, "BEAT", 0.1)

    def run():
        with hold(path):
            time.sleep(30)

    child = FORK.Process(target=run)
    child.start()
    while not path.is_file() or not path.read_text():
        time.sleep(0.01)
    before = path.stat().st_mtime
    while path.stat().st_mtime == before:
        time.sleep(0.05)  # it is renewed
    path.unlink()  # with its folder, for example: it is written again
    while not path.is_file() or not path.read_text():
        time.sleep(0.01)
    held_elsewhere(path)
    child.join(10)
    assert child.exitcode == 1 and "was taken over by process" in capfd.readouterr().err
