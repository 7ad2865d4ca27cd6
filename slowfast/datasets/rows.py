"""Parse the rows of a list: their columns, the fault of a row, and the cure for all rows."""

from __future__ import annotations

import math
import re
from collections.abc import Sequence
from functools import lru_cache

from slowfast.datasets.catalog import CATALOG
from slowfast.utils.class_names import unquoted

# Columns a list can have; the path is the first one, the others are numbers.
COLUMNS = {
    "path": "video file or folder of frames, relative to DATA.PATH_PREFIX",
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
SEPARATORS = (",", " ", "\t", ";", "|")
UNKNOWN = -1  # the label of a video in a test list whose class is not known
DIGITS = 15  # of a number, so that it is exact in a float64
# other forms that Python reads, such as 1_000 and the digits of other scripts, are more likely a mistake
WHOLE = re.compile(r"[+-]?[0-9]+")
NUMBER = re.compile(r"[+-]?([0-9]+\.?[0-9]*|\.[0-9]+)([eE][+-]?[0-9]+)?")
SEVERAL = re.compile(r"[0-9]+([^0-9.eE+-][0-9]+)+")
# Column in the first line of a file that is not a list -> cure.
FOREIGN = {
    "time_start": "This is an annotation of Kinetics: tools/prepare_data.py lists --annotations makes lists from it.",
    "original_vido_id": "This is a list of single frames of Something-Something: name the official JSON files of its "
    "videos by DATA.LABEL_PATH_TEMPLATE instead, as something-something-v2-{}.json.",
}
HEADER = re.compile(r"[^0-9./\\]+")
SURPLUS = re.compile(r"[\s,;|][0-9.]+$")


def parse_row(
    row: str, columns: Sequence[str], separator: str, num_classes: int | None, lowest: int = 0
) -> tuple[list, str]:
    """Return the values of a row and what is wrong with it ("" for nothing).

    Args:
        row: without blanks at its ends.
        columns: names from `COLUMNS`.
        separator: between the columns; a blank means any run of blanks and tabs.
        num_classes: labels must be below it; None does not check.
        lowest: labels must not be below it.
    """
    fields = [unquoted(field) for field in row.rsplit(separator.strip(" ") or None, len(columns) - 1)]
    if len(fields) < len(columns):
        return [], f"{len(fields)} of {len(columns)} columns ({', '.join(columns)}) when split by {separator!r}"
    if not fields[0]:
        return [], "the path is empty"
    values: list = [fields[0]]
    for name, field in zip(columns[1:], fields[1:], strict=True):
        value, fault = _value(name, field, num_classes, lowest)
        if fault:
            return [], fault
        values.append(value)
    if "begin" in columns:
        total, begin, end = (values[columns.index(name)] for name in ("total", "begin", "end"))
        if not 0 <= begin <= end:
            return [], "the annotated segment does not begin at or after 0 and end after that"
        if begin >= total:
            return [], f"the annotated segment begins at {begin:g} s, after the end of the video at {total:g} s"
    return values, ""


@lru_cache(1 << 16)
def _value(name: str, field: str, num_classes: int | None, lowest: int) -> tuple[float, str]:
    whole = name in ("label", "num_frames")
    value = float(field) if (WHOLE if whole else NUMBER).fullmatch(field) else math.nan
    if not math.isfinite(value) or (whole and abs(value) >= 10**DIGITS):
        return value, f"{name} {field!r} is not a {f'whole number below 10**{DIGITS}' if whole else 'number'}"
    if name in ("num_frames", "total") and value <= 0:
        return value, f"{name} {field!r} is not above 0"
    value = int(value) if whole else value
    return value, label_fault(value, num_classes, lowest) if name == "label" else ""


def label_fault(label: float, num_classes: int | None, lowest: int = 0) -> str:
    """Return what is wrong with a label, or ""."""
    if label < lowest or (num_classes is not None and label >= num_classes):
        top = "" if num_classes is None else f"..{num_classes - 1} (MODEL.NUM_CLASSES {num_classes})"
        return f"label {label} is outside {lowest}{top}"
    return ""


def fits(rows: Sequence[str], columns: Sequence[str], separator: str, lowest: int = UNKNOWN) -> bool:
    """Return whether every row has these columns, whatever the number of classes."""
    return bool(rows) and all(not parse_row(row, columns, separator, None, lowest)[1] for row in rows)


def readers_of(columns: Sequence[str]) -> str:
    """Return the names of `CATALOG` whose lists have these columns."""
    return " or ".join(name for name, spec in CATALOG.items() if spec.columns == tuple(columns) and not spec.images)


def cure_rows(rows: Sequence[str], columns: Sequence[str], separator: str, num_classes: int | None, lowest: int) -> str:
    """Return a sentence with the cure for all rows of a list or, if there is no simple one, with the columns."""
    if fits(rows, columns, separator, lowest):
        return _cure_labels([int(parse_row(row, columns, separator, None, lowest)[0][-1]) for row in rows], num_classes)
    if fits(rows, columns, separator):
        return f"Labels count from 0; {UNKNOWN}, for a class that is not known, is for test lists only."
    if cure := next((cure for column, cure in FOREIGN.items() if column in rows[0]), ""):
        return cure
    header = f"The first line is a header ({rows[0]!r}): remove it. " if HEADER.fullmatch(rows[0]) else ""
    body = rows[1:] if header else rows
    if header and fits(body, columns, separator, lowest):
        return header.strip()
    split_well = all(_path(row, columns, separator).lower().endswith(VIDEO_SUFFIXES) for row in body)
    for other in () if split_well else SEPARATORS:
        if fits(body, columns, other) and not _surplus(body, columns, other):
            return f"{header}The rows are separated by {other!r}: set DATA.PATH_LABEL_SEPARATOR to it."
    for other in (separator, *SEPARATORS):
        for others in sorted({spec.columns for spec in CATALOG.values()} - {tuple(columns)}, key=len, reverse=True):
            if fits(body, others, other) and not _surplus(body, others, other):
                return (
                    f"{header}The rows hold {' '.join(others)}: set TRAIN.DATASET and TEST.DATASET to "
                    f"{readers_of(others)}, and DATA.PATH_LABEL_SEPARATOR to {other!r}."
                )
    return _cure_last_field(rows, columns, separator)


def _cure_labels(labels: Sequence[int], num_classes: int | None) -> str:
    largest = max(labels)
    if largest == num_classes and 0 not in labels:
        return f"Labels run from {min(labels)} to {largest}, and none is 0: count them from 0."
    return f"Labels run to {largest}: MODEL.NUM_CLASSES must be at least {largest + 1}, or the labels are wrong."


def _cure_last_field(rows: Sequence[str], columns: Sequence[str], separator: str) -> str:
    fields = [row.rsplit(separator.strip(" ") or None, len(columns) - 1) for row in rows]
    last = [unquoted(row[-1]) for row in fields if len(row) == len(columns)]
    if any(SEVERAL.fullmatch(field) for field in last):
        return "Some rows have several labels, but a video must have one class: keep one label per row."
    if columns[-1] == "label" and last and all(field[:1].isalpha() for field in last):
        return "Rows end in class names: write numbers instead, counted from 0 in the order of class_names.txt."
    named = ", ".join(f"{name} ({COLUMNS[name]})" for name in columns)
    return f"A row must have {named}, with DATA.PATH_LABEL_SEPARATOR {separator!r} between them."


def _surplus(rows: Sequence[str], columns: Sequence[str], separator: str) -> bool:
    """Return whether the paths end in a separate number, as if they contained another column."""
    return all(SURPLUS.search(_path(row, columns, separator)) for row in rows)


def _path(row: str, columns: Sequence[str], separator: str) -> str:
    return unquoted(row.rsplit(separator.strip(" ") or None, len(columns) - 1)[0])
