"""Curves of a training in trackers: rows arrive, a resumed run continues, no fault of a tracker stops a training."""

from __future__ import annotations

import importlib.util
import json
import logging
import os
import sqlite3
import struct
import subprocess
import sys
import threading
import time
import types
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import run_net

from slowfast.config import get_cfg
from slowfast.config.keys import KEYS
from slowfast.engine import trackers
from slowfast.engine.log import RunLog
from slowfast.engine.meters import MEAN_CLASS, METRICS
from slowfast.run.interrupt import Interruption
from slowfast.run.lock import TRAINING, hold
from slowfast.utils.logging import MetricsLog, read_metrics

VALUES = {"loss": 1.5, "lr": 0.1, "grad_norm": 2.0, "clips_per_s": 4.0, "data_wait": 0.25, "memory_gib": 3.0}
VALUES |= dict.fromkeys((*METRICS, MEAN_CLASS), 50.0)


class Recorder:
    """A tracker in memory, whose methods can fail or block."""

    made: list[Recorder]
    fails: str
    blocked: threading.Event

    def __init__(self, cfg: Any, step: int, id: str) -> None:
        self.id, self.given, self.rows, self.end = id or f"run-{len(self.made)}", id, list[Any](), None
        self.made.append(self)
        self.call("start")

    def call(self, name: str) -> None:
        if self.fails == name:
            raise OSError("the network is gone")
        if self.fails == f"{name} blocks":
            self.blocked.wait(60)

    def log(self, values: Any, step: int) -> None:
        self.call("log")
        self.rows.append((step, values["test/top1"] if "test/top1" in values else values.get("train/loss")))

    def finish(self, failed: bool) -> None:
        self.call("finish")
        self.end = failed


@pytest.fixture
def recorder(monkeypatch) -> Iterator[type[Recorder]]:
    class Own(Recorder):
        made, fails, blocked = [], "", threading.Event()

    monkeypatch.setitem(trackers.TRACKERS, "wandb", Own)
    yield Own
    Own.blocked.set()


def settings(folder: Path, *names: str) -> Any:
    cfg = get_cfg()
    cfg.OUTPUT_DIR, cfg.TRACKERS = str(folder / "run7"), [*names]
    return cfg


def make(folder: Path, *names: str, step: int = 0) -> RunLog:
    return RunLog(settings(folder, *names), step, last_step=20)


def send_test(folder: Path, *names: str, train: bool = True) -> None:
    cfg = settings(folder, *names)
    cfg.TRAIN.ENABLE = train
    Path(cfg.OUTPUT_DIR).mkdir(exist_ok=True)
    MetricsLog(cfg.OUTPUT_DIR).write("test", top1=75.0)
    trackers.send_results(cfg, "test", {"top1": 75.0, "num_videos": 7})


def train(folder: Path, *names: str, first: int = 1) -> dict[str, str]:
    """Log three steps and a validation; return the identifiers of the runs."""
    with make(folder, *names, step=first - 1) as run:
        for step in range(first, first + 3):
            run.train(step, 0.0, VALUES | {"loss": 10.0 + step})
        run.validation(first + 2, 1, VALUES | {"num_videos": 7}, best=60.0)
    return json.loads((folder / "run7/trackers.json").read_text())


def test_mlflow_gets_the_curves_and_a_resumed_run_continues(tmp_path, monkeypatch):
    mlflow = pytest.importorskip("mlflow")
    monkeypatch.setenv("MLFLOW_ALLOW_FILE_STORE", "true")
    mlflow.set_tracking_uri(f"file:{tmp_path}/store")
    ids = train(tmp_path, "mlflow")
    assert train(tmp_path, "mlflow", first=3) == ids
    send_test(tmp_path, "mlflow")
    client = mlflow.MlflowClient()
    (run,) = client.search_runs([client.get_experiment_by_name("slowfast").experiment_id])
    assert (run.info.run_id, run.info.run_name, run.info.status) == (ids["mlflow"], "run7", "FINISHED")
    assert run.data.params["TRAIN.BATCH_SIZE"] == str(get_cfg().TRAIN.BATCH_SIZE)
    rows = [(row.step, row.value) for row in client.get_metric_history(ids["mlflow"], "train/loss")]
    assert sorted({*rows}) == [(step, 10.0 + step) for step in range(1, 6)]
    assert {row.step for row in client.get_metric_history(ids["mlflow"], "val/top1")} == {3, 5}
    assert [(row.step, row.value) for row in client.get_metric_history(ids["mlflow"], "test/top1")] == [(5, 75.0)]


