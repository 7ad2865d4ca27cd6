"""Show what a network sees and uses: slowfast-visualize inputs|cam|attention ...

inputs draws the augmented clips that a recipe trains on; cam draws where a layer increases the score of a class
(Grad-CAM), and attention which positions the tokens of a layer attend to, over the frames of a video.
"""

from __future__ import annotations

import argparse
import itertools
import os
import sys
from collections.abc import Sequence
from typing import Any

import numpy as np
import torch
from fvcore.common.config import CfgNode
from torch import Tensor

from slowfast.config import load_config
from slowfast.datasets.mixup import one_hot
from slowfast.engine.setup import clip_mover, listed, make_loader
from slowfast.engine.start import build_mixup
from slowfast.engine.step import unmixed_target
from slowfast.inference.command import add_network, find_videos, load_network, positive
from slowfast.inference.draw import pictures, write_sheet
from slowfast.inference.load import experiment_file
from slowfast.inference.network import Network
from slowfast.inference.overlay import video_heat, write_overlay, write_picture
from slowfast.inference.results import Class, top_classes
from slowfast.utils.io import Parser, check_output
from slowfast.utils.rng import random_state_for
from slowfast.utils.tables import close_to
from slowfast.visualization.maps import attention, attention_layer, cam_layer, grad_cam

COLUMNS = 8  # frames of a clip of a training
ENDINGS = (".png", ".mp4", ".mkv", ".mov")


def parse_args(argv: Sequence[str] | None = None) -> argparse.Namespace:
    """Parse the command line."""
    parser = Parser(
        prog="slowfast-visualize",
        description=__doc__,
        formatter_class=argparse.RawDescriptionHelpFormatter,
        allow_abbrev=False,
    )
    commands = parser.add_subparsers(dest="command", required=True)
    inputs = commands.add_parser("inputs", help="draw the clips that a recipe trains on", allow_abbrev=False)
    inputs.add_argument("--cfg", required=True, metavar="EXPERIMENT", help="folder of exp/, or a configuration")
    inputs.add_argument("--out", required=True, metavar="FILE", help="PNG to write")
    inputs.add_argument("--clips", type=positive(int), default=8, metavar="N", help="clips to draw (default: 8)")
    inputs.add_argument("--step", type=int, default=0, metavar="N", help="step of the training (default: 0)")
    inputs.add_argument("--opts", nargs="+", default=[], metavar="KEY VALUE", help="change configuration values")
    for name, text in (("cam", "draw Grad-CAM over a video"), ("attention", "draw attention over a video")):
        command = commands.add_parser(name, help=text, allow_abbrev=False)
        command.add_argument("video", metavar="VIDEO", help="video file, folder of frames or URL")
        add_network(command, parallel=False)
        command.add_argument("--out", required=True, metavar="FILE", help=f"file to write ({', '.join(ENDINGS)})")
        command.add_argument("--layer", metavar="NAME", help="module of the network (default: docs/VISUALIZE.md)")
        if name == "cam":
            command.add_argument("--class", dest="label", metavar="NAME", help="class (default: the predicted one)")
    return parser.parse_args(argv)


def execute(args: argparse.Namespace) -> int:
    """Draw what a command line says; return the exit code."""
    endings = ENDINGS[:1] if args.command == "inputs" else ENDINGS
    if not args.out.lower().endswith(endings):
        raise ValueError(f"--out {args.out} must end in {', '.join(endings)}")
    check_output(args.out, "--out")
    if args.command == "inputs":
        draw_inputs(args.cfg, args.opts, args.step, args.clips, args.out)
    else:
        _draw_map(args)
    print(f"written: {args.out}", file=sys.stderr)
    return 0


