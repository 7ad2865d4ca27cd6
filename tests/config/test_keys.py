"""The table of keys: every key explained, typed and read; every official setting accepted."""

import ast
import inspect
import json
import re
import warnings
from itertools import pairwise
from pathlib import Path

import pytest
import yaml

from slowfast.config import get_cfg, load_config, num_local_processes
from slowfast.config.keys import MAY_DIFFER, TYPES
from slowfast.config.rules import BOUNDS, CHOICES, DEFAULT_VALUES, LENGTHS, convert, describe, obsolete, type_of

ROOT = Path(__file__).parents[2]
GOLDEN = json.loads((ROOT / "tests/golden/recipe_settings.json").read_text())
MISSPELT = {"ant": "anet"}

# Keys (patterns) that no code reads yet; a pattern that has become useless fails the test until it is taken out.
NOT_SEEN = [
    r"UNIFORMER(V2)?\..*",  # read by name: they are the keyword arguments of the networks (tests/models/test_zoo.py)
]


def settings(name: str) -> dict:
    return dict(GOLDEN["pairs"][index] for index in GOLDEN["settings"][name])


def nested(flat: dict) -> dict:
    tree: dict = {}
    for key, value in flat.items():
        *sections, name = key.split(".")
        node = tree
        for section in sections:
            node = node.setdefault(section, {})
        node[name] = value
    return tree


def value_of(cfg, key: str):
    for name in key.split("."):
        cfg = cfg[name]
    return cfg


def assert_holds(cfg, wanted: dict) -> None:
    for key, value in wanted.items():
        if not obsolete(key):
            found = value_of(cfg, key)
            assert found == (MISSPELT.get(value, value) if isinstance(value, str) else value), key
            assert not isinstance(found, tuple)


@pytest.mark.parametrize("name", GOLDEN["settings"])
def test_official_settings_are_accepted_in_every_form(name, tmp_path):
    wanted = settings(name)
    if name.startswith("variant"):  # of a network alone, which leaves the crops of a run open
        wanted.setdefault("DATA.TEST_CROP_SIZE", 224)
    path = tmp_path / "config.yaml"
    path.write_text(yaml.safe_dump(nested(wanted)))
    plain, texts = get_cfg(), get_cfg()
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        plain.merge_from_file(str(path))
        texts.merge_from_list([token for key, value in wanted.items() for token in (key, str(value))])
        loaded = load_config(path)
    for cfg in (plain, texts, loaded):
        assert_holds(cfg, wanted)
    assert plain == texts == loaded


def test_every_key_has_a_comment_above_it():
    lines = (ROOT / "slowfast/config/keys.py").read_text().splitlines()
    keys = []
    for above, line in pairwise(lines):
        if match := re.match(r"_C\.([A-Z0-9_.]+) = (?!CfgNode)", line):
            keys.append(match[1])
            assert re.match(r"# \S.*[.;]$", above) and not above.startswith("# ---"), f"{match[1]} has no comment"
    assert sorted(keys) == sorted(DEFAULT_VALUES)


def keys_read(source: str) -> set[str]:
    """Keys in `cfg.SECTION.NAME`, and in `section.NAME` after `section = cfg.SECTION`."""
    tree = ast.parse(source)
    section_of = {}
    for node in ast.walk(tree):
        if isinstance(node, ast.Assign):
            target, value = node.targets[0], node.value
            pairs = [(target, value)]
            if isinstance(target, ast.Tuple) and isinstance(value, ast.Tuple):
                pairs = zip(target.elts, value.elts, strict=True)
            for name, part in pairs:
                if match := re.fullmatch(r"cfg\.([A-Z0-9_]+)", ast.unparse(part)):
                    section_of[ast.unparse(name)] = match[1]
    read = set(re.findall(r"\bcfg\.([A-Z0-9_]+(?:\.[A-Z0-9_]+)?)\b", source))
    for name, section in section_of.items():
        read.update(f"{section}.{key}" for key in re.findall(rf"\b{re.escape(name)}\.([A-Z0-9_]+)\b", source))
    return read


def test_every_key_is_read():
    files = [path for path in (ROOT / "slowfast").rglob("*.py") if path.parent.name != "config"]
    # the number of processes is worked out beside the check that the batch can be divided over them
    sources = [path.read_text() for path in files] + [inspect.getsource(num_local_processes)]
    read = set().union(*map(keys_read, sources))
    unread = [key for key in DEFAULT_VALUES if key not in read]
    assert not [key for key in unread if not any(re.fullmatch(pattern, key) for pattern in NOT_SEEN)]
    assert not [p for p in NOT_SEEN if not any(re.fullmatch(p, key) for key in unread)], "take these out"


def test_tables_name_keys_that_exist_and_defaults_that_fit():
    for table in (TYPES, CHOICES, BOUNDS, LENGTHS):
        assert set(table) <= set(DEFAULT_VALUES)
    for pattern in MAY_DIFFER:
        assert any(re.fullmatch(pattern.replace("*", ".*"), key) for key in DEFAULT_VALUES), pattern
    for key, default in DEFAULT_VALUES.items():
        assert convert(default, type_of(key)) == default
        assert describe(type_of(key))
    load_config(None)
