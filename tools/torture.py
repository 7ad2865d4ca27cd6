"""Kill a training repeatedly and check that nothing is lost: python tools/torture.py --cfg exp/demo/config.yaml.

An uninterrupted run is the reference. Every trial starts a new training, kills it with SIGKILL at random times (half of
the kills while a checkpoint is being written), and repeats the same command until it ends. The last checkpoint and the
losses in the log must equal those of the reference bit for bit.
"""

from __future__ import annotations

import argparse
import os
import random
import shutil
import signal
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any, BinaryIO

import torch
from tqdm import tqdm

from slowfast.run.checkpoint import checkpoint_dir, last_checkpoint
from slowfast.utils.logging import read_metrics
from slowfast.weights.tensors import load_tensors

RUN_NET = Path(__file__).with_name("run_net.py")
# one checkpoint per step, so that kills during a save are frequent
ALWAYS = ("TEST.ENABLE", "False", "TRAIN.CHECKPOINT_MINUTES", "1e-6", "TRAIN.CHECKPOINT_PERIOD", "1", "LOG_PERIOD", "1")


def start_run(arguments: list[str], log: BinaryIO) -> subprocess.Popen[bytes]:
    """Start a Python program in a new session."""
    environment = {"OMP_NUM_THREADS": "1", **os.environ}  # the order of a sum depends on the number of threads
    command = [sys.executable, *arguments]
    return subprocess.Popen(command, stdout=log, stderr=log, env=environment, start_new_session=True)


def kill_at_random(process: subprocess.Popen[bytes], output_dir: Path, seconds: float, rng: random.Random) -> bool:
    """Kill the processes of a run in the first half of `seconds`; return False if it ended before."""
    while_saving = rng.random() < 0.5
    # in the first half, because each attempt resumes and has less left to do than `seconds`
    deadline = time.monotonic() + rng.uniform(0, seconds / 2)
    while process.poll() is None:
        part = while_saving and any(checkpoint_dir(str(output_dir)).glob(".*.pyth.*"))
        if time.monotonic() > deadline and (part or not while_saving):
            os.killpg(process.pid, signal.SIGKILL)
            process.wait()
            return True
        time.sleep(0.002)
    return False


def differences(a: Any, b: Any, name: str = "") -> list[str]:
    """Return the names of the entries in which two checkpoints differ."""
    if torch.is_tensor(a) and torch.is_tensor(b):
        return [] if torch.equal(a, b) else [name]
    if isinstance(a, Mapping) and isinstance(b, Mapping):
        return [n for key in {**a, **b} for n in differences(a.get(key), b.get(key), f"{name}/{key}")]
    if isinstance(a, (list, tuple)) and isinstance(b, (list, tuple)) and len(a) == len(b):
        return [n for i, (x, y) in enumerate(zip(a, b, strict=True)) for n in differences(x, y, f"{name}/{i}")]
    return [] if a == b else [name]


def result(output_dir: Path) -> dict[str, Any]:
    """Return what must be equal: the last checkpoint without its configuration, and the losses of all steps."""
    path = last_checkpoint(str(output_dir))
    if path is None:
        raise ValueError(f"{output_dir} contains no checkpoint: see {output_dir}.txt")
    checkpoint = {key: value for key, value in load_tensors(path).items() if key != "cfg"}
    losses = [record["loss"] for record in read_metrics(output_dir) if record["kind"] == "train"]
    return {"checkpoint": checkpoint, "losses": losses}


def torture(
    config: str,
    overrides: Sequence[str],
    folder: Path,
    trials: int,
    kills: int,
    seed: int,
    start: Callable[[list[str], BinaryIO], Any] = start_run,
) -> int:
    """Run the reference and the trials.

    Args:
        config: path of an experiment.
        overrides: KEY VALUE pairs.
        folder: an empty folder for all outputs.
        trials: number of runs to interrupt.
        kills: number of kills per run.
        seed: seed of the times of the kills.
        start: function that starts a Python program in a new session, and writes its output to a file.

    Returns:
        The number of kills.

    Raises:
        ValueError: a run failed without a kill, or its result differs from the reference.
    """
    rng = random.Random(seed)

    def begin(output_dir: Path) -> subprocess.Popen[bytes]:
        """Start the training; write its output to OUTPUT_DIR.txt."""
        with open(f"{output_dir}.txt", "ab") as log:
            arguments = [str(RUN_NET), "--cfg", config, *overrides, *ALWAYS, "OUTPUT_DIR", str(output_dir)]
            return start(arguments, log)

    begun = time.monotonic()
    if begin(folder / "reference").wait():
        raise ValueError(f"the uninterrupted run failed: see {folder}/reference.txt")
    seconds = time.monotonic() - begun
    reference = result(folder / "reference")
    killed = 0
    for trial in tqdm(range(trials), "trials", disable=None):
        output_dir = folder / f"trial_{trial}"
        for attempt in range(kills + 1):
            process = begin(output_dir)
            if attempt < kills and kill_at_random(process, output_dir, seconds, rng):
                killed += 1
            elif process.wait():
                raise ValueError(f"trial {trial} failed by itself after {attempt} kills: see {output_dir}.txt")
            else:
                break
        if different := differences(reference, result(output_dir)):
            raise ValueError(f"trial {trial} of {folder} differs from the reference: {different[:5]}")
        shutil.rmtree(output_dir)
    return killed


def main() -> int:
    """Run the trials; return 0, or 1 if one failed."""
    parser = argparse.ArgumentParser(description=__doc__, allow_abbrev=False)
    parser.add_argument("--cfg", required=True, metavar="FILE", help="experiment, such as exp/demo/config.yaml")
    parser.add_argument("--trials", type=int, default=50, help="number of runs (default: %(default)s)")
    parser.add_argument("--kills", type=int, default=3, help="kills per run (default: %(default)s)")
    parser.add_argument("--seed", type=int, default=0, help="seed of the kill times (default: %(default)s)")
    parser.add_argument("overrides", nargs="*", metavar="KEY VALUE", help="change configuration values")
    args = parser.parse_intermixed_args()
    with tempfile.TemporaryDirectory(prefix="torture_") as folder:
        try:
            killed = torture(args.cfg, args.overrides, Path(folder), args.trials, args.kills, args.seed)
        except ValueError as error:
            print(f"error: {error}", file=sys.stderr)
            return 1
    print(f"{args.trials} runs, killed {killed} times, all results equal the uninterrupted one bit for bit")
    return 0


if __name__ == "__main__":
    sys.exit(main())
