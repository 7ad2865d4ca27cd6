r"""Measure how fast a recipe loads its videos: python benchmarks/loading.py --cfg exp/NAME/config.yaml [KEY VALUE ...].

Three ways to load the same clips alternate, with one worker and with several, for the training and the test of the
recipe. The medians over the rounds are printed:

* decode: decord, which the official code uses, opens a video and decodes the frames of the clips.
* ours: all that training and testing do, from the list to batches in shared memory.
* plain: the usual way, as in the official code. Training applies timm's RandAugment to each frame as a PIL image, and
  normalizes, crops, flips and erases in float32. A test opens, decodes and resizes a video again for every view. It
  draws the same frames, operations and boxes as ours.

A single worker runs on one core, with its threads and decoder processes. "left to the device" is the CPU time that one
core needs to cut out the views of a test and to normalize, which a GPU does otherwise; "all on the CPU" contains it.

Other CPU time is that of the workers and their decoder processes. It depends less than wall time on other jobs of the
machine. It is read from /proc, so Linux is required. For example:

    python benchmarks/loading.py --cfg exp/uniformer_s16x4_k400/config.yaml --make 24 \
        TEST.NUM_ENSEMBLE_VIEWS 4 TEST.NUM_SPATIAL_CROPS 3
"""

from __future__ import annotations

import argparse
import os
import sys
import time
from collections.abc import Callable, Sequence
from functools import partial
from pathlib import Path
from statistics import median
from typing import Any

import torch
from footage import make_videos
from fvcore.common.config import CfgNode
from plain_loader import Decode, Plain, VideoDataset, plain_collate
from torch.utils.data import DataLoader, Dataset
from tqdm import tqdm

from slowfast.config import load_config
from slowfast.datasets.backends import check_backend
from slowfast.datasets.build import build_dataset
from slowfast.datasets.catalog import CATALOG
from slowfast.datasets.dataset import ImageEvalDataset, Key, TrainDataset, VideoReader, as_made
from slowfast.datasets.lists import read_list
from slowfast.datasets.workers import start_worker, use_one_thread
from slowfast.engine.setup import clip_mover
from slowfast.prepare.reencode import Settings
from slowfast.utils.environment import environment
from slowfast.utils.io import write_json


def cpu_seconds() -> float:
    """Return the CPU time of all running descendants of this process: workers and decoder processes."""
    below, total = [str(os.getpid())], 0.0
    while below:
        for children in Path(f"/proc/{below.pop()}/task").glob("*/children"):
            for child in children.read_text().split():
                below.append(child)
                user, system = Path(f"/proc/{child}/stat").read_text().rpartition(")")[2].split()[11:13]
                total += (int(user) + int(system)) / os.sysconf("SC_CLK_TCK")
    return total


def start_on_one_core(initialize: Callable[[int], None], worker: int) -> None:
    """Start a worker on one core."""
    if hasattr(os, "sched_setaffinity"):
        os.sched_setaffinity(0, {max(os.sched_getaffinity(0))})
    initialize(worker)


def time_loading(
    dataset: Dataset[Any],
    join: Callable[[Sequence[Any]], Any],
    batches: Sequence[Sequence[Key]],
    workers: int,
    initialize: Callable[[int], None],
    finish: Callable[[Any], object] | None = None,
) -> dict[str, float]:
    """Load `batches` with new workers.

    Each worker first loads one more batch, so that the start is not measured.

    Args:
        dataset: its items are keyed by epoch and row.
        join: the `collate_fn`.
        batches: keys of each batch.
        workers: number of workers.
        initialize: the `worker_init_fn`.
        finish: what a device does with a batch; it is timed on the last batch, as on one of many.

    Returns:
        Milliseconds per video: "cpu" of all workers, "wall", and "device" if `finish` is given (CPU time).
    """
    options = {"collate_fn": join, "num_workers": workers, "multiprocessing_context": "fork"}
    options["worker_init_fn"] = partial(start_on_one_core, initialize) if workers == 1 else initialize
    order = [*batches[:1]] * workers
    loader = DataLoader(dataset, batch_sampler=order, persistent_workers=True, **options)  # pyright: ignore
    for _ in loader:
        pass
    order[:] = batches
    before, start = cpu_seconds(), time.monotonic()
    last = None
    for batch in loader:
        last = batch
    end, after = time.monotonic(), cpu_seconds()
    videos = sum(map(len, batches)) / 1000
    spent = max(after - before, 1 / os.sysconf("SC_CLK_TCK"))  # a few small videos may take less than a tick
    times = {"cpu": spent / videos, "wall": (end - start) / videos}
    if finish:
        finish(last)
        start = time.process_time()
        finish(last)
        times["device"] = 1000 * (time.process_time() - start) / len(batches[-1])
    return times


