"""Load defaults, `_BASE_` files, experiment file and command line into one checked, frozen configuration; dump it."""

from __future__ import annotations

import copy
import math
import os
import warnings
from collections import deque
from collections.abc import Collection, Iterable, Iterator, Mapping, Sequence
from difflib import get_close_matches
from fnmatch import fnmatchcase
from itertools import chain
from typing import Any

import yaml
from fvcore.common.config import CfgNode

from slowfast.config.extensions import check_extensions
from slowfast.config.files import VARIABLE, Assignment, Notes, expand, read_file, read_text, shown
from slowfast.config.keys import DEFAULT_VALUES, KEYS, MAY_DIFFER, ONLY_TRAINING, SECTIONS, leaves
from slowfast.config.official import CURES, REPLACED_VALUES, family_of, reason_to_ignore
from slowfast.config.rules import ConfigError, broken_rules, rate_of_image_vit, rate_of_other_steps
from slowfast.config.values import literal
from slowfast.utils.tables import close_to


class ConfigNode(CfgNode):
    """A yacs tree whose merges accept what `load_config` accepts: bases, official files, one value for a list of one.

    Each merge raises ConfigError with all faults.
    """

    @property
    def sources(self) -> dict[str, str]:
        """The origin of each value that was given when `load_config` made this tree."""
        return self.__dict__.get("_sources", {})

    @property
    def rate_note(self) -> str:
        """What is wrong with the learning rate of a tree that `load_config` made; see `slowfast.config.rules`."""
        return self.__dict__.get("_rate_note", "")

    def merge_from_file(self, cfg_filename: str, allow_unsafe: bool = False) -> None:
        """Merge a YAML file and its bases."""
        assert not allow_unsafe, "configuration files never execute code"
        notes = Notes()
        self._merge(read_file(cfg_filename, notes), notes)

    def merge_from_list(self, cfg_list: Sequence[Any]) -> None:  # pyright: ignore[reportIncompatibleMethodOverride]
        """Merge KEY VALUE pairs or KEY=VALUE."""
        notes = Notes()
        self._merge(read_overrides(cfg_list, notes.faults), notes)

    def _merge(self, assignments: Iterable[Assignment], notes: Notes) -> None:
        merge(self, assignments, notes)
        _report(notes)


def get_cfg() -> ConfigNode:
    """Return a new tree of defaults.

    Raises:
        ConfigError: a module in SLOWFAST_IMPORT cannot be imported.
    """
    check_extensions()
    tree: dict[str, Any] = {}
    for name, default in DEFAULT_VALUES.items():
        parent, _, leaf = name.rpartition(".")
        (tree.setdefault(parent, {}) if parent else tree)[leaf] = copy.deepcopy(default)
    return ConfigNode(tree)


def load_config(
    path: str | os.PathLike[str] | None, overrides: Sequence[str] = (), *, training: bool = True
) -> ConfigNode:
    """Return defaults, bases, file and command line (the later wins), checked and frozen.

    `${NAME}` in a value is replaced by that variable of the environment. Without the variable it stays as it is, so
    that the configuration can be read anywhere; `check_variables` refuses it before a run.

    Args:
        path: YAML file; `_BASE_` in it names one or more files, relative to it, that come first. None for the defaults.
        overrides: KEY VALUE KEY VALUE ..., or KEY=VALUE.
        training: whether the configuration may be trained; otherwise keys that only a training uses keep any value,
            and what a training needs is not checked.

    Raises:
        ConfigError: lists all faults, each with its origin and cure.
    """
    notes = Notes()
    assignments = read_file(path, notes) if path is not None else []
    assignments += read_overrides(overrides, notes.faults)
    cfg, recipe = get_cfg(), get_cfg()
    sources, unusable = merge(cfg, assignments, notes, () if training else ONLY_TRAINING)
    merge(recipe, _with_rate(assignments), Notes())
    cfg.__dict__["_sources"] = sources  # attributes would become keys
    if not unusable:
        cfg.__dict__["_rate_note"] = rate_of_image_vit(cfg) or rate_of_other_steps(recipe, cfg)
    cfg.freeze()
    contradictions = list(broken_rules(cfg, unusable, training=training))
    for keys, fault in contradictions:
        origins = dict.fromkeys(sources[key] for key in keys if key in sources)
        notes.faults.append(f"{', '.join(origins) or 'defaults'}: {fault}")
    _report(notes, cfg if contradictions else None)
    return cfg


