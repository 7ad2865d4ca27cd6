"""Load files of tensors without executing anything in them."""

from __future__ import annotations

import io
import json
import os
import re
import tarfile
import zipfile
from collections import OrderedDict
from collections.abc import Iterator
from contextlib import suppress
from typing import Any

import torch
from safetensors import safe_open
from safetensors.torch import load_file
from torch import Tensor, _weights_only_unpickler

from slowfast.utils.io import STORAGE_ERRORS
from slowfast.weights.fetch import fetch_checkpoint, home


class RefusedError(ValueError):
    """A file is refused; the message is the reason."""


class Attributes(dict[str, Any]):
    """Attributes of an object in a file, from its state; other parts of the state are dropped."""

    def update(self, state: Any) -> None:  # pyright: ignore[reportIncompatibleMethodOverride]
        """Take over the attributes; the state of an object with slots is (attributes, slots)."""
        for part in state if isinstance(state, tuple) else (state,):
            if isinstance(part, dict):
                super().update(part)


class StandIn:
    """Replacement of a class or function in a file, which does nothing.

    A call returns a dictionary with the items of the object, if it is a dictionary, and `Attributes`. PyTorch's
    unpickler adds items to objects of few types only, so the result cannot be of a class of this package.
    """

    def __new__(cls, *_: Any) -> Any:
        value: Any = OrderedDict()
        value.__dict__ = Attributes()
        return value


# Types that files may use besides those of PyTorch.
_KNOWN: dict[str, Any] = {
    "builtins.set": set,
    "builtins.frozenset": frozenset,
    "collections.deque": lambda items=(), *_: list(items),
}


def load_tensors(path: str | os.PathLike[str], shapes_only: bool = False) -> dict[str, Any]:
    """Load a `torch.save`, TorchScript or safetensors file onto the CPU, from a path or address as in `fetch`.

    Only tensors, numbers and plain containers are loaded, by PyTorch's restricted unpickler. An object of another class
    (also of NumPy) becomes a dictionary with its attributes in `vars()`, and no code in the file is executed or
    compiled. A pickled module or a TorchScript archive becomes its state_dict.

    Args:
        path: path or address, see `fetch`.
        shapes_only: put the tensors of a `torch.save` file on the device "meta" without reading their values.

    Raises:
        ValueError: the file is missing, unreadable, damaged or not a file of tensors.
    """
    path = str(path)
    local = fetch_checkpoint(path)
    try:
        return _state_dicts(_read(local, shapes_only))
    except Exception as error:  # a damaged or hostile file can cause any exception
        if isinstance(error, OSError) and error.errno in STORAGE_ERRORS:
            raise ValueError(f"checkpoint {path!r} cannot be read: {error.strerror}; repeat the command") from error
        reason = _describe(local)
        if not reason:
            text, advice, _ = str(error).strip().partition("\n\nCheck the documentation")  # of PyTorch's unpickler
            reason = (text.splitlines() or [""])[-1 if advice else 0].rpartition("WeightsUnpickler error: ")[2]
            if not isinstance(error, RefusedError):  # other errors come from parsing meaningless bytes
                remove = f"remove {local} and " if local.startswith(f"{home()}{os.sep}") else ""
                what = f"damaged or not a file of tensors ({type(error).__name__}: {reason})"
                reason = f"it is {what}; {remove}download it again"
        raise ValueError(f"checkpoint {path!r} cannot be loaded: {reason}") from error


def _read(path: str, shapes_only: bool) -> Any:
    with open(path, "rb") as file:
        if file.read(9)[8:] == b"{":  # the length of the header, and its JSON; the file may have any suffix
            return _read_safetensors(path)
    source: Any = path
    if zipfile.is_zipfile(path):
        with zipfile.ZipFile(path) as archive:
            if not shapes_only:
                _check_archive(archive)
            name = next(name for name in archive.namelist() if re.fullmatch(r"[^/]+/data\.pkl", name))
            names = _globals(io.BytesIO(archive.read(name)), 1)
            if name.replace("data", "constants") in archive.namelist():
                source = _without_code(archive)
    else:
        with open(path, "rb") as file:
            names = _globals(file, 4)  # magic number, version, system, content
    known = {**{name: type(name, (StandIn,), {}) for name in names}, **_KNOWN}
    with torch.serialization.safe_globals([(known[name], name) for name in known]):
        return torch.load(source, "meta" if shapes_only else "cpu", weights_only=True)


def _globals(file: Any, count: int) -> set[str]:
    """Return the classes and functions that `count` pickles name."""
    start = file.read(2)
    if start[:1] == b"\x80" and start[1] > 3:
        raise RefusedError(f"it has pickle protocol {start[1]}, and weights have 2; save it again with torch.save")
    file.seek(0)
    return {name for _ in range(count) for name in _weights_only_unpickler.get_globals_in_pkl(file)}


