"""The description of the programs and the machine."""

from __future__ import annotations

import subprocess
from pathlib import Path

import torch

from slowfast.utils import environment as module
from slowfast.utils.environment import environment, git_commit, package_version


def test_versions_are_those_that_are_installed():
    found = environment()
    assert torch.__version__.startswith(found["torch"]) and int(found["CPU cores"]) >= 1
    assert all(isinstance(value, str) for value in found.values())
    assert package_version("no-such-package") == "not installed"


def test_the_commit_says_whether_files_were_changed(tmp_path, monkeypatch):
    monkeypatch.setattr(module, "__file__", str(tmp_path / "slowfast/utils/environment.py"))
    assert git_commit() == "None"
    (tmp_path / "file").write_text("a")
    git = ["git", "-C", str(tmp_path), "-c", "user.name=a", "-c", "user.email=a@b"]
    for arguments in (["init", "-q"], ["add", "file"], ["commit", "-q", "-m", "first"]):
        subprocess.run([*git, *arguments], check=True)
    first = git_commit()
    assert len(first) == 40
    Path(tmp_path / "file").write_text("b")
    assert git_commit() == f"{first} + changes"
