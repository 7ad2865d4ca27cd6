"""Run a job on a Slurm cluster: submit it through submitit, and run as one of its processes there."""

from __future__ import annotations

import os
import re
import runpy
import shlex
import signal
import socket
import subprocess
import sys
from argparse import Namespace
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from fvcore.common.config import CfgNode
from submitit import SlurmExecutor
from submitit.core.job_environment import JobEnvironment
from submitit.core.utils import FailedSubmissionError, UncompletedJobError
from submitit.helpers import DelayedSubmission, TorchDistributedEnvironment

from slowfast.config import dump_config, num_local_processes
from slowfast.run import interrupt
from slowfast.run.interrupt import EXIT_REQUEUE
from slowfast.run.launch import ERROR_FILE
from slowfast.utils.io import write_text

# Ports of the meeting point: below those that Linux assigns to outgoing connections (32768 and above).
PORTS = range(20000, 32768)

# Long options of sbatch that submitit or the rendezvous of the processes depends on, and what to use instead.
RESERVED = {
    "array": "submit every run by itself, with an OUTPUT_DIR of its own",
    "nodes": "use --nodes",
    "ntasks": "use --gpus-per-node or --tasks-per-node",
    "ntasks-per-node": "use --gpus-per-node or --tasks-per-node",
    "signal": "use --signal",
    "time": "use --time",
}


