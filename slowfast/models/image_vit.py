"""Define the layers of UniFormerV2 and of the image ViT inside it.

Tokens are batch-first. Parameter names and shapes are those of CLIP, and of PyTorch's convolutions.
"""

from __future__ import annotations

import math
from collections import OrderedDict
from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from slowfast.models.depthwise import depthwise
from slowfast.models.linear import apply_linear, is_exporting, is_plain, linear, unhooked
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


class PatchConv(nn.Conv3d):
    """A convolution of videos (B, C, T, H, W) whose windows do not overlap in space, as one matrix product."""

    def forward(self, input: Tensor) -> Tensor:
        """Return (B, C', T', H', W'), channels last."""
        frames, height, width = self.kernel_size
        pad, stride = int(self.padding[0]), self.stride[0]
        windows = F.pad(input, (0, 0, 0, 0, pad, pad)).unfold(2, frames, stride)  # (B, C, T', H, W, frames)
        windows = windows.unflatten(4, (-1, width)).unflatten(3, (-1, height))
        windows = windows.permute(0, 2, 3, 5, 1, 7, 4, 6).flatten(4)
        return linear(windows, self.weight.flatten(1), self.bias).permute(0, 4, 1, 2, 3)


class PointwiseConv(nn.Conv3d):
    """A convolution of size 1 over tokens (..., C), as one matrix product."""

    def forward(self, input: Tensor) -> Tensor:
        """Return tokens (..., C')."""
        return linear(input, self.weight.flatten(1), self.bias)


class TemporalConv(nn.Conv3d):
    """A depthwise convolution over the frames of tokens (B, T, L, C).

    CPUs compute a 2D convolution of images (B, C, T, L), because PyTorch's 3D kernels take 20 times as long there, and
    give wrong bfloat16 gradients of the weights for short clips.
    """

    def forward(self, input: Tensor) -> Tensor:
        """Return tokens of the same shape."""
        images = input.permute(0, 3, 1, 2)
        if input.is_cuda:
            videos = depthwise(self, images.unsqueeze(4))
            if videos is not None:
                return videos.squeeze(4).permute(0, 2, 3, 1)
        out = F.conv2d(images, self.weight.squeeze(-1), self.bias, padding=(1, 0), groups=self.groups)
        return out.permute(0, 2, 3, 1)


class QuickGELU(nn.Module):
    """Activation x * sigmoid(s x) with s = 1.702, CLIP's approximation of the GELU (arXiv:1606.08415)."""

    scale = 1.702

    def forward(self, x: Tensor) -> Tensor:
        return F.silu(self.scale * x).div_(self.scale)  # keeps one tensor for the backward pass instead of two


ACTIVATIONS = {"quick_gelu": QuickGELU, "gelu": nn.GELU}


class FeedForward(nn.Sequential):
    """Apply layers one after the other, linear layers by `apply_linear`."""

    def forward(self, input: Tensor) -> Tensor:
        if input.is_cuda and self.scales_weights(input):
            return self.with_scaled_weights(input)
        for layer in self:
            input = apply_linear(layer, input)
        return input

    def scales_weights(self, input: Tensor) -> bool:
        """Return whether `with_scaled_weights` is right here, and there are more hidden values than weights."""
        if len(self) != 4:
            return False
        layers: Any = self
        first, activation, _, second = layers
        return (
            type(activation) is QuickGELU
            and unhooked(activation)
            and is_plain(first, nn.Linear)
            and is_plain(second, nn.Linear)
            and first.bias is not None
            and input.numel() > input.shape[-1] ** 2
        )

    def with_scaled_weights(self, input: Tensor) -> Tensor:
        """Return the output of layers with a `QuickGELU`, whose scale is applied to the weights.

        A GPU then reads the hidden values from its memory once instead of three times, also in the backward pass.
        """
        layers: Any = self
        first, activation, dropout, second = layers
        hidden = F.silu(linear(input, activation.scale * first.weight, activation.scale * first.bias))
        return linear(dropout(hidden), second.weight / activation.scale, second.bias)


def feed_forward(dim: int, hidden: int, dropout: float = 0.0, activation: str = "quick_gelu") -> nn.Sequential:
    """Return two linear layers with an activation between them, with CLIP's parameter names."""
    layers = (("c_fc", nn.Linear(dim, hidden)), ("gelu", ACTIVATIONS[activation]()), ("dropout", nn.Dropout(dropout)))
    return FeedForward(OrderedDict((*layers, ("c_proj", nn.Linear(hidden, dim)))))


