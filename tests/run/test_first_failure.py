"""Test that each process of a job names the failure that came first."""

from __future__ import annotations

import json
import multiprocessing
import os
import signal
import time
from pathlib import Path

import pytest
import torch
from cluster import free_ports
from fvcore.common.config import CfgNode
from torch.distributed import TCPStore

from slowfast.config import get_cfg
from slowfast.run import launch, watchdog
from slowfast.run.checkpoint import CheckpointWriter, last_checkpoint
from slowfast.run.rendezvous import SESSION, report_failure
from slowfast.utils import distributed

FORK = multiprocessing.get_context("fork")


def fail_first(cfg: CfgNode) -> None:
    if distributed.rank() == 1:
        time.sleep(0.5)  # the other process waits in the barrier
        raise RuntimeError("CUDA out of memory.\nTried to allocate 20.00 GiB.")
    distributed.barrier()


def fail_beside_a_stopped_process(cfg: CfgNode) -> None:
    distributed.barrier()
    if distributed.rank() == 0:  # it serves the store
        os.kill(os.getpid(), signal.SIGSTOP)
    time.sleep(0.5)
    raise RuntimeError("CUDA out of memory.")


def sleep_beside_a_process_that_fails(cfg: CfgNode) -> None:
    distributed.barrier()
    if distributed.rank() == 1 and cfg.OUTPUT_DIR.endswith("killed"):
        os.kill(os.getpid(), signal.SIGKILL)
    if distributed.rank() == 1:
        raise RuntimeError("CUDA out of memory.")
    time.sleep(600)  # for example in a read from a network drive


def save_beside_a_process_that_fails(cfg: CfgNode) -> None:
    if distributed.rank() == 1:
        time.sleep(0.5)
        raise RuntimeError("CUDA out of memory.")
    save = torch.save
    torch.save = lambda *arguments: [time.sleep(3), save(*arguments)]  # to a slow disk
    with CheckpointWriter(cfg.OUTPUT_DIR) as writer:
        writer.save({"step": 6, "steps_per_epoch": 6})
        distributed.barrier()


def make_no_progress(cfg: CfgNode) -> None:
    distributed.barrier()
    time.sleep(4 * watchdog.QUIET)


def refuse(cfg: CfgNode) -> None:
    distributed.on_main(lambda: int("a wrong input"))


