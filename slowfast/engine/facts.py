"""What a run tells of itself in its checkpoints, and what a resume compares with it."""

from __future__ import annotations

import logging
from collections.abc import Mapping, Sequence
from typing import Any

import torch
from fvcore.common.config import CfgNode

from slowfast.datasets.manifest import Manifest
from slowfast.utils import distributed

logger = logging.getLogger(__name__)


def facts(cfg: CfgNode, manifest: Manifest) -> dict[str, Any]:
    """The configuration, the training list and its classes, and the "world" that a run may change between attempts."""
    return {
        "cfg": cfg.dump(),
        "class_names": manifest.class_names,
        "list": manifest.fingerprint,
        "world": {
            "processes": distributed.world_size(),
            "nodes": cfg.NUM_SHARDS,
            "workers": cfg.DATA_LOADER.NUM_WORKERS,
            "torch": str(torch.__version__),
        },
    }


def compare(checkpoint: Mapping[str, Any], cfg: CfgNode, manifest: Manifest) -> None:
    """Log what a person had better know of the differences between a checkpoint and this attempt.

    Raises:
        ValueError: labels mean other classes than when the checkpoint was written, as far as names tell.
    """
    now = facts(cfg, manifest)
    _check_classes(cfg, checkpoint.get("class_names"), manifest.class_names)
    _tell_other_world(checkpoint.get("world", {}), now["world"])
    if checkpoint.get("list", now["list"]) != now["list"]:
        logger.warning(
            "%s is not the list of videos and labels that the checkpoint was trained on: from here on it counts",
            manifest.source,
        )


def _check_classes(cfg: CfgNode, before: Sequence[str] | None, now: Sequence[str] | None) -> None:
    if not before or not now or list(before) == list(now):
        return
    at = next((i for i, (a, b) in enumerate(zip(before, now, strict=False)) if a != b), min(len(before), len(now)))
    there, here = (repr(names[at]) if at < len(names) else "missing" for names in (before, now))
    raise ValueError(
        f"the checkpoints in OUTPUT_DIR {cfg.OUTPUT_DIR} were trained on other classes: class {at} is {there} there "
        f"and {here} here. Undo the change of class_names.txt and of the labels, or start a new run in another "
        "OUTPUT_DIR (TRAIN.CHECKPOINT_FILE_PATH with MODEL.HEAD_ROWS names takes over the classes by their names)"
    )


def _tell_other_world(before: Mapping[str, Any], now: Mapping[str, Any]) -> None:
    changed = [f"{now[key]} {key} instead of {before[key]}" for key in now if before.get(key, now[key]) != now[key]]
    if not changed:
        return
    exact = all(before.get(key, now[key]) == now[key] for key in ("processes", "torch"))
    logger.warning(
        "%s: the samples and their order stay the same%s",
        ", ".join(changed),
        "" if exact else "; dropout, mixup partners and BatchNorm batches, or rounding, do not",
    )
