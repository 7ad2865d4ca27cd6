"""Start the processes of a job: one, several on this machine, or those that torchrun or Slurm has started."""

from __future__ import annotations

import atexit
import json
import logging
import math
import os
import secrets
import shutil
import signal
import socket
import sys
import tempfile
import time
import traceback
from collections.abc import Callable, Generator, Mapping, Sequence
from contextlib import ExitStack, contextmanager, nullcontext, suppress
from multiprocessing.connection import wait
from multiprocessing.process import BaseProcess
from pathlib import Path

import torch
from fvcore.common.config import CfgNode

from slowfast.config import check_extensions, check_hardware, num_local_processes
from slowfast.run import children, interrupt
from slowfast.run.checkpoint import unfinished_checkpoints
from slowfast.run.interrupt import EXIT_INTERRUPTED, EXIT_REQUEUE, Interruption
from slowfast.run.limits import system_fault
from slowfast.run.lock import TRAINING, hold
from slowfast.run.preflight import preflight
from slowfast.run.rendezvous import join_group, report_failure
from slowfast.run.resume import prepare_output_dir, require_writable
from slowfast.run.watchdog import EXIT_HUNG, progress, watching
from slowfast.utils import distributed
from slowfast.utils.io import counted, print_error, write_text
from slowfast.utils.logging import setup_logging
from slowfast.utils.memory import keep_memory
from slowfast.utils.processes import usable_cores

logger = logging.getLogger(__name__)

# Seconds for the other processes to report and exit after one has failed.
GRACE = 10.0

# torchrun's variable: the file for the error of a process, in a folder of its own.
ERROR_FILE = "TORCHELASTIC_ERROR_FILE"

# Beside the folders of ERROR_FILE: the error of the process that failed first.
FIRST_ERROR = "first_error.json"

# Exit codes of a process that was asked to stop: with everything saved, at once, or before it handled signals.
STOPPED = (EXIT_REQUEUE, EXIT_INTERRUPTED, -signal.SIGTERM, -signal.SIGHUP)

# What to do in each process; it must be picklable.
Job = Callable[[CfgNode], None]


class JobError(Exception):
    """A process of the job failed; the text names it and the cause."""


class AlreadyReported(Exception):
    """This process failed after another one of this job, whose error is the cause."""


def launch(cfg: CfgNode, job: Job, init_method: str = "") -> None:
    """Run a job in the processes that the configuration requests.

    Under torchrun or Slurm (RANK is set) this process is one of them. Otherwise NUM_PROCESSES, or one per GPU, are
    spawned on this machine; with NUM_SHARDS > 1 the machine is number SHARD_ID of those that meet at `init_method`.

    Args:
        cfg: configuration of the job.
        job: function to call in each process, for example to train and test.
        init_method: "tcp://host:port" of shard 0; needed only for NUM_SHARDS > 1.

    Raises:
        ValueError: the configuration, the data or the environment is wrong.
        JobError: a spawned process failed or hung, and none is left; or the system is at fault.
        Interruption: the job was asked to stop; the same command continues it.
        AlreadyReported: another process of the job has reported the fault.
    """
    started_by_others = "RANK" in os.environ and "WORLD_SIZE" in os.environ
    if started_by_others or num_local_processes(cfg) * cfg.NUM_SHARDS == 1:
        run(cfg, job)
    else:
        check_hardware(cfg)
        _spawn(cfg, job, *_meeting_point(cfg, init_method))


def _meeting_point(cfg: CfgNode, init_method: str) -> tuple[str, str]:
    """Return host and port of "tcp://host:port"; a free port of this machine for ""."""
    if init_method:
        host, _, port = init_method.removeprefix("tcp://").rpartition(":")
        if not host or not port.isdigit():
            raise ValueError(f"--init_method {init_method!r} is not of the form tcp://HOST:PORT")
        return host.removeprefix("[").removesuffix("]"), port  # [::1] is an address of IPv6
    if cfg.NUM_SHARDS > 1:
        raise ValueError(
            f"NUM_SHARDS {cfg.NUM_SHARDS} needs a meeting point: --init_method tcp://HOST_OF_SHARD_0:PORT, torchrun, "
            "or --slurm"
        )
    with socket.socket() as listener:
        listener.bind(("127.0.0.1", 0))
        return "127.0.0.1", str(listener.getsockname()[1])


