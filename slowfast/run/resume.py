"""Prepare the output folder of a run, describe the run in its checkpoints, and check that a resume continues it."""

from __future__ import annotations

import logging
import tempfile
from collections.abc import Mapping, Sequence
from itertools import zip_longest
from pathlib import Path
from typing import Any

import torch
from fvcore.common.config import CfgNode

from slowfast.config import changed_keys, format_config, recorded_config
from slowfast.config.rules import RATES, step_and_rates
from slowfast.datasets.lists import VideoList
from slowfast.run.checkpoint import (
    best_checkpoint,
    checkpoint_dir,
    epochs_done,
    is_official,
    last_checkpoint,
    newest_entries,
    official_best,
    peek,
)
from slowfast.utils import distributed
from slowfast.utils.environment import own_modules
from slowfast.utils.io import write_text
from slowfast.weights.fetch import fetch_checkpoint

logger = logging.getLogger(__name__)

# First line of every resolved configuration.
WRITTEN_HERE = "# The resolved configuration of a run, written by tools/run_net.py."

SHOWN = 8  # differences that an error names

# Keys that split the videos of a step.
SPLIT = ("NUM_SHARDS", "TRAIN.BATCH_SIZE", "SOLVER.ACCUMULATION_STEPS", "SOLVER.BASE_LR_SCALE_NUM_SHARDS")


def require_writable(folder: str) -> None:
    """Make OUTPUT_DIR, or a folder in it.

    Raises:
        ValueError: it cannot be made or written.
    """
    try:
        Path(folder).mkdir(parents=True, exist_ok=True)
        with tempfile.TemporaryFile(dir=folder) as file:
            file.write(bytes(4096))  # a full disk has space for a name
            file.flush()
    except OSError as error:
        raise ValueError(f"OUTPUT_DIR cannot be written in {folder!r} ({error}): choose another") from error


def prepare_output_dir(cfg: CfgNode) -> None:
    """Write the resolved configuration of a training into OUTPUT_DIR, in the main process.

    Raises:
        ValueError: the folder contains a run of another configuration, or one that may not be resumed.
    """
    best = (best_checkpoint(cfg.OUTPUT_DIR), official_best(cfg.OUTPUT_DIR))
    if last_checkpoint(cfg.OUTPUT_DIR) or any(map(Path.is_file, best)):
        if not cfg.TRAIN.AUTO_RESUME:
            raise ValueError(
                f"OUTPUT_DIR {cfg.OUTPUT_DIR} contains a run and TRAIN.AUTO_RESUME is False: choose another "
                "OUTPUT_DIR, or set it True to continue that run"
            )
        if changed := _changes(newest_entries(cfg.OUTPUT_DIR), cfg):
            differences = [f"{key} {there!r} there, {here!r} here" for key, (there, here) in changed.items()]
            if len(differences) > SHOWN:
                differences[SHOWN:] = [f"and {len(differences) - SHOWN} more"]
            same_nodes = changed.keys() <= {"TRAIN.BATCH_SIZE", "SOLVER.ACCUMULATION_STEPS"}
            product = " or choose values with the same product" * same_nodes
            raise ValueError(
                f"OUTPUT_DIR {cfg.OUTPUT_DIR} contains a run of another configuration ({', '.join(differences)}): "
                f"choose another OUTPUT_DIR, or undo the change{product} to continue that run"
            )
    if (folder := checkpoint_dir(cfg.OUTPUT_DIR)).exists():
        require_writable(str(folder))  # before hours of training; another user may own it
    write_resolved(cfg, Path(cfg.OUTPUT_DIR))


def write_resolved(cfg: CfgNode, folder: Path) -> None:
    """Write `resolved_config.yaml` with the origins of its values; keep a file of that name that no run wrote."""
    path = folder / "resolved_config.yaml"
    if path.exists() and path.read_text(encoding="utf-8", errors="replace").partition("\n")[0] != WRITTEN_HERE:
        logger.warning("%s was not written by a run: it is not replaced", path)
        return
    write_text(path, f"{WRITTEN_HERE}\n{format_config(cfg)}")


