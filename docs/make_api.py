"""Write docs/API.md from the docstrings of the public names: python docs/make_api.py [--check]."""

from __future__ import annotations

import importlib
import inspect
import re
import sys
from pathlib import Path

PAGE = Path(__file__).with_name("API.md")
# Module and name; everything else is private and may change between releases.
NAMES = (
    ("slowfast", "create_model"),
    ("slowfast", "list_models"),
    ("slowfast", "load"),
    ("slowfast.inference.network", "Network"),
    ("slowfast.inference.results", "Prediction"),
    ("slowfast.inference.probe_heads", "load_head"),
    ("slowfast.config", "load_config"),
    ("slowfast.config", "get_cfg"),
    ("slowfast.config", "dump_config"),
    ("slowfast.models", "build_model"),
    ("slowfast.models", "UniFormer"),
    ("slowfast.models", "UniFormerLight"),
    ("slowfast.models", "UniFormerV2"),
    ("slowfast.weights.tensors", "load_tensors"),
    ("slowfast.weights.load", "load_weights"),
    ("slowfast.weights.heads", "HeadPolicy"),
    ("slowfast.datasets.build", "build_loader"),
    ("slowfast.datasets.reader", "read_frames"),
    ("slowfast.optim.build", "build_optimizer"),
    ("slowfast.utils.logging", "read_metrics"),
    ("slowfast.visualization.report", "write_report"),
)
INTRODUCTION = """\
# Python API

Import these names from your own programs. They keep their meaning within a minor release; a change is announced in
[CHANGELOG.md](../CHANGELOG.md). All other names are private.

The interface for your own backbones, optimizers and metrics is in [EXTENDING.md](EXTENDING.md), the configuration keys
are in [CONFIG.md](CONFIG.md). This page is made by `python docs/make_api.py`.
"""


def entry(module: str, name: str) -> str:
    """Return the signature and the docstring of a public name."""
    thing = getattr(importlib.import_module(module), name)
    parameters = re.sub(r"(: |-> )'([^']*)'", r"\1\2", str(inspect.signature(thing)))  # annotations without quotes
    parameters = re.sub(r"<function .*? at 0x\w+>", "...", parameters).replace("collections.abc.", "")
    return f"## {module}.{name}\n\n```\n{name}{parameters}\n\n{inspect.getdoc(thing)}\n```\n"


def main() -> int:
    """Write the page; with --check, return 1 if it is not up to date."""
    page = "\n".join([INTRODUCTION, *(entry(*name) for name in NAMES)])
    if "--check" not in sys.argv:
        PAGE.write_text(page, encoding="utf-8")
        return 0
    return int(page != PAGE.read_text(encoding="utf-8"))


if __name__ == "__main__":
    sys.exit(main())
