"""Write the features of videos: slowfast-features VIDEO|FOLDER|LIST ... --weights SOURCE --out DIR."""

from __future__ import annotations

import argparse
import contextlib
import json
import os
import sys
from collections import Counter
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from multiprocessing import get_context
from pathlib import Path
from typing import Any

import numpy as np
import torch
from tqdm import tqdm

from slowfast.datasets.lists import Sample
from slowfast.datasets.reader import MediaError
from slowfast.datasets.rows import UNKNOWN
from slowfast.datasets.workers import usable_cores
from slowfast.inference.inputs import check_output, find_videos
from slowfast.inference.network import Network
from slowfast.inference.predict import WRONG_INPUT, add_network, guarded, load_network, positive, report_bad
from slowfast.inference.stores import check_library, write_store
from slowfast.inference.windows import WindowCutter, run_windows
from slowfast.utils.io import atomic_write, sha256, to_json, write_text
from slowfast.weights.fetch import fetch

SETTINGS, DESCRIPTIONS = "features.json", "described"  # file, and folder of a JSON per finished video


def parse_args(argv: Sequence[str] | None = None) -> argparse.Namespace:
    """Parse the command line."""
    parser = argparse.ArgumentParser(prog="slowfast-features", description=__doc__, allow_abbrev=False)
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
        "--layer", default="pooled", metavar="NAME", help="layer (default pooled: input of the classifier)"
    )
    parser.add_argument("--crops", type=int, choices=(1, 3), default=1, help="crops of a window, averaged (default 1)")
    parser.add_argument("--format", choices=("npy", "hdf5", "parquet"), default="npy", help="npy: a file per video")
    parser.add_argument("--batch", type=positive(int), default=8, metavar="N", help="windows per pass (default 8)")
    slurm = parser.add_argument_group("on a Slurm cluster")
    slurm.add_argument("--slurm", type=positive(int), metavar="N", help="submit an array of N tasks and return")
    slurm.add_argument("--partition", metavar="P")
    slurm.add_argument("--account", metavar="A")
    slurm.add_argument("--time", default="1-00:00:00", metavar="T", help="limit of a task: minutes, or HH:MM:SS")
    slurm.add_argument("--sbatch", action="append", default=[], metavar="KEY=VALUE", help="other options of sbatch")
    args = parser.parse_args(argv)
    if args.per_video and (args.window or args.stride):
        parser.error("--per-video takes the views of a test: leave --window and --stride out")
    if args.tokens and not args.per_video:
        parser.error("--tokens needs --per-video")
    return args


@dataclass(frozen=True)
class Rule:
    """Everything that the features depend on; a folder contains those of one rule.

    Attributes:
        weights: path or address of the weights.
        sha256: checksum of their file.
        layer: name of the layer.
        per_video: one vector per video instead of one per window.
        tokens: a vector per position of each view, instead of their mean.
        window: frames of a window; 0 for `per_video`.
        stride: frames between windows; 0 for `per_video`.
        crops: crops of a window, or clips of a video.
        clip: frames of a clip.
        size: height and width of a clip in pixels.
    """

    weights: str
    sha256: str
    layer: str
    per_video: bool
    tokens: bool
    window: int
    stride: int
    crops: int
    clip: int
    size: int


def main() -> int:
    """Write the features; return 0, 1 if some videos cannot be read, or 2 for wrong inputs."""
    return guarded(lambda: execute(parse_args()))


def execute(args: argparse.Namespace) -> int:
    """Write what a command line says; return the exit code."""
    check_library(args.format)
    paths = find_videos(args.videos)
    check_output(os.path.join(args.out, SETTINGS), "--out")
    names = names_of(paths)
    net = _network(args)
    rule = _rule(args, net)
    _begin(args.out, rule)
    if args.slurm:
        from slowfast.inference.arrays import submit

        submit(args, names)
        return 0
    count = args.gpus or args.processes or 1
    bad = _run_processes(args, names, count) if count > 1 else run_part(args, names, net=net)
    done = finish(args, names)
    if not done:
        raise ValueError(f"{bad[0][0]}: {bad[0][1]}" + f" ({len(bad) - 1} more)" * (len(bad) > 1))
    print(f"features of {done} videos are in {args.out}")
    return report_bad(bad)


def names_of(paths: Sequence[str]) -> dict[str, str]:
    """Return name in the output folder -> path; names are below the common folder, without suffix where unique."""
    above = os.path.commonpath([os.path.dirname(os.path.abspath(path)) for path in paths])
    short = [os.path.splitext(os.path.relpath(path, above))[0] for path in paths]
    full = [os.path.relpath(path, above) for path in paths]
    uses, whole_names = Counter(short), set(full)
    return {
        (name if uses[name] == 1 and name not in whole_names else whole): path
        for name, whole, path in zip(short, full, paths, strict=True)
    }


def _network(args: argparse.Namespace) -> Network:
    crops = [] if args.per_video else ["TEST.NUM_SPATIAL_CROPS", str(args.crops)]
    return load_network(args, crops)