def minutes(text: str) -> int:
    """Return the minutes, rounded up, of a time as Slurm writes it: MINUTES[:SECONDS], HH:MM:SS or DAYS-HH[:MM[:SS]].

    Raises:
        ValueError: it is not a time.
    """
    if not re.fullmatch(r"(\d+-)?\d+(:\d+){0,2}", text):
        raise ValueError(f"--time {text!r} is not a time; write MINUTES, HH:MM:SS or DAYS-HH:MM:SS")
    days, dash, clock = text.rpartition("-")
    values = [int(field) for field in clock.split(":")]
    if not dash and len(values) < 3:
        values = [0, *values]  # without hours
    hours, minute, second = [*values, 0, 0][:3]
    return (int(days or 0) * 24 + hours) * 60 + minute + -(-second // 60)


def sbatch_parameters(pairs: list[str]) -> dict[str, str | bool]:
    """Return long options of sbatch from KEY=VALUE texts (KEY alone for a switch).

    Raises:
        ValueError: a text is not of that form, contains characters that a script of sbatch cannot contain, or is an
            option that the program sets.
    """
    parameters: dict[str, str | bool] = {}
    for pair in pairs:
        key, equals, value = pair.removeprefix("--").partition("=")
        key = key.replace("_", "-")
        if not re.fullmatch(r"[a-z][a-z0-9-]*", key) or not value.isprintable() or (equals and not value):
            raise ValueError(f"--sbatch {pair!r} is not of the form KEY=VALUE, with a long option of sbatch as KEY")
        if key in RESERVED:
            raise ValueError(f"--sbatch {pair!r} contradicts the other options of the job: {RESERVED[key]}")
        parameters[key] = value if equals else True
    return parameters


@dataclass
class Job:
    """Run the program in a task of Slurm, as one process of the group that Slurm's variables describe.

    submitit pickles it, and once more when the job is requeued; the run continues from its checkpoint.
    """

    program: str
    config: str
    folder: str

    def __call__(self) -> None:
        """Run one process of the job; requeue the job after a time limit or a preemption."""
        environment = JobEnvironment()
        attempt = int(os.environ.get("SLURM_RESTART_COUNT", "0"))
        group = TorchDistributedEnvironment()
        group.master_addr = address(group.master_addr)
        group.master_port = PORTS[int(environment.raw_job_id) % len(PORTS)]  # jobs on the same node use different ones
        group.export(set_cuda_visible_devices=False, overwrite=True)
        errors = Path(self.folder, f"{environment.job_id}_errors", str(attempt))
        os.environ[ERROR_FILE] = str(errors / str(environment.global_rank) / "error.json")
        overrides = ["SHARD_ID", str(environment.node)]
        if attempt:
            overrides += ["TRAIN.AUTO_RESUME", "True"]
        sys.argv = [self.program, "--cfg", self.config, *overrides]
        try:
            runpy.run_path(self.program, run_name="__main__")
        except SystemExit as end:
            if end.code != EXIT_REQUEUE:
                raise
            if interrupt.received() in (signal.SIGUSR1, signal.SIGUSR2):
                # to submitit's handler of time limits: in rank 0 it pickles the job and requeues it, within its limits
                signal.raise_signal(signal.SIGUSR2)
            elif environment.global_rank == 0:
                raise  # SIGTERM: Slurm decides whether to start the job again
            # the others exit with 0: at another code srun would kill rank 0, which may still be saving

    def checkpoint(self) -> DelayedSubmission:
        """Return the job for submitit to put into the queue again."""
        return DelayedSubmission(self)


def address(node: str) -> str:
    """Return the name of a node, or the address by which Slurm reaches it, if the name has no address."""
    try:
        socket.getaddrinfo(node, None)
        return node
    except OSError:
        found = re.search(r"\bNodeAddr=(\S+)", _output("scontrol", "show", "node", "--oneliner", node))
        return found[1] if found else node


def submit(cfg: CfgNode, options: Namespace) -> None:
    """Submit the job of the configuration, and print how to follow it.

    A second job of an OUTPUT_DIR starts after the first one has succeeded, so a training and the tests of its result
    can be submitted together. `options` are those of the command line.

    Raises:
        ValueError: Slurm is not available, or rejects the job.
    """
    folder = Path(cfg.OUTPUT_DIR, "slurm").absolute()
    if "%" in str(folder) or not str(folder).isprintable():
        raise ValueError(f"OUTPUT_DIR {cfg.OUTPUT_DIR!r} cannot be a folder of Slurm's logs: use no % in it")
    parameters = _parameters(cfg, options, str(folder / "%j.log"))
    try:
        executor = SlurmExecutor(folder, max_num_timeout=options.max_timeouts)
    except RuntimeError as error:
        raise ValueError("--slurm needs a Slurm cluster, and there is no srun in PATH: use its login node") from error
    extra: dict[str, str | bool] = parameters["additional_parameters"]
    previous = _unfinished(folder)
    if previous and "dependency" not in extra:
        extra.update({"dependency": f"afterok:{previous}", "kill-on-invalid-dep": "yes"} | extra)
    executor.update_parameters(**parameters)
    folder.mkdir(parents=True, exist_ok=True)
    before = set(folder.iterdir())
    config = folder / f"config_{os.urandom(4).hex()}.yaml"
    write_text(config, dump_config(cfg))
    try:
        job = executor.submit(Job(os.path.abspath(sys.argv[0]), str(config), str(folder)))
    except (FailedSubmissionError, UncompletedJobError) as error:
        for path in set(folder.iterdir()) - before:
            if not re.match(r"\d+[._]", path.name):  # a file of another job, which is starting
                path.unlink()
        raise ValueError(f"Slurm refused the job: {str(error).strip()}") from None
    log = folder / f"{job.job_id}.log"
    print(
        f"submitted job {job.job_id}{f', to follow job {previous}' if previous else ''}: nodes {cfg.NUM_SHARDS}, "
        f"processes per node {parameters['ntasks_per_node']}, minutes per attempt {parameters['time']}\n"
        f"  log     {log}\n"
        f"  output  {cfg.OUTPUT_DIR}\n"
        f"  follow  tail -F {shlex.quote(str(log))}\n"
        f"  state   squeue -j {job.job_id}\n"
        f"  stop    scancel {job.job_id}"
    )


def _parameters(cfg: CfgNode, options: Namespace, log: str) -> dict[str, Any]:
    """Return the parameters of submitit for the resources of the job."""
    limit = minutes(options.time)
    if limit * 60 <= options.signal:
        raise ValueError(f"--time {options.time} is not longer than --signal {options.signal} s: raise --time")
    # one log for all processes, to which requeued attempts append
    extra = {"requeue": True, "output": log} | sbatch_parameters(options.sbatch)
    named = {"partition": options.partition, "account": options.account}
    if cfg.NUM_GPUS and not {"gres", "gpus", "gpus-per-task"} & set(extra):
        named["gpus_per_node"] = cfg.NUM_GPUS
    if "cpus-per-task" not in extra:
        named["cpus_per_task"] = 1 + cfg.DATA_LOADER.NUM_WORKERS
    return {
        "job_name": extra.pop("job-name", Path(cfg.OUTPUT_DIR).name or "slowfast"),
        "nodes": cfg.NUM_SHARDS,
        "ntasks_per_node": num_local_processes(cfg),
        "time": limit,
        "signal_delay_s": options.signal,
        "stderr_to_stdout": True,
        "additional_parameters": extra,
        # a process that fails ends the others
        "srun_args": ["--kill-on-bad-exit=1", "--open-mode=append", "--output", log],
        **{key: value for key, value in named.items() if value is not None},
    }


def _unfinished(folder: Path) -> str:
    """Return the newest job with logs in `folder`, if it is still in the queue, or ""."""
    jobs = [path.name.partition("_")[0] for path in folder.glob("*_submitted.pkl")]
    newest = max((job for job in jobs if job.isdigit()), key=int, default="")
    return newest if newest and _output("squeue", "--noheader", "--jobs", newest, "--format", "%T") else ""


def _output(*command: str) -> str:
    """Return the output of a program of Slurm, or "" if it fails."""
    done = subprocess.run(command, capture_output=True, text=True)
    return done.stdout.strip() if done.returncode == 0 else ""
