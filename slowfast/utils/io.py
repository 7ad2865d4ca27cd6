"""Files: paths through iopath, atomic writing, checksums, and loading of tensors without executing pickles."""

from __future__ import annotations

import hashlib
import os
import pickle
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any, BinaryIO

import torch
from iopath.common.file_io import HTTPURLHandler, PathManager

path_manager = PathManager()
path_manager.register_handler(HTTPURLHandler())


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
        file.write(text.encode())


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
    if not path_manager.exists(path):
        raise ValueError(f"checkpoint {path!r} does not exist; check the path (TRAIN/TEST.CHECKPOINT_FILE_PATH)")
    try:
        return torch.load(path_manager.get_local_path(path), map_location="cpu", weights_only=True)
    except (pickle.UnpicklingError, RuntimeError, EOFError, OSError, ValueError) as error:
        reason = str(error).strip().splitlines()[0] if str(error).strip() else type(error).__name__
        raise ValueError(
            f"checkpoint {path!r} cannot be loaded ({reason}); it is torn, not a PyTorch file, or holds objects other "
            "than tensors, which are never executed here: save its state_dict alone"
        ) from error
