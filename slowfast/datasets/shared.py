"""Clips on their way from a worker to the process of its loader, in memory that is used again.

PyTorch makes a new file in /dev/shm for every tensor that a worker sends. The system has to find and clear its pages
one by one, which takes longer than to fill them, and in a container /dev/shm is soon full: the worker then dies of a
bus error. Here a worker keeps a few blocks of memory without a name, and fills one again when the last tensor that lies
in it is gone from both processes. A worker has as many as batches of it were on their way at once, three or so, and
keeps them as long as it lives.
"""

from __future__ import annotations

import math
import mmap
import os
import threading
import weakref
from collections.abc import Sequence
from multiprocessing.reduction import DupFd
from typing import Any, NamedTuple

import numpy as np
import torch
from torch.utils.data import get_worker_info

from slowfast.utils.memory import memory_file

# Bytes before the tensor of a block, so that it stays aligned; the first two of them tell who uses the block.
HEAD = 64
HERE, THERE = 0, 1


def reserve(count: int, like: torch.Tensor) -> None:
    """Make room for a batch, side by side: `take` gives it out, and `stack` need not copy what was made there.

    Args:
        count: of tensors.
        like: a tensor of their shape and type, and with dimensions in memory in their order; it may be on "meta".
    """
    _local.room = _Room(count, like)


def take(count: int, like: torch.Tensor) -> torch.Tensor:
    """`count` tensors like `like`, to be filled, as one (count, ...); from what `reserve` made, as far as it goes."""
    room: _Room | None = vars(_local).get("room")
    layout = _layout(count, like)
    if room is None or _layout(len(room.tensor), like) != room.layout or room.taken + count > len(room.tensor):
        return torch.empty_strided(layout.shape, layout.stride, dtype=layout.dtype)
    room.taken += count
    return room.tensor[room.taken - count : room.taken]


def stack(tensors: Sequence[torch.Tensor]) -> torch.Tensor | Parcel:
    """Join tensors of one shape and type, with dimensions in memory in their order; in a worker, ready to be sent."""
    first = tensors[0]
    assert all(t.shape == first.shape and t.dtype == first.dtype for t in tensors), "clips of a batch differ"
    room: _Room | None = vars(_local).pop("room", None)
    if room is not None and room.holds(tensors):
        return room.joined
    room = _Room(len(tensors), first)
    for target, tensor in zip(room.tensor, tensors, strict=True):
        target.copy_(tensor)
    return room.joined


class _Room:
    """Room for tensors side by side.

    Attributes:
        layout: of all of them.
        tensor: (count, ...), not filled yet.
        joined: `tensor`; in a worker, ready to be sent.
        taken: how many of them have been given out.
    """

    def __init__(self, count: int, like: torch.Tensor) -> None:
        self.layout = layout = _layout(count, like)
        parcel = None if get_worker_info() is None else Parcel([layout], single=True)
        self.tensor = (
            parcel.tensors[0] if parcel else torch.empty_strided(layout.shape, layout.stride, dtype=layout.dtype)
        )
        self.joined = parcel or self.tensor
        self.taken = 0

    def holds(self, tensors: Sequence[torch.Tensor]) -> bool:
        """Whether these are the very tensors of this room, in order."""
        return len(tensors) == len(self.tensor) and all(
            a.data_ptr() == b.data_ptr() and a.shape == b.shape and a.stride() == b.stride() and a.dtype == b.dtype
            for a, b in zip(tensors, self.tensor, strict=True)
        )


_local = threading.local()  # the room of the batch in the making
os.register_at_fork(after_in_child=lambda: vars(_local).clear())


def share(tensors: list[torch.Tensor]) -> list[torch.Tensor] | Parcel:
    """In a worker, copy tensors to where they can be sent from; elsewhere, return them."""
    if get_worker_info() is None:
        return tensors
    parcel = Parcel([_Layout(t.dtype, tuple(t.shape), _dense_stride(t)) for t in tensors])
    for target, tensor in zip(parcel.tensors, tensors, strict=True):
        target.copy_(tensor)
    return parcel


