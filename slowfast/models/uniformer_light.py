"""Define UniFormer-light, a small UniFormer with attention among selected tokens only (arXiv:2201.09450).

Stages 3 and 4 have a class token, whose attention to a position is the score of that position. A block computes
attention only among the tokens with the best scores and one token merged from all others (Evo-ViT, arXiv:2108.01390).
Parameter names are those of the released weights.
"""

from __future__ import annotations

import contextlib
import math
from collections.abc import Mapping, Sequence
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from slowfast.models.depthwise import add_depthwise
from slowfast.models.layers import (
    BATCH_NORM,
    Attention,
    add_feed_forward,
    classifier,
    scaled,
    single_input,
    to_grid,
    to_tokens,
)
from slowfast.models.linear import channels_last
from slowfast.models.uniformer import AttentionBlock, BlockOptions, FourStages, LocalBlock, init_linear, per_stage


class ScoringAttention(Attention):
    """Self-attention that also returns the attention of the class token, the first one, to every other token."""

    def forward(self, x: Tensor) -> tuple[Tensor, Tensor]:
        """Return tokens of the shape of `x`, (B, 1 + L, C), and the mean attention over heads (B, L)."""
        q, k, v = self.project(x)
        # Scores rank tokens, so autocast must not round them. The meta device has no autocast.
        autocast = not x.is_meta and torch.is_autocast_enabled(x.device.type)
        dtype = torch.promote_types(q.dtype, torch.float32) if autocast else q.dtype
        with torch.autocast(x.device.type, enabled=False) if autocast else contextlib.nullcontext():
            similarity = self.scale * (q[:, :, :1].to(dtype) @ k.to(dtype).transpose(2, 3))
            scores = similarity.softmax(3)[:, :, 0, 1:].mean(1)
        return self.attend(q, k, v), scores


def share_of(length: Any, share: float) -> Any:
    """Return int(length * share); a symbolic length (export) or a tensor (trace) keeps its type."""
    if torch.is_tensor(length):
        return (length.double() * share).long()
    return torch.sym_int(length * share)


def shrunk(scores: Tensor, size: Sequence[int]) -> Tensor:
    """Pool scores of maps of `size` (H, W) to a quarter of the positions; keep their sum."""
    pooled = F.avg_pool2d(scores.unflatten(1, (-1, *size)), 2).flatten(1)
    return pooled * (scores.sum(1, keepdim=True) / pooled.sum(1, keepdim=True))


