"""Find a cure for a list that cannot be used, because of its rows or of paths that do not exist.

A cure is returned only if a check shows that it helps: the rows can be read, or most of the missing files exist.
"""

from __future__ import annotations

import os
import re
from collections.abc import Iterator, Sequence
from dataclasses import replace
from pathlib import Path

from slowfast.datasets.catalog import CATALOG
from slowfast.datasets.rows import COLUMNS, UNKNOWN, VIDEO_SUFFIXES, RowFormat, find_suffix

SEPARATORS = (",", " ", ";", "|")
MANY = 1000  # folders in one folder
HEADER = re.compile(r"[^0-9./\\]+")
SURPLUS = re.compile(r"[\s,;|][0-9.]+$")


def cure_rows(rows: Sequence[str], form: RowFormat) -> str:
    """Return a sentence with a cure for all rows of a list or, if there is none, with the columns that are needed."""
    loose = replace(form, num_classes=None, lowest=UNKNOWN)
    if loose.fits(rows):
        labels = [int(label) for row in rows for label in loose.labels(row)]
        return f"Labels run from {min(labels)} to {max(labels)}, and must run from {form.lowest} to num_classes - 1."
    header = f"The first line is a header ({rows[0]!r}): remove it. " if HEADER.fullmatch(rows[0]) else ""
    body = rows[1:] if header else rows
    if header and loose.fits(body):
        return header.strip()
    others = sorted({spec.columns for spec in CATALOG.values()} - {tuple(form.columns)}, key=len, reverse=True)
    for columns in (form.columns, *others):
        kinds = " or ".join(
            kind for kind, spec in CATALOG.items() if spec.columns == tuple(columns) and not spec.images
        )
        dataset = f"use a data set whose rows have them ({kinds}), and " if columns in others else ""
        for separator in (form.separator, *SEPARATORS):
            other = replace(loose, columns=columns, separator=separator)
            # if all paths end in a number, it is another column
            if other.fits(body) and not all(SURPLUS.search(other.split(row)[0]) for row in body):
                return f"{header}The rows have {' '.join(columns)}: {dataset}set separator to {separator!r}."
    if replace(loose, multi_label=True).fits(rows):
        return "Some rows have several labels, or none: keep one label per row, or set multi_label True."
    named = ", ".join(f"{name} ({COLUMNS[name]})" for name in form.columns)
    return f"A row must have {named}, with separator {form.separator!r} between them."


def cure_paths(paths: Sequence[str], prefix: str, suffix: str, source: str) -> str:
    """Return a sentence with the cure for missing files; "" if none was found.

    Args:
        paths: some of those that are missing, as listed.
        prefix: folder that is put before the paths.
        suffix: suffix that is put after the paths.
        source: the list file.
    """
    for places, cure in _other_places(paths, prefix, suffix, source):
        if 2 * sum(map(os.path.exists, places)) > len(places):
            return cure
    return ""


def _other_places(paths: Sequence[str], prefix: str, suffix: str, source: str) -> Iterator[tuple[list[str], str]]:
    """Yield other paths at which the files may be, and the cure if most of them exist."""
    for separator in SEPARATORS:
        heads = [path.split(separator, 1)[0] for path in paths]
        surplus, found = paths[0][len(heads[0]) :], find_suffix(prefix, heads)
        yield (
            [os.path.join(prefix, head + found) for head in heads],
            f"The rows have surplus columns: {heads[0]} exists without {surplus!r}: keep one path and one label per "
            "row, or use a data set whose rows have these columns.",
        )
    stems = [os.path.splitext(os.path.join(prefix, path)) for path in paths]
    for other in VIDEO_SUFFIXES:
        cure = f"The files exist with the suffix {other}, not {stems[0][1] or 'none'}: change it in the list."
        yield [stem + other for stem, _ in stems], cure
    below = [Path(prefix) / name for name in names_in(prefix or ".")[:MANY] if not name.endswith(VIDEO_SUFFIXES)]
    for folder in (*list(Path(prefix).absolute().parents)[:3], Path(source).parent, *below):
        yield [os.path.join(folder, path + suffix) for path in paths], f"They are below {folder}: set prefix to it."
    for depth in range(1, 4):
        shorter = [path.strip("/").split("/", depth)[-1] for path in paths]
        first = paths[0][: len(paths[0]) - len(shorter[0])]
        cure = f"They are below {prefix} without {first!r} in front: remove it from the list."
        yield [os.path.join(prefix, path + suffix) for path in shorter], cure


def names_in(folder: str) -> list[str]:
    """Return the sorted names in a folder; none if it cannot be listed."""
    try:
        return sorted(os.listdir(folder))
    except OSError:
        return []