def _layout(count: int, like: torch.Tensor) -> _Layout:
    """Of `count` tensors like `like`, one after another."""
    return _Layout(like.dtype, (count, *like.shape), (like.numel(), *_dense_stride(like)))


def _dense_stride(tensor: torch.Tensor) -> tuple[int, ...]:
    """Strides of a tensor without gaps whose dimensions lie in the same order."""
    return torch.empty_like(tensor, device="meta").stride()


class _Layout(NamedTuple):
    dtype: torch.dtype
    shape: tuple[int, ...]
    stride: tuple[int, ...]

    def room(self) -> int:
        """Bytes, with those that keep the next tensor aligned."""
        return -(-math.prod(self.shape) * self.dtype.itemsize // HEAD) * HEAD


class Parcel:
    """Tensors of a worker in one block of memory, to be filled and sent; who receives it gets a list of tensors.

    Args:
        layouts: of the tensors.
        single: there is one, and it is received without a list.
    """

    def __init__(self, layouts: Sequence[_Layout], single: bool = False) -> None:
        self.layouts, self.single = layouts, single
        self.block = _take_block(HEAD + sum(layout.room() for layout in layouts))
        content = np.frombuffer(self.block.mapped, np.uint8)
        weakref.finalize(content, _release, self.block.mapped, HERE, os.getpid()).atexit = False
        self.tensors = _lay_out(torch.from_numpy(content), layouts)

    def __reduce__(self) -> tuple[Any, ...]:
        self.block.mapped[THERE] = 1
        return _receive, (DupFd(self.block.file), self.layouts, self.single)


class _Block:
    """Memory without a name; its bytes `HERE` and `THERE` are 1 while the worker, or who has received it, uses it."""

    def __init__(self, size: int) -> None:
        self.file = memory_file("clips")
        os.ftruncate(self.file, size)
        self.mapped = mmap.mmap(self.file, size)
        weakref.finalize(self, os.close, self.file)


_blocks: list[_Block] = []  # of this process
os.register_at_fork(after_in_child=_blocks.clear)


def _take_block(size: int) -> _Block:
    """A block of `size` bytes or up to twice as many that nobody uses, marked as used."""
    free = [block for block in _blocks if not (block.mapped[HERE] or block.mapped[THERE])]
    fitting = [block for block in free if size <= len(block.mapped) <= 2 * size]
    if fitting:
        block = min(fitting, key=lambda block: len(block.mapped))
    else:
        for block in free:  # so that sizes which no longer come take no memory
            _blocks.remove(block)
        block = _Block(size)
        _blocks.append(block)
    block.mapped[HERE] = 1
    return block


def _receive(handle: Any, layouts: Sequence[_Layout], single: bool) -> torch.Tensor | list[torch.Tensor]:
    """What a worker has sent; the block is free again when nothing refers to any of it, here or there."""
    file = handle.detach()
    try:
        mapped = mmap.mmap(file, 0)
    finally:
        os.close(file)
    content = np.frombuffer(mapped, np.uint8)
    weakref.finalize(content, _release, mapped, THERE, os.getpid()).atexit = False
    tensors = _lay_out(torch.from_numpy(content), layouts)
    return tensors[0] if single else tensors


def _lay_out(content: torch.Tensor, layouts: Sequence[_Layout]) -> list[torch.Tensor]:
    tensors, start = [], HEAD
    for layout in layouts:
        part = content[start : start + layout.room()]
        tensors.append(part.view(layout.dtype).as_strided(layout.shape, layout.stride))
        start += layout.room()
    return tensors


def _release(mapped: mmap.mmap, side: int, owner: int) -> None:
    if os.getpid() == owner:  # and not a fork of it
        mapped[side] = 0
