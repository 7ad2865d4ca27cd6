"""Send the batches of a worker in shared memory that is used again.

PyTorch makes a new file in /dev/shm for every tensor that a worker sends. The system must find and clear its pages one
by one, which takes longer than filling them. In a container /dev/shm is often small; when it is full, the worker exits
with a bus error. Here a worker keeps a few anonymous blocks of shared memory, and uses a block again when the last
tensor in it was freed in both processes. A worker has as many blocks as its batches in use at the same time, about
three, and keeps them until it exits.
"""

from __future__ import annotations

import math
import mmap
import os
import weakref
from collections.abc import Sequence
from contextlib import suppress
from functools import cache
from multiprocessing.reduction import DupFd
from typing import Any

import numpy as np
import torch

from slowfast.utils.memory import memory_file

Layout = tuple[torch.dtype, tuple[int, ...]]  # type and shape of a contiguous tensor

ALIGNMENT = 64  # bytes, of the start of each tensor; the first bytes of a block are its two marks
WORKER, RECEIVER = 0, 1  # byte of a block that is 1 while the worker, or the receiving process, uses the block


def new_clips(shape: tuple[int, ...], send: bool) -> tuple[np.ndarray, Any]:
    """Allocate memory for the clips (B, ..., C) of a batch, from which they are sent without a copy.

    Returns:
        A uint8 array to be filled, and the entry of the batch: the (B, C, ...) tensor of the array or, to be sent, a
        `Parcel` that becomes this tensor when it is received.
    """
    if not send:
        clips = torch.empty(shape, dtype=torch.uint8)
        return clips.numpy(), clips.movedim(-1, 1)
    parcel = Parcel([(torch.uint8, shape)], clips=True)
    return parcel.tensors[0].numpy(), parcel


def share(tensors: list[torch.Tensor], send: bool) -> Any:
    """Return contiguous tensors; to send them, a `Parcel` of copies that becomes the list when it is received."""
    if not send:
        return tensors
    parcel = Parcel([(t.dtype, tuple(t.shape)) for t in tensors])
    for target, tensor in zip(parcel.tensors, tensors, strict=True):
        target.copy_(tensor)
    return parcel


def by_value(tensor: torch.Tensor, send: bool) -> Any:
    """Return a small tensor; to send it, what is sent as its bytes, because PyTorch would make a file for it."""
    return _Value(tensor) if send else tensor


class _Value:
    """A tensor that is sent as its bytes."""

    def __init__(self, tensor: torch.Tensor) -> None:
        self.array = tensor.numpy()

    def __reduce__(self) -> tuple[Any, ...]:
        return torch.from_numpy, (self.array,)


class Parcel:
    """Tensors in one block of memory that a worker fills and sends; the receiver gets a list of tensors.

    With `clips`, the only tensor (B, ..., C) is received as a tensor (B, C, ...) instead of a list.
    """

    def __init__(self, layouts: Sequence[Layout], clips: bool = False) -> None:
        self.layouts, self.clips = layouts, clips
        self.block = _take_block(ALIGNMENT + sum(map(_padded_size, layouts)))
        self.tensors = _map_tensors(self.block.mapped, layouts, WORKER)

    def __reduce__(self) -> tuple[Any, ...]:
        self.block.mapped[RECEIVER] = 1
        file = self.block.file
        return _receive, (_OpenFile(file) if opens_files() else DupFd(file), self.layouts, self.clips)


@cache
def opens_files() -> bool:
    """Return whether the parent process may open the files of this one, as this one those of its parent.

    In a sandbox, /proc may be that of another PID namespace, or may list files that cannot be opened.
    """
    with suppress(OSError):
        return os.readlink("/proc/self") == str(os.getpid()) and os.access(f"/proc/{os.getppid()}/exe", os.F_OK)
    return False


class _OpenFile:
    """An open file of a process, as `DupFd`, without a socket in TMPDIR, which may be cleaned during a long run."""

    def __init__(self, number: int) -> None:
        self.path = f"/proc/{os.getpid()}/fd/{number}"

    def detach(self) -> int:
        return os.open(self.path, os.O_RDWR)


def _receive(handle: Any, layouts: Sequence[Layout], clips: bool) -> torch.Tensor | list[torch.Tensor]:
    """Return the tensors of a `Parcel`; its block is free again when no process refers to any of them."""
    file = handle.detach()
    try:
        mapped = mmap.mmap(file, 0)
    finally:
        os.close(file)
    tensors = _map_tensors(mapped, layouts, RECEIVER)
    return tensors[0].movedim(-1, 1) if clips else tensors


class _Block:
    """A block of shared memory without a file name."""

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
        for block in free:  # otherwise sizes that no longer occur would keep their memory
            _blocks.remove(block)
        block = _Block(size)
        _blocks.append(block)
    block.mapped[WORKER] = 1
    return block


def _padded_size(layout: Layout) -> int:
    """Return the bytes of a tensor, with the padding that aligns the next one."""
    dtype, shape = layout
    return -(-math.prod(shape) * dtype.itemsize // ALIGNMENT) * ALIGNMENT


def _map_tensors(mapped: mmap.mmap, layouts: Sequence[Layout], side: int) -> list[torch.Tensor]:
    """Return the tensors in the memory of a block; when all of them are freed, the mark of `side` is cleared."""
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
