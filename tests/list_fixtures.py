"""Folders of files for tests of lists, and the lists that are made of them."""

from __future__ import annotations

import os
from pathlib import Path

from slowfast.prepare.scan import describe
from slowfast.prepare.write import Lists


def touch(root: Path, *paths: str, content: str | None = None) -> Path:
    """Write files whose content is their own path; lists depend on names and bytes only."""
    for path in paths:
        (root / path).parent.mkdir(parents=True, exist_ok=True)
        (root / path).write_bytes(os.fsencode(path if content is None else content))
    return root


def make_classes(root: Path, count: int, classes: str = "abc") -> Path:
    return touch(root, *(f"{name}/{i}.mp4" for name in classes for i in range(count)))


def places(lists: Lists) -> dict[str, str]:
    """Return path -> split."""
    return {path: split for split in ("train", "val", "test") for path, _ in lists.splits[split]}


def notes_of(lists: Lists) -> str:
    return "\n".join(describe(lists.notes))
