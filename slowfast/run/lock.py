"""Allow one run at a time in a folder: a lease file names the process that runs there, which renews it.

It needs neither locks of the file system, which network drives often lack, nor clocks that agree: a file is created
only where there is none, and ages are differences of two times that the file system has set.
"""

from __future__ import annotations

import contextlib
import json
import logging
import os
import secrets
import socket
import sys
import tempfile
import threading
import time
from collections.abc import Generator
from dataclasses import asdict, dataclass, field
from pathlib import Path

from slowfast.run import interrupt
from slowfast.run.watchdog import progress
from slowfast.utils import distributed

logger = logging.getLogger(__name__)

# Name of the lease of a training, in OUTPUT_DIR.
TRAINING = "train.lock"

# Seconds between two renewals, and of silence after which a holder on another machine counts as dead.
BEAT = 15.0
STALE = 120.0

# Seconds to wait for a holder to exit, for example a process whose launcher was killed.
PATIENCE = 5.0


def _machine() -> str:
    """Return an identifier of the process table: host, its last boot, and namespace of processes."""
    parts = [socket.gethostname()]
    with contextlib.suppress(OSError):
        parts += [Path("/proc/sys/kernel/random/boot_id").read_text().strip(), os.readlink("/proc/self/ns/pid")]
    return " ".join(parts)


def _started(pid: int) -> str | None:
    """Return when a process of this machine started, in ticks; "" if that is hidden, None if it does not run."""
    try:
        os.kill(pid, 0)
    except ProcessLookupError:
        return None
    except PermissionError:
        pass  # of another user
    try:
        fields = Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()
    except OSError:
        return ""
    return None if fields[0] in "ZX" else fields[19]


@dataclass(frozen=True)
class Holder:
    """The process that holds a lease."""

    host: str = field(default_factory=distributed.host)
    pid: int = field(default_factory=os.getpid)
    since: str = field(default_factory=lambda: time.strftime("%Y-%m-%d %H:%M:%S"))
    machine: str = field(default_factory=_machine)
    started: str = field(default_factory=lambda: _started(os.getpid()) or "")
    token: str = field(default_factory=lambda: secrets.token_hex(8))

    def __str__(self) -> str:
        return f"process {self.pid} on {self.host}"

    def is_alive(self, me: Holder) -> bool | None:
        """Return whether the process runs; None if the process `me` cannot see it."""
        return _started(self.pid) in (self.started, "") if self.machine == me.machine else None


# The holder of a lease that is half written.
UNREADABLE = Holder("an unknown host", 0, "an unknown time", "", "", "")


def _create(path: Path, holder: Holder) -> bool:
    """Write a lease; return False if one exists."""
    try:
        with open(path, "x", encoding="utf-8") as file:
            file.write(json.dumps(asdict(holder)) + "\n")
    except FileExistsError:
        return False
    except OSError:
        path.unlink(missing_ok=True)  # for example of a full disk
        raise
    return True


def _read(path: Path) -> tuple[Holder, float] | None:
    """Return the holder of a lease and the time of its last renewal, or None if there is no lease.

    The file is opened for both, because a network drive answers other requests from its cache.
    """
    try:
        with open(path, encoding="utf-8") as file:
            renewed, text = os.fstat(file.fileno()).st_mtime, file.read()
    except FileNotFoundError:
        return None
    try:
        return Holder(**json.loads(text)), renewed
    except (ValueError, TypeError):
        return UNREADABLE, renewed


def _is_dead(path: Path, lease: tuple[Holder, float], me: Holder) -> bool:
    alive = lease[0].is_alive(me)
    if alive is not None:
        return not alive
    with tempfile.NamedTemporaryFile(dir=path.parent, prefix=".now.") as file:
        return os.fstat(file.fileno()).st_mtime - lease[1] > STALE


def is_held(path: Path) -> bool:
    """Return whether a running process holds a lease."""
    lease = _read(path)
    return lease is not None and not _is_dead(path, lease, Holder())


def _take_over(path: Path, dead: Holder, me: Holder) -> bool:
    """Replace the lease of a dead holder; return False if another process does so.

    The file of the claim is named after the dead holder, so that a single process can replace each lease.
    """
    claim = path.with_name(f"{path.name}.{dead.token}")
    if not _create(claim, me):
        other = _read(claim)
        if other and _is_dead(path, other, me):
            with contextlib.suppress(FileNotFoundError):
                os.replace(claim, path)  # complete an interrupted replacement
        return False
    lease = _read(path)
    if lease is None or lease[0].token != dead.token:
        claim.unlink()  # another process replaced it before this claim
        return False
    os.replace(claim, path)
    return True


def _take(path: Path, me: Holder, patience: float) -> bool:
    """Wait for a lease; return False if this process was asked to stop before."""
    path.parent.mkdir(parents=True, exist_ok=True)
    begun, noticed = time.monotonic(), False
    first_seen: dict[str, float] = {}  # renewals by holder
    while not _create(path, me):
        progress()
        if interrupt.received():
            return False
        if (lease := _read(path)) is None:
            continue
        holder, renewed = lease
        if _is_dead(path, lease, me) and _take_over(path, holder, me):
            return True
        waited = time.monotonic() - begun
        alive = holder.is_alive(me) or renewed > first_seen.setdefault(holder.token, renewed)
        if alive and waited > patience:
            raise ValueError(
                f"OUTPUT_DIR {str(path.parent)!r} is in use: {holder} has held {path.name} since {holder.since}; wait "
                "until it ends, stop it, or choose another OUTPUT_DIR"
            )
        if not noticed and waited > 2 * PATIENCE:
            noticed = True
            logger.warning("waiting for %s, which has held %s since %s", holder, path, holder.since)
        time.sleep(0.2)
    return True


def _renew(path: Path, me: Holder, released: threading.Event) -> None:
    while not released.wait(BEAT):
        with contextlib.suppress(OSError):  # a disk that is unavailable for a while
            lease = _read(path)
            if lease is None:  # the folder was deleted
                _create(path, me)
            elif lease[0].token == me.token:
                os.utime(path)
            elif lease[0] is not UNREADABLE:
                message = f"error: {path} was taken over by {lease[0]}, since {me} did not renew it for {STALE:g} s"
                print(message, file=sys.stderr, flush=True)
                os._exit(1)  # otherwise two runs would write the same files


@contextlib.contextmanager
def hold(path: Path, patience: float = PATIENCE) -> Generator[None]:
    """Hold a lease in the main process of the group, which renews it; call it in every process.

    Args:
        path: of the lease file; its folder is made.
        patience: seconds to wait for a running holder to exit.

    Raises:
        ValueError: in every process: another one holds the lease.
        Interruption: in every process: the main one was asked to stop while it waited.
    """
    me, released, main = Holder(), threading.Event(), distributed.is_main()
    if not distributed.on_main(lambda: _take(path, me, patience)):
        raise interrupt.Interruption(f"asked to stop while waiting for {path}")
    thread = threading.Thread(target=_renew, args=(path, me, released), name="lease", daemon=True)
    if main:
        thread.start()
    try:
        yield
    finally:
        released.set()
        if main:
            thread.join(1)
            with contextlib.suppress(OSError):
                lease = _read(path)
                if lease and lease[0].token == me.token:
                    path.unlink()