def _spawn(cfg: CfgNode, job: Job, host: str, port: str) -> None:
    """Start the processes of this machine and wait for them."""
    local = num_local_processes(cfg)
    first_rank, world = cfg.SHARD_ID * local, cfg.NUM_SHARDS * local
    place = {"MASTER_ADDR": host, "MASTER_PORT": port, "WORLD_SIZE": str(world), "LOCAL_WORLD_SIZE": str(local)}
    folder = Path(tempfile.gettempdir(), f"slowfast-{secrets.token_hex(8)}")
    with _own_signal_handlers(), ExitStack() as end:
        end.callback(shutil.rmtree, folder, ignore_errors=True)  # a failure makes it, so a killed job leaves none
        signal.signal(signal.SIGINT, signal.SIG_IGN)  # inherited: until they listen, only this process handles Ctrl-C
        arguments = (cfg, job, place, first_rank, folder, os.getpid())
        processes: list[BaseProcess] = torch.multiprocessing.spawn(_process, arguments, local, join=False).processes  # pyright: ignore
        interrupt.listen()
        begun = time.time()

        def saves() -> bool:
            return cfg.SHARD_ID == 0 and processes[0].is_alive() and _saves(cfg, begun)

        try:
            codes = _supervise(processes, saves)
        finally:
            for process in processes:
                process.kill()
            for process in processes:
                process.join()
        try:
            _raise_outcome({first_rank + i: code for i, code in enumerate(codes)}, folder)
        except JobError as error:
            if cfg.SHARD_ID:
                report_failure(host, int(port), f"{distributed.host()}: {str(error).partition(chr(10))[0]}")
            raise


def _process(
    local_rank: int, cfg: CfgNode, job: Job, place: dict[str, str], first_rank: int, folder: Path, parent: int
) -> None:
    os.environ.update(place, RANK=str(first_rank + local_rank), LOCAL_RANK=str(local_rank))
    os.environ[ERROR_FILE] = str(folder / str(local_rank) / "error.json")
    children.use_own_lock()
    if os.getppid() != parent:
        sys.exit(EXIT_REQUEUE)  # the parent was killed while this process started
    try:
        run(cfg, job)
        code = 0
    except Interruption as stop:
        code = EXIT_REQUEUE if stop.saved else EXIT_INTERRUPTED
    except Exception:  # it is in the error file, which the parent process reads
        code = 1
    interrupt.ignore()  # a request that another process received first, such as SIGXCPU, can reach this one only now
    # all is saved or reported; threads of PyTorch can abort or block the shutdown of an interpreter
    atexit._run_exitfuncs()
    sys.stdout.flush()
    sys.stderr.flush()
    os._exit(code)


def _saves(cfg: CfgNode, begun: float) -> bool:
    """Return whether the main process, which runs since `begun`, is writing a checkpoint."""
    with suppress(FileNotFoundError):
        parts = unfinished_checkpoints(cfg.OUTPUT_DIR) if cfg.TRAIN.ENABLE else ()
        return any(part.stat().st_mtime > begun for part in parts)  # older ones are of a process that was killed
    return True  # it is complete just now


def _supervise(processes: Sequence[BaseProcess], saves: Callable[[], bool] = lambda: False) -> list[int | None]:
    """Wait until all processes exit; forward requests to stop.

    After one has failed, wait at most `GRACE` seconds, and as long as `saves` returns True.

    torch's `ProcessContext.join` treats every exit code except 0 as a failure, even that of a process that has saved.

    Returns:
        The exit code of each process; None for one that still runs.
    """
    forwarded, deadline = False, math.inf
    while running := [process for process in processes if process.is_alive()]:
        if time.monotonic() >= deadline and not saves():
            break
        wait([process.sentinel for process in running], timeout=0.2)
        if interrupt.received() and not forwarded:
            forwarded = True
            for process in running:
                process.terminate()  # not SIGINT: a Ctrl-C reaches them too, and a second one ends them at once
        # without a request, one that did not save leaves the others waiting for it
        expected = (None, 0, *STOPPED) if forwarded else (None, 0, EXIT_REQUEUE)
        failed = any(process.exitcode not in expected for process in processes)
        deadline = min(deadline, time.monotonic() + GRACE) if failed else math.inf
    return [process.exitcode for process in processes]


