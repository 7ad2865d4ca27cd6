"""Call functions in a separate process, which is killed when a decoder blocks or crashes; read videos in this way.

A decoder that blocks does so in C code, which neither a Python exception nor a Python signal handler can interrupt. A
thread cannot be killed, but a process can. It must not be the loader's worker, because the run would end with it.
Therefore every thread that reads has one decoder process, which starts with the first read and again after a kill.

The decoder process is a new interpreter, not a fork. This works after CUDA was initialized, with every start method,
and in daemonic workers, which cannot start processes with `multiprocessing`; and it inherits no open files.
Requests and frame counts go through a socket; frames return through memory that both processes map. The process exits
with the thread that started it.
"""

from __future__ import annotations

import contextlib
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
from multiprocessing.connection import Connection
from typing import Any

import cv2
import numpy as np

from slowfast.datasets.backends import check_backend
from slowfast.datasets.container import MediaError, size_of, why_not
from slowfast.datasets.reader import read_frames
from slowfast.utils.memory import keep_memory, memory_file
from slowfast.utils.processes import be_killed_with_parent

logger = logging.getLogger(__name__)

Choose = Callable[[int], Sequence[int]]

START = (
    "import sys; sys.path[:] = sys.argv[3:]; from slowfast.datasets.guarded import serve; "
    "serve(*map(int, sys.argv[1:3]))"
)
START_LIMIT = 300.0  # limit of the imports in seconds; they are slow from a busy network drive
MAX_POLL = 1e6  # seconds; poll(2) counts milliseconds in 31 bits
ENDED = (EOFError, ConnectionError)  # the process at the other end of a connection exited
# Ctrl-C, and the signals that a cluster sends to every process of a job; the owner handles them.
FOR_THE_OWNER = (signal.SIGINT, signal.SIGTERM, signal.SIGHUP, signal.SIGUSR1, signal.SIGUSR2)

_local = threading.local()
os.register_at_fork(after_in_child=lambda: vars(_local).clear())


def read_frames_within(seconds: float, path: str, choose: Choose, **options: Any) -> np.ndarray:
    """Call `read_frames`, with its keyword arguments `options`, in a decoder process, for at most `seconds`.

    If `seconds` is 0, read in this process, without a limit. `choose` is always called in this process.

    Returns:
        The frames, as `read_frames`; with a limit, in a read-only array that is valid until the next read.

    Raises:
        MediaError: see `read_frames`; also, the limit was exceeded, or the decoder crashed.
    """
    if not seconds:
        return read_frames(path, choose, **options)
    backend = options.get("backend", "pyav")
    decoder = vars(_local).get(backend)
    if decoder is None or not decoder.alive():
        decoder = vars(_local)[backend] = _Decoder(backend)
    return decoder.read(seconds, path, choose, options)


class _Memory:
    """Memory for frames that two processes map; it grows to the size of the largest video."""

    def __init__(self, descriptor: int, protection: int) -> None:
        self.descriptor = descriptor
        self.protection = protection
        self.mapped: mmap.mmap | None = None

    def array(self, shape: tuple[int, ...]) -> np.ndarray:
        size = math.prod(shape)
        if self.mapped is None or len(self.mapped) < size:
            if os.fstat(self.descriptor).st_size < size:
                os.ftruncate(self.descriptor, size)
            self.mapped = mmap.mmap(self.descriptor, 0, prot=self.protection)
        return np.frombuffer(self.mapped, np.uint8, size).reshape(shape)


class Ended(Exception):
    """A process was killed after the time limit of a call, or exited during the call; `code` is its exit code then."""

    def __init__(self, code: int | None = None) -> None:
        self.code = code


