"""Read existing lists, and remove the rows of bad files; the original of a list cleaned in place is kept as .orig."""

from __future__ import annotations

import os
from collections.abc import Sequence
from dataclasses import dataclass
from itertools import product
from pathlib import Path

from slowfast.datasets.catalog import CATALOG, FRAME_COLUMNS, Dataset
from slowfast.datasets.lists import CLASS_FILES, ListError, VideoList, read_list
from slowfast.datasets.rows import LOOKS, find_suffix
from slowfast.utils.io import atomic_write, counted, write_text


def original_of(path: Path) -> Path:
    """Return the path of the copy of a list that was made before the list was cleaned in place."""
    return path.with_name(f"{path.name}.orig")


@dataclass(frozen=True)
class ListFile:
    """A list of a data set.

    Args:
        path: the file.
        columns: columns of its rows; if they do not fit, those of lists of frame folders are tried.
        separator: separator of the columns; if it does not fit, a comma and a blank are tried.
        videos: folder that the paths start from.
    """

    path: Path
    columns: Sequence[str]
    separator: str
    videos: str

    def read(self) -> VideoList:
        """Return the rows of the list, with the suffix of the videos.

        Rows may fit several formats, for example those with several labels, so the first format with which one of the
        first videos is found is preferred.
        """
        formats = dict.fromkeys((tuple(self.columns), FRAME_COLUMNS)), dict.fromkeys((self.separator, ",", " "))
        faults, found = list[ListError](), list[VideoList]()
        for columns, separator, multi in product(*formats, (False, True)):
            try:
                samples = read_list(self.path, columns, separator=separator, unknown=True, multi_label=multi)
            except ListError as error:
                faults.append(error)
                continue
            samples.suffix = find_suffix(self.videos, samples.listed)
            first = (samples.listed[row] + samples.suffix for row in range(min(len(samples), LOOKS)))
            if any(os.path.exists(os.path.join(self.videos, path)) for path in first):
                return samples
            found.append(samples)
        if not found:
            raise faults[0]
        return found[0]

    def without(self, bad: set[str]) -> tuple[str, int, list[int]]:
        """Return the text without the rows of the paths `bad`, their number, and the labels for which no row is left.

        Raises:
            ValueError: no row would be left.
        """
        samples = self.read()
        text = self.path.read_text(encoding="utf-8-sig", errors="surrogateescape")
        rows = [row for row in text.split("\n") if row.strip()]
        kept = [index for index in range(len(rows)) if samples.path(index) not in bad]
        if not kept:
            raise ValueError(
                f"all {len(rows)} videos of {self.path} are bad, so no row would be left: repair the videos first"
            )
        lost = set(samples.labels.tolist()) - {label for index in kept for label in samples.labels_of(index)}
        return "".join(f"{rows[index]}\n" for index in kept), len(rows) - len(kept), sorted(lost)


def list_files(folder: Path, dataset: Dataset, videos: str = "") -> list[ListFile]:
    """Return the lists in a folder.

    Raises:
        ValueError: there are none.
    """
    columns = CATALOG[dataset.kinds[0]].columns
    formats = {"{}.csv": ("path", "label") if dataset.frame_list_file else columns}
    if dataset.frame_list_file:
        formats = {dataset.frame_list_file: columns, **formats}
    files = [
        ListFile(path, columns, dataset.separator, videos)
        for template, columns in formats.items()
        for split in ("train", "val", "validation", "test", "official_test")
        if (path := folder / template.format(split)).is_file()
    ]
    if not files:
        raise ValueError(f"no lists in {folder}: make them with tools/prepare_data.py lists")
    return files


def clean_lists(lists: Sequence[ListFile], folder: Path, bad: set[str]) -> list[str]:
    """Write the lists and their class names without the rows of bad files; return one line per list.

    The first version of a list that is cleaned in place is kept as .orig.

    Raises:
        ValueError: a list would be empty, or there is a .orig of another list; then nothing is written.
    """
    cleaned = [(file, *file.without(bad)) for file in lists]
    in_place = folder.resolve() == lists[0].path.parent.resolve()
    for file, _, dropped, _ in cleaned if in_place else ():
        original = original_of(file.path)
        if dropped and original.exists() and not lines_of(file.path) <= lines_of(original):
            raise ValueError(f"{original} is not the original of {file.path}: move {original.name} away")
    lines = []
    for file, text, dropped, lost in cleaned:
        original = original_of(file.path)
        if in_place and dropped and not original.exists():
            with atomic_write(original) as copy:
                copy.write(file.path.read_bytes())
        if not in_place or dropped:
            write_text(folder / file.path.name, text)
        kept = f"; {original.name} is the list as it was" if in_place and dropped else ""
        note = f"; no video is left of {counted(len(lost), 'class')}, such as label {lost[0]}" if lost else ""
        lines.append(f"{folder / file.path.name}: {counted(dropped, 'row')} left out{kept}{note}")
    for name in CLASS_FILES if not in_place else ():
        if (names := lists[0].path.with_name(name)).exists():
            write_text(folder / name, names.read_text(encoding="utf-8", errors="surrogateescape"))
    return lines


def lines_of(path: Path) -> set[bytes]:
    """Return the lines of a list."""
    return {line.strip() for line in path.read_bytes().splitlines()} - {b""}
