"""Runs that are stopped, killed and disturbed go on as if nothing had happened."""

from __future__ import annotations

import math
import os
import signal
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from torture import differences, result, torture

from slowfast.config import load_config
from slowfast.engine.checkpoint import CheckpointWriter, list_checkpoints, snapshot
from slowfast.engine.ema import ModelEma
from slowfast.engine.meters import TrainMeter
from slowfast.engine.setup import BadVideos, clip_mover
from slowfast.engine.state import TrainState
from slowfast.engine.tensorboard import TensorBoard
from slowfast.engine.train import Run, train_step
from slowfast.models.build import build_model
from slowfast.optim.build import build_loss, build_optimizer, set_learning_rate
from slowfast.utils.io import load_tensors
from slowfast.utils.logging import MetricsLog, read_metrics

pytestmark = pytest.mark.slow
ROOT = Path(__file__).parents[2]
EXIT_REQUEUE = 75
LONG = ("SOLVER.MAX_EPOCH", "40", "TRAIN.EVAL_PERIOD", "5", "TRAIN.CHECKPOINT_PERIOD", "100", "TEST.ENABLE", "False")


def begin(config: Path, *overrides: object) -> subprocess.Popen:
    command = [sys.executable, "tools/run_net.py", "--cfg", str(config), *map(str, overrides)]
    environment = {**os.environ, "OMP_NUM_THREADS": "1", "PYTHONPATH": str(ROOT)}
    return subprocess.Popen(
        command, cwd=ROOT, env=environment, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True,
        start_new_session=True,
    )  # fmt: skip


def wait_for(condition: Callable[[], object], process: subprocess.Popen) -> None:
    deadline = time.monotonic() + 120
    while not condition():
        assert process.poll() is None and time.monotonic() < deadline, process.communicate()
        time.sleep(0.05)


def steps(output_dir: Path) -> int:
    path = output_dir / "metrics.jsonl"
    return len([r for r in read_metrics(path) if r["kind"] == "train"]) if path.is_file() else 0


def members(session: int) -> list[str]:
    """Command lines of the living processes of a session."""
    listed = subprocess.run(["ps", "-eo", "sid=,stat=,args="], capture_output=True, text=True, check=True).stdout
    rows = [line.split(None, 2) for line in listed.splitlines()]
    return [row[2] for row in rows if int(row[0]) == session and not row[1].startswith("Z")]


@pytest.mark.parametrize(
    ("processes", "number"),
    [(1, signal.SIGTERM), (2, signal.SIGUSR1)],
    ids=lambda value: getattr(value, "name", str(value)),
)
def test_a_signal_finishes_the_step_saves_and_asks_to_be_started_again(
    processes, number, experiment, run_net, tmp_path
):
    common = (*LONG, "NUM_PROCESSES", processes, "DATA_LOADER.NUM_WORKERS", 1)
    process = begin(experiment, *common)
    wait_for(lambda: steps(tmp_path / "out") >= 8, process)
    os.kill(process.pid, number)
    out, err = process.communicate(timeout=60)
    assert process.returncode == EXIT_REQUEUE, out + err
    assert "goes on" in err and "Traceback" not in err and members(process.pid) == []
    saved = load_tensors(list_checkpoints(str(tmp_path / "out"))[-1])["step"]
    assert saved == steps(tmp_path / "out") >= 8

    end = ("TRAIN.MAX_STEPS", saved + 4)
    run_net(experiment, *common, *end)
    run_net(experiment, *common, *end, "OUTPUT_DIR", tmp_path / "undisturbed")
    assert differences(result(tmp_path / "undisturbed"), result(tmp_path / "out")) == []


def test_a_second_interrupt_leaves_at_once(experiment, tmp_path):
    process = begin(experiment, *LONG, "DATA_LOADER.NUM_WORKERS", 2)
    wait_for(lambda: steps(tmp_path / "out") >= 2, process)
    os.kill(process.pid, signal.SIGSTOP)  # so that both arrive within one step
    os.kill(process.pid, signal.SIGINT)
    os.kill(process.pid, signal.SIGCONT)
    os.kill(process.pid, signal.SIGINT)
    process.communicate(timeout=60)
    assert process.returncode in (130, EXIT_REQUEUE) and members(process.pid) == []


def test_a_killed_worker_is_named_and_nothing_is_left(experiment, tmp_path):
    process = begin(experiment, *LONG, "DATA_LOADER.NUM_WORKERS", 2, "TRAIN.CHECKPOINT_MINUTES", 1e-6)
    wait_for(lambda: steps(tmp_path / "out") >= 3, process)
    listed = subprocess.run(["pgrep", "-P", str(process.pid)], capture_output=True, text=True, check=True).stdout
    os.kill(int(listed.split()[-1]), signal.SIGKILL)
    out, err = process.communicate(timeout=60)
    assert process.returncode not in (0, EXIT_REQUEUE) and "killed by signal" in out + err
    assert members(process.pid) == [] and list_checkpoints(str(tmp_path / "out"))


