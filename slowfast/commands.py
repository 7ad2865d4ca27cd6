"""Provide the console commands, which run the programs of tools/ and of the package."""

from __future__ import annotations

import importlib
import os
import sys
from functools import partial
from pathlib import Path


def _run(program: str) -> int:
    """Run `main` of a module of the package, or of a program of tools/."""
    # On a shared core, OpenMP's threads must sleep while they wait. It must be set before PyTorch is imported.
    os.environ.setdefault("GOMP_SPINCOUNT", "10000")
    if not program.startswith("slowfast."):
        package = Path(__file__).parent
        # a wheel contains the programs inside the package, a checkout beside it
        folder = next(folder for folder in (package / "tools", package.parent / "tools") if folder.is_dir())
        sys.path.insert(0, str(folder))
    return importlib.import_module(program).main()


train = partial(_run, "run_net")  # train and test
prepare = partial(_run, "prepare_data")  # make, check and re-encode data sets
demo_data = partial(_run, "make_demo_data")  # make the data of the demos
report = partial(_run, "report_runs")  # report of a run, or comparison of several
doctor = partial(_run, "doctor")  # check the installation and the machine
predict = partial(_run, "slowfast.inference.predict")  # the classes of videos
features = partial(_run, "slowfast.inference.extract")  # write the features of videos
probe = partial(_run, "slowfast.inference.probe")  # measure frozen features by small classifiers
visualize = partial(_run, "slowfast.inference.visualize")  # clips of a training, Grad-CAM and attention
export = partial(_run, "slowfast.inference.export")  # ONNX, exported programs, safetensors
