"""Test pickles of other programs: their weights are loaded, and nothing in them is executed."""

from __future__ import annotations

import argparse
import collections
import contextlib
import copyreg
import gc
import io
import pickle
import re
import struct
import subprocess
import sys
import types
import zipfile
from pathlib import Path

import numpy as np
import pytest
import torch

from slowfast.weights.layouts import extract_state_dict
from slowfast.weights.tensors import load_tensors

# ---- nothing is executed --------------------------------------------------------------------------------------------

GLOBAL_TOUCH = b"cevil_module\ntouch\n"
OPCODES = {
    "REDUCE": GLOBAL_TOUCH + b"(tR.",
    "REDUCE twice": b"cbuiltins\ngetattr\n(cevil_module\nVtouch\ntR(tR.",
    "STACK_GLOBAL": b"\x80\x04\x8c\x0bevil_module\x8c\x05touch\x93)R.",
    "INST": b"(ievil_module\ntouch\n.",
    "OBJ": b"(" + GLOBAL_TOUCH + b"o.",
    "NEWOBJ": b"\x80\x02cevil_module\nNew\n)\x81.",
    "NEWOBJ_EX": b"\x80\x04cevil_module\nNew\n)}\x92.",
    "BUILD": b"\x80\x02cevil_module\nState\n)\x81}b.",
    "BUILD of a class": b"cevil_module\nState\nNVname\nVvalue\nd\x86b.",
    "EXT1": b"\x80\x02\x82\xf1)R.",
    "EXT2": b"\x80\x02\x83\xf1\x00)R.",
    "EXT4": b"\x80\x02\x84\xf1\x00\x00\x00)R.",
    "import": b"cevil_import\nname\n.",
    "system": b"cos\nsystem\n(Vtouch evil\ntR.",
    "exec": b"cbuiltins\nexec\n(Vopen('evil', 'w')\ntR.",
    "a function called by a known one": (
        b"ctorch._tensor\n_rebuild_from_type_v2\n(" + GLOBAL_TOUCH + b"cevil_module\nNew\n(t}tR."
    ),
    "the factory of a dictionary": b"ccollections\ndefaultdict\n(" + GLOBAL_TOUCH + b"tR.",
    "a lazy module of PyTorch": b"ctorch\n_dynamo\n.",
}


def binary(data: bytes) -> bytes:
    """Replace the opcodes of texts and small numbers, which PyTorch's unpickler lacks, by those of protocol 2."""
    data = re.sub(rb"V([^\n]*)\n", lambda m: b"X" + struct.pack("<I", len(m[1])) + m[1], data)
    return re.sub(rb"I(\d+)\n", lambda m: b"K" + bytes([int(m[1])]), data)


@pytest.fixture
def evil(tmp_path, monkeypatch):
    """Install a module that writes a file whenever it is used; the current folder is empty."""
    work = tmp_path / "work"
    work.mkdir()
    monkeypatch.chdir(work)
    (tmp_path / "evil_import.py").write_text("open('evil', 'w')")
    monkeypatch.syspath_prepend(str(tmp_path))
    module = types.ModuleType("evil_module")

    def touch(*_):
        Path("evil").touch()

    module.touch = touch  # pyright: ignore[reportAttributeAccessIssue]
    module.New = type("New", (), {"__new__": touch})  # pyright: ignore[reportAttributeAccessIssue]
    module.State = type("State", (), {"__setstate__": touch})  # pyright: ignore[reportAttributeAccessIssue]
    touch.__module__, touch.__qualname__ = "evil_module", "touch"
    monkeypatch.setitem(sys.modules, "evil_module", module)
    monkeypatch.setitem(copyreg._inverted_registry, 0xF1, ("evil_module", "touch"))  # pyright: ignore
    monkeypatch.setitem(copyreg._extension_cache, 0xF1, touch)  # pyright: ignore[reportAttributeAccessIssue]
    gc.freeze()  # what is there already need not be searched after every test
    yield work
    gc.unfreeze()