def _draw_map(args: argparse.Namespace) -> None:
    paths = find_videos([args.video])
    if len(paths) > 1:
        raise ValueError(f"{args.video} contains {len(paths)} videos: give one of them")
    net = load_network(args, ["TEST.NUM_SPATIAL_CROPS", "1"])
    side = net.views_of_video.crop
    if args.command == "cam":
        layer = cam_layer(net.model, args.layer, side)
        label, shown = _class(net, paths[0], args.label)
        title, ends = f"Grad-CAM: {shown}, layer {layer}", ("0", "highest")
        heat = video_heat(net, paths[0], lambda clip: grad_cam(net.model, clip, layer, label), from_zero=True)
        if not heat.high:
            print(f"layer {layer} increases the score of this class nowhere: choose another layer", file=sys.stderr)
    else:
        layer = attention_layer(net.model, args.layer, side)
        heat = video_heat(
            net, paths[0], lambda clip: (found := attention(net.model, clip, layer)) * found.numel(), from_zero=False
        )
        title, ends = f"Attention: layer {layer}", (f"{heat.low:.2g} x mean", f"{heat.high:.2g} x mean")
    write = write_picture if args.out.lower().endswith(".png") else write_overlay
    write(net, paths[0], heat, title, ends, args.out)


def _class(net: Network, path: str, name: str | None) -> tuple[int, str]:
    """Return number and description of a class; without a name, of the predicted one.

    Raises:
        ValueError: the network has no such class.
    """
    found, names = net.predict(path, top=1), net.class_names or []
    if name is None:
        label = found.top[0].index
    elif name in names:
        label = names.index(name)
    elif name.isdecimal() and int(name) < len(found.probabilities):
        label = int(name)
    else:
        last = len(found.probabilities) - 1
        raise ValueError(
            f"the network has no class {name!r}{close_to(name, names)}: give a name, or a number from 0 to {last}"
        )
    shown = (net.class_names[label] if net.class_names else str(label)).replace("_", " ")
    rank = int(np.sum(found.probabilities > found.probabilities[label])) + 1
    return label, f"{shown} ({100 * found.probabilities[label]:.1f} %{'' if rank == 1 else f', rank {rank}'})"


def draw_inputs(experiment: str, overrides: Sequence[str], step: int, count: int, out: str) -> None:
    """Write a PNG with a row of frames for each of the first `count` clips of an optimizer step, counted from 0.

    The clips are those of the first micro-batch of a training in one process with this configuration.

    Raises:
        ValueError: the configuration or its list cannot be used, or the training is shorter.
    """
    cfg = load_config(
        experiment_file(experiment), [*overrides, "DATA_LOADER.NUM_WORKERS", "0", "DATA.CHECK_FILES", "False"]
    )
    loader: Any = make_loader(cfg, "train", torch.device("cpu"))
    per_epoch = max(1, len(loader) // cfg.SOLVER.ACCUMULATION_STEPS)
    epoch, place = divmod(step, per_epoch)
    if not 0 <= epoch < cfg.SOLVER.MAX_EPOCH:
        raise ValueError(f"the training has no --step {step}: choose 0 to {per_epoch * cfg.SOLVER.MAX_EPOCH - 1}")
    loader.batch_sampler.set_position(epoch, place * cfg.SOLVER.ACCUMULATION_STEPS)
    batch = next(itertools.islice(loader, 1))
    video, target = mixed(cfg, batch, step)
    samples, names = listed(loader), listed(loader).class_names
    labels = [
        (os.path.basename(samples.path(row)), _classes(one, names))
        for row, one in zip(batch["index"][:count], target, strict=False)
    ]
    clips = pictures(cfg, video[:count], "train")
    columns = np.linspace(0, clips.shape[1] - 1, min(COLUMNS, clips.shape[1])).round().astype(int)
    title = f"{experiment}: clips of step {step} (epoch {epoch + 1}), {len(video)} in the batch"
    write_sheet(clips[:, columns], labels, title, out)


def mixed(cfg: CfgNode, batch: dict[str, Any], step: int) -> tuple[Tensor, Tensor]:
    """Return the normalized clips (B, C, T, H, W) and targets (B, K) that a network gets from a batch in a step."""
    video, label = clip_mover(cfg, torch.device("cpu"))(batch["video"]), batch["label"]
    if cfg.MIXUP.ENABLE:
        video, target = build_mixup(cfg)(video, label, random_state_for("mixup", cfg.RNG_SEED, step, 0, 0))
    else:
        target = unmixed_target(cfg, label)
    return video, target if target.ndim == 2 else one_hot(target, cfg.MODEL.NUM_CLASSES)


def _classes(target: Tensor, names: list[str] | None) -> tuple[Class, ...]:
    """Return the classes with weights above that of label smoothing, or above 0; the largest is the first."""
    count = int((target > target.min() + 1e-6).sum())
    return top_classes(target.numpy(), names, min(3, max(1, count)))
