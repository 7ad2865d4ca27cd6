"""Provide the console commands, which run the programs of tools/ and of the package."""

from __future__ import annotations

import importlib
import os
import sys
from functools import partial
from pathlib import Path

# On a shared core, OpenMP's threads must sleep while they wait. It must be set before PyTorch is imported.
SLEEP = ("GOMP_SPINCOUNT", "10000")


def _run_tool(name: str) -> int:
    """Run a program of tools/."""
    os.environ.setdefault(*SLEEP)
    package = Path(__file__).parent
    # a wheel contains the programs inside the package, a checkout beside it
    folder = next(folder for folder in (package / "tools", package.parent / "tools") if folder.is_dir())
    sys.path.insert(0, str(folder))
    return importlib.import_module(name).main()


def _run(name: str) -> int:
    """Run a program of `slowfast.inference`; return 0, 1 if some videos cannot be read, or a code of `guarded`."""
    os.environ.setdefault(*SLEEP)
    from slowfast.utils.io import guarded

    program = importlib.import_module(f"slowfast.inference.{name}")
    return guarded(lambda: program.execute(program.parse_args()))


train = partial(_run_tool, "run_net")  # train and test
prepare = partial(_run_tool, "prepare_data")  # make, check and re-encode data sets
demo_data = partial(_run_tool, "make_demo_data")  # make the data of the demos
report = partial(_run_tool, "report_runs")  # report of a run, or comparison of several
doctor = partial(_run_tool, "doctor")  # check the installation and the machine
predict = partial(_run, "predict")  # the classes of videos
features = partial(_run, "extract")  # write the features of videos
probe = partial(_run, "probe")  # measure frozen features by small classifiers
visualize = partial(_run, "visualize")  # clips of a training, Grad-CAM and attention
export = partial(_run, "export")  # ONNX, exported programs, safetensors