class PruningBlock(AttentionBlock):
    """Dynamic position embedding, then global MHRA and feed-forward of the class token and the best-scored tokens.

    The other tokens are replaced by one token, their mean weighted by the scores; its update is added to all of them.

    Args:
        options: see `BlockOptions`.
        keep: share of the tokens that are not merged; 1 is all.
        trade_off: weight of the new scores in the running average of scores.
    """

    attention_kind = ScoringAttention

    def __init__(self, options: BlockOptions, keep: float, trade_off: float) -> None:
        super().__init__(options)
        self.keep, self.trade_off = keep, trade_off

    def attend(self, tokens: Tensor) -> tuple[Tensor, Tensor]:
        """Return tokens (B, 1 + L, C) after attention and feed-forward layers, and scores (B, L)."""
        update, scores = self.attn(self.norm1(tokens))
        tokens = tokens + self.drop_path(scaled(update, self.gamma_1))
        return add_feed_forward(self, tokens), scores

    def forward(self, x: Tensor, cls_token: Tensor, scores: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        """Update the feature map, the class token and the scores.

        Args:
            x: feature map (B, C, T, H, W).
            cls_token: the class token (B, 1, C).
            scores: running average of the scores of the L = T*H*W positions (B, L).

        Returns:
            The three inputs, updated; positions of merged tokens keep their scores.
        """
        x = add_depthwise(self.pos_embed, x)
        grid = x.shape[2:]
        tokens = to_tokens(x)
        if self.keep == 1:
            out, new = self.attend(torch.cat([cls_token, tokens], 1))
            return to_grid(out[:, 1:], grid), out[:, :1], torch.lerp(scores, new, self.trade_off)

        count = share_of(tokens.shape[1], self.keep)
        kept = scores.topk(count, 1, sorted=False).indices
        index = kept.unsqueeze(2).expand(-1, -1, tokens.shape[2])
        weight = scores.scatter(1, kept, 0.0)  # scores of the tokens to merge
        merged = (weight / weight.sum(1, keepdim=True)).unsqueeze(1) @ tokens
        out, new = self.attend(torch.cat([cls_token, tokens.gather(1, index), merged], 1))
        tokens = (tokens + (out[:, -1:] - merged)).scatter_(1, index, out[:, 1:-1])
        new = torch.lerp(scores.gather(1, kept), new[:, :-1], self.trade_off)
        return to_grid(tokens, grid), out[:, :1], scores.scatter(1, kept, new)


class UniFormerLight(FourStages):
    """UniFormer-light: (B, C, T, H, W) -> logits (B, K), or with ndim=2 (B, C, H, W) -> logits (B, K).

    In training it returns two logits, of the mean over positions and of the class token. The loss is the mean of both
    losses, so that the scores of the class token are trained; a test uses the first logits only.

    The arguments that are not listed here are those of `UniFormer`.

    Args:
        prune_ratio: share of the tokens that each block does not merge, a list per stage. Only the lists of stages 3
            and 4 are used. Extra entries are ignored, because released configurations have some.
        trade_off: weight of the block's own scores in the running average; a list per stage, as `prune_ratio`.
        init_value: initial value of learned factors of the residual branches (layer scale); 0 and None mean no factor.

    Raises:
        ValueError: `head_dim` does not divide the width of stage 3 or 4, or the pruning does not fit the depth.
    """

    head_names = ("head", "head_cls")
    # image weights have no layer scale, and video networks with layer scale start from them
    identity_at_start = (".gamma_1", ".gamma_2")

    def __init__(
        self,
        num_classes: int = 400,
        depth: Sequence[int] = (2, 5, 8, 2),
        embed_dim: Sequence[int] = (56, 112, 224, 448),
        head_dim: int = 28,
        mlp_ratio: float | Sequence[float] = 3.0,
        qkv_bias: bool = True,
        qkv_scale: float | None = None,
        dropout_rate: float = 0.0,
        attention_dropout_rate: float = 0.0,
        drop_depth_rate: float = 0.0,
        head_dropout_rate: float = 0.0,
        prune_ratio: Sequence[Sequence[float]] = ((), (), (1.0,) + (0.5,) * 7, (0.5, 0.5)),
        trade_off: Sequence[Sequence[float]] = ((), (), (1.0,) + (0.5,) * 7, (0.5, 0.5)),
        init_value: float | None = None,
        in_channels: int = 3,
        ndim: int = 3,
    ) -> None:
        super().__init__(num_classes, depth, embed_dim, head_dim, ndim)
        for name, shares in (("prune_ratio", prune_ratio), ("trade_off", trade_off)):
            for blocks, given in zip(self.depth[2:], per_stage(name, shares)[2:], strict=True):
                if len(given) < blocks or not all(0 <= share <= 1 for share in given):
                    raise ValueError(f"{name} {list(given)} is for {blocks} blocks: give each a number from 0 to 1")
        if prune_ratio[2][0] != 1 or not trade_off[2][0]:
            raise ValueError(
                f"prune_ratio of stage 3 starts with {prune_ratio[2][0]} and trade_off with {trade_off[2][0]}, but its "
                "first block has no scores to choose by: let both start with 1"
            )
        ratios = per_stage("mlp_ratio", mlp_ratio)

        def block(stage: int, index: int, rate: float) -> nn.Module:
            attention = (head_dim, qkv_bias, qkv_scale, attention_dropout_rate)
            options = BlockOptions(
                self.widths[stage], ratios[stage], dropout_rate, rate, ndim, init_value or None, *attention
            )
            if stage < 2:
                return LocalBlock(options)
            return PruningBlock(options, keep=prune_ratio[stage][index], trade_off=trade_off[stage][index])

        self.options = {"depth": self.depth, "head_dim": head_dim, "qkv_scale": qkv_scale}
        self.options |= {"prune_ratio": prune_ratio, "trade_off": trade_off}
        self.cls_token = nn.Parameter(torch.zeros(1, 1, self.widths[2]))
        self.add_embeddings(in_channels, dropout_rate, overlapped=1)
        self.cls_upsample = nn.Linear(self.widths[2], self.widths[3])
        self.add_blocks(drop_depth_rate, block)
        self.norm = BATCH_NORM[ndim](self.widths[3])
        self.norm_cls = nn.LayerNorm(self.widths[3])
        self.head_drop = nn.Dropout(head_dropout_rate)
        self.head = classifier(self.widths[3], num_classes)
        self.head_cls = classifier(self.widths[3], num_classes)
        self.apply(init_linear)

    @staticmethod
    def unseen_options(options: Mapping[str, Any]) -> dict[str, Any]:
        shares = {
            name: [list(given[:blocks]) for blocks, given in zip(options["depth"][2:], options[name][2:], strict=False)]
            for name in ("prune_ratio", "trade_off")
        }
        return {**FourStages.unseen_options(options), **shares}

    def forward_tokens(
        self, video: Tensor, taps: dict[int, Any], stop: int | None = None
    ) -> tuple[Tensor, Tensor | None]:
        """Return the normalized feature map (B, C', T/2, H/32, W/32) and class token (B, 1, C') of (B, C, T, H, W)."""
        x = channels_last(video)
        cls_token: Any = None
        scores: Any = None
        for stage in self.stages(stop):
            if stage == 4:
                cls_token, scores = self.cls_upsample(cls_token), shrunk(scores, x.shape[-2:])
            x = self.get_submodule(f"patch_embed{stage}")(x)
            if stage == 1:
                x = self.pos_drop(x)
            if stage == 3:
                cls_token = self.cls_token.expand(x.shape[0], -1, -1)
                scores = cls_token.new_zeros(x.shape[0], math.prod(x.shape[2:]))
            for block in self.blocks(stage):
                if stage <= 2:
                    x = block(x)
                else:
                    x, cls_token, scores = block(x, cls_token, scores)
            if stage - 1 in taps:
                taps[stage - 1] = x
        return self.norm(x) if stop in (None, 4) else x, cls_token

    def forward_stages(self, video: Tensor, taps: dict[int, Any], stop: int | None = None) -> Tensor:
        return self.forward_tokens(video, taps, stop)[0]

    def prune_intermediate_layers(
        self, indices: int | Sequence[int] = 1, prune_norm: bool = False, prune_head: bool = True
    ) -> list[int]:
        wanted = super().prune_intermediate_layers(indices, prune_norm, prune_head)
        if prune_head:
            self.norm_cls = nn.Identity()
        if len(self.feature_info) < 4:
            self.cls_upsample = nn.Identity()
        self.cls_token.requires_grad_(len(self.feature_info) > 2)  # it is added at stage 3
        return wanted

    def forward(self, video: Tensor | Sequence[Tensor]) -> Tensor | tuple[Tensor, ...]:
        """Return logits (B, K); in training, two logits, of the mean over positions and of the class token."""
        features, cls_token = self.forward_tokens(single_input(video), {})
        logits = self.forward_head(features)
        if not self.training or cls_token is None or not self.global_pool:
            return logits
        return logits, self.head_cls(self.norm_cls(cls_token[:, 0]))
