"""A few seconds before days of training: one code, one configuration, one data set, and sums that are right?"""

from __future__ import annotations

import hashlib
import json
import os
import time
from collections import Counter
from collections.abc import Callable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

import torch
from fvcore.common.config import CfgNode
from torch.utils.data import DataLoader

from slowfast.config import changed_keys
from slowfast.datasets.catalog import CATALOG
from slowfast.datasets.lists import VideoList
from slowfast.utils import distributed
from slowfast.utils.distributed import SharedError

PACKAGE = Path(__file__).parents[1]

# What each node has its own of.
OWN_KEYS = ("SHARD_ID",)


def preflight(cfg: CfgNode) -> str:
    """Compare the processes of the group; a single process has nothing to compare.

    Returns:
        In words, how many processes on how many nodes agree.

    Raises:
        ValueError: in every process, the same one: which ranks on which nodes differ from the others, in what.
    """
    if distributed.world_size() == 1:
        return "1 process"
    started = time.monotonic()
    sums = wrong_sums(distributed.device(cfg.NUM_GPUS))
    facts = {"all-reduce": sums, "package slowfast": code_hash(PACKAGE), "PyTorch": str(torch.__version__), **data(cfg)}
    records = distributed.all_gather((distributed.who(), facts, cfg))
    if faults := list(differences(records)):
        raise ValueError("the processes of this job do not fit together:" + "".join(f"\n  {fault}" for fault in faults))
    nodes = len({name.partition(" on ")[2] for name, *_ in records})
    seconds = time.monotonic() - started
    return f"{len(records)} processes on {nodes} node{'s' * (nodes > 1)} that agree (compared in {seconds:.1f} s)"


def wrong_sums(device: torch.device) -> str:
    """Add known numbers up over all processes; "right", or what came out instead."""
    rank, world = distributed.rank(), distributed.world_size()
    ramp = torch.arange(1024, dtype=torch.float32, device=device)
    total = distributed.all_reduce_sum(ramp * (rank + 1))
    expected = ramp * (world * (world + 1) // 2)
    wrong = int((total != expected).sum())
    return f"{wrong} of 1024 sums are wrong" if wrong else "right"


def code_hash(folder: Path) -> str:
    """The first digits of a SHA-256 of all Python files below `folder`, names and contents."""
    digest = hashlib.sha256()
    for path in sorted(folder.rglob("*.py")):
        digest.update(f"{path.relative_to(folder)}\0".encode() + path.read_bytes() + b"\0")
    return digest.hexdigest()[:12]


def data(cfg: CfgNode) -> dict[str, str]:
    """Map the folders and lists of the configured data sets to "readable" or "missing or unreadable"."""
    folder = Path(cfg.DATA.PATH_TO_DATA_DIR)
    found = {f"DATA.PATH_TO_DATA_DIR {folder}": _readable(folder)}
    if cfg.DATA.PATH_PREFIX:
        found[f"DATA.PATH_PREFIX {cfg.DATA.PATH_PREFIX}"] = _readable(Path(cfg.DATA.PATH_PREFIX))
    for name in {part.DATASET for part in (cfg.TRAIN, cfg.TEST) if part.ENABLE}:
        spec = CATALOG[name]
        template = spec.list_file or cfg.DATA.LABEL_PATH_TEMPLATE
        for split in ("train", "val", "validation", "test"):
            path = folder / template.format(split)
            if not spec.images:
                found[f"the list {path}"] = _readable(path)
    return found


def build_alike(build: Callable[[], DataLoader]) -> DataLoader:
    """Build a loader in every process of the group, and compare the rows and class names that each one has read.

    Raises:
        ValueError: in every process, if one could not build it, or has read other rows or names.
    """
    loader = error = None
    try:
        loader = build()
    except ValueError as caught:
        error = caught
    facts = {} if loader is None else _facts(loader.dataset.samples)  # pyright: ignore
    records = distributed.all_gather((distributed.who(), facts, str(error) if error else None))
    for rank, (name, _, fault) in enumerate(records):
        if fault is not None:
            # the main process checks more than the others, so its fault is not always a fault of its node
            raise SharedError(f"{name}: {fault}" if rank else fault) from error
    names = [name for name, *_ in records]
    faults = [fault for key in facts for fault in _odd_ones(key, names, [values.get(key) for _, values, _ in records])]
    if faults:
        raise SharedError("; ".join(faults) + "; copy the same files to all nodes")
    assert loader is not None
    return loader


def _facts(samples: VideoList) -> dict[str, str]:
    names = hashlib.sha256(json.dumps(samples.class_names).encode()).hexdigest()[:12]
    return {
        f"the list {samples.source}": f"{len(samples)} rows with the checksum {samples.fingerprint}",
        f"the checksum of the class names for {samples.source}": names,
    }


def _readable(path: Path) -> str:
    return "readable" if os.access(path, os.R_OK) else "missing or unreadable"


def differences(records: Sequence[tuple[str, Mapping[str, Any], CfgNode]]) -> Iterator[str]:
    """Yield a sentence for each thing that is not the same in all processes, or is wrong in one.

    Args:
        records: (name, facts, configuration) of each rank.
    """
    for fact in records[0][1]:
        values = [facts.get(fact) for _, facts, _ in records]
        yield from _odd_ones(fact, [name for name, *_ in records], values)
        if fact == "all-reduce" and values[0] != "right" and len(set(values)) == 1:
            yield f"all-reduce: {values[0]} in every process; look at the network and at DIST_BACKEND"
    first_name, _, first_cfg = records[0]
    for name, _, cfg in records[1:]:
        for key, (there, here) in changed_keys(first_cfg, cfg, ignore=OWN_KEYS).items():
            yield f"{key} is {there!r} for {first_name} and {here!r} for {name}; start all with the same configuration"


def _odd_ones(fact: str, names: Sequence[str], values: Sequence[Any]) -> Iterator[str]:
    # of as many on both sides, the first process is right
    usual = max(Counter(values).items(), key=lambda item: (item[1], item[0] == values[0]))[0]
    odd = [f"{name}: {value}" for name, value in zip(names, values, strict=True) if value != usual]
    if odd:
        more = f" and {len(odd) - 8} more" if len(odd) > 8 else ""
        yield f"{fact} is {usual} on the others, but {'; '.join(odd[:8])}{more}"
