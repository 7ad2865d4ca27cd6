"""Load files of tensors without executing anything in them."""

from __future__ import annotations

import contextlib
import json
import os
import re
import tarfile
import zipfile
import zlib
from collections import OrderedDict
from collections.abc import Iterator
from typing import Any

from safetensors import safe_open
from safetensors.torch import load_file
from torch import Tensor

from slowfast.weights.fetch import fetch_checkpoint
from slowfast.weights.pickles import RefusedError, StandIn, read_archive, read_stream

HEAD = 1 << 16  # bytes of a file that are read to recognise its type
MAX_LETTERS = 1 << 24  # in all tensor names of a module; real modules have less than a million


def load_tensors(path: str | os.PathLike[str], shapes_only: bool = False) -> dict[str, Any]:
    """Load a `torch.save`, TorchScript or safetensors file onto the CPU, from a path or address as in `fetch`.

    Only tensors, numbers and plain containers are loaded; objects of other classes become a `StandIn`, and no code in
    the file is executed or compiled. A pickled module or a TorchScript archive becomes its state_dict. The memory is
    limited by the size of the file.

    Args:
        path: path or address, see `fetch`.
        shapes_only: put the tensors of a `torch.save` file on the device "meta" without reading their values.

    Raises:
        ValueError: the file is missing, damaged or not a file of tensors.
    """
    path = str(path)
    local = fetch_checkpoint(path)
    try:
        return _state_dicts(_read(local, shapes_only))
    except Exception as error:  # a damaged or hostile file can cause any exception
        reason = _describe(local)
        if not reason:
            reason = (str(error).strip().splitlines() or [""])[0]
            if not isinstance(error, RefusedError):  # other errors come from parsing meaningless bytes
                reason = f"it is damaged or not a file of tensors ({type(error).__name__}: {reason}); download it again"
        raise ValueError(f"checkpoint {path!r} cannot be loaded: {reason}") from error


def _read(path: str, shapes_only: bool) -> Any:
    if path.endswith(".safetensors"):
        return _read_safetensors(path)
    size = os.path.getsize(path)
    if zipfile.is_zipfile(path):
        with zipfile.ZipFile(path) as archive:
            return read_archive(archive, size, shapes_only)
    with open(path, "rb") as file:
        return read_stream(file, size, shapes_only)


def _read_safetensors(path: str) -> dict[str, Any]:
    """Return the tensors; if the metadata name the classes, as entry "model_state" of a checkpoint with class names."""
    with safe_open(path, "pt") as file:
        stated = json.loads((file.metadata() or {}).get("class_names", "null"))
    tensors = load_file(path)
    return {"model_state": tensors, "class_names": stated} if isinstance(stated, list) else tensors


def _state_dicts(content: Any) -> dict[str, Any]:
    """Replace modules, `content` itself or values in it, by dictionaries of their tensors."""
    if isinstance(content, StandIn):
        state = _state_dict(content)
        if not state:
            raise RefusedError(
                f"it contains an object of {type(content).__module__}.{type(content).__name__} without tensors; save a "
                "state_dict"
            )
        return state
    if not isinstance(content, dict):
        raise RefusedError(f"it holds a {type(content).__name__}, not a dictionary; save a state_dict")
    modules = {key: value for key, value in content.items() if "_modules" in getattr(value, "__dict__", ())}
    content.update((key, _state_dict(value)) for key, value in modules.items())
    return content


def _state_dict(module: StandIn) -> dict[str, Any]:
    """Return the tensors of a module like its state_dict, with class names and class order in the metadata."""
    state: Any = OrderedDict(_tensors(module))
    state._metadata = {"": {key: vars(module)[key] for key in ("class_order", "class_names") if key in vars(module)}}
    return state


