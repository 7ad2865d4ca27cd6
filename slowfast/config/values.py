"""Define kinds of values: how YAML or the command line spells a value, and which values a key accepts."""

from __future__ import annotations

import operator
from ast import literal_eval
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import yaml


@dataclass(frozen=True)
class Kind:
    """A set of values.

    Args:
        words: description for messages and for docs/CONFIG.md, such as "an integer >= 1".
        read: convert a value, or a text that spells one; raises ValueError if it is not of this kind.
    """

    words: str
    read: Callable[[Any], Any]

    def __or__(self, other: Kind) -> Kind:
        """Accept the values of both kinds; a text that both can read becomes a value of the first."""

        def read(value: Any) -> Any:
            try:
                return self.read(value)
            except ValueError:
                return other.read(value)

        return Kind(f"{self.words}, or {other.words}", read)


def literal(text: Any) -> Any:
    """Return the Python value (or YAML's true, false, null) that a text spells, else the argument itself."""
    if not isinstance(text, str):
        return text
    try:
        return literal_eval(text)
    except (ValueError, SyntaxError, TypeError, MemoryError, RecursionError):
        return {"true": True, "false": False, "null": None}.get(text.lower(), text)


def number(
    least: float | None = None,
    most: float | None = None,
    *,
    above: float | None = None,
    below: float | None = None,
    whole: bool = False,
) -> Kind:
    """Return the finite numbers within bounds; YAML reads 1e-4 as a text, which counts as a number.

    Args:
        least: lowest number.
        most: highest number.
        above: exclusive lower bound.
        below: exclusive upper bound.
        whole: only integers; 8.0 is one.
    """
    named: dict[str, tuple[Callable[..., bool], Any]] = {
        ">=": (operator.ge, least),
        ">": (operator.gt, above),
        "<=": (operator.le, most),
        "<": (operator.lt, below),
    }
    bounds = {name: bound for name, bound in named.items() if bound[1] is not None}
    words = " and ".join(f"{name} {limit}" for name, (_, limit) in bounds.items())

    def read(value: Any) -> Any:
        value = literal(value)
        # infinity, NaN and integers beyond any float fail the comparison
        finite = isinstance(value, (int, float)) and not isinstance(value, bool) and abs(value) < 1 << 1023
        if not finite or (whole and value != int(value)):
            raise ValueError
        if not all(fits(value, limit) for fits, limit in bounds.values()):
            raise ValueError
        return int(value) if whole else float(value)

    return Kind(f"{'an integer' if whole else 'a number'} {words}".strip(), read)


def integer(least: int | None = None) -> Kind:
    """Return the integers from `least` on."""
    return number(least, whole=True)


def one_of(*choices: str | int) -> Kind:
    """Return the values that are listed; "timm/*" means all texts that begin with timm/."""
    by_text = {str(choice): choice for choice in choices}
    prefixes = tuple(text[:-1] for text in by_text if text.endswith("*"))

    def read(value: Any) -> Any:
        if isinstance(value, str) and prefixes and value.startswith(prefixes):
            return value
        text = str(value)
        if text not in by_text:
            text = text.lower()  # the official code also takes Kinetics for kinetics
        if text not in by_text:
            raise ValueError
        return by_text[text]

    return Kind(f"one of {', '.join(by_text)}", read)


def several(kind: Kind, *lengths: int, rising: bool = False) -> Kind:
    """Return the lists of values of a kind; one value counts as a list of length 1.

    If `lengths` are given, the list must have one of them. In a `rising` list, no value is below the one before.
    """

    def read(value: Any) -> list[Any]:
        value = _unquoted(literal(value))
        items = [kind.read(item) for item in (value if isinstance(value, (list, tuple)) else [value])]
        if (lengths and len(items) not in lengths) or (rising and items != sorted(items)):
            raise ValueError
        return items

    length = f" of length {' or '.join(map(str, lengths))}" if lengths else ""
    return Kind(f"a list{length}{', the smallest first' * rising}, each {kind.words}", read)


def _unquoted(value: Any) -> Any:
    """Read "[width=64, pool=max]", a list of texts without quotes, as YAML does."""
    if not isinstance(value, str) or not value.startswith("["):
        return value
    try:
        return yaml.safe_load(value)
    except yaml.YAMLError as error:
        raise ValueError from error


def _instance(wanted: type, words: str) -> Kind:
    def read(value: Any) -> Any:
        value = literal(value)
        if not isinstance(value, wanted):
            raise ValueError
        return value

    return Kind(words, read)


def _text(value: Any) -> str:
    if value is not None and not isinstance(value, str):
        raise ValueError
    return "" if value in (None, "None") else value  # YAML reads None, the official name of no value, as a text


FLAG = _instance(bool, "True or False")
NONE = _instance(type(None), "None")
TEXT = Kind("a text (in quotes if it looks like a number)", _text)
POSITIVE = number(above=0)
SHARE = number(0, 1)
RATE = number(0, below=1)  # a drop path of 1 would divide by 0
