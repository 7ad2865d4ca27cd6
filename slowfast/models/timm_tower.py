"""Describe the image ViT of a UniFormerV2, and read its architecture from plain ViTs of timm."""

from __future__ import annotations

import functools
import re
from dataclasses import dataclass
from typing import Any

import torch
from torch import nn

from slowfast.utils.tables import close_to


@dataclass(frozen=True)
class VisionTower:
    """Architecture of the image ViT; the defaults are those of CLIP.

    Args:
        width: number of channels C of a token.
        layers: number of blocks.
        heads: number of attention heads per block.
        patch: height and width of a patch in pixels.
        resolution: height and width in pixels of the images for which the position embedding is made.
        mlp_width: hidden channels of the feed-forward layers; 0 is 4 x width.
        activation: name in `ACTIVATIONS`.
        eps: epsilon of the LayerNorms.
        pre_norm: whether there is a LayerNorm between embeddings and blocks.
        layer_scale: initial value of learned factors of the residual branches; None for no factor.
    """

    width: int
    layers: int
    heads: int
    patch: int
    resolution: int
    mlp_width: int = 0
    activation: str = "quick_gelu"
    eps: float = 1e-5
    pre_norm: bool = True
    layer_scale: float | None = None


# Layers of a plain ViT of timm: name of the layer -> names of its class.
PARTS = {
    "": ("VisionTransformer",),
    "patch_embed": ("PatchEmbed",),
    "blocks.0": ("Block",),
    "blocks.0.attn": ("Attention",),
    "blocks.0.mlp": ("Mlp",),
    "blocks.0.mlp.act": ("GELU", "QuickGELU"),
    "blocks.0.norm1": ("LayerNorm",),
}


def _check_parts(vit: nn.Module) -> None:
    """Raise ValueError if a `VisionTower` cannot describe a network of timm, because of parts that it has or lacks."""
    from timm.models.vision_transformer import VisionTransformer

    parts: dict[str, Any] = dict(vit.named_modules())
    for name, known in PARTS.items():
        kind = type(parts[name]).__name__ if name in parts else "missing"
        if kind not in known:
            raise ValueError(f"{name or 'the network'} is {kind}, not {' or '.join(known)}")
    patch, grid = parts["patch_embed"].patch_size, parts["patch_embed"].grid_size
    if len({*patch}) > 1 or len({*grid}) > 1:
        raise ValueError(f"patches of {patch} pixels in a grid of {grid} are not squares")
    plain = VisionTransformer(embed_dim=8, depth=1, num_heads=1, init_values=1.0)
    has, known = (
        {re.sub(r"^blocks\.\d+", "blocks", name) for name, _ in network.named_parameters()} for network in (vit, plain)
    )
    if foreign := {name for name in has - known if not name.startswith(("norm_pre.", "head.", "fc_norm."))}:
        raise ValueError(f"it has {', '.join(sorted(foreign)[:3])}")
    if missing := {"cls_token", "pos_embed"} - has:
        raise ValueError(f"it has no {' and no '.join(sorted(missing))}")


@functools.cache
def timm_tower(name: str) -> VisionTower:
    """Return the architecture of a plain ViT of timm, such as "vit_base_patch16_224.dino", without any weights.

    Raises:
        ValueError: timm does not have the name, or the network has parts that a `VisionTower` cannot have.
    """
    import timm  # takes a second and is rarely needed

    if not timm.is_model(name.split(".")[0]):
        near = close_to(f"timm/{name.split('.')[0]}", [f"timm/{model}" for model in timm.list_models()])
        raise ValueError(f"backbone timm/{name} is not known: timm {timm.__version__} has no such model{near}")
    try:
        with torch.device("meta"):
            vit: nn.Module = timm.create_model(name, pretrained=False)
        return tower_of(vit)
    except (RuntimeError, ValueError) as error:
        raise ValueError(
            f"backbone timm/{name} does not fit: {error}. Use a plain ViT with one class token, a learned position for "
            "each patch and square patches: vit_*_patch*_224 (with any of its weights: .augreg_in21k, .dino, .mae, "
            "...), vit_*_clip_*, deit_*, deit3_*, and vit_*_patch14_dinov2 without registers"
        ) from error


def tower_of(vit: nn.Module) -> VisionTower:
    """Return the architecture of a VisionTransformer of timm.

    Raises:
        ValueError: it has parts that a `VisionTower` cannot have.
    """
    _check_parts(vit)
    embedding: Any = vit.get_submodule("patch_embed")
    blocks: Any = vit.get_submodule("blocks")
    block, fc1 = blocks[0], blocks[0].mlp.fc1
    return VisionTower(
        width=fc1.in_features,
        layers=len(blocks),
        heads=block.attn.num_heads,
        patch=embedding.patch_size[0],
        resolution=embedding.grid_size[0] * embedding.patch_size[0],
        mlp_width=fc1.out_features,
        activation="quick_gelu" if type(block.mlp.act).__name__ == "QuickGELU" else "gelu",
        eps=block.norm1.eps,
        pre_norm=isinstance(vit.get_submodule("norm_pre"), nn.LayerNorm),
        layer_scale=None if isinstance(block.ls1, nn.Identity) else getattr(block.ls1, "init_values", 1e-5),
    )
