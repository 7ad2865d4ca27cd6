"""Define what the programs of this package share: options, videos, outputs and processes."""

from __future__ import annotations

import argparse
import glob
import math
import os
import re
import sys
from collections import Counter
from collections.abc import Callable, Sequence
from concurrent.futures import ProcessPoolExecutor
from concurrent.futures.process import BrokenProcessPool
from multiprocessing import get_context
from pathlib import Path
from typing import Any, TypeVar

import torch
import yaml

from slowfast.datasets.rows import VIDEO_SUFFIXES
from slowfast.inference.load import load
from slowfast.inference.network import Network
from slowfast.utils.processes import exit_with_parent, usable_cores
from slowfast.weights.fetch import fetch

SOME_FAILED = 1  # exit code
LIST_SUFFIXES = (".txt", ".csv", ".lst")
IMAGE_SUFFIXES = (".jpg", ".jpeg", ".png", ".bmp", ".webp")
Result = TypeVar("Result")


def add_network(parser: argparse.ArgumentParser, required: bool = True, parallel: bool = True) -> None:
    """Add the options that name a network and where it runs; with `parallel`, also those for several processes."""
    parser.add_argument(
        "--weights", required=required, metavar="SOURCE", help="network: OUTPUT_DIR, checkpoint, name, folder or hf://"
    )
    parser.add_argument("--device", metavar="NAME", help="cpu, cuda or cuda:N (default: the GPU if there is one)")
    if parallel:
        parser.add_argument("--gpus", type=positive(int), metavar="N", help="number of GPUs, with one process each")
        parser.add_argument("--processes", type=positive(int), metavar="N", help="number of processes on the CPU")
    add_configuration(parser)


def add_configuration(parser: argparse.ArgumentParser) -> None:
    """Add the options that complete the configuration of a network."""
    parser.add_argument("--experiment", metavar="NAME", help="folder of exp/, for weights without a configuration")
    parser.add_argument("--class-names", metavar="FILE", help="class names, for weights without them")
    parser.add_argument("--opts", nargs="+", default=[], metavar="KEY VALUE", help="change configuration values")


def positive(kind: Callable[[str], Any]) -> Callable[[str], Any]:
    """Return the type of an option whose value must be above 0."""

    def number(text: str) -> Any:
        if not 0 < (value := kind(text)) < math.inf:
            raise argparse.ArgumentTypeError(f"{text} is not a number above 0")
        return value

    number.__name__ = kind.__name__
    return number


def load_network(args: argparse.Namespace, overrides: Sequence[str] = ()) -> Network:
    """Load the network of a command line."""
    device = "cpu" if getattr(args, "processes", None) else args.device
    overrides = [*overrides, *args.opts]
    return load(args.weights, args.experiment, device=device, class_names=args.class_names, overrides=overrides)


