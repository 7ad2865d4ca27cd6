"""Start the processes of a job: one, several on this machine, or those torchrun or Slurm has started already."""

from __future__ import annotations

import json
import logging
import os
import signal
import socket
import sys
import tempfile
import time
import traceback
from collections.abc import Iterator, Sequence
from contextlib import contextmanager, nullcontext
from multiprocessing.connection import wait
from multiprocessing.process import BaseProcess
from pathlib import Path

import torch
from fvcore.common.config import CfgNode

from slowfast.config import check_hardware, num_local_processes
from slowfast.engine.test import test, test_folder
from slowfast.engine.train import train
from slowfast.run import children, interrupt
from slowfast.run.interrupt import EXIT_INTERRUPTED, EXIT_REQUEUE, Interruption
from slowfast.run.lock import PATIENCE, hold
from slowfast.run.preflight import preflight
from slowfast.run.resume import prepare_output_dir
from slowfast.run.watchdog import EXIT_HUNG, progress, unwatch, watch
from slowfast.utils import distributed
from slowfast.utils.io import write_text
from slowfast.utils.logging import setup_logging

logger = logging.getLogger(__name__)

# Seconds that the other processes have, once one has failed, to say where they are and end.
GRACE = 10.0

# torchrun's variable: where a process leaves its error, in a folder of its own.
ERROR_FILE = "TORCHELASTIC_ERROR_FILE"

# File by which a spawned process says that it was asked to stop and lost something.
UNSAVED = "unsaved"


class JobError(Exception):
    """A process of the job failed; the text says which, and why."""


class AlreadyReported(Exception):
    """This process failed after another one of this job, whose error is the one to read."""


def launch(cfg: CfgNode, init_method: str = "") -> None:
    """Run the job of the configuration in as many processes as it asks for.

    Under torchrun or Slurm (RANK is set) this process is one of them. Otherwise NUM_PROCESSES, or one a GPU, are
    spawned on this machine; with NUM_SHARDS > 1 the machine is number SHARD_ID of a job that meets at `init_method`.

    Args:
        init_method: "tcp://host:port" of shard 0; needed only for NUM_SHARDS > 1.

    Raises:
        ValueError: something of the user's is wrong.
        JobError: a spawned process failed or hung; no other is left.
        Interruption: the job was asked to stop; the same command goes on.
        AlreadyReported: another process of the job has reported the fault.
    """
    if "RANK" in os.environ and "WORLD_SIZE" in os.environ:
        run(cfg)
        return
    local = num_local_processes(cfg)
    world = local * cfg.NUM_SHARDS
    if world == 1:
        run(cfg)
        return
    check_hardware(cfg)
    if cfg.NUM_SHARDS > 1 and not init_method:
        raise ValueError(
            f"NUM_SHARDS {cfg.NUM_SHARDS} needs a meeting point: --init_method tcp://HOST_OF_SHARD_0:PORT, torchrun, "
            "or --slurm"
        )
    host, port = _meeting_point(init_method)
    environment = {"MASTER_ADDR": host, "MASTER_PORT": port, "WORLD_SIZE": str(world), "LOCAL_WORLD_SIZE": str(local)}
    with _own_signal_handlers(), tempfile.TemporaryDirectory(prefix="slowfast-") as folder:
        signal.signal(signal.SIGINT, signal.SIG_IGN)  # while they start, the processes leave Ctrl-C to this one
        arguments = (cfg, environment, cfg.SHARD_ID * local, folder, os.getpid())
        context = torch.multiprocessing.start_processes(
            _process, arguments, nprocs=local, join=False, start_method="spawn"
        )
        interrupt.listen()
        try:
            _supervise(context.processes, Path(folder), cfg.SHARD_ID * local)  # pyright: ignore
        finally:
            _kill(context.processes)  # pyright: ignore


def _process(local_rank: int, cfg: CfgNode, environment: dict[str, str], first_rank: int, folder: str, parent: int):
    os.environ.update(environment, RANK=str(first_rank + local_rank), LOCAL_RANK=str(local_rank))
    os.environ[ERROR_FILE] = os.path.join(folder, str(local_rank), "error.json")
    if os.getppid() != parent:
        sys.exit(EXIT_REQUEUE)  # it was killed while this one started
    try:
        run(cfg)
        interrupt.ignore()
    except Interruption as stop:
        if not stop.saved:
            Path(folder, UNSAVED).touch()
        sys.exit(EXIT_REQUEUE)
    except KeyboardInterrupt:
        interrupt.leave()
    except AlreadyReported:
        sys.exit(1)
    except Exception as error:  # the process that started this one tells the user, once
        report(error)
        sys.exit(2 if isinstance(error, ValueError) else 1)


