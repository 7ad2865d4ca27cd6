"""Runs that are stopped, killed or disturbed continue with the same results."""

from __future__ import annotations

import math
import os
import signal
import subprocess
import time
from collections.abc import Callable
from pathlib import Path
from typing import BinaryIO

import pytest
import torch
from run_fixtures import Forked, losses
from torture import differences, result, torture

from slowfast.config import load_config
from slowfast.datasets.build import build_loader
from slowfast.engine import step, train
from slowfast.engine.batch_norm import update_statistics
from slowfast.engine.start import new_state, prepare_run
from slowfast.engine.step import settle, train_step
from slowfast.engine.train import close_epoch, save
from slowfast.models.build import build_model
from slowfast.optim.build import set_learning_rate
from slowfast.run import interrupt
from slowfast.run.checkpoint import list_checkpoints, snapshot
from slowfast.run.health import DUMPS
from slowfast.run.interrupt import EXIT_INTERRUPTED, EXIT_REQUEUE
from slowfast.utils.logging import read_metrics
from slowfast.utils.processes import usable_cores
from slowfast.weights.tensors import load_tensors

pytestmark = pytest.mark.slow
LONG = (
    "SOLVER.MAX_EPOCH", "40", "TRAIN.EVAL_PERIOD", "5", "TRAIN.CHECKPOINT_PERIOD", "100", "TEST.ENABLE", "False",
    "DATA_LOADER.DECODE_TIMEOUT", "60",  # with decoder processes, which must also end
)  # fmt: skip


def begin(fork, folder: Path, config: Path, *overrides: object, program: str | Path = "tools/run_net.py") -> Forked:
    """Start a training; it writes to stdout.txt and stderr.txt."""
    with open(folder / "stdout.txt", "w") as out, open(folder / "stderr.txt", "w") as err:
        return fork([program, "--cfg", config, *overrides], out, err, options=["spawn"])


def end(process: Forked, folder: Path) -> tuple[int, str, str]:
    """Return the exit code and the output."""
    return process.wait(120), (folder / "stdout.txt").read_text(), (folder / "stderr.txt").read_text()


def wait_for(condition: Callable[[], object], process: Forked, folder: Path) -> None:
    deadline = time.monotonic() + 120
    while not condition():
        assert process.poll() is None and time.monotonic() < deadline, end(process, folder)
        time.sleep(0.05)


def steps(output_dir: Path) -> int:
    return len(losses(output_dir)) if (output_dir / "metrics.jsonl").is_file() else 0


def left(session: int) -> list[str]:
    """Command lines of the processes of a session that live longer than a second; its last ones are just exiting."""
    deadline = time.monotonic() + 1
    while True:
        listed = subprocess.run(["ps", "-eo", "sid=,stat=,args="], capture_output=True, text=True, check=True).stdout
        rows = [line.split(None, 2) for line in listed.splitlines()]
        living = [row[2] for row in rows if int(row[0]) == session and row[1][0] != "Z" and row[2][0] != "["]
        if not living or time.monotonic() > deadline:
            return living


@pytest.mark.parametrize(
    ("processes", "number"),
    [(1, signal.SIGTERM), (1, signal.SIGHUP), (2, signal.SIGUSR1)],
    ids=lambda value: getattr(value, "name", str(value)),
)
def test_a_signal_finishes_the_step_saves_and_asks_to_be_started_again(
    processes, number, experiment, fork, run_net, tmp_path
):
    common = (*LONG, "DATA_LOADER.NUM_WORKERS", 1)
    process = begin(fork, tmp_path, experiment, *common, "NUM_PROCESSES", processes)
    wait_for(lambda: steps(tmp_path / "out") >= 8, process, tmp_path)
    os.kill(process.pid, number)
    code, out, err = end(process, tmp_path)
    assert code == EXIT_REQUEUE, out + err
    assert "is saved" in err and "Traceback" not in err and left(process.pid) == []
    saved = load_tensors(list_checkpoints(str(tmp_path / "out"))[-1])["step"]
    assert saved == steps(tmp_path / "out") >= 8

    common, ranks = (*common, "TRAIN.MAX_STEPS", saved + 4), processes * (processes > 1)
    run_net(experiment, *common, ranks=ranks)
    run_net(experiment, *common, "OUTPUT_DIR", tmp_path / "undisturbed", ranks=ranks)
    assert differences(result(tmp_path / "undisturbed"), result(tmp_path / "out")) == []


