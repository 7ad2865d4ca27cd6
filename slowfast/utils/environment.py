"""Describe the programs and the machine that a result comes from."""

from __future__ import annotations

import os
import platform
import shlex
import subprocess
import sys
from collections import Counter
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path

import torch

from slowfast.utils.processes import usable_cores

GIT_LIMIT = 10.0  # seconds; the repository may be on a slow network drive
PACKAGES = ("torch", "torchvision", "timm", "numpy", "av", "decord", "torchcodec", "opencv-python-headless")


def environment() -> dict[str, str]:
    """Return name -> value of the command, the code, the packages and the machine."""
    gpus = Counter(torch.cuda.get_device_name(number) for number in range(torch.cuda.device_count()))
    return {
        "command": shlex.join(sys.argv),
        "slowfast": package_version("slowfast"),
        "git commit": git_commit(),
        "SLOWFAST_IMPORT": own_modules(),
        "Python": platform.python_version(),
        **{name: package_version(name) for name in PACKAGES},
        "CUDA": str(torch.version.cuda),
        "cuDNN": str(torch.backends.cudnn.version()) if torch.cuda.is_available() else "None",
        "GPUs": ", ".join(f"{count} x {name}" for name, count in gpus.items()) or "None",
        "CPU": processor(),
        "CPU cores": str(usable_cores()),
        "system": platform.platform(),
    }


def processor() -> str:
    """Return the name of the processor; on ARM, it often has none, and that of the architecture is returned."""
    cpuinfo = Path("/proc/cpuinfo")
    lines = cpuinfo.read_text().splitlines() if cpuinfo.is_file() else []
    models = [line.split(":", 1)[1].strip() for line in lines if line.startswith("model name")]
    return models[0] if models else platform.processor() or platform.machine()


def own_modules() -> str:
    """Return SLOWFAST_IMPORT, or "not set"."""
    return os.environ.get("SLOWFAST_IMPORT") or "not set"


def package_version(name: str) -> str:
    """Return the version of an installed package, or "not installed"."""
    try:
        return version(name)
    except PackageNotFoundError:
        return "not installed"


def git_commit() -> str:
    """Return the commit of this code, with "+ changes" if files differ from it, or "None" outside a repository."""
    folder = Path(__file__).parents[2]
    if not (folder / ".git").exists():  # the package may be installed below another repository
        return "None"
    command = ["git", "-C", str(folder), "describe", "--always", "--exclude=*", "--abbrev=40", "--dirty= + changes"]
    try:
        return subprocess.run(command, capture_output=True, text=True, timeout=GIT_LIMIT, check=True).stdout.strip()
    except (OSError, subprocess.SubprocessError):  # no git, or a repository of another user
        return "None"
