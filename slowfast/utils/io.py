"""Files: paths through iopath, atomic writing, checksums, and loading of tensors without executing pickles."""

from __future__ import annotations

import argparse
import hashlib
import os
import pickle
import re
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any, BinaryIO

import torch
from iopath.common.file_io import HTTPURLHandler, PathManager

path_manager = PathManager()
path_manager.register_handler(HTTPURLHandler())
# training scripts of image models keep their arguments beside the weights: a plain container
torch.serialization.add_safe_globals([argparse.Namespace])


@contextmanager
def atomic_write(path: str | os.PathLike) -> Iterator[BinaryIO]:
    """Write a binary file so that it appears whole or not at all: temporary file, flush to disk, rename."""
    path = Path(path)
    path.parent.mkdir(parents=True, exist_ok=True)
    with tempfile.NamedTemporaryFile(dir=path.parent, prefix=f".{path.name}.", delete=False) as file:
        try:
            yield file  # pyright: ignore[reportReturnType]
            file.flush()
            os.fsync(file.fileno())
            os.chmod(file.name, 0o644)  # temporary files are private; results are for the group that shares a folder
            os.replace(file.name, path)
        except BaseException:
            os.unlink(file.name)
            raise


def write_text(path: str | os.PathLike, text: str) -> None:
    """Write a UTF-8 text file atomically."""
    with atomic_write(path) as file:
        file.write(text.encode("utf-8", "surrogateescape"))  # file names need not be UTF-8


def sha256(path: str | os.PathLike) -> str:
    """Hexadecimal SHA-256 of a file."""
    digest = hashlib.sha256()
    with open(path, "rb") as file:
        while chunk := file.read(1 << 20):
            digest.update(chunk)
    return digest.hexdigest()


def load_tensors(path: str | os.PathLike) -> Any:
    """Load a `torch.save` file onto the CPU; nothing but tensors and plain containers is ever unpickled.

    Raises:
        ValueError: the file is missing, torn, no PyTorch file, or holds other objects.
    """
    path = str(path)
    try:
        local = path_manager.get_local_path(path)
    except (OSError, RuntimeError) as error:
        raise ValueError(f"checkpoint {path!r} cannot be fetched ({error}); check the address") from error
    if not os.path.isfile(local):
        raise ValueError(f"checkpoint {path!r} does not exist; check the path (TRAIN/TEST.CHECKPOINT_FILE_PATH)")
    try:
        return torch.load(local, map_location="cpu", weights_only=True)
    except (pickle.UnpicklingError, RuntimeError, EOFError, OSError, ValueError) as error:
        foreign = re.search(r"GLOBAL (\S+)", str(error))
        lines = str(error).strip().splitlines() or [type(error).__name__]
        reason = f"it holds an object of {foreign[1]}" if foreign else lines[0]
        raise ValueError(
            f"checkpoint {path!r} cannot be loaded ({reason}); it is torn, not a PyTorch file, or holds objects other "
            "than tensors, which are never executed here: save its state_dict alone"
        ) from error
