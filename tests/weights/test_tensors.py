"""Files of tensors: what they hold is loaded, and never executed."""

from __future__ import annotations

import pickle
import tarfile
from io import BytesIO
from pathlib import Path

import pytest
import safetensors.torch as safetensors
import torch

from slowfast.weights.tensors import load_tensors


class _Evil:
    def __reduce__(self):
        return (Path.touch, (Path("evil"),))


def _tar(path: Path) -> None:
    """A checkpoint of PyTorch before 0.4, and a member that wants to be written elsewhere."""
    with tarfile.open(path, "w") as archive:
        for name in ("sys_info", "pickle", "storages", "tensors", "../evil"):
            data = pickle.dumps(_Evil())
            member = tarfile.TarInfo(name)
            member.size = len(data)
            archive.addfile(member, BytesIO(data))


EVIL_FILES = {
    "zip": lambda path: torch.save({"model": _Evil()}, path),
    "before PyTorch 1.6": lambda path: torch.save({"model": _Evil()}, path, _use_new_zipfile_serialization=False),
    "before PyTorch 0.4": _tar,
    "bare pickle": lambda path: path.write_bytes(pickle.dumps({"model": _Evil()})),
    "safetensors": lambda path: path.write_bytes(pickle.dumps(_Evil())),
}


@pytest.mark.parametrize("kind", EVIL_FILES)
def test_nothing_in_a_file_is_executed(kind, tmp_path, monkeypatch):
    (tmp_path / "folder").mkdir()
    monkeypatch.chdir(tmp_path / "folder")
    path = tmp_path / "folder" / ("weights.safetensors" if kind == "safetensors" else "weights.pth")
    EVIL_FILES[kind](path)
    with pytest.raises(ValueError, match=r"weights\..* cannot be loaded .*never executed"):
        load_tensors(path)
    assert [file.name for file in tmp_path.rglob("*")] == ["folder", path.name]


def test_safetensors(tmp_path):
    safetensors.save_file({"a": torch.arange(3)}, tmp_path / "a.safetensors")
    assert load_tensors(tmp_path / "a.safetensors")["a"].tolist() == [0, 1, 2]
    (tmp_path / "torn.safetensors").write_bytes((tmp_path / "a.safetensors").read_bytes()[:-4])
    with pytest.raises(ValueError, match=r"torn\.safetensors.* cannot be loaded"):
        load_tensors(tmp_path / "torn.safetensors")
