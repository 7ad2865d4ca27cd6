"""Backbones, their weights, and how a configuration becomes one."""

from slowfast.models.build import build_model
from slowfast.models.uniformer import UniFormer

__all__ = ["UniFormer", "build_model"]