class Killable:
    """A process that calls one function for the thread that started it, and is killed if a call takes too long.

    Args:
        make: importable; `make(connection, *arguments)` returns the function in the process. The function must not
            raise exceptions. It can send messages (kind, value) through the connection, and receive replies.
        arguments: of `make`.
        inherited: open files for the process; they are closed with it.

    Raises:
        RuntimeError: the process cannot start.
    """

    def __init__(self, make: Callable[..., Any], *arguments: Any, inherited: Sequence[int] = ()) -> None:
        self.connection, theirs = multiprocessing.Pipe()
        parent = multiprocessing.parent_process()  # of a worker; None in the main process
        self.poll = select.poll()
        for source in (self.connection, *([parent.sentinel] if parent else [])):
            self.poll.register(source, select.POLLIN)
        # the process inherits the blocked signals, which it does not ignore before its imports
        unblocked = signal.pthread_sigmask(signal.SIG_BLOCK, FOR_THE_OWNER)
        try:
            with theirs:
                self.process = subprocess.Popen(
                    [sys.executable, "-c", START, str(theirs.fileno()), str(os.getpid()), *sys.path],
                    pass_fds=(theirs.fileno(), *inherited),
                    stdin=subprocess.DEVNULL,
                )
        finally:
            signal.pthread_sigmask(signal.SIG_SETMASK, unblocked)
        self.close = weakref.finalize(self, _end, self.connection, inherited, self.process, os.getpid())
        try:
            self.call(START_LIMIT, make, *arguments)
        except Ended as end:
            reason = "could not start; see its message above"
            if end.code is None:
                reason = f"has not started within {START_LIMIT:g} s"
            raise RuntimeError(f"the decoder process {reason}") from None

    def alive(self) -> bool:
        return self.close.alive and self.process.poll() is None

    def call(
        self, seconds: float, *arguments: Any, answer: Callable[[str, Any], None] = lambda kind, value: None
    ) -> Any:
        """Return the result of the function; `answer` is called with each message that the function sends.

        Raises:
            Ended: the call took longer than `seconds`, or the process exited.
        """
        end = time.monotonic() + seconds
        try:
            self.connection.send(arguments)
            while message := self._receive(end):
                kind, value = message
                if kind == "result":
                    return value
                answer(kind, value)
        except BaseException as error:  # of `answer` too: the next call must not get a message of this one
            self.close()
            if not isinstance(error, ENDED):
                raise
            raise Ended(self.process.returncode) from None
        self.close()
        raise Ended

    def _receive(self, end: float) -> tuple[str, Any] | None:
        """Return the next message of the process, or None after the time `end`."""
        left = min(max(end - time.monotonic(), 0), MAX_POLL)
        ready = dict(self.poll.poll(1000 * left))
        if ready and self.connection.fileno() not in ready:
            sys.exit("the process that requested the frames has exited")
        return self.connection.recv() if ready else None


def _end(connection: Connection, inherited: Sequence[int], process: subprocess.Popen[bytes], owner: int) -> None:
    """Close the connection, and kill the process unless this is a fork of its owner."""
    connection.close()
    for descriptor in inherited:
        os.close(descriptor)
    if os.getpid() == owner:
        process.kill()
        with contextlib.suppress(subprocess.TimeoutExpired):  # it may block on a file server that is gone
            process.wait(5)


def serve(socket_number: int, owner: int) -> None:
    """Make a function, and call it for the process `owner` until that exits; see `Killable`."""
    for number in FOR_THE_OWNER:
        signal.signal(number, signal.SIG_IGN)
    be_killed_with_parent()
    cv2.setNumThreads(0)
    keep_memory()
    connection = Connection(socket_number)
    if os.getppid() != owner:
        return
    with contextlib.suppress(*ENDED):
        make, *arguments = connection.recv()
        function = make(connection, *arguments)
        connection.send(("result", None))
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stderr.fileno())  # messages of decoders about odd packets
        while True:
            connection.send(("result", function(*connection.recv())))


class _Decoder(Killable):
    """A process that reads videos into memory that it shares with its owner."""

    def __init__(self, backend: str) -> None:
        self.memory = _Memory(memory_file("frames"), mmap.PROT_READ)
        descriptor = self.memory.descriptor
        super().__init__(_make_reader, backend, descriptor, inherited=[descriptor])

    def read(self, seconds: float, path: str, choose: Choose, options: dict[str, Any]) -> np.ndarray:
        slow = ""

        def answer(kind: str, value: Any) -> None:
            nonlocal slow
            if kind == "length":
                self.connection.send([int(index) for index in choose(value)])
            elif kind == "log":
                logger.info(value)
            else:
                slow = f"; every read decodes the whole file ({value}): prepare_data.py reencode makes a faster copy"

        try:
            found = self.call(seconds, path, options, answer=answer)
        except Ended as end:
            reason = f"decoding took longer than {seconds:g} s (decode_timeout){slow}"
            if end.code is not None:
                why = f": killed, most likely because memory ran out ({size_of(path)})"
                reason = f"the decoder crashed (exit code {end.code})" + why * (end.code == -signal.SIGKILL)
            raise MediaError(path, reason) from None
        if isinstance(found, Exception):
            raise found
        try:
            return self.memory.array(found)
        except (OSError, MemoryError) as error:
            raise MediaError(path, why_not(path, error, f"{found[0]} frames of {found[2]}x{found[1]}")) from None


def _make_reader(connection: Connection, backend: str, descriptor: int) -> Callable[..., Any]:
    """Return a function in the decoder process that reads a video into the memory `descriptor`.

    It returns the shape of the frames, or the exception to be raised.
    """
    check_backend(backend)
    memory = _Memory(descriptor, mmap.PROT_READ | mmap.PROT_WRITE)
    handler = logging.Handler()
    handler.emit = lambda record: connection.send(("log", record.getMessage()))
    package = logging.getLogger("slowfast")
    package.setLevel(logging.INFO)
    package.addHandler(handler)

    def choose(length: int) -> Sequence[int]:
        connection.send(("length", length))
        return connection.recv()

    def report_slow(reason: str) -> None:
        connection.send(("slow", reason))

    def read(path: str, options: dict[str, Any]) -> Any:
        try:
            return read_frames(path, choose, allocate=memory.array, report_slow=report_slow, **options).shape
        except MediaError as error:
            return error
        except ENDED:
            raise
        except Exception:
            return RuntimeError(f"{path} cannot be read:\n{traceback.format_exc()}")

    return read
