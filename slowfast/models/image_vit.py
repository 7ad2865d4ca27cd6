"""Define the layers of the image ViT inside UniFormerV2, with CLIP's names, and check its initial weights."""

from __future__ import annotations

import math
from collections import OrderedDict
from collections.abc import Mapping, Sequence
from dataclasses import replace
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from slowfast.models.timm_tower import VisionTower, timm_tower

TOWERS = {
    "uniformerv2_b16": VisionTower(width=768, layers=12, heads=12, patch=16, resolution=224),
    "uniformerv2_l14": VisionTower(width=1024, layers=24, heads=16, patch=14, resolution=224),
    "uniformerv2_l14_336": VisionTower(width=1024, layers=24, heads=16, patch=14, resolution=336),
}


def vision_tower(name: str) -> VisionTower:
    """Return the architecture of the image ViT with a name in `TOWERS`, or "timm/<name>".

    Raises:
        ValueError: the name is unknown, or the network is not a plain ViT; see `timm_tower`.
    """
    if name.startswith("timm/"):
        return timm_tower(name.removeprefix("timm/"))
    if name not in TOWERS:
        raise ValueError(
            f"backbone {name!r} is not known: choose from {sorted(TOWERS)}, or timm/<name of a ViT in timm>"
        )
    return TOWERS[name]


class QuickGELU(nn.Module):
    """Activation x * sigmoid(1.702 x), CLIP's approximation of the GELU (arXiv:1606.08415)."""

    def forward(self, x: Tensor) -> Tensor:
        """Return a tensor of the same shape."""
        return x * torch.sigmoid(1.702 * x)


ACTIVATIONS = {"quick_gelu": QuickGELU, "gelu": nn.GELU}


def feed_forward(dim: int, hidden: int, dropout: float = 0.0, activation: str = "quick_gelu") -> nn.Sequential:
    """Return two linear layers with an activation between them, with CLIP's parameter names."""
    layers = (("c_fc", nn.Linear(dim, hidden)), ("gelu", ACTIVATIONS[activation]()), ("dropout", nn.Dropout(dropout)))
    return nn.Sequential(OrderedDict((*layers, ("c_proj", nn.Linear(hidden, dim)))))


class MultiheadAttention(nn.Module):
    """Multi-head attention over tokens (L, B, C), with the parameter names and initial values of PyTorch's module.

    `nn.MultiheadAttention` reads `out_proj.weight`, which bypasses wrappers of that layer (LoRA); here the layer is
    called.
    """

    def __init__(self, dim: int, heads: int) -> None:
        super().__init__()
        if dim % heads:
            raise ValueError(f"{heads} heads do not divide the {dim} channels: change one of them")
        self.dim, self.heads = dim, heads
        self.in_proj_weight = nn.Parameter(torch.empty(3 * dim, dim))
        self.in_proj_bias = nn.Parameter(torch.zeros(3 * dim))
        self.out_proj = nn.Linear(dim, dim)
        nn.init.xavier_uniform_(self.in_proj_weight)
        nn.init.zeros_(self.out_proj.bias)

    def forward(self, query: Tensor, tokens: Tensor | None = None) -> Tensor:
        """Return (Q, B, C) after attention of Q query tokens (Q, B, C) over `tokens` (L, B, C), or over themselves."""
        if tokens is None:
            q, k, v = _unpack(F.linear(query, self.in_proj_weight, self.in_proj_bias), 3)
        else:
            (w_q, w_kv), (b_q, b_kv) = (
                p.split([self.dim, 2 * self.dim]) for p in (self.in_proj_weight, self.in_proj_bias)
            )
            q = F.linear(query, w_q, b_q)
            k, v = _unpack(F.linear(tokens, w_kv, b_kv), 2)
        # (L, B, C) -> (B, heads, L, C / heads)
        q, k, v = (x.unflatten(2, (self.heads, -1)).permute(1, 2, 0, 3) for x in (q, k, v))
        return self.out_proj(F.scaled_dot_product_attention(q, k, v).permute(2, 0, 1, 3).flatten(2))


def _unpack(x: Tensor, parts: int) -> Tensor:
    """Split (L, B, parts * C) into (parts, L, B, C), contiguous as the fused kernels need."""
    return x.unflatten(2, (parts, -1)).permute(2, 0, 1, 3).contiguous()


def resize_position_embedding(embedding: Tensor, grid: Sequence[Any]) -> Tensor:
    """Resize the position embedding (1 + S*S, C) of a square grid to a grid (H, W): bicubic, class token kept."""
    side = math.isqrt(len(embedding) - 1)
    if all(isinstance(size, int) and size == side for size in grid):  # symbolic sizes always use the general path
        return embedding
    patches = embedding[1:].T.unflatten(1, (side, side)).unsqueeze(0)
    patches = F.interpolate(patches.float(), size=tuple(grid), mode="bicubic", align_corners=False, antialias=True)
    return torch.cat([embedding[:1], patches[0].flatten(1).T.to(embedding.dtype)])


# ---- weights --------------------------------------------------------------------------------------------------------


def fit_position_embedding(embedding: Tensor, shape: torch.Size) -> Tensor | None:
    """Resize the position embedding of a square grid to another one; return None for other shapes than (1 + S*S, C)."""
    sides = [math.isqrt(length - 1) for length in (len(embedding), shape[0])]
    if [(1 + side**2, shape[-1]) for side in sides] != [tuple(embedding.shape), tuple(shape)]:
        return None
    return resize_position_embedding(embedding, (sides[1], sides[1]))


def check_tower(tower: VisionTower, trained: Mapping[str, Any]) -> None:
    """Check that an image ViT is the one of the weights.

    Args:
        tower: the image ViT of the network.
        trained: arguments with which the weights were trained; `backbone` is a name, or "custom", with the values of a
            `VisionTower` in `tower`.

    Raises:
        ValueError: they differ.
    """
    name = str(trained.get("backbone", ""))
    if name == "custom" and "tower" in trained:
        option, value, there = "tower", trained["tower"], VisionTower(*trained["tower"])
    elif name in TOWERS or name.startswith("timm/"):
        option, value, there = "backbone", name, vision_tower(name)
    else:
        return
    # position embeddings are resized to another resolution, and a wrong hidden width shows in the shapes
    if replace(there, resolution=tower.resolution, mlp_width=tower.mlp_width) != tower:
        raise ValueError(
            f"the checkpoint was trained with {option} {value}, which is another image ViT than {tower}: set it"
        )


def check_activation(tower: VisionTower, layout: str, trained: str) -> list[str]:
    """Check that the activation of an image ViT is that of the weights; see `WeightRules.check_image_vit`."""
    exact = "backbone timm/<name of the ViT in timm>"
    if trained and trained != tower.activation:
        cure = exact if trained == "gelu" else "one of CLIP's own, such as uniformerv2_b16"
        raise ValueError(
            f"{layout} weights were trained with the activation {trained}, and the image ViT here computes "
            f"{tower.activation}: take {cure}"
        )
    if not trained and tower.activation == "quick_gelu":
        return [
            "the file does not show its activation, and the image ViT here computes OpenAI's QuickGELU; weights "
            f"trained with the exact GELU (those of LAION, for example) need {exact}"
        ]
    return []
