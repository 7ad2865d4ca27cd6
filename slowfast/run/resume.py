"""Describe a run in its checkpoints, and compare a resume with that."""

from __future__ import annotations

import logging
from collections.abc import Mapping, Sequence
from typing import Any

import torch
from fvcore.common.config import CfgNode

from slowfast.datasets.lists import Manifest
from slowfast.utils import distributed

logger = logging.getLogger(__name__)


def facts(cfg: CfgNode, train: Manifest, val: Manifest) -> dict[str, Any]:
    """The configuration, the lists and the classes, and the "world" that a run may change between attempts."""
    return {
        "cfg": cfg.dump(),
        "class_names": train.class_names,
        "lists": {"train": train.fingerprint, "val": val.fingerprint},
        "world": {
            "processes": distributed.world_size(),
            "nodes": cfg.NUM_SHARDS,
            "workers": cfg.DATA_LOADER.NUM_WORKERS,
            "torch": str(torch.__version__),
        },
    }


def compare(before: Mapping[str, Any], cfg: CfgNode, train: Manifest, val: Manifest) -> None:
    """Log the differences between a checkpoint and this attempt that change its results.

    Args:
        before: a checkpoint with the `facts` of its run, or some of them.
        cfg: of this attempt.
        train: training list of this attempt.
        val: validation list of this attempt.

    Raises:
        ValueError: labels mean other classes than when the checkpoint was written, as far as names tell.
    """
    _check_classes(cfg, before.get("class_names"), train.class_names)
    if not distributed.is_main():
        return
    now, lists = facts(cfg, train, val), before.get("lists", {})
    _tell_other_world(before.get("world", {}), now["world"], lists.get("train") == train.fingerprint)
    for split, manifest, effect in (
        ("train", train, ""),
        ("val", val, ": the best accuracy so far is of other videos"),
    ):
        if lists.get(split, manifest.fingerprint) != manifest.fingerprint:
            logger.warning(
                "%s has changed since the checkpoint was written (rows, labels, or their order)%s",
                manifest.source,
                effect,
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


def _tell_other_world(before: Mapping[str, Any], now: Mapping[str, Any], same_list: bool) -> None:
    changed = [f"{now[key]} {key} instead of {before[key]}" for key in now if before.get(key, now[key]) != now[key]]
    if not changed:
        return
    exact = all(before.get(key, now[key]) == now[key] for key in ("processes", "torch"))
    same = ": the samples and their order stay the same" if same_list else ""
    others = "dropout, mixup partners and BatchNorm batches, or rounding, do not"
    logger.warning("%s%s%s", ", ".join(changed), same, f"; {others}" if same and not exact else "")