@pytest.mark.parametrize(("repaired", "status"), [(False, "FAILED"), (True, "FINISHED")])
def test_a_test_keeps_the_status_of_its_training_in_mlflow(repaired, status, tmp_path, monkeypatch):
    mlflow = pytest.importorskip("mlflow")
    monkeypatch.setenv("MLFLOW_ALLOW_FILE_STORE", "true")
    mlflow.set_tracking_uri(f"file:{tmp_path}/store")
    with pytest.raises(RuntimeError), make(tmp_path, "mlflow") as run:
        run.train(1, 0.0, VALUES)
        raise RuntimeError
    if repaired:
        train(tmp_path, "mlflow")
    for _ in range(2):
        send_test(tmp_path, "mlflow", train=False)
        id = json.loads((tmp_path / "run7/trackers.json").read_text())["mlflow"]
        assert mlflow.get_run(id).info.status == status


def test_mlflow_can_use_another_store_for_the_next_run_of_a_process(tmp_path, monkeypatch):
    mlflow = pytest.importorskip("mlflow")
    monkeypatch.setenv("MLFLOW_ALLOW_FILE_STORE", "true")
    for name in ("one", "other"):
        mlflow.set_tracking_uri(f"file:{tmp_path}/{name}")
        id = train(tmp_path / name, "mlflow")["mlflow"]
        assert mlflow.MlflowClient().get_run(id).info.status == "FINISHED"
    assert "MLFLOW_EXPERIMENT_ID" not in os.environ


def test_runs_that_create_the_store_of_mlflow_at_once_all_start(tmp_path):
    pytest.importorskip("mlflow")
    pytest.importorskip("sqlalchemy")  # mlflow-skinny has no database
    code = (
        "import sys; from slowfast.config import get_cfg; from slowfast.engine.trackers import TRACKERS; "
        "cfg = get_cfg(); cfg.OUTPUT_DIR = sys.argv[1]; TRACKERS['mlflow'](cfg, 0, '').finish(False)"
    )
    environment = {name: value for name, value in os.environ.items() if not name.startswith("MLFLOW_")}
    environment |= {"MLFLOW_TRACKING_URI": f"sqlite:///{tmp_path}/mlflow.db", "PYTHONPATH": ":".join(sys.path)}
    jobs = [subprocess.Popen([sys.executable, "-c", code, f"run{n}"], env=environment, cwd=tmp_path) for n in range(3)]
    assert [job.wait() for job in jobs] == [0, 0, 0]
    with sqlite3.connect(tmp_path / "mlflow.db") as store:
        assert sorted(store.execute("SELECT name FROM runs")) == [("run0",), ("run1",), ("run2",)]


def wandb_records(path: Path) -> Iterator[Any]:
    """Yield the records of an offline file: blocks of 32 KiB with records of checksum, length, kind and content."""
    messages: Any = importlib.import_module("wandb.proto.wandb_internal_pb2")
    data, position, content = path.read_bytes(), 7, b""
    while position + 7 <= len(data):
        if (room := 32768 - position % 32768) < 7:
            position += room
            continue
        length, kind = struct.unpack("<HB", data[position + 4 : position + 7])
        if position + 7 + length > len(data):
            return
        content += data[position + 7 : position + 7 + length]
        position += 7 + length
        if kind in (1, 4):  # the record is complete
            yield messages.Record.FromString(content)
            content = b""


def complete_records(path: Path) -> list[Any]:
    """Return the records of an offline file; the service of wandb can write after the run has finished."""
    deadline = time.monotonic() + 30
    while time.monotonic() < deadline:
        records = [*wandb_records(path)]
        if any(record.HasField("exit") for record in records):
            return records
        time.sleep(0.1)
    raise TimeoutError(f"{path} has no end")


def test_wandb_gets_the_curves_and_a_resumed_run_continues(tmp_path, monkeypatch):
    pytest.importorskip("wandb")
    monkeypatch.setenv("WANDB_MODE", "offline")
    monkeypatch.delenv("WANDB_PROJECT", raising=False)
    ids = train(tmp_path, "wandb")
    time.sleep(1.1)  # wandb names the folder of a start by its second
    assert train(tmp_path, "wandb", first=3) == ids
    time.sleep(1.1)
    send_test(tmp_path, "wandb", train=False)
    rows, trains = dict[int, dict[str, str]](), list[Any]()
    files = sorted((tmp_path / "run7/wandb").glob("offline-run-*/*.wandb"), key=lambda path: path.stat().st_mtime_ns)
    for file in files:
        records = complete_records(file)
        (run,) = [record.run for record in records if record.WhichOneof("record_type") == "run"]
        assert (run.run_id, run.display_name, run.project) == (ids["wandb"], "run7", "slowfast")
        config = {(item.key or item.nested_key[0]): item.value_json for item in run.config.update}
        trains.append(config.get("TRAIN.ENABLE"))
        assert [record.exit.exit_code for record in records if record.HasField("exit")] == [0]
        for record in records:
            if record.HasField("history"):
                values = {(item.key or item.nested_key[0]): item.value_json for item in record.history.item}
                rows.setdefault(record.history.step.num, {}).update(values)
    assert trains == ["true", "true", None]  # a test leaves the configuration of its training as it is
    assert {step: float(row["train/loss"]) for step, row in rows.items()} == {n: 10.0 + n for n in range(1, 6)}
    assert [step for step, row in rows.items() if "val/top1" in row] == [3, 5]
    assert [float(row["test/top1"]) for row in rows.values() if "test/top1" in row] == [75.0]


