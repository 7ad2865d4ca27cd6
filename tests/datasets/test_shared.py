"""Test how clips are sent from a worker to the process of its loader."""

from __future__ import annotations

import gc
import os
import time
from multiprocessing import get_all_start_methods
from pathlib import Path
from typing import Any

import pytest
import torch
from torch.utils.data import DataLoader, Dataset, get_worker_info

from slowfast.datasets import shared
from slowfast.datasets.shared import by_value, new_clips, share


class Clips(Dataset[torch.Tensor]):
    """Items (4, H, 6, 3) filled with their number; the height of every tenth item is twenty times larger."""

    def __init__(self, same: bool) -> None:
        self.same = same

    def __getitem__(self, n: int) -> torch.Tensor:
        return torch.full((4, 200 if self.same or n % 10 else 4000, 6, 3), n, dtype=torch.uint8)


def in_worker() -> bool:
    return get_worker_info() is not None


def join_all(clips: list[torch.Tensor]) -> Any:
    memory, joined = new_clips((len(clips), *clips[0].shape), in_worker())
    for target, clip in zip(memory, clips, strict=True):
        target[...] = clip
    return joined


def join(clips: list[torch.Tensor]) -> dict[str, Any]:
    first = by_value(torch.stack([clip[0, 0, 0, 0] for clip in clips]), in_worker())
    each = share([clip.float() for clip in clips], in_worker())
    return {"all": join_all(clips), "each": each, "first": first, "worker": os.getpid()}


def join_one(clips: list[torch.Tensor]) -> dict[str, Any]:
    return {"each": share(clips, in_worker()), "worker": os.getpid()}


def blocks(process: int) -> dict[str, str]:
    """Return the memory that a process has mapped for clips, {inode: size}."""
    rows = [line.split() for line in Path(f"/proc/{process}/maps").read_text().splitlines() if "/memfd:clips" in line]
    return {row[4]: row[0] for row in rows}


def test_a_batch_arrives_unchanged_and_is_not_overwritten():
    batches = [[n, n + 1] for n in range(0, 40, 2)]
    clips = Clips(same=True)
    loader = DataLoader(clips, batch_sampler=batches, collate_fn=join, num_workers=2, multiprocessing_context="fork")
    kept = list(loader)  # none is written to again while it is held
    for numbers, batch in zip(batches, kept, strict=True):
        here = join([clips[n] for n in numbers])
        assert torch.equal(batch["all"], here["all"]) and batch["all"].stride() == here["all"].stride()
        assert batch["all"].movedim(1, -1).is_contiguous() and batch["all"].dtype == torch.uint8
        assert batch["first"].tolist() == numbers and not batch["first"].add_(1).is_shared()
        pairs = list(zip(batch["each"], here["each"], strict=True))
        assert all(torch.equal(a, b) for a, b in pairs)
    assert not kept[0]["all"].is_shared()  # nothing in /dev/shm
    kept[0]["all"].add_(1)
    assert kept[0]["all"].max() == 2 and kept[1]["all"].min() == 2


@pytest.mark.slow
@pytest.mark.parametrize("context", [method for method in get_all_start_methods() if method != "fork"])
def test_workers_that_are_not_forks(context):
    clips = [torch.full((4, 50, 6, 3), n, dtype=torch.uint8) for n in range(12)]
    loader = DataLoader(
        clips,  # pyright: ignore[reportArgumentType]
        batch_size=2, collate_fn=join_all, num_workers=2, multiprocessing_context=context,
    )  # fmt: skip
    for n, batch in enumerate(list(loader)):
        assert torch.equal(batch, torch.stack(clips[2 * n : 2 * n + 2]).movedim(-1, 1))


def test_memory_is_used_again_as_soon_as_nothing_refers_to_it():
    options = {"num_workers": 1, "multiprocessing_context": "fork", "persistent_workers": True}
    order = [[n] for n in range(60)]
    loader = DataLoader(Clips(same=False), batch_sampler=order, collate_fn=join_one, **options)
    seen: set[str] = set()
    worker = 0
    for number, batch in enumerate(loader):
        worker = batch["worker"]
        assert (batch["each"][0] == number).all()
        seen |= set(blocks(worker))
    # two ahead, one here, one being made; blocks of another size are freed when none fits
    assert len(blocks(worker)) <= 5 and len(seen) <= 36
    view = batch["each"][0][1:, :, ::2]
    del batch
    order[:] = [[n] for n in range(100, 130)]
    for later in loader:
        assert (view == 59).all() and (later["each"][0] >= 100).all()  # a view keeps all of it
    del later, view
    gc.collect()
    assert not blocks(os.getpid())


