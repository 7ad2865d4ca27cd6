"""Connect the processes of a job; a failure ends each of them within seconds, with an error that names the cause.

Each attempt is a session in a store. A process registers in the newest session, and takes part only after rank 0 has
counted it. Entries of an earlier attempt in a store that outlives it (that of torchrun) are thus ignored.
"""

from __future__ import annotations

import contextlib
import json
import os
import secrets
import socket
import sys
import threading
import time
from collections import Counter
from collections.abc import Callable, Generator, Sequence
from datetime import timedelta
from math import inf
from typing import NamedTuple, TypeVar

import torch
from torch import distributed as dist
from torch.distributed import PrefixStore, Store, TCPStore

from slowfast.utils.distributed import host

T = TypeVar("T")

# Seconds after which a name without an address, a port in use or a silent listener is a fault.
PATIENCE = 20.0

# Seconds after which a process prints the cause of its wait.
NOTICE = 10.0

POLL = 0.2


def join_group(backend: str, device: torch.device, timeout: float, check: Callable[[], None]) -> None:
    """Join the group described by RANK, WORLD_SIZE, MASTER_ADDR and MASTER_PORT, if there is one.

    Args:
        backend: of torch.distributed.
        device: of this process.
        timeout: seconds to wait for the other processes here; one minute more in every later exchange.
        check: function called while waiting; its exceptions end the wait.

    Raises:
        ValueError: as `meet`.
    """
    world = int(os.environ.get("WORLD_SIZE", "1"))
    if world > 1 and not dist.is_initialized():
        store = meet(timeout, check)
        # the watchdog, which reports the position of each process, must act before the group's own timeout
        limit = timedelta(seconds=timeout + 60)
        device_id = device if device.type == "cuda" else None
        rank = int(os.environ["RANK"])
        dist.init_process_group(backend, store=store, rank=rank, world_size=world, timeout=limit, device_id=device_id)


def meet(timeout: float, check: Callable[[], None]) -> Store:
    """Wait for all processes of the group; return a store that only its members use.

    Args:
        timeout: seconds until all must have joined.
        check: function called while waiting; its exceptions end the wait.

    Raises:
        ValueError: two processes have the same rank, the address cannot be used, or a process did not join.
    """
    meeting = _Meeting(timeout, check)
    try:
        store = meeting.wait(meeting.open)
        if meeting.me.rank == 0:
            store.set("session", meeting.me.token)
        session = meeting.wait(lambda: meeting.lead(store) if meeting.me.rank == 0 else meeting.follow(store))
    except RuntimeError as error:  # DistError, and before PyTorch 2.7 no class of its own
        raise ValueError(
            f"{meeting.me}: the connection to {meeting.address} was lost before all processes had joined "
            f"({_first_line(error)}); see the message of rank 0"
        ) from error
    store.set_timeout(timedelta(seconds=timeout))
    return PrefixStore(session, store)


class _Member(NamedTuple):
    rank: int
    world: int
    where: str
    token: str

    def __str__(self) -> str:
        return f"rank {self.rank} of {self.world} on {self.where}"


class _NotYetError(Exception):
    """Something that this process waits for; after `patience` seconds it is a fault, with a cure."""

    def __init__(self, missing: str, cure: str, patience: float = inf) -> None:
        self.missing, self.cure, self.patience = missing, cure, patience