def _supervise(processes: Sequence[BaseProcess], folder: Path, first_rank: int) -> None:
    """Wait for the processes, pass requests to stop on to them, and say what became of them.

    Raises:
        ValueError, JobError, Interruption, KeyboardInterrupt: as `launch`.
    """
    told = False
    failed_at = None
    while running := [process for process in processes if process.is_alive()]:
        wait([process.sentinel for process in running], timeout=0.2)
        if interrupt.received() and not told:
            told = True
            for process in running:
                process.terminate()  # not SIGINT: a Ctrl-C has reached them too, and a second one ends them at once
        if failed_at is None and any(process.exitcode not in (None, 0, EXIT_REQUEUE) for process in processes):
            failed_at = time.monotonic()
        if failed_at is not None and time.monotonic() > failed_at + GRACE:
            break
    mute = {index for index, process in enumerate(processes) if process.is_alive()}
    _kill(processes)

    codes = {first_rank + i: process.exitcode or 0 for i, process in enumerate(processes) if i not in mute}
    out_of_run = (-signal.SIGTERM, EXIT_INTERRUPTED) if told else ()  # SIGTERM: before it listened, or after
    failures = {rank: code for rank, code in codes.items() if code not in (0, EXIT_REQUEUE, *out_of_run)}
    silent = [first_rank + i for i in sorted(mute)]
    if failures:
        _raise_failure(failures, silent, folder)
    if any(codes.values()):
        saved = EXIT_INTERRUPTED not in codes.values() and not (folder / UNSAVED).exists()
        raise Interruption(f"process {min(rank for rank, code in codes.items() if code)} was asked to stop", saved)


def _raise_failure(failures: dict[int, int], silent: list[int], folder: Path) -> None:
    """Tell the cause from what followed from it: a signal from outside, a hang, the first error, in this order."""
    killed = {rank: signal.Signals(-code).name for rank, code in failures.items() if code < 0}
    if killed:
        memory = {"SIGKILL": " (out of memory?)"}
        raise JobError(
            "; ".join(f"process {r} was killed by {name}{memory.get(name, '')}" for r, name in killed.items())
        )
    if EXIT_HUNG in failures.values():
        hung = [rank for rank, code in failures.items() if code == EXIT_HUNG]
        more = f"; {_name(silent)} did not even answer: stopped, or deep in the system" if silent else ""
        raise JobError(f"ended, since {_name(hung)} made no progress for DIST_TIMEOUT (see above){more}")
    first = folder / "reported"
    if first.is_file() and first.stat().st_size:
        report = json.loads(Path(first.read_text()).read_text())
        if report["user"]:
            raise ValueError(report["message"])
        raise JobError(f"process {report['rank']} failed:\n{report['message']}")
    rank, code = min(failures.items())
    raise JobError(f"process {rank} ended with exit code {code} and without a word")


def _name(ranks: Sequence[int]) -> str:
    return f"process{'es' * (len(ranks) > 1)} {', '.join(map(str, ranks))}"


def _kill(processes: Sequence[BaseProcess]) -> None:
    for process in processes:
        if process.is_alive():
            process.kill()
    for process in processes:
        process.join()


@contextmanager
def _own_signal_handlers() -> Iterator[None]:
    """Within this context signal handlers may be changed; afterwards they are what they were."""
    before = {number: signal.getsignal(number) for number in interrupt.SIGNALS}
    try:
        yield
    finally:
        signal.alarm(0)  # of a second Ctrl-C: its exception did not get lost
        for number, handler in before.items():
            signal.signal(number, handler)


def run(cfg: CfgNode) -> None:
    """Train and test, as the configuration asks, in this process of the group; call it in the main thread.

    Raises:
        As `launch`; the traceback is in OUTPUT_DIR/log.txt.
    """
    with _own_signal_handlers(), children.end_with_this_process():
        interrupt.listen()
        try:
            _join_and_run(cfg)
        except Interruption:
            distributed.destroy_process_group()
            raise
        except Exception as error:
            several = int(os.environ.get("WORLD_SIZE", "1")) > 1
            if several and interrupt.received() and isinstance(error, RuntimeError):
                # most likely the others have left; what is saved, this process cannot know
                reason = f"{type(error).__name__}: {str(error).partition(chr(10))[0]}"
                logger.warning("%s was asked to stop, and failed before it had: %s", distributed.who(), reason)
                raise Interruption(f"asked to stop, but before that came {reason}", saved=False) from error
            # before the group breaks and the others fail for want of it
            if not report(error):
                raise AlreadyReported from error
            raise
        else:
            distributed.destroy_process_group()
        finally:
            unwatch()


