"""Record what a refactor must not change: python benchmarks/fingerprint.py OUT.json [--compare OTHER.json].

Train 20 steps of the demos (videos, UniFormerV2, images, two ranks, all augmentations), test one of them with 1, 2 and
3 ranks and the UniFormerV2 with one. The record contains the loss, gradient norm and learning rate of every step, the
checksum of the trained weights, and that of all scores of the tests. Two records of one machine are equal to the last
bit if a change keeps the numbers; records of different machines may differ.
"""

from __future__ import annotations

import argparse
import hashlib
import json
import os
import subprocess
import sys
import tempfile
from pathlib import Path
from typing import Any

import numpy as np

from slowfast.run.checkpoint import last_checkpoint
from slowfast.utils.io import write_json
from slowfast.utils.logging import read_metrics
from slowfast.weights.tensors import load_tensors

ROOT = Path(__file__).parents[1]
TRAIN = "LOG_PERIOD 1 TRAIN.MAX_STEPS 20 TEST.ENABLE False DATA_LOADER.NUM_WORKERS 1"
TEST = "TRAIN.ENABLE False DATA_LOADER.NUM_WORKERS 1"
AUGMENTED = (
    "AUG.ENABLE True AUG.NUM_SAMPLE 2 TRAIN.BATCH_SIZE 8 MIXUP.ENABLE True MODEL.LOSS_FUNC soft_cross_entropy "
    "EMA.ENABLE True"
)
RUNS = {  # name: experiment and overrides
    "demo": ("demo", ""),
    "demo_v2": ("demo_v2", ""),
    "demo_image": ("demo_image", ""),
    "two_ranks": ("demo", "NUM_PROCESSES 2"),
    "augmented": ("demo", AUGMENTED),
}
TESTS = (("demo", 1), ("demo", 2), ("demo", 3), ("demo_v2", 1))  # run and ranks


def start(program: str, *arguments: str) -> None:
    """Run a program of tools/ and raise CalledProcessError if it fails."""
    environment = {**os.environ, "OMP_NUM_THREADS": "1", "PYTHONPATH": str(ROOT)}
    command = [sys.executable, f"tools/{program}.py", *arguments]
    subprocess.run(command, cwd=ROOT, env=environment, check=True, stdout=subprocess.DEVNULL)


def job(folder: Path, run: str, overrides: str) -> None:
    """Run an experiment on the demo data, with its output in <folder>/<run>."""
    experiment = RUNS[run][0]
    data = folder / ("images" if experiment == "demo_image" else "videos")
    paths = ("DATA.PATH_TO_DATA_DIR", str(data), "DATA.PATH_PREFIX", str(data), "OUTPUT_DIR", str(folder / run))
    start("run_net", "--cfg", f"exp/{experiment}/config.yaml", *paths, *overrides.split())


def training(output_dir: Path) -> dict[str, Any]:
    """Return the numbers of each step and the checksum of the trained weights."""
    rows = [record for record in read_metrics(output_dir) if record["kind"] == "train"]
    path = last_checkpoint(str(output_dir))
    assert path is not None, output_dir
    digest = hashlib.sha256()
    for name, tensor in sorted(load_tensors(path)["model_state"].items()):
        digest.update(name.encode() + tensor.numpy().tobytes())
    return {"steps": [[row["loss"], row["grad_norm"], row["lr"]] for row in rows], "weights": digest.hexdigest()}


def scores(output_dir: Path) -> str:
    """Return the checksum of the arrays of a test, without the paths, which contain the temporary folder."""
    digest = hashlib.sha256()
    with np.load(output_dir / "test" / "scores.npz") as arrays:
        for name in ("index", "label", "scores"):
            digest.update(name.encode() + np.ascontiguousarray(arrays[name]).tobytes())
    return digest.hexdigest()


def fingerprint(folder: Path) -> dict[str, Any]:
    """Train and test below an empty folder and return the record."""
    start("make_demo_data", "--out", str(folder / "videos"), "--train", "400", "--test", "40")
    start("make_demo_data", "--out", str(folder / "images"), "--images", "--train", "400", "--test", "40")
    record: dict[str, Any] = {}
    for run, (_, overrides) in RUNS.items():
        job(folder, run, f"{TRAIN} {overrides}")
        record[run] = training(folder / run)
    for run, ranks in TESTS:
        job(folder, run, f"{TEST} NUM_PROCESSES {ranks}")
        record[f"test of {run}, {ranks} ranks"] = scores(folder / run)
    return record


def main() -> int:
    """Write the record; return 1 if it differs from that of --compare."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("out", type=Path, metavar="OUT.json", help="file of the record")
    parser.add_argument("--compare", type=Path, metavar="OTHER.json", help="record of another version")
    args = parser.parse_args()
    with tempfile.TemporaryDirectory(prefix="fingerprint_") as folder:
        record = fingerprint(Path(folder))
    write_json(args.out, record)
    if args.compare is None:
        return 0
    other = json.loads(args.compare.read_text(encoding="utf-8"))
    different = [name for name in {**record, **other} if record.get(name) != other.get(name)]
    print(f"different: {', '.join(different)}" if different else f"equal: {', '.join(record)}")
    return bool(different)


if __name__ == "__main__":
    sys.exit(main())
