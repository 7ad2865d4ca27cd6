"""Control the memory of processes that load; decoder processes import this without PyTorch, which is slow to import."""

from __future__ import annotations

import ctypes
import os
import tempfile

M_TRIM_THRESHOLD, M_MMAP_THRESHOLD = -1, -3  # malloc.h
KEPT = 128 << 20  # bytes; the arrays of a video of two clips take a fifth of it


def keep_memory() -> None:
    """Let `malloc` keep what is freed in this process, for the next clip.

    By default glibc returns large arrays to the system, which must then clear and map each page again: 1,600 pages for
    a video of two augmented clips. With this a process keeps up to `KEPT` bytes that are free at the end of its heap.
    """
    mallopt = getattr(ctypes.CDLL(None), "mallopt", None)
    if mallopt:
        mallopt(M_MMAP_THRESHOLD, 32 << 20)  # the largest that is allowed
        mallopt(M_TRIM_THRESHOLD, KEPT)


def memory_file(name: str) -> int:
    """Return a descriptor of an empty file in memory, which does not use the small /dev/shm of a container."""
    if hasattr(os, "memfd_create"):
        return os.memfd_create(name)
    with tempfile.TemporaryFile() as file:
        return os.dup(file.fileno())
