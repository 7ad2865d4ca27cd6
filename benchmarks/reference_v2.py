"""Compute UniFormerV2 as its official module does: tokens (L, B*T, C), maps (B, C, T, H, W) around convolutions.

See `reference`: everything is written from the formulas of the paper, and uses no layer of `slowfast.models`.
"""

from __future__ import annotations

import copy
from typing import Any

import torch
from timm.layers import DropPath, QuickGELU
from torch import Tensor, nn


def plain(module: Any) -> Any:
    """Return a copy of layers in which every subclass of a layer of PyTorch is that layer, with contiguous weights."""
    module = copy.deepcopy(module)
    for part in module.modules():
        part.__class__ = next(kind for kind in type(part).__mro__ if kind.__module__.startswith("torch.nn."))
    for parameter in module.parameters():
        parameter.data = parameter.data.contiguous()
    return module


def clip_mlp(ours: Any) -> nn.Sequential:
    """Return feed-forward layers with CLIP's names."""
    layers = plain(ours)
    if not isinstance(layers.gelu, nn.GELU):
        layers.gelu = QuickGELU()
    return layers


class PackedAttention(nn.Module):
    """Multi-head attention of tokens (Q, B, C) over tokens (L, B, C), all of which are projected to keys and values."""

    def __init__(self, ours: Any) -> None:
        super().__init__()
        self.heads, self.out_proj = ours.heads, plain(ours.out_proj)
        self.in_proj_weight, self.in_proj_bias = copy.deepcopy(ours.in_proj_weight), copy.deepcopy(ours.in_proj_bias)

    def forward(self, query: Tensor, tokens: Tensor) -> Tensor:
        B, C = query.shape[1:]
        parts = zip((query, tokens, tokens), self.in_proj_weight.chunk(3), self.in_proj_bias.chunk(3), strict=True)
        q, k, v = (
            nn.functional.linear(x, weight, bias).reshape(-1, B * self.heads, C // self.heads).transpose(0, 1)
            for x, weight, bias in parts
        )
        weights = ((q * (C // self.heads) ** -0.5) @ k.transpose(1, 2)).softmax(-1)
        return self.out_proj((weights @ v).transpose(0, 1).reshape(-1, B, C))


class ImageBlock(nn.Module):
    """Block of an image ViT with local temporal aggregation (arXiv:2211.09552, section 3.3)."""

    def __init__(self, ours: Any) -> None:
        super().__init__()
        self.lmhra = [name for name in ("lmhra1", "lmhra2") if hasattr(ours, name)]
        for name in self.lmhra:
            setattr(self, name, plain(ours.get_submodule(name)))
        self.attn, self.ln_1, self.ln_2 = PackedAttention(ours.attn), plain(ours.ln_1), plain(ours.ln_2)
        self.mlp, self.drop_path = clip_mlp(ours.mlp), DropPath(ours.drop_path.rate)
        self.ls_1, self.ls_2 = copy.deepcopy(ours.ls_1), copy.deepcopy(ours.ls_2)

    def aggregate(self, x: Tensor, layer: Any, T: int, size: tuple[int, int]) -> Tensor:
        """Return tokens (1 + H*W, B*T, C) after local aggregation of the patch tokens."""
        C = x.shape[2]
        video = x[1:].reshape(*size, -1, T, C).permute(2, 4, 3, 0, 1).contiguous()
        video = video + self.drop_path(layer.pos_embed(video))
        return torch.cat([x[:1], video.permute(3, 4, 0, 2, 1).reshape(-1, *x.shape[1:])])

    def drop(self, branch: Tensor, gamma: Tensor | None, T: int) -> Tensor:
        """Return a residual branch (1 + H*W, B*T, C) with layer scale and stochastic depth of whole videos."""
        branch = branch if gamma is None else gamma * branch
        videos = branch.reshape(len(branch), -1, T, branch.shape[2]).transpose(0, 1)
        return self.drop_path(videos).transpose(0, 1).reshape(branch.shape)

    def forward(self, x: Tensor, T: int, size: tuple[int, int]) -> Tensor:
        if self.lmhra:
            x = self.aggregate(x, self.get_submodule("lmhra1"), T, size)
        y = self.ln_1(x)
        x = x + self.drop(self.attn(y, y), self.ls_1, T)
        if len(self.lmhra) > 1:
            x = self.aggregate(x, self.get_submodule("lmhra2"), T, size)
        return x + self.drop(self.mlp(self.ln_2(x)), self.ls_2, T)


class QueryBlock(nn.Module):
    """Attention of one query token over all tokens of a video (arXiv:2211.09552, section 3.3)."""

    def __init__(self, ours: Any) -> None:
        super().__init__()
        self.attn, self.mlp = PackedAttention(ours.attn), clip_mlp(ours.mlp)
        self.ln_1, self.ln_2, self.ln_3 = plain(ours.ln_1), plain(ours.ln_2), plain(ours.ln_3)
        self.drop_path = DropPath(ours.drop_path.rate)

    def drop(self, branch: Tensor) -> Tensor:
        return self.drop_path(branch.transpose(0, 1)).transpose(0, 1)

    def forward(self, query: Tensor, tokens: Tensor) -> Tensor:
        query = query + self.drop(self.attn(self.ln_1(query), self.ln_3(tokens)))
        return query + self.drop(self.mlp(self.ln_2(query)))


class VideoTransformer(nn.Module):
    """The blocks of UniFormerV2: (1 + H*W, B*T, C) -> features (B, C)."""

    def __init__(self, ours: Any) -> None:
        super().__init__()
        self.temporal_cls_token, self.balance = copy.deepcopy(ours.temporal_cls_token), copy.deepcopy(ours.balance)
        self.return_list, self.dpe, self.proj = ours.return_list, plain(ours.dpe), plain(ours.proj)
        self.resblocks = nn.ModuleList(ImageBlock(block) for block in ours.resblocks)
        self.dec = nn.ModuleList(QueryBlock(block) for block in ours.dec)

    def forward(self, x: Tensor, T: int, size: tuple[int, int]) -> Tensor:
        L, _, C = x.shape
        query = self.temporal_cls_token.repeat(1, x.shape[1] // T, 1)
        for i, block in enumerate(self.resblocks):
            x = block(x, T, size)
            if i in self.return_list:
                j = self.return_list.index(i)
                video = x[1:].reshape(*size, -1, T, C).permute(2, 4, 3, 0, 1).contiguous()
                patches = (video + self.dpe[j](video)).permute(3, 4, 2, 0, 1).reshape(L - 1, T, -1, C)
                cls_tokens = x[:1].reshape(1, -1, T, C).transpose(1, 2)
                query = self.dec[j](query, torch.cat([cls_tokens, patches]).flatten(0, 1))
        features = query[0]
        if self.balance is not None:
            weight = self.balance.sigmoid()
            features = (1 - weight) * features + weight * x[0].reshape(-1, T, C).mean(1)
        return features


class VisionTransformer(nn.Module):
    """The embeddings of the image ViT in front of its blocks."""

    def __init__(self, ours: Any) -> None:
        super().__init__()
        self.class_embedding = copy.deepcopy(ours.class_embedding)
        self.positional_embedding = copy.deepcopy(ours.positional_embedding)
        self.conv1, self.ln_pre = plain(ours.conv1), plain(ours.ln_pre)
        self.transformer = VideoTransformer(ours.transformer)

    def forward(self, video: Tensor) -> Tensor:
        x = self.conv1(video)
        B, C, T, H, W = x.shape
        position, side = self.positional_embedding, int((self.positional_embedding.shape[0] - 1) ** 0.5)
        if (side, side) != (H, W):
            grid = position[1:].reshape(1, side, side, C).permute(0, 3, 1, 2)
            grid = nn.functional.interpolate(grid, size=(H, W), mode="bicubic", antialias=True)
            position = torch.cat([position[:1], grid.flatten(2)[0].T])
        x = x.permute(0, 2, 3, 4, 1).reshape(B * T, H * W, C)
        x = torch.cat([self.class_embedding.expand(B * T, 1, C), x], 1)
        return self.transformer(self.ln_pre(x + position).permute(1, 0, 2), T, (H, W))


class VersionTwoReference(nn.Module):
    """UniFormerV2 (arXiv:2211.09552)."""

    def __init__(self, ours: Any) -> None:
        super().__init__()
        self.backbone = VisionTransformer(ours.backbone)

    def forward(self, video: Tensor) -> Tensor:
        return self.backbone.transformer.proj(self.backbone(video))
