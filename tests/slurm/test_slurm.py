"""Runs on a real Slurm cluster of two nodes, interrupted twice; submissions that are accepted and refused."""

from __future__ import annotations

import os
import re
import shutil
import signal
import subprocess
import sys
import time
from argparse import Namespace
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest
import run_net as program
import torch
from cluster import NODES, SYSTEM_PATH, Cluster, why_not
from run_fixtures import losses, write_python

from slowfast.config import load_config
from slowfast.run import slurm
from slowfast.run.checkpoint import last_checkpoint
from slowfast.run.slurm import PORTS, minutes, sbatch_parameters
from slowfast.weights.tensors import load_tensors

ROOT = Path(__file__).parents[2]
# a small network, and more steps than a test waits for
LONG = (
    "SOLVER.MAX_EPOCH", 9000, "TRAIN.EVAL_PERIOD", 9000, "TRAIN.CHECKPOINT_PERIOD", 9000, "TEST.ENABLE", False,
    "LOG_PERIOD", 1, "TENSORBOARD.ENABLE", False, "DATA_LOADER.NUM_WORKERS", 1, "DATA_LOADER.DECODE_TIMEOUT", 0,
    "DATA.NUM_FRAMES", 4, "DATA.TRAIN_CROP_SIZE", 32, "DATA.TEST_CROP_SIZE", 32, "UNIFORMER.DEPTH", "[1,1,1,1]",
    "UNIFORMER.EMBED_DIM", "[8,16,32,32]", "UNIFORMER.HEAD_DIM", 16,
)  # fmt: skip


@pytest.fixture(scope="module")
def checkout(warm, tmp_path_factory) -> Path:
    """Return a folder as a checkout, whose `bin/python` makes few videos and forks from the server of tests/warm.py.

    So does its `srun`, whose last five arguments are the command of submitit.
    """
    if reason := why_not():  # before Slurm's srun is looked up: this may install it
        pytest.skip(reason)
    folder = tmp_path_factory.mktemp("checkout")
    for name in ("configs", "exp", "tools"):
        (folder / name).symlink_to(ROOT / name)
    (folder / "bin").mkdir()
    write_python(folder / "bin/python", warm, [("make_demo_data", ["--train", "24", "--test", "8"], {})])
    srun, relay = shutil.which("srun", path=SYSTEM_PATH), f"{sys.executable} -SE {ROOT}/tests/relay.py {warm}"
    (folder / "bin/srun").write_text(f'#!/bin/bash\nexec {srun} "${{@:1:$#-5}}" {relay} "${{@: -5}}"\n')
    (folder / "bin/srun").chmod(0o755)
    return folder


@pytest.fixture(scope="module")
def cluster(checkout) -> Iterator[Cluster]:
    with Cluster() as running:
        running.environment |= {"OMP_NUM_THREADS": "1", "PYTHONPATH": str(ROOT)}
        places = (str(checkout / "bin"), str(Path(sys.executable).parent), running.environment["PATH"])
        running.environment["PATH"] = os.pathsep.join(places)
        yield running


def wait_for(cluster: Cluster, what: Callable[[], object], seconds: float = 240.0) -> None:
    deadline = time.monotonic() + seconds
    while not what():
        if time.monotonic() > deadline:
            jobs, nodes = (cluster.run("scontrol", "show", kind) for kind in ("jobs", "nodes"))
            logs = "".join(f"\n{path.name}:\n{path.read_text()[-4000:]}" for path in cluster.folder.glob("*.log"))
            pytest.fail(f"this took too long\n{jobs}\n{nodes}{logs}")
        time.sleep(0.05)


def submit(cluster: Cluster, folder: Path, *command: object, fresh: str = "") -> list[str]:
    """Run a script that submits jobs, whose rank `fresh` is a new interpreter; returns their numbers."""
    environment = {**cluster.environment, "FRESH_RANK": fresh}
    done = subprocess.run(list(map(str, command)), cwd=folder, env=environment, capture_output=True, text=True)
    assert done.returncode == 0, done.stdout + done.stderr
    return re.findall(r"submitted job (\d+)", done.stdout)


def state(cluster: Cluster, job: str) -> str:
    return re.findall(r"JobState=(\w+)", cluster.run("scontrol", "show", "job", job))[0]


def steps_in(log: Path) -> int:
    return int(([0, *re.findall(r" step (\d+)/", log.read_text())] if log.is_file() else [0])[-1])


def resumed_after(cluster: Cluster, log: Path, times: int) -> None:
    """Wait until a requeued job runs again."""

    def begun() -> bool:
        attempts = re.split(r"resumed from .*", log.read_text())
        return len(attempts) == times + 1 and " step " in attempts[-1]

    wait_for(cluster, begun)


