"""Modules in SLOWFAST_IMPORT add rows to the tables, in every process."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import doctor
import pytest
from torch import nn

from slowfast.config import ConfigError, add_choice, changed_keys, get_cfg, load_config, recorded_config
from slowfast.config.keys import KEYS
from slowfast.datasets.build import build_dataset
from slowfast.datasets.catalog import CATALOG, DatasetSpec
from slowfast.optim.build import build_loss, build_optimizer, learning_rate

ROOT = Path(__file__).parents[2]
DEMO = str(ROOT / "exp/demo/config.yaml")

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


def run(folder: Path, script: str, modules: str, *arguments: str) -> subprocess.CompletedProcess[str]:
    (folder / "script.py").write_text(script)
    environment = {"PYTHONPATH": f"{folder}:{ROOT}:{ROOT}/tools", "SLOWFAST_IMPORT": modules, "HOME": str(folder)}
    command = [sys.executable, str(folder / "script.py"), *arguments]
    return subprocess.run(command, env=environment, capture_output=True, text=True)


def test_rows_of_an_extension_exist_in_a_spawned_process(tmp_path):
    (tmp_path / "own.py").write_text(EXTENSION)
    (tmp_path / "other.py").write_text("")
    done = run(tmp_path, SPAWN, "other, own,")
    assert (done.returncode, done.stdout) == (0, "Small\n"), done.stderr


def test_an_extension_can_be_imported_before_this_package(tmp_path):
    (tmp_path / "own.py").write_text(EXTENSION)
    assert run(tmp_path, "import own; own.MODELS['Small']", "own").returncode == 0


MODULES = {
    "typo": ("", ""),
    "own.nets": ("", ""),
    "syntax": ("def f(:", 'syntax.py", line 1'),
    "inner": ("\nimport missing", 'inner.py", line 2'),
    "leaving": ("import sys\nsys.exit(0)", 'leaving.py", line 2'),
    "raising": ("int('x')", 'raising.py", line 1'),
    "choice": ("from slowfast.config import *\nadd_choice('MODEL.LOS_FUNC', 'x')", "'MODEL.LOSS_FUNC'"),
}


@pytest.mark.parametrize("name", MODULES)
def test_a_module_that_cannot_be_imported_is_a_fault_of_the_configuration(tmp_path, name):
    """One line for a wrong name; a module with an error also needs the line of the error."""
    code, place = MODULES[name]
    if code:
        (tmp_path / f"{name}.py").write_text(code)
    done = run(tmp_path, "import run_net, sys; sys.exit(run_net.main())", f"json,{name}", "--cfg", DEMO, "--show")
    lines = done.stderr.splitlines()
    assert done.returncode == 2 and lines[0].startswith(f"error: SLOWFAST_IMPORT names {name}, "), lines
    assert place in done.stderr and (len(lines) > 1) == bool(code)


@pytest.mark.parametrize(("module", "cure"), [("nets.py", "mine.nets"), ("notes.txt", "PYTHONPATH")])
def test_a_folder_that_is_no_module_is_a_fault_of_the_configuration(tmp_path, module, cure):
    """Python imports any folder in sys.path, and executes nothing in it."""
    (tmp_path / "mine").mkdir()
    (tmp_path / "mine" / module).write_text("")
    done = run(tmp_path, "import run_net, sys; sys.exit(run_net.main())", "mine,json", "--cfg", DEMO, "--show")
    assert done.returncode == 2 and len(done.stderr.splitlines()) == 1, done.stderr
    assert cure in done.stderr
    (tmp_path / "mine" / "__init__.py").write_text("")
    assert run(tmp_path, "import slowfast.config.extensions as e; assert not e.FAULTS", "mine,sys").returncode == 0


def test_a_module_that_only_another_process_cannot_import_ends_the_job(tmp_path):
    code = "import multiprocessing\nassert multiprocessing.current_process().name == 'MainProcess', 'not twice'"
    (tmp_path / "own.py").write_text(code)
    changed = ["NUM_PROCESSES", "2", "OUTPUT_DIR", str(tmp_path / "out")]
    program = "import run_net, sys\nif __name__ == '__main__':\n    sys.exit(run_net.main())"
    done = run(tmp_path, program, "own", "--cfg", DEMO, *changed)
    errors = [line for line in done.stderr.splitlines() if line.startswith("error: ")]
    assert done.returncode == 2 and len(errors) == 1 and "names own" in errors[0] and "not twice" in done.stderr
    assert not (tmp_path / "out").exists()


def test_a_module_that_cannot_be_imported_is_broken_in_the_doctor(tmp_path):
    script = "import doctor, sys; doctor.CHECKS = (doctor.own_modules, doctor.machine); sys.exit(doctor.main())"
    done = run(tmp_path, script, "tipo,json")
    broken = [line for line in done.stdout.splitlines() if line.startswith(doctor.BROKEN)]
    assert done.returncode == 1 and ["tipo" in line for line in broken] == [True]
    assert "open files" in done.stdout


def test_add_choice_needs_a_key():
    with pytest.raises(ValueError, match=r"SOLVER.LR_POLICI .*'SOLVER.LR_POLICY'"):
        add_choice("SOLVER.LR_POLICI", "linear")


def test_a_choice_without_a_row_names_the_table(monkeypatch):
    cfg = ["MODEL.LOSS_FUNC", "fokal", "SOLVER.OPTIMIZING_METHOD", "lyon", "SOLVER.LR_POLICY", "cosin"]
    for key, choice in zip(cfg[::2], cfg[1::2], strict=True):
        monkeypatch.setitem(KEYS, key, KEYS[key])
        add_choice(key, choice)
    loaded = load_config(None, cfg)
    for build, named in (
        (lambda: build_loss(loaded), "MODEL.LOSS_FUNC 'fokal' .*LOSSES"),
        (lambda: build_optimizer(nn.Linear(1, 1), loaded), "SOLVER.OPTIMIZING_METHOD 'lyon' .*OPTIMIZERS"),
        (lambda: learning_rate(0, loaded), "SOLVER.LR_POLICY 'cosin' .*SCHEDULES .*'cosine'"),
    ):
        with pytest.raises(ValueError, match=named):
            build()


def test_a_data_set_without_a_row_or_sampler_names_the_table(monkeypatch):
    monkeypatch.setitem(KEYS, "TRAIN.DATASET", KEYS["TRAIN.DATASET"])
    add_choice("TRAIN.DATASET", "drones")
    with pytest.raises(ValueError, match=r"TRAIN.DATASET 'drones' .*CATALOG"):
        load_config(None, ["TRAIN.DATASET", "drones"])
    monkeypatch.setitem(CATALOG, "drones", DatasetSpec("videos of drones", sampling="dens"))
    with pytest.raises(ValueError, match=r"drones.* 'dens' .*SAMPLERS .*'dense'"):
        build_dataset(load_config(None, ["TRAIN.DATASET", "drones"]), "train")


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


@pytest.mark.parametrize("key", [key for key in KEYS if key != "MODEL.ARCH"])  # it follows from MODEL.MODEL_NAME
def test_a_recorded_value_of_any_type_is_kept(key):
    section, _, name = key.rpartition(".")
    cfg, known = recorded_config(f"{section}:\n  {name}: [a, [b]]\n" if section else f"{name}: [a, [b]]\n")
    assert known == {key} and changed_keys(cfg, get_cfg(), ignore=()).get(key)
