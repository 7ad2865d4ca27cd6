"""Measure frozen features by small classifiers: slowfast-probe LIST --val LIST (--weights SOURCE | --features DIR)."""

from __future__ import annotations

import argparse
import json
import os
from collections.abc import Mapping, Sequence
from functools import partial
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from slowfast.datasets.lists import ListError, VideoList, read_list
from slowfast.datasets.rows import RowFormat
from slowfast.engine.meters import in_top
from slowfast.inference import extract
from slowfast.inference.command import add_network, positive, report_bad, starts_of
from slowfast.inference.layers import POOLED
from slowfast.inference.load import find_device
from slowfast.inference.probe_heads import (
    AttentiveHead,
    LinearHead,
    Samples,
    bank_scores,
    knn_scores,
    statistics,
    train_bank,
)
from slowfast.utils.io import Parser, atomic_write, check_output, write_json

PROBES = ("knn", "linear", "attentive")
# Learning rates; the weight decays are those of arXiv:2506.09985, as are the learning rates of the attentive probe.
RATES = {"linear": (1e-1, 3e-2, 1e-2, 3e-3, 1e-3), "attentive": (5e-3, 3e-3, 1e-3, 3e-4, 1e-4)}
DECAYS = (0.01, 0.1, 0.4, 0.8)
RESULTS = "probe.json"


def parse_args(argv: Sequence[str] | None = None) -> argparse.Namespace:
    """Parse the command line."""
    parser = Parser(prog="slowfast-probe", description=__doc__, allow_abbrev=False)
    parser.add_argument("train", metavar="LIST", help="list of videos with classes, to train on")
    parser.add_argument("--val", required=True, metavar="LIST", help="list of videos with classes, to measure on")
    parser.add_argument("--features", metavar="DIR", help="folder of slowfast-features, instead of --weights")
    add_network(parser, required=False)
    parser.add_argument("--layer", default=POOLED, metavar="NAME", help="layer (default: pooled)")
    parser.add_argument("--out", required=True, metavar="DIR", help="folder of the results")
    parser.add_argument("--probe", nargs="+", choices=PROBES, help="probes (default: all that fit the features)")
    parser.add_argument("--k", nargs="+", type=positive(int), default=[10, 20], metavar="K", help="nearest neighbours")
    parser.add_argument("--lr", nargs="+", type=positive(float), metavar="LR", help="learning rates")
    parser.add_argument("--weight-decay", nargs="+", type=float, default=DECAYS, metavar="WD", help="weight decays")
    parser.add_argument("--epochs", type=positive(int), default=20, metavar="N", help="epochs (default: 20)")
    parser.add_argument("--batch", type=positive(int), default=64, metavar="N", help="videos in a step (default: 64)")
    parser.add_argument(
        "--seed", type=int, default=0, metavar="N", help="seed of initial values and order (default: 0)"
    )
    args = parser.parse_args(argv)
    if bool(args.features) == bool(args.weights):
        parser.error("give --weights, to compute features, or --features, to read them")
    of_network = ("layer", "experiment", "class_names", "gpus", "processes", "opts")
    given = [name.replace("_", "-") for name in of_network if getattr(args, name) != parser.get_default(name)]
    if args.features and given:
        parser.error(f"--features are computed already: leave --{given[0]} out")
    return args


def execute(args: argparse.Namespace) -> int:
    """Train and measure the probes of a command line; return the exit code."""
    lists = [_read(path) for path in (args.train, args.val)]
    check_output(os.path.join(args.out, RESULTS), "--out")
    folder = Path(args.features or _extract(args, lists))
    settings = _settings(folder)
    (train, missing), (val, also) = (_load(folder, settings, listed) for listed in lists)
    classes = 1 + int(max(listed.labels.max() for listed in lists))
    found = run_probes(args, train, val, classes)
    for row in found:
        same = [other for other in found if other["probe"] == row["probe"]]
        row["best"] = row is max(same, key=lambda other: other["top1"])  # the first one of equal ones
    about = {
        "train": args.train,
        "val": args.val,
        "train_videos": len(train),
        "val_videos": len(val),
        "classes": classes,
        "class_names": lists[0].class_names,
        "top5_k": min(5, classes),
        "seed": args.seed,
        "epochs": args.epochs,
        "batch": args.batch,
        "features": {key: value for key, value in settings.items() if key != "videos"},
        "results": found,
    }
    write_json(Path(args.out, RESULTS), about)
    _print_table(found, min(5, classes))
    return report_bad([(path, f"{folder} has no features of it") for path in missing + also])


def _read(path: str) -> VideoList:
    """Read a list of paths and classes, separated by blanks or a comma; its first video decides where paths start."""
    if os.path.isdir(path):
        raise ValueError(f"{path} is a folder, not a list: give a text file with one row 'path label' per video")
    with open(path, encoding="utf-8-sig", errors="surrogateescape") as file:
        first = next((line.strip() for line in file if line.strip()), "")
    if "\0" in first:
        raise ValueError(f"{path} is not a text file: give a list with 'path label' per line")
    comma = RowFormat(separator=",").fits([first])
    read = partial(read_list, path, separator="," if comma else " ")
    starts = starts_of(path)
    lists = (read(prefix=start) for start in starts)
    try:
        found = next((listed for listed in lists if os.path.exists(listed.path(0))), None)
        return found or read(prefix=starts[0] or starts[-1])
    except ListError as error:
        faults, line_end, _ = str(error).rpartition("\n")
        if not line_end:  # not about rows
            raise
        # the cure of `read_list` names its arguments, which are no options here
        cure = "Every row must be a path and one label from 0 on, with a blank (or in all rows a comma) between them."
        raise ListError(f"{faults}\n{cure}") from None


