"""Describe the image ViT of a UniFormerV2, and read its architecture from plain ViTs of timm."""

from __future__ import annotations

import functools
import re
from dataclasses import dataclass
from typing import Any

import torch
from torch import nn

from slowfast.models.options import close_to


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


# Parts of ViTs that a `VisionTower` cannot have: pattern of a parameter's name -> description.
FOREIGN_PARTS = {
    r"rel_pos|relative_position": "a relative position bias",
    r"reg_token": "register tokens",
    r"dist_token": "a distillation token",
    r"[qk]_norm": "normalized queries and keys",
    r"attn\.norm": "a norm inside the attention",
    r"mlp\.norm": "a norm inside the feed-forward layer",
    r"patch_embed\.norm": "a normalized patch embedding",
}


def _foreign_parts(vit: nn.Module) -> list[str]:
    """Return the parts of a network of timm that a `VisionTower` cannot have; empty if its parameters fit."""
    names = [name for name, _ in vit.named_parameters()]
    found = [words for part, words in FOREIGN_PARTS.items() if any(re.search(part, name) for name in names)]
    if "cls_token" not in names:
        found.append("no class token")
    if getattr(vit, "rope", None) is not None:
        found.append("rotary position embeddings")
    elif "pos_embed" not in names:
        found.append("no learned position embedding")
    parts: dict[str, Any] = dict(vit.named_modules())
    for part, known in (
        ("", "VisionTransformer"),
        ("patch_embed", "PatchEmbed"),
        ("blocks.0", "Block"),
        ("blocks.0.attn", "Attention"),
        ("blocks.0.mlp", "Mlp"),
        ("blocks.0.mlp.act", "GELU or QuickGELU"),
        ("blocks.0.norm1", "LayerNorm"),
    ):
        kind = type(parts[part]).__name__ if part in parts else "missing"
        if kind not in known.split(" or "):
            found.append(f"{part or 'the network'} is {kind}, not {known}")
            break
    else:  # its patch embedding has both sizes
        patch, grid = parts["patch_embed"].patch_size, parts["patch_embed"].grid_size
        if len({*patch}) > 1 or len({*grid}) > 1:
            found.append(f"patches of {patch} pixels in a grid of {grid}, not squares")
    return found


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
        raise ValueError(f"backbone timm/{name} does not fit: {error}") from error


def tower_of(vit: nn.Module) -> VisionTower:
    """Return the architecture of a VisionTransformer of timm.

    Raises:
        ValueError: it has parts that a `VisionTower` cannot have.
    """
    if foreign := _foreign_parts(vit):
        raise ValueError(
            f"{'; '.join(foreign)}. Use a plain ViT with one class token, a learned position for each patch "
            "and square patches: vit_*_patch*_224 (with any of its weights: .augreg_in21k, .dino, .mae, ...), "
            "vit_*_clip_*, deit_*, deit3_*, and vit_*_patch14_dinov2 without registers"
        )
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
