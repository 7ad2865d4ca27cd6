"""Parse the rows of a list, which are a path and numbers; find cures of faulty rows, and the suffix that paths lack."""

from __future__ import annotations

import math
import os
import re
from collections.abc import Sequence
from dataclasses import dataclass, replace
from functools import lru_cache
from itertools import product

from slowfast.datasets.catalog import CATALOG
from slowfast.utils.class_names import unquoted

# Columns that a list can have. The path is the first one, all others are numbers.
COLUMNS = {
    "path": "video file or folder of frames, relative to the prefix",
    "label": "class, counted from 0",
    "num_frames": "frames in the folder",
    "total": "duration of the video in seconds",
    "begin": "start of the action in seconds",
    "end": "end of the action in seconds",
}
VIDEO_SUFFIXES = (
    ".mp4", ".webm", ".avi", ".mkv", ".mov", ".3gp", ".asf", ".flv", ".gif", ".m2ts", ".m4v", ".mpeg", ".mpg", ".mts",
    ".ogv", ".ts", ".vob", ".wmv",
)  # fmt: skip
UNKNOWN = -1  # label of a video in a test list whose class is not known
DIGITS = 15  # most digits of a number that a float64 represents exactly
# Other forms that Python accepts, such as 1_000 and the digits of other scripts, are more likely a mistake.
WHOLE = re.compile(r"[+-]?[0-9]+")
NUMBER = re.compile(r"[+-]?([0-9]+\.?[0-9]*|\.[0-9]+)([eE][+-]?[0-9]+)?")
UNQUOTED = re.compile(r"(,|\.\w+\s+)[0-9]+$")  # end of a path that is a label: the row has several, not in quotes
LOOKS = 10  # number of rows checked to find the suffix
SEPARATORS = (",", " ", ";", "|")  # that lists of other programs have
LABEL_MARKS = ("|", ";")  # between the labels of a row in other programs
FRAME_HEADER = ["original_vido_id", "video_id", "frame_id", "path", "labels"]  # of PySlowFast
HEADER = re.compile(r"[^0-9./\\]+")
SURPLUS = re.compile(r"[\s,;|][0-9.]+$")
NAME = re.compile(r"[^./\\]*[^\W\d_][^./\\]*")  # a class name: it has a letter, and is neither a number nor a path
SPLITS = {"train", "val", "valid", "validate", "validation", "test"}  # in a last column of official annotations
FRACTION = re.compile(r"-?[0-9]+\.0*")  # a whole number as pandas writes it if a value of the column is missing


@dataclass(frozen=True)
class RowFormat:
    """The columns of a list, and the values that are allowed in them.

    Args:
        columns: names from `COLUMNS`, in the order of the row.
        separator: between the columns; a blank means any run of blanks and tabs.
        num_classes: labels must be below it; None does not check.
        lowest: labels must not be below it.
        multi_label: the last column, label, has any number of classes, separated by commas: `a.mp4 3,17`. They may
            be in quotes. No class is `a.mp4 ""`. If the separator is a comma, several need quotes: `a.mp4,"3,17"`.
    """

    columns: Sequence[str] = ("path", "label")
    separator: str = " "
    num_classes: int | None = None
    lowest: int = 0
    multi_label: bool = False

    @property
    def cut(self) -> str | None:
        """The separator as an argument of `str.split`."""
        return self.separator.strip(" ") or None

    def split(self, row: str) -> list[str]:
        """Return the fields of a row, which is split from the right: a path may contain the separator."""
        count = len(self.columns) - 1
        if self.multi_label and row.endswith('"'):  # the quoted labels may contain the separator
            start = row.rfind('"', 0, -1)
            head = row[: max(start, 0)].rstrip()
            if head and (head.endswith(self.cut) if self.cut else len(head) < start):
                fields = head.removesuffix(self.cut or "").rsplit(self.cut, count - 1)
                return [unquoted(field) for field in (*fields, row[start:])]
        return [unquoted(field) for field in row.rsplit(self.cut, count)]

    def parse(self, row: str) -> tuple[str, list[float], str]:
        """Return the path, the numbers and the fault ("" for none) of a stripped row.

        If `multi_label` is set, the last numbers are the labels, any number of them.
        """
        path, *fields = self.split(row)
        if not path:
            return path, [], "the path is empty"
        if len(fields) + 1 < len(self.columns):
            held = f"{len(fields) + 1} of {len(self.columns)} columns ({', '.join(self.columns)})"
            return path, [], f"{held} when split by {self.separator!r}"
        names = self.columns[1:]
        if self.multi_label:
            labels = [label.strip() for label in fields[-1].split(",")] if fields[-1] or row[-2:] != '""' else []
            if fault := self._labels_fault(path, labels):
                return path, [], fault
            names, fields = [*names[:-1], *["label"] * len(labels)], fields[:-1] + labels
        for name, field in zip(names, fields, strict=True):
            if fault := _fault(name, field, self.num_classes, self.lowest):
                return path, [], fault
        values = [float(field) for field in fields]
        return path, values, _segment_fault(*values[:3]) if "total" in self.columns else ""

    def _labels_fault(self, path: str, labels: Sequence[str]) -> str:
        if (self.cut == "," and path[-1].isdigit() and UNQUOTED.search(path)) or (not self.cut and path[-1] == ","):
            return "several labels must be in quotes"
        unknown = len(labels) > 1 and str(UNKNOWN) in labels
        return f"label {UNKNOWN}, for unknown classes, must be the only one" if unknown else ""

    def fits(self, rows: Sequence[str]) -> bool:
        """Return whether there are rows and none has a fault."""
        return bool(rows) and not any(self.parse(row)[2] for row in rows)


