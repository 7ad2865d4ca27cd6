"""Define the backbones, and build them by name or from a configuration."""

from slowfast.models.build import build_model
from slowfast.models.uniformer import UniFormer
from slowfast.models.uniformer_light import UniFormerLight
from slowfast.models.uniformerv2 import UniFormerV2

__all__ = ["UniFormer", "UniFormerLight", "UniFormerV2", "build_model"]
