"""Draw the clips that a recipe trains on, after augmentation and mixup, with their targets."""

from __future__ import annotations

import itertools
import os
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
from slowfast.inference.draw import pictures, write_sheet
from slowfast.inference.load import experiment_file
from slowfast.inference.results import Class, top_classes
from slowfast.utils.rng import random_state_for

COLUMNS = 8  # frames of a clip


def draw_inputs(experiment: str, overrides: Sequence[str], step: int, count: int, out: str) -> None:
    """Write a PNG with a row of frames for each of the first clips of a training step.

    The clips are those of the first micro-batch of a training in one process with this configuration.

    Args:
        experiment: name of a folder of exp/, or path of a configuration.
        overrides: KEY VALUE pairs.
        step: number of the optimizer step, from 0.
        count: clips to draw.
        out: path of the PNG.

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
    clips = pictures(cfg, video[:count])
    columns = np.linspace(0, clips.shape[1] - 1, min(COLUMNS, clips.shape[1])).round().astype(int)
    title = f"{experiment}: clips of step {step} (epoch {epoch + 1}), {len(video)} in the batch"
    write_sheet(clips[:, columns], labels, title, out)


def mixed(cfg: CfgNode, batch: dict[str, Any], step: int) -> tuple[Tensor, Tensor]:
    """Return the normalized clips (B, C, T, H, W) and targets (B, K) that a network gets of a batch in a step."""
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
