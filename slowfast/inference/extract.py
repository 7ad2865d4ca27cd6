"""Write the features of videos: slowfast-features VIDEO|FOLDER|LIST ... --weights SOURCE --out DIR."""

from __future__ import annotations

import argparse
import json
import os
import secrets
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import torch
from tqdm import tqdm

from slowfast.config.keys import leaves
from slowfast.datasets.reader import MediaError
from slowfast.inference.command import (
    add_network,
    check_some,
    find_videos,
    in_processes,
    load_network,
    names_of,
    positive,
    report_bad,
)
from slowfast.inference.layers import LayerFeatures
from slowfast.inference.network import Network
from slowfast.inference.stores import check_library, write_store
from slowfast.inference.windows import WindowCutter, run_windows
from slowfast.utils.io import Parser, atomic_write, check_output, counted, sha256, write_json
from slowfast.weights.fetch import fetch

SETTINGS, DESCRIPTIONS = "features.json", "described"  # file, and folder of a JSON per finished video
# Keys that change the features of the same weights, except those that SETTINGS contains under other names.
KEYS = (
    "TEST.DATASET", "TEST.NUM_ENSEMBLE_VIEWS", "TEST.NUM_SPATIAL_CROPS", "TEST.AMP_DTYPE", "DATA.SAMPLING_RATE",
    "DATA.USE_OFFSET_SAMPLING", "DATA.REVERSE_INPUT_CHANNEL", "DATA.MEAN", "DATA.STD",
    "DATA.TRAIN_JITTER_SCALES",  # short side of the frames, with one crop
)  # fmt: skip
OF_VIEWS = ("TEST.NUM_ENSEMBLE_VIEWS", "DATA.SAMPLING_RATE")  # those that do not change the features of windows


def parse_args(argv: Sequence[str] | None = None) -> argparse.Namespace:
    """Parse the command line."""
    parser = Parser(prog="slowfast-features", description=__doc__, allow_abbrev=False)
    parser.add_argument("videos", nargs="+", metavar="VIDEO", help="file, folder, pattern, list (.txt, .csv) or URL")
    add_network(parser)
    parser.add_argument("--out", required=True, metavar="DIR", help="folder of the features")
    parser.add_argument("--window", type=positive(int), metavar="N", help="frames of a window (default: of a clip)")
    parser.add_argument(
        "--stride", type=positive(int), metavar="N", help="frames from window to window (default: window / 4)"
    )
    parser.add_argument("--per-video", action="store_true", help="one vector per video, the mean over its views")
    parser.add_argument("--tokens", action="store_true", help="with --per-video: a vector per position and view")
    parser.add_argument(
        "--layer", default="pooled", metavar="NAME", help="layer (default: pooled, the input of the classifier)"
    )
    parser.add_argument("--crops", type=int, choices=(1, 3), default=1, help="crops of a window, averaged (default: 1)")
    parser.add_argument("--format", choices=("npy", "hdf5", "parquet"), default="npy", help="npy: a file per video")
    parser.add_argument("--batch", type=positive(int), default=8, metavar="N", help="windows per pass (default: 8)")
    slurm = parser.add_argument_group("on a Slurm cluster")
    slurm.add_argument("--slurm", type=positive(int), metavar="N", help="submit an array of N tasks and return")
    slurm.add_argument("--partition", metavar="P")
    slurm.add_argument("--account", metavar="A")
    slurm.add_argument("--time", default="1-00:00:00", metavar="T", help="limit of a task: minutes, or HH:MM:SS")
    slurm.add_argument("--sbatch", action="append", default=[], metavar="KEY=VALUE", help="other options of sbatch")
    args = parser.parse_args(argv)
    if args.per_video and (args.window or args.stride or args.crops > 1):
        parser.error("--per-video takes the views of a test: leave --window, --stride and --crops out")
    if args.tokens and not args.per_video:
        parser.error("--tokens needs --per-video")
    of_slurm = [name for name in ("partition", "account", "sbatch") if getattr(args, name)]
    if of_slurm and not args.slurm:
        parser.error(f"--{of_slurm[0]} needs --slurm")
    return args


