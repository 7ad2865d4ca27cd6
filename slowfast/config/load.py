"""From defaults, `_BASE_` files, experiment file and command line to one checked, frozen configuration, and back."""

from __future__ import annotations

import copy
import math
import os
import re
import warnings
from collections import deque
from collections.abc import Iterable, Iterator, Mapping, Sequence
from fnmatch import fnmatchcase
from itertools import chain
from pathlib import Path
from typing import Any, NamedTuple

import yaml
from fvcore.common.config import BASE_KEY, CfgNode

from slowfast.config.keys import DEFAULTS, MAY_DIFFER, MISSPELT
from slowfast.config.rules import (
    DEFAULT_VALUES,
    ConfigError,
    convert,
    describe,
    faults_of,
    is_key,
    leaves,
    literal,
    obsolete,
    shown,
    type_of,
    unknown,
)

PACKAGE = Path(__file__).parents[1]
# A variable of the environment in a value: ${DATA_ROOT}/k400.
VARIABLE = re.compile(r"\$\{([A-Za-z_]\w*)\}")
# Limits of a configuration file; an alias counts as often as it is used.
MAX_BYTES, MAX_VALUES, MAX_DEPTH, MAX_LETTERS = 1 << 17, 2000, 20, 4096


class Assignment(NamedTuple):
    """One value somebody wrote: full key, value, and "file.yaml:LINE" or "command line: KEY"."""

    key: str
    value: Any
    origin: str


class ConfigNode(CfgNode):
    """A yacs tree whose merges take official files and lists as they are (obsolete keys, scalar-or-list values)."""

    def merge_from_file(self, cfg_filename: str, allow_unsafe: bool = False) -> None:
        """Merge a YAML file and its bases; raises ConfigError with all faults."""
        assert not allow_unsafe, "configuration files never execute code"
        faults: list[str] = []
        _merge(self, read_file(cfg_filename, faults), faults)
        _raise(faults)

    def merge_from_list(self, cfg_list: Sequence[Any]) -> None:
        """Merge KEY VALUE pairs or KEY=VALUE; raises ConfigError with all faults."""
        faults: list[str] = []
        _merge(self, read_overrides(cfg_list, faults), faults)
        _raise(faults)

    def merge_from_other_cfg(self, cfg_other: Mapping[str, Any]) -> None:
        """Merge another tree; raises ConfigError with all faults."""
        faults: list[str] = []
        _merge(self, [Assignment(*item, "other config") for item in leaves(cfg_other).items()], faults)
        _raise(faults)


def get_cfg() -> ConfigNode:
    """A fresh tree of defaults."""
    cfg = ConfigNode()
    for name, value in DEFAULTS.items():
        cfg[name] = copy.deepcopy(value)
    return cfg


def load_config(path: str | os.PathLike | None, overrides: Sequence[str] = ()) -> ConfigNode:
    """Return defaults, bases, file and command line (the later wins), checked and frozen.

    `${NAME}` in a value is replaced by that variable of the environment. Without the variable it stays as it is, so
    that the configuration can be read anywhere; `check_variables` refuses it before a run.

    Args:
        path: YAML file; `_BASE_` in it names one or more files, relative to it, that come first. None = defaults.
        overrides: KEY VALUE KEY VALUE ..., or KEY=VALUE.

    Raises:
        ConfigError: lists all faults, each with its origin and cure.
    """
    return load_config_with_sources(path, overrides)[0]


def load_config_with_sources(
    path: str | os.PathLike | None, overrides: Sequence[str] = ()
) -> tuple[ConfigNode, dict[str, str]]:
    """Like `load_config`; also full key -> "file.yaml:LINE" or "command line: KEY" of every value that was given."""
    faults: list[str] = []
    assignments = read_file(path, faults) if path is not None else []
    assignments += read_overrides(overrides, faults)
    cfg = get_cfg()
    sources, unusable = _merge(cfg, assignments, faults)
    for keys, message in faults_of(cfg, skip=unusable):
        origins = dict.fromkeys(sources[key] for key in keys if key in sources)
        faults.append(f"{', '.join(origins) or 'defaults'}: {message}")
    _raise(faults)
    cfg.freeze()
    return cfg, sources


def expand(value: Any) -> Any:
    """Replace `${NAME}` in a text by the variable of the environment; keep it if the variable is not set or empty."""
    if not isinstance(value, str):
        return value
    return VARIABLE.sub(lambda match: _variable(match[1]) or match[0], value)