def archive(path: Path, data: bytes, script: bool = False) -> None:
    with zipfile.ZipFile(path, "w") as file:
        file.writestr("archive/version", "3")
        file.writestr("archive/data.pkl", data)
        if script:
            file.writestr("archive/constants.pkl", data)
        file.writestr("archive/data/0", struct.pack("<2f", 1, 2))


def stream(path: Path, data: bytes) -> None:
    """Write a file as PyTorch before 1.6, without storages."""
    parts = [0x1950A86A20F9469CFC6C, 1001, {"little_endian": True}]
    path.write_bytes(b"".join(pickle.dumps(part, 2) for part in parts) + data + pickle.dumps([], 2))


FILES = {
    "zip": archive,
    "TorchScript": lambda path, data: archive(path, data, script=True),
    "before PyTorch 1.6": stream,
    "bare": lambda path, data: path.write_bytes(data),
}


@pytest.mark.parametrize("nested", [False, True])
@pytest.mark.parametrize("file", FILES)
@pytest.mark.parametrize("opcode", OPCODES)
def test_nothing_is_executed(opcode, file, nested, evil):
    data = OPCODES[opcode]
    if nested:  # {"w": 1, "x": [...]}
        data = b"}(Vw\nI1\nVx\n]" + data.removesuffix(b".").replace(b"\x80\x02", b"").replace(b"\x80\x04", b"") + b"au."
    loaded = set(sys.modules)
    FILES[file](evil / "weights.pth", binary(data))
    try:
        content = load_tensors(evil / "weights.pth")
    except ValueError as error:
        assert "\n" not in str(error) and "weights_only" not in str(error)
    else:
        assert not nested or content["w"] == 1
    gc.collect()
    assert [file.name for file in evil.iterdir()] == ["weights.pth"]
    assert not [name for name in set(sys.modules) - loaded if not name.startswith(("encodings", "torch."))]


def test_the_fixture_detects_code_that_pickles_execute(evil):
    for opcode in ("REDUCE", "INST", "OBJ", "NEWOBJ", "BUILD", "EXT1", "import", "system"):
        with contextlib.suppress(AttributeError):
            pickle.loads(OPCODES[opcode])
        Path("evil").unlink()


@pytest.mark.slow
def test_importing_the_package_does_not_change_pytorch():
    code = (
        "from torch.serialization import get_safe_globals; before = set(get_safe_globals())\n"
        "import slowfast.models.zoo, slowfast.run.launch; assert set(get_safe_globals()) == before"
    )
    subprocess.run([sys.executable, "-c", code], check=True)


# ---- what other programs write --------------------------------------------------------------------------------------


def module(monkeypatch, name: str, *classes: type) -> None:
    """Assign `classes` to the module `name`, as if they were pickled from there."""
    made = types.ModuleType(name)
    for kind in classes:
        kind.__module__, kind.__qualname__ = name, kind.__name__
        setattr(made, kind.__name__, kind)
    for depth in range(1, name.count(".") + 2):
        part = ".".join(name.split(".")[:depth])
        monkeypatch.setitem(sys.modules, part, made if part == name else types.ModuleType(part))


class HistoryBuffer:
    """Like MMEngine's class: arrays, and functions of the class by name."""

    def __init__(self) -> None:
        self._max_length = 1000000
        self._log_history, self._count_history = np.array([0.5, 0.25]), np.array([1, 1])
        self._statistics_methods = {"mean": HistoryBuffer.mean}

    def mean(self) -> float:
        return float(self._log_history.mean())


class Config:
    """Like MMEngine's class: the state is a tuple."""

    def __getstate__(self):
        return ({"model": {"type": "Recognizer3D"}}, "config.py", "text", None, set())

    def __setstate__(self, state):
        raise AssertionError


class CfgNode(dict):
    """Like the class of yacs: a dictionary with attributes."""

    def __init__(self, *args) -> None:
        super().__init__(*args)
        self.__dict__["__immutable__"] = True


