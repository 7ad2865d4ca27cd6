"""Memory for the batches of a worker, which is used again.

PyTorch makes a new file in /dev/shm for every tensor that a worker sends. The system has to find and clear its pages
one by one, which takes longer than to fill them, and in a container /dev/shm is soon full: the worker then ends with a
bus error. Here a worker keeps a few blocks of memory without a name, and fills one again when the last tensor in it is
gone from both processes. A worker has as many blocks as batches of it were in use at once, about three, and keeps them
until it ends.
"""

from __future__ import annotations

import math
import mmap
import os
import weakref
from collections.abc import Sequence
from multiprocessing.reduction import DupFd
from typing import Any

import numpy as np
import torch
from torch.utils.data import get_worker_info

from slowfast.utils.memory import memory_file

Layout = tuple[torch.dtype, tuple[int, ...]]  # type and shape of a contiguous tensor

ALIGNMENT = 64  # bytes between the starts of tensors; the first ones of a block hold its two marks
WORKER, RECEIVER = 0, 1  # the byte of a block that is 1 while the worker, or the process that received it, uses it


def new_clips(shape: tuple[int, ...]) -> tuple[np.ndarray, Any]:
    """Make memory for the clips of a batch, which are made where they are sent from.

    Args:
        shape: (B, ..., C).

    Returns:
        A uint8 array to be filled, and what the batch holds: its (B, C, ...) tensor; in a worker, a `Parcel` that
        becomes that tensor on its way.
    """
    if get_worker_info() is None:
        clips = torch.empty(shape, dtype=torch.uint8)
        return clips.numpy(), channels_second(clips)
    parcel = Parcel([(torch.uint8, shape)], clips=True)
    return parcel.tensors[0].numpy(), parcel


def share(tensors: list[torch.Tensor]) -> Any:
    """Return contiguous tensors; in a worker, copy them to a `Parcel` that becomes the list on its way."""
    if get_worker_info() is None:
        return tensors
    parcel = Parcel([(t.dtype, tuple(t.shape)) for t in tensors])
    for target, tensor in zip(parcel.tensors, tensors, strict=True):
        target.copy_(tensor)
    return parcel


def channels_second(clips: torch.Tensor) -> torch.Tensor:
    """View (B, ..., C) clips as (B, C, ...)."""
    return clips.movedim(-1, 1)


class Parcel:
    """Tensors of a worker in one block of memory, to be filled and sent; the receiver gets a list of tensors.

    Args:
        layouts: of the tensors.
        clips: there is one tensor (B, ..., C), and it is received as (B, C, ...), without a list.
    """

    def __init__(self, layouts: Sequence[Layout], clips: bool = False) -> None:
        self.layouts, self.clips = layouts, clips
        self.block = _take_block(ALIGNMENT + sum(map(_padded_size, layouts)))
        self.tensors = _map_tensors(self.block.mapped, layouts, WORKER)

    def __reduce__(self) -> tuple[Any, ...]:
        self.block.mapped[RECEIVER] = 1
        return _receive, (DupFd(self.block.file), self.layouts, self.clips)


def _receive(handle: Any, layouts: Sequence[Layout], clips: bool) -> torch.Tensor | list[torch.Tensor]:
    """Return what a worker has sent; the block is free again when nothing refers to any of it in either process."""
    file = handle.detach()
    try:
        mapped = mmap.mmap(file, 0)
    finally:
        os.close(file)
    tensors = _map_tensors(mapped, layouts, RECEIVER)
    return channels_second(tensors[0]) if clips else tensors


class _Block:
    """Memory without a name."""

    def __init__(self, size: int) -> None:
        self.file = memory_file("clips")
        os.ftruncate(self.file, size)
        self.mapped = mmap.mmap(self.file, size)
        weakref.finalize(self, os.close, self.file)


_blocks: list[_Block] = []  # of this process
os.register_at_fork(after_in_child=_blocks.clear)


def _take_block(size: int) -> _Block:
    """Return an unused block of `size` bytes or up to twice as many, marked as used."""
    free = [block for block in _blocks if not (block.mapped[WORKER] or block.mapped[RECEIVER])]
    fitting = [block for block in free if size <= len(block.mapped) <= 2 * size]
    if fitting:
        block = min(fitting, key=lambda block: len(block.mapped))
    else:
        for block in free:  # so that sizes which no longer occur take no memory
            _blocks.remove(block)
        block = _Block(size)
        _blocks.append(block)
    block.mapped[WORKER] = 1
    return block


def _padded_size(layout: Layout) -> int:
    """Return the bytes of a tensor, with those that keep the next one aligned."""
    dtype, shape = layout
    return -(-math.prod(shape) * dtype.itemsize // ALIGNMENT) * ALIGNMENT


def _map_tensors(mapped: mmap.mmap, layouts: Sequence[Layout], side: int) -> list[torch.Tensor]:
    """Return the tensors in the memory of a block; when all of them are gone, the mark of `side` is cleared."""
    content = np.frombuffer(mapped, np.uint8)
    weakref.finalize(content, _clear_mark, mapped, side, os.getpid()).atexit = False
    memory, start, tensors = torch.from_numpy(content), ALIGNMENT, []
    for dtype, shape in layouts:
        size = math.prod(shape) * dtype.itemsize
        tensors.append(memory[start : start + size].view(dtype).view(shape))
        start += _padded_size((dtype, shape))
    return tensors


def _clear_mark(mapped: mmap.mmap, side: int, owner: int) -> None:
    if os.getpid() == owner:  # and not a fork of it
        mapped[side] = 0