class _Meeting:
    def __init__(self, timeout: float, check: Callable[[], None]) -> None:
        self.timeout, self.check, self.begun = timeout, check, time.monotonic()
        self.host, self.port = os.environ["MASTER_ADDR"], int(os.environ["MASTER_PORT"])
        self.address = f"{self.host}:{self.port}"
        self.noticed = os.environ.get("LOCAL_RANK", "0") != "0"  # one process of each node prints
        self.me = _Member(int(os.environ["RANK"]), int(os.environ["WORLD_SIZE"]), host(), secrets.token_hex(8))
        self.members = [self.me]  # that rank 0 has counted
        self.session = ""  # that this process has registered in
        self.rival: Store | None = None

    def wait(self, attempt: Callable[[], T]) -> T:
        """Repeat an attempt until it does not raise `_NotYetError`, and return its result."""
        while True:
            self.check()
            try:
                with _quiet():
                    return attempt()
            except _NotYetError as reason:
                waited, missing = time.monotonic() - self.begun, reason.missing
                if waited > min(self.timeout, reason.patience):
                    raise ValueError(f"{self.me}: waited {waited:.0f} s for {missing}; {reason.cure}") from None
            if waited > NOTICE and not self.noticed:
                self.noticed = True
                print(f"warning: {self.me}: waiting for {missing}", file=sys.stderr, flush=True)
            time.sleep(POLL)

    def open(self) -> Store:
        """Open the store at the address of rank 0: as its server in rank 0, unless torchrun is that."""
        if self.me.rank == 0 and os.environ.get("TORCHELASTIC_USE_AGENT_STORE") != "True":
            return self._serve()
        try:
            socket.create_connection((self.host, self.port), timeout=5).close()
        except OSError as error:
            unknown = isinstance(error, socket.gaierror)
            cure = "correct MASTER_ADDR (--init_method)" if unknown else "is it started?"
            missing = f"rank 0 at {self.address} ({error.strerror or 'no answer'})"
            raise _NotYetError(missing, cure, PATIENCE if unknown else inf) from error
        if store := self._connect(PATIENCE):
            return store
        raise ValueError(
            f"{self.me}: the program at {self.address} is not rank 0 of this job; see its message, or choose another "
            "MASTER_PORT (--init_method)"
        )

    def _serve(self) -> Store:
        try:
            return self._store(PATIENCE / 2, is_master=True)
        except RuntimeError as error:
            if "EADDRINUSE" not in str(error):
                raise ValueError(
                    f"{self.me}: cannot listen at {self.address} ({_first_line(error)}); correct MASTER_ADDR and "
                    "MASTER_PORT (--init_method)"
                ) from error
        # another rank 0 may use the port: if it counts this one, both raise the fault
        self.rival = self.rival or self._connect(PATIENCE / 4)
        if self.rival:
            with contextlib.suppress(RuntimeError, _NotYetError):
                self.follow(self.rival)
        # the last process of an earlier attempt may still have the port
        missing = f"port {self.port}, which is in use by another program"
        raise _NotYetError(missing, "choose another MASTER_PORT (--init_method)", PATIENCE)

    def _connect(self, seconds: float) -> Store | None:
        """Connect in a thread, since PyTorch waits without limit for the first response of a listener."""
        stores: list[Store] = []

        def connect() -> None:
            with contextlib.suppress(RuntimeError):
                stores.append(self._store(seconds / 3, is_master=False))

        thread = threading.Thread(target=connect, daemon=True)
        thread.start()
        until = time.monotonic() + seconds
        while thread.is_alive() and time.monotonic() < until:
            self.check()
            thread.join(POLL)
        return stores[0] if stores else None

    def _store(self, seconds: float, is_master: bool) -> Store:
        timeout = timedelta(seconds=seconds)
        return TCPStore(self.host, self.port, is_master=is_master, wait_for_workers=False, timeout=timeout)

    def lead(self, store: Store) -> str:
        """Return the name of the session, if all processes have registered in it."""
        session = self.me.token
        self._count(store)
        if _fault(self.members):
            time.sleep(1)  # for processes that are still connecting
            self._count(store)
        elif len(self.members) < self.me.world:
            absent = sorted(set(range(self.me.world)) - {member.rank for member in self.members})
            names = ", ".join(map(str, absent[:8])) + ", ..." * (len(absent) > 8)
            missing = f"rank{'s' * (len(absent) > 1)} {names}"
            raise _NotYetError(missing, "start the processes of the other machines")
        fault = _fault(self.members)
        for member in self.members:
            store.set(member.token, json.dumps([session, fault]))
        if fault:
            until = time.monotonic() + PATIENCE / 4  # the store ends with this process
            while store.add(f"{session}/read", 0) < len(self.members) - 1 and time.monotonic() < until:
                time.sleep(POLL)
            raise ValueError(fault)
        return session

    def _count(self, store: Store) -> None:
        while store.check([key := f"{self.me.token}/{len(self.members)}"]):
            self.members.append(_Member(*json.loads(store.get(key))))

    def follow(self, store: Store) -> str:
        """Register in the newest session; return its name, if rank 0 has counted all processes."""
        newest = store.get("session").decode() if store.check(["session"]) else ""
        if newest != self.session:
            self.session = newest
            store.set(f"{newest}/{store.add(f'{newest}/count', 1)}", json.dumps(self.me))
        if not store.check([self.me.token]):
            raise _NotYetError("the other processes, which rank 0 counts", "see its message")
        session, fault = json.loads(store.get(self.me.token))
        if fault:
            store.add(f"{session}/read", 1)
            raise ValueError(fault)
        return session


def _fault(members: Sequence[_Member]) -> str:
    """Return why these processes cannot be one group, or ""."""
    worlds = {member.world: member for member in members}
    if len(worlds) > 1:
        each = "; ".join(str(member) for member in worlds.values())
        return f"the processes of this job do not expect the same number of processes ({each}); give all NUM_SHARDS"
    [(rank, count)] = Counter(member.rank for member in members).most_common(1)
    if count == 1:
        return ""
    places = " and ".join(member.where for member in members if member.rank == rank)
    return (
        f"rank {rank} was started {count} times, on {places}; give each machine its own number (--shard_id 0, 1, ..., "
        "torchrun's --node_rank)"
    )


@contextlib.contextmanager
def _quiet() -> Generator[None]:
    """Keep PyTorch's C++ stack traces off stderr; the error that is raised has the cause in one line."""
    try:
        kept = os.dup(2)
    except OSError:  # there is no stderr
        yield
        return
    with open(os.devnull, "wb") as null:
        os.dup2(null.fileno(), 2)
    try:
        yield
    finally:
        os.dup2(kept, 2)
        os.close(kept)


def _first_line(error: Exception) -> str:
    return str(error).partition("\n")[0]