class Remembering(Dataset[torch.Tensor]):
    """A data set that keeps every clip it makes, and fails if a kept clip has changed."""

    def __init__(self) -> None:
        self.kept: dict[int, Any] = {}

    def __getitems__(self, numbers: list[int]) -> Any:
        memory, joined = new_clips((len(numbers), 4, 20, 6, 3), in_worker())
        for number, clip in zip(numbers, memory, strict=True):
            clip[...] = number
            self.kept[number] = clip
        assert all((kept == number).all() for number, kept in self.kept.items())
        return joined


def identity(batch: Any) -> Any:
    return batch


def test_memory_is_not_used_again_while_the_worker_holds_a_part_of_it():
    options: dict[str, Any] = {"num_workers": 1, "multiprocessing_context": "fork", "collate_fn": identity}
    batches = [[n, n + 1] for n in range(0, 40, 2)]
    for numbers, batch in zip(batches, DataLoader(Remembering(), batch_sampler=batches, **options), strict=True):
        assert torch.equal(batch, torch.stack([torch.full_like(batch[0], n) for n in numbers]))


def test_clips_are_made_in_the_memory_of_the_batch():
    memory, joined = new_clips((3, 4, 20, 6, 2), send=False)
    assert joined.shape == (3, 2, 4, 20, 6) and joined.data_ptr() == memory.ctypes.data
    memory[1, ..., 1] = 7
    assert (joined[1, 1] == 7).all()
    assert new_clips((0, 4, 2), send=False)[1].shape == (0, 2, 4)


def test_the_end_of_a_fork_frees_nothing():
    order = [[1]]
    options = {"num_workers": 1, "multiprocessing_context": "fork", "persistent_workers": True}
    loader = DataLoader(Clips(same=True), batch_sampler=order, collate_fn=join_one, **options)
    kept = next(iter(loader))["each"][0]
    child = os.fork()
    if child == 0:
        del kept
        gc.collect()
        os._exit(0)
    os.waitpid(child, 0)
    order[:] = [[n] for n in range(2, 12)]
    for _ in loader:
        time.sleep(0.01)
    assert (kept == 1).all()


def join_and_fail(clips: list[torch.Tensor]) -> dict[str, Any]:
    batch = join_one(clips)
    if int(clips[0].max()) % 2:
        raise ValueError("every second batch")
    return batch


def test_a_block_that_was_never_sent_is_free_again():
    order = [[n] for n in range(1, 41)]
    options = {"num_workers": 1, "multiprocessing_context": "fork"}
    found = iter(DataLoader(Clips(same=True), batch_sampler=order, collate_fn=join_and_fail, **options))
    worker, failed = 0, 0
    while failed < 20:
        try:
            worker = next(found)["worker"]
        except ValueError:
            failed += 1
    assert len(blocks(worker)) <= 6


def test_many_videos_of_a_batch_take_few_files():
    order = [list(range(200))] * 4
    options = {"num_workers": 1, "multiprocessing_context": "fork"}
    for batch in DataLoader(Clips(same=True), batch_sampler=order, collate_fn=join_one, **options):
        assert [int(clip.max()) for clip in batch["each"]] == list(range(200))
        assert len(os.listdir(f"/proc/{batch['worker']}/fd")) < 60


def test_blocks_of_sizes_that_no_longer_occur_are_freed(monkeypatch):
    monkeypatch.setattr(shared, "_blocks", [])
    small = shared._take_block(100)
    small.mapped[shared.WORKER] = 0
    assert shared._take_block(60) is small
    used = shared._take_block(5000)
    assert shared._blocks == [small, used]  # both are in use
    small.mapped[shared.WORKER] = 0
    large = shared._take_block(20000)
    assert shared._blocks == [used, large]