def test_trackio_gets_the_curves_and_a_resumed_run_continues(tmp_path, monkeypatch):
    monkeypatch.setenv("TRACKIO_DIR", str(tmp_path / "store"))  # its import reads it
    pytest.importorskip("trackio")
    ids = train(tmp_path, "trackio")
    assert train(tmp_path, "trackio", first=3) == ids
    send_test(tmp_path, "trackio")
    with sqlite3.connect(tmp_path / "store/slowfast.db") as store:
        found = [*store.execute("SELECT run_id, run_name, step, metrics FROM metrics")]
        ((config,),) = store.execute("SELECT config FROM configs")
    assert len({run for run, *_ in found}) == 1 and {name for _, name, *_ in found} == {ids["trackio"]}
    assert json.loads(config)["TRAIN.BATCH_SIZE"] == get_cfg().TRAIN.BATCH_SIZE
    assert [step for *_, step, row in found if json.loads(row).get("test/top1") == 75] == [5]
    losses = {(step, json.loads(row).get("train/loss")) for *_, step, row in found}
    assert losses - {(3, None), (5, None)} == {(step, 10.0 + step) for step in range(1, 6)}
    assert {step for *_, step, row in found if "val/top1" in json.loads(row)} == {3, 5}


def test_a_tracker_without_its_package_is_refused_before_the_training(tmp_path, run_here):
    missing = [name for name in trackers.TRACKERS if importlib.util.find_spec(name) is None]
    if not missing:
        pytest.skip("all packages are installed")
    pairs = ["OUTPUT_DIR", f"{tmp_path}/out", "TRACKERS", f"[{','.join(missing)}]", "NUM_GPUS", "0"]
    done = run_here(run_net, "--cfg", "exp/demo/config.yaml", *pairs)
    assert done.returncode == 2 and f"pip install {' '.join(missing)}" in done.stderr
    assert not (tmp_path / "out").exists()


def test_every_name_that_the_key_accepts_is_a_tracker():
    assert KEYS["TRACKERS"].kind.read([*trackers.TRACKERS]) == [*trackers.TRACKERS]
    with pytest.raises(ValueError):
        KEYS["TRACKERS"].kind.read(["other"])
    cfg = get_cfg()
    cfg.TENSORBOARD.ENABLE, cfg.TRACKERS = True, ["wandb", "tensorboard"]
    assert trackers.chosen(cfg) == ["tensorboard", "wandb"]


@pytest.mark.parametrize("call", ["log", "finish"])
def test_a_tracker_that_fails_costs_one_warning_and_no_other_tracker(call, recorder, tmp_path, caplog):
    recorder.fails = call
    assert [*train(tmp_path, "wandb", "tensorboard")] == ["wandb"]
    assert [row["step"] for row in read_metrics(tmp_path / "run7")] == [1, 2, 3, 3]
    assert [*(tmp_path / "run7/tensorboard").iterdir()]
    assert len([record for record in caplog.records if record.levelno >= logging.WARNING]) == 1


def test_a_tracker_that_blocks_never_blocks_a_step_or_the_end(recorder, tmp_path, caplog, monkeypatch):
    monkeypatch.setattr(trackers, "PATIENCE", 0.2)
    monkeypatch.setattr(trackers, "MOST_ROWS", 50)
    recorder.fails = "log blocks"
    with make(tmp_path, "wandb") as run:
        for step in range(200):
            run.train(step + 1, 0.0, VALUES)
        assert run.trackers[0].rows.qsize() == 50
        started = time.monotonic()
    assert 0.1 < time.monotonic() - started < 20
    assert len([record for record in caplog.records if record.levelno >= logging.WARNING]) == 1


