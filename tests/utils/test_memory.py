"""The memory that a process keeps."""

import subprocess
import sys

import pytest

# page faults of making and freeing the arrays of a clip once more
AGAIN = """
import sys
from resource import RUSAGE_SELF, getrusage
import numpy as np
from slowfast.utils.memory import keep_memory
if sys.argv[1] == "keep":
    keep_memory()
def faults():
    before = getrusage(RUSAGE_SELF).ru_minflt
    arrays = [np.ones(2 << 20, np.uint8) for _ in range(8)]
    del arrays
    return getrusage(RUSAGE_SELF).ru_minflt - before
for _ in range(3):
    faults()
print(faults())
"""


@pytest.mark.skipif(sys.platform != "linux", reason="mallopt is glibc's")
def test_memory_is_used_again():
    kept, given_back = (
        int(subprocess.run([sys.executable, "-c", AGAIN, how], capture_output=True, text=True, check=True).stdout)
        for how in ("keep", "do not")
    )
    assert kept < 50 < given_back