def _raise_outcome(codes: Mapping[int, int | None], folder: Path) -> None:
    """Raise the cause of exit codes by rank: a signal, a hang, the first error, a request to stop, in this order.

    NCCL aborts processes whose peer has failed, so the first error is named beside a SIGABRT.
    """
    failures = {rank: code for rank, code in codes.items() if code and code not in STOPPED}
    killed = [rank for rank, code in failures.items() if code < 0]
    silent = [rank for rank, code in codes.items() if code in (None, EXIT_HUNG)]
    hung = silent if EXIT_HUNG in failures.values() else []
    ends = "; ".join(f"process {rank} {_failure(codes[rank])}" for rank in killed or hung or [*failures][:1])
    file = folder / FIRST_ERROR
    aborted = all(failures[rank] == -signal.SIGABRT for rank in killed)
    if failures and aborted and not hung and file.is_file() and (text := file.read_text()):
        first = json.loads(text)
        if first["user"]:
            raise ValueError(first["message"])
        raise JobError(f"process {first['rank']} failed:\n{first['message']}" + f"\n{ends}" * bool(killed))
    if failures:
        raise JobError(ends)
    if stopped := [rank for rank, code in codes.items() if code]:
        raise Interruption(f"process {min(stopped)} was asked to stop", EXIT_INTERRUPTED not in codes.values())


def _failure(code: int | None) -> str:
    if code is None:
        return "did not respond: stopped, or blocked in a system call"
    if code == EXIT_HUNG:
        return "made no progress for DIST_TIMEOUT (see above)"
    if code < 0:
        return f"was killed by {signal.Signals(-code).name}{' (out of memory?)' * (code == -signal.SIGKILL)}"
    return f"exited with code {code} and without a message"


@contextmanager
def _own_signal_handlers() -> Generator[None]:
    """Restore the signal handlers at the end of the context, except for a SIGXCPU that was received."""
    before = {number: signal.getsignal(number) for number in interrupt.SIGNALS}
    try:
        yield
    finally:
        for number, handler in before.items():
            if (number, signal.getsignal(number)) != (signal.SIGXCPU, signal.SIG_IGN):
                signal.signal(number, handler)


def run(cfg: CfgNode, job: Job) -> None:
    """Run a job in this process of the group; call it in the main thread.

    Raises:
        ValueError, Interruption, AlreadyReported: as `launch`.
        JobError: another process failed first, and the text names it and its error; or the system is at fault.
        Exception: any other error of the job; the traceback is in OUTPUT_DIR/log.txt.
    """
    report = Path(cfg.OUTPUT_DIR) / f"hang_rank{os.environ.get('RANK', '0')}.txt"

    begun = time.time()

    def leave(first: str) -> bool:
        if distributed.is_main() and _saves(cfg, begun):
            return False
        report_error(JobError(f"failed after {first}"))
        return True

    with _own_signal_handlers(), children.end_with_this_process(), watching(60 * cfg.DIST_TIMEOUT, report, leave):
        interrupt.listen()
        try:
            _join_and_run(cfg, job)
        except Interruption:
            distributed.destroy_process_group()
            raise
        except Exception as raised:
            fault = "" if isinstance(raised, ValueError) else system_fault(raised)
            error = JobError(fault) if fault else raised
            several = int(os.environ.get("WORLD_SIZE", "1")) > 1
            if several and interrupt.received() and isinstance(error, RuntimeError):
                # most likely the others have exited; whether they have saved is unknown here
                reason = f"asked to stop, but failed before: {_summary(error)}"
                logger.warning("%s was %s", distributed.who(), reason)
                raise Interruption(reason, saved=False) from raised
            # before the group breaks, which makes the others fail too
            here = f"{distributed.who()}: {_summary(error)}"
            first = distributed.first_failure(here)
            cause = error if first == here or isinstance(error, ValueError) else JobError(f"failed after {first}")
            if not report_error(cause):
                raise AlreadyReported from raised
            if cause is raised:
                raise
            raise cause from raised
        distributed.destroy_process_group()


