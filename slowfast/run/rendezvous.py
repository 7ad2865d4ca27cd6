"""Connect the processes of a job; a failure ends each of them within seconds, with an error that names the cause.

Rank 0 opens a store and a session in it, in which each process registers. When all processes of the job have
registered, rank 0 ends the session, because the store of torchrun's agent outlives the attempts of a job, and all
begin. A rank 0 that is killed does not end its session; its next attempt replaces it, and the other processes follow.
torchrun counts the restarts of each machine, so the processes of an attempt can have different numbers.
"""

from __future__ import annotations

import json
import os
import secrets
import socket
import sys
import time
from collections import Counter
from collections.abc import Callable, Sequence
from contextlib import suppress
from datetime import timedelta
from math import inf
from typing import NamedTuple, TypeVar

import torch
from torch import distributed as dist
from torch.distributed import PrefixStore, Store, TCPStore

from slowfast.utils.distributed import FAILURE, STORE_PATIENCE, ask_store, host, share_failures

T = TypeVar("T")

# Seconds after which a name without an address, a port in use or a silent listener is a fault.
PATIENCE = 20.0

# Seconds after which a process prints the cause of its wait.
NOTICE = 10.0

POLL = 0.2

# Number of processes in the entry of one that does not wait any longer.
LEFT = 0

# Keys of the store: the session of rank 0, and in the session's own part, that all have registered.
SESSION, BEGUN = "session", "begun"


def join_group(backend: str, device: torch.device, timeout: float, check: Callable[[], None]) -> None:
    """Join the group described by RANK, WORLD_SIZE, MASTER_ADDR and MASTER_PORT, if there is one.

    Args:
        backend: of torch.distributed.
        device: of this process.
        timeout: seconds to wait for the other processes here; one minute more in every later exchange.
        check: function called while waiting; its exceptions end the wait.

    Raises:
        ValueError: as `meet`, or GLOO_SOCKET_IFNAME names an interface that this machine does not have.
    """
    world = int(os.environ.get("WORLD_SIZE", "1"))
    if world > 1 and not dist.is_initialized():
        if backend == "gloo":
            _check_interface()
        store = meet(timeout, check)
        # the store of torchrun's agent is also that of its next attempts
        share_failures(store if _has_agent() else store.underlying_store)
        # the watchdog, which reports the position of each process, must act before the group's own timeout
        limit = timedelta(seconds=timeout + 60)
        device_id = device if device.type == "cuda" else None
        rank = int(os.environ["RANK"])
        dist.init_process_group(backend, store=store, rank=rank, world_size=world, timeout=limit, device_id=device_id)


def _check_interface() -> None:
    """Compare the interfaces that gloo was asked to use with those of this machine."""
    if not (asked := os.environ.get("GLOO_SOCKET_IFNAME", "")):
        return
    known = [name for _, name in socket.if_nameindex()]
    if {name.partition(":")[0] for name in asked.split(",")} - {"", *known}:  # eth0:1 is an address of eth0
        raise ValueError(
            f"GLOO_SOCKET_IFNAME {asked!r} is not a network interface of {host()} ({', '.join(known)}): correct it or "
            "unset it"
        )


def _has_agent() -> bool:
    """Return whether torchrun's agent serves the store instead of rank 0."""
    return os.environ.get("TORCHELASTIC_USE_AGENT_STORE") == "True"


def report_failure(name: str, port: int, message: str) -> None:
    """Report that all processes of this machine have exited; `name` and `port` are those of the store of rank 0.

    A process that was killed cannot do that.
    """
    with suppress(OSError):  # rank 0 has exited
        socket.create_connection((name, port), timeout=STORE_PATIENCE).close()
        ask_store(lambda: _store(name, port, is_master=False).compare_set(FAILURE, "", message), STORE_PATIENCE)