def test_a_signal_between_two_log_lines_saves_a_step_from_which_the_run_goes_on(experiment, fork, run_net, tmp_path):
    common = (*LONG, "LOG_PERIOD", 1000, "DATA_LOADER.NUM_WORKERS", 1)
    process = begin(fork, tmp_path, experiment, *common)
    path = tmp_path / "out" / "metrics.jsonl"
    wait_for(lambda: path.is_file() and "epoch" in [r["kind"] for r in read_metrics(path)], process, tmp_path)
    os.kill(process.pid, signal.SIGTERM)
    code, out, err = end(process, tmp_path)
    assert code == EXIT_REQUEUE and steps(tmp_path / "out") == 0, out + err
    saved = load_tensors(list_checkpoints(str(tmp_path / "out"))[-1])["step"]
    assert 6 <= saved < 240

    run_net(experiment, *common, "TRAIN.MAX_STEPS", saved + 3)
    run_net(experiment, *common, "TRAIN.MAX_STEPS", saved + 3, "OUTPUT_DIR", tmp_path / "undisturbed")
    whole, resumed = (result(tmp_path / name)["checkpoint"] for name in ("undisturbed", "out"))
    assert differences(whole, resumed) == []


def test_a_run_with_a_divided_optimizer_goes_on_without_and_with_it(experiment, run_net, tmp_path):
    common = ("TEST.ENABLE", False, "EMA.ENABLE", True)
    for sharding, stop in (("zero1", 3), ("none", 5), ("zero1", 8)):
        run_net(experiment, *common, "TRAIN.MAX_STEPS", stop, "DDP.SHARDING", sharding, ranks=2)
    run_net(experiment, *common, "TRAIN.MAX_STEPS", 8, "OUTPUT_DIR", tmp_path / "whole", ranks=2)
    assert differences(result(tmp_path / "whole"), result(tmp_path / "out")) == []


def test_a_run_of_three_processes_goes_on_with_the_same_rounding(experiment, run_net, tmp_path):
    common = ("TEST.ENABLE", False, "TRAIN.BATCH_SIZE", 6, "SOLVER.ACCUMULATION_STEPS", 2, "EMA.ENABLE", True)
    for stop in (1, 4):
        run_net(experiment, *common, "TRAIN.MAX_STEPS", stop, ranks=3)
    run_net(experiment, *common, "TRAIN.MAX_STEPS", 4, "OUTPUT_DIR", tmp_path / "whole", ranks=3)
    assert differences(result(tmp_path / "whole"), result(tmp_path / "out")) == []


STUCK_DISK = """
import runpy, threading, time
from slowfast.run import interrupt
from slowfast.run.checkpoint import CheckpointWriter

def write(*_):
    print("writing", flush=True)
    time.sleep(600)

def report():
    while not interrupt.received():
        time.sleep(0.01)
    print("heard", flush=True)

CheckpointWriter._write = write
threading.Thread(target=report, daemon=True).start()
runpy.run_path("tools/run_net.py", run_name="__main__")
"""


def test_a_second_interrupt_leaves_at_once(experiment, fork, tmp_path):
    """While a disk hangs, on which the first interrupt waits for its checkpoint."""
    (tmp_path / "stuck.py").write_text(STUCK_DISK)
    options = (*LONG, "DATA_LOADER.NUM_WORKERS", "2", "TRAIN.CHECKPOINT_MINUTES", "1e-6")
    process = begin(fork, tmp_path, experiment, *options, program=tmp_path / "stuck.py")
    for word in ("writing", "heard"):
        wait_for(lambda word=word: f"{word}\n" in (tmp_path / "stdout.txt").read_text(), process, tmp_path)
        os.kill(process.pid, signal.SIGINT)
    begun = time.monotonic()
    code, out, err = end(process, tmp_path)
    assert code == EXIT_INTERRUPTED and time.monotonic() < begun + 20, out + err
    assert err.count("a second Ctrl-C") == 1
    assert "from the last checkpoint" in err and "Traceback" not in err and left(process.pid) == []


