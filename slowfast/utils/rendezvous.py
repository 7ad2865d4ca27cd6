"""Connect the processes of a job to a store, and report a failure with its cause within seconds.

Each attempt is a session with its own name. A process joins the newest session and takes part only after rank 0 has
counted it. Entries of an earlier attempt in a store that outlives it (that of torchrun's agent) are thus ignored.
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
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from datetime import timedelta
from typing import NamedTuple

from torch.distributed import PrefixStore, Store, TCPStore

# Seconds after which a name without an address, a port in use or a silent listener is a fault.
PATIENCE = 20.0

# Seconds after which a process prints the cause of its wait.
NOTICE = 10.0

POLL = 0.2


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
        check: called while waiting; its exceptions end the wait.

    Returns:
        A store that only the members of this group use.

    Raises:
        ValueError: two processes have the same rank, the address cannot be used, or a process did not join.
    """
    environment = os.environ
    me = Member(int(environment["RANK"]), int(environment["WORLD_SIZE"]), where, secrets.token_hex(8))
    return _Meeting(me, environment["MASTER_ADDR"], int(environment["MASTER_PORT"]), timeout, check).join()


class _Meeting:
    def __init__(self, me: Member, host: str, port: int, timeout: float, check: Callable[[], None]) -> None:
        self.me, self.host, self.port, self.timeout, self.check = me, host, port, timeout, check
        self.begun = time.monotonic()
        self.noticed = os.environ.get("LOCAL_RANK", "0") != "0"  # one process of each node prints

    def join(self) -> Store:
        agent = os.environ.get("TORCHELASTIC_USE_AGENT_STORE") == "True"
        try:
            store = self._host() if self.me.rank == 0 and not agent else self._connect()
            session = self._lead(store) if self.me.rank == 0 else self._follow(store)
        except RuntimeError as error:  # DistError, and before PyTorch 2.7 no class of its own
            raise ValueError(
                f"{self.me}: the connection to {self.host}:{self.port} was lost before all processes had joined "
                f"({_first_line(error)}); see the message of rank 0"
            ) from error
        store.set_timeout(timedelta(seconds=self.timeout))
        return PrefixStore(session, store)

    def _pause(self, waiting_for: str) -> None:
        """Wait a little.

        Raises:
            ValueError: `timeout` has passed.
        """
        self.check()
        waited = time.monotonic() - self.begun
        if waited > self.timeout:
            raise ValueError(f"{self.me}: waited {waited:.0f} s (DIST_TIMEOUT) for {waiting_for}")
        if waited > NOTICE and not self.noticed:
            self.noticed = True
            print(f"warning: {self.me}: waiting for {waiting_for}", file=sys.stderr, flush=True)
        time.sleep(POLL)

    def _host(self) -> Store:
        """Open the store at the address of rank 0."""
        self._resolve()
        begun = time.monotonic()
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
            self._meet_a_twin()
            # the last process of an earlier attempt may still have the port
            if time.monotonic() > begun + PATIENCE:
                raise ValueError(
                    f"{self.me}: port {self.port} is in use by another program; choose another MASTER_PORT "
                    "(--init_method)"
                )
            self._pause(f"port {self.port}, which is in use")

    def _meet_a_twin(self) -> None:
        """Join the session at a port in use, so that another rank 0 which uses it detects this one.

        Raises:
            ValueError: in both processes, if there is another one.
        """
        if (store := self._try_to_connect(PATIENCE / 4)) is None:
            return
        with contextlib.suppress(RuntimeError), _quiet():
            _, session = self._register(store, "")
            until = time.monotonic() + PATIENCE / 4
            while session and time.monotonic() < until:
                self.check()
                self._verdict(store, session)
                time.sleep(POLL)

    def _resolve(self) -> None:
        begun = time.monotonic()
        while True:
            try:
                socket.getaddrinfo(self.host, self.port)
                return
            except OSError as error:
                reason = error.strerror
            if time.monotonic() > begun + PATIENCE:
                raise ValueError(
                    f"{self.me}: the first node {self.host!r} has no address ({reason}); correct MASTER_ADDR "
                    "(--init_method)"
                )
            self._pause(f"an address of the first node {self.host!r} ({reason})")

    def _connect(self) -> Store:
        """Connect to the store at the address of rank 0 when it is open."""
        self._resolve()
        while True:
            try:
                socket.create_connection((self.host, self.port), timeout=5).close()
                break
            except OSError as error:
                reason = error.strerror or "no answer"
            self._pause(f"rank 0 at {self.host}:{self.port} ({reason}); is it started?")
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

    def _lead(self, store: Store) -> str:
        """Count the members of a new session; return its name."""
        session = self.me.token
        members = [self.me]
        store.set("leader", json.dumps(self.me))
        faulty_since = None
        while True:
            with _quiet():
                while store.check([f"{session}/{len(members)}"]):
                    members.append(Member(*json.loads(store.get(f"{session}/{len(members)}"))))
                leader = Member(*json.loads(store.get("leader")))
                self._verdict(store, session)
            present = [*members, leader] if leader.token != session else members
            if fault := _fault(present):
                faulty_since = faulty_since or time.monotonic()
                if time.monotonic() > faulty_since + 1:  # for processes that are still connecting
                    self._close(store, present, fault)
            elif len(members) == self.me.world:
                store.set(f"{session}/verdict", json.dumps([[member.token for member in members], ""]))
                return session
            absent = sorted(set(range(self.me.world)) - {member.rank for member in members})
            names = ", ".join(map(str, absent[:8])) + ", ..." * (len(absent) > 8)
            self._pause(f"rank{'s' * (len(absent) > 1)} {names}; start the processes of the other machines")

    def _close(self, store: Store, present: Sequence[Member], fault: str) -> None:
        """End the session with the same error in all processes that have joined.

        Raises:
            ValueError: the fault.
        """
        verdict = json.dumps([[member.token for member in present], fault])
        sessions = {self.me.token, *(member.token for member in present if member.rank == 0)}
        for session in sessions:
            store.set(f"{session}/verdict", verdict)
        until = time.monotonic() + PATIENCE / 4  # the store ends with this process
        while store.add("read", 0) < len(present) - 1 and time.monotonic() < until:
            time.sleep(POLL)
        raise ValueError(fault)

    def _follow(self, store: Store) -> str:
        """Join the newest session until its leader has counted this process in; return its name."""
        session = ""
        while True:
            with _quiet():
                leader, session = self._register(store, session)
                if session and self._verdict(store, session):
                    return session
            self._pause(f"the other processes, counted by {leader or 'rank 0'}")

    def _register(self, store: Store, session: str) -> tuple[Member | None, str]:
        """Join the newest session, unless it is `session`; return its leader and its name, "" if there is none."""
        if not store.check(["leader"]):
            return None, ""
        leader = Member(*json.loads(store.get("leader")))
        if leader.token != session:
            store.set(f"{leader.token}/{store.add(f'{leader.token}/count', 1)}", json.dumps(self.me))
        return leader, leader.token

    def _verdict(self, store: Store, session: str) -> bool:
        """Return whether the session is complete, with this process.

        Raises:
            ValueError: its leader found a fault.
        """
        if not store.check([f"{session}/verdict"]):
            return False
        tokens, fault = json.loads(store.get(f"{session}/verdict"))
        if self.me.token not in tokens:
            return False
        if fault:
            store.add("read", 1)
            raise ValueError(fault)
        return True


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
def _quiet() -> Iterator[None]:
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