def _join_and_run(cfg: CfgNode) -> None:
    _check_group(cfg)
    local = int(os.environ.get("LOCAL_WORLD_SIZE", "1"))
    if cfg.NUM_GPUS == 0 and local > 1:
        # the processes share the cores; more threads than cores would only wait for each other
        torch.set_num_threads(max(1, torch.get_num_threads() // local))
    seconds = 60 * cfg.DIST_TIMEOUT
    watch(seconds, Path(cfg.OUTPUT_DIR) / f"hang_rank{os.environ.get('RANK', '0')}.txt")
    backend = "gloo" if cfg.NUM_GPUS == 0 else cfg.DIST_BACKEND
    distributed.init_process_group(backend, distributed.device(cfg.NUM_GPUS), seconds, _go_on_waiting)
    agreement = preflight(cfg)
    # a test writes into its own folder, so it may run at the same time as a training
    with hold(Path(cfg.OUTPUT_DIR, "train.lock")) if cfg.TRAIN.ENABLE else nullcontext():
        _run(cfg, agreement)


def _go_on_waiting() -> None:
    progress()
    if interrupt.received():
        raise Interruption("interrupted before all processes of the job had connected")


def _run(cfg: CfgNode, agreement: str) -> None:
    prepare_output_dir(cfg)
    setup_logging(cfg.OUTPUT_DIR, main=distributed.is_main())
    logger.info("torch %s, %s, output in %s", torch.__version__, agreement, cfg.OUTPUT_DIR)
    try:
        if cfg.TRAIN.ENABLE:
            train(cfg)
        if cfg.TEST.ENABLE:
            # after days of training, wait for another test as long as the other ranks can
            patience = 30 * cfg.DIST_TIMEOUT if cfg.TRAIN.ENABLE else PATIENCE
            with hold(Path(cfg.OUTPUT_DIR, f"{test_folder(cfg)}.lock"), patience):
                test(cfg)
    except Interruption as stop:
        logger.info("%s", stop.reason)
        raise
    except Exception:
        logger.exception("stopped by an error")
        raise


def report(error: Exception) -> bool:
    """Leave the error where the starter of this process looks for it; returns whether it is the first one there."""
    if ERROR_FILE not in os.environ:
        return True
    file = Path(os.environ[ERROR_FILE])
    user = isinstance(error, ValueError)
    message = str(error) if user else "".join(traceback.format_exception(error)).rstrip()
    entries = {"message": message, "timestamp": int(time.time()), "rank": os.environ["RANK"], "user": user}
    write_text(file, json.dumps(entries))
    try:
        with open(file.parents[1] / "reported", "x") as first:
            first.write(str(file))
    except FileExistsError:
        return False
    return True


def _check_group(cfg: CfgNode) -> None:
    """Compare hardware and processes with the configuration, on which batch and learning rate depend."""
    world, local = (int(os.environ.get(name, "1")) for name in ("WORLD_SIZE", "LOCAL_WORLD_SIZE"))
    if world != local * cfg.NUM_SHARDS:
        raise ValueError(
            f"{world} processes, {local} on this machine, are not those of NUM_SHARDS {cfg.NUM_SHARDS}; set it to the "
            "number of machines (torchrun's --nnodes)"
        )
    if cfg.NUM_GPUS and local != cfg.NUM_GPUS:
        raise ValueError(
            f"{local} processes on this machine and NUM_GPUS {cfg.NUM_GPUS} differ; every process drives one GPU "
            "(torchrun's --nproc_per_node)"
        )
    try:
        check_hardware(cfg)
    except ValueError as error:
        raise error if world == 1 else ValueError(f"{distributed.who()}: {error}") from None


def _meeting_point(init_method: str) -> tuple[str, str]:
    """Host and port of "tcp://host:port"; a free port of this machine for ""."""
    if not init_method:
        with socket.socket() as listener:
            listener.bind(("127.0.0.1", 0))
            return "127.0.0.1", str(listener.getsockname()[1])
    host, _, port = init_method.removeprefix("tcp://").rpartition(":")
    if not host or not port.isdigit():
        raise ValueError(f"--init_method {init_method!r} is not of the form tcp://HOST:PORT")
    return host, port