@lru_cache(10_000)  # many rows have the same labels
def _fault(name: str, field: str, num_classes: int | None, lowest: int) -> str:
    form, kind = (WHOLE, "whole number") if name in ("label", "num_frames") else (NUMBER, "number")
    if not form.fullmatch(field) or abs(float(field)) >= 10**DIGITS:
        return f"{name} {field!r} is not a {kind} below 10**{DIGITS}"
    if name in ("num_frames", "total") and float(field) <= 0:
        return f"{name} {field!r} is not above 0"
    if name == "label" and not lowest <= int(field) < (num_classes or math.inf):
        top = "" if num_classes is None else f"..{num_classes - 1} (num_classes is {num_classes})"
        return f"label {int(field)} is outside {lowest}{top}"
    return ""


def _segment_fault(total: float, begin: float, end: float) -> str:
    if not 0 <= begin <= end:
        return f"begin {begin:g} must be 0 or more, and end {end:g} must not be before it"
    return f"begin {begin:g} is not before the end of the video at total {total:g}" if begin >= total else ""


def find_suffix(prefix: str, paths: Sequence[str]) -> str:
    """Return the suffix of the files that the listed paths lack, for example `.webm` of `78687.webm`; "" for none.

    A folder of frames has the listed name itself. The first path for which a file or folder exists decides.
    """
    for place in range(min(len(paths), LOOKS)):
        path = os.path.join(prefix, paths[place])
        if path.lower().endswith(VIDEO_SUFFIXES) or os.path.exists(path):
            return ""
        if suffix := next((suffix for suffix in VIDEO_SUFFIXES if os.path.exists(path + suffix)), ""):
            return suffix
    return ""


def cure_rows(rows: Sequence[str], form: RowFormat) -> str:
    """Return a sentence with a cure for all rows of a list or, if none helps, with the columns that are needed."""
    if rows[0].split() == FRAME_HEADER:
        return "A row is a frame, as in PySlowFast: make lists of videos with prepare_data.py lists (see DATASET.md)."
    loose = replace(form, num_classes=None, lowest=UNKNOWN)
    if loose.fits(rows):
        labels = [int(label) for row in rows for label in loose.parse(row)[1][len(form.columns) - 2 :]]
        return _cure_range(min(labels), max(labels), form)
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
    if cure := _cure_labels(body, loose):
        return header + cure
    if replace(loose, multi_label=True).fits(rows):
        return "Some rows have several labels, or none: keep one label per row, or set multi_label True."
    if cure := _cure_kind(body, form) or _cure_unlabelled(body, form):
        return header + cure
    named = ", ".join(f"{name} ({COLUMNS[name]})" for name in form.columns)
    labels = ' Several labels have commas between them; a video of no class has "".' * form.multi_label
    return f"A row must have {named}, with separator {form.separator!r} between them.{labels}"


def _cure_unlabelled(rows: Sequence[str], form: RowFormat) -> str:
    """Return the cure of rows that are paths of videos without labels; "" if they are not."""
    columns = any(mark in row.strip() for row in rows for mark in SEPARATORS)  # for example, a label before the path
    if columns or not rows or not all(row.lower().strip("\"' ").endswith(VIDEO_SUFFIXES) for row in rows):
        return ""
    unknown = ", or -1 if it is unknown" if form.lowest == UNKNOWN else ""
    return (
        "The rows contain paths only, as official test lists of UCF101 do: write the number of the class behind each "
        f"path{unknown}, or make the lists with prepare_data.py lists (see DATASET.md)."
    )


def _cure_range(first: int, last: int, form: RowFormat) -> str:
    """Return the cure of labels from `first` to `last`, some of which are not classes."""
    span = f"Labels run from {first} to {last}, and must run from {form.lowest} to num_classes - 1"
    if first == 1 and last == form.num_classes:
        return f"{span}: subtract 1 from each label of all lists."
    return f"{span}: set num_classes to at least {last + 1}." if first == form.lowest == 0 else f"{span}."


def _cure_labels(rows: Sequence[str], form: RowFormat) -> str:
    """Return the cure of rows whose labels are separated by another character than a comma; "" if they are not."""
    setting = "" if form.multi_label else "multi_label to True, and "
    for separator, mark in product((form.separator, *SEPARATORS), LABEL_MARKS):
        cut = [row.rpartition(separator) for row in rows]
        mended = [f'{path}{between}"{labels.replace(mark, ",")}"' for path, between, labels in cut]
        several = [labels for _, _, labels in cut if mark in labels]
        if several and replace(form, multi_label=True, separator=separator).fits(mended):
            cure = f'write "{several[0].replace(mark, ",")}" with its quotes for {several[0]}'
            return f"Some rows have several labels: {cure}, and set {setting}separator to {separator!r}."
    return ""


def _cure_kind(rows: Sequence[str], form: RowFormat) -> str:
    """Return the cure of rows whose labels are class names, or numbers with a point; "" if they are neither."""
    for separator in (form.separator, *SEPARATORS):
        fields = [replace(form, separator=separator).split(row) for row in rows]
        if not fields or any(len(row) < len(form.columns) for row in fields):
            continue
        labels = [row[-1] for row in fields]
        if all(map(NAME.fullmatch, labels)) and not SPLITS.issuperset(map(str.lower, labels)):
            return (
                f"The labels are class names ({labels[0]!r}): write their numbers instead, counted from 0 in the order "
                "of the sorted names. docs/OWN_VIDEOS.md makes such lists from a table of class names."
            )
        if all(map(FRACTION.fullmatch, labels)):
            return f"The labels must be whole numbers: write {labels[0].split('.')[0]} for {labels[0]}."
    return ""
