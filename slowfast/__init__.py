"""UniFormer video backbones: training, validation and multi-view testing."""

from __future__ import annotations

import importlib
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from slowfast.inference.load import load
    from slowfast.models.zoo import create_model, list_models

__all__ = ["create_model", "list_models", "load"]
_MODULES = {"create_model": "models.zoo", "list_models": "models.zoo", "load": "inference.load"}
__version__ = "0.2.0"


def __getattr__(name: str) -> Any:
    """Import a name of the Python API when it is first used, so that `import slowfast` stays fast."""
    if name in __all__:
        return getattr(importlib.import_module(f"{__name__}.{_MODULES[name]}"), name)
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