def _variable(name: str) -> str:
    """Return a variable of the environment; the folder DATA_ROOT as an absolute path."""
    value = os.environ.get(name, "")
    return os.path.abspath(os.path.expanduser(value)) if value and name == "DATA_ROOT" else value


def _unset(value: Any) -> list[str]:
    """Return the variables that a value still contains."""
    return VARIABLE.findall(value) if isinstance(value, str) else []


def check_variables(cfg: CfgNode) -> None:
    """Refuse a configuration with variables that are not set.

    Raises:
        ConfigError: one fault per variable.
    """
    users: dict[str, list[str]] = {}
    for key, value in leaves(cfg).items():
        for name in _unset(value):
            users.setdefault(name, []).append(key)
    _raise(
        [
            f"{name} is not set, and {', '.join(dict.fromkeys(keys))} {'need' if len(keys) > 1 else 'needs'} it: "
            + ("DATA_ROOT=/data bash exp/NAME/run.sh" if name == "DATA_ROOT" else f"export {name}=VALUE")
            for name, keys in users.items()
        ]
    )


def recorded_config(text: str) -> tuple[ConfigNode, set[str]]:
    """Return the configuration that a checkpoint recorded, and those of its keys that this version has."""
    cfg, faults = get_cfg(), []
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        sources, _ = _merge(cfg, _read_text(text, "the checkpoint", faults), faults)
    return cfg, set(sources)


def dump_config(cfg: CfgNode) -> str:
    """The whole configuration as YAML that `load_config` reads back to an equal one."""
    return "".join(f"{line}\n" for _, line in _lines(cfg))


def format_config(cfg: CfgNode, sources: Mapping[str, str]) -> str:
    """`dump_config` with a comment after every value that is not the default: where it came from."""
    text, values = "", leaves(cfg)
    for key, line in _lines(cfg):
        changed = key in values and values[key] != DEFAULT_VALUES[key]
        unset = "".join(f"; {name} is not set" for name in _unset(values.get(key)))
        text += (f"{line:<50}  # {sources.get(key, 'set by code')}{unset}" if changed else line) + "\n"
    return text


def changed_keys(
    cfg_a: Mapping[str, Any], cfg_b: Mapping[str, Any], ignore: Iterable[str] = MAY_DIFFER
) -> dict[str, tuple[Any, Any]]:
    """Full key -> (value in a, value in b) where two configurations differ; a key that one lacks is None there.

    Args:
        ignore: patterns of keys that may differ; by default those that do not change what is learned.
    """
    a, b, ignore = leaves(cfg_a), leaves(cfg_b), tuple(ignore)
    return {
        key: (a.get(key), b.get(key))
        for key in {**a, **b}
        if a.get(key) != b.get(key) and not any(fnmatchcase(key, pattern) for pattern in ignore)
    }


def read_file(
    path: str | os.PathLike, faults: list[str], named_at: str = "command line", parents: tuple[str, ...] = ()
) -> list[Assignment]:
    """What a YAML file and its bases assign, bases first; appends to `faults` what cannot be read.

    Args:
        named_at: where this file is asked for.
        parents: the files that led here, the experiment file first.
    """
    path = os.path.normpath(path)
    if not os.path.exists(path) and (PACKAGE / path).is_file():
        path = str(PACKAGE / path)  # an installed package holds exp/ and configs/
    if os.path.realpath(path) in map(os.path.realpath, parents):
        circle = " -> ".join((*parents, path))
        faults.append(f"{named_at}: {BASE_KEY} files go round in a circle, {circle}; drop one of the links")
        return []
    if not os.path.isfile(path):
        what = "is a folder; name the YAML file in it" if os.path.isdir(path) else "does not exist"
        if not parents and os.path.dirname(path) == "/":
            what += ": the folder before it is empty. A script that uses $work_path needs work_path=FOLDER"
        start = f"the folder of {parents[-1]}" if parents else os.getcwd()
        faults.append(f"{named_at}: configuration {path} {what} (paths start from {start})")
        return []

    try:
        with open(path, encoding="utf-8") as file:
            text = file.read(MAX_BYTES + 1)
    except UnicodeDecodeError as error:
        faults.append(f"{path}:1: not a text file in UTF-8 ({error}); save it as one")
        return []
    except OSError as error:
        faults.append(f"{named_at}: configuration {path} cannot be read ({error.strerror}); make it readable")
        return []
    return _read_text(text, path, faults, parents)


