"""Define UniFormer: Unified Transformer for Efficient Spatiotemporal Representation Learning (arXiv:2201.04676).

There are four stages. The first two aggregate locally with depthwise convolutions, the last two globally with attention
over all space-time tokens (section 3.2). Parameter names are those of the released weights.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from typing import Any

import torch
from torch import Tensor, nn

from slowfast.models.backbone import TimmBackbone
from slowfast.models.depthwise import add_depthwise, depthwise_conv
from slowfast.models.layers import (
    BATCH_NORM,
    Attention,
    DropPath,
    Mlp,
    OverlapPatchEmbed,
    PatchEmbed,
    add_feed_forward,
    classifier,
    layer_scales,
    recompute,
    recomputed_blocks,
    scaled,
    to_grid,
    to_tokens,
)
from slowfast.models.linear import apply_linear, channels_last, pointwise_conv


@dataclass(frozen=True)
class BlockOptions:
    """Arguments of a block: those of its network, see `UniFormer`, for one block."""

    dim: int  # channels C
    mlp_ratio: float = 4.0
    dropout: float = 0.0
    drop_path: float = 0.0  # rate of stochastic depth
    ndim: int = 3
    layer_scale: float | None = None
    head_dim: int = 64
    qkv_bias: bool = True
    qkv_scale: float | None = None
    attention_dropout: float = 0.0

    def mlp(self, conv_ndim: int | None = None) -> Mlp:
        """Return the feed-forward layers; with `conv_ndim`, they are convolutions of size 1 in so many dimensions."""
        return Mlp(self.dim, int(self.dim * self.mlp_ratio), self.dropout, conv_ndim)

    def attention(self, kind: type[Attention] = Attention) -> Attention:
        """Return an attention layer."""
        heads = self.dim // self.head_dim
        return kind(self.dim, heads, self.qkv_bias, self.qkv_scale, self.attention_dropout, self.dropout)


class LocalBlock(nn.Module):
    """Dynamic position embedding, local MHRA and feed-forward layers, all convolutional (sections 3.1 to 3.3)."""

    def __init__(self, options: BlockOptions) -> None:
        super().__init__()
        dim, ndim = options.dim, options.ndim
        self.gamma_1, self.gamma_2 = layer_scales(options.layer_scale, 1, dim, *[1] * ndim)
        self.pos_embed = depthwise_conv(dim, 3, ndim)
        self.norm1 = BATCH_NORM[ndim](dim)
        self.conv1 = pointwise_conv(dim, dim, ndim)
        self.conv2 = pointwise_conv(dim, dim, ndim)
        self.attn = depthwise_conv(dim, 5, ndim)
        self.norm2 = BATCH_NORM[ndim](dim)
        self.mlp = options.mlp(conv_ndim=ndim)
        self.drop_path = DropPath(options.drop_path)

    def forward(self, x: Tensor) -> Tensor:
        x = add_depthwise(self.pos_embed, x)
        x = x + self.drop_path(scaled(self.conv2(self.attn(apply_linear(self.conv1, x, self.norm1))), self.gamma_1))
        return add_feed_forward(self, x)


class AttentionBlock(nn.Module):
    """Base class of the blocks with attention over tokens."""

    attention_kind = Attention
    divided = False  # whether attention over time comes before attention over space

    def __init__(self, options: BlockOptions) -> None:
        super().__init__()
        self.gamma_1, self.gamma_2 = layer_scales(options.layer_scale, options.dim)
        self.pos_embed = depthwise_conv(options.dim, 3, options.ndim)
        if self.divided:
            self.t_norm = nn.LayerNorm(options.dim, eps=1e-6)
            self.t_attn = options.attention()
        self.norm1 = nn.LayerNorm(options.dim, eps=1e-6)
        self.attn = options.attention(self.attention_kind)
        self.norm2 = nn.LayerNorm(options.dim, eps=1e-6)
        self.mlp = options.mlp()
        self.drop_path = DropPath(options.drop_path)


class GlobalBlock(AttentionBlock):
    """Dynamic position embedding, global MHRA over L = T*H*W tokens and feed-forward layers (sections 3.1 to 3.3)."""

    def forward(self, x: Tensor) -> Tensor:
        x = add_depthwise(self.pos_embed, x)
        tokens = to_tokens(x)
        tokens = tokens + self.drop_path(scaled(self.attn(self.norm1(tokens)), self.gamma_1))
        return to_grid(add_feed_forward(self, tokens), x.shape[2:])


class SplitGlobalBlock(AttentionBlock):
    """Global block that attends over time, then over space (divided attention).

    The residual that is added after the spatial attention is the input of the block, not the result of the temporal
    attention, because the released weights were trained in this way.
    """

    divided = True

    def forward(self, x: Tensor) -> Tensor:
        x = add_depthwise(self.pos_embed, x)
        B, C, T, H, W = x.shape
        temporal = x.permute(0, 3, 4, 2, 1).reshape(B * H * W, T, C)
        temporal = temporal + self.drop_path(self.t_attn(self.t_norm(temporal)))
        spatial = temporal.view(B, H * W, T, C).transpose(1, 2).reshape(B * T, H * W, C)
        spatial = self.drop_path(self.attn(self.norm1(spatial)))
        tokens = to_tokens(x) + spatial.reshape(B, T * H * W, C)
        return to_grid(add_feed_forward(self, tokens), (T, H, W))


def init_linear(module: nn.Module) -> None:
    """Initialize linear layers with a truncated normal, as the official code; other layers keep PyTorch's defaults."""
    if isinstance(module, nn.Linear):
        nn.init.trunc_normal_(module.weight, std=0.02)
        if "bias" in dict(module.named_parameters()):
            nn.init.zeros_(module.bias)


