"""Compare the processes of a job before training: code, configuration, lists, and sums over the network."""

from __future__ import annotations

import hashlib
import json
import os
import sys
import time
from collections import Counter
from collections.abc import Callable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

import torch
from fvcore.common.config import CfgNode
from torch.utils.data import DataLoader

from slowfast.config.extensions import VARIABLE
from slowfast.config.rules import leaves
from slowfast.datasets.lists import VideoList
from slowfast.utils import distributed
from slowfast.utils.distributed import SharedError
from slowfast.utils.environment import own_modules
from slowfast.utils.io import counted

PACKAGE = Path(__file__).parents[1]

SUMS = "the all-reduce"


def preflight(cfg: CfgNode) -> str:
    """Compare the processes of the group; a single process has nothing to compare.

    Returns:
        A text with the number of processes and nodes that agree.

    Raises:
        ValueError: in every process: it names the ranks and nodes that differ from the others, and the values.
    """
    if distributed.world_size() == 1:
        return "1 process"
    started = time.monotonic()
    values = {SUMS: check_sums(distributed.device(cfg.NUM_GPUS)), **code(PACKAGE), **own_code(), **settings(cfg)}
    records = distributed.all_gather((distributed.who(), values))
    if faults := [*differences(records)]:
        raise ValueError("the processes of this job do not fit together:" + "".join(f"\n  {fault}" for fault in faults))
    nodes = len({name.partition(" on ")[2] for name, _ in records})
    seconds = time.monotonic() - started
    return f"{len(records)} processes on {counted(nodes, 'node')} that agree (compared in {seconds:.1f} s)"


def check_sums(device: torch.device) -> str:
    """Sum known numbers over all processes; return "right", or how many sums are wrong."""
    rank, world = distributed.rank(), distributed.world_size()
    ramp = torch.arange(1024, dtype=torch.float32, device=device)
    total = distributed.all_reduce_sum(ramp * (rank + 1))
    wrong = int((total != ramp * (world * (world + 1) // 2)).sum())
    return f"wrong in {wrong} of 1024 sums" if wrong else "right"


def code(folder: Path) -> dict[str, str]:
    """Return the version of PyTorch, and the first digits of a SHA-256 of all Python files below `folder`."""
    digest = hashlib.sha256()
    for path in sorted(folder.rglob("*.py")):
        digest.update(f"{path.relative_to(folder)}\0".encode() + path.read_bytes() + b"\0")
    return {f"the checksum of package {folder.name}": digest.hexdigest()[:12], "PyTorch": str(torch.__version__)}


def own_code() -> dict[str, str]:
    """Return SLOWFAST_IMPORT, and the first digits of a SHA-256 of the files of its modules."""
    digest = hashlib.sha256()
    for name in os.environ.get(VARIABLE, "").split(","):
        file = Path(getattr(sys.modules.get(name.strip()), "__file__", None) or "")
        digest.update(file.read_bytes() + b"\0" if file.is_file() else b"")
    return {VARIABLE: own_modules(), f"the checksum of the modules in {VARIABLE}": digest.hexdigest()[:12]}


def settings(cfg: CfgNode) -> dict[str, str]:
    """Return the values of all keys but SHARD_ID, which must be the same in all processes."""
    return {key: repr(value) for key, value in leaves(cfg).items() if key != "SHARD_ID"}


def build_alike(build: Callable[[], DataLoader[Any]]) -> DataLoader[Any]:
    """Build a loader in every process of the group, and compare the rows and class names that each one has read.

    Raises:
        ValueError: in every process, if one could not build it, or has read other rows or names.
    """
    loader, values, error = None, {}, None
    try:
        loader = build()
        values = _checksums(loader.dataset.samples)  # pyright: ignore
    except ValueError as caught:
        error = caught
    records = distributed.all_gather((distributed.who(), values, str(error) if error else None))
    for rank, (name, _, fault) in enumerate(records):
        if fault is not None:
            # the main process checks more than the others, so its fault is not always a fault of its node
            raise SharedError(f"{name}: {fault}" if rank else fault) from error
    if faults := [*differences([record[:2] for record in records])]:
        raise SharedError("; ".join(faults) + "; copy the same files to all nodes")
    assert loader is not None
    return loader


def _checksums(videos: VideoList) -> dict[str, str]:
    names = hashlib.sha256(json.dumps(videos.class_names).encode()).hexdigest()[:12]
    return {
        f"the list {videos.source}": f"{len(videos)} rows with the checksum {videos.fingerprint}",
        f"the checksum of the class names for {videos.source}": names,
    }


def differences(records: Sequence[tuple[str, Mapping[str, str]]]) -> Iterator[str]:
    """Yield a sentence for each value that differs between the processes, or is wrong in all.

    `records` are the name and the values of each rank.
    """
    for key, first in records[0][1].items():
        values = [found.get(key, "missing") for _, found in records]
        # if two values are equally frequent, the first process is right
        usual = max(Counter(values).items(), key=lambda item: (item[1], item[0] == first))[0]
        odd = [f"{name}: {value}" for (name, _), value in zip(records, values, strict=True) if value != usual]
        if odd:
            more = f" and {len(odd) - 8} more" if len(odd) > 8 else ""
            yield f"{key} is {usual} on the others, but {'; '.join(odd[:8])}{more}"
        elif key == SUMS and usual != "right":
            yield f"{SUMS} is {usual} in every process; check the network and DIST_BACKEND"