def meet(timeout: float, check: Callable[[], None]) -> PrefixStore:
    """Wait for all processes of the group; return a store that only its members use.

    Args:
        timeout: seconds until all must have joined.
        check: function called while waiting; its exceptions end the wait.

    Raises:
        ValueError: two processes have the same rank, the address cannot be used, or a process did not join.
    """
    restarts = int(os.environ.get("TORCHELASTIC_RESTART_COUNT", "0"))
    me = _Member(int(os.environ["RANK"]), int(os.environ["WORLD_SIZE"]), host(), restarts)
    serves = me.rank == 0 and not _has_agent()
    try:
        store = _repeat(lambda: _open(serves, check), me, timeout, check)
        if me.rank == 0:
            joined = [_begin_session(store, restarts)]
        else:
            joined = [_repeat(lambda: _session(store), me, timeout, check)]
        try:
            _register(store, joined[-1], me)
            group = _repeat(lambda: _gathered(store, joined, me), me, timeout, lambda: _check(check, store, joined, me))
        finally:
            if me.rank == 0:
                store.delete_key(SESSION)
        if me.rank == 0:
            store.delete_key(FAILURE)  # of a process that failed before, and has been started again
            group.set(BEGUN, "")
    except ValueError:
        time.sleep(5 * POLL * serves)  # the store ends with this process, and the others must read it before
        raise
    except RuntimeError as error:  # for example DistError
        raise ValueError(
            f"{me}: the store at MASTER_ADDR and MASTER_PORT (--init_method) cannot be used "
            f"({str(error).partition(chr(10))[0]}); see the message of rank 0"
        ) from error
    store.set_timeout(timedelta(seconds=timeout))
    return group


class _Member(NamedTuple):
    rank: int
    world: int
    where: str
    restarts: int

    def __str__(self) -> str:
        return f"rank {self.rank} of {self.world} on {self.where}"


class _NotYetError(Exception):
    """Something that this process waits for; after `patience` seconds it is a fault, with a cure."""

    def __init__(self, missing: str, cure: str, patience: float = inf) -> None:
        self.missing, self.cure, self.patience = missing, cure, patience


def _repeat(attempt: Callable[[], T], me: _Member, timeout: float, check: Callable[[], None]) -> T:
    """Repeat an attempt until it does not raise `_NotYetError`, and return its result."""
    begun = time.monotonic()
    noticed = os.environ.get("LOCAL_RANK", "0") != "0"  # one process of each node prints
    while True:
        check()
        try:
            return attempt()
        except _NotYetError as reason:
            waited, missing = time.monotonic() - begun, reason.missing
            if waited > min(timeout, reason.patience):
                raise ValueError(f"{me}: waited {waited:.0f} s for {missing}; {reason.cure}") from None
        if waited > NOTICE and not noticed:
            noticed = True
            print(f"warning: {me}: waiting for {missing}", file=sys.stderr, flush=True)
        time.sleep(POLL)


def _open(serves: bool, check: Callable[[], None]) -> Store:
    """Open the store at the address of rank 0, or connect to it."""
    name, port = os.environ["MASTER_ADDR"], int(os.environ["MASTER_PORT"])
    try:
        socket.getaddrinfo(name, port)
    except OSError as error:
        cure = "correct MASTER_ADDR (--init_method)"
        raise _NotYetError(f"the address of {name} ({error.strerror})", cure, PATIENCE) from error
    try:
        if serves:
            socket.create_server(("", port)).close()  # for a port in use, PyTorch prints a stack trace
            return _store(name, port, is_master=True)
        socket.create_connection((name, port), timeout=5).close()
    except OSError as error:
        if serves:  # the last process of an earlier attempt may still have the port
            cure = "choose another MASTER_PORT (--init_method), or start a single process with rank 0 (--shard_id)"
            raise _NotYetError(f"port {port}, which is in use by another program", cure, PATIENCE) from error
        missing = f"rank 0 at {name}:{port} ({error.strerror or 'no answer'})"
        raise _NotYetError(missing, "is it started?") from error
    if (store := ask_store(lambda: _store(name, port, is_master=False), PATIENCE, check)) is None:
        raise ValueError(
            f"the program at {name}:{port} is not rank 0 of this job; see its message, or choose another MASTER_PORT "
            "(--init_method)"
        )
    return store


