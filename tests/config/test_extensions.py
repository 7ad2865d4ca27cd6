"""Modules in SLOWFAST_IMPORT add rows to the tables, in every process."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import pytest

from slowfast.config import ConfigError, add_choice, load_config
from slowfast.config.keys import KEYS

EXTENSION = """
from slowfast.config import add_choice
from slowfast.models.build import MODELS, Row
from slowfast.optim.losses import LOSSES
from torch import nn

class Small(nn.Sequential):
    def __init__(self, num_classes=400, in_channels=3, width: int = 2):
        super().__init__(nn.Flatten(), nn.LazyLinear(num_classes))

MODELS["Small"] = Row(Small)
LOSSES["own"] = lambda logits, target: logits.sum()
add_choice("MODEL.LOSS_FUNC", "own")
"""
SPAWN = """
import multiprocessing
from slowfast.config import load_config

def build(cfg):
    from slowfast.models.build import build_model
    return type(build_model(cfg)).__name__

if __name__ == "__main__":
    cfg = load_config(None, ["MODEL.MODEL_NAME", "Small", "MODEL.LOSS_FUNC", "own"])
    with multiprocessing.get_context("spawn").Pool(1) as pool:
        print(pool.apply(build, (cfg,)))
"""


def run(folder: Path, script: str, modules: str) -> subprocess.CompletedProcess[str]:
    (folder / "script.py").write_text(script)
    root = Path(__file__).parents[2]
    environment = {"PYTHONPATH": f"{folder}:{root}", "SLOWFAST_IMPORT": modules, "HOME": str(folder)}
    command = [sys.executable, str(folder / "script.py")]
    return subprocess.run(command, env=environment, capture_output=True, text=True)


def test_rows_of_an_extension_exist_in_a_spawned_process(tmp_path):
    (tmp_path / "own.py").write_text(EXTENSION)
    (tmp_path / "other.py").write_text("")
    done = run(tmp_path, SPAWN, "other, own,")
    assert (done.returncode, done.stdout) == (0, "Small\n"), done.stderr


def test_an_extension_can_be_imported_before_this_package(tmp_path):
    (tmp_path / "own.py").write_text(EXTENSION)
    assert run(tmp_path, "import own; own.MODELS['Small']", "own").returncode == 0


@pytest.mark.parametrize(
    ("modules", "named"), [("own.nets", "SLOWFAST_IMPORT names own.nets"), ("own", "No module named 'missing'")]
)
def test_a_module_that_does_not_exist_is_named(tmp_path, modules, named):
    (tmp_path / "own").mkdir()
    (tmp_path / "own/__init__.py").write_text("" if "." in modules else "import missing")
    done = run(tmp_path, "import slowfast.config", modules)
    assert done.returncode == 1 and named in done.stderr.splitlines()[-1]


def test_a_new_choice_is_accepted_and_can_be_mixed(monkeypatch):
    monkeypatch.setitem(KEYS, "MODEL.LOSS_FUNC", KEYS["MODEL.LOSS_FUNC"])
    options = ["MODEL.LOSS_FUNC", "focal", "MIXUP.ENABLE", "True"]
    with pytest.raises(ConfigError, match="focal"):
        load_config(None, options)
    add_choice("MODEL.LOSS_FUNC", "focal")
    assert load_config(None, options).MODEL.LOSS_FUNC == "focal"
    assert load_config(None, ["MODEL.LOSS_FUNC", "bce"]).MODEL.LOSS_FUNC == "bce"
    with pytest.raises(ConfigError, match="bce_logit, or one of focal"):
        load_config(None, ["MODEL.LOSS_FUNC", "other"])
