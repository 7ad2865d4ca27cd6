"""Write files atomically, write JSON and CSV, compute checksums, and guard the standard streams of programs."""

from __future__ import annotations

import argparse
import contextlib
import csv
import errno
import hashlib
import io
import json
import os
import re
import secrets
import select
import sys
import tempfile
from collections.abc import Callable, Generator, Iterable
from pathlib import Path
from typing import Any, BinaryIO, NoReturn

# Characters that JSON text contains as numbers: bytes of names that are not UTF-8, as Python represents them, and line
# breaks beyond ASCII.
ESCAPED = re.compile("[\ud800-\udfff\x85\u2028\u2029]")

# errors of a disk, a file server or a quota, of which neither the program nor the content of a file is the cause
STORAGE_ERRORS = {errno.EIO, errno.ESTALE, errno.ESHUTDOWN, errno.ENOSPC, errno.EDQUOT, errno.EROFS}


def prepare_streams() -> None:
    """Open closed standard streams on the null device, and print ? for characters that the output cannot encode.

    Otherwise the next file that is opened gets the number of the closed stream, and libraries print into that file.
    """
    for name, mode in (("stdin", "r"), ("stdout", "w"), ("stderr", "w")):
        if getattr(sys, name) is None:
            number = os.open(os.devnull, os.O_RDWR)  # the lowest free number
            os.set_inheritable(number, True)
            setattr(sys, name, os.fdopen(number, mode, errors="replace", closefd=False))
    if isinstance(sys.stdout, io.TextIOWrapper):  # names of files and classes contain any character
        sys.stdout.reconfigure(errors="replace")


class Parser(argparse.ArgumentParser):
    """A parser of command lines whose errors are one line, without the options, which may fill a screen."""

    def error(self, message: str) -> NoReturn:
        """Print the message and end the program with exit code 2."""
        self.exit(2, f"error: {message} ({self.prog} --help lists the options)\n")


def guarded(run: Callable[[], int], interrupted: str = "interrupted") -> int:
    """Run a program; end a wrong input with one line, and end quietly if the reader of the output has exited.

    Returns:
        The result of `run`; 2 for a wrong input or a fault of the system, such as a full disk; 130 after Ctrl-C; 141 if
        the reader, for example head, has exited.
    """
    prepare_streams()
    try:
        code = run()
        sys.stdout.flush()
        return code
    except (ValueError, OSError) as error:
        if isinstance(error, BrokenPipeError) and _has_no_reader():
            return 141  # of a program that SIGPIPE ends, in a shell
        print_error(f"error: {error}")
        return 2
    except KeyboardInterrupt:
        print_error(interrupted)
        return 130


def _has_no_reader() -> bool:
    """Return whether the reader of the standard output has exited; if so, further output is dropped."""
    poll = select.poll()
    poll.register(sys.stdout.fileno(), 0)
    ended = bool(poll.poll(0))
    if ended:
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())  # for the flush at the end of the program
    return ended


def drawable(name: str) -> str:
    """Return a name with ? for bytes that are not UTF-8, which cannot be drawn."""
    return name.encode("utf-8", "replace").decode()


def counted(number: int, noun: str) -> str:
    """Return a number with its noun, such as "1 class" or "2 classes"."""
    return f"{number} {noun}{'' if number == 1 else 'es' if noun.endswith('s') else 's'}"


def print_error(text: str) -> None:
    """Print to the standard error; that its terminal was closed or its disk is full must not change the exit code."""
    with contextlib.suppress(OSError):
        print(text, file=sys.stderr, flush=True)


@contextlib.contextmanager
def atomic_write(path: str | os.PathLike[str]) -> Generator[BinaryIO]:
    """Write a binary file so that it appears whole or not at all: temporary file, flush to disk, rename."""
    path = Path(path)
    path.parent.mkdir(parents=True, exist_ok=True)
    part = path.with_name(f".{path.name}.{secrets.token_hex(4)}")
    with open(part, "xb") as file:  # not a file of `tempfile`: the umask decides who may read results
        try:
            yield file
            file.flush()
            os.fsync(file.fileno())
            os.replace(part, path)
        except BaseException:
            part.unlink(missing_ok=True)  # the folder itself may have vanished
            raise


@contextlib.contextmanager
def atomic_path(path: str | os.PathLike[str]) -> Generator[Path]:
    """Yield a path of the same name at which to write a file, which appears at `path` whole or not at all."""
    path = Path(path).absolute()
    path.parent.mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryDirectory(dir=path.parent, prefix=f".{path.name}.") as folder:
        part = Path(folder, path.name)
        part.touch()
        mode = part.stat().st_mode  # what the umask permits; some writers make private files
        part.unlink()
        yield part
        os.chmod(part, mode)
        os.replace(part, path)


def write_text(path: str | os.PathLike[str], text: str) -> None:
    """Write a UTF-8 text file atomically."""
    with atomic_write(path) as file:
        file.write(text.encode("utf-8", "surrogateescape"))  # file names need not be UTF-8


def csv_text(rows: Iterable[Iterable[object]]) -> str:
    """Return rows as CSV text with line feeds."""
    text = io.StringIO()
    csv.writer(text, lineterminator="\n").writerows(rows)
    return text.getvalue()


def to_json(value: Any, indent: int | None = None) -> str:
    """Return JSON text in which letters are readable, and numbers that are not finite, which JSON lacks, are null."""
    finite = json.loads(json.dumps(value), parse_constant=lambda _: None)
    text = json.dumps(finite, indent=indent, ensure_ascii=False)
    return ESCAPED.sub(lambda found: f"\\u{ord(found[0]):04x}", text)


def write_json(path: str | os.PathLike[str], value: Any) -> None:
    """Write an indented JSON file atomically, see `to_json`."""
    write_text(path, to_json(value, indent=2) + "\n")


def sha256(path: str | os.PathLike[str]) -> str:
    """Return the SHA-256 of a file in hexadecimal digits."""
    digest = hashlib.sha256()
    with open(path, "rb") as file:
        while chunk := file.read(1 << 20):
            digest.update(chunk)
    return digest.hexdigest()


def check_output(path: str, option: str) -> None:
    """Check that a file can be written, before the work begins.

    Raises:
        ValueError: it cannot.
    """
    folder = os.path.dirname(os.path.abspath(path))
    try:
        if os.path.isdir(path):
            raise IsADirectoryError(0, "it is a folder")
        os.makedirs(folder, exist_ok=True)
        with tempfile.TemporaryFile(dir=folder):
            pass
    except OSError as error:
        raise ValueError(f"{option} {path} cannot be written ({error.strerror}): choose another place") from None
