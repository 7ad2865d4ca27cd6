"""UniFormer video backbones: training, validation and multi-view testing."""

from __future__ import annotations

import warnings
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from slowfast.models.zoo import create_model, list_models

__all__ = ["create_model", "list_models"]
__version__ = "0.1.0"

# fvcore scripts a few functions when it is imported; nothing a user of this package can do about it
warnings.filterwarnings("ignore", message=".*torch.jit.script.* is deprecated", category=FutureWarning)
# `build_loader` says it with the name of the key
warnings.filterwarnings("ignore", message="This DataLoader will create", category=UserWarning)


def __getattr__(name: str) -> Any:
    """The Python API, imported when it is asked for, so that `import slowfast` stays fast."""
    if name in __all__:
        from slowfast.models import zoo

        return getattr(zoo, name)
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