def execute(args: argparse.Namespace) -> int:
    """Write what a command line says; return the exit code."""
    check_library(args.format)
    paths = find_videos(args.videos)
    check_output(os.path.join(args.out, SETTINGS), "--out")
    net = _network(args)
    if net.is_image and (args.tokens or not args.per_video):
        raise ValueError(
            "this network takes images, which have one vector each: give --per-video and leave out --tokens (with "
            "slowfast-probe: give --probe knn linear)"
        )
    names = names_of(find_videos(args.videos, images=True) if net.is_image else paths)
    _begin(args, net)
    if args.slurm:
        submit(args, names)
        return 0
    bad = [entry for part in in_processes(run_part, args, names, net) for entry in part]
    done = finish(args, names)
    check_some(done, bad)
    print(f"{args.out}: features of {counted(len(done), 'video')}")
    return report_bad(bad)


def _network(args: argparse.Namespace) -> Network:
    crops = [] if args.per_video else ["TEST.NUM_SPATIAL_CROPS", str(args.crops)]
    return load_network(args, crops)


def _begin(args: argparse.Namespace, net: Network) -> None:
    """Write the settings of the features into a new folder, or compare them with those of a folder that has features.

    Raises:
        ValueError: the network does not have the layer, or the folder contains features of other settings.
    """
    net.layer(args.layer)
    clip = net.cfg.DATA.NUM_FRAMES
    window = args.window or clip
    rule = {
        "weights": net.weights,
        "sha256": sha256(fetch(net.weights)),
        "layer": args.layer,
        "per_video": args.per_video,
        "tokens": args.tokens,
        "window": 0 if args.per_video else window,
        "stride": 0 if args.per_video else args.stride or max(1, window // 4),
        "crops": net.num_views if args.per_video else args.crops,  # of a window, or clips of a video
        "clip": clip,
        "size": net.cfg.DATA.TEST_CROP_SIZE,
    }
    values = leaves(net.cfg)
    rule |= {key: values[key] for key in KEYS if args.per_video or key not in OF_VIEWS}
    path = Path(args.out, SETTINGS)
    if not path.is_file():
        write_json(path, {**rule, "videos": {}})
        return
    before = json.loads(path.read_text(encoding="utf-8"))
    differ = [key for key, value in rule.items() if key != "weights" and before.get(key) != value]
    if differ:
        values = ", ".join(f"{key} {before.get(key)} there, {rule[key]} here" for key in differ)
        raise ValueError(f"{args.out} contains other features ({values}): choose another --out, or use its settings")


def run_part(
    args: argparse.Namespace, names: dict[str, str], part: int, parts: int, net: Network | None = None
) -> list[tuple[str, str]]:
    """Write the features of every `parts`-th video; return (path, reason) of those that cannot be read.

    Videos whose features are complete are skipped.

    Raises:
        ValueError: the folder has features of another video under the same name.
    """
    net = net or _network(args)
    rule, bad = json.loads(Path(args.out, SETTINGS).read_text(encoding="utf-8")), list[tuple[str, str]]()
    layer = net.layer(rule["layer"], tokens=rule["tokens"])  # one for all videos, which finds its dimensions once
    mine = list(names.items())[part::parts]
    for name, path in tqdm(mine, desc="features", unit="video", disable=True if part else None):
        described = Path(args.out, DESCRIPTIONS, f"{name}.json")
        if described.is_file() and Path(args.out, f"{name}.npy").is_file():
            before = json.loads(described.read_text(encoding="utf-8"))["path"]
            if os.path.realpath(before) != os.path.realpath(path):
                raise ValueError(
                    f"{args.out}/{name}.npy contains features of {before}, not of {path}: choose another --out"
                )
            continue
        try:
            values, facts = _of_video(net, layer, rule, path, args.batch)
        except MediaError as error:
            bad.append((error.path, error.reason))
            continue
        with atomic_write(Path(args.out, f"{name}.npy")) as file:
            np.save(file, values)
        write_json(described, {"path": os.path.abspath(path), **facts})
    return bad


def _of_video(
    net: Network, layer: LayerFeatures, rule: dict[str, Any], path: str, batch: int
) -> tuple[np.ndarray, dict[str, Any]]:
    """Return the features of a video, (N, C), or (C,) per video, and facts of its windows."""
    if rule["tokens"]:
        return _tokens(net, layer, path, batch), {}
    if rule["per_video"]:
        return net.features(path, layer).values.astype(np.float32), {}
    cutter = WindowCutter(net, path, rule["window"], rule["stride"])
    found = [output.mean(0) for _, output in run_windows(net, cutter, net.as_tested(layer), batch)]
    facts = {
        "windows": len(found),
        "frames": cutter.length,
        "seconds": round(cutter.seconds, 6),
        "fps": round(cutter.length / cutter.seconds, 6),
    }
    return np.stack(found).astype(np.float32), facts


@torch.no_grad()
def _tokens(net: Network, layer: LayerFeatures, path: str, batch: int) -> np.ndarray:
    """Return the output of a layer at all positions of the views of a video, view after view, (N, C)."""
    module = net.as_tested(layer)
    tokens = torch.cat([module(clips) for clips in net.clips(path).split(batch)])
    return tokens.flatten(0, 1).float().cpu().numpy()


def finish(args: argparse.Namespace, names: dict[str, str]) -> list[str]:
    """Collect the descriptions of finished videos into one file, and their features if one file is wanted.

    Return the names of the finished videos.
    """
    out = Path(args.out)
    settings = json.loads((out / SETTINGS).read_text(encoding="utf-8"))
    files = {name: out / DESCRIPTIONS / f"{name}.json" for name in names}
    done = {name: json.loads(file.read_text(encoding="utf-8")) for name, file in files.items() if file.is_file()}
    settings["videos"] = dict(sorted({**settings["videos"], **done}.items()))
    write_json(out / SETTINGS, settings)
    if args.format != "npy":
        write_store(args.format, out, settings)
    return [*done]


@dataclass
class Task:
    """One task of the array: every n-th video. A repeated or requeued task continues."""

    args: argparse.Namespace
    names: dict[str, str]
    parts: int
    array: str = field(default_factory=lambda: secrets.token_hex(4))

    def __call__(self, part: int) -> int:
        """Write the features of a part; the task that ends last collects those of all parts.

        If two tasks end together, both may find that they are the last one; then both write the same content.
        """
        bad = run_part(self.args, self.names, part, self.parts)
        ended = Path(self.args.out, "slurm", f"ended_{self.array}")
        ended.mkdir(parents=True, exist_ok=True)
        (ended / str(part)).touch()
        if len([*ended.iterdir()]) == self.parts:
            finish(self.args, self.names)
        return report_bad(bad)


def submit(args: argparse.Namespace, names: dict[str, str]) -> None:
    """Submit the array, and print how to follow it.

    Raises:
        ValueError: Slurm is not available, or rejects the job.
    """
    from submitit import SlurmExecutor  # slow to import
    from submitit.core.utils import FailedSubmissionError, UncompletedJobError

    from slowfast.run.slurm import minutes, sbatch_parameters

    folder = Path(args.out, "slurm").absolute()
    try:
        executor = SlurmExecutor(folder)
    except RuntimeError as error:
        raise ValueError("--slurm needs a Slurm cluster, but srun is not in PATH: run this on a login node") from error
    named = {"partition": args.partition, "account": args.account, "gpus_per_node": 1 if args.gpus else None}
    executor.update_parameters(
        job_name="slowfast-features",
        time=minutes(args.time),
        array_parallelism=args.slurm,
        stderr_to_stdout=True,
        additional_parameters=sbatch_parameters(args.sbatch),
        **{key: value for key, value in named.items() if value is not None},
    )
    parts = min(args.slurm, len(names))
    try:
        jobs = executor.map_array(Task(args, names, parts), range(parts))
    except (FailedSubmissionError, UncompletedJobError) as error:
        raise ValueError(f"Slurm refused the array: {str(error).strip()}") from None
    first = jobs[0].job_id.partition("_")[0]
    print(f"submitted array {first} of {parts} tasks; logs in {folder}\n  state   squeue -j {first}")