def test_a_run_goes_on_without_a_killed_worker_and_leaves_no_process(experiment, fork, tmp_path):
    options = (*LONG, "TRAIN.MAX_STEPS", 30, "DATA_LOADER.NUM_WORKERS", 2, "TRAIN.CHECKPOINT_MINUTES", 1e-6)
    process = begin(fork, tmp_path, experiment, *options)
    wait_for(lambda: steps(tmp_path / "out") >= 3, process, tmp_path)
    listed = subprocess.run(["pgrep", "-P", str(process.pid)], capture_output=True, text=True, check=True).stdout
    os.kill(int(listed.split()[-1]), signal.SIGKILL)
    code, out, err = end(process, tmp_path)
    assert code == 0 and "a worker was killed" in out, out + err
    assert left(process.pid) == [] and list_checkpoints(str(tmp_path / "out"))


@pytest.mark.parametrize(("processes", "seed"), [(1, 16), (2, 18)])
def test_a_run_killed_at_random_equals_an_undisturbed_one(processes, seed, experiment, fork, tmp_path):
    """The short form of tools/torture.py; the seeds begin with a kill while a checkpoint is being written."""
    folder = tmp_path / "torture"
    folder.mkdir()

    def start(arguments: list[str], log: BinaryIO) -> Forked:
        return fork(arguments, log, log, ranks=processes * (processes > 1))

    overrides = ("DATA_LOADER.NUM_WORKERS", "1", "EMA.ENABLE", "True")
    overrides += ("DATA_LOADER.DECODE_TIMEOUT", str(60 * (processes == 1)))
    assert torture(str(experiment), overrides, folder, trials=1, kills=4 - processes, seed=seed, start=start) >= 1


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
    """8 videos a step, on one process in four parts, then on two at once: the log names the change."""
    common = ("TEST.ENABLE", False, "MODEL.FROZEN_BN", True)
    run_net(experiment, *common, "TRAIN.MAX_STEPS", 2, "TRAIN.BATCH_SIZE", 2, "SOLVER.ACCUMULATION_STEPS", 4)
    done = run_net(experiment, *common, "TRAIN.MAX_STEPS", 4, "TRAIN.BATCH_SIZE", 8, ranks=2)
    assert "resumed from" in done.stdout and "processes 2 instead of 1" in done.stdout
    run_net(experiment, *common, "TRAIN.MAX_STEPS", 4, "TRAIN.BATCH_SIZE", 8, "OUTPUT_DIR", tmp_path / "whole")
    assert losses(tmp_path / "out") == pytest.approx(losses(tmp_path / "whole"), abs=1e-5)


def test_a_resume_with_another_list_says_so(experiment, run_net, videos, tmp_path):
    for name in ("train.csv", "val.csv", "class_names.txt"):
        (tmp_path / name).write_text((videos / name).read_text())
    common = ("TEST.ENABLE", False, "DATA.PATH_TO_DATA_DIR", tmp_path)
    run_net(experiment, *common, "TRAIN.MAX_STEPS", 1)
    workers = min(usable_cores() + 1, 9)
    same = run_net(experiment, *common, "TRAIN.MAX_STEPS", 2, "DATA_LOADER.NUM_WORKERS", workers)
    rows = (tmp_path / "train.csv").read_text().splitlines(keepends=True)
    (tmp_path / "train.csv").write_text("".join([rows[1], rows[0], *rows[2:]]))
    other = run_net(experiment, *common, "TRAIN.MAX_STEPS", 3)
    message = "has changed since the checkpoint was written"
    assert "resumed from" in same.stdout and message not in same.stdout
    if workers <= 8:  # more than there are cores: one warning, with the number that is enough
        assert same.stdout.count(f"NUM_WORKERS to {workers - 1},") == 1
    assert "This DataLoader" not in same.stdout + same.stderr
    assert "resumed from" in other.stdout and f"{tmp_path / 'train.csv'} {message}" in other.stdout
    rows = (tmp_path / "val.csv").read_text().splitlines(keepends=True)
    (tmp_path / "val.csv").write_text("".join(rows[1:]))
    other = run_net(experiment, *common, "TRAIN.MAX_STEPS", 4)
    assert f"{tmp_path / 'val.csv'} {message}" in other.stdout and "the best accuracy so far is of" in other.stdout
    assert f"train.csv {message}" not in other.stdout


