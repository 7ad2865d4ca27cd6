"""The table of keys: every key is explained, read and fits its default; every official setting is accepted."""

import ast
import inspect
import json
import re
import subprocess
import sys
import warnings
from pathlib import Path

import pytest
import yaml

from slowfast.config import MAY_DIFFER, get_cfg, load_config, num_local_processes
from slowfast.config.keys import DEFAULT_VALUES, KEYS, SECTIONS, leaves
from slowfast.config.official import reason_to_ignore

ROOT = Path(__file__).parents[2]
GOLDEN = json.loads((ROOT / "tests/golden/recipe_settings.json").read_text())
MISSPELT = {"ant": "anet"}

# Keys (patterns) that no code reads by their full name; a pattern that has become useless fails the test.
NOT_SEEN = [
    r"UNIFORMER(V2)?\..*",  # keyword arguments of the networks (tests/models/test_zoo.py)
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
    assert plain == texts == loaded
    found = leaves(loaded)
    for key, value in wanted.items():
        if not reason_to_ignore(key):
            assert found[key] == (MISSPELT.get(value, value) if isinstance(value, str) else value), key
            assert not isinstance(found[key], tuple)


def test_every_key_is_explained_and_its_default_is_of_its_kind():
    for key, row in KEYS.items():
        assert key.rpartition(".")[0] in SECTIONS
        assert row.help[-1] == "." and row.kind.words, key
        found = row.kind.read(row.default)
        assert found == row.default and type(found) is type(row.default), key
        assert row.kind.read(str(row.default)) == row.default, key
    load_config(None)


def test_the_reference_page_is_up_to_date():
    page = subprocess.run(
        [sys.executable, "-m", "slowfast.config"], cwd=ROOT, capture_output=True, text=True, check=True
    )
    current = (ROOT / "docs/CONFIG.md").read_text()
    assert page.stdout == current, "run python -m slowfast.config > docs/CONFIG.md"
    assert all(f"`{key}`" in current for key in KEYS)


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
    sources = [path.read_text() for path in files] + [inspect.getsource(num_local_processes)]
    read = set().union(*map(keys_read, sources))
    unread = [key for key in DEFAULT_VALUES if key not in read]
    assert not [key for key in unread if not any(re.fullmatch(pattern, key) for pattern in NOT_SEEN)]
    assert not [p for p in NOT_SEEN if not any(re.fullmatch(p, key) for key in unread)], "take these out"


def test_keys_of_the_recipe_may_not_differ_on_a_resume():
    assert {"OUTPUT_DIR", "NUM_GPUS", "TEST.DATASET", "DATA_LOADER.NUM_WORKERS"} <= set(MAY_DIFFER)
    recipe = {"SOLVER.BASE_LR", "TRAIN.BATCH_SIZE", "RNG_SEED", "AUG.AA_TYPE", "MODEL.MODEL_NAME", "DATA.MEAN"}
    assert not recipe & set(MAY_DIFFER)
