"""Connect the processes of a job, and report a failure with its cause within seconds.

Each attempt is a session with its own name in a store. A process joins the newest session, and takes part only after
rank 0 has counted it. Entries of an earlier attempt in a store that outlives it (that of torchrun) are thus ignored.
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
from contextlib import contextmanager
from datetime import timedelta
from math import inf
from typing import NamedTuple

import torch
from torch import distributed as dist
from torch.distributed import PrefixStore, Store, TCPStore

from slowfast.utils.distributed import host

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
        store = meet(host(), timeout, check)
        # the watchdog, which reports the position of each process, must act before the group's own timeout
        limit = timedelta(seconds=timeout + 60)
        device_id = device if device.type == "cuda" else None
        rank = int(os.environ["RANK"])
        dist.init_process_group(backend, store=store, rank=rank, world_size=world, timeout=limit, device_id=device_id)


class Member(NamedTuple):
    """A process that joins a session."""

    rank: int
    world: int
    where: str
    token: str

    def __str__(self) -> str:
        return f"rank {self.rank} of {self.world} on {self.where}"


def meet(where: str, timeout: float, check: Callable[[], None]) -> Store:
    """Wait for all processes of the group that RANK, WORLD_SIZE, MASTER_ADDR and MASTER_PORT describe.

    Args:
        where: name of this node, for messages.
        timeout: seconds until all must have joined.
        check: function called while waiting; its exceptions end the wait.

    Returns:
        A store that only the members of this group use.

    Raises:
        ValueError: two processes have the same rank, the address cannot be used, or a process did not join.
    """
    environment = os.environ
    me = Member(int(environment["RANK"]), int(environment["WORLD_SIZE"]), where, secrets.token_hex(8))
    meeting = _Meeting(me, environment["MASTER_ADDR"], int(environment["MASTER_PORT"]), timeout, check)
    try:
        store = meeting.open()
        session = meeting.lead(store) if me.rank == 0 else meeting.follow(store)
    except RuntimeError as error:  # DistError, and before PyTorch 2.7 no class of its own
        raise ValueError(
            f"{me}: the connection to {meeting.host}:{meeting.port} was lost before all processes had joined "
            f"({_first_line(error)}); see the message of rank 0"
        ) from error
    store.set_timeout(timedelta(seconds=timeout))
    return PrefixStore(session, store)


class _Meeting:
    def __init__(self, me: Member, host: str, port: int, timeout: float, check: Callable[[], None]) -> None:
        self.me, self.host, self.port, self.timeout, self.check = me, host, port, timeout, check
        self.begun = time.monotonic()
        self.noticed = os.environ.get("LOCAL_RANK", "0") != "0"  # one process of each node prints

    def _pause(self, waiting_for: str, cure: str = "", patience: float = inf) -> None:
        """Wait a little.

        Raises:
            ValueError: the timeout, or `patience` since the begin of the meeting, has passed.
        """
        self.check()
        waited = time.monotonic() - self.begun
        if waited > min(self.timeout, patience):
            raise ValueError(f"{self.me}: waited {waited:.0f} s for {waiting_for}{cure}")
        if waited > NOTICE and not self.noticed:
            self.noticed = True
            print(f"warning: {self.me}: waiting for {waiting_for}", file=sys.stderr, flush=True)
        time.sleep(POLL)

    def open(self) -> Store:
        """Open the store at the address of rank 0: as its server in rank 0, unless torchrun is that."""
        while True:
            try:
                socket.getaddrinfo(self.host, self.port)
                break
            except OSError as error:
                name = f"an address of the first node {self.host!r} ({error.strerror})"
            self._pause(name, "; correct MASTER_ADDR (--init_method)", PATIENCE)
        agent = os.environ.get("TORCHELASTIC_USE_AGENT_STORE") == "True"
        return self._serve() if self.me.rank == 0 and not agent else self._connect()

    def _serve(self) -> Store:
        while True:
            try:
                with _quiet():
                    return self._store(PATIENCE / 2, is_master=True)
            except RuntimeError as error:
                if "EADDRINUSE" not in str(error):
                    raise ValueError(
                        f"{self.me}: cannot listen at {self.host}:{self.port} ({_first_line(error)}); correct "
                        "MASTER_ADDR and MASTER_PORT (--init_method)"
                    ) from error
            # another rank 0 may use the port: if it counts this one, both raise the fault
            if store := self._try_to_connect(PATIENCE / 4):
                with contextlib.suppress(RuntimeError):
                    self.follow(store, PATIENCE / 4)
            # the last process of an earlier attempt may still have the port
            self._pause(
                f"port {self.port}, which is in use by another program",
                "; choose another MASTER_PORT (--init_method)", PATIENCE,
            )  # fmt: skip

    def _connect(self) -> Store:
        while True:
            try:
                socket.create_connection((self.host, self.port), timeout=5).close()
                break
            except OSError as error:
                reason = error.strerror or "no answer"
            self._pause(f"rank 0 at {self.host}:{self.port} ({reason})", "; is it started?")
        if store := self._try_to_connect(PATIENCE):
            return store
        raise ValueError(
            f"{self.me}: the program at {self.host}:{self.port} is not rank 0 of this job; see its message, or "
            "choose another MASTER_PORT (--init_method)"
        )

    def _try_to_connect(self, seconds: float) -> Store | None:
        """Connect in a thread, since PyTorch waits without limit for the first answer of a listener."""
        stores: list[Store] = []

        def connect() -> None:
            with contextlib.suppress(RuntimeError):
                stores.append(self._store(seconds / 3, is_master=False))

        thread = threading.Thread(target=connect, daemon=True)
        with _quiet():
            thread.start()
            until = time.monotonic() + seconds
            while thread.is_alive() and time.monotonic() < until:
                self.check()
                thread.join(POLL)
        return stores[0] if stores else None

    def _store(self, seconds: float, is_master: bool) -> Store:
        patience = timedelta(seconds=seconds)
        return TCPStore(self.host, self.port, is_master=is_master, wait_for_workers=False, timeout=patience)

    def lead(self, store: Store) -> str:
        """Count the members of a new session; return its name."""
        session, members, faulty_since = self.me.token, [self.me], None
        store.set("session", session)
        while True:
            with _quiet():
                while store.check([f"{session}/{len(members)}"]):
                    members.append(Member(*json.loads(store.get(f"{session}/{len(members)}"))))
            if fault := _fault(members):
                faulty_since = faulty_since or time.monotonic()
                if time.monotonic() > faulty_since + 1:  # for processes that are still connecting
                    self._close(store, members, fault)
            elif len(members) == self.me.world:
                self._close(store, members)
                return session
            absent = sorted(set(range(self.me.world)) - {member.rank for member in members})
            names = ", ".join(map(str, absent[:8])) + ", ..." * (len(absent) > 8)
            self._pause(f"rank{'s' * (len(absent) > 1)} {names}", "; start the processes of the other machines")

    def _close(self, store: Store, members: Sequence[Member], fault: str = "") -> None:
        """End the count, with the same error in all members if there is a fault.

        Raises:
            ValueError: the fault.
        """
        store.set(f"{self.me.token}/verdict", json.dumps([[member.token for member in members], fault]))
        if fault:
            until = time.monotonic() + PATIENCE / 4  # the store ends with this process
            while store.add("read", 0) < len(members) - 1 and time.monotonic() < until:
                time.sleep(POLL)
            raise ValueError(fault)

    def follow(self, store: Store, patience: float = inf) -> str:
        """Join the newest session until rank 0 has counted all processes; return its name, "" after `patience`."""
        session, until = "", time.monotonic() + patience
        while time.monotonic() < until:
            with _quiet():
                newest = store.get("session").decode() if store.check(["session"]) else ""
                if newest != session:
                    session = newest
                    store.set(f"{session}/{store.add(f'{session}/count', 1)}", json.dumps(self.me))
                if session and self._is_counted(store, session):
                    return session
            self._pause("the other processes, which rank 0 counts")
        return ""

    def _is_counted(self, store: Store, session: str) -> bool:
        """Return whether the session is complete, with this process.

        Raises:
            ValueError: rank 0 has found a fault.
        """
        if not store.check([f"{session}/verdict"]):
            return False
        tokens, fault = json.loads(store.get(f"{session}/verdict"))
        if self.me.token in tokens and fault:
            store.add("read", 1)
            raise ValueError(fault)
        return self.me.token in tokens


def _fault(members: Sequence[Member]) -> str:
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


@contextmanager
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