@pytest.fixture
def training(experiment, tmp_path):
    """State and run of a training that takes its batches from a test."""
    changes = (
        "TRAIN.MAX_NONFINITE", 3, "EMA.ENABLE", True, "EMA.DECAY", 0.9, "BN.USE_PRECISE_STATS", True,
        "BN.NUM_BATCHES_PRECISE", 2, "UNIFORMER.DROP_DEPTH_RATE", 0.5,
    )  # fmt: skip
    cfg = load_config(str(experiment), [str(value) for value in changes])
    (tmp_path / "out").mkdir()
    device = torch.device("cpu")
    state = new_state(cfg, build_model(cfg), 6, device)
    return state, prepare_run(cfg, state, 24, {}, device)


@pytest.fixture
def good() -> dict:
    """Make a batch."""
    video = torch.rand(4, 3, 4, 32, 32, generator=torch.Generator().manual_seed(0)) * 255
    return {"video": video, "label": torch.arange(4), "index": torch.arange(4), "view": torch.zeros(4), "bad": []}


def take_step(state, run, batches):
    train_step(state, run, batches)
    return settle(state, run)


@pytest.mark.parametrize("scaling", [False, True])
def test_a_step_that_is_not_finite_changes_nothing(scaling, training, good, tmp_path):
    state, run = training
    state.scaler = torch.amp.GradScaler("cpu", enabled=scaling, init_scale=1024.0)
    poisoned = {**good, "video": good["video"].clone().index_fill_(0, torch.tensor([2]), torch.inf)}
    set_learning_rate(state.optimizer, 1e-3)
    take_step(state, run, iter([good]))

    def content() -> dict:
        counted = ("nonfinite", "scaler_state")
        return {key: value for key, value in state.state_dict().items() if key not in counted}

    before = snapshot(content())
    outcome = take_step(state, run, iter([poisoned]))
    assert not math.isfinite(outcome.grad_norm) and state.nonfinite == 1
    assert differences(before, content()) == []
    dump = load_tensors(tmp_path / "out" / "nonfinite" / "step_000000_rank_0.pth")
    assert torch.equal(dump["batches"][0]["video"], poisoned["video"]) and "NUM_CLASSES: 8" in dump["cfg"]
    loss, run.loss = run.loss, lambda logits, target: loss(logits, target) + math.inf
    outcome = take_step(state, run, iter([good]))
    assert math.isfinite(outcome.grad_norm) and state.nonfinite == 2
    assert differences(before, content()) == []
    run.loss = loss
    take_step(state, run, iter([good]))
    assert state.nonfinite == 0 and differences(before, content()) != []
    for _ in range(2):
        take_step(state, run, iter([poisoned]))
    with pytest.raises(ValueError, match=r"3 steps in a row.*SOLVER\.BASE_LR") as refused:
        take_step(state, run, iter([poisoned]))
    assert "TRAIN.AMP_DTYPE" not in str(refused.value)  # the training is in float32


def test_gradients_beyond_float16_are_no_fault_until_there_is_no_scale_to_lower(training, good):
    state, run = training
    state.scaler = torch.amp.GradScaler("cpu", init_scale=4.0)
    loss = run.loss

    def with_nan_gradient(logits, target):
        return loss(logits, target) + 0 * torch.sqrt(logits.sum() - logits.sum().detach())

    run.loss = with_nan_gradient
    counts = []
    for _ in range(4):
        outcome = take_step(state, run, iter([good]))
        assert math.isnan(outcome.grad_norm)
        counts.append((state.scaler.get_scale(), state.nonfinite))
    assert counts == [(2.0, 0), (1.0, 0), (0.5, 1), (0.25, 2)]
    with pytest.raises(ValueError, match="3 steps in a row"):
        take_step(state, run, iter([good]))


