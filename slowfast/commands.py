"""Provide the console commands, which run the programs of tools/ and of the package."""

from __future__ import annotations

import importlib
import sys
from pathlib import Path


def _run(program: str) -> int:
    package = Path(__file__).parent
    # a wheel contains the programs inside the package, a checkout beside it
    folder = next(folder for folder in (package / "tools", package.parent / "tools") if folder.is_dir())
    sys.path.insert(0, str(folder))
    return importlib.import_module(program).main()


def train() -> int:
    """Run tools/run_net.py: train and test."""
    return _run("run_net")


def prepare() -> int:
    """Run tools/prepare_data.py: make, check and re-encode data sets."""
    return _run("prepare_data")


def predict() -> int:
    """Predict the classes of videos."""
    from slowfast.inference.predict import main

    return main()


def features() -> int:
    """Write the features of videos."""
    from slowfast.inference.extract import main

    return main()


def export() -> int:
    """Write a network as ONNX, as an exported program of PyTorch, or as safetensors."""
    from slowfast.inference.export import main

    return main()


def probe() -> int:
    """Measure frozen features by small classifiers."""
    from slowfast.inference.probe import main

    return main()


def visualize() -> int:
    """Draw the clips of a training, Grad-CAM and attention."""
    from slowfast.inference.visualize import main

    return main()


def demo_data() -> int:
    """Run tools/make_demo_data.py: make the data of the demos."""
    return _run("make_demo_data")


def report() -> int:
    """Run tools/report_runs.py: report of a run, or comparison of several."""
    return _run("report_runs")


def doctor() -> int:
    """Run tools/doctor.py: check the installation and the machine."""
    return _run("doctor")
