"""Records and curves of a training."""

from __future__ import annotations

import logging
from typing import Any

from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

from slowfast.config import get_cfg
from slowfast.engine import log
from slowfast.engine.log import RunLog
from slowfast.engine.meters import MEAN_CLASS, METRICS
from slowfast.utils.logging import read_metrics

VALUES = {"loss": 1.5, "lr": 0.1, "grad_norm": 2.0, "clips_per_s": 4.0, "data_wait": 0.25, "memory_gib": 3.0}
VALUES |= dict.fromkeys(METRICS, 50.0)


def make(folder: Any, step: int = 0, **options: Any) -> RunLog:
    cfg = get_cfg()
    cfg.OUTPUT_DIR, cfg.TENSORBOARD.ENABLE, cfg.TENSORBOARD.LOG_DIR = str(folder), True, options.get("LOG_DIR", "")
    return RunLog(cfg, step, last_step=options.get("last_step", 20))


def steps(folder: Any, curve: str) -> list[int]:
    events = EventAccumulator(str(folder)).Reload()
    return [event.step for event in events.Scalars(curve)]


def test_a_training_is_recorded_and_drawn_with_its_steps(tmp_path):
    with make(tmp_path) as run:
        run.train(5, 0.5, VALUES)
        run.epoch(10, 1, VALUES)
        run.validation(10, 1, VALUES | {MEAN_CLASS: 40.0, "num_videos": 7}, best=60.0)
    train, epoch, val = read_metrics(tmp_path)
    assert (train["kind"], train["step"], train["epoch"], train["grad_norm"]) == ("train", 5, 0.5, 2.0)
    assert (epoch["kind"], epoch["step"], epoch["epoch"], epoch["loss"]) == ("epoch", 10, 1, 1.5)
    assert (val["kind"], val["step"], val["epoch"], val["num_videos"]) == ("val", 10, 1, 7)
    assert val["loss"] == 1.5
    curves = EventAccumulator(str(tmp_path / "tensorboard")).Reload().Tags()["scalars"]
    assert set(curves) == {f"train/{name}" for name in VALUES} | {
        f"val/{name}" for name in ("loss", *METRICS, MEAN_CLASS)
    }
    assert steps(tmp_path / "tensorboard", "train/loss") == [5]


def test_a_resumed_run_hides_the_curves_of_the_steps_that_it_repeats(tmp_path):
    for first in (0, 2):
        with make(tmp_path, step=first, LOG_DIR="curves") as run:
            for step in (first + 1, first + 2, first + 3):
                run.train(step, 0.0, VALUES)
    assert steps(tmp_path / "curves", "train/loss") == [1, 2, 3, 4, 5]
    with make(tmp_path, LOG_DIR="curves") as run:  # all checkpoints were removed
        run.train(1, 0.0, VALUES)
    assert steps(tmp_path / "curves", "train/loss") == [1]


def test_the_remaining_time_is_that_of_the_remaining_steps(tmp_path, monkeypatch, caplog):
    now = 100.0
    monkeypatch.setattr(log.time, "perf_counter", lambda: now)
    with make(tmp_path, step=10, last_step=110) as run, caplog.at_level(logging.INFO):
        now += 30.0
        run.train(20, 0.0, VALUES)  # 10 steps in 30 seconds, and 90 to go
    assert "0:04:30" in caplog.text and "data wait 25%" in caplog.text


def test_other_processes_write_nothing(tmp_path, monkeypatch):
    monkeypatch.setattr("slowfast.utils.distributed.is_main", lambda: False)
    with make(tmp_path) as run:
        run.train(5, 0.5, VALUES)
        assert run.bar.disable
    assert list(tmp_path.iterdir()) == []