@pytest.mark.parametrize("new_form", [True, False])
def test_checkpoints_of_mmaction2_load(new_form, tmp_path, monkeypatch):
    module(monkeypatch, "mmengine.logging.history_buffer", HistoryBuffer)
    module(monkeypatch, "mmengine.config.config", Config)
    weights = {
        "data_preprocessor.mean": torch.zeros(3, 1, 1, 1),
        "backbone.patch_embed1.proj.weight": torch.arange(6.0).view(2, 3).t(),
        "cls_head.fc_cls.bias": torch.ones(4, dtype=torch.bfloat16),
    }
    optimizer = torch.optim.AdamW([torch.nn.Parameter(torch.ones(2))])
    checkpoint = {
        "meta": {"epoch": 3, "iter": np.int64(300), "best": np.float64(61.25), "cfg": "model = dict()",
                 "object": Config(), "time": "20230101_000000", "hook_msgs": {"best_score": np.float32(0.5)}},
        "state_dict": collections.OrderedDict(weights),
        "message_hub": {"log_scalars": collections.OrderedDict(loss=HistoryBuffer()),
                        "runtime_info": {"deque": collections.deque([1, 2], maxlen=4), "text": np.array(["a"])},
                        "resumed_keys": collections.OrderedDict(loss=True)},
        "optimizer": optimizer.state_dict(),
        "param_schedulers": [{"_global_step": 1, "milestones": collections.Counter([1, 2])}],
    }  # fmt: skip
    path = tmp_path / "epoch_3.pth"
    torch.save(checkpoint, path, _use_new_zipfile_serialization=new_form)
    for name in [name for name in sys.modules if name.startswith("mmengine")]:
        monkeypatch.delitem(sys.modules, name)

    content = load_tensors(path)
    state = extract_state_dict(content)
    assert state.keys() == weights.keys()
    assert all(torch.equal(state[name], value) and state[name].dtype == value.dtype for name, value in weights.items())
    meta, hub = content["meta"], content["message_hub"]
    assert meta["epoch"] == 3 and meta["iter"] == {}
    assert vars(hub["log_scalars"]["loss"])["_max_length"] == 1000000
    assert hub["runtime_info"]["deque"] == [1, 2]
    assert content["optimizer"] == optimizer.state_dict()
    assert vars(meta["object"]) == {"model": {"type": "Recognizer3D"}}


def test_configurations_load_as_plain_values(tmp_path, monkeypatch):
    module(monkeypatch, "yacs.config", CfgNode)
    content = {"args": argparse.Namespace(lr=0.1, data="x"), "cfg": CfgNode({"A": CfgNode({"B": 1})})}
    torch.save({"model": {"w": torch.ones(1)}, **content}, tmp_path / "a.pth")
    loaded = load_tensors(tmp_path / "a.pth")
    assert vars(loaded["args"]) == {"lr": 0.1, "data": "x"}
    assert loaded["cfg"]["A"]["B"] == 1 and vars(loaded["cfg"])["__immutable__"]


