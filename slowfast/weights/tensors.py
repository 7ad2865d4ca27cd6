"""Load files of tensors without executing anything in them."""

from __future__ import annotations

import argparse
import os
import pickle
import re
import tarfile
import zipfile
from collections.abc import Iterator
from typing import Any

import torch
from safetensors import SafetensorError
from safetensors.torch import load_file
from torch import Tensor

from slowfast.weights.fetch import fetch_checkpoint

# training scripts of image models keep their arguments beside the weights: a plain container
torch.serialization.add_safe_globals([argparse.Namespace])


def load_tensors(path: str | os.PathLike) -> Any:
    """Load a `torch.save`, TorchScript or safetensors file onto the CPU, from anywhere `fetch` knows.

    Nothing but tensors and plain containers is ever unpickled, and the code of a TorchScript archive is not even
    compiled.

    Raises:
        ValueError: the file is missing, torn, of no such kind, or holds other objects.
    """
    path = str(path)
    local = fetch_checkpoint(path)
    try:
        if local.endswith(".safetensors"):
            return _load_safetensors(local)
        if zipfile.is_zipfile(local):
            with zipfile.ZipFile(local) as archive:
                if any(name.endswith("/constants.pkl") for name in archive.namelist()):
                    return _load_torchscript(archive)
        elif tarfile.is_tarfile(local):  # PyTorch before 0.4; reading it would unpack files
            raise ValueError("it is a tar archive")
        return torch.load(local, map_location="cpu", weights_only=True)
    except (
        pickle.UnpicklingError,
        zipfile.BadZipFile,
        RuntimeError,
        EOFError,
        OSError,
        ValueError,
        LookupError,
    ) as error:
        foreign = re.search(r"GLOBAL (\S+)", str(error))
        lines = str(error).strip().splitlines() or [type(error).__name__]
        reason = f"it holds an object of {foreign[1]}" if foreign else lines[0]
        raise ValueError(
            f"checkpoint {path!r} cannot be loaded ({reason}); it is torn, not a PyTorch file, or holds objects other "
            "than tensors, which are never executed here: save its state_dict alone"
        ) from error


def _load_safetensors(path: str) -> dict[str, Tensor]:
    try:
        return load_file(path)
    except SafetensorError as error:
        raise ValueError(str(error)) from error


class _ScriptModule:
    """Attributes of a module in a TorchScript archive; what class it was does not matter."""


_STORAGES = {
    "DoubleStorage": torch.float64,
    "FloatStorage": torch.float32,
    "HalfStorage": torch.float16,
    "BFloat16Storage": torch.bfloat16,
    "LongStorage": torch.int64,
    "IntStorage": torch.int32,
    "ShortStorage": torch.int16,
    "CharStorage": torch.int8,
    "ByteStorage": torch.uint8,
    "BoolStorage": torch.bool,
}


class _ScriptUnpickler(pickle.Unpickler):
    """Reads the objects of a TorchScript archive, knowing no function but those below."""

    def __init__(self, archive: zipfile.ZipFile, record: str) -> None:
        super().__init__(archive.open(record))
        self.archive, self.folder = archive, record.removesuffix(".pkl")
        self.storages: dict[str, Tensor] = {}

    def find_class(self, module: str, name: str) -> Any:
        if module.split(".")[0] == "__torch__":
            return _ScriptModule
        if module == "torch.jit._pickle":  # lists whose element type is written down
            return lambda value, *element_type: value
        known = {("torch._utils", "_rebuild_tensor_v2"): self._tensor, ("collections", "OrderedDict"): dict}
        if (module, name) in known:
            return known[module, name]
        if module == "torch" and name in _STORAGES:
            return _STORAGES[name]
        raise pickle.UnpicklingError(f"GLOBAL {module}.{name}")

    def persistent_load(self, pid: tuple[str, torch.dtype, str, str, int]) -> Tensor:
        _, dtype, key, _, numel = pid
        if key not in self.storages:
            content = bytearray(self.archive.read(f"{self.folder}/{key}"))
            self.storages[key] = torch.frombuffer(content, dtype=dtype) if numel else torch.empty(0, dtype=dtype)
        return self.storages[key]

    @staticmethod
    def _tensor(storage: Tensor, offset: int, size: tuple, stride: tuple, *gradient: Any) -> Tensor:
        return storage.as_strided(size, stride, offset)


def _load_torchscript(archive: zipfile.ZipFile) -> dict[str, Tensor]:
    """The tensors of a TorchScript archive (as OpenAI distributes CLIP) by the names of its state_dict."""
    record = next(name for name in archive.namelist() if re.fullmatch(r"[^/]+/data\.pkl", name))

    def tensors(module: _ScriptModule, prefix: str) -> Iterator[tuple[str, Tensor]]:
        for name, value in vars(module).items():
            if isinstance(value, Tensor):
                yield prefix + name, value
            elif isinstance(value, _ScriptModule):
                yield from tensors(value, f"{prefix}{name}.")

    try:
        return dict(tensors(_ScriptUnpickler(archive, record).load(), ""))
    except (TypeError, AttributeError) as error:
        raise ValueError(f"{record} is damaged: {error}") from error
