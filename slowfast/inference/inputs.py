"""Find the videos that a command line names: files, folders, patterns, lists and web addresses."""

from __future__ import annotations

import glob
import os
import tempfile
from collections.abc import Sequence
from pathlib import Path

from slowfast.datasets.rows import VIDEO_SUFFIXES
from slowfast.weights.fetch import fetch

LIST_SUFFIXES = (".txt", ".csv", ".lst")
IMAGE_SUFFIXES = (".jpg", ".jpeg", ".png", ".bmp", ".webp")


def find_videos(sources: Sequence[str]) -> list[str]:
    """Return the paths of videos, and of folders of frames, without duplicates.

    Args:
        sources: video files; folders, which are searched with all folders below; shell patterns; lists of paths (.txt
            or .csv, other columns are ignored; paths are relative to the current folder or to that of the list); web
            addresses, which are downloaded once.

    Raises:
        ValueError: a source does not exist or contains no video.
    """
    found: dict[str, None] = {}
    for source in sources:
        found.update(dict.fromkeys(_expand(source)))
    return [*found]


def _expand(source: str) -> list[str]:
    if source.startswith(("http://", "https://", "hf://")):
        return [fetch(source)]
    if os.path.isdir(source):
        return _in_folder(source)
    if os.path.isfile(source):
        return _in_list(source) if source.lower().endswith(LIST_SUFFIXES) else [source]
    if matched := sorted(glob.glob(source, recursive=True)):
        return [path for match in matched for path in _expand(match)]
    kind = "pattern matches no file" if glob.has_magic(source) else "no such file or folder"
    raise ValueError(f"{source}: {kind}; check the path")


def _in_folder(folder: str) -> list[str]:
    files = sorted(str(path) for path in Path(folder).rglob("*") if path.is_file())
    if videos := [path for path in files if path.lower().endswith(VIDEO_SUFFIXES)]:
        return videos
    images = [path for path in files if path.lower().endswith(IMAGE_SUFFIXES)]
    if not images:
        raise ValueError(
            f"{folder} contains no video: give a folder with files such as {', '.join(VIDEO_SUFFIXES[:4])}"
        )
    return sorted({os.path.dirname(path) for path in images})


def _in_list(path: str) -> list[str]:
    try:
        lines = Path(path).read_text(encoding="utf-8-sig", errors="surrogateescape").splitlines()
    except OSError as error:
        raise ValueError(f"{path} cannot be read ({error.strerror}): give a list of videos") from None
    rows = [line.strip() for line in lines if line.strip()]
    if not rows:
        raise ValueError(f"{path} is empty: write one path per line")
    return [_listed(row, os.path.dirname(path)) for row in rows]


def _listed(row: str, folder: str) -> str:
    """Return the path in a row; if none exists, that of its first column in the folder of the list."""
    last = [row.rsplit(separator, 1)[0] for separator in (",", None, ',"')]  # without the label, or several in quotes
    forms = [row, *last, row.split(",")[0], row.split()[0]]
    forms = [form.strip().strip('"') for form in forms]
    places = [place for form in forms for place in (form, os.path.join(folder, form))]
    first = row.rsplit(",", 1)[0] if "," in row else row.split()[0]
    return next((place for place in places if os.path.exists(place)), os.path.join(folder, first))


def check_output(path: str, option: str) -> None:
    """Check that a file can be written, before the work begins.

    Raises:
        ValueError: it cannot.
    """
    folder = os.path.dirname(os.path.abspath(path))
    try:
        if os.path.isdir(path):
            raise IsADirectoryError(0, "it is a folder")
        os.makedirs(folder, exist_ok=True)
        with tempfile.TemporaryFile(dir=folder):
            pass
    except OSError as error:
        raise ValueError(f"{option} {path} cannot be written ({error.strerror}): choose another place") from None
