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

SEPARATORS = (",", " ", "\t", ";", "|")
MANY = 1000  # folders in one folder
SEVERAL = re.compile(r"[0-9]+([^0-9.eE+-][0-9]+)+")
HEADER = re.compile(r"[^0-9./\\]+")
SURPLUS = re.compile(r"[\s,;|][0-9.]+$")
# Column in the first line of a file that is not a list -> cure.
FOREIGN = {
    "time_start": "This is an annotation of Kinetics: tools/prepare_data.py lists --annotations makes lists from it.",
    "original_vido_id": "This is a list of single frames of Something-Something: use the official JSON files of its "
    "videos, something-something-v2-*.json.",
}


def cure_rows(rows: Sequence[str], form: RowFormat) -> str:
    """Return a sentence with a cure for all rows of a list or, if there is none, with the columns that are needed."""
    num_classes, form = form.num_classes, replace(form, num_classes=None)
    if form.fits(rows):
        return _cure_labels([int(label) for row in rows for label in form.labels(row)], num_classes)
    if replace(form, lowest=UNKNOWN).fits(rows):
        return f"Labels count from 0; {UNKNOWN}, for a class that is not known, is for test lists only."
    if cure := next((cure for column, cure in FOREIGN.items() if column in rows[0]), ""):
        return cure
    header = f"The first line is a header ({rows[0]!r}): remove it. " if HEADER.fullmatch(rows[0]) else ""
    body = rows[1:] if header else rows
    if header and form.fits(body):
        return header.strip()
    cure = _cure_format(body, form)
    return header + cure if cure else _cure_last_field(rows, form)


def _cure_format(rows: Sequence[str], form: RowFormat) -> str:
    """Return the cure for rows with another separator or with the columns of another data set; "" for other rows."""
    if not all(form.split(row)[0].lower().endswith(VIDEO_SUFFIXES) for row in rows):
        for separator in SEPARATORS:
            if _fits_well(rows, replace(form, separator=separator, lowest=UNKNOWN)):
                return f"The rows are separated by {separator!r}: set separator to it."
    others = sorted({spec.columns for spec in CATALOG.values()} - {tuple(form.columns)}, key=len, reverse=True)
    for separator in (form.separator, *SEPARATORS):
        for columns in others:
            if _fits_well(rows, replace(form, columns=columns, separator=separator, lowest=UNKNOWN)):
                cure = f"use a data set whose rows have them ({kinds_with(columns)}), and separator {separator!r}"
                return f"The rows have {' '.join(columns)}: {cure}."
    return ""


def _fits_well(rows: Sequence[str], form: RowFormat) -> bool:
    """Return whether the rows can be read and are plausible: if all paths end in a number, it is another column."""
    return form.fits(rows) and not all(SURPLUS.search(form.split(row)[0]) for row in rows)


def _cure_labels(labels: Sequence[int], num_classes: int | None) -> str:
    largest = max(labels)
    if largest == num_classes and 0 not in labels:
        return f"Labels run from {min(labels)} to {largest}, and none is 0: count them from 0."
    return f"Labels run to {largest}: num_classes must be at least {largest + 1}, or the labels are wrong."


def _cure_last_field(rows: Sequence[str], form: RowFormat) -> str:
    if replace(form, multi_label=True).fits(rows):
        return "Some rows have several labels, or none: keep one label per row, or set multi_label True."
    last = [fields[-1] for row in rows if len(fields := form.split(row)) == len(form.columns)]
    if any(SEVERAL.fullmatch(field) for field in last):
        return "Some rows have several labels: keep one per row, or separate them by commas and set multi_label True."
    if last and all(field[:1].isalpha() for field in last):
        return "Rows end in class names: write numbers instead, counted from 0 in the order of class_names.txt."
    named = ", ".join(f"{name} ({COLUMNS[name]})" for name in form.columns)
    return f"A row must have {named}, with separator {form.separator!r} between them."


def names_in(folder: str) -> list[str]:
    """Return the sorted names in a folder; none if it cannot be listed."""
    try:
        return sorted(os.listdir(folder))
    except OSError:
        return []


def kinds_with(columns: Sequence[str]) -> str:
    """Return the names of the rows of `CATALOG` whose lists have these columns."""
    return " or ".join(kind for kind, spec in CATALOG.items() if spec.columns == tuple(columns) and not spec.images)


def cure_paths(paths: Sequence[str], prefix: str, suffix: str, source: str) -> str:
    """Return a sentence with the cure for missing files; "" if none was found.

    Args:
        paths: some of those that are missing, as listed.
        prefix: folder that is put before the paths.
        suffix: suffix that is put after the paths.
        source: the list file.
    """
    for ways in (_surplus_columns(paths, prefix), _suffixes(paths, prefix), _folders(paths, prefix, suffix, source)):
        for places, cure in ways:
            if 2 * sum(map(os.path.exists, places)) > len(places):
                return cure
    return ""


# Each of the following functions yields other paths at which the files may be, and the cure if most of them exist.
Ways = Iterator[tuple[list[str], str]]


def _surplus_columns(paths: Sequence[str], prefix: str) -> Ways:
    for separator in SEPARATORS:
        for surplus in range(1, 5):
            parts = [path.rsplit(separator.strip() or None, surplus) for path in paths]
            if min(map(len, parts)) <= surplus:
                break
            heads, fields = [first for first, *_ in parts], parts[0][1:]
            suffix = find_suffix(prefix, heads)
            columns = next((spec.columns for spec in CATALOG.values() if len(spec.columns) == surplus + 2), ())
            other = f", or use a data set whose rows have {' '.join(columns)} ({kinds_with(columns)})"
            yield (
                [os.path.join(prefix, path + suffix) for path in heads],
                f"The rows have {surplus} surplus column{'s' * (surplus > 1)}: {heads[0]}{suffix} exists without "
                f"{' '.join(fields)!r}: keep one path and one label per row{other if columns else ''}.",
            )


def _suffixes(paths: Sequence[str], prefix: str) -> Ways:
    stems = [os.path.splitext(os.path.join(prefix, path)) for path in paths]
    for suffix in VIDEO_SUFFIXES:
        cure = f"The files exist with the suffix {suffix}, not {stems[0][1] or 'none'}: change it in the list."
        yield [stem + suffix for stem, _ in stems], cure


def _folders(paths: Sequence[str], prefix: str, suffix: str, source: str) -> Ways:
    names = [name for name in names_in(prefix or ".") if os.path.splitext(name)[1] not in VIDEO_SUFFIXES]
    below = [Path(prefix) / name for name in names[:MANY]]
    for folder in (*list(Path(prefix).absolute().parents)[:3], Path(source).parent, *below):
        yield [os.path.join(folder, path + suffix) for path in paths], f"They are below {folder}: set prefix to it."
    for depth in range(1, 4):
        shorter = [path.strip("/").split("/", depth)[-1] for path in paths]
        first = paths[0][: len(paths[0]) - len(shorter[0])]
        cure = f"They are below {prefix} without {first!r} in front: remove it from the list."
        yield [os.path.join(prefix, path + suffix) for path in shorter], cure
    places = [
        next((place for folder in below if os.path.exists(place := os.path.join(folder, path + suffix))), "")
        for path in paths
    ]
    example = os.path.dirname(next(filter(None, places), ""))
    yield places, f"They are in several folders below {prefix}, such as {example}: add the folders to the listed paths."