def _with_rate(assignments: list[Assignment]) -> list[Assignment]:
    """Return the assignments up to the last one of the file, or command line, that sets SOLVER.BASE_LR last."""
    files = [origin.rpartition(":")[0] for _, _, origin in assignments]
    setting = [file for (key, _, _), file in zip(assignments, files, strict=True) if key == "SOLVER.BASE_LR"]
    return assignments[: len(files) - files[::-1].index(setting[-1])] if setting else assignments


def recorded_config(text: str) -> tuple[ConfigNode, set[str]]:
    """Return the configuration in a checkpoint, and those of its keys that this version has.

    A value that cannot be used, for example the name of a row that an extension adds, is kept: it differs from others.
    """
    cfg, notes = get_cfg(), Notes()
    sources, unusable = merge(cfg, read_text(text, "the checkpoint", notes), notes, KEYS)
    return cfg, {*sources, *unusable}


def check_values(cfg: CfgNode, origin: str) -> None:
    """Refuse a recorded configuration with values that cannot be used, or contradict each other, except in a training.

    Raises:
        ConfigError: one fault per value, or else per rule between keys.
    """
    notes, unusable = Notes(), set[str]()
    for key, value in leaves(cfg).items():
        try:
            KEYS[key].kind.read(value)
        except ValueError:
            unusable.add(key)
            if not _is_in(key, ONLY_TRAINING):
                notes.faults.append(f"{origin}: {_unusable(key, value)}")
    _report(notes)
    notes.faults.extend(f"{origin}: {fault}" for _, fault in broken_rules(cfg, unusable, training=False))
    _report(notes)


def check_variables(cfg: CfgNode) -> None:
    """Refuse a configuration with variables of the environment that are not set.

    Raises:
        ConfigError: one fault per variable.
    """
    notes = Notes()
    unset = {key: names for key, value in leaves(cfg).items() if (names := VARIABLE.findall(str(value)))}
    for name in dict.fromkeys(chain(*unset.values())):
        example = "DATA_ROOT=/data bash exp/NAME/run.sh" if name == "DATA_ROOT" else f"export {name}=VALUE"
        used = ", ".join(key for key, names in unset.items() if name in names)
        notes.faults.append(f"{name} is not set, but used in {used}: set it, for example {example}")
    _report(notes)


def dump_config(cfg: CfgNode) -> str:
    """Return the whole configuration as YAML that `load_config` reads back to an equal one."""
    return "".join(f"{line}\n" for _, line in _lines(cfg))


def format_config(cfg: CfgNode) -> str:
    """Return `dump_config` with a comment after every value that is not the default: its origin."""
    text, values, sources = "", leaves(cfg), getattr(cfg, "sources", {})
    for key, line in _lines(cfg):
        if key in values and values[key] != DEFAULT_VALUES[key]:
            unset = "".join(f"; {name} is not set" for name in VARIABLE.findall(str(values[key])))
            line = f"{line:<50}  # {sources.get(key, 'set by code')}{unset}"
        text += f"{line}\n"
    return text


def changed_keys(
    cfg_a: Mapping[str, Any], cfg_b: Mapping[str, Any], ignore: Iterable[str] = MAY_DIFFER
) -> dict[str, tuple[Any, Any]]:
    """Return full key -> (value in a, value in b) where two configurations differ; a missing key counts as None.

    `ignore` contains patterns of keys that are left out, by default of those that do not change what is learned.
    """
    a, b, ignore = leaves(cfg_a), leaves(cfg_b), tuple(ignore)
    return {
        key: (a.get(key), b.get(key))
        for key in {**a, **b}
        if a.get(key) != b.get(key) and not any(fnmatchcase(key, pattern) for pattern in ignore)
    }


