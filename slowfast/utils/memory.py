"""Memory of processes that load, decoders among them: those start without PyTorch, in a fifth of the time."""

from __future__ import annotations

import ctypes
import os
import tempfile

M_TRIM_THRESHOLD, M_MMAP_THRESHOLD = -1, -3  # malloc.h
KEPT = 128 << 20  # bytes; the arrays of a video of two clips take a fifth of it


def keep_memory() -> None:
    """Let `malloc` keep what is freed in this process, for the next clip.

    glibc gives arrays back to the system, and then gets them again page by page, each of them cleared and mapped anew:
    1,600 pages for a video of two augmented clips. Of what is free at the end of its heap a process keeps `KEPT`; what
    is free below something in use it keeps anyway, as glibc always does with smaller arrays.
    """
    mallopt = getattr(ctypes.CDLL(None), "mallopt", None)
    if mallopt:
        mallopt(M_MMAP_THRESHOLD, 32 << 20)  # the largest that is allowed
        mallopt(M_TRIM_THRESHOLD, KEPT)


def memory_file(name: str) -> int:
    """Descriptor of an empty file in memory; it does not count against the small /dev/shm of a container."""
    if hasattr(os, "memfd_create"):
        return os.memfd_create(name)
    with tempfile.TemporaryFile() as file:
        return os.dup(file.fileno())
