"""Reading in a process of its own, which can be killed when a decoder hangs or crashes.

A decoder that hangs does so in C, where neither an exception nor a signal handler of Python reaches it, and a thread
that hangs stays for ever: only a process can be ended. It must not be the loader's worker, whose death ends the run. So
every thread that reads has one process beside it, started with the first read and again after a kill. It is a fresh
interpreter, not a fork: that is right after CUDA was initialized, under every start method and in daemonic workers, and
it inherits no open files. Requests and frame counts go through a socket; frames come back through memory that both
processes map. It ends with the thread that started it, however that ends.
"""

from __future__ import annotations

import contextlib
import ctypes
import logging
import math
import mmap
import multiprocessing
import os
import select
import signal
import socket
import subprocess
import sys
import threading
import time
import traceback
import weakref
from collections.abc import Callable, Sequence
from multiprocessing.connection import Connection
from typing import Any

import cv2
import numpy as np

from slowfast.datasets.backends import check_backend
from slowfast.datasets.container import MediaError, size_of, why_not
from slowfast.datasets.reader import read_frames
from slowfast.utils.memory import keep_memory, memory_file

logger = logging.getLogger(__name__)

START = (
    "import sys; sys.path[:] = sys.argv[5:]; from slowfast.datasets.guarded import serve; "
    "serve(sys.argv[1], *map(int, sys.argv[2:5]))"
)
PR_SET_PDEATHSIG = 1  # linux/prctl.h
# Seconds until a process that does not even begin is given up; importing from a busy network drive takes its time.
START_LIMIT = 300.0
SLOW = "every read decodes it from the beginning to the end ({}): prepare_data.py reencode makes a faster copy"
MAX_POLL = 1e6  # seconds; poll(2) counts milliseconds in 31 bits
# Ctrl-C, and what a cluster sends to every process of a job that is to save its work and end.
FOR_THE_OWNER = (signal.SIGINT, signal.SIGTERM, signal.SIGHUP, signal.SIGUSR1, signal.SIGUSR2)


def read_frames_within(seconds: float, path: str, choose: Callable[[int], Sequence[int]], **options: Any) -> np.ndarray:
    """`read_frames` with a limit on the time it takes.

    Args:
        seconds: limit of one read; 0 reads in this process, without a limit.
        path: as for `read_frames`.
        choose: as for `read_frames`; it is called in this process.
        options: the keyword arguments of `read_frames`.

    Returns:
        As `read_frames`; with a limit, an array that must not be written to and is gone with the next read.

    Raises:
        MediaError: as `read_frames`; also, the time is over, or the decoder crashed.
    """
    if not seconds:
        return read_frames(path, choose, **options)
    backend = options.get("backend", "pyav")
    reader = vars(_local).get(backend)
    if reader is None or not reader.alive():
        reader = vars(_local)[backend] = _Reader(backend)
    return reader.read(seconds, path, choose, options)


class _Reader:
    """This side of the process."""

    def __init__(self, backend: str) -> None:
        self.memory = memory_file("frames")
        self.mapped: mmap.mmap | None = None
        ours, theirs = socket.socketpair()
        self.connection = Connection(ours.detach())
        self.poll = select.poll()
        self.poll.register(self.connection, select.POLLIN)
        parent = multiprocessing.parent_process()  # of a worker; None in the main process
        if parent is not None:
            self.poll.register(parent.sentinel, select.POLLIN)
        with theirs:
            numbers = (theirs.fileno(), self.memory, os.getpid())
            self.process = subprocess.Popen(
                [sys.executable, "-c", START, backend, *map(str, numbers), *sys.path],
                pass_fds=numbers[:2],
                stdin=subprocess.DEVNULL,
            )
        self.close = weakref.finalize(self, _end, self.connection, self.memory, self.process, os.getpid())
        try:
            if not self.connection.poll(START_LIMIT):
                raise RuntimeError(f"the process that decodes has not started within {START_LIMIT:g} s")
            self.connection.recv()  # the imports are done
        except (EOFError, ConnectionError):
            self.close()
            raise RuntimeError("the process that decodes could not start; its message is above") from None
        except BaseException:
            self.close()
            raise

    def alive(self) -> bool:
        return self.close.alive and self.process.poll() is None

    def read(
        self, seconds: float, path: str, choose: Callable[[int], Sequence[int]], options: dict[str, Any]
    ) -> np.ndarray:
        end = time.monotonic() + seconds
        slow = ""
        try:
            self.connection.send((path, options))
            while True:
                if not self._wait(end):
                    raise MediaError(path, _late(seconds, slow))
                kind, value = self.connection.recv()
                if kind == "length":
                    self.connection.send([int(index) for index in choose(value)])
                elif kind == "log":
                    logger.info(value)
                elif kind == "slow":
                    slow = value
                else:
                    break
        except (EOFError, ConnectionError):
            self.close()
            raise MediaError(path, _crash(path, self.process.returncode)) from None
        except BaseException:  # also one of `choose`: what comes back later would be taken for the next answer
            self.close()
            raise
        if kind == "frames":
            return self._frames(path, value)
        if kind == "media error":
            raise MediaError(*value)
        raise RuntimeError(f"{path} cannot be read:\n{value}")

    def _wait(self, end: float) -> bool:
        """Return whether the decoder process has sent something before the time `end`."""
        left = min(max(end - time.monotonic(), 0), MAX_POLL)
        ready = dict(self.poll.poll(1000 * left))
        if ready and self.connection.fileno() not in ready:
            sys.exit("the process that wanted the frames is gone")
        return bool(ready)

    def _frames(self, path: str, shape: tuple[int, ...]) -> np.ndarray:
        if self.mapped is None or len(self.mapped) < math.prod(shape):
            try:
                self.mapped = mmap.mmap(self.memory, 0, prot=mmap.PROT_READ)
            except (OSError, MemoryError) as error:
                raise MediaError(path, why_not(path, error, f"{shape[0]} frames of {shape[2]}x{shape[1]}")) from None
        return np.frombuffer(self.mapped, np.uint8, math.prod(shape)).reshape(shape)