def test_batches_of_few_steps_that_are_not_finite_are_kept(training, good, tmp_path):
    state, run = training
    loss = run.loss
    for state.step in range(2 * DUMPS):
        run.loss = lambda logits, target: loss(logits, target) * math.nan
        take_step(state, run, iter([good]))
        run.loss = loss
        take_step(state, run, iter([good]))
    assert len(list((tmp_path / "out" / "nonfinite").iterdir())) == DUMPS


def test_every_batch_of_a_step_is_progress(training, good, monkeypatch):
    state, run = training
    calls = []
    monkeypatch.setattr(step, "progress", lambda: calls.append(1))
    run.cfg = run.cfg.clone()
    run.cfg.defrost()
    run.cfg.SOLVER.ACCUMULATION_STEPS = 3
    take_step(state, run, iter([good] * 3))
    assert len(calls) == 3


@pytest.fixture
def loaders(training):
    return [build_loader(training[1].cfg, split) for split in ("train", "val")]


def test_a_stop_saves_while_steps_fail_and_a_resume_goes_on_counting(training, loaders, tmp_path):
    state, run = training
    state.nonfinite = 2
    assert not save(state, run)
    run.writer.wait()
    assert list_checkpoints(run.cfg.OUTPUT_DIR) == []
    assert save(state, run, failing=True)
    run.writer.wait()
    content = load_tensors(list_checkpoints(run.cfg.OUTPUT_DIR)[0])
    state.nonfinite = 0
    state.load_state_dict(content)
    assert state.nonfinite == 2
    del content["nonfinite"]  # as older code wrote it
    state.load_state_dict(content)
    assert state.nonfinite == 0


def test_bad_videos_are_written_down_before_the_checkpoint_that_a_limit_follows(training, loaders, tmp_path):
    state, run = training
    for name in ("a.mp4", "b.mp4"):
        run.bad.new.append((1, name, "torn"))  # of a process that writes nothing itself
    with pytest.raises(ValueError, match="2 of 24 videos"):
        save(state, run)
    run.writer.wait()
    assert len(list_checkpoints(run.cfg.OUTPUT_DIR)) == 1
    assert (tmp_path / "out" / "bad_videos.csv").read_text().split() == ["a.mp4,torn", "b.mp4,torn"]


@pytest.mark.parametrize("stopped_in", ["statistics", "validation"])
@pytest.mark.parametrize("failing", [False, True])
def test_the_end_of_an_epoch_can_be_stopped_and_is_saved_as_it_began(
    stopped_in, failing, training, good, loaders, monkeypatch
):
    state, run = training
    take_step(state, run, iter([good]))
    state.step, state.nonfinite = 6, int(failing)
    before = snapshot(state.state_dict())
    monkeypatch.setattr(interrupt, "_received", [signal.SIGTERM] if stopped_in == "statistics" else [])
    if stopped_in == "validation":
        validate = train.validate
        monkeypatch.setattr(
            train, "validate", lambda *args: interrupt._received.append(signal.SIGTERM) or validate(*args)
        )
    with pytest.raises(interrupt.Interruption, match="statistics" if stopped_in == "statistics" else "validate"):
        close_epoch(state, run, *loaders)
    run.writer.wait()
    content = load_tensors(list_checkpoints(run.cfg.OUTPUT_DIR)[-1])
    assert differences(before, {key: content[key] for key in before}) == []
    assert differences(before, state.state_dict()) == []


def test_precise_statistics_depend_on_no_other_draws(training, loaders):
    state, run = training
    state.step = 6
    results = []
    before = snapshot(state.model.state_dict())
    for seed in (1, 2):
        state.model.load_state_dict(before)
        torch.manual_seed(seed)
        update_statistics(state, run, loaders[0])
        results.append(snapshot(state.model.state_dict()))
    assert differences(*results) == [] and differences(before, results[0]) != []
