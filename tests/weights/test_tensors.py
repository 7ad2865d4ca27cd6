"""Test that files of tensors are loaded, and other files are recognised."""

from __future__ import annotations

import gzip
import re
import tarfile
import zipfile
from pathlib import Path

import pytest
import safetensors.torch as safetensors
import torch

from slowfast.weights.tensors import load_tensors


def _tar(path: Path) -> None:
    with tarfile.open(path, "w") as archive:
        archive.addfile(tarfile.TarInfo("pickle"))


PAGE = "<!DOCTYPE html>\n<html lang=en><head><title>404</title></head><body></body></html>"
LFS = f"version https://git-lfs.github.com/spec/v1\noid sha256:{'4d7a2146' * 8}\nsize 12345\n"


def _zip(path: Path) -> None:
    with zipfile.ZipFile(path, "w") as archive:
        archive.writestr("weights/model.pth", "x")


OTHER_FILES = {
    "a page": (lambda path: path.write_text(f"\ufeff\n{PAGE}"), "web page"),
    "Git LFS": (lambda path: path.write_text(LFS), "Git LFS pointer .*run `git lfs pull`"),
    "JSON": (lambda path: path.write_text('{"weight_map": {}}'), "JSON file, .*save these as one file"),
    "gzip": (lambda path: path.write_bytes(gzip.compress(b"weights")), "gzip archive; unpack it"),
    "zip": (_zip, r"zip archive of weights/model\.pth, .*unpack it"),
    "tar": (_tar, "tar archive"),
    "nothing": (lambda path: path.write_bytes(b""), "it is empty"),
    "text": (lambda path: path.write_text("hello"), "damaged or not a file of tensors"),
    "a list": (lambda path: torch.save([torch.ones(1)], path), "holds a list, not a dictionary"),
    "half a file": (
        lambda path: (torch.save({"w": torch.ones(9)}, path), path.write_bytes(path.read_bytes()[:300])),
        "damaged",
    ),
}


@pytest.mark.parametrize("name", ["weights.pth", "weights.safetensors"])
@pytest.mark.parametrize("kind", OTHER_FILES)
def test_other_files_are_recognised(kind, name, tmp_path):
    write, reason = OTHER_FILES[kind]
    write(tmp_path / name)
    torch_only = kind in ("a list", "half a file") and name.endswith("safetensors")
    with pytest.raises(
        ValueError, match="cannot be loaded" if torch_only else f"cannot be loaded: .*{reason}"
    ) as caught:
        load_tensors(tmp_path / name)
    assert "\n" not in str(caught.value) and "weights_only" not in str(caught.value)


def test_damaged_weights_that_were_downloaded_name_the_file_to_remove(tmp_path, monkeypatch):
    monkeypatch.setenv("SLOWFAST_HOME", str(tmp_path))
    path = tmp_path / "host/model.pth"
    path.parent.mkdir()
    path.write_bytes(b"PK damaged")
    with pytest.raises(ValueError, match=f"remove {re.escape(str(path))} and download it again"):
        load_tensors("https://host/model.pth")
    monkeypatch.setenv("SLOWFAST_HOME", str(tmp_path / "other"))
    with pytest.raises(ValueError, match="; download it again"):
        load_tensors(path)


def test_damaged_weights_are_detected(tmp_path):
    torch.save({"w": torch.full((100,), 3.0)}, tmp_path / "a.pth")
    content = bytearray((tmp_path / "a.pth").read_bytes())
    content[content.index(torch.full((2,), 3.0).numpy().tobytes())] ^= 1
    (tmp_path / "a.pth").write_bytes(content)
    with pytest.raises(ValueError, match="damaged"):
        load_tensors(tmp_path / "a.pth")


def test_safetensors_load(tmp_path):
    for name in ("a.safetensors", "A.SAFETENSORS", "a.bin", "a"):  # the suffix does not matter
        safetensors.save_file({"a": torch.arange(3)}, tmp_path / name)
        assert load_tensors(tmp_path / name)["a"].tolist() == [0, 1, 2]
    safetensors.save_file({"a": torch.arange(3)}, tmp_path / "b.safetensors", {"class_names": "cat, dog"})
    assert load_tensors(tmp_path / "b.safetensors")["a"].tolist() == [0, 1, 2]
    metadata = {"class_names": '["cat"]', "class_order": "by hand"}  # the second of another program
    safetensors.save_file({"a": torch.arange(3)}, tmp_path / "c.safetensors", metadata)
    assert load_tensors(tmp_path / "c.safetensors")["class_names"] == ["cat"]
    (tmp_path / "torn.safetensors").write_bytes((tmp_path / "a.safetensors").read_bytes()[:-4])
    with pytest.raises(ValueError, match=r"torn\.safetensors.* cannot be loaded"):
        load_tensors(tmp_path / "torn.safetensors")