def _store(name: str, port: int, is_master: bool) -> Store:
    timeout = timedelta(seconds=PATIENCE / 2)
    return TCPStore(name, port, is_master=is_master, wait_for_workers=False, timeout=timeout)


def _begin_session(store: Store, restarts: int) -> str:
    """Return the session of this rank 0, or that of another one, so that two processes with rank 0 meet."""
    own = f"{restarts} {secrets.token_hex(8)}"
    found = store.compare_set(SESSION, "", own).decode()
    if int(found.split()[0]) >= restarts:
        return found
    store.set(SESSION, own)
    return own


def _session(store: Store) -> str:
    if not store.check([SESSION]):
        raise _NotYetError("rank 0, which opens the session", "is it started?")
    return store.get(SESSION).decode()


def _register(store: Store, session: str, me: _Member) -> None:
    group = PrefixStore(session, store)
    group.set(f"member {group.add('count', 1)}", json.dumps(me))


def _gathered(store: Store, joined: list[str], me: _Member) -> PrefixStore:
    """Return the store of the session that was joined last, when it has begun, or for rank 0 when it can begin."""
    group = PrefixStore(joined[-1], store)
    try:
        _require_all(group, me.world)
        if me.rank != 0 and not group.check([BEGUN]):
            raise _NotYetError("rank 0, which begins the session", "see its message")
    except _NotYetError:
        session = store.compare_set(SESSION, joined[-1], joined[-1]).decode()  # the same one if rank 0 has ended it
        if session != joined[-1]:
            joined.append(session)
            _register(store, session, me)
        raise
    return group


def _check(check: Callable[[], None], store: Store, joined: Sequence[str], me: _Member) -> None:
    """Call `check`; its exceptions do not count once rank 0 has begun, because it now waits for this process."""
    try:
        check()
    except Exception:
        with suppress(RuntimeError):  # rank 0 has exited
            if me.rank != 0 and PrefixStore(joined[-1], store).check([BEGUN]):
                return
            _register(store, joined[-1], me._replace(world=LEFT))
        raise


def _require_all(store: Store, world: int) -> None:
    """Return when all processes have registered.

    Raises:
        ValueError: those that have cannot be one group.
    """
    members = _latest([_Member(*json.loads(store.get(f"member {n + 1}"))) for n in range(store.add("count", 0))])
    if fault := _fault(members):
        raise ValueError(fault)
    if len(members) < world:
        absent = sorted(set(range(world)) - {member.rank for member in members})
        names = ", ".join(map(str, absent[:8])) + ", ..." * (len(absent) > 8)
        raise _NotYetError(f"rank{'s' * (len(absent) > 1)} {names}", "start the processes of the other machines")


def _latest(members: Sequence[_Member]) -> list[_Member]:
    """Leave out the processes that have left, or that torchrun has replaced on their machine."""
    latest: dict[tuple[int, str], list[_Member]] = {}
    for member in members:
        others = latest.setdefault((member.rank, member.where), [])
        if member.world == LEFT or any(other.restarts < member.restarts for other in others):
            others.clear()
        if member.world != LEFT and all(other.restarts <= member.restarts for other in others):
            others.append(member)
    return [member for members in latest.values() for member in members]


def _fault(members: Sequence[_Member]) -> str:
    """Return why these processes cannot be one group, or ""."""
    worlds = {member.world: member for member in members}
    if len(worlds) > 1:
        each = "; ".join(str(member) for member in worlds.values())
        return f"the processes of this job do not expect the same number of processes ({each}); give all NUM_SHARDS"
    [(rank, count)] = Counter(member.rank for member in members).most_common(1) or [(0, 0)]
    if count <= 1:
        return ""
    places = " and ".join(member.where for member in members if member.rank == rank)
    return (
        f"rank {rank} was started {count} times, on {places}; give each machine its own number (--shard_id 0, 1, ..., "
        "torchrun's --node_rank)"
    )
