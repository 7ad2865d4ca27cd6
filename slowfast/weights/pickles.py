"""Read pickled tensors without running anything that a pickle names.

A pickle is a program: it may import any function and call it. `TensorUnpickler` imports nothing. It rebuilds tensors,
NumPy numbers and plain containers with the few functions below. Every other class or function becomes a `StandIn`,
whose calls have no effect. Weights can thus be read from files with any other content: the message hub of MMEngine, the
arguments of a script, a whole `nn.Module`. The formats are those of `torch.save` (zip archives, and streams before
PyTorch 1.6) and of TorchScript.
"""

from __future__ import annotations

import pickle
import re
import zipfile
from collections import OrderedDict
from collections.abc import Callable, Iterable, Sequence
from functools import partial
from typing import Any, BinaryIO, ClassVar

import numpy as np
import torch
from torch import Tensor

MAGIC = 0x1950A86A20F9469CFC6C  # first object of a stream that PyTorch before 1.6 wrote
MAX_INFLATION = 4  # bytes in the records of an archive per byte of the file; real weights stay below 2
CHUNK = 1 << 20


class RefusedError(ValueError):
    """A file is refused; the message is the reason."""


_Unpickler: Any = pickle._Unpickler  # the type information of the standard library lacks most of its attributes


class StandIn:
    """Replacement of an object of any other class; the class becomes a subclass of this one with the same name.

    Its attributes are those of the object and, for a dictionary, the items whose keys are text. Arguments of a
    constructor and the items of other containers are dropped.
    """

    def __setitem__(self, key: Any, value: Any) -> None:
        if isinstance(key, str):
            vars(self)[key] = value

    def append(self, item: Any) -> None:
        """Drop an item of a list."""

    add = append


class _Function:
    """A function that pickles may call."""

    def __init__(self, call: Callable[..., Any]) -> None:
        self.call = call


def _check_keys(keys: Iterable[Any]) -> None:
    """Refuse nested keys: each level takes a stack frame, or doubles the time, to hash or compare them."""
    for key in keys:
        if isinstance(key, (tuple, frozenset)) and any(isinstance(part, (tuple, frozenset)) for part in key):
            raise RefusedError("it contains a dictionary or a set with nested tuples or sets as keys")


def _checked(code: bytes, keys: Callable[[Any], list[Any]], target: Callable[[Any], Any], kind: type = dict) -> Any:
    """Return the method of an opcode that adds items, with checks of the keys and of the object that gets the items.

    Any object other than a container or a stand-in is refused: a tensor, for example, would compute with the items.
    """
    load = _Unpickler.dispatch[code[0]]

    def checked(self: TensorUnpickler) -> None:
        _check_keys(keys(self))
        if not isinstance(target(self), (kind, StandIn)):
            raise pickle.UnpicklingError(f"items are added to a {type(target(self)).__name__}")
        load(self)

    return checked