def end_at(step: int, out: Path) -> None:
    """Let the next attempt of a training end at a step; each attempt reads the configuration of its job."""
    for path in (out / "slurm").glob("config_*.yaml"):
        text = path.read_text()
        path.write_text(re.sub(r"\bMAX_STEPS: \d+", f"MAX_STEPS: {step}", text))
        assert path.read_text() != text


@pytest.mark.slow
def test_the_demo_is_preempted_and_ends_with_the_same_weights(cluster, checkout, run_net, tmp_path):
    out = tmp_path / "out"
    flags = ("--slurm", "--nodes", 2, "--time", "1:00:00", "--sbatch", "comment=of a test", "TRAIN.BATCH_SIZE", 4)
    command = ("bash", "exp/demo/run.sh", *flags, *LONG, "OUTPUT_DIR", out)
    training, control = submit(cluster, checkout, *command, fresh="0")
    log = out / "slurm" / f"{training}.log"
    assert "Dependency=afterok" in cluster.run("scontrol", "show", "job", control)
    assert "Comment=of a test" in cluster.run("scontrol", "show", "job", training)

    wait_for(cluster, lambda: steps_in(log) >= 5)
    cluster.run("scancel", "--signal=USR2", training)  # what Slurm sends before a time limit
    resumed_after(cluster, log, times=1)
    cluster.run("scontrol", "requeuehold", training)  # what an administrator does; a preemption does not hold the job
    wait_for(cluster, lambda: len(saved_in(log)) == 2 and state(cluster, training) == "PENDING")
    last = saved_in(log)[1] + 5
    end_at(last, out)
    cluster.run("scontrol", "release", training)
    resumed_after(cluster, log, times=2)
    wait_for(cluster, lambda: state(cluster, training) == "COMPLETED")
    assert state(cluster, control) in ("PENDING", "RUNNING", "COMPLETED")
    cluster.run("scancel", control)

    text = log.read_text()
    assert "2 processes on 2 nodes that agree" in text
    resumed = [int(step) for step in re.findall(r"resumed from \S+ at step (\d+)", text)]
    assert resumed == saved_in(log) and 5 <= resumed[0] < resumed[1] < last

    undisturbed = (*LONG, "DATA.PATH_TO_DATA_DIR", checkout / "data/demo", "DATA.PATH_PREFIX", checkout / "data/demo")
    sizes = ("TRAIN.BATCH_SIZE", 8, "TRAIN.MAX_STEPS", last, "OUTPUT_DIR", tmp_path / "undisturbed")
    run_net(Path("exp/demo/config.yaml"), *undisturbed, *sizes, ranks=2)
    assert_same_run(out, tmp_path / "undisturbed", last)


def saved_in(log: Path) -> list[int]:
    """Return the steps at which attempts stopped."""
    return [int(step) for step in re.findall(r"\] asked to stop, saved at step (\d+)", log.read_text())]


def assert_same_run(one: Path, other: Path, steps: int) -> None:
    a, b = (load_tensors(last_checkpoint(str(folder)) or "") for folder in (one, other))
    assert a["step"] == b["step"] == steps
    assert all(torch.equal(value, b["model_state"][name]) for name, value in a["model_state"].items())
    assert losses(one) == losses(other) and len(losses(one)) == steps


@pytest.mark.slow
def test_a_job_that_slurm_refuses_leaves_nothing(cluster, checkout, tmp_path):
    command = ["python", "tools/run_net.py", "--cfg", "exp/demo/config.yaml", "--slurm", "--partition", "nowhere"]
    out = ("OUTPUT_DIR", str(tmp_path / "out"))
    done = subprocess.run([*command, *out], cwd=checkout, env=cluster.environment, capture_output=True, text=True)
    assert done.returncode == 2 and "invalid partition specified: nowhere" in done.stderr.splitlines()[0]
    assert "Traceback" not in done.stderr and not list((tmp_path / "out" / "slurm").iterdir())


def test_a_refused_job_leaves_the_files_of_a_job_that_starts(monkeypatch, tmp_path, run_here):
    folder, programs = tmp_path / "out" / "slurm", tmp_path / "bin"
    programs.mkdir()
    refuses = f"mkdir {folder}/7_errors; echo x > {folder}/7.log; exit 1"
    for name, text in {"srun": "", "squeue": "", "sbatch": refuses}.items():
        (programs / name).write_text(f"#!/bin/sh\n{text}\n")
        (programs / name).chmod(0o755)
    monkeypatch.setenv("PATH", f"{programs}:/usr/bin:/bin")
    experiment, out = ROOT / "exp/demo/config.yaml", tmp_path / "out"
    done = run_here(program, "--cfg", experiment, "--slurm", "OUTPUT_DIR", out, "TRAIN.BATCH_SIZE", 4)
    assert done.returncode == 2
    assert "Slurm refused the job" in done.stderr and "SOLVER.ACCUMULATION_STEPS 4," in done.stderr
    assert sorted(path.name for path in folder.iterdir()) == ["7.log", "7_errors"]


