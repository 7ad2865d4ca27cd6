"""Explain the errors of a process that reached a limit of the system, or whose file system failed."""

from __future__ import annotations

import errno
import os
import resource

import torch

from slowfast.utils.io import STORAGE_ERRORS


def system_fault(error: Exception) -> str:
    """Return the limit or the file system that caused an error and a cure, or "" for other errors.

    Workers and PyTorch pass the error of the system on as text only.
    """
    text, number = str(error), error.errno if isinstance(error, OSError) else None
    if number in (errno.EMFILE, errno.ENFILE) or "Too many open files" in text:
        return (
            f"too many open files (ulimit -n is {_soft(resource.RLIMIT_NOFILE)}): raise the limit, or lower "
            "DATA_LOADER.NUM_WORKERS"
        )
    # an output that does not block has the same number, with another text
    forked = number == errno.EAGAIN and os.strerror(errno.EAGAIN) in text
    if forked or "can't start new thread" in text:
        return (
            f"too many processes and threads (ulimit -u is {_soft(resource.RLIMIT_NPROC)}; a container can allow "
            "fewer): raise the limit, or lower DATA_LOADER.NUM_WORKERS"
        )
    if number == errno.EFBIG or os.strerror(errno.EFBIG) in text:
        kib = _soft(resource.RLIMIT_FSIZE, unit=1024)
        return f"a file or a batch in shared memory is too large (ulimit -f is {kib}): raise the limit"
    if number in STORAGE_ERRORS:
        return (
            f"a file system failed ({error}): repeat the command when it works and has space; a training continues "
            "from its last checkpoint"
        )
    by_system = isinstance(error, MemoryError) or number == errno.ENOMEM
    if by_system or isinstance(error, torch.OutOfMemoryError) or "can't allocate memory" in text:
        return (
            f"out of memory ({text.partition(chr(10))[0] or type(error).__name__}): lower TRAIN.BATCH_SIZE, for which "
            "--find-batch prints the largest value and how to keep the videos of a step, or TEST.BATCH_SIZE or "
            "DATA_LOADER.NUM_WORKERS"
        )
    return ""


def _soft(limit: int, unit: int = 1) -> str:
    soft = resource.getrlimit(limit)[0]
    return "unlimited" if soft == resource.RLIM_INFINITY else str(soft // unit)