def test_a_new_run_needs_its_trackers_and_a_resumed_one_does_not(recorder, tmp_path, caplog):
    recorder.fails = "start"
    with pytest.raises(ValueError, match="wandb"):
        train(tmp_path, "wandb")
    assert not (tmp_path / "run7/trackers.json").exists()
    recorder.fails = ""
    ids = train(tmp_path, "wandb")
    assert train(tmp_path, "wandb", first=3) == ids == {"wandb": recorder.made[1].id}
    assert (recorder.made[1].given, recorder.made[2].given) == ("", ids["wandb"])
    assert not caplog.records or max(record.levelno for record in caplog.records) < logging.WARNING
    recorder.fails = "start"
    assert train(tmp_path, "wandb", first=5) == ids
    assert len([record for record in caplog.records if record.levelno >= logging.WARNING]) == 1
    (tmp_path / "run7/trackers.json").write_text("{")
    with pytest.raises(ValueError, match=r"run7/trackers\.json .*remove it"):
        train(tmp_path, "wandb", first=7)


def test_a_start_without_an_end_is_an_error(recorder, tmp_path, monkeypatch):
    monkeypatch.setattr(trackers, "SHORT", 0.1)
    monkeypatch.setattr(trackers, "START", 0.1)
    recorder.fails = "start blocks"
    started = time.monotonic()
    with pytest.raises(ValueError, match="wandb"):
        train(tmp_path, "wandb")
    assert time.monotonic() - started < 20
    assert not (tmp_path / "run7/trackers.json").exists()


def test_the_error_of_a_start_is_complete(recorder, tmp_path, monkeypatch):
    def fail(*_: Any) -> None:
        raise ValueError("1 validation error\nsilent\n  must be a bool")

    monkeypatch.setattr(recorder, "call", fail)
    with pytest.raises(ValueError, match="1 validation error silent must be a bool"):
        train(tmp_path, "wandb")


def test_a_resumed_run_does_not_wait_for_the_start_of_a_tracker(recorder, tmp_path):
    train(tmp_path, "wandb")
    recorder.fails = "start blocks"
    with make(tmp_path, "wandb", step=3) as run:
        run.train(4, 0.0, VALUES | {"loss": 14.0})
        assert recorder.made[1].rows == []
        recorder.blocked.set()
    assert recorder.made[1].rows == [(4, 14.0)]


@pytest.mark.parametrize(("error", "failed"), [(RuntimeError, True), (Interruption, False), (None, False)])
def test_a_run_that_an_error_ends_is_failed_there(error, failed, recorder, tmp_path):
    try:
        with make(tmp_path, "wandb") as run:
            run.train(1, 0.0, VALUES)
            if error:
                raise error("reason")
    except (RuntimeError, Interruption):
        pass
    assert recorder.made[0].end is failed


@pytest.mark.parametrize("trained", [True, False])
def test_the_metrics_of_a_test_go_to_the_run_of_its_training(trained, recorder, tmp_path):
    if trained:
        train(tmp_path, "wandb")
    send_test(tmp_path, "wandb")
    assert [(run.id, run.end) for run in recorder.made] == [("run-0", False)] * (1 + trained)
    assert recorder.made[-1].rows == [(3 * trained, 75.0)]


def test_a_test_ends_well_without_its_tracker(recorder, tmp_path, caplog):
    recorder.fails = "start"
    send_test(tmp_path, "wandb")
    assert len([record for record in caplog.records if record.levelno >= logging.WARNING]) == 1


@pytest.mark.parametrize(("train", "runs"), [(False, 0), (True, 1)])  # the second one is the test of that training
def test_a_test_beside_a_running_training_leaves_its_trackers_alone(train, runs, recorder, tmp_path):
    with hold(tmp_path / "run7" / TRAINING):
        send_test(tmp_path, "wandb", train=train)
    assert len(recorder.made) == runs
    send_test(tmp_path, "wandb", train=train)
    assert len(recorder.made) == runs + 1


class Resumed:
    """A run that wandb continues: it has rows up to step 6, and drops rows of earlier steps."""

    resumed, step = True, 7

    def __init__(self, **_: Any) -> None:
        self.rows = dict[int, dict[str, float]]()

    def log(self, values: dict[str, float], step: int) -> None:
        if step >= self.step:
            self.step = step
            self.rows.setdefault(step, {}).update(values)


def test_wandb_gets_a_test_at_the_next_step_and_no_repeated_rows(tmp_path, monkeypatch):
    module = types.ModuleType("wandb")
    kept = list[Resumed]()
    module.init = lambda **options: kept.append(Resumed(**options)) or kept[-1]  # pyright: ignore
    module.Settings = dict  # pyright: ignore
    monkeypatch.setitem(sys.modules, "wandb", module)
    training = trackers.TRACKERS["wandb"](settings(tmp_path, "wandb"), 4, "id")
    for step in range(5, 9):
        training.log({"val/top1": float(step)}, step)
    trackers.TRACKERS["wandb"](settings(tmp_path, "wandb"), 6, "id").log({"test/top1": 75.0}, 6)
    assert [run.rows for run in kept] == [{7: {"val/top1": 7.0}, 8: {"val/top1": 8.0}}, {7: {"test/top1": 75.0}}]