@pytest.mark.slow
def test_a_killed_process_ends_the_job(cluster, checkout, experiment, tmp_path):
    out = tmp_path / "out"
    flags = ("--slurm", "--nodes", 2, "--cfg", experiment)
    [job] = submit(cluster, checkout, "python", "tools/run_net.py", *flags, *LONG, "OUTPUT_DIR", out)
    log = out / "slurm" / f"{job}.log"
    wait_for(cluster, lambda: steps_in(log) >= 3)
    # the processes of the second node, as listed by the daemon of that node
    pids = cluster.run("scontrol", "listpids", f"{job}.0", NODES[1]).splitlines()[1:]
    task = next(int(line.split()[0]) for line in pids if line.split()[3] == "0" and line.split()[4] == "1")
    os.kill(task, signal.SIGKILL)
    wait_for(cluster, lambda: state(cluster, job) in ("FAILED", "COMPLETED", "CANCELLED"), seconds=60)
    assert state(cluster, job) == "FAILED"
    assert "node1: task 1: Killed" in log.read_text()


def test_times_are_read_in_every_form_of_slurm():
    written = {"90": 90, "2:30": 3, "10:00:00": 600, "1-0": 1440, "2-12:30": 3630, "0:00:01": 1}
    assert {text: minutes(text) for text in written} == written
    for text in ("", "an hour", "1:2:3:4", "-5"):
        with pytest.raises(ValueError, match="HH:MM:SS"):
            minutes(text)


@pytest.mark.parametrize(
    ("gpus", "sbatch", "expected"), [(2, [], 2), (0, [], None), (2, ["gres=gpu:a100:2"], None), (2, ["qos=high"], 2)]
)
def test_gpus_and_cores_are_requested_unless_sbatch_has_them(gpus, sbatch, expected):
    cfg = load_config(None, ["NUM_GPUS", str(gpus), "DATA_LOADER.NUM_WORKERS", "3"])
    options = Namespace(time="60", signal=120, partition=None, account="lab", sbatch=sbatch)
    found = slurm._parameters(cfg, options, "log")
    assert found.get("gpus_per_node") == expected and found["cpus_per_task"] == 4
    assert found["ntasks_per_node"] == max(gpus, 1) and found["account"] == "lab" and "partition" not in found
    options.sbatch = ["cpus-per-task=9"]
    assert "cpus_per_task" not in slurm._parameters(cfg, options, "log")


def test_any_parameter_of_sbatch_is_accepted():
    assert sbatch_parameters(["qos=high", "--mail-user=a@b.c", "exclusive", "mem_per_cpu=2G"]) == {
        "qos": "high", "mail-user": "a@b.c", "exclusive": True, "mem-per-cpu": "2G",
    }  # fmt: skip
    for pair in ("comment=a\nrm -rf x", "=x", "qos=", "a b=c"):
        with pytest.raises(ValueError, match="KEY=VALUE"):
            sbatch_parameters([pair])
    assert PORTS.stop <= 32768  # Linux gives ports from there on to outgoing connections


@pytest.mark.parametrize(
    ("arguments", "expected"),
    [
        (["--nodes", "2", "NUM_SHARDS", "3"], ["--nodes 2 and NUM_SHARDS 3 differ", "leave NUM_SHARDS out"]),
        (["--tasks-per-node", "2", "NUM_PROCESSES=4"], ["--tasks-per-node 2 and NUM_PROCESSES 4 differ"]),
        (["--shard_id", "1"], ["--shard_id"]),
        (["--time", "soon"], ["'soon'", "HH:MM:SS"]),
        (["--time", "1"], ["--time 1", "--signal 120"]),
        (["--sbatch", "=1"], ["'=1'", "KEY=VALUE"]),
        (["--sbatch", "array=0-1"], ["'array=0-1'", "OUTPUT_DIR"]),
        (["--sbatch", "ntasks_per_node=2"], ["'ntasks_per_node=2'", "--tasks-per-node"]),
        (["--sbatch=--nodes=2"], ["'--nodes=2'", "use --nodes"]),
        (["OUTPUT_DIR", "out/%j"], ["out/%j", "%"]),
        ([], ["no srun in PATH"]),
    ],
)
def test_faulty_submissions_are_refused(arguments, expected, monkeypatch, run_here):
    monkeypatch.chdir(ROOT)
    monkeypatch.setenv("PATH", "/nowhere")
    done = run_here(program, "--cfg", "exp/demo/config.yaml", "--slurm", *arguments)
    assert done.returncode == 2 and done.stderr.startswith("error: ")
    assert all(part in done.stderr for part in expected), done.stderr


def test_options_of_slurm_need_the_flag(run_here):
    done = run_here(program, "--cfg", "exp/demo/config.yaml", "--nodes", 2)
    assert done.returncode == 2 and "--nodes needs --slurm" in done.stderr