def test_pickled_modules_become_state_dicts(tmp_path, monkeypatch):
    class Net(torch.nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.body = torch.nn.Sequential(torch.nn.Linear(2, 3), torch.nn.BatchNorm1d(3))
            self.register_buffer("kept", torch.ones(1))
            self.register_buffer("temporary", torch.ones(1), persistent=False)

    module(monkeypatch, "their.nets", Net)
    net = Net()
    torch.save(net, tmp_path / "net.pth")
    torch.save({"model": net, "epoch": 3}, tmp_path / "checkpoint.pth")
    for state in (load_tensors(tmp_path / "net.pth"), load_tensors(tmp_path / "checkpoint.pth")["model"]):
        expected = net.state_dict()
        assert state.keys() == expected.keys() and all(torch.equal(state[k], expected[k]) for k in state)


@pytest.mark.parametrize("new_form", [True, False])
def test_types_views_and_attributes_of_tensors_are_kept(new_form, tmp_path):
    base = torch.arange(12.0)
    named = torch.nn.Parameter(torch.ones(2))
    named.label = "an attribute"  # pyright: ignore[reportAttributeAccessIssue]
    content = {
        "view": base[3:9].view(2, 3).t(), "base": base, "empty": torch.empty(0, 4), "scalar": torch.tensor(7),
        "named": named, "bool": torch.tensor([True, False]), "expanded": torch.ones(1).expand(5),
        **{str(t): torch.ones(3).to(t) for t in (torch.float16, torch.bfloat16, torch.uint8, torch.complex64)},
    }  # fmt: skip
    if new_form:
        content |= {str(t): torch.ones(3).to(t) for t in (torch.uint16, torch.float8_e4m3fn)}
    torch.save(content, tmp_path / "a.pth", _use_new_zipfile_serialization=new_form)
    loaded = load_tensors(tmp_path / "a.pth")
    assert loaded.keys() == content.keys()
    for name, value in content.items():
        assert loaded[name].dtype == value.dtype and loaded[name].shape == value.shape, name
        assert loaded[name].tolist() == value.tolist(), name
    loaded["base"][3] = 30
    assert loaded["view"][0, 0] == 30  # one storage, as before
    shapes = load_tensors(tmp_path / "a.pth", shapes_only=True)
    assert all(shapes[k].is_meta and shapes[k].shape == content[k].shape for k in content)


def test_files_of_another_protocol_are_refused_with_a_cure(tmp_path):
    torch.save({"w": torch.ones(3)}, tmp_path / "a.pth", pickle_protocol=4)
    with pytest.raises(ValueError, match="protocol 4") as caught:
        load_tensors(tmp_path / "a.pth")
    assert "download" not in str(caught.value)  # which would not help


def test_safe_globals_are_as_before(tmp_path):
    torch.save({"w": torch.ones(3), "args": argparse.Namespace(lr=0.1)}, tmp_path / "a.pth")
    before = set(torch.serialization.get_safe_globals())
    assert load_tensors(tmp_path / "a.pth")["args"] == {}
    assert set(torch.serialization.get_safe_globals()) == before
    with pytest.raises(pickle.UnpicklingError):
        torch.load(tmp_path / "a.pth", weights_only=True)


def test_archives_without_checksums_load(tmp_path):
    torch.serialization.set_crc32_options(False)
    try:
        torch.save({"w": torch.ones(1000)}, tmp_path / "a.pth")
    finally:
        torch.serialization.set_crc32_options(True)
    assert load_tensors(tmp_path / "a.pth")["w"].sum() == 1000


# ---- memory and time ------------------------------------------------------------------------------------------------


def zipped(path: Path, replaced: dict[str, bytes], compression: int = zipfile.ZIP_DEFLATED) -> None:
    """Write `path` again with other records."""
    with zipfile.ZipFile(io.BytesIO(path.read_bytes())) as old, zipfile.ZipFile(path, "w", compression) as new:
        for info in old.infolist():
            new.writestr(info.filename, replaced.get(info.filename.split("/", 1)[1]) or old.read(info))


def test_compressed_archives_are_read(tmp_path):
    torch.save({"w": torch.rand(10_000)}, tmp_path / "a.pth")
    expected = load_tensors(tmp_path / "a.pth")["w"]
    zipped(tmp_path / "a.pth", {})
    assert torch.equal(load_tensors(tmp_path / "a.pth")["w"], expected)


HOSTILE = {
    "deep lists": b"(" * 20_000 + b"l" * 20_000 + b".",
    "a large place in the memo": b"]r\xff\xff\xff\x7f.",
    "a large buffer": b"\x80\x05\x96" + struct.pack("<Q", 1 << 40) + b"x.",
    "a large text": b"\x80\x02X" + struct.pack("<I", (1 << 32) - 1) + b"x.",
    "a large storage": b"(Vstorage\nctorch\nFloatStorage\nV0\nVcpu\n\x8a\x06" + bytes(5) + b"\x01NtQ.",
}


@pytest.mark.parametrize("file", FILES)
@pytest.mark.parametrize("kind", HOSTILE)
def test_hostile_pickles_end_with_one_line(kind, file, tmp_path):
    FILES[file](tmp_path / "a.pth", binary(HOSTILE[kind]))
    with pytest.raises(ValueError, match=r"a\.pth' cannot be loaded: ") as caught:
        load_tensors(tmp_path / "a.pth")
    assert "\n" not in str(caught.value) and len(str(caught.value)) < 400