def is_key(token: Any) -> bool:
    """Return whether a token of a command line is a key of this package or of the official ones."""
    if not isinstance(token, str) or token != token.upper():
        return False
    return token in KEYS or ("." in token and reason_to_ignore(token) is not None)


def read_overrides(overrides: Sequence[Any], faults: list[str]) -> list[Assignment]:
    """Return the assignments of KEY VALUE pairs or KEY=VALUE; a key without a value is a fault.

    A key is not accepted as a value, so a missing value, or an empty one in a script, does not shift the others.
    """
    assignments: list[Assignment] = []
    tokens = deque(overrides)
    while tokens:
        key, equals, value = str(tokens.popleft()).partition("=")
        if not equals:
            if not tokens or is_key(tokens[0]):
                follows = f", {tokens[0]} follows" if tokens else ""
                file = key.endswith((".yaml", ".yml"))
                cure = "list several files in the _BASE_ of one" if file else f"write {key} VALUE or {key}=VALUE"
                faults.append(f"command line: {key} has no value{follows}: {cure}")
                continue
            value = tokens.popleft()
        if isinstance(literal(value), (str, type(None))):
            value = literal(value)  # quoted text without its quotes; None even if the key takes a text
        assignments.append(Assignment(key, value, "command line"))
    return assignments


def merge(
    cfg: ConfigNode, assignments: Iterable[Assignment], notes: Notes, unchecked: Collection[str] = ()
) -> tuple[dict[str, str], set[str]]:
    """Write assignments into a tree; the later wins, and `notes` receives faults and warnings.

    A value of an `unchecked` key, or section, that cannot be used is kept as it is, without a fault.

    Returns:
        Origin of each key that was set, and the keys with a value that could not be used.
    """
    if cfg.is_frozen():
        raise AttributeError("this configuration is frozen: load another one, or defrost a clone() of it")
    sources: dict[str, str] = {}
    faults: dict[str, str] = {}
    ignored: dict[str, list[tuple[str, str]]] = {}  # reason -> keys and their origins
    for key, value, origin in assignments:
        if key in KEYS:
            if replacement := REPLACED_VALUES.get((key, value.lower())) if isinstance(value, str) else None:
                ignored.setdefault(f"read as {replacement}", []).append((f"{key} {value}", origin))
                value = replacement
            section, _, name = key.rpartition(".")
            node = cfg[section] if section else cfg
            try:
                node[name] = KEYS[key].kind.read(expand(value))
                sources[key] = origin
                faults.pop(key, None)  # an earlier value that could not be used has no effect
            except ValueError:
                faults[key] = f"{origin}: {_unusable(key, value)}"
                if _is_in(key, unchecked):
                    node[name] = value
        elif reason := reason_to_ignore(key):
            ignored.setdefault(reason, []).append((key, origin))
        elif not (key in SECTIONS and value is None):  # a section whose lines are all commented out
            faults[f"{key} {origin}"] = f"{origin}: {_unknown(key)}"
    family = family_of(str(cfg.MODEL.MODEL_NAME))  # any value if it is unchecked
    if family != cfg.MODEL.ARCH and "MODEL.ARCH" in sources:
        ignored["follows from MODEL.MODEL_NAME"] = [(f"MODEL.ARCH {cfg.MODEL.ARCH}", sources["MODEL.ARCH"])]
    cfg.MODEL.ARCH = family
    ignored |= _unread(cfg, sources)
    notes.faults.extend(fault for key, fault in faults.items() if not (key in KEYS and _is_in(key, unchecked)))
    notes.warnings.extend(f"{_summary(keys)}: {reason}" for reason, keys in ignored.items())
    return sources, KEYS.keys() & faults.keys()


