"""Read configuration files: a YAML file and its `_BASE_` files become a list of assignments."""

from __future__ import annotations

import os
import re
from collections.abc import Iterator
from dataclasses import dataclass, field
from itertools import chain
from pathlib import Path
from typing import Any, NamedTuple

import yaml
from fvcore.common.config import BASE_KEY

from slowfast.config.values import literal

PACKAGE = Path(__file__).parents[1]
# A variable of the environment in a value: ${DATA_ROOT}/k400.
VARIABLE = re.compile(r"\$\{([A-Za-z_]\w*)\}")
# Limits of a configuration file; an alias counts at each place where it is used.
MAX_BYTES, MAX_VALUES = 1 << 17, 2000


class Assignment(NamedTuple):
    """A value that a user wrote: full key, value, and "file.yaml:LINE" or "command line"."""

    key: str
    value: Any
    origin: str


@dataclass
class Notes:
    """Faults and warnings that are collected while a configuration is read."""

    faults: list[str] = field(default_factory=list)
    warnings: list[str] = field(default_factory=list)


def expand(value: Any) -> Any:
    """Replace `${NAME}` in texts by the variable of the environment; keep it if the variable is unset or empty."""
    if isinstance(value, list):
        return [expand(item) for item in value]
    return VARIABLE.sub(lambda match: _variable(match[1]) or match[0], value) if isinstance(value, str) else value


def _variable(name: str) -> str:
    """Return a variable of the environment; the folder DATA_ROOT as an absolute path."""
    value = os.environ.get(name, "")
    return os.path.abspath(os.path.expanduser(value)) if value and name == "DATA_ROOT" else value


def shown(value: Any) -> str:
    """Return the `repr` of a value, shortened for a message."""
    try:
        text = repr(value)
    except ValueError:  # Python converts no integer of more than 4300 digits
        return "a number of thousands of digits"
    return text if len(text) <= 200 else f"{text[:80]} ... {text[-20:]}"


def read_file(
    path: str | os.PathLike[str], notes: Notes, named_at: str = "command line", parents: tuple[str, ...] = ()
) -> list[Assignment]:
    """Return the assignments of a YAML file and its bases, bases first.

    Args:
        path: the file; a relative path that does not exist is looked for in the installed package.
        notes: receives what cannot be read.
        named_at: place that names this file.
        parents: files that led here, the experiment file first.
    """
    path = os.path.normpath(path)
    if not os.path.exists(path) and (PACKAGE / path).is_file():
        path = str(PACKAGE / path)  # an installed package contains exp/ and configs/
    if os.path.realpath(path) in map(os.path.realpath, parents):
        circle = " -> ".join((*parents, path))
        notes.faults.append(f"{named_at}: circle of {BASE_KEY} files, {circle}: remove one of these links")
        return []
    try:
        with open(path, encoding="utf-8") as file:
            text = file.read(MAX_BYTES + 1)
    except (OSError, UnicodeDecodeError) as error:
        reason = error.strerror if isinstance(error, OSError) else "not a text file in UTF-8"
        start = f"the folder of {parents[-1]}" if parents else os.getcwd()
        cure = f"name a YAML file; relative paths begin in {start}"
        if not parents and os.path.isfile(file := os.path.join(path, "config.yaml")):
            cure = f"name {file}"
        elif not parents and os.path.dirname(path) == "/":  # an official script: --cfg $work_path/config.yaml
            cure = "set work_path=FOLDER if the script uses $work_path"
        notes.faults.append(f"{named_at}: configuration {path} cannot be read ({reason}): {cure}")
        return []
    return read_text(text, path, notes, parents)