def in_processes(work: Callable[..., Result], args: argparse.Namespace, items: Any, net: Network) -> list[Result]:
    """Call a function in this process, or in the processes that a command line wants.

    Args:
        work: function of `args` (with its device), `items`, number of the process and number of processes; in this
            process also of `net`.
        args: the command line.
        items: what the processes share.
        net: the network, which other processes load themselves.

    Returns:
        The result of each process.

    Raises:
        ValueError: a process was killed, or raised it, or the machine has fewer GPUs.
    """
    if args.gpus and args.gpus > (present := torch.cuda.device_count()):
        raise ValueError(f"--gpus {args.gpus}, but this machine has {present} GPUs: choose fewer, or --processes N")
    count = args.gpus or args.processes or 1
    if count == 1:
        return [work(args, items, 0, 1, net)]
    devices = [f"cuda:{part}" if args.gpus else "cpu" for part in range(count)]
    own = [argparse.Namespace(**{**vars(args), "device": device}) for device in devices]
    threads = max(1, usable_cores() // count)
    pool = ProcessPoolExecutor(count, get_context("spawn"), initializer=_start, initargs=(threads,))
    with pool:
        futures = [pool.submit(work, own[part], items, part, count) for part in range(count)]
        try:
            return [future.result() for future in futures]
        except BrokenProcessPool:
            raise ValueError(f"one of {count} processes was killed (out of memory?): repeat the command") from None


def _start(threads: int) -> None:
    """Prepare one of several processes; it exits with the one that started it, even if that was killed."""
    torch.set_num_threads(threads)
    exit_with_parent()


def check_some(good: Sequence[Any], bad: Sequence[tuple[str, str]]) -> None:
    """Raise ValueError with the first (path, reason) if no video can be read."""
    if not good:
        raise ValueError(f"{bad[0][0]}: {bad[0][1]}" + f" ({len(bad) - 1} more)" * (len(bad) > 1))


def report_bad(bad: Sequence[tuple[str, str]]) -> int:
    """List the videos that cannot be read; return the exit code."""
    if bad:
        print(f"videos that cannot be read ({len(bad)}):", file=sys.stderr)
    for path, reason in bad:
        print(f"  {path}: {reason}", file=sys.stderr)
    return SOME_FAILED if bad else 0


def find_videos(sources: Sequence[str], images: bool = False) -> list[str]:
    """Return the paths of videos, and of folders of frames, without duplicates.

    Args:
        sources: video files; folders, which are searched with all folders below, without hidden names; shell patterns;
            lists of paths (.txt or .csv, other columns are ignored; see `starts_of`); web addresses, which are
            downloaded once.
        images: return the images in folders instead, for a network that takes images.

    Raises:
        ValueError: a source does not exist or contains no video.
    """
    found: dict[str, None] = {}
    for source in sources:
        found.update(dict.fromkeys(_expand(source, images)))
    return [*found]


def _expand(source: str, images: bool) -> list[str]:
    if source.startswith(("http://", "https://", "hf://")):
        return [fetch(source)]
    if os.path.isdir(source):
        return _in_folder(source, images)
    if os.path.isfile(source):
        return _in_list(source) if source.lower().endswith(LIST_SUFFIXES) else [source]
    # a broken link and a device match themselves
    if matched := sorted(match for match in glob.glob(source, recursive=True) if match != source):
        return [path for match in matched for path in _expand(match, images)]
    kind = "pattern matches no file" if glob.has_magic(source) else "no such file or folder"
    raise ValueError(f"{source}: {kind}; check the path")


def _in_folder(folder: str, only_images: bool) -> list[str]:
    below = (path for path in Path(folder).rglob("*") if path.is_file())
    hidden = re.compile(r"(^|/)\.")
    files = sorted(str(path) for path in below if not hidden.search(path.relative_to(folder).as_posix()))
    videos = [path for path in files if path.lower().endswith(VIDEO_SUFFIXES)]
    if videos and not only_images:
        return videos
    images = [path for path in files if path.lower().endswith(IMAGE_SUFFIXES)]
    if not images:
        kind, suffixes = ("image", IMAGE_SUFFIXES) if only_images else ("video", VIDEO_SUFFIXES)
        raise ValueError(f"{folder} contains no {kind}: give a folder with files such as {', '.join(suffixes[:4])}")
    if only_images:
        return images
    return sorted({os.path.dirname(path) for path in images})


def _in_list(path: str) -> list[str]:
    lines = Path(path).read_text(encoding="utf-8-sig", errors="surrogateescape").splitlines()
    rows = [line.strip() for line in lines if line.strip()]
    if not rows:
        raise ValueError(f"{path} is empty: write one path per line")
    starts = starts_of(path)
    return [_listed(row, starts) for row in rows]


def _listed(row: str, starts: Sequence[str]) -> str:
    """Return the path in a row that exists; without one, the row without its label, see `starts_of`."""
    last = [row.rsplit(separator, 1)[0] for separator in (",", None, ',"')]  # without the label, or several in quotes
    forms = [row, *last, row.split(",")[0], row.split()[0]]
    forms = [form.strip().strip('"') for form in forms]
    places = [os.path.join(start, form) for form in forms for start in starts]
    unlabelled = re.sub(r'[\s,;]+"?-?[\d,]*"?$', "", row).strip('"')
    return next((place for place in places if os.path.exists(place)), os.path.join(starts[0] or starts[-1], unlabelled))


def starts_of(path: str) -> list[str]:
    """Return the folders that relative paths of a list may start from, the first choice first.

    They are `DATA.PATH_PREFIX` in data.yaml beside the list, which `prepare_data.py lists` writes, the current folder,
    and the folder of the list. A missing video is reported below the first of them that is not the current folder.
    """
    folder = os.path.dirname(path)
    try:
        described = yaml.safe_load(Path(folder, "data.yaml").read_text(encoding="utf-8"))
        prefix = described["DATA"]["PATH_PREFIX"]
    except (OSError, ValueError, LookupError, TypeError, yaml.YAMLError):  # none, or of another program
        prefix = None
    return ([prefix] if isinstance(prefix, str) else []) + ["", folder]


def names_of(paths: Sequence[str]) -> dict[str, str]:
    """Return name in an output folder -> path; names are below the common folder, without suffix where unique."""
    above = os.path.commonpath([os.path.dirname(os.path.abspath(path)) for path in paths])
    short = [os.path.splitext(os.path.relpath(path, above))[0] for path in paths]
    full = [os.path.relpath(path, above) for path in paths]
    uses, whole_names = Counter(short), set(full)
    return {
        (name if uses[name] == 1 and name not in whole_names else whole): path
        for name, whole, path in zip(short, full, paths, strict=True)
    }
