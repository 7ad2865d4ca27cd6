"""Imports run downhill: tools -> inference -> engine -> config -> models | datasets | optim -> weights -> utils."""

from __future__ import annotations

import ast
import subprocess
import sys
from pathlib import Path

import pytest

PACKAGE = Path(__file__).parents[1] / "slowfast"
MAY_IMPORT = {
    "utils": set(),
    "weights": {"utils"},
    "models": {"weights", "utils"},
    "datasets": {"utils"},
    "optim": {"utils"},
    "prepare": {"datasets", "utils"},
    "config": {"datasets", "utils"},
    "run": {"config", "datasets", "weights", "utils"},
    "engine": {"run", "config", "models", "datasets", "optim", "weights", "utils"},
    "visualization": {"config", "models", "datasets", "optim", "utils"},
    "inference": {"engine", "visualization", "run", "config", "models", "datasets", "weights", "utils"},
}
FILES = sorted(PACKAGE.glob("*/*.py"))


@pytest.mark.parametrize("path", FILES, ids=lambda p: str(p.relative_to(PACKAGE)))
def test_imports_run_downhill(path):
    package = path.parent.name
    for node in ast.walk(ast.parse(path.read_text())):
        modules = []
        if isinstance(node, ast.Import):
            modules = [alias.name for alias in node.names]
        elif isinstance(node, ast.ImportFrom):
            assert node.level == 0, "imports are absolute"
            modules = [node.module or ""]
        for module in modules:
            if module.startswith("slowfast."):
                other = module.split(".")[1]
                assert other == package or other in MAY_IMPORT[package], f"{package} imports {module}"


@pytest.mark.parametrize("path", FILES, ids=lambda p: str(p.relative_to(PACKAGE)))
def test_only_build_modules_and_the_engine_read_the_configuration(path):
    if path.parent.name in ("engine", "config", "run", "inference") or path.stem == "build":
        return
    names = {node.id for node in ast.walk(ast.parse(path.read_text())) if isinstance(node, ast.Name)}
    names |= {node.arg for node in ast.walk(ast.parse(path.read_text())) if isinstance(node, ast.arg)}
    assert "cfg" not in names


IMPORT_ALL = """
import logging, signal, sys, torch, warnings
def state():
    handlers = [signal.getsignal(number) for number in signal.valid_signals()]
    return warnings.filters[:], handlers, logging.root.handlers[:], torch.serialization.get_safe_globals()
import fvcore.nn, timm, torch.utils.tensorboard  # they change some of that
before = state()
import slowfast.engine.train, slowfast.engine.test, slowfast.run.slurm, slowfast.prepare, slowfast.inference.load
assert state() == before
"""


@pytest.mark.slow
def test_importing_changes_nothing_in_its_host():
    subprocess.run([sys.executable, "-c", IMPORT_ALL], cwd=PACKAGE.parent, check=True)
