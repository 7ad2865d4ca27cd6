"""Control the memory of processes that load; decoder processes import this without PyTorch, which is slow to import."""

from __future__ import annotations

import contextlib
import ctypes
import mmap
import os
import re
import tempfile
from pathlib import Path

M_TRIM_THRESHOLD, M_MMAP_THRESHOLD, M_MMAP_MAX = -1, -3, -4  # malloc.h
KEPT = 128 << 20  # bytes; the arrays of a video of two clips take a fifth of it


def keep_memory(everything: bool = False) -> None:
    """Let `malloc` keep what is freed in this process, for the next clip or the next step.

    By default glibc returns large arrays to the system, which must then clear and map each page again: 1,600 pages for
    a video of two augmented clips, and 80,000 for a training step of UniFormer-S with two clips of 8 frames, which then
    takes 4 to 6 % longer on a CPU.

    Args:
        everything: keep all that is freed, instead of arrays below 32 MB and `KEPT` bytes at the end of the heap.
    """
    mallopt = getattr(ctypes.CDLL(None), "mallopt", None)
    if mallopt:
        mallopt(M_MMAP_THRESHOLD, 32 << 20)  # the largest that is allowed
        mallopt(M_MMAP_MAX, 0 if everything else 65536)  # the default; a fork inherits what was set before
        mallopt(M_TRIM_THRESHOLD, -1 if everything else KEPT)


def prefer_large_pages(address: int, size: int) -> None:
    """Let the system use large pages for memory that was not written yet, which then takes less time to access."""
    madvise = getattr(ctypes.CDLL(None), "madvise", None)
    if madvise and hasattr(mmap, "MADV_HUGEPAGE"):
        start = -(-address // mmap.PAGESIZE) * mmap.PAGESIZE
        madvise(ctypes.c_void_p(start), ctypes.c_size_t(max(0, address + size - start)), mmap.MADV_HUGEPAGE)


def memory_file(name: str) -> int:
    """Return a descriptor of an empty file in memory, which does not use the small /dev/shm of a container."""
    if hasattr(os, "memfd_create"):
        return os.memfd_create(name)
    with tempfile.TemporaryFile() as file:
        return os.dup(file.fileno())


def available() -> int:
    """Return the bytes of memory that new processes can use: those of the machine, or of its container if fewer."""
    meminfo = Path("/proc/meminfo")
    if not meminfo.is_file():
        return os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES")
    found = re.search(r"MemAvailable:\s*(\d+) kB", meminfo.read_text())
    free = [int(found[1]) * 2**10] if found else []
    group = Path("/sys/fs/cgroup")
    with contextlib.suppress(OSError, ValueError):  # not in a container with a limit, which is then "max"
        files = re.search(r"^inactive_file (\d+)", (group / "memory.stat").read_text(), re.MULTILINE)
        used = int((group / "memory.current").read_text()) - int(files[1] if files else 0)
        free.append(int((group / "memory.max").read_text()) - used)
    return min(free)