class SelfAttention(nn.Module):
    """Multi-head self-attention over tokens (..., L, C), with parameters and initial values of PyTorch's module.

    `nn.MultiheadAttention` reads `out_proj.weight`, which bypasses wrappers of that layer (LoRA); here the layer is
    called.
    """

    def __init__(self, dim: int, heads: int) -> None:
        super().__init__()
        if dim % heads:
            raise ValueError(f"{heads} heads do not divide the {dim} channels: change one of them")
        self.heads = heads
        self.in_proj_weight = nn.Parameter(torch.empty(3 * dim, dim))
        self.in_proj_bias = nn.Parameter(torch.zeros(3 * dim))
        self.out_proj = nn.Linear(dim, dim)
        nn.init.xavier_uniform_(self.in_proj_weight)
        nn.init.zeros_(self.out_proj.bias)

    def forward(self, tokens: Tensor) -> Tensor:
        return apply_linear(self.out_proj, attend(*self.project(tokens)).transpose(1, 2).reshape(tokens.shape))

    def project(self, tokens: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        """Project tokens (..., L, C) to queries, keys and values, each (B, heads, L, C / heads)."""
        parts = linear(tokens, self.in_proj_weight, self.in_proj_bias).flatten(0, -3).chunk(3, dim=2)
        q, k, v = (part.unflatten(2, (self.heads, -1)).transpose(1, 2) for part in parts)  # views, without copies
        return q, k, v

    def weights(self, tokens: Tensor) -> Tensor:
        """Return the attention (B, heads, L, L) of every token of (..., L, C), the rows, to all tokens."""
        q, k, _ = self.project(tokens)
        return (q.shape[-1] ** -0.5 * q @ k.transpose(-2, -1)).softmax(-1)


class QueryAttention(SelfAttention):
    """Multi-head attention of few query tokens over many tokens, with the parameters of `SelfAttention`.

    Keys and values are not computed. With W_k and W_v of a head, its scores are q W_k x = (W_k^T q) x, up to a constant
    of the bias that the softmax removes; and its output is the sum of p W_v x = W_v (sum of p x), where p sums to 1.
    """

    def forward(self, query: Tensor, tokens: Tensor) -> Tensor:  # pyright: ignore[reportIncompatibleMethodOverride]
        """Return (B, Q, C) after attention of query tokens (B, Q, C) over tokens (B, L, C)."""
        w_v, b_v = self.in_proj_weight.chunk(3)[2].unflatten(0, (self.heads, -1)), self.in_proj_bias.chunk(3)[2]
        q = self.absorbed(query)
        if is_exporting():  # ONNX has this operator for (B, heads, L, C) only
            q, tokens = q.unsqueeze(1), tokens.unsqueeze(1)
        x = F.scaled_dot_product_attention(q, tokens, tokens, scale=w_v.shape[1] ** -0.5).flatten(0, -3)
        x = torch.einsum("bqhc,hdc->bqhd", x.unflatten(1, (-1, self.heads)), w_v)
        return self.out_proj(x.flatten(2) + b_v)

    def absorbed(self, query: Tensor) -> Tensor:
        """Return (B, Q * heads, C), the queries W_k^T q of query tokens (B, Q, C); their keys are the tokens."""
        w_q, w_k, _ = self.in_proj_weight.unflatten(0, (3, self.heads, -1))  # (heads, C / heads, C)
        q = F.linear(query, w_q.flatten(0, 1), self.in_proj_bias.chunk(3)[0]).unflatten(2, (self.heads, -1))
        return torch.einsum("bqhd,hdc->bqhc", q, w_k).flatten(1, 2)

    def weights(self, query: Tensor, tokens: Tensor) -> Tensor:  # pyright: ignore[reportIncompatibleMethodOverride]
        """Return the attention (B, heads, Q, L) of query tokens (B, Q, C) to tokens (B, L, C)."""
        scale = (query.shape[2] // self.heads) ** -0.5
        scores = scale * self.absorbed(query) @ tokens.transpose(1, 2)
        return scores.softmax(2).unflatten(1, (-1, self.heads)).transpose(1, 2)


def attend(q: Tensor, k: Tensor, v: Tensor) -> Tensor:
    """Return (B, heads, L, d) after attention with queries, keys and values of this shape, which may be views."""
    if q.device.type == "cpu" and q.dtype == torch.bfloat16:  # twice as fast as PyTorch's kernel
        return ((q * q.shape[-1] ** -0.5) @ k.transpose(-2, -1)).softmax(-1) @ v
    return F.scaled_dot_product_attention(q, k, v)


def resize_position_embedding(embedding: Tensor, grid: Sequence[Any]) -> Tensor:
    """Resize the position embedding (1 + S*S, C) of a square grid to a grid (H, W): bicubic, class token kept."""
    side = math.isqrt(len(embedding) - 1)
    if all(isinstance(size, int) and size == side for size in grid):  # symbolic sizes always use the general path
        return embedding
    patches = embedding[1:].T.unflatten(1, (side, side)).unsqueeze(0)
    patches = F.interpolate(patches.float(), size=tuple(grid), mode="bicubic", align_corners=False, antialias=True)
    return torch.cat([embedding[:1], patches[0].flatten(1).T.to(embedding.dtype)])