def benchmark(
    dataset: VideoDataset,
    mean: Sequence[float],
    std: Sequence[float],
    to_device: Callable[[Any], object],
    *,
    batch_size: int,
    videos: int,
    rounds: int,
    workers: int,
) -> dict[str, Any]:
    """Measure the three ways in turn.

    Args:
        dataset: of a training or a test.
        mean: mean of the normalization, per channel.
        std: standard deviation of the normalization, per channel.
        to_device: makes normalized clips of the "video" of our batches.
        batch_size: videos per batch.
        videos: videos per way and round.
        rounds: number of rounds; each is another epoch with other draws.
        workers: number of workers.

    Returns:
        "cpu" and "wall", each with the milliseconds per video of "decode", "ours" and "plain" and the median ratios
        "ours_to_decode" and "plain_to_ours"; and in CPU milliseconds per video "device", and "complete" (ours and
        device) with the ratio "plain_to_complete".

    Raises:
        ValueError: decord, which "decode" and "plain" use, cannot be imported.
    """
    check_backend("decord")
    ways: dict[str, tuple[Dataset[Any], Callable[[Sequence[Any]], Any], Callable[[int], None]]] = {
        "decode": (Decode(dataset), sum, use_one_thread),
        "ours": (dataset, as_made, start_worker),
        "plain": (Plain(dataset, mean, std), plain_collate, use_one_thread),
    }
    for index in range(min(len(dataset), videos)):
        _ = ways["decode"][0][(0, index)]  # so that the disk is not measured
    times: dict[str, list[dict[str, float]]] = {name: [] for name in ways}
    for epoch in tqdm(range(rounds), "rounds", disable=None, leave=False):
        keys = [(epoch, index % len(dataset)) for index in range(videos)]
        batches = [keys[start : start + batch_size] for start in range(0, videos, batch_size)]
        for name, (loaded, join, initialize) in ways.items():
            finish = (lambda batch: to_device(batch["video"])) if name == "ours" else None
            times[name].append(time_loading(loaded, join, batches, workers, initialize, finish))
    result: dict[str, Any] = {"workers": workers, "videos": videos, "rounds": rounds, "batch_size": batch_size}
    complete = [entry["cpu"] + entry["device"] for entry in times["ours"]]
    plain = [entry["cpu"] for entry in times["plain"]]
    result["device"] = median(entry["device"] for entry in times["ours"])
    result["complete"] = median(complete)
    result["plain_to_complete"] = median(a / b for a, b in zip(plain, complete, strict=True))
    for clock in ("cpu", "wall"):
        taken = {name: [entry[clock] for entry in entries] for name, entries in times.items()}
        result[clock] = {name: median(values) for name, values in taken.items()} | {
            f"{slow}_to_{fast}": median(a / b for a, b in zip(taken[slow], taken[fast], strict=True))
            for slow, fast in (("ours", "decode"), ("plain", "ours"))
        }
    return result


def load_datasets(cfg: CfgNode, listed: Path | None, name: str) -> VideoDataset:
    """Return the data set of a configuration for "train" or "test", with the videos of the list `listed` if given.

    Raises:
        ValueError: the data set has images, or `build_dataset` fails.
    """
    kind = cfg.TEST.DATASET if name == "test" else cfg.TRAIN.DATASET
    spec = CATALOG[kind]
    if spec.images:
        raise ValueError(f"{name}: {kind!r} is a data set of images: choose an experiment with videos")
    samples, data = None, cfg.DATA
    if listed is not None:
        samples = read_list(listed, spec.columns, separator=data.PATH_LABEL_SEPARATOR, prefix=data.PATH_PREFIX)
    dataset = build_dataset(cfg, "test" if name == "test" else "train", samples)
    assert not isinstance(dataset, ImageEvalDataset) and isinstance(dataset.reader, VideoReader)
    return dataset


