"""Provide the console commands, which run the programs of tools/ and of the package."""

from __future__ import annotations

import importlib
import sys
from functools import partial
from pathlib import Path


def _run(program: str) -> int:
    """Run a program of tools/, or a module of the package."""
    if "." not in program:
        package = Path(__file__).parent
        # a wheel contains the programs inside the package, a checkout beside it
        folder = next(folder for folder in (package / "tools", package.parent / "tools") if folder.is_dir())
        sys.path.insert(0, str(folder))
    return importlib.import_module(program).main()


train = partial(_run, "run_net")
prepare = partial(_run, "prepare_data")
demo_data = partial(_run, "make_demo_data")
report = partial(_run, "report_runs")
doctor = partial(_run, "doctor")
predict = partial(_run, "slowfast.inference.predict")
features = partial(_run, "slowfast.inference.extract")
export = partial(_run, "slowfast.inference.export")
probe = partial(_run, "slowfast.inference.probe")
visualize = partial(_run, "slowfast.inference.visualize")