def _late(seconds: float, slow: str) -> str:
    reason = f"decoding took longer than {seconds:g} s (DATA_LOADER.DECODE_TIMEOUT)"
    return f"{reason}; {SLOW.format(slow)}" if slow else reason


def _crash(path: str, code: int) -> str:
    reason = f"the decoder crashed (exit code {code})"
    if code == -signal.SIGKILL:
        reason += f": killed, most likely because memory ran out ({size_of(path)})"
    return reason


def _end(connection: Connection, memory: int, process: subprocess.Popen, owner: int) -> None:
    """End the process; a fork of its owner only lets go of it."""
    connection.close()
    os.close(memory)
    if os.getpid() == owner:
        process.kill()
        with contextlib.suppress(subprocess.TimeoutExpired):  # it may wait for a file server that is gone
            process.wait(5)


_local = threading.local()
os.register_at_fork(after_in_child=lambda: vars(_local).clear())


def serve(backend: str, socket_number: int, memory: int, owner: int) -> None:
    """The other side: read for the process `owner` until it is gone.

    Args:
        backend: to load before the first read, whose time counts.
        socket_number: descriptor of the connection.
        memory: descriptor of the memory for frames.
        owner: process id.
    """
    for number in FOR_THE_OWNER:
        signal.signal(number, signal.SIG_IGN)
    if sys.platform == "linux":
        ctypes.CDLL(None).prctl(PR_SET_PDEATHSIG, signal.SIGKILL)  # even while a decoder hangs
    cv2.setNumThreads(0)
    keep_memory()
    check_backend(backend)
    connection = Connection(socket_number)
    package = logging.getLogger("slowfast")
    package.setLevel(logging.INFO)
    package.addHandler(_ToOwner(connection))
    if os.getppid() != owner:
        return
    connection.send(("ready", None))
    # What decoders remark about every odd packet; what matters is in the answers.
    os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stderr.fileno())
    mapped: mmap.mmap | None = None

    def allocate(shape: tuple[int, ...]) -> np.ndarray:
        nonlocal mapped
        size = math.prod(shape)
        if mapped is None or len(mapped) < size:
            os.ftruncate(memory, size)
            mapped = mmap.mmap(memory, 0)
        return np.frombuffer(mapped, np.uint8, size).reshape(shape)

    def choose(length: int) -> Sequence[int]:
        connection.send(("length", length))
        return connection.recv()

    arguments = {"allocate": allocate, "report_slow": lambda reason: connection.send(("slow", reason))}
    with contextlib.suppress(EOFError, ConnectionError):  # the owner is gone
        while True:
            path, options = connection.recv()
            try:
                frames = read_frames(path, choose, **arguments, **options)
            except MediaError as error:
                connection.send(("media error", (error.path, error.reason)))
                continue
            except (EOFError, ConnectionError):
                raise
            except Exception:
                connection.send(("failure", traceback.format_exc()))
                continue
            connection.send(("frames", frames.shape))


class _ToOwner(logging.Handler):
    """Sends what would be logged to the process that can."""

    def __init__(self, connection: Connection) -> None:
        super().__init__()
        self.connection = connection

    def emit(self, record: logging.LogRecord) -> None:
        self.connection.send(("log", self.format(record)))