class TensorUnpickler(_Unpickler):
    """Unpickler of tensors and plain containers; everything else becomes a `StandIn`.

    It extends the unpickler in Python, because the one in C allocates the memory that a file requests before it checks
    the length of the file.

    Args:
        file: the pickle.
        storage: function (key, number of bytes) -> uint8 tensor with the bytes of a storage; `file` contains the key.
        size: size of the file in bytes. It limits the items and letters in arguments of calls, so that a small file
            cannot make large copies.
    """

    def __init__(self, file: BinaryIO, storage: Callable[[str, int], Tensor], size: int) -> None:
        super().__init__(file, encoding="utf-8", errors="surrogateescape")  # text of Python 2 in any encoding
        self.storage, self.budget = storage, MAX_INFLATION * size
        self.storages: dict[str, Tensor] = {}
        self.classes: dict[str, type[StandIn]] = {}

    def find_class(self, module: str, name: str) -> Any:
        """Return the replacement of a global: a tensor type, a function from below, or a subclass of `StandIn`."""
        path = f"{module}.{name}".replace("__builtin__.", "builtins.").replace("numpy.core.", "numpy._core.")
        known = vars(torch).get(name) if module.startswith("torch") else None  # getattr may import
        if name.endswith("Storage"):
            known = torch.uint8 if name == "UntypedStorage" else getattr(known, "_dtype", None)
        if isinstance(known, torch.dtype):
            return known
        if module == "torch.jit._pickle":  # typed lists
            return _Function(_first)
        if path in _FUNCTIONS:
            return _Function(_FUNCTIONS[path])
        if path == "torch._tensor._rebuild_from_type_v2":  # an attribute was set on the tensor
            return _Function(lambda function, kind, args, state: self._call(function, args))
        if path not in self.classes:
            self.classes[path] = type(name, (StandIn,), {"__module__": module})
        return self.classes[path]

    def persistent_load(self, pid: Any) -> Any:
        """Return the tensor of a storage; `pid` is (kind, dtype, key, device, number of elements, view or nothing)."""
        kind, *rest = pid
        if kind == "module":  # a class and its source code
            return rest[0]
        dtype, key, _, count, *view = rest
        if kind != "storage" or not isinstance(dtype, torch.dtype) or not isinstance(key, str) or any(view):
            raise pickle.UnpicklingError("a storage of an unknown kind")
        if key not in self.storages:
            self.storages[key] = self.storage(key, count * dtype.itemsize).view(dtype)
        storage = self.storages[key]
        if storage.dtype != dtype or len(storage) != count:
            raise pickle.UnpicklingError(f"storage {key} is used as two types or sizes")
        return storage

    def _spend(self, values: Iterable[Any]) -> None:
        sized = (list, tuple, dict, set, frozenset, str, bytes)
        self.budget -= sum(len(value) for value in values if isinstance(value, sized))
        if self.budget < 0:
            raise RefusedError("it copies the same values again and again")

    def _call(self, function: Any, args: Sequence[Any]) -> Any:
        if isinstance(function, _Function):
            self._spend(args)
            return function.call(*args)
        if isinstance(function, StandIn):
            return type(function)()
        if isinstance(function, type) and issubclass(function, StandIn):
            return function()
        raise pickle.UnpicklingError(f"a call of {type(function).__name__}, which is not a function")

    def _instantiate(self, klass: Any, args: Sequence[Any]) -> None:  # INST and OBJ
        self.append(self._call(klass, args))

    def load_reduce(self) -> None:
        """Call a function (opcodes REDUCE and NEWOBJ)."""
        args = self.stack.pop()
        self.stack[-1] = self._call(self.stack[-1], args)

    def load_newobj_ex(self) -> None:
        """Make an object; ignore its named arguments, which only a stand-in can have."""
        self.stack.pop()
        self.load_reduce()

    def load_build(self) -> None:
        """Set the attributes of a stand-in, the metadata of a state_dict, or the content of an array."""
        state = self.stack.pop()
        value = self.stack[-1]
        if isinstance(value, StandIn):
            for part in state if isinstance(state, tuple) else (state,):  # with slots: (attributes, slots)
                if isinstance(part, dict):
                    self._spend([part])
                    vars(value).update((k, v) for k, v in part.items() if isinstance(k, str))
        elif isinstance(value, OrderedDict):
            if isinstance(state, dict) and isinstance(state.get("_metadata"), dict):
                value._metadata = state["_metadata"]  # pyright: ignore[reportAttributeAccessIssue]
        elif isinstance(value, np.dtype):
            if state[1] == ">":
                raise RefusedError("its NumPy numbers are big-endian; save it again on a little-endian machine")
        elif isinstance(value, np.ndarray) and isinstance(state[2], np.dtype) and isinstance(state[4], bytes):
            value.__setstate__(state)  # it compares the shape with the number of bytes

    dispatch: ClassVar = {
        **_Unpickler.dispatch,
        pickle.REDUCE[0]: load_reduce,
        pickle.NEWOBJ[0]: load_reduce,
        pickle.NEWOBJ_EX[0]: load_newobj_ex,
        pickle.BUILD[0]: load_build,
        pickle.SETITEM[0]: _checked(pickle.SETITEM, lambda s: s.stack[-2:-1], lambda s: s.stack[-3]),
        pickle.SETITEMS[0]: _checked(pickle.SETITEMS, lambda s: s.stack[::2], lambda s: s.metastack[-1][-1]),
        pickle.DICT[0]: _checked(pickle.DICT, lambda s: s.stack[::2], lambda s: {}),
        pickle.ADDITEMS[0]: _checked(pickle.ADDITEMS, lambda s: s.stack, lambda s: s.metastack[-1][-1], set),
        pickle.FROZENSET[0]: _checked(pickle.FROZENSET, lambda s: s.stack, lambda s: {}),
    }
    # the host's registry of extensions may hold functions; buffers are allocated before their bytes are read
    for code in pickle.EXT1 + pickle.EXT2 + pickle.EXT4 + pickle.BYTEARRAY8 + pickle.NEXT_BUFFER:
        del dispatch[code]


def _first(value: Any, *_: Any) -> Any:
    return value


def _tensor(storage: Tensor, offset: int, size: Sequence[int], stride: Sequence[int], *_: Any) -> Tensor:
    return storage.as_strided(size, stride, offset)


def _tensor_of_type(storage: Tensor, offset: int, size: Sequence[int], stride: Sequence[int], *rest: Any) -> Tensor:
    return storage.view(rest[2]).as_strided(size, stride, offset)  # after requires_grad and hooks


def _dtype(name: Any, *_: Any) -> Any:
    numeric = isinstance(name, str) and re.fullmatch(r"[<=|]?[biufc?]\d{0,2}", name)
    return np.dtype(name) if numeric else StandIn()


def _scalar(dtype: Any, content: Any = b"") -> Any:
    numeric = isinstance(dtype, np.dtype) and isinstance(content, bytes)
    return np.frombuffer(content, dtype, 1)[0].item() if numeric else StandIn()


