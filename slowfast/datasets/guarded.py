"""Read videos in a separate process, which is killed when a decoder blocks or crashes.

A decoder that blocks does so in C code, which neither a Python exception nor a Python signal handler can interrupt. A
thread cannot be killed, but a process can. It must not be the loader's worker, because the run would end with it.
Therefore every thread that reads has one decoder process, which starts with the first read and again after a kill.

The decoder process is a new interpreter, not a fork. This works after CUDA was initialized, with every start method,
and in daemonic workers, which cannot start processes with `multiprocessing`; and it inherits no open files.
Requests and frame counts go through a socket; frames are written to shared memory that the requesting process chooses.
The process exits with the thread that started it.
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
import subprocess
import sys
import threading
import time
import traceback
import weakref
from collections.abc import Callable, Sequence
from functools import partial
from multiprocessing.connection import Connection
from multiprocessing.reduction import recv_handle, send_handle
from typing import Any

import cv2
import numpy as np

from slowfast.datasets.backends import check_backend
from slowfast.datasets.container import MediaError, size_of, why_not
from slowfast.datasets.reader import read_frames
from slowfast.utils.memory import keep_memory, memory_file

logger = logging.getLogger(__name__)

Choose = Callable[[int], Sequence[int]]
# From a shape to an array, the descriptor of the shared memory that contains it, and the place of the array in it.
Allocate = Callable[[tuple[int, ...]], tuple[np.ndarray, int, int] | None]

START = (
    "import sys; sys.path[:] = sys.argv[4:]; from slowfast.datasets.guarded import serve; "
    "serve(sys.argv[1], *map(int, sys.argv[2:4]))"
)
PR_SET_PDEATHSIG = 1  # linux/prctl.h
START_LIMIT = 300.0  # limit of the imports in seconds; they are slow from a busy network drive
MAX_MAPPED = 128  # memory files that a decoder process keeps mapped
MAX_POLL = 1e6  # seconds; poll(2) counts milliseconds in 31 bits
ENDED = (EOFError, ConnectionError)  # the process at the other end of a connection exited
# Ctrl-C, and the signals that a cluster sends to every process of a job; the owner handles them.
FOR_THE_OWNER = (signal.SIGINT, signal.SIGTERM, signal.SIGHUP, signal.SIGUSR1, signal.SIGUSR2)

_local = threading.local()
os.register_at_fork(after_in_child=lambda: vars(_local).clear())


def read_frames_within(
    seconds: float, path: str, choose: Choose, allocate: Allocate | None = None, **options: Any
) -> np.ndarray:
    """Call `read_frames` with a limit on its time.

    Args:
        seconds: limit of one read; 0 reads in this process, without a limit.
        path: as for `read_frames`.
        choose: as for `read_frames`; it is called in this process.
        allocate: function that is called with the shape of the frames, and returns an array in shared memory for them,
            or None.
        options: the keyword arguments of `read_frames`.

    Returns:
        The frames, as `read_frames`, in the array of `allocate`. Without one and with a limit, they are in a read-only
        array that is valid until the next read.

    Raises:
        MediaError: see `read_frames`; also, the limit was exceeded, or the decoder crashed.
    """
    if not seconds:
        return read_frames(path, choose, allocate=partial(_allocate_here, allocate), **options)
    backend = options.get("backend", "pyav")
    decoder = vars(_local).get(backend)
    if decoder is None or not decoder.alive():
        decoder = vars(_local)[backend] = _Decoder(backend)
    return decoder.read(seconds, path, choose, allocate, options)


def _allocate_here(allocate: Allocate | None, shape: tuple[int, ...]) -> np.ndarray:
    place = allocate and allocate(shape)
    return place[0] if place else np.empty(shape, np.uint8)


class _Memory:
    """Shared memory for the frames of one video after another; it grows to the size of the largest one."""

    def __init__(self) -> None:
        self.descriptor = memory_file("frames")
        self.mapped: mmap.mmap | None = None

    def allocate(self, shape: tuple[int, ...]) -> tuple[np.ndarray, int, int]:
        size = math.prod(shape)
        if self.mapped is None or len(self.mapped) < size:
            os.ftruncate(self.descriptor, size)
            self.mapped = mmap.mmap(self.descriptor, size, prot=mmap.PROT_READ)
        return np.frombuffer(self.mapped, np.uint8, size).reshape(shape), self.descriptor, 0


class _Decoder:
    """Handle of a decoder process in the process that owns it."""

    def __init__(self, backend: str) -> None:
        self.memory = _Memory()
        self.connection, theirs = multiprocessing.Pipe()
        parent = multiprocessing.parent_process()  # of a worker; None in the main process
        self.poll = select.poll()
        for source in (self.connection, *([parent.sentinel] if parent else [])):
            self.poll.register(source, select.POLLIN)
        with theirs:
            self.process = subprocess.Popen(
                [sys.executable, "-c", START, backend, str(theirs.fileno()), str(os.getpid()), *sys.path],
                pass_fds=[theirs.fileno()],
                stdin=subprocess.DEVNULL,
            )
        self.close = weakref.finalize(self, _end, self.connection, self.memory.descriptor, self.process, os.getpid())
        try:
            if self._receive(time.monotonic() + START_LIMIT) is None:
                raise RuntimeError(f"the decoder process has not started within {START_LIMIT:g} s")
        except BaseException as error:
            self.close()
            if isinstance(error, ENDED):
                raise RuntimeError("the decoder process could not start; see its message above") from None
            raise

    def alive(self) -> bool:
        return self.close.alive and self.process.poll() is None

    def read(
        self, seconds: float, path: str, choose: Choose, allocate: Allocate | None, options: dict[str, Any]
    ) -> np.ndarray:
        try:
            kind, value = self._request(seconds, path, choose, allocate, options)
        except BaseException as error:  # of `choose` too: the next read must not get a message of this one
            self.close()
            if not isinstance(error, ENDED):
                raise
            code, why = self.process.returncode, ""
            if code == -signal.SIGKILL:
                why = f": killed, most likely because memory ran out ({size_of(path)})"
            raise MediaError(path, f"the decoder crashed (exit code {code}){why}") from None
        if kind == "media error":
            raise MediaError(*value)
        if kind == "failure":
            raise RuntimeError(f"{path} cannot be read:\n{value}")
        return value

    def _request(
        self, seconds: float, path: str, choose: Choose, allocate: Allocate | None, options: dict[str, Any]
    ) -> tuple[str, Any]:
        """Request frames, handle the messages of the decoder process, and return the last one, or the frames."""
        end, slow, frames = time.monotonic() + seconds, "", None
        self.connection.send((path, options))
        while message := self._receive(end):
            kind, value = message
            if kind == "length":
                self.connection.send([int(index) for index in choose(value)])
            elif kind == "shape":
                try:
                    frames, descriptor, start = (allocate and allocate(value)) or self.memory.allocate(value)
                except (OSError, MemoryError) as error:
                    what = f"{value[0]} frames of {value[2]}x{value[1]}"
                    raise MediaError(path, why_not(path, error, what)) from None
                self.connection.send(start)
                send_handle(self.connection, descriptor, self.process.pid)
            elif kind == "frames":
                return kind, frames
            elif kind == "log":
                logger.info(value)
            elif kind == "slow":
                slow = f"; every read decodes the whole file ({value}): prepare_data.py reencode makes a faster copy"
            else:
                return message
        raise MediaError(path, f"decoding took longer than {seconds:g} s (decode_timeout){slow}")

    def _receive(self, end: float) -> tuple[str, Any] | None:
        """Return the next message of the decoder process, or None after the time `end`."""
        left = min(max(end - time.monotonic(), 0), MAX_POLL)
        ready = dict(self.poll.poll(1000 * left))
        if ready and self.connection.fileno() not in ready:
            sys.exit("the process that requested the frames has exited")
        return self.connection.recv() if ready else None


def _end(connection: Connection, memory: int, process: subprocess.Popen[bytes], owner: int) -> None:
    """Close the connection, and kill the process unless this is a fork of its owner."""
    connection.close()
    os.close(memory)
    if os.getpid() == owner:
        process.kill()
        with contextlib.suppress(subprocess.TimeoutExpired):  # it may block on a file server that is gone
            process.wait(5)


def serve(backend: str, socket_number: int, owner: int) -> None:
    """Read for the process `owner` until it exits."""
    for number in FOR_THE_OWNER:
        signal.signal(number, signal.SIG_IGN)
    if sys.platform == "linux":
        ctypes.CDLL(None).prctl(PR_SET_PDEATHSIG, signal.SIGKILL)  # even while a decoder blocks
    cv2.setNumThreads(0)
    keep_memory()
    check_backend(backend)
    connection, mapped = Connection(socket_number), dict[int, mmap.mmap]()
    handler = logging.Handler()
    handler.emit = lambda record: connection.send(("log", record.getMessage()))
    package = logging.getLogger("slowfast")
    package.setLevel(logging.INFO)
    package.addHandler(handler)
    if os.getppid() != owner:
        return
    connection.send(("ready", None))
    os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stderr.fileno())  # messages of decoders about odd packets
    with contextlib.suppress(*ENDED):
        while True:
            connection.send(_reply(connection, mapped, *connection.recv()))


def _reply(connection: Connection, mapped: dict[int, mmap.mmap], path: str, options: dict[str, Any]) -> tuple[str, Any]:
    """Read a video, and return the last message to the owner."""

    def choose(length: int) -> Sequence[int]:
        connection.send(("length", length))
        return connection.recv()

    def allocate(shape: tuple[int, ...]) -> np.ndarray:
        connection.send(("shape", shape))
        start, size = connection.recv(), math.prod(shape)
        memory = _map(mapped, recv_handle(connection), start + size)
        return np.frombuffer(memory, np.uint8, size, start).reshape(shape)

    def report_slow(reason: str) -> None:
        connection.send(("slow", reason))

    try:
        read_frames(path, choose, allocate=allocate, report_slow=report_slow, **options)
        return "frames", None
    except MediaError as error:
        return "media error", (error.path, error.reason)
    except ENDED:
        raise
    except Exception:
        return "failure", traceback.format_exc()


def _map(mapped: dict[int, mmap.mmap], descriptor: int, size: int) -> mmap.mmap:
    """Return the memory of a descriptor, which is closed; memory stays mapped, because mapping takes long."""
    try:
        number = os.fstat(descriptor).st_ino
        memory = mapped.pop(number, None)
        if memory is None or len(memory) < size:
            memory = mmap.mmap(descriptor, 0)
    finally:
        os.close(descriptor)
    mapped[number] = memory
    if len(mapped) > MAX_MAPPED:
        del mapped[next(iter(mapped))]
    return memory