def format_result(title: str, clips: int, result: dict[str, Any]) -> str:
    """Format CPU and wall milliseconds per video, clips per second and ratios."""
    count = result["workers"]
    rounds = result["rounds"]
    lines = [f"{title}: {clips} clips per video, {count} worker{'s' * (count > 1)}, {rounds} round{'s' * (rounds > 1)}"]
    lines.append(f"  {'':8}{'cpu ms/video':>14}{'wall ms/video':>15}{'clips/s':>10}")
    for name in ("decode", "ours", "plain"):
        cpu, wall = result["cpu"][name], result["wall"][name]
        lines.append(f"  {name:8}{cpu:14.1f}{wall:15.1f}{1000 * clips / wall:10.1f}")
    for clock in ("cpu", "wall"):
        ratios = result[clock]
        to_decode, to_ours = ratios["ours_to_decode"], ratios["plain_to_ours"]
        lines.append(f"  {clock}: ours / decode {to_decode:.2f}, plain / ours {to_ours:.2f}")
    lines.append(f"  left to the device: {result['device']:.1f} cpu ms/video on one core of this CPU")
    lines.append(
        f"  all on the CPU: {result['complete']:.1f} cpu ms/video, plain / this {result['plain_to_complete']:.2f}"
    )
    return "\n".join(lines)


def main(argv: list[str] | None = None) -> int:
    """Print the figures; return 0, or 2 after the message of a wrong argument."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter, allow_abbrev=False
    )
    parser.add_argument("--cfg", required=True, metavar="FILE", help="experiment")
    source = parser.add_mutually_exclusive_group()
    source.add_argument("--list", type=Path, metavar="FILE", help="videos, in the format of the recipe's lists")
    source.add_argument("--make", type=int, metavar="N", help="make N videos: 340x256, 10 s, H.264")
    parser.add_argument(
        "--key-frames",
        type=int,
        default=Settings().key_frames,
        metavar="N",
        help="with --make: distance of key frames (default: %(default)s, as in `reencode`; x264 uses 250)",
    )
    folder = Path("data/benchmark")
    parser.add_argument("--folder", type=Path, default=folder, help="with --make: where (default: %(default)s)")
    parser.add_argument("--job", choices=("train", "test"), help="measure only this one (default: both)")
    parser.add_argument(
        "--workers", type=int, default=os.cpu_count(), help="measure 1 worker and N workers (default: %(default)s)"
    )
    parser.add_argument("--videos", type=int, default=48, help="videos per way and round (default: %(default)s)")
    parser.add_argument("--rounds", type=int, default=7, help="number of rounds (default: %(default)s)")
    parser.add_argument("--batch", type=int, default=4, help="videos per training batch (default: %(default)s)")
    parser.add_argument("--json", type=Path, metavar="FILE", help="write the figures to this file")
    parser.add_argument("overrides", nargs="*", metavar="KEY VALUE", help="change configuration values")
    args = parser.parse_intermixed_args(argv)
    try:
        if min(args.workers, args.videos, args.rounds, args.batch, args.key_frames, args.make or 1) < 1:
            raise ValueError("--make, --key-frames, --workers, --videos, --rounds and --batch must be at least 1")
        listed = args.list
        if args.make:
            listed = make_videos(args.folder, args.make, args.key_frames)
            args.overrides += ["DATA.PATH_LABEL_SEPARATOR", ","]
        cfg = load_config(args.cfg, args.overrides)
        machine = environment()
        print(", ".join(f"{name} {value}" for name, value in machine.items()))
        record: dict[str, Any] = {"machine": machine, "cfg": args.cfg, "overrides": args.overrides}
        use_one_thread()
        to_device = clip_mover(cfg, torch.device("cpu"), reuse=True)
        for job in (args.job,) if args.job else ("train", "test"):
            dataset = load_datasets(cfg, listed, job)
            train = isinstance(dataset, TrainDataset)
            clips = dataset.num_copies if train else dataset.num_views * dataset.num_crops
            record[job] = {"clips": clips, "results": []}
            for workers in sorted({1, args.workers}):
                # at least one batch per worker
                batch = max(1, min(args.batch, args.videos // workers)) if train else 1
                sizes = {"batch_size": batch, "videos": args.videos, "rounds": args.rounds}
                result = benchmark(dataset, cfg.DATA.MEAN, cfg.DATA.STD, to_device, **sizes, workers=workers)
                record[job]["results"].append(result)
                print(format_result(job, clips, result), flush=True)
    except (ValueError, OSError) as error:
        print(f"error: {error}", file=sys.stderr)
        return 2
    if args.json:
        write_json(args.json, record)
    return 0


if __name__ == "__main__":
    sys.exit(main())
