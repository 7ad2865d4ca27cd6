"""Compute the networks of the papers as their official modules do, to compare speed, memory, logits and gradients.

Tensors are (B, C, T, H, W) in the contiguous memory format, convolutions are those of PyTorch, attention weights are
written to memory, and tokens are transposed to maps and back in every block. Everything is written from the formulas of
the papers and uses no layer of `slowfast.models`, only its hyperparameters and weights, so that a change there does not
change the reference. Parameter names are equal.
"""

from __future__ import annotations

import copy
from collections.abc import Callable
from typing import Any

import torch
from reference_v2 import VersionTwoReference, plain
from timm.layers import DropPath
from torch import Tensor, nn

from slowfast.models import UniFormer, UniFormerLight, UniFormerV2


class Embedding(nn.Module):
    """Patch embedding: a strided convolution, and LayerNorm over channels."""

    def __init__(self, ours: Any) -> None:
        super().__init__()
        self.norm, self.proj = plain(ours.norm), plain(ours.proj)

    def forward(self, x: Tensor) -> Tensor:
        x = self.proj(x)
        tokens = self.norm(x.flatten(2).transpose(1, 2))
        return tokens.reshape(len(x), *x.shape[2:], -1).movedim(-1, 1).contiguous()


class OverlappingEmbedding(nn.Module):
    """Patch embedding: convolutions with BatchNorm and GELU."""

    def __init__(self, ours: Any) -> None:
        super().__init__()
        self.proj = nn.Sequential(*(plain(layer) for layer in ours.proj))

    def forward(self, x: Tensor) -> Tensor:
        return self.proj(x)


class Mlp(nn.Module):
    """Feed-forward layers: linear layers or convolutions of size 1, and a GELU."""

    def __init__(self, ours: Any) -> None:
        super().__init__()
        self.fc1, self.fc2, self.drop, self.act = plain(ours.fc1), plain(ours.fc2), plain(ours.drop), nn.GELU()

    def forward(self, x: Tensor) -> Tensor:
        return self.drop(self.fc2(self.drop(self.act(self.fc1(x)))))


