"""Parse the rows of a list, which are a path and numbers, and find the suffix that its paths lack."""

from __future__ import annotations

import os
import re
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import cached_property, lru_cache

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
    ".mp4", ".webm", ".avi", ".mkv", ".mov", ".3gp", ".flv", ".m2ts", ".m4v", ".mpeg", ".mpg", ".mts", ".ogv", ".ts",
    ".wmv",
)  # fmt: skip
UNKNOWN = -1  # label of a video in a test list whose class is not known
DIGITS = 15  # of a number, so that a float64 holds it exactly
# Other forms that Python accepts, such as 1_000 and the digits of other scripts, are more likely a mistake.
WHOLE = re.compile(r"[+-]?[0-9]+")
NUMBER = re.compile(r"[+-]?([0-9]+\.?[0-9]*|\.[0-9]+)([eE][+-]?[0-9]+)?")
KNOWN = 100_000  # parsed ends of rows that are kept
LOOKS = 10  # rows checked to find the suffix of all


@dataclass(frozen=True, eq=False)
class RowFormat:
    """The columns of a list, and the values that they may have.

    Args:
        columns: names from `COLUMNS`, in the order of the row.
        separator: between the columns; a blank means any run of blanks and tabs.
        num_classes: labels must be below it; None does not check.
        lowest: labels must not be below it.
    """

    columns: Sequence[str] = ("path", "label")
    separator: str = " "
    num_classes: int | None = None
    lowest: int = 0

    @cached_property
    def parse(self) -> Callable[[str], tuple[str, tuple[float, ...], str]]:
        """The function from a row, without blanks at its ends, to its path, its numbers and its fault ("" for none)."""
        cut, count = self._cut, len(self.columns) - 1
        parse_numbers = lru_cache(KNOWN)(self._parse_numbers)  # many rows of a list end alike

        def parse(row: str) -> tuple[str, tuple[float, ...], str]:
            name = row.rsplit(cut, count)[0]
            numbers, fault = parse_numbers(row[len(name) :])
            path = unquoted(name) if '"' in name else name.strip()
            return path, numbers, fault if path else "the path is empty"

        return parse

    def split(self, row: str) -> list[str]:
        """Return the fields of a row, which is split from the right: a path may contain the separator."""
        return [unquoted(field) for field in row.rsplit(self._cut, len(self.columns) - 1)]

    def fits(self, rows: Sequence[str]) -> bool:
        """Return whether there are rows and none has a fault."""
        return bool(rows) and not any(self.parse(row)[2] for row in rows)

    @property
    def _cut(self) -> str | None:
        return self.separator.strip(" ") or None

    def _parse_numbers(self, rest: str) -> tuple[tuple[float, ...], str]:
        fields = self.split(f"-{rest}")  # "-" in the place of the path
        if len(fields) < len(self.columns):
            held = f"{len(fields)} of {len(self.columns)} columns ({', '.join(self.columns)})"
            return (), f"{held} when split by {self.separator!r}"
        values: dict[str, float] = {}
        for name, field in zip(self.columns[1:], fields[1:], strict=True):
            if fault := self._fault(name, field):
                return (), fault
            values[name] = float(field)
        return tuple(values.values()), _segment_fault(**values) if "total" in values else ""

    def _fault(self, name: str, field: str) -> str:
        form, kind = (WHOLE, "whole number") if name in ("label", "num_frames") else (NUMBER, "number")
        if not form.fullmatch(field) or abs(float(field)) >= 10**DIGITS:
            return f"{name} {field!r} is not a {kind} below 10**{DIGITS}"
        if name in ("num_frames", "total") and float(field) <= 0:
            return f"{name} {field!r} is not above 0"
        return label_fault(int(field), self.num_classes, self.lowest) if name == "label" else ""


def label_fault(label: int, num_classes: int | None, lowest: int = 0) -> str:
    """Return the fault of a label, or "" for none."""
    if label < lowest or (num_classes is not None and label >= num_classes):
        top = "" if num_classes is None else f"..{num_classes - 1} (num_classes is {num_classes})"
        return f"label {label} is outside {lowest}{top}"
    return ""


def _segment_fault(total: float, begin: float, end: float, **_: float) -> str:
    if not 0 <= begin <= end:
        return f"begin {begin:g} must be 0 or more, and end {end:g} must not be before it"
    return f"begin {begin:g} is not before the end of the video at total {total:g}" if begin >= total else ""


def find_suffix(prefix: str, paths: Sequence[str]) -> str:
    """Return the suffix that files have and listed names lack, such as `.webm` of `78687.webm`; "" for none.

    Extracted frames are in a folder of the listed name. The first path for which a file or folder exists decides.
    """
    for place in range(min(len(paths), LOOKS)):
        path = os.path.join(prefix, paths[place])
        if path.lower().endswith(VIDEO_SUFFIXES) or os.path.exists(path):
            return ""
        if suffix := next((suffix for suffix in VIDEO_SUFFIXES if os.path.exists(path + suffix)), ""):
            return suffix
    return ""
