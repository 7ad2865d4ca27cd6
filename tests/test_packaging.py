"""The declared requirements of the package, and the content of the wheel outside a checkout."""

from __future__ import annotations

import ast
import json
import os
import re
import shutil
import subprocess
import sys
import zipfile
from collections.abc import Callable
from importlib.metadata import packages_distributions, requires
from pathlib import Path

import numpy as np
import pytest
import torch
from safetensors import safe_open

from slowfast.config import load_config
from slowfast.models.build import build_model

ROOT = Path(__file__).parents[1]
# imported only if chosen, in the extra "dev"; Triton comes with PyTorch where there are GPUs
OPTIONAL = {"onnxruntime", "torchcodec", "triton"}


def imported(folder: str) -> set[str]:
    """Return the top-level names that the modules below a folder import."""
    names: set[str] = set()
    for path in (ROOT / folder).rglob("*.py"):
        for node in ast.walk(ast.parse(path.read_text())):
            if isinstance(node, ast.Import):
                names |= {alias.name.split(".")[0] for alias in node.names}
            elif isinstance(node, ast.ImportFrom):
                names.add((node.module or "").split(".")[0])
    return names - set(sys.stdlib_module_names) - {"slowfast"}


def plain(name: str) -> str:
    return re.sub(r"[-_.]+", "-", name).lower()


def test_what_is_imported_is_declared():
    lines = requires("slowfast") or []
    declared = {plain(re.split(r"[\s<>=!~;\[]", line)[0]) for line in lines if "extra ==" not in line}
    owners = packages_distributions()
    used = {
        name: {plain(owner) for owner in owners.get(name, [name])} for name in imported("slowfast") | imported("tools")
    }
    missing = {name for name, names in used.items() if not names & declared}
    assert missing - {path.stem for path in (ROOT / "tools").glob("*.py")} == OPTIONAL


@pytest.mark.slow
def test_make_completes_an_environment_without_pip(tmp_path):
    subprocess.run([sys.executable, "-m", "venv", "--without-pip", tmp_path], check=True)
    command = ["make", "install", f"VENV={tmp_path}", f"PYTHON={sys.executable}", "INSTALL=true"]
    subprocess.run(command, cwd=ROOT, check=True, stdout=subprocess.DEVNULL)
    subprocess.run([tmp_path / "bin/python", "-m", "pip", "--version"], check=True, stdout=subprocess.DEVNULL)


def test_decord_is_required_only_where_it_has_wheels():
    (line,) = [line for line in requires("slowfast") or [] if line.startswith("decord")]
    assert "sys_platform" in line and "x86_64" in line


def script(command: str, path: Path) -> Path:
    """Write the program that pip installs for a console command."""
    body = f"import sys\n    from slowfast.commands import {command}\n    sys.exit({command}())\n"
    path.write_text(f"if __name__ == '__main__':\n    {body}")
    return path


@pytest.mark.slow
@pytest.mark.parametrize("command", re.findall(r"= slowfast\.commands:(\w+)", (ROOT / "setup.py").read_text()))
def test_a_console_command_runs_its_program(command, call, tmp_path):
    done = call(script(command, tmp_path / "program.py"), "--help")
    assert done.returncode == 0 and "usage: " in done.stdout, done.stderr


@pytest.mark.slow
def test_a_console_command_sets_the_waiting_of_threads_before_it_imports_pytorch(tmp_path):
    program = tmp_path / "program.py"
    program.write_text(
        "import atexit, os, sys\nfrom slowfast.commands import probe\nassert 'torch' not in sys.modules\n"
        "os.environ.pop('GOMP_SPINCOUNT', None)\n"
        "atexit.register(lambda: print(os.environ.get('GOMP_SPINCOUNT'), 'torch' in sys.modules))\nprobe()\n"
    )
    environment = {**os.environ, "PYTHONPATH": str(ROOT)}
    done = subprocess.run(
        [sys.executable, program, "--help"], env=environment, cwd=tmp_path, capture_output=True, text=True
    )
    assert done.returncode == 0 and done.stdout.splitlines()[-1] == "10000 True", done.stderr


@pytest.mark.slow
def test_no_import_of_the_package_imports_an_optional_decoder(call, tmp_path):
    program = tmp_path / "program.py"
    program.write_text(
        "import pkgutil, sys, slowfast\n"
        "for module in pkgutil.walk_packages(slowfast.__path__, 'slowfast.'):\n"
        "    if module.name.split('.')[1] not in ('tools', 'exp', 'configs'):\n"
        "        __import__(module.name)\n"
        "assert not {'decord', 'torchcodec'} & set(sys.modules), 'a decoder was imported'\n"
    )
    done = call(program)
    assert done.returncode == 0, done.stderr


@pytest.fixture(scope="module")
def wheel(tmp_path_factory) -> Path:
    """Return a folder with the unpacked wheel of this checkout."""
    source, out = tmp_path_factory.mktemp("source"), tmp_path_factory.mktemp("wheel")
    for name in ("slowfast", "configs", "exp", "tools"):
        shutil.copytree(ROOT / name, source / name, ignore=shutil.ignore_patterns("__pycache__"))
    for name in ("setup.py", "pyproject.toml", "README.md", "LICENSE"):
        shutil.copy(ROOT / name, source)
    command = ["pip", "wheel", "-q", "--no-deps", "--no-build-isolation", "-w", str(out), str(source)]
    subprocess.run([sys.executable, "-m", *command], check=True)
    (built,) = out.glob("*.whl")
    zipfile.ZipFile(built).extractall(out / "site")
    return out / "site"


