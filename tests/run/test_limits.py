"""A process that reaches a limit of the system ends with an error that names it."""

from __future__ import annotations

import errno
import os

import pytest

from slowfast.run.limits import system_fault

PROGRAM = """
import resource, sys
import torch
from slowfast.config import load_config
from slowfast.run.launch import JobError, run

def files(cfg):
    resource.setrlimit(resource.RLIMIT_NOFILE, (200, resource.getrlimit(resource.RLIMIT_NOFILE)[1]))
    return [open("/dev/null") for _ in range(300)]

def memory(cfg):
    return bytearray(1 << 60)

def tensor(cfg):
    return torch.empty(1 << 60, dtype=torch.uint8)

def storage(cfg):
    with open("/dev/full", "w") as file:
        file.write("x")

def fault(cfg):
    return 1 / 0

jobs = {job.__name__: job for job in (files, memory, tensor, storage, fault)}
try:
    run(load_config(None, ["NUM_GPUS", "0", "TRAIN.ENABLE", "False", "OUTPUT_DIR", sys.argv[1]]), jobs[sys.argv[2]])
except JobError as error:
    sys.exit(f"error: {error}")
"""


@pytest.mark.parametrize(
    ("job", "shown"),
    [("files", "-n is 200"), ("memory", "BATCH_SIZE"), ("tensor", "BATCH_SIZE"), ("storage", "No space left")],
)
def test_a_limit_of_the_system_is_an_error_of_one_line(job, shown, call, tmp_path):
    (tmp_path / "program.py").write_text(PROGRAM)
    done = call(tmp_path / "program.py", tmp_path, job)
    *_, last = done.stderr.splitlines()
    assert done.returncode == 1 and shown in last and "Traceback" not in done.stderr


def test_other_errors_are_raised_unchanged(call, tmp_path):
    (tmp_path / "program.py").write_text(PROGRAM)
    done = call(tmp_path / "program.py", tmp_path, "fault")
    assert done.returncode == 1 and done.stderr.splitlines()[-1].startswith("ZeroDivisionError")


@pytest.mark.parametrize(
    ("error", "named"),
    [
        (BlockingIOError(errno.EAGAIN, os.strerror(errno.EAGAIN)), "ulimit -u"),
        (RuntimeError("can't start new thread"), "ulimit -u"),
        (BlockingIOError(errno.EAGAIN, "write could not complete without blocking", 0), ""),
        (OSError(errno.EFBIG, os.strerror(errno.EFBIG)), "ulimit -f"),
        (RuntimeError("Caught OSError: [Errno 27] File too large"), "ulimit -f"),
        (OSError(errno.ENOSPC, os.strerror(errno.ENOSPC)), "has space"),
        (OSError(errno.ESTALE, os.strerror(errno.ESTALE), "/runs/log.txt"), "/runs/log.txt"),
        (FileNotFoundError(errno.ENOENT, os.strerror(errno.ENOENT), "/runs/log.txt"), ""),
    ],
)
def test_the_fault_of_the_system_that_an_error_reports(error, named):
    assert (named in system_fault(error)) if named else not system_fault(error)
