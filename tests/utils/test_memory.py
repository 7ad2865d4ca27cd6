"""The memory that a process keeps."""

import mmap
import subprocess
import sys
from pathlib import Path
from resource import RUSAGE_SELF, getrusage

import numpy as np
import pytest

from slowfast.utils.memory import prefer_large_pages

# page faults of making and freeing eight arrays once more
AGAIN = """
import sys
from resource import RUSAGE_SELF, getrusage
import numpy as np
from slowfast.utils.memory import keep_memory
how, size = sys.argv[1], int(sys.argv[2])
if how != "default":
    keep_memory(everything=how == "everything")
def faults():
    before = getrusage(RUSAGE_SELF).ru_minflt
    arrays = [np.ones(size, np.uint8) for _ in range(8)]
    del arrays
    return getrusage(RUSAGE_SELF).ru_minflt - before
for _ in range(3):
    faults()
print(faults())
"""


@pytest.mark.skipif(sys.platform != "linux", reason="mallopt is glibc's")
@pytest.mark.parametrize(("how", "size"), [("some", 2 << 20), ("everything", 33 << 20)])
def test_memory_is_used_again(how, size):
    kept, given_back = (
        int(subprocess.run([sys.executable, "-c", AGAIN, kind, str(size)], capture_output=True, check=True).stdout)
        for kind in (how, "default")
    )
    assert kept < 50 < given_back


def large_pages() -> bool:
    folder = Path("/sys/kernel/mm/transparent_hugepage")
    if not folder.is_dir() or "[never]" in (folder / "enabled").read_text():
        return False
    # 2 MiB; 512 MiB on ARM systems with pages of 64 KiB, which does not fit into the memory below
    return int((folder / "hpage_pmd_size").read_text()) <= 16 << 20


@pytest.mark.skipif(not large_pages(), reason="the system has no large pages, or very large ones only")
def test_large_pages_are_used_where_they_are_preferred():
    def faults(prefer: bool) -> int:
        memory = mmap.mmap(-1, 64 << 20, flags=mmap.MAP_PRIVATE | mmap.MAP_ANONYMOUS)
        memory.madvise(mmap.MADV_NOHUGEPAGE)
        array = np.frombuffer(memory, np.uint8)
        if prefer:
            prefer_large_pages(array.ctypes.data + 100, len(array) - 100)
        before = getrusage(RUSAGE_SELF).ru_minflt
        array[:] = 1
        return getrusage(RUSAGE_SELF).ru_minflt - before

    assert faults(prefer=True) < faults(prefer=False) / 4
