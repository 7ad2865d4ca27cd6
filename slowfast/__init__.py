"""UniFormer video backbones: training, validation and multi-view testing."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from slowfast.models.zoo import create_model, list_models

__all__ = ["create_model", "list_models"]
__version__ = "0.2.0"


def __getattr__(name: str) -> Any:
    """Import a name of the Python API when it is first used, so that `import slowfast` stays fast."""
    if name in __all__:
        from slowfast.models import zoo

        return getattr(zoo, name)
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