class Attention(nn.Module):
    """Multi-head self-attention; it returns its weights (B, heads, L, L) too."""

    def __init__(self, ours: Any) -> None:
        super().__init__()
        self.num_heads, self.scale = ours.num_heads, ours.scale
        self.qkv, self.proj, self.drop = plain(ours.qkv), plain(ours.proj), plain(ours.drop)
        self.attention_drop = nn.Dropout(ours.attention_dropout)

    def forward(self, x: Tensor) -> tuple[Tensor, Tensor]:
        B, L, C = x.shape
        q, k, v = self.qkv(x).reshape(B, L, 3, self.num_heads, C // self.num_heads).permute(2, 0, 3, 1, 4)
        weights = ((q * self.scale) @ k.transpose(-2, -1)).softmax(-1)
        x = (self.attention_drop(weights) @ v).transpose(1, 2).reshape(B, L, C)
        return self.drop(self.proj(x)), weights


class Block(nn.Module):
    """Layers that all blocks have; `scaled` multiplies a residual branch by its layer scale."""

    def __init__(self, ours: Any) -> None:
        super().__init__()
        self.pos_embed, self.norm1, self.norm2 = plain(ours.pos_embed), plain(ours.norm1), plain(ours.norm2)
        self.mlp, self.drop_path = Mlp(ours.mlp), DropPath(ours.drop_path.rate)
        self.gamma_1, self.gamma_2 = copy.deepcopy(ours.gamma_1), copy.deepcopy(ours.gamma_2)

    def scaled(self, branch: Tensor, gamma: Tensor | None) -> Tensor:
        return branch if gamma is None else gamma * branch


class LocalBlock(Block):
    """Local block of UniFormer (arXiv:2201.04676, section 3.2)."""

    def __init__(self, ours: Any) -> None:
        super().__init__(ours)
        self.conv1, self.attn, self.conv2 = plain(ours.conv1), plain(ours.attn), plain(ours.conv2)

    def forward(self, x: Tensor) -> Tensor:
        x = x + self.pos_embed(x)
        x = x + self.drop_path(self.scaled(self.conv2(self.attn(self.conv1(self.norm1(x)))), self.gamma_1))
        return x + self.drop_path(self.scaled(self.mlp(self.norm2(x)), self.gamma_2))


class GlobalBlock(Block):
    """Global block of UniFormer (arXiv:2201.04676, section 3.2)."""

    def __init__(self, ours: Any) -> None:
        super().__init__(ours)
        self.attn = Attention(ours.attn)

    def attend(self, tokens: Tensor) -> tuple[Tensor, Tensor]:
        """Return tokens after attention and feed-forward layers, and the attention weights."""
        update, weights = self.attn(self.norm1(tokens))
        tokens = tokens + self.drop_path(self.scaled(update, self.gamma_1))
        return tokens + self.drop_path(self.scaled(self.mlp(self.norm2(tokens)), self.gamma_2)), weights

    def forward(self, x: Tensor) -> Tensor:
        x = x + self.pos_embed(x)
        tokens, _ = self.attend(x.flatten(2).transpose(1, 2))
        return tokens.transpose(1, 2).reshape(x.shape)


class SplitGlobalBlock(GlobalBlock):
    """Global block that attends over time, then over space."""

    def __init__(self, ours: Any) -> None:
        super().__init__(ours)
        self.t_norm, self.t_attn = plain(ours.t_norm), Attention(ours.t_attn)

    def forward(self, x: Tensor) -> Tensor:
        x = x + self.pos_embed(x)
        B, C, T, H, W = x.shape
        temporal = x.permute(0, 3, 4, 2, 1).reshape(B * H * W, T, C)
        temporal = temporal + self.drop_path(self.t_attn(self.t_norm(temporal))[0])
        spatial = temporal.reshape(B, H * W, T, C).transpose(1, 2).reshape(B * T, H * W, C)
        spatial = self.drop_path(self.attn(self.norm1(spatial))[0])
        tokens = x.flatten(2).transpose(1, 2) + spatial.reshape(B, T * H * W, C)
        tokens = tokens + self.drop_path(self.mlp(self.norm2(tokens)))
        return tokens.transpose(1, 2).reshape(x.shape)


class PruningBlock(GlobalBlock):
    """Global block of UniFormer-light: attention among the best-scored tokens and a token merged from the others."""

    def __init__(self, ours: Any) -> None:
        super().__init__(ours)
        self.keep, self.trade_off = ours.keep, ours.trade_off

    def forward(self, x: Tensor, cls_token: Tensor, scores: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        x = x + self.pos_embed(x)
        tokens = x.flatten(2).transpose(1, 2)
        B, L, C = tokens.shape
        count = int(L * self.keep)
        order = scores.argsort(1, descending=True) if count < L else torch.arange(L, device=x.device).expand(B, L)
        ranked, tokens = scores.gather(1, order), tokens.gather(1, order[:, :, None].expand(-1, -1, C))
        kept, rest = tokens[:, :count], tokens[:, count:]
        joined = [cls_token, kept]
        if count < L:
            shares = ranked[:, count:] / ranked[:, count:].sum(1, keepdim=True)
            joined.append((shares[:, :, None] * rest).sum(1, keepdim=True))
        out, weights = self.attend(torch.cat(joined, 1))
        new = weights[:, :, 0, 1 : count + 1].mean(1)
        new = (1 - self.trade_off) * ranked[:, :count] + self.trade_off * new
        if count < L:
            rest = rest + (out[:, -1:] - joined[-1])
        back = order.argsort(1)
        tokens = torch.cat([out[:, 1 : count + 1], rest], 1).gather(1, back[:, :, None].expand(-1, -1, C))
        scores = torch.cat([new, ranked[:, count:]], 1).gather(1, back)
        return tokens.transpose(1, 2).reshape(x.shape), out[:, :1], scores


class FourStages(nn.Module):
    """UniFormer, and what UniFormer-light shares with it."""

    def __init__(self, ours: Any) -> None:
        super().__init__()
        for stage in range(1, 5):
            embedding = ours.get_submodule(f"patch_embed{stage}")
            kind = Embedding if hasattr(embedding, "norm") else OverlappingEmbedding
            setattr(self, f"patch_embed{stage}", kind(embedding))
            blocks = [self.block(block) for block in ours.get_submodule(f"blocks{stage}")]
            setattr(self, f"blocks{stage}", nn.ModuleList(blocks))
        self.pos_drop, self.head_drop = plain(ours.pos_drop), plain(ours.head_drop)
        self.norm, self.head = plain(ours.norm), plain(ours.head)

    def block(self, ours: Any) -> nn.Module:
        """Return the reference of a block."""
        if hasattr(ours, "conv1"):
            return LocalBlock(ours)
        if hasattr(ours, "keep"):
            return PruningBlock(ours)
        return SplitGlobalBlock(ours) if hasattr(ours, "t_attn") else GlobalBlock(ours)


class UniFormerReference(FourStages):
    """UniFormer (arXiv:2201.04676)."""

    def __init__(self, ours: Any) -> None:
        super().__init__(ours)
        self.aux_head = plain(ours.aux_head)

    def forward(self, video: Tensor) -> Tensor:
        x = video
        for stage in range(1, 5):
            x = self.get_submodule(f"patch_embed{stage}")(x)
            x = self.pos_drop(x) if stage == 1 else x
            for block in self.get_submodule(f"blocks{stage}").children():
                x = block(x)
        features = self.norm(x).flatten(2)
        logits = self.head(self.head_drop(features.mean(-1)))
        if isinstance(self.aux_head, nn.Identity):
            return logits
        return logits + 0.5 * self.aux_head(features.transpose(1, 2)).amax(1)


class LightReference(FourStages):
    """UniFormer-light (arXiv:2201.09450)."""

    def __init__(self, ours: Any) -> None:
        super().__init__(ours)
        self.cls_token, self.cls_upsample = copy.deepcopy(ours.cls_token), plain(ours.cls_upsample)
        self.norm_cls, self.head_cls = plain(ours.norm_cls), plain(ours.head_cls)

    def forward(self, video: Tensor) -> Tensor | tuple[Tensor, Tensor]:
        x = video
        for stage in (1, 2):
            x = self.get_submodule(f"patch_embed{stage}")(x)
            x = self.pos_drop(x) if stage == 1 else x
            for block in self.get_submodule(f"blocks{stage}").children():
                x = block(x)
        cls_token = self.cls_token.expand(len(x), -1, -1)
        scores = x.new_zeros(len(x), 0)
        for stage in (3, 4):
            x, size = self.get_submodule(f"patch_embed{stage}")(x), x.shape[-2:]
            if stage == 3:
                scores = x.new_zeros(len(x), x[0, 0].numel())
            else:
                cls_token = self.cls_upsample(cls_token)
                pooled = nn.functional.avg_pool2d(scores.reshape(len(x), -1, *size), 2).flatten(1)
                scores = pooled * (scores.sum(1, keepdim=True) / pooled.sum(1, keepdim=True))
            for block in self.get_submodule(f"blocks{stage}").children():
                x, cls_token, scores = block(x, cls_token, scores)
        logits = self.head(self.head_drop(self.norm(x).flatten(2).mean(-1)))
        return (logits, self.head_cls(self.norm_cls(cls_token[:, 0]))) if self.training else logits


# Add a row for another network: class -> function that makes its reference with the same parameter names.
REFERENCES: dict[type[nn.Module], Callable[[Any], nn.Module]] = {
    UniFormer: UniFormerReference,
    UniFormerLight: LightReference,
    UniFormerV2: VersionTwoReference,
}


def reference(model: nn.Module) -> nn.Module:
    """Return the reference of a network, with a copy of its weights.

    Raises:
        ValueError: there is no reference for its class.
    """
    if type(model) not in REFERENCES:
        names = [kind.__name__ for kind in REFERENCES]
        raise ValueError(f"there is no reference of {type(model).__name__}: choose one of {names}, or add a row")
    return REFERENCES[type(model)](model).train(model.training)