def _summary(error: Exception) -> str:
    return f"{type(error).__name__}: {str(error).partition(chr(10))[0]}"


def report_error(error: Exception) -> bool:
    """Write the error to the file that the parent process reads; return whether it is the first one of the job.

    If the file cannot be written, the error is printed, and counts as reported.
    """
    if ERROR_FILE not in os.environ:
        return True
    file = Path(os.environ[ERROR_FILE])
    user = isinstance(error, ValueError)
    known = isinstance(error, (ValueError, JobError))
    message = str(error) if known else "".join(traceback.format_exception(error)).rstrip()
    text = json.dumps({"message": message, "timestamp": int(time.time()), "rank": os.environ["RANK"], "user": user})
    try:
        write_text(file, text)
        with open(file.parents[1] / FIRST_ERROR, "x") as first:
            first.write(text)
    except FileExistsError:
        return False
    except OSError as fault:  # for example of a full disk
        print_error(f"error: {distributed.who()}: {message}\n{file} cannot be written: {fault}")
        return False
    return True


def _join_and_run(cfg: CfgNode, job: Job) -> None:
    check_extensions()  # a process that was started has imported them again
    _check_group(cfg)
    local = int(os.environ.get("LOCAL_WORLD_SIZE", "1"))
    if cfg.NUM_GPUS == 0:
        # the processes share the cores; with more threads than cores they slow each other down
        torch.set_num_threads(max(1, min(torch.get_num_threads(), usable_cores()) // local))
        keep_memory(everything=True)
    backend = "gloo" if cfg.NUM_GPUS == 0 else cfg.DIST_BACKEND
    join_group(backend, distributed.device(cfg.NUM_GPUS), 60 * cfg.DIST_TIMEOUT, _check_while_waiting)
    agreement = preflight(cfg)
    distributed.on_main(lambda: require_writable(cfg.OUTPUT_DIR))
    # a test writes into its own folder, so it may run at the same time as a training
    with hold(Path(cfg.OUTPUT_DIR, TRAINING)) if cfg.TRAIN.ENABLE else nullcontext():
        if cfg.TRAIN.ENABLE:
            distributed.on_main(lambda: prepare_output_dir(cfg))
        setup_logging(cfg.OUTPUT_DIR, main=distributed.is_main())
        logger.info("torch %s, %s, output in %s", torch.__version__, agreement, cfg.OUTPUT_DIR)
        try:
            job(cfg)
        except Interruption as stop:
            logger.info("%s", stop)
            raise
        except Exception:
            logger.exception("stopped by an error")
            raise


def _check_while_waiting() -> None:
    progress()
    if interrupt.received():
        raise Interruption("interrupted before all processes of the job had connected")


def _check_group(cfg: CfgNode) -> None:
    """Compare hardware and processes with the configuration, on which batch and learning rate depend."""
    world, local = (int(os.environ.get(name, "1")) for name in ("WORLD_SIZE", "LOCAL_WORLD_SIZE"))
    if world != local * cfg.NUM_SHARDS:
        raise ValueError(
            f"NUM_SHARDS {cfg.NUM_SHARDS} does not fit {counted(world, 'process')}, {local} of them on this machine: "
            "set it to the number of machines (torchrun's --nnodes)"
        )
    if cfg.NUM_GPUS not in (0, local):
        raise ValueError(
            f"NUM_GPUS {cfg.NUM_GPUS} does not fit {counted(local, 'process')} on this machine: start one process "
            "per GPU (torchrun's --nproc_per_node)"
        )
    try:
        check_hardware(cfg)
    except ValueError as error:
        raise error if world == 1 else ValueError(f"{distributed.who()}: {error}") from None
