"""Test that the rows of the catalog are complete, and agree with the recipes and with DATASET.md."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import pytest
import yaml

from slowfast.datasets.catalog import CATALOG, DATASETS
from slowfast.prepare.annotations import READERS

ROOT = Path(__file__).parents[2]


@pytest.mark.parametrize("name", DATASETS)
def test_names_in_a_row_exist(name):
    row = DATASETS[name]
    assert row.kinds and set(row.kinds) <= set(CATALOG)
    assert row.annotations in (None, "folders", *READERS)
    assert row.page.startswith("http") or name == "own"
    assert row.name and row.licence and row.class_names
    assert bool(row.frame_list_file) == ("num_frames" in CATALOG[row.kinds[0]].columns)


@pytest.mark.parametrize("path", sorted((ROOT / "configs/data").glob("*.yaml")), ids=lambda path: path.stem)
def test_a_recipe_agrees_with_the_row_of_its_data_set(path):
    if path.stem not in DATASETS:
        pytest.skip("not a data set of the catalog")
    row, recipe = DATASETS[path.stem], yaml.safe_load(path.read_text())
    data = recipe["DATA"]
    assert recipe.get("TRAIN", {}).get("DATASET", row.kinds[0]) == row.kinds[0]
    if "train" not in path.stem and not CATALOG[row.kinds[0]].images:
        assert data["PATH_TO_DATA_DIR"] == "/".join(filter(None, ("${DATA_ROOT}", path.stem, row.lists_in)))
        assert data["PATH_PREFIX"] == f"${{DATA_ROOT}}/{path.stem}"
        assert data.get("PATH_LABEL_SEPARATOR", " ") == row.separator
        assert data.get("LABEL_PATH_TEMPLATE") == row.frame_list_file
        assert data.get("RANDOM_FLIP", True) == row.flip
    # the released HMDB51 model has 50 classes more than HMDB51
    assert recipe["MODEL"]["NUM_CLASSES"] == (101 if path.stem == "hmdb51" else row.num_classes)


def test_every_recipe_has_a_row():
    used = set()
    for path in (ROOT / "exp").glob("*/config.yaml"):
        bases = yaml.safe_load(path.read_text()).get("_BASE_", [])
        used |= {Path(base).stem for base in bases if "/data/" in base}
    assert used <= set(DATASETS)


def test_tables_of_dataset_md_are_up_to_date():
    command = [sys.executable, "docs/make_tables.py", "--check"]
    done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