def _from_buffer(content: Any, dtype: Any, shape: Any, order: Any) -> Any:
    return np.frombuffer(content, dtype).reshape(shape, order=order) if isinstance(dtype, np.dtype) else StandIn()


def _container(kind: type, items: Any = (), *_: Any) -> Any:
    if not isinstance(items, (dict, list, set, tuple)):  # the factory of a defaultdict
        return kind()
    if issubclass(kind, dict) and not isinstance(items, dict):
        items = [tuple(pair) for pair in items]
        _check_keys(key for key, _ in items)
    elif kind in (set, frozenset):
        _check_keys(items)
    return kind(items)


_FUNCTIONS: dict[str, Callable[..., Any]] = {
    "torch._utils._rebuild_tensor": _tensor,
    "torch._utils._rebuild_tensor_v2": _tensor,
    "torch._utils._rebuild_tensor_v3": _tensor_of_type,
    "torch._utils._rebuild_parameter": _first,
    "torch._utils._rebuild_parameter_with_state": _first,
    "torch.Size": partial(_container, tuple),
    "collections.OrderedDict": partial(_container, OrderedDict),
    "collections.defaultdict": partial(_container, dict),
    "collections.Counter": partial(_container, dict),
    "collections.deque": partial(_container, list),
    "builtins.set": partial(_container, set),
    "builtins.frozenset": partial(_container, frozenset),
    "builtins.bytes": lambda *_: b"",
    "_codecs.encode": lambda text, *_: text.encode("latin1"),  # how protocol 2 writes bytes
    "numpy.dtype": _dtype,
    "numpy._core.multiarray.scalar": _scalar,
    "numpy._core.multiarray._reconstruct": lambda *_: np.empty(0),
    "numpy._core.numeric._frombuffer": _from_buffer,
}


def _fill(file: BinaryIO, tensor: Tensor) -> None:
    """Read the bytes of a 1D tensor from `file`."""
    rest = tensor.view(torch.uint8).numpy().data
    while len(rest):
        chunk = file.read(min(CHUNK, len(rest)))
        if not chunk:
            raise EOFError("the file ends too early")
        rest[: len(chunk)] = chunk
        rest = rest[len(chunk) :]


def read_archive(archive: zipfile.ZipFile, size: int, shapes_only: bool) -> Any:
    """Return the object in an archive of `torch.save` or TorchScript.

    Args:
        archive: archive with a record NAME/data.pkl.
        size: size of the file in bytes.
        shapes_only: put tensors on the device "meta" and do not read them.

    Raises:
        RefusedError: its records claim far more bytes than the file has, or its numbers are big-endian.
    """
    claimed = sum(info.file_size for info in archive.infolist())
    if claimed > MAX_INFLATION * size:
        raise RefusedError(f"its records claim {claimed:,} bytes, and the file has {size:,}")
    if all(info.CRC == 0 for info in archive.infolist()):  # torch.serialization.set_crc32_options(False)
        for info in archive.infolist():
            del info.CRC  # zipfile then compares none
    record = next(name for name in archive.namelist() if re.fullmatch(r"[^/]+/data\.pkl", name))
    folder = record.removesuffix("data.pkl")
    if f"{folder}byteorder" in archive.namelist() and archive.read(f"{folder}byteorder") == b"big":
        raise RefusedError("its numbers are big-endian; save it again on a little-endian machine")

    def storage(key: str, length: int) -> Tensor:
        info = archive.getinfo(f"{folder}data/{key}")
        if info.file_size != length:
            raise RefusedError(f"record {info.filename} has {info.file_size:,} bytes, and its tensors {length:,}")
        content = torch.empty(length, dtype=torch.uint8, device="meta" if shapes_only else "cpu")
        if not shapes_only:
            with archive.open(info) as file:
                _fill(file, content)  # pyright: ignore[reportArgumentType]
        return content

    with archive.open(record) as file:
        return TensorUnpickler(file, storage, claimed).load()  # pyright: ignore[reportArgumentType]


def read_stream(file: BinaryIO, size: int, shapes_only: bool) -> Any:
    """Return the object in a file of `torch.save` before PyTorch 1.6, or in a bare pickle; see `read_archive`."""
    claimed = 0

    def storage(key: str, length: int) -> Tensor:
        nonlocal claimed
        claimed += length
        if not 0 <= claimed <= size:
            raise RefusedError(f"its tensors claim {claimed:,} bytes, and the file has {size:,}")
        return torch.empty(length, dtype=torch.uint8, device="meta" if shapes_only else "cpu")

    first = TensorUnpickler(file, storage, size).load()
    if first != MAGIC:
        return first
    for _ in ("version", "system"):
        TensorUnpickler(file, storage, size).load()
    unpickler = TensorUnpickler(file, storage, size)
    content = unpickler.load()
    if not shapes_only:
        for key in TensorUnpickler(file, storage, size).load():
            tensor = unpickler.storages[key]
            if int.from_bytes(file.read(8), "little") != len(tensor):
                raise RefusedError(f"storage {key} has another size than its tensors")
            _fill(file, tensor)
    return content
