"""Measure a whole training: python benchmarks/training.py uniformer_s16x4_k400 --device cuda --batch 32 --make 48.

Three things alternate, with the same network, batch size and types:

* bare: forward and backward pass, clipping and optimizer, on clips that are on the device.
* loop: an epoch of the program, whose batches are ready in memory.
* loaded: an epoch of the program that decodes and augments videos, with all workers.

"overhead" is what the loop adds to the bare step. "busy" is the time of the loop per time of the loaded epoch, which is
the share of time in which the loader keeps the device busy.
"""

from __future__ import annotations

import argparse
import itertools
import statistics
import tempfile
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import torch
from footage import make_videos
from fvcore.common.config import CfgNode
from model import Subject, synchronize

from slowfast.config import load_config
from slowfast.engine.setup import listed, make_loader
from slowfast.engine.start import prepare_run, prepare_state
from slowfast.engine.train import train_epoch
from slowfast.models.build import build_model
from slowfast.utils.io import write_json
from slowfast.utils.processes import usable_cores


class Ready:
    """A loader whose batches are in memory."""

    def __init__(self, batch: dict[str, Any], steps: int) -> None:
        self.batch, self.steps, self.batch_sampler = batch, steps, self

    def set_position(self, epoch: int, batch: int) -> None:
        """Begin anywhere: all batches are equal."""

    def __iter__(self) -> Iterator[dict[str, Any]]:
        return itertools.repeat(self.batch, self.steps)


def measure(cfg: CfgNode, device: torch.device, steps: int, rounds: int) -> dict[str, Any]:
    """Return the seconds per step of each kind, and what follows from them."""
    loader = make_loader(cfg, "train", device)
    state, _ = prepare_state(cfg, build_model(cfg), steps, dict.fromkeys(("train", "val"), listed(loader)), device)
    run = prepare_run(cfg, state, len(listed(loader)), {}, device)
    batch = next(iter(loader))
    bare = Subject(state.model, cfg, run.to_device(batch["video"]), run.amp)
    bare.network, bare.optimizer = run.network, state.optimizer

    def bare_steps() -> None:
        for _ in range(steps):
            bare.train()

    def epoch(source: Any) -> Callable[[], None]:
        def take() -> None:
            run.last_step = state.step + steps
            train_epoch(state, run, source)

        return take

    kinds = {"bare": bare_steps, "loop": epoch(Ready(batch, steps)), "loaded": epoch(loader)}
    seconds: dict[str, list[float]] = {kind: [] for kind in kinds}
    with run.writer, run.log:
        for _ in range(rounds + 1):
            for kind, take in kinds.items():
                start = time.perf_counter()
                take()
                synchronize(device)
                seconds[kind].append((time.perf_counter() - start) / steps)
    medians = {kind: statistics.median(values[1:]) for kind, values in seconds.items()}  # the first round warms up
    pairs = list(zip(*(seconds[kind][1:] for kind in kinds), strict=True))
    return {
        "seconds": medians,
        "clips_per_s": {kind: len(batch["label"]) / value for kind, value in medians.items()},
        "overhead": statistics.median(loop / bare - 1 for bare, loop, _ in pairs),
        "busy": statistics.median(loop / loaded for _, loop, loaded in pairs),
    }


def main() -> None:
    """Measure, print, and write JSON."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("experiment", help="folder in exp/, such as uniformer_s16x4_k400")
    parser.add_argument("overrides", nargs="*", metavar="KEY VALUE", help="change values of the experiment")
    parser.add_argument("--device", default="cuda" if torch.cuda.is_available() else "cpu")
    parser.add_argument("--batch", type=int, default=8, help="videos per step (default: 8)")
    parser.add_argument("--steps", type=int, default=20, help="steps per epoch (default: 20)")
    parser.add_argument("--rounds", type=int, default=3, help="counted rounds (default: 3)")
    parser.add_argument("--workers", type=int, default=usable_cores(), help="loader processes (default: all cores)")
    parser.add_argument("--make", type=int, default=24, metavar="N", help="make N videos (default: 24)")
    parser.add_argument("--seconds", type=float, default=10, help="length of a made video (default: 10)")
    parser.add_argument("--json", type=Path, metavar="FILE", help="write the figures to a file")
    args = parser.parse_intermixed_args()

    device = torch.device(args.device)
    with tempfile.TemporaryDirectory() as folder:
        rows = make_videos(Path(folder), args.make, 30, args.seconds).read_text().splitlines()
        wanted = args.batch * args.steps
        for name in ("train.csv", "val.csv"):
            Path(folder, name).write_text("\n".join(itertools.islice(itertools.cycle(rows), wanted)) + "\n")
        data = {
            "NUM_GPUS": int(device.type == "cuda"), "OUTPUT_DIR": folder, "TRAIN.BATCH_SIZE": args.batch,
            "DATA.PATH_TO_DATA_DIR": folder, "DATA.LABEL_PATH_TEMPLATE": "{}.csv", "DATA.PATH_LABEL_SEPARATOR": ",",
            "DATA_LOADER.NUM_WORKERS": args.workers, "UNIFORMER.PRETRAIN_NAME": "", "TENSORBOARD.ENABLE": False,
            "TEST.ENABLE": False,
        }  # fmt: skip
        given = [str(value) for pair in data.items() for value in pair]
        cfg = load_config(f"exp/{args.experiment}/config.yaml", [*given, *args.overrides])
        record: dict[str, Any] = {
            "training": args.experiment, "overrides": args.overrides, "batch": args.batch, "workers": args.workers,
            "device": torch.cuda.get_device_name(device) if device.type == "cuda" else "CPU",
            "torch": torch.__version__, **measure(cfg, device, args.steps, args.rounds),
        }  # fmt: skip
    for kind, value in record["seconds"].items():
        print(f"{kind:8}{1000 * value:10.1f} ms/step {record['clips_per_s'][kind]:10.1f} clips/s")
    print(
        f"the loop adds {100 * record['overhead']:.1f} %, the loader keeps the device {100 * record['busy']:.0f} % busy"
    )
    if args.json:
        write_json(args.json, record)


if __name__ == "__main__":
    main()
