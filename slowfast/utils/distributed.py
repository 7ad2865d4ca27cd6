"""Exchange values in the process group; a single process is a group of one."""

from __future__ import annotations

import os
import socket
import threading
import time
from collections.abc import Callable
from contextlib import suppress
from typing import Any, TypeVar

import torch
import torch.distributed as dist
from torch import Tensor
from torch.distributed import Store
from torch.distributed.distributed_c10d import _get_default_store

T = TypeVar("T")
STORE_PATIENCE = 5.0  # seconds to wait for the store of the group after a failure
FAILURE = "first failure"  # key of a store

_failures: Store | None = None  # a connection to the store of the group on which nothing else waits


class SharedError(ValueError):
    """A fault of the input that every process of the group raises, so that all exit together."""


def destroy_process_group() -> None:
    """Leave the group, if there is one."""
    global _failures
    _failures = None
    if dist.is_initialized():
        dist.destroy_process_group()


def rank() -> int:
    """Return the rank of this process over all nodes."""
    return dist.get_rank() if dist.is_initialized() else 0


def world_size() -> int:
    """Return the number of processes over all nodes."""
    return dist.get_world_size() if dist.is_initialized() else 1


def local_rank() -> int:
    """Return the rank of this process on its node."""
    return int(os.environ.get("LOCAL_RANK", "0"))


def local_world_size() -> int:
    """Return the number of processes on this node."""
    return int(os.environ.get("LOCAL_WORLD_SIZE", str(world_size()))) if dist.is_initialized() else 1


def host() -> str:
    """Return the name of this node: Slurm's, if there is one."""
    return os.environ.get("SLURMD_NODENAME") or socket.gethostname()


def who() -> str:
    """Return rank and node of this process, for messages."""
    return f"rank {os.environ.get('RANK', '0')} on {host()}"


def is_main() -> bool:
    """Return whether this is the process that writes files and logs."""
    return rank() == 0


def barrier() -> None:
    """Wait for every process."""
    if dist.is_initialized():
        dist.barrier()


def all_reduce_sum(tensor: Tensor) -> Tensor:
    """Sum over processes, in place."""
    if dist.is_initialized():
        dist.all_reduce(tensor)
    return tensor


def all_reduce_max(tensor: Tensor) -> Tensor:
    """Take the maximum over processes, in place."""
    if dist.is_initialized():
        dist.all_reduce(tensor, op=dist.ReduceOp.MAX)
    return tensor


def all_gather(value: Any) -> list[Any]:
    """Return the picklable `value` of every process, in order of rank."""
    if not dist.is_initialized():
        return [value]
    values: list[Any] = [None] * world_size()
    dist.all_gather_object(values, value)
    return values


def announce(event: str) -> None:
    """Let `announced` return True in every process of the group, which need not take part in an exchange."""
    if dist.is_initialized():
        _get_default_store().set(event, "")


def announced(event: str) -> bool:
    """Return whether a process of the group has announced an event."""
    return dist.is_initialized() and _get_default_store().check([event])


def count(name: str, added: int = 0) -> int:
    """Add to a counter that the processes of the group share, without an exchange; return its value."""
    return _get_default_store().add(name, added) if dist.is_initialized() else added


def share_failures(store: Store) -> None:
    """Exchange the first failure of this group through a connection of its own to the store."""
    global _failures
    _failures = store.clone()


def first_failure(message: str) -> str:
    """Return the message of the first process of the group that called this function; then forget it."""
    global _failures
    store, _failures = _failures, None  # the failure of this job must not end the next one of this process
    if store is None:
        return message
    return ask_store(lambda: store.compare_set(FAILURE, "", message).decode(), STORE_PATIENCE) or message


def known_failure() -> str:
    """Return the message of the first failure of the group, or ""; it may block while rank 0 is stopped."""
    try:
        return store.compare_set(FAILURE, "", "").decode() if (store := _failures) else ""
    except RuntimeError:
        return "rank 0, which has exited"


def ask_store(ask: Callable[[], T], patience: float, check: Callable[[], None] = lambda: None) -> T | None:
    """Return the answer of a store; None if the process that serves it has exited, or does not answer.

    Args:
        ask: call of PyTorch, which waits without limit for a process or machine that is stopped.
        patience: seconds to wait for the answer.
        check: function called while waiting; its exceptions end the wait.
    """
    answers: list[T] = []

    def run() -> None:
        with suppress(RuntimeError):  # the process has exited
            answers.append(ask())

    thread = threading.Thread(target=run, daemon=True)
    thread.start()
    until = time.monotonic() + patience
    while thread.is_alive() and time.monotonic() < until:
        check()
        thread.join(0.2)
    return answers[0] if answers else None


def broadcast(value: Any) -> Any:
    """Return the picklable `value` of the main process in every process."""
    if not dist.is_initialized():
        return value
    values = [value]
    dist.broadcast_object_list(values)
    return values[0]


def broadcast_tensor(tensor: Tensor) -> None:
    """Replace `tensor` in place by that of the main process."""
    if dist.is_initialized():
        dist.broadcast(tensor, 0)


def on_main(function: Callable[[], Any]) -> Any:
    """Call `function` in the main process only, and return its picklable value in every process.

    Raises:
        SharedError: `function` raised a ValueError.
        OSError: in every process, with the number and the file of that of `function`.
        Exception: any other error of `function`; the other processes raise a RuntimeError instead.
    """
    value, error = None, None
    if is_main():
        try:
            value = function()
        except Exception as caught:
            error = caught
    # without what cannot be sent, for example the response of a server
    of_system = isinstance(error, OSError) and error.errno and (error.errno, error.strerror, error.filename)
    message = None if error is None else str(error)
    value, message, wrong_input, of_system = broadcast((value, message, isinstance(error, ValueError), of_system))
    if message is None:
        return value
    if wrong_input:
        raise SharedError(message) from error
    raise error or (OSError(*of_system) if of_system else RuntimeError(f"the main process failed: {message}"))


def device(num_gpus: int) -> torch.device:
    """Return the device of this process: its GPU, or the CPU when `num_gpus` is 0."""
    if num_gpus == 0:
        return torch.device("cpu")
    torch.cuda.set_device(local_rank())
    return torch.device("cuda", local_rank())