def _check_archive(archive: zipfile.ZipFile) -> None:
    """Compare the records with their checksums, which PyTorch does not."""
    if not any(info.CRC for info in archive.infolist()):  # torch.serialization.set_crc32_options(False)
        for info in archive.infolist():
            del info.CRC  # zipfile then compares none
    if damaged := archive.testzip():
        raise ValueError(f"record {damaged} does not have its checksum")


def _without_code(archive: zipfile.ZipFile) -> io.BytesIO:
    """Return a TorchScript archive as `torch.save` would write its attributes, without code for PyTorch to compile."""
    copy = io.BytesIO()
    with zipfile.ZipFile(copy, "w") as new:
        for name in archive.namelist():
            if re.fullmatch(r"[^/]+/(data\.pkl|data/\w+|(\.data/)?version|byteorder)", name):
                new.writestr(name, archive.read(name))
    copy.seek(0)
    return copy


def _read_safetensors(path: str) -> dict[str, Any]:
    """Return the tensors; if the metadata name the classes, as entry "model_state" of a checkpoint with class names."""
    names = order = None
    with safe_open(path, "pt") as file, suppress(ValueError):  # other programs may write other text
        metadata = file.metadata() or {}
        names = json.loads(metadata.get("class_names", "null"))
        order = json.loads(metadata.get("class_order", "null"))
    tensors: Any = OrderedDict(load_file(path))
    if isinstance(names, list):
        return {"model_state": tensors, "class_names": names}
    if isinstance(order, str):
        tensors._metadata = {"": {"class_order": order, "class_names": None}}
    return tensors


def _state_dicts(content: Any) -> dict[str, Any]:
    """Replace modules, `content` itself or values in it, by dictionaries of their tensors."""
    if not isinstance(content, dict):
        raise RefusedError(f"it holds a {type(content).__name__}, not a dictionary; save a state_dict")
    if _is_object(content) and not content:
        state = _state_dict(content)
        if not state:
            raise RefusedError("it contains an object without tensors; save a state_dict")
        return state
    content.update({key: _state_dict(value) for key, value in content.items() if _is_module(value)})
    return content


def _is_object(value: Any) -> bool:
    return isinstance(getattr(value, "__dict__", None), Attributes)


def _is_module(value: Any) -> bool:
    return _is_object(value) and "_modules" in vars(value)


def _state_dict(module: Any) -> dict[str, Any]:
    """Return the tensors of a module like its state_dict, with class names and class order in the metadata."""
    state: Any = OrderedDict(_tensors(module))
    state._metadata = dict(_statements(module))
    return state


def _statements(module: Any, name: str = "") -> Iterator[tuple[str, dict[str, Any]]]:
    """Yield the class names and class order of a module and of those in it, which it may wrap, by their names."""
    entries = vars(module)
    yield name, {key: entries[key] for key in ("class_order", "class_names") if key in entries}
    for part, value in entries.get("_modules", {}).items():
        if _is_object(value):
            yield from _statements(value, f"{name}.{part}" if name else part)


def _tensors(module: Any, prefix: str = "") -> Iterator[tuple[str, Tensor]]:
    """Yield the tensors of a module by the names of its state_dict."""
    entries = vars(module)
    if "_modules" in entries:  # of torch.save; TorchScript has them as attributes
        temporary = entries.get("_non_persistent_buffers_set", ())
        buffers = {name: value for name, value in entries["_buffers"].items() if name not in temporary}
        entries = {**entries["_parameters"], **buffers, **entries["_modules"]}
    for name, value in entries.items():
        if isinstance(value, Tensor):
            yield prefix + name, value
        elif _is_object(value):
            yield from _tensors(value, f"{prefix}{name}.")


# First bytes of files that contain no tensors -> type of the file, and the cure.
_OTHER_FILES = {
    b"{": "a JSON file, perhaps the index of weights in several files; save these as one file",
    b"<": "a web page or a message of a server, not the file; follow its download link, in a browser if necessary",
    b"version https://git-lfs": "a Git LFS pointer to a file; run `git lfs pull` in its repository",
    b"\x1f\x8b": "a gzip archive; unpack it",
    b"\xfd7zXZ": "an xz archive; unpack it",
    b"\x28\xb5\x2f\xfd": "a Zstandard archive; unpack it",
    b"\x89HDF": "an HDF5 file, of Keras for example; convert it to safetensors",
}


def _describe(path: str) -> str | None:
    """Return the type of a file without tensors, with the cure; None if it is not recognised."""
    with open(path, "rb") as file:
        head = file.read(100).removeprefix(b"\xef\xbb\xbf").lstrip()
    if not head:
        return "it is empty; download it again"
    if kind := next((kind for start, kind in _OTHER_FILES.items() if head.startswith(start)), ""):
        return f"it is {kind}"
    if zipfile.is_zipfile(path):
        with zipfile.ZipFile(path) as archive:
            names = archive.namelist()
        if not any(re.fullmatch(r"[^/]+/data\.pkl", name) for name in names):
            return f"it is a zip archive of {', '.join(names[:3])}, without a file of tensors; unpack it"
    elif tarfile.is_tarfile(path):
        return "it is a tar archive; unpack it, or save it again if PyTorch before 0.4 wrote it"
    return None