def _changes(entries: Mapping[str, Any], now: CfgNode) -> dict[str, tuple[Any, Any]]:
    """Return the differences between the recipe of a checkpoint and this one.

    Another number of nodes is not a difference if a step keeps its videos and its learning rate; more epochs are not
    one for a run that has finished.
    """
    if not isinstance(entries.get("cfg"), str) or is_official(entries):
        return {}
    before, _ = recorded_config(entries["cfg"])
    changed = changed_keys(before, now)
    if now.SOLVER.MAX_EPOCH > before.SOLVER.MAX_EPOCH <= epochs_done(entries):
        changed.pop("SOLVER.MAX_EPOCH", None)
    if step_and_rates(before) == step_and_rates(now):
        changed = {key: values for key, values in changed.items() if key not in (*SPLIT, *RATES)}
    return changed


def warn_of_weights_only(cfg: CfgNode) -> None:
    """Warn if TRAIN.CHECKPOINT_FILE_PATH contains an optimizer state, which the official programs would resume."""
    path = cfg.TRAIN.CHECKPOINT_FILE_PATH
    if not path or not distributed.is_main():
        return
    entries = peek(Path(fetch_checkpoint(path)))
    if "optimizer_state" not in entries:
        return
    epochs, cure = epochs_done(entries), ""
    if is_official(entries) and epochs >= 0:
        copy = checkpoint_dir(cfg.OUTPUT_DIR) / f"checkpoint_epoch_{int(epochs):05d}.pyth"
        cure = f"; to resume its run, with the same classes, from epoch {epochs:g}, copy it to {copy} and start again"
    logger.warning(
        "only the weights of TRAIN.CHECKPOINT_FILE_PATH %s are used, not its optimizer state and epoch%s", path, cure
    )


def describe_run(cfg: CfgNode, lists: Mapping[str, VideoList]) -> dict[str, Any]:
    """Return what each checkpoint contains about its run, beside its state.

    The entries are the configuration, the class names, fingerprints of the lists, and the "world": values that may
    differ between attempts.
    """
    return {
        "cfg": cfg.dump(),
        "class_names": lists["train"].class_names,
        "lists": {split: videos.fingerprint for split, videos in lists.items()},
        "world": {
            "processes": distributed.world_size(),
            "nodes": cfg.NUM_SHARDS,
            "workers": cfg.DATA_LOADER.NUM_WORKERS,
            "torch": str(torch.__version__),
            "SLOWFAST_IMPORT": own_modules(),
        },
    }


def check_resume(checkpoint: Mapping[str, Any], cfg: CfgNode, lists: Mapping[str, VideoList]) -> None:
    """Log the differences between the run of a checkpoint and this attempt that change its results.

    The checkpoint has the entries of `describe_run`, or some of them.

    Raises:
        ValueError: the class names of the checkpoint and of the list differ.
    """
    _check_classes(cfg, checkpoint.get("class_names"), lists["train"].class_names)
    if not distributed.is_main():
        return
    now = describe_run(cfg, lists)
    before = {part: now[part] | checkpoint.get(part, {}) for part in ("world", "lists")}
    if changed := [key for key, value in now["world"].items() if before["world"][key] != value]:
        there = (f"{key} {now['world'][key]} instead of {before['world'][key]}" for key in changed)
        logger.warning(
            "%s: samples and their order do not change; another number of processes changes dropout, mixup partners "
            "and BatchNorm batches, another torch changes the rounding, other modules change what they add",
            ", ".join(there),
        )
    for split, videos in lists.items():
        if before["lists"][split] != videos.fingerprint:
            effect = ": the best accuracy so far is of other videos" if split == "val" else ""
            change = "has changed since the checkpoint was written (rows, labels, or their order)"
            logger.warning("%s %s%s", videos.source, change, effect)


def _check_classes(cfg: CfgNode, before: Sequence[str] | None, now: Sequence[str] | None) -> None:
    if not before or not now or list(before) == list(now):
        return
    at, names = next((i, pair) for i, pair in enumerate(zip_longest(before, now)) if pair[0] != pair[1])
    there, here = ("missing" if name is None else repr(name) for name in names)
    raise ValueError(
        f"the checkpoints in OUTPUT_DIR {cfg.OUTPUT_DIR} were trained on other classes (class {at} is {there} there "
        f"and {here} here): undo the change of class_names.txt and of the labels, or start a new run in another "
        "OUTPUT_DIR (TRAIN.CHECKPOINT_FILE_PATH with MODEL.HEAD_ROWS names reuses the classes by their names)"
    )