@pytest.mark.parametrize("processes", [1, 2])
def test_torture(processes, experiment, tmp_path):
    """The short form of tools/torture.py."""
    folder = tmp_path / "torture"
    folder.mkdir()
    overrides = ("NUM_PROCESSES", str(processes), "DATA_LOADER.NUM_WORKERS", "1", "EMA.ENABLE", "True")
    assert torture(str(experiment), overrides, folder, trials=1, kills=3, seed=processes) >= 1


def test_checkpoints_within_an_epoch(experiment, run_net, tmp_path):
    run_net(experiment, "TRAIN.CHECKPOINT_MINUTES", 1e-6, "TRAIN.KEEP_CHECKPOINTS", 0, "TEST.ENABLE", False)
    steps = [load_tensors(path)["step"] for path in list_checkpoints(str(tmp_path / "out"))]
    assert steps == list(range(1, 13))


def test_a_job_stopped_in_validation_validates_when_it_goes_on(experiment, run_net, tmp_path):
    """What a kill in the middle of a validation leaves: the checkpoint from before it."""
    run_net(experiment, "TEST.ENABLE", False)
    path = list_checkpoints(str(tmp_path / "out"))[-1]
    checkpoint = load_tensors(path)
    best = checkpoint["best"]
    torch.save({**checkpoint, "epochs_closed": 1, "best": -1.0}, path)
    done = run_net(experiment, "TEST.ENABLE", False)
    assert "validation after epoch 2" in done.stdout
    again = load_tensors(list_checkpoints(str(tmp_path / "out"))[-1])
    assert (
        again["epochs_closed"] == 2
        and again["best"]
        == [record["top1"] for record in read_metrics(tmp_path / "out") if record["kind"] == "val"][-1]
    )
    assert again["best"] <= best


def test_a_step_split_in_another_way_goes_on(experiment, run_net, tmp_path):
    """8 videos a step, on one process in four parts, then on two at once: the log says what changed."""
    common = ("TEST.ENABLE", False, "MODEL.FROZEN_BN", True)
    run_net(experiment, *common, "TRAIN.MAX_STEPS", 2, "TRAIN.BATCH_SIZE", 2, "SOLVER.ACCUMULATION_STEPS", 4)
    done = run_net(experiment, *common, "TRAIN.MAX_STEPS", 4, "TRAIN.BATCH_SIZE", 8, "NUM_PROCESSES", 2)
    assert "resumed from" in done.stdout and "2 processes instead of 1" in done.stdout
    run_net(experiment, *common, "TRAIN.MAX_STEPS", 4, "TRAIN.BATCH_SIZE", 8, "OUTPUT_DIR", tmp_path / "whole")
    losses = [[r["loss"] for r in read_metrics(tmp_path / name) if r["kind"] == "train"] for name in ("out", "whole")]
    assert losses[0] == pytest.approx(losses[1], abs=1e-5)


@pytest.fixture
def training(experiment, tmp_path):
    """State and run of a training that takes its batches from a test."""
    cfg = load_config(str(experiment), ["TRAIN.MAX_NONFINITE", "3", "EMA.ENABLE", "True"])
    device = torch.device("cpu")
    model = build_model(cfg)
    scaler = torch.amp.GradScaler("cpu", enabled=False)
    state = TrainState(model, build_optimizer(model, cfg), scaler, TrainMeter(device), ModelEma(model, 0.9))
    run = Run(
        cfg=cfg, device=device, network=model, to_device=clip_mover(cfg, device), loss=build_loss(cfg), mixup=None,
        amp=None, log=MetricsLog(cfg.OUTPUT_DIR), board=TensorBoard(cfg, 0, enabled=False),
        bad=BadVideos(cfg, 24, device, resumed=False), writer=CheckpointWriter(cfg.OUTPUT_DIR), steps_per_epoch=6,
        first_step=0, last_step=12,
    )  # fmt: skip
    return state, run


def test_a_step_that_is_not_finite_changes_nothing(training, tmp_path):
    state, run = training
    (tmp_path / "out").mkdir()
    video = torch.rand(4, 3, 4, 32, 32, generator=torch.Generator().manual_seed(0)) * 255
    good = {"video": video, "label": torch.arange(4), "index": torch.arange(4), "view": torch.zeros(4), "bad": []}
    poisoned = {**good, "video": video.clone().index_fill_(0, torch.tensor([2]), torch.inf)}
    set_learning_rate(state.optimizer, 1e-3)
    train_step(state, run, iter([good]))
    before = snapshot(state.state_dict(6))
    for row in (1, 2):
        outcome = train_step(state, run, iter([poisoned]))
        assert not math.isfinite(outcome.grad_norm) and state.nonfinite == row
        assert differences(before, state.state_dict(6)) == []
    dump = load_tensors(tmp_path / "out" / "nonfinite" / "step_000000_rank_0.pth")
    assert torch.equal(dump["batches"][0]["video"], poisoned["video"]) and "NUM_CLASSES: 8" in dump["cfg"]
    train_step(state, run, iter([good]))
    assert state.nonfinite == 0 and differences(before, state.state_dict(6)) != []
    for _ in range(2):
        train_step(state, run, iter([poisoned]))
    with pytest.raises(ValueError, match=r"3 steps in a row.*SOLVER\.BASE_LR"):
        train_step(state, run, iter([poisoned]))