def _extract(args: argparse.Namespace, lists: Sequence[VideoList]) -> str:
    """Write the features of all videos, or those that are missing after an interruption; return their folder."""
    attentive = "attentive" in (args.probe or ())
    if attentive and args.layer == POOLED:
        raise ValueError("--probe attentive needs a layer with several positions: give --layer, for example norm")
    out = os.path.join(args.out, "features")
    paths = [listed.path(row) for listed in lists for row in range(len(listed))]
    present = [path for path in paths if os.path.exists(path)]
    command = [*(present or paths[:1]), "--weights", args.weights, "--out", out, "--layer", args.layer, "--per-video"]
    wanted = extract.parse_args(command + ["--tokens"] * (attentive or (args.probe is None and args.layer != POOLED)))
    for name in ("experiment", "class_names", "device", "gpus", "processes", "opts"):
        setattr(wanted, name, getattr(args, name))
    extract.execute(wanted)  # missing videos, and those that cannot be read, are reported as without features
    return out


def _settings(folder: Path) -> dict[str, Any]:
    """Return the description of the features in a folder."""
    try:
        return json.loads((folder / extract.SETTINGS).read_text(encoding="utf-8"))
    except (OSError, json.JSONDecodeError):
        raise ValueError(f"{folder} is not a folder of slowfast-features, which contains {extract.SETTINGS}") from None


def _load(folder: Path, settings: Mapping[str, Any], listed: VideoList) -> tuple[Samples, list[str]]:
    """Return the features of a list, which stay on disk, and the videos without any.

    Raises:
        ValueError: there are no features of any of them.
    """
    # a video may have several paths through links to folders
    names = {os.path.realpath(about["path"]): name for name, about in settings["videos"].items()}
    rows, files, missing = list[int](), list[Path](), list[str]()
    for row in range(len(listed)):
        file = folder / f"{names.get(os.path.realpath(listed.path(row)), '')}.npy"
        if not file.is_file():
            missing.append(listed.path(row))
            continue
        rows.append(row)
        files.append(file)
    if not rows:
        raise ValueError(
            f"{folder} has no features of the videos of {listed.source}, the first is {missing[0]}: "
            "compute them with slowfast-features"
        )
    return Samples(files, torch.from_numpy(listed.labels[rows])), missing


def run_probes(args: argparse.Namespace, train: Samples, val: Samples, classes: int) -> list[dict[str, Any]]:
    """Train and measure the probes; save the best head of each.

    Returns:
        A row per hyperparameter with "probe", its values, "top1" and "top5" in percent.

    Raises:
        ValueError: the attentive probe is wanted, but no video has several tokens.
    """
    several = any(len(part.tokens(row)) > 1 for part in (train, val) for row in range(len(part)))
    probes = args.probe or [name for name in PROBES if several or name != "attentive"]
    if "attentive" in probes and not several:
        raise ValueError(
            "--probe attentive needs several vectors per video, and these features have one: make them with "
            "windows, or with --per-video --tokens and a --layer before pooling"
        )
    pooled, found = (train.pooled(), val.pooled()), list[dict[str, Any]]()
    for name in probes:
        if name == "knn":
            found += [{"probe": name, "k": k, **_accuracy(knn_scores(*pooled, k, classes), val.labels)} for k in args.k]
        else:
            found += _train(args, name, pooled if name == "linear" else (train, val), classes)
    return found


def _train(args: argparse.Namespace, name: str, samples: tuple[Samples, Samples], classes: int) -> list[dict[str, Any]]:
    """Train the heads of a probe, and save the best one."""
    train, val = samples
    device = find_device(args.device)
    grid = [(lr, decay) for lr in args.lr or RATES[name] for decay in args.weight_decay]

    def make() -> nn.Module:
        if name == "linear":
            return LinearHead(*statistics(train), classes)
        return AttentiveHead(train.tokens(0).shape[1], classes)

    bank = train_bank(make, train, grid, epochs=args.epochs, batch=args.batch, seed=args.seed, device=device)
    scores = bank_scores(bank, val, args.batch, device)
    rows = [
        {"probe": name, "lr": lr, "weight_decay": decay, **_accuracy(logits, val.labels)}
        for (lr, decay), logits in zip(grid, scores, strict=True)
    ]
    best = max(range(len(rows)), key=lambda row: rows[row]["top1"])
    with atomic_write(Path(args.out, f"{name}.pt")) as file:
        torch.save({key: value.cpu() for key, value in bank[best].state_dict().items()}, file)
    return rows


def _accuracy(scores: Tensor, labels: Tensor) -> dict[str, float]:
    """Return the accuracies in percent; a video whose scores are not finite counts as wrong."""
    finite = scores.isfinite().all(1)
    return {f"top{k}": 100.0 * (in_top(scores, labels, k) & finite).double().mean().item() for k in (1, 5)}


def _print_table(found: Sequence[Mapping[str, Any]], k: int) -> None:
    print(f"{'probe':<10} {'setting':<32} {'top1':>7} {f'top{k}':>7}")
    for row in found:
        values = "  ".join(f"{key} {row[key]:<6g}" for key in ("k", "lr", "weight_decay") if key in row)
        print(f"{row['probe']:<10} {values:<32} {row['top1']:7.2f} {row['top5']:7.2f}{' best' * row['best']}")