@pytest.mark.slow
def test_the_wheel_works_outside_a_checkout(wheel, call, tmp_path):
    for template in ("visualization/report.html", "inference/model_card.jinja"):
        assert (wheel / "slowfast" / template).is_file()
    environment, program, folder = {"PYTHONPATH": str(wheel)}, tmp_path / "program.py", tmp_path / "empty"
    folder.mkdir()
    program.write_text(
        "import slowfast\n"
        "from slowfast.config import load_config\n"
        "from slowfast.weights.fetch import released_weights\n"
        "assert 'uniformer_s16x4_k400' in released_weights()\n"
        "cfg = load_config('exp/uniformer_s16x4_k400/config.yaml')\n"
        "print(slowfast.__file__, cfg.MODEL.NUM_CLASSES, len(slowfast.list_models()))\n"
    )
    done = call(program, environment=environment, folder=folder, options=["fresh"])
    assert done.returncode == 0, done.stderr
    file, classes, _ = done.stdout.split()
    assert Path(file).is_relative_to(wheel) and classes == "400"
    run = [sys.executable, "-m", "slowfast.tools.run_net", "--cfg", "exp/demo/config.yaml", "--show"]
    done = subprocess.run(run, cwd=folder, env={**os.environ, **environment}, capture_output=True, text=True)
    assert done.returncode == 0 and "NUM_CLASSES: 8" in done.stdout
    assert not list(folder.iterdir())


@pytest.mark.slow
def test_a_program_warns_if_it_uses_the_package_of_another_folder(wheel, call):
    for package, lines in ((ROOT, 0), (wheel, 1)):
        show = [ROOT / "tools/run_net.py", "--cfg", ROOT / "exp/demo/config.yaml", "--show"]
        done = call(*show, environment={"PYTHONPATH": str(package)}, options=["fresh"])
        assert done.returncode == 0 and done.stderr.count("\n") == lines
        assert (str(wheel) in done.stderr) == (package == wheel)


SMALL = ["DATA.NUM_FRAMES", "4", "DATA.TEST_CROP_SIZE", "32", "TEST.NUM_ENSEMBLE_VIEWS", "1"]
SMALL += ["UNIFORMER.DEPTH", "[1,1,1,1]", "UNIFORMER.EMBED_DIM", "[8,16,32,32]", "UNIFORMER.HEAD_DIM", "16"]


@pytest.fixture
def installed(wheel, call, tmp_path) -> Callable[..., str]:
    """Run a console command of the wheel in an empty folder; return its standard output."""

    def run(command: str, *arguments: object) -> str:
        environment = {"HOME": str(tmp_path), "PYTHONPATH": str(wheel)}
        program = script(command, tmp_path / "program.py")
        done = call(program, *arguments, environment=environment, folder=tmp_path, options=["fresh"])
        assert done.returncode == 0, done.stderr
        return done.stdout

    return run


@pytest.mark.slow
def test_the_wheel_alone_uses_released_weights(installed, wheel, write_video, tmp_path):
    overrides = ["UNIFORMER.PRETRAIN_NAME", "", *SMALL]
    cfg = load_config(ROOT / "exp/uniformer_s16x4_k400/config.yaml", overrides)
    torch.save(build_model(cfg).state_dict(), tmp_path / "weights.pth")  # tensors alone, as the authors release them
    write_video(tmp_path / "a.mp4")
    network = ["--experiment", "uniformer_s16x4_k400", "--opts", *SMALL]

    shown = installed("predict", "a.mp4", "--json", "a.json", "--weights", "weights.pth", *network)
    (found,) = json.loads((tmp_path / "a.json").read_text())
    assert len(found["top"]) == 5 and found["top"][0]["name"] in shown
    assert set(found["top"][0]["name"]) - set("0123456789")  # not a number

    installed("features", "a.mp4", "--out", "features", "--stride", "4", "--weights", "weights.pth", *network)
    assert np.load(tmp_path / "features/a.npy").shape == (7, 32)

    installed("export", "weights.pth", "--format", "safetensors", "--out", "a.safetensors", *network)
    with safe_open(tmp_path / "a.safetensors", "pt") as file:
        assert json.loads(file.metadata()["class_names"])[0] == "riding a bike"  # in the order of the authors

    (tmp_path / "list.csv").write_text("a.mp4,3\n")
    places = ["DATA.PATH_TO_DATA_DIR", ".", "DATA.PATH_PREFIX", ".", "DATA.PATH_LABEL_SEPARATOR", ","]
    run = ["NUM_GPUS", "0", "DATA_LOADER.NUM_WORKERS", "0", "TRAIN.ENABLE", "False", "OUTPUT_DIR", "out", *SMALL]
    run += ["TEST.CHECKPOINT_FILE_PATH", "weights.pth", *places]
    (tmp_path / "test.csv").write_text("a.mp4,3\n")
    installed("train", "--cfg", "exp/uniformer_s16x4_k400/config.yaml", *run)
    installed("report", "out")
    assert "<html" in (tmp_path / "out/report.html").read_text()