def _rule(args: argparse.Namespace, net: Network) -> Rule:
    clip = net.cfg.DATA.NUM_FRAMES
    window = 0 if args.per_video else args.window or clip
    stride = 0 if args.per_video else args.stride or max(1, window // 4)
    net.layer(args.layer)  # before the work begins
    crops = net.num_views if args.per_video else args.crops
    checksum, size = sha256(fetch(net.weights)), net.cfg.DATA.TEST_CROP_SIZE
    return Rule(net.weights, checksum, args.layer, args.per_video, args.tokens, window, stride, crops, clip, size)


def _begin(out: str, rule: Rule) -> None:
    """Write the settings into a new folder; compare them with those of a folder that has features.

    Raises:
        ValueError: the folder contains features of another rule.
    """
    path = Path(out, SETTINGS)
    if not path.is_file():
        write_text(path, to_json({**asdict(rule), "videos": {}}, indent=2) + "\n")
        return
    before = json.loads(path.read_text(encoding="utf-8"))
    differ = [key for key, value in asdict(rule).items() if key != "weights" and before.get(key) != value]
    if differ:
        values = ", ".join(f"{key} {before.get(key)} there, {getattr(rule, key)} here" for key in differ)
        raise ValueError(f"{out} contains other features ({values}): choose another --out, or repeat that command")


def run_part(
    args: argparse.Namespace, names: dict[str, str], part: int = 0, parts: int = 1, net: Network | None = None
) -> list[tuple[str, str]]:
    """Write the features of every `parts`-th video; return (path, reason) of those that cannot be read.

    Videos whose features are complete are skipped.
    """
    net = net or _network(args)
    rule, bad = _rule(args, net), list[tuple[str, str]]()
    mine = list(names.items())[part::parts]
    for name, path in tqdm(mine, desc="features", unit="video", disable=True if part else None):
        described = Path(args.out, DESCRIPTIONS, f"{name}.json")
        if described.is_file() and Path(args.out, f"{name}.npy").is_file():
            continue
        try:
            values, about = _of_video(net, rule, path, args.batch)
        except MediaError as error:
            bad.append((error.path, error.reason))
            continue
        with atomic_write(Path(args.out, f"{name}.npy")) as file:
            np.save(file, values)
        write_text(described, to_json(about, indent=2) + "\n")
    return bad


def _of_video(net: Network, rule: Rule, path: str, batch: int) -> tuple[np.ndarray, dict[str, Any]]:
    """Return the features of a video, (N, C), or (C,) per video, and their description."""
    if rule.tokens:
        return _tokens(net, rule, path, batch), {"path": path}
    if rule.per_video:
        return net.features(path, rule.layer).values.astype(np.float32), {"path": path}
    layer, cutter = net.as_tested(net.layer(rule.layer)), WindowCutter(net, path, rule.window, rule.stride)
    found = [output.mean(0) for _, output in run_windows(net, cutter, layer, batch)]
    about = {
        "path": path,
        "windows": len(found),
        "frames": cutter.length,
        "seconds": round(cutter.seconds, 6),
        "fps": round(cutter.length / cutter.seconds, 6),
    }
    return np.stack(found).astype(np.float32), about


@torch.no_grad()
def _tokens(net: Network, rule: Rule, path: str, batch: int) -> np.ndarray:
    """Return the output of a layer at all positions of the views of a video, view after view, (N, C)."""
    frames = net.views_of_video.reader.read(Sample(path, UNKNOWN), net.frame_indices)
    layer = net.as_tested(net.layer(rule.layer, tokens=True))
    tokens = torch.cat([layer(clips) for clips in net.transform(np.stack([*frames])).split(batch)])
    return tokens.flatten(0, 1).float().cpu().numpy()


def finish(args: argparse.Namespace, names: dict[str, str], store: bool = True) -> int:
    """Collect the descriptions of finished videos into one file, and their features if one file is wanted.

    Args:
        args: command line.
        names: name in the output folder -> path of all videos.
        store: whether to collect features; False while other tasks are not finished.

    Returns:
        The number of finished videos.
    """
    out, settings = Path(args.out), dict[str, Any]()
    files = {name: out / DESCRIPTIONS / f"{name}.json" for name in names}
    before, done = None, [name for name, file in files.items() if file.is_file()]
    while done != before:  # repeated if another task has finished since, whose list this one may have replaced
        settings = json.loads((out / SETTINGS).read_text(encoding="utf-8"))
        videos = {name: json.loads(files[name].read_text(encoding="utf-8")) for name in done}
        settings["videos"] = dict(sorted({**settings["videos"], **videos}.items()))
        write_text(out / SETTINGS, to_json(settings, indent=2) + "\n")
        before, done = done, [name for name, file in files.items() if file.is_file()]
    if store and args.format != "npy":
        write_store(args.format, out, settings)
    return len(done)


def _run_processes(args: argparse.Namespace, names: dict[str, str], count: int) -> list[tuple[str, str]]:
    """Run the parts in processes; return (path, reason) of videos that cannot be read."""
    context = get_context("spawn")
    pipes = [context.Pipe(duplex=False) for _ in range(count)]
    processes = [
        context.Process(target=_process, args=(args, names, part, count, answer))
        for part, (_, answer) in enumerate(pipes)
    ]
    bad = list[tuple[str, str]]()
    try:
        for process, (_, answer) in zip(processes, pipes, strict=True):
            process.start()
            answer.close()  # the process has its own; so the end of the process ends the pipe
        for process, (answers, _) in zip(processes, pipes, strict=True):
            with contextlib.suppress(EOFError):  # it failed, and has printed why
                bad += answers.recv()  # before the join: a long answer waits for its reader
            process.join()
    finally:
        for process in processes:
            if process.pid is not None:
                process.kill()
    if failed := [process.exitcode for process in processes if process.exitcode]:
        print(f"{len(failed)} of {count} processes failed; repeat the command to continue", file=sys.stderr)
        sys.exit(WRONG_INPUT if failed[0] == WRONG_INPUT else 1)
    return bad


def _process(args: argparse.Namespace, names: dict[str, str], part: int, count: int, answer: Any) -> None:
    torch.set_num_threads(max(1, usable_cores() // count))
    args = argparse.Namespace(**{**vars(args), "device": f"cuda:{part}" if args.gpus else args.device})

    def run() -> int:
        answer.send(run_part(args, names, part, count))
        return 0

    sys.exit(guarded(run))