def _read_text(text: str, path: str, faults: list[str], parents: tuple[str, ...] = ()) -> list[Assignment]:
    inherited: list[Assignment] = []
    own: list[Assignment] = []
    repeated: list[str] = []
    try:
        loader = yaml.SafeLoader(text[:MAX_BYTES])
        root = loader.get_single_node() if len(text) <= MAX_BYTES else None
        if fault := _too_much(text, root):
            faults.append(f"{path}:{fault}")
            return []
        if not isinstance(root, (yaml.MappingNode, type(None))):
            faults.append(f"{path}:1: a configuration consists of lines KEY: VALUE; this file holds something else")
            return []
        for key, line, node in _values(root, path, loader, faults, repeated) if root else ():
            if key == BASE_KEY:
                inherited += _read_bases(node, path, faults, (*parents, path))
            else:
                own.append(Assignment(key, loader.construct_object(node, deep=True), f"{path}:{line}"))
    except yaml.MarkedYAMLError as error:
        line = error.problem_mark.line + 1 if error.problem_mark else 1
        cure = "write KEY: VALUE, indent with spaces, and quote texts with special characters"
        faults.append(f"{path}:{line}: YAML syntax: {error.problem}; {cure}")
    except yaml.YAMLError as error:
        faults.append(f"{path}:1: not a text file in UTF-8 ({error}); save it as one")
    except RecursionError:
        faults.append(f"{path}:1: values are nested deeper than {MAX_DEPTH} levels; a configuration needs 3")
    if repeated:
        warnings.warn(f"duplicate keys in {path}, with equal values: {', '.join(repeated)}", stacklevel=2)
    return inherited + own


def _read_bases(node: yaml.Node, path: str, faults: list[str], parents: tuple[str, ...]) -> list[Assignment]:
    inherited: list[Assignment] = []
    for item in node.value if isinstance(node, yaml.SequenceNode) else [node]:
        origin = f"{path}:{item.start_mark.line + 1}"
        if isinstance(item, yaml.ScalarNode) and item.value:
            base = os.path.join(os.path.dirname(path), os.path.expanduser(expand(item.value)))
            inherited += read_file(base, faults, origin, parents)
        else:
            faults.append(f"{origin}: {BASE_KEY} must be a file or a list of files, relative to {path}")
    return inherited


def _too_much(text: str, root: yaml.Node | None) -> str:
    """Return the line and the limit that a file exceeds, or "" if it exceeds none."""
    if len(text) > MAX_BYTES:
        return f"1: the file is larger than {MAX_BYTES} bytes; give the configuration file"
    nodes, count = [(root, 0)] if root else [], 0
    while nodes:
        node, depth = nodes.pop()
        line, count = node.start_mark.line + 1, count + 1
        if depth > MAX_DEPTH:
            return f"{line}: values are nested deeper than {MAX_DEPTH} levels or an alias contains itself; remove it"
        if count > MAX_VALUES:
            return f"{line}: the file holds more than {MAX_VALUES} values, aliases included; remove what is not needed"
        if isinstance(node, yaml.ScalarNode):
            if len(node.value) > MAX_LETTERS:
                return f"{line}: a value has {len(node.value)} characters; shorten it to {MAX_LETTERS}"
        else:
            children = chain(*node.value) if isinstance(node, yaml.MappingNode) else node.value
            nodes += [(child, depth + 1) for child in children]
    return ""


def _values(
    node: yaml.MappingNode, path: str, loader: yaml.SafeLoader, faults: list[str], repeated: list[str]
) -> Iterator[tuple[str, int, yaml.Node]]:
    """Yield full key, line and node of every value in a YAML file.

    A duplicate key is a fault, unless both values are equal, as in all official files: it is then added to `repeated`.
    """
    first: dict[str, tuple[int, Any]] = {}

    def walk(node: yaml.MappingNode, prefix: str) -> Iterator[tuple[str, int, yaml.Node]]:
        for name, value in node.value:
            key, line = f"{prefix}{name.value}", name.start_mark.line + 1
            content = _content(loader, value)
            if key not in first:
                first[key] = line, content
            elif first[key][1] == content:
                repeated.append(f"{key} (lines {first[key][0]} and {line})")
                continue
            else:
                before, other = first[key]
                faults.append(
                    f"{path}:{line}: {key} = {shown(content)}, but {shown(other)} at line {before}; remove one"
                )
            if isinstance(value, yaml.MappingNode):
                yield from walk(value, f"{key}.")
            else:
                yield key, line, value

    return walk(node, "")


