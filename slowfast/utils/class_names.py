"""Read class names from the files that authors of data sets and of weights write."""

from __future__ import annotations

import json
import os
import re
from collections.abc import Iterable, Sequence
from functools import cache
from pathlib import Path

NUMBER = re.compile(r"[0-9]{1,9}")
HEADER = re.compile(r"|([a-z]+[_ -]?)?(id|idx|index|number|label|class|name|category|action|template)s?", re.IGNORECASE)
SEPARATORS = ("\t", ",", ";", None)  # None: blanks, which may also be part of a name

# Place in the file, name, and number; None where the row has no number.
Row = tuple[str, str, int | None]


def read_class_names(path: str | os.PathLike[str]) -> list[str]:
    """Return the names of the classes in a file, in the order of their labels.

    The file holds one name per line; or a name and its number per line, in either order, with a tab, a comma, a
    semicolon or blanks between them and perhaps a header; or a JSON list of names; or a JSON object from names to
    numbers or from numbers to names. Numbers count from 0 or from 1. Quotes around a name are removed.

    Numbers are part of the names unless most lines have a number of their own that can be a label.

    Raises:
        ValueError: the file cannot be read, a name is empty, or the numbers are not those of K classes, each once.
    """
    try:
        data = Path(path).read_bytes()
    except OSError as error:
        raise ValueError(f"{path} cannot be read ({error.strerror}): give a file of class names") from None
    utf16 = data[:2] in (b"\xff\xfe", b"\xfe\xff")
    text = data.decode("utf-16", "replace") if utf16 else data.decode("utf-8-sig", "surrogateescape")
    if not text.strip():
        raise ValueError(f"{path} is empty: write one class name per line, in the order of the labels")
    try:
        return _from_text(text)
    except ValueError as error:
        raise ValueError(f"{path}, {error}") from None


@cache
def kinetics400_names() -> list[str]:
    """Return the class names of Kinetics-400, sorted, as torchvision lists them for its own weights."""
    from torchvision.models.video import R3D_18_Weights  # slower to import than the rest of this package

    return sorted(R3D_18_Weights.DEFAULT.meta["categories"])


def format_class_names(names: Sequence[str]) -> str:
    """Return the text of a file of these names: one per line, or a JSON list if lines would be read as other names."""
    text = "".join(f"{name}\n" for name in names)
    try:
        same = _from_text(text) == list(names)
    except ValueError:
        same = False
    return text if same else json.dumps(list(names), ensure_ascii=False, indent=0) + "\n"


def _from_text(text: str) -> list[str]:
    return _from_json(text) if re.match(r'\s*(\{|\[\s*["\][{0-9])', text) else _from_lines(text)


def _from_json(text: str) -> list[str]:
    try:
        content = json.loads(text, object_pairs_hook=tuple)  # pairs, so that no duplicate is lost
    except json.JSONDecodeError as error:
        raise ValueError(f"line {error.lineno}: not JSON ({error.msg}); or write one name per line") from None
    if isinstance(content, list) and content and all(isinstance(name, str) for name in content):
        return _filled((f"entry {place}", name) for place, name in enumerate(content, 1))
    pairs: tuple[tuple[str, object], ...] = content if isinstance(content, tuple) else ()
    names = _by_number(
        [[_row(f"entry {place}", *pair[::step]) for place, pair in enumerate(pairs, 1)] for step in (1, -1)]
    )
    if names is None:
        raise ValueError("neither a list of names nor an object from names to numbers or back: write one name per line")
    return names


def _from_lines(text: str) -> list[str]:
    lines = [(f"line {place}", line.strip()) for place, line in enumerate(re.split(r"\r\n?|\n", text.rstrip()), 1)]
    filled = [line for line in lines if line[1]]
    fault = None
    for separator in SEPARATORS:
        header = filled[0][1].split(separator)
        body = filled[len(header) == 2 and all(HEADER.fullmatch(unquoted(field)) for field in header) :]
        first = [_row(place, *_pad(line.split(separator, 1))[::-1]) for place, line in body]
        last = [_row(place, *_pad(line.rsplit(separator, 1))) for place, line in body]
        try:
            names = _by_number([last, first])
        except ValueError as error:
            fault = fault or error
            continue
        if names is not None:
            return names
    if fault:
        raise fault
    return _filled((place, unquoted(line)) for place, line in lines)


def _pad(fields: list[str]) -> list[str]:
    return fields if len(fields) == 2 else ["", ""]


def _row(place: str, name: object, number: object) -> Row:
    number = unquoted(str(number))
    return place, unquoted(name) if isinstance(name, str) else "", int(number) if NUMBER.fullmatch(number) else None


def unquoted(field: str) -> str:
    """Return a field of a line without the blanks and quotes around it."""
    field = field.strip()
    return field[1:-1].replace('""', '"') if field[:1] == '"' == field[-1:] and len(field) > 1 else field


def _filled(rows: Iterable[tuple[str, str]]) -> list[str]:
    names = []
    for place, name in rows:
        if not name.strip():
            raise ValueError(f"{place}: the name is empty; write the name of the class, or remove the line")
        names.append(name)
    return names


def _by_number(forms: Sequence[Sequence[Row]]) -> list[str] | None:
    """Return the names in the order of their numbers; None if no form gives most rows a number that can be a label.

    Args:
        forms: the rows of the file, read in several ways.

    Raises:
        ValueError: the numbers are not those of classes, or two forms give different orders.
    """
    faults, orders = [], []
    for rows in forms:
        labels = {number: name for _, name, number in rows if number is not None and number <= len(rows)}
        if 2 * len(set(labels.values())) <= len(rows):  # "level 1", "level 2" are names; so are "Boeing 747", "A 320"
            continue
        if fault := _fault(rows):
            faults.append(fault)
        else:
            orders.append([name for _, name in sorted((number or 0, name) for _, name, number in rows)])
    if any(order != orders[0] for order in orders):
        raise ValueError("line 1: the number on either side may be the label; write the names as a JSON list")
    if faults and not orders:
        raise ValueError(f"{faults[0]}; number the classes from 0, or write the names as a JSON list")
    return orders[0] if orders else None


def _fault(rows: Sequence[Row]) -> str:
    """Return what is wrong with the first faulty row, or "" if the numbers are those of classes."""
    first = 0 if any(number == 0 for *_, number in rows) else 1
    seen: dict[int, str] = {}
    for place, name, number in rows:
        if number is None:
            return f"{place}: no number, but other lines have one"
        if not name.strip():
            return f"{place}: no name for the number {number}"
        if number in seen:
            return f"{place}: the number {number} is in {seen[number]} too"
        if not first <= number < first + len(rows):
            return f"{place}: the number {number} is outside {first}..{first + len(rows) - 1} of {len(rows)} names"
        seen[number] = place
    return ""