def per_stage(name: str, value: Any) -> list[Any]:
    """Return one value per stage, given one value for all or a sequence of four; raise ValueError for other lengths."""
    values = list(value) if isinstance(value, Sequence) else [value] * 4
    if len(values) != 4:
        raise ValueError(f"{name} {values} has {len(values)} entries: give one for each of the four stages")
    return values


class FourStages(TimmBackbone):
    """Base class of UniFormer and UniFormer-light: four stages with activation checkpointing, mean over positions.

    A subclass calls `add_embeddings` and `add_blocks`, and sets `norm`, `head_drop` and its classifiers.
    """

    section = "UNIFORMER"  # section of the configuration
    kinetics_orders = {400: "k400", 600: "k600_uniformer"}  # noqa: RUF012
    head: nn.Module
    head_drop: nn.Module

    def __init__(
        self, num_classes: int, depth: Sequence[int], embed_dim: Sequence[int], head_dim: int, ndim: int
    ) -> None:
        super().__init__(num_classes)
        self.depth, self.widths, self.ndim = per_stage("depth", depth), per_stage("embed_dim", embed_dim), ndim
        for dim in self.widths[2:]:
            if dim % head_dim:
                raise ValueError(f"head_dim {head_dim} does not divide the stage width {dim}: change one of them")
        self.num_features = self.widths[3]
        time = {"temporal_reduction": 2} if ndim == 3 else {}
        self.feature_info = [
            {"num_chs": dim, "reduction": 4 * 2**i, **time, "module": f"blocks{i + 1}"}
            for i, dim in enumerate(self.widths)
        ]
        self.checkpointed = (0, 0, 0, 0)
        self.kept = "nothing"  # of a checkpointed block, see `recompute`

    def add_embeddings(self, in_channels: int, dropout: float, overlapped: int = 0, std: bool = False) -> None:
        """Add patch embeddings: the first halves time and quarters space, the others halve space (section 3.4).

        Args:
            in_channels: number of channels of the input.
            dropout: dropout rate after the first patch embedding.
            overlapped: number of the first patch embeddings that are overlapping convolutions with BatchNorm.
            std: use kernels over three frames in the last three patch embeddings.
        """
        axes = slice(-self.ndim, None)
        halve, quarter = (1, 2, 2)[axes], (2, 4, 4)[axes]
        kernel, padding = ((3, 2, 2)[axes], (1, 0, 0)[axes]) if std else (halve, (0, 0, 0)[axes])
        dim = self.widths[0]
        if overlapped:
            self.patch_embed1 = OverlapPatchEmbed((in_channels, dim // 2, dim), (halve, (2, 2, 2)[axes]))
        else:
            self.patch_embed1 = PatchEmbed(in_channels, dim, (3, 4, 4)[axes], quarter, (1, 0, 0)[axes])
        for stage in (2, 3, 4):
            before, dim = self.widths[stage - 2 : stage]
            if stage <= overlapped:
                embed = OverlapPatchEmbed((before, dim), (halve,))
            else:
                embed = PatchEmbed(before, dim, kernel, halve, padding)
            setattr(self, f"patch_embed{stage}", embed)
        self.pos_drop = nn.Dropout(dropout)

    def add_blocks(self, drop_depth_rate: float, block: Callable[[int, int, float], nn.Module]) -> None:
        """Add the blocks of all stages.

        Args:
            drop_depth_rate: stochastic depth of the last block; rates rise linearly from 0 over all blocks.
            block: function (stage from 0, number in the stage, rate) -> block.
        """
        rates = torch.linspace(0, drop_depth_rate, sum(self.depth), device="cpu").split(self.depth)
        for stage in range(4):
            blocks = nn.ModuleList(block(stage, i, rate) for i, rate in enumerate(rates[stage].tolist()))
            setattr(self, f"blocks{stage + 1}", blocks)

    @staticmethod
    def unseen_options(options: Mapping[str, Any]) -> dict[str, Any]:
        width = options["head_dim"]
        return {"head_dim": width, "qkv_scale": options["qkv_scale"] or width**-0.5}

    def blocks(self, stage: int) -> Iterator[Callable[..., Any]]:
        """Yield the blocks of a stage (1 to 4) as functions, with recomputation as set by `set_grad_checkpointing`."""
        for i, block in enumerate(self.get_submodule(f"blocks{stage}").children()):
            recomputed = self.training and i < self.checkpointed[stage - 1]
            yield partial(recompute, block, keep=self.kept) if recomputed else block

    def stages(self, stop: int | None) -> range:
        """Return the numbers, from 1, of the stages to run."""
        return range(1, 1 + (stop or len(self.feature_info)))

    def set_grad_checkpointing(self, enable: bool | Sequence[int] = True, keep: str = "nothing") -> None:
        """Recompute activations in the backward pass of all blocks, of none, or of the first n of each stage.

        Args:
            enable: the blocks.
            keep: "nothing", or "products" to keep the results of matrix products and attention.
        """
        depth = [len(self.get_submodule(f"blocks{stage}")) for stage in self.stages(None)]  # pyright: ignore
        self.checkpointed, self.kept = recomputed_blocks(enable, depth), keep

    def forward_head(self, features: Tensor, pre_logits: bool = False) -> Tensor:
        """Return logits (B, K) of a feature map (B, C', ...), or the input of the classifier (B, C')."""
        if not self.global_pool:
            return features
        pooled = self.head_drop(features.flatten(2).mean(2))
        return pooled if pre_logits else self.head(pooled)

    def new_classifier(self, num_classes: int) -> nn.Module:
        return super().new_classifier(num_classes).apply(init_linear)

    def group_matcher(self, coarse: bool = False) -> dict[str, Any]:
        """Return patterns of parameter names for `timm.models.group_parameters`, from input to output.

        Args:
            coarse: one group per stage instead of one per block.
        """
        first = () if coarse else (0,)  # layers before the blocks of a stage are in the group of its first block
        blocks = r"^(?:blocks|patch_embed)(\d)" if coarse else r"^blocks(\d)\.(\d+)"
        entries = [(blocks, None), (r"^patch_embed(\d)", first), (r"^cls_token", (3, *first))]
        return {"stem": r"^patch_embed1", "blocks": [*entries, (r"^cls_upsample", (4, *first)), (r"^norm", (99999,))]}

    def prune_intermediate_layers(
        self, indices: int | Sequence[int] = 1, prune_norm: bool = False, prune_head: bool = True
    ) -> list[int]:
        """Remove the layers that the feature maps of the stages `indices` do not need; return the stages from 0."""
        wanted, last = self.take_indices(indices)
        for stage in range(last + 2, len(self.feature_info) + 1):
            delattr(self, f"patch_embed{stage}")
            delattr(self, f"blocks{stage}")
        if prune_norm or last + 1 < len(self.feature_info):
            self.norm = nn.Identity()
        self.feature_info = self.feature_info[: last + 1]
        if prune_head:
            self.reset_classifier(0, "")
        return wanted


class UniFormer(FourStages):
    """UniFormer: (B, C, T, H, W) -> logits (B, K), or with ndim=2 (B, C, H, W) -> logits (B, K).

    Args:
        num_classes: K; 0 returns features, without a classifier.
        depth: number of blocks of each of the four stages.
        embed_dim: number of channels of each stage.
        head_dim: number of channels of an attention head in stages 3 and 4.
        mlp_ratio: ratio of hidden to input width of the feed-forward layers; one number, or one per stage.
        qkv_bias: whether the query, key and value projections have a bias.
        qkv_scale: factor of the attention logits; None means head_dim ** -0.5.
        dropout_rate: dropout rate after projections and feed-forward layers.
        attention_dropout_rate: dropout rate of attention weights.
        drop_depth_rate: rate of stochastic depth of the last block; rates rise linearly from 0 over all blocks.
        head_dropout_rate: dropout rate before the classifier.
        split: attend over time, then space, in stages 3 and 4.
        std: use 3x2x2 instead of 1x2x2 kernels in the patch embeddings 2 to 4.
        overlapped_stem: patch embeddings of overlapping 3x3 (x3) convolutions and BatchNorm instead of disjoint patches
            and LayerNorm (the image models "plus").
        layer_scale: initial value of learned factors of the residual branches, one number, or one per stage; 0 and None
            mean no factor.
        aux_head: add a second classifier of every position; half of its maximum over positions is added to the logits
            (token labelling, arXiv:2104.10858). The dense labels of its training are not implemented.
        in_channels: number of channels of the input.
        ndim: 3 for video, 2 for images.

    Raises:
        ValueError: `head_dim` does not divide the width of stage 3 or 4, or options exclude each other.
    """

    # the temporal half of divided attention starts as the identity, so weights without it are complete
    identity_at_start = ("t_attn.", "t_norm.")
    # a subclass may mix tokens in another way
    local_block: Callable[[BlockOptions], nn.Module] = LocalBlock
    global_block: Callable[[BlockOptions], nn.Module] = GlobalBlock

    def __init__(
        self,
        num_classes: int = 400,
        depth: Sequence[int] = (3, 4, 8, 3),
        embed_dim: Sequence[int] = (64, 128, 320, 512),
        head_dim: int = 64,
        mlp_ratio: float | Sequence[float] = 4.0,
        qkv_bias: bool = True,
        qkv_scale: float | None = None,
        dropout_rate: float = 0.0,
        attention_dropout_rate: float = 0.0,
        drop_depth_rate: float = 0.0,
        head_dropout_rate: float = 0.0,
        split: bool = False,
        std: bool = False,
        overlapped_stem: bool = False,
        layer_scale: float | Sequence[float | None] | None = None,
        aux_head: bool = False,
        in_channels: int = 3,
        ndim: int = 3,
    ) -> None:
        super().__init__(num_classes, depth, embed_dim, head_dim, ndim)
        ratios = per_stage("mlp_ratio", mlp_ratio)
        scales = [scale or None for scale in per_stage("layer_scale", layer_scale or None)]
        if std and overlapped_stem:
            raise ValueError("std and overlapped_stem are two kinds of patch embedding: set one of them to False")
        if ndim == 2 and (split or std):
            raise ValueError("split and std are about time, which images do not have: set both to False")
        if split and any(scales[2:]):
            raise ValueError("divided attention has no layer scale: set split to False or layer_scale to None")

        def block(stage: int, index: int, rate: float) -> nn.Module:
            attention = (head_dim, qkv_bias, qkv_scale, attention_dropout_rate)
            options = BlockOptions(
                self.widths[stage], ratios[stage], dropout_rate, rate, ndim, scales[stage], *attention
            )
            return (self.local_block if stage < 2 else SplitGlobalBlock if split else self.global_block)(options)

        self.options = {"head_dim": head_dim, "qkv_scale": qkv_scale}
        self.add_embeddings(in_channels, dropout_rate, overlapped=4 * overlapped_stem, std=std)
        self.add_blocks(drop_depth_rate, block)
        self.norm = BATCH_NORM[ndim](self.num_features)
        self.head_drop = nn.Dropout(head_dropout_rate)
        self.head = classifier(self.num_features, num_classes)
        self.aux_head = classifier(self.num_features, num_classes if aux_head else 0)
        if aux_head:
            self.head_names = ("head", "aux_head")

        self.apply(init_linear)
        for module in self.modules():
            if isinstance(module, SplitGlobalBlock):  # the temporal attention starts as the identity
                nn.init.zeros_(module.t_attn.qkv.weight)
                nn.init.ones_(module.t_attn.proj.weight)

    def forward_stages(self, video: Tensor, taps: dict[int, Any], stop: int | None = None) -> Tensor:
        """Return the normalized feature map (B, C', T/2, H/32, W/32) of (B, C, T, H, W); images have no time axis."""
        x = channels_last(video)
        for stage in self.stages(stop):
            x = self.get_submodule(f"patch_embed{stage}")(x)
            if stage == 1:
                x = self.pos_drop(x)
            for block in self.blocks(stage):
                x = block(x)
            if stage - 1 in taps:
                taps[stage - 1] = x
        return self.norm(x) if stop in (None, 4) else x

    def forward_head(self, features: Tensor, pre_logits: bool = False) -> Tensor:
        output = super().forward_head(features, pre_logits)
        # a wrapped or quantized layer is not an nn.Linear
        if pre_logits or not self.global_pool or isinstance(self.aux_head, nn.Identity):
            return output
        return output + 0.5 * self.aux_head(features.flatten(2).transpose(1, 2)).amax(1)