def read_text(text: str, path: str, notes: Notes, parents: tuple[str, ...] = ()) -> list[Assignment]:
    """Return the assignments of the text of a YAML file and of its bases; `path` and `parents` as for `read_file`."""
    inherited: list[Assignment] = []
    own: list[Assignment] = []
    try:
        loader = yaml.SafeLoader(text[:MAX_BYTES])
        root = loader.get_single_node() if len(text) <= MAX_BYTES else None
        if len(text) > MAX_BYTES or _has_too_many_values(root):
            limits = f"{MAX_BYTES} bytes, or {MAX_VALUES} values with those of aliases"
            notes.faults.append(f"{path}:1: the file has more than {limits}: name a configuration file")
        elif isinstance(root, yaml.MappingNode):
            for key, line, node in _values(root, path, loader, notes):
                if key == BASE_KEY:
                    inherited += _read_bases(node, path, notes, (*parents, path))
                else:
                    own.append(Assignment(key, loader.construct_object(node, deep=True), f"{path}:{line}"))
        elif root:
            notes.faults.append(f"{path}:1: {shown(root.value)} is not a configuration: write lines KEY: VALUE")
    except (yaml.YAMLError, RecursionError) as error:
        mark, reason = getattr(error, "problem_mark", None), getattr(error, "problem", None) or str(error)
        cure = "write KEY: VALUE, indent with spaces, and quote texts with special characters"
        notes.faults.append(f"{path}:{mark.line + 1 if mark else 1}: YAML: {reason.partition(chr(10))[0]}; {cure}")
    return inherited + own


def _read_bases(node: yaml.Node, path: str, notes: Notes, parents: tuple[str, ...]) -> list[Assignment]:
    inherited: list[Assignment] = []
    for item in node.value if isinstance(node, yaml.SequenceNode) else [node]:
        origin = f"{path}:{item.start_mark.line + 1}"
        if isinstance(item, yaml.ScalarNode) and item.value:
            base = os.path.join(os.path.dirname(path), os.path.expanduser(expand(item.value)))
            inherited += read_file(base, notes, origin, parents)
        else:
            notes.faults.append(f"{origin}: {BASE_KEY} must be a file or a list of files, relative to {path}")
    return inherited


def _has_too_many_values(root: yaml.Node | None) -> bool:
    nodes, count = [root] if root else [], 0
    while nodes and count <= MAX_VALUES:
        node, count = nodes.pop(), count + 1
        if not isinstance(node, yaml.ScalarNode):
            nodes += chain(*node.value) if isinstance(node, yaml.MappingNode) else node.value
    return count > MAX_VALUES


def _values(
    node: yaml.MappingNode, path: str, loader: yaml.SafeLoader, notes: Notes
) -> Iterator[tuple[str, int, yaml.Node]]:
    """Yield full key, line and node of every value of a YAML file.

    A duplicate key is a fault. If both values are equal, as in all official files, it is only a warning.
    """
    first: dict[str, tuple[int, Any]] = {}

    def walk(node: yaml.MappingNode, prefix: str) -> Iterator[tuple[str, int, yaml.Node]]:
        for name, value in node.value:
            key, line, content = f"{prefix}{name.value}", name.start_mark.line + 1, _content(loader, value)
            if key in first:
                before, other = first[key]
                duplicate = f"{path}:{line}: duplicate key {key} (line {line}, first defined at line {before})"
                if content == other:
                    notes.warnings.append(f"{duplicate} with the same value")
                else:
                    notes.faults.append(f"{duplicate}: remove one, other programs use the last")
                continue
            first[key] = line, content
            if isinstance(value, yaml.MappingNode):
                yield from walk(value, f"{key}.")
            else:
                yield key, line, value

    return walk(node, "")


def _content(loader: yaml.SafeLoader, node: yaml.Node) -> Any:
    """Return the content of a node for comparisons: the text 1e-4 as a number."""
    try:
        return literal(loader.construct_object(node, deep=True))
    except (ValueError, LookupError) as error:  # for example a date with day 32, or an empty `!!int`
        raise yaml.constructor.ConstructorError(None, None, str(error), node.start_mark) from error