def _tensors(module: StandIn, prefix: str = "", letters: list[int] | None = None) -> Iterator[tuple[str, Tensor]]:
    """Yield the tensors of a module by the names of its state_dict.

    Args:
        module: stand-in of the module.
        prefix: prefix of the names.
        letters: number of letters in the names so far; it is limited because modules that contain others twice have
            a number of names that doubles with the depth.
    """
    letters = [0] if letters is None else letters
    entries = vars(module)
    if "_modules" in entries:  # of torch.save; TorchScript has them as attributes
        temporary = entries.get("_non_persistent_buffers_set", ())
        buffers = {name: value for name, value in entries["_buffers"].items() if name not in temporary}
        entries = {**entries["_parameters"], **buffers, **entries["_modules"]}
    for name, value in entries.items():
        letters[0] += len(prefix) + len(name) + 1
        if letters[0] > MAX_LETTERS:
            raise RefusedError("its modules hold each other too often")
        if isinstance(value, Tensor):
            yield prefix + name, value
        elif isinstance(value, StandIn):
            yield from _tensors(value, f"{prefix}{name}.", letters)


# First bytes -> type of the file, and the cure.
_ARCHIVES = {
    b"\x1f\x8b": "a gzip archive; unpack it",
    b"\xfd7zXZ": "an xz archive; unpack it",
    b"7z\xbc\xaf": "a 7-Zip archive; unpack it",
    b"Rar!": "a RAR archive; unpack it",
    b"\x28\xb5\x2f\xfd": "a Zstandard archive; unpack it",
    b"\x89HDF": "an HDF5 file, of Keras for example; convert it to safetensors",
}


def _describe(path: str) -> str | None:
    """Return the type of a file without tensors, with the cure; None if it is not recognised."""
    with open(path, "rb") as file:
        head = file.read(HEAD)
    if not head:
        return "it is empty; download it again"
    text = head
    if head.startswith(b"\x1f\x8b"):  # a server may compress a page
        with contextlib.suppress(zlib.error):
            text = zlib.decompressobj(31).decompress(head, HEAD)
    if page := _describe_text(text.removeprefix(b"\xef\xbb\xbf").decode("utf-8", "replace").strip()):
        return page
    for start, kind in _ARCHIVES.items():
        if head.startswith(start):
            return f"it is {kind}"
    if zipfile.is_zipfile(path):
        with zipfile.ZipFile(path) as archive:
            names = archive.namelist()
        if not any(re.fullmatch(r"[^/]+/data\.pkl", name) for name in names):
            return f"it is a zip archive of {', '.join(names[:3])}, without a file of tensors; unpack it"
    elif tarfile.is_tarfile(path):
        return "it is a tar archive; unpack it, or save it again if PyTorch before 0.4 wrote it"
    return None


def _describe_text(text: str) -> str | None:
    """Return the type of a text that a server, or Git, sent instead of a file."""
    if text.startswith("version https://git-lfs"):
        size = re.search(r"^size (\d+)", text, re.MULTILINE)
        of = f" of {int(size[1]):,} bytes" if size else ""
        return f"it is a Git LFS pointer to a file{of}; run `git lfs pull` in its repository"
    if code := re.match(r"(?:<\?xml[^>]*>\s*)?<Error>.*?<Code>(.*?)</Code>", text, re.DOTALL):
        return f"it is the error message {code[1]} of a server; check the address and the access rights"
    saved = text.startswith(("From: <Saved by", "MIME-Version:"))  # by a browser, with its pictures
    if not saved and not re.match(
        r"(<\?xml[^>]*>\s*|<!--.*?-->\s*)*<(!doctype html|html|head|body)\b", text, re.I | re.S
    ):
        return None
    if re.search(r"quota exceeded|too many users have viewed", text, re.IGNORECASE):
        return "it is a page of Google Drive: the limit of downloads of this file is reached; try again after a day"
    if re.search(r"virus scan warning|google drive", text, re.IGNORECASE):
        return (
            "it is a page of Google Drive (large files are not scanned for viruses), not the file; open the address in "
            "a browser and confirm the download"
        )
    title = re.search(r"<title[^>]*>\s*(.*?)\s*</title>", text, re.IGNORECASE | re.DOTALL)
    called = f" called {' '.join(title[1].split())[:80]!r}" if title else ""
    return f"it is a web page{called}, not the file; follow its download link, in a browser if it asks to sign in"