def launched(number: int, port: int, out: Path, errors, machines=2, job=sleep_beside_a_process_that_fails) -> None:
    os.environ["SLURMD_NODENAME"] = f"node{number}"
    cfg = get_cfg()
    cfg.merge_from_list(["NUM_GPUS", 0, "NUM_SHARDS", machines, "NUM_PROCESSES", 2 // machines, "SHARD_ID", number])
    cfg.OUTPUT_DIR = str(out)
    try:
        launch.launch(cfg, job, f"tcp://127.0.0.1:{port}")
    except launch.JobError as error:
        errors.put((number, str(error)))


def one_machine(number: int, port: int, folder: Path, errors, job=fail_first) -> None:
    place = {"RANK": number, "WORLD_SIZE": 2, "LOCAL_WORLD_SIZE": 1, "MASTER_ADDR": "127.0.0.1", "MASTER_PORT": port}
    error_file = folder / str(number) / "0" / "error.json"
    os.environ.update({name: str(value) for name, value in place.items()}, SLURMD_NODENAME=f"node{number}")
    os.environ[launch.ERROR_FILE] = str(error_file)
    cfg = get_cfg()
    cfg.merge_from_list(["NUM_GPUS", 0, "NUM_SHARDS", 2, "SHARD_ID", number, "OUTPUT_DIR", str(folder / "out")])
    try:
        launch.run(cfg, job)
    except Exception as error:
        errors.put((number, type(error).__name__, str(error), json.loads(error_file.read_text())["message"]))


def two_jobs(number: int, port: int, folder: Path, errors) -> None:
    for job in (refuse, make_no_progress):
        one_machine(number, port, folder, errors, job)


def test_a_process_names_the_one_on_another_machine_that_failed_first(tmp_path):
    (port,), errors = free_ports(1), FORK.Queue()
    children = [FORK.Process(target=one_machine, args=(rank, port, tmp_path, errors)) for rank in (0, 1)]
    for child in children:
        child.start()
    (_, *consequence), (_, *cause) = sorted(errors.get(timeout=60) for _ in children)
    for child in children:
        child.join(10)
    named = "failed after rank 1 on node1: RuntimeError: CUDA out of memory."
    assert consequence == ["JobError", named, named]
    assert cause[0] == "RuntimeError" and "Traceback" in cause[2] and "20.00 GiB" in cause[2]


@pytest.mark.parametrize(
    ("end", "named"),
    [
        ("raised", "rank 1 on node1: RuntimeError: CUDA out of memory."),
        ("killed", "node1: process 1 was killed by SIG"),
    ],
)
def test_a_process_that_waits_for_something_else_ends_soon_after_a_failure(end, named, forks, monkeypatch, tmp_path):
    monkeypatch.setattr(watchdog, "QUIET", 0.5)
    (port,), errors = free_ports(1), FORK.Queue()
    for number in (0, 1):
        FORK.Process(target=launched, args=(number, port, tmp_path / end, errors)).start()
    [(_, waited), _] = sorted(errors.get(timeout=60) for _ in range(2))
    assert waited.startswith(f"process 0 failed:\nfailed after {named}")


def test_an_earlier_failure_does_not_end_a_group(forks, monkeypatch, tmp_path):
    """For example of a process that was started again while rank 0 waited for it."""
    monkeypatch.setattr(watchdog, "QUIET", 0.3)
    (port,), errors = free_ports(1), FORK.Queue()
    machines = [FORK.Process(target=launched, args=(n, port, tmp_path, errors, 2, make_no_progress)) for n in (0, 1)]
    machines[0].start()
    TCPStore("127.0.0.1", port, is_master=False, wait_for_workers=False).wait([SESSION])
    report_failure("127.0.0.1", port, "node1: process 1 was killed by SIGKILL")
    machines[1].start()
    for machine in machines:
        machine.join(60)
    assert errors.empty()


def test_a_failure_does_not_end_the_next_job_of_the_same_processes(monkeypatch, tmp_path):
    monkeypatch.setattr(watchdog, "QUIET", 0.3)
    (port,), errors = free_ports(1), FORK.Queue()
    children = [FORK.Process(target=two_jobs, args=(rank, port, tmp_path, errors)) for rank in (0, 1)]
    for child in children:
        child.start()
    for child in children:
        child.join(60)
    assert [child.exitcode for child in children] == [0, 0]


@pytest.mark.parametrize("machines", [1, 2])
def test_a_checkpoint_that_is_being_written_survives_a_failure(machines, forks, monkeypatch, tmp_path):
    monkeypatch.setattr(launch, "GRACE", 0.5)
    monkeypatch.setattr(watchdog, "QUIET", 0.5)
    (port,), errors = free_ports(1), FORK.Queue()
    for number in range(machines):
        job = (number, port, tmp_path, errors, machines, save_beside_a_process_that_fails)
        FORK.Process(target=launched, args=job).start()
    assert all("CUDA out of memory." in errors.get(timeout=60)[1] for _ in range(machines))
    assert last_checkpoint(str(tmp_path))


def test_a_process_reports_its_failure_while_the_one_of_the_store_is_stopped(tmp_path):
    (port,), errors = free_ports(1), FORK.Queue()
    jobs = [(rank, port, tmp_path, errors, fail_beside_a_stopped_process) for rank in (0, 1)]
    children = [FORK.Process(target=one_machine, args=job) for job in jobs]
    for child in children:
        child.start()
    try:
        number, kind, text, _ = errors.get(timeout=40)
        assert (number, kind, text) == (1, "RuntimeError", "CUDA out of memory.")
        children[1].join(20)
        assert children[1].exitcode is not None
    finally:
        for child in children:
            child.kill()


def test_an_error_is_printed_if_its_file_cannot_be_written(tmp_path, monkeypatch, capsys):
    (tmp_path / "full").touch()  # no folder can be made there
    monkeypatch.setenv(launch.ERROR_FILE, str(tmp_path / "full" / "1" / "error.json"))
    monkeypatch.setenv("RANK", "1")
    assert not launch.report_error(KeyError("the cause"))
    assert "KeyError: 'the cause'" in capsys.readouterr().err
