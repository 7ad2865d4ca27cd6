"""Measure how long a CPU takes to cut the views of a test, and a program to start: python benchmarks/views.py.

The frames of a video, 4 x 16 of them, are resized to a short side, normalized, and cut into 4 x 3 clips of 16 frames.
The frames of a large video are first resized in a worker. All is done in one thread; medians of CPU milliseconds per
video are printed. The start is that of `run_net.py --show`, which reads a configuration and prints it.
"""

from __future__ import annotations

import argparse
import resource
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path
from statistics import median
from typing import Any

import numpy as np
import torch

from slowfast.datasets.views import Views, shrink
from slowfast.datasets.workers import use_one_thread
from slowfast.engine.setup import layout
from slowfast.utils.environment import processor
from slowfast.utils.io import write_json

CASES = ((256, 340, 224), (256, 340, 256), (720, 1280, 224), (720, 1280, 256))
ROOT = Path(__file__).parents[1]


def milliseconds(work: Callable[[], object], rounds: int) -> float:
    """Return the median CPU time of a call, the first of which warms up."""
    taken = []
    for _ in range(rounds + 1):
        start = time.process_time()
        work()
        taken.append(1000 * (time.process_time() - start))
    return median(taken[1:])


def measure(height: int, width: int, scale: int, rounds: int) -> dict[str, Any]:
    """Return the times of a video of random pixels."""
    frames = np.random.default_rng(0).integers(0, 256, (64, height, width, 3), np.uint8)
    views = Views([shrink(frames, scale)], [np.arange(64).reshape(4, 16)], scale, scale, (0, 1, 2))
    statistics = torch.full((3,), 0.45), torch.full((3,), 0.225)
    out = torch.empty(views.shape, memory_format=layout(5))
    return {
        "size": f"{width}x{height}",
        "short_side": scale,
        "worker_ms": milliseconds(lambda: shrink(frames, scale), rounds),
        "cut_ms": milliseconds(lambda: views.cut(statistics, out), rounds),
    }


def start_seconds(rounds: int) -> float:
    """Return the median CPU seconds of a start."""
    command, taken = [sys.executable, "tools/run_net.py", "--cfg", "exp/demo/config.yaml", "--show"], []
    for _ in range(rounds + 1):
        before = resource.getrusage(resource.RUSAGE_CHILDREN)
        subprocess.run(command, cwd=ROOT, check=True, capture_output=True)
        after = resource.getrusage(resource.RUSAGE_CHILDREN)
        taken.append(after.ru_utime + after.ru_stime - before.ru_utime - before.ru_stime)
    return median(taken[1:])


def main() -> None:
    """Measure, print, and write JSON."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--rounds", type=int, default=9, help="counted rounds (default: 9)")
    parser.add_argument("--json", type=Path, metavar="FILE", help="write the figures to a file")
    args = parser.parse_args()
    use_one_thread()
    cases = [measure(*case, args.rounds) for case in CASES]
    for case in cases:
        size, side = case["size"], case["short_side"]
        print(f"{size:>9} to {side}: worker {case['worker_ms']:6.1f} ms, cut {case['cut_ms']:6.1f} ms")
    record = {"views": cases, "start_s": start_seconds(min(args.rounds, 3)), "torch": torch.__version__}
    record["device"] = f"CPU: {processor()}"
    print(f"start: {record['start_s']:.2f} CPU s")
    if args.json:
        write_json(args.json, record)


if __name__ == "__main__":
    main()