def _content(loader: yaml.SafeLoader, node: yaml.Node) -> Any:
    """Return the content of a node for comparisons: the text 1e-4 as a number."""
    try:
        content = loader.construct_object(node, deep=True)
    except ValueError as error:  # for example a date with day 32
        raise yaml.constructor.ConstructorError(None, None, str(error), node.start_mark) from error
    return literal(content) if isinstance(content, str) else content


def read_overrides(overrides: Sequence[Any], faults: list[str]) -> list[Assignment]:
    """Return the values that KEY VALUE pairs (or KEY=VALUE) assign; append a key without a value to `faults`.

    A key is not accepted as a value, so a forgotten value, or an empty one in a script, does not shift the others.
    """
    assignments = []
    tokens = deque(overrides)
    while tokens:
        key, equals, value = str(tokens.popleft()).partition("=")
        if not equals:
            if not tokens or is_key(tokens[0]):
                follows = f", {tokens[0]} follows" if tokens else ""
                faults.append(f"command line: {key} has no value{follows}; write {key} VALUE or {key}=VALUE")
                continue
            value = tokens.popleft()
        if isinstance(value, str) and isinstance(literal(value), (str, type(None))):
            value = literal(value)  # the text in quotes, or None, even where a text is wanted
        assignments.append(Assignment(key, value, f"command line: {key}"))
    return assignments


def _merge(cfg: ConfigNode, assignments: Iterable[Assignment], faults: list[str]) -> tuple[dict[str, str], set[str]]:
    """Write the assignments into the tree; one warning names all that is obsolete.

    Returns:
        Origin of each key that was set, and the keys whose value could not be used.
    """
    if cfg.is_frozen():
        raise AttributeError("this configuration is frozen; load another one, or change a clone() after its defrost()")
    sources: dict[str, str] = {}
    unusable: set[str] = set()
    ignored: dict[str, list[str]] = {}
    for key, value, origin in assignments:
        if key in DEFAULT_VALUES:
            section, _, name = key.rpartition(".")
            try:
                value = convert(expand(value), type_of(key))
            except TypeError:
                unusable.add(key)
                kind, default = describe(type_of(key)), DEFAULT_VALUES[key]
                faults.append(f"{origin}: {key} = {shown(value)} is not {kind}; the default is {default!r}")
                continue
            if value in MISSPELT.get(key, ()):
                meant = MISSPELT[key][value]
                ignored.setdefault(f"read as {meant}", []).append(f"{key} {value} ({origin})")
                value = meant
            (cfg[section] if section else cfg)[name] = value
            sources[key] = origin
        elif reason := obsolete(key):
            ignored.setdefault(reason, []).append(f"{key} ({origin})")
        elif not (key in DEFAULTS and value is None):  # a section whose lines are all commented out
            faults.append(f"{origin}: {unknown(key)}")
    if ignored:
        lines = [f"\n  {', '.join(keys)}: {reason}" for reason, keys in ignored.items()]
        warnings.warn("obsolete in this configuration:" + "".join(lines), stacklevel=3)
    return sources, unusable


def _raise(faults: list[str]) -> None:
    if faults:
        raise ConfigError(faults)


class _Dumper(yaml.SafeDumper):
    """Writes lists on one line."""


_Dumper.add_representer(list, lambda dumper, v: dumper.represent_sequence("tag:yaml.org,2002:seq", v, flow_style=True))


def _lines(node: Mapping[str, Any], prefix: str = "", indent: str = "") -> Iterator[tuple[str, str]]:
    """(full key; YAML line) for everything below `node`."""
    for name, value in node.items():
        if isinstance(value, Mapping):
            yield f"{prefix}{name}", f"{indent}{name}:"
            yield from _lines(value, f"{prefix}{name}.", f"{indent}  ")
        else:
            text = yaml.dump({name: value}, Dumper=_Dumper, width=math.inf, allow_unicode=True)
            yield f"{prefix}{name}", indent + text.rstrip("\n")