def _unread(cfg: CfgNode, sources: Mapping[str, str]) -> dict[str, list[tuple[str, str]]]:
    """Return why a network of this package does not read a section -> its name, per key that was probably meant.

    A file whose network differs from that of its bases may leave their keys. A network of a user may read any section.
    """
    name, family = str(cfg.MODEL.MODEL_NAME), cfg.MODEL.ARCH.upper()
    other = "UNIFORMER" if family == "UNIFORMERV2" else "UNIFORMERV2"
    found = [
        (other, origin)
        for key, origin in sources.items()
        if key.startswith(f"{other}.") and (origin == "command line" or "MODEL.MODEL_NAME" not in sources)
    ]
    reason = f"MODEL.MODEL_NAME {name} reads only the section {family}"
    return {reason: found} if found and name.startswith("Uniformer") else {}


def _is_in(key: str, names: Collection[str]) -> bool:
    """Return whether keys or sections contain a key."""
    return key in names or key.partition(".")[0] in names


def _summary(keys: Iterable[tuple[str, str]]) -> str:
    """Return keys with their origins; several keys of a section that this package does not have are named as one."""
    groups: dict[str, list[tuple[str, str]]] = {}
    for key, origin in keys:
        section = key.partition(".")[0]
        groups.setdefault(key if section in SECTIONS else section, []).append((key, origin))
    return ", ".join(
        f"{group} ({found[0][1]}, {len(found)} keys)" if len(found) > 1 else "{} ({})".format(*found[0])
        for group, found in groups.items()
    )


def _unusable(key: str, value: Any) -> str:
    """Return the fault of a value that a key does not accept."""
    cure = CURES.get(key, f"the default is {KEYS[key].default!r}")
    return f"{key} = {shown(literal(value))} must be {KEYS[key].kind.words}; {cure}"


def _unknown(key: str) -> str:
    """Return the fault of a key that does not exist, with the keys that may be meant."""
    if key in SECTIONS:
        return f"{key} is a section: indent its keys below it, or write {key}.KEY on the command line"
    upper = key.upper()
    section, _, name = upper.rpartition(".")
    names = {known: known.rpartition(".")[2] for known in KEYS}
    same = [known for known in KEYS if names[known] == name] or [known for known in KEYS if _ends_in(known, name)]
    similar = get_close_matches(name, names.values(), cutoff=0.75)
    beside = [known for known in KEYS if known.startswith(f"{section}.")]
    same += [known for known in (beside if same else KEYS) if names[known] in similar]
    same += [known for known in beside if known.startswith(f"{upper}_")]
    same = [*dict.fromkeys(same)]
    near = close_to(upper, same, 2, least=0.0) or close_to(upper, KEYS, least=0.7)
    return f"unknown key {key}{near}: correct it, or remove it if only another program has it; docs/CONFIG.md lists all"


def _ends_in(key: str, name: str) -> bool:
    """Return whether the last words of a key are those of a name: LR of BASE_LR, BATCHSIZE of BATCH_SIZE."""
    words = key.rpartition(".")[2].split("_")
    wanted = name.replace("_", "").rstrip("S")
    return any("".join(words[first:]).rstrip("S") == wanted for first in range(len(words)))


def _report(notes: Notes, cfg: ConfigNode | None = None) -> None:
    """Emit all warnings as one, and raise one ConfigError with all faults and with `cfg`."""
    if notes.warnings:
        text = "ignored or replaced in this configuration:" + "".join(f"\n  {w}" for w in notes.warnings)
        warnings.warn(text, stacklevel=3)
    if notes.faults:
        raise ConfigError(notes.faults, cfg)


def _lines(node: Mapping[str, Any], prefix: str = "", indent: str = "") -> Iterator[tuple[str, str]]:
    """Yield full key and YAML line of everything below a node."""
    for name, value in node.items():
        if isinstance(value, Mapping):
            yield f"{prefix}{name}", f"{indent}{name}:"
            yield from _lines(value, f"{prefix}{name}.", f"{indent}  ")
        else:
            style = '"' if isinstance(value, str) and "\n" in value else None  # others may take several lines
            text = yaml.safe_dump(
                value, default_flow_style=True, default_style=style, width=math.inf, allow_unicode=True
            )
            yield f"{prefix}{name}", f"{indent}{name}: {text.partition(chr(10))[0]}"
