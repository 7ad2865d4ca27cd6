"""Look up names in tables, and name the configuration keys of arguments in errors."""

from __future__ import annotations

import inspect
from collections.abc import Callable, Generator, Iterable, Mapping
from contextlib import contextmanager
from difflib import get_close_matches
from typing import Any, TypeVar

Value = TypeVar("Value")


def close_to(name: str, known: Iterable[str], count: int = 1, least: float = 0.6) -> str:
    """Return " (meant 'x', 'y'?)" for the at most `count` most similar of the known names; "" if none is similar.

    `least` is the least similarity, from 0 (any name) to 1 (the same).
    """
    near = get_close_matches(name, known, count, least)
    return f" (meant {', '.join(map(repr, near))}?)" if near else ""


def row_of(table: Mapping[str, Value], place: str, name: str, origin: str) -> Value:
    """Return a row of a table to which modules of users add rows.

    Args:
        table: name -> row.
        place: name of the table and its module, for messages.
        name: name of the row.
        origin: what names the row, such as a configuration key, for messages.

    Raises:
        ValueError: there is no such row.
    """
    if name not in table:
        raise ValueError(
            f"{origin} {name!r} is no row of {place}{close_to(name, table)}: choose from {sorted(table)}, or add the "
            "row in a module that SLOWFAST_IMPORT names"
        )
    return table[name]


def check_call(function: Callable[..., Any], origin: str, cure: str, *args: Any, **options: Any) -> None:
    """Refuse a function, perhaps of a user, that cannot be called with these arguments.

    Args:
        function: of a row of a table.
        origin: what names the row, for messages.
        cure: for messages, with the arguments that the function must take.
        args: positional arguments.
        options: keyword arguments.

    Raises:
        ValueError: it takes other arguments.
    """
    try:
        signature = inspect.signature(function)
    except ValueError:  # some functions that are written in C have none
        return
    try:
        signature.bind(*args, **options)
    except TypeError as error:
        raise ValueError(f"{origin} ({getattr(function, '__qualname__', repr(function))}): {error}; {cure}") from None


@contextmanager
def keys_of_arguments(keys: Mapping[str, str]) -> Generator[None, None, None]:
    """Append to an error the configuration keys of the arguments named in its last line, the cure.

    Args:
        keys: argument -> key.
    """
    try:
        yield
    except ValueError as error:
        cure = str(error).rpartition("\n")[2]
        if found := ", ".join(f"{argument} is {key}" for argument, key in keys.items() if argument in cure):
            error.args = (f"{error} ({found})",)
        raise
