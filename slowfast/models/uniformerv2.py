"""Define UniFormerV2: Spatiotemporal Learning by Arming Image ViTs with Video UniFormer (arXiv:2211.09552).

A pre-trained image ViT processes every frame. Local blocks add short-range temporal convolutions to it. In global
blocks, one query token attends over all tokens of all frames. The result is fused with the class tokens of the frames
(section 3). Tokens have the shape (B, T, 1 + H*W, C), class token first, in all blocks. Names and shapes of parameters
are those of the released weights.
"""

from __future__ import annotations

import math
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import replace
from typing import Any

import torch
from torch import Tensor, nn

from slowfast.models.backbone import TimmBackbone
from slowfast.models.depthwise import depthwise_conv
from slowfast.models.image_vit import (
    TOWERS,
    PatchConv,
    PointwiseConv,
    QueryAttention,
    SelfAttention,
    TemporalConv,
    feed_forward,
    resize_position_embedding,
    vision_tower,
)
from slowfast.models.layers import DropPath, layer_scales, recompute, recomputed_blocks, scaled, to_tokens
from slowfast.models.timm_tower import VisionTower


def to_video(tokens: Tensor, size: Sequence[int]) -> Tensor:
    """Return the patch tokens of tokens (B, T, 1 + H*W, C) as (B, C, T, H, W); `size` is (H, W)."""
    return tokens[:, :, 1:].unflatten(2, tuple(size)).permute(0, 4, 1, 2, 3)


# ---- blocks ---------------------------------------------------------------------------------------------------------


def zero_(layer: nn.Module) -> None:
    """Set all parameters of a layer to zero, so that a residual branch that ends in it is initially zero."""
    for parameter in layer.parameters():
        nn.init.zeros_(parameter)


class LocalMHRA(nn.Module):
    """Local temporal MHRA on patch tokens (B, T, H*W, C); the last layer is initially zero."""

    def __init__(self, dim: int, reduction: float) -> None:
        super().__init__()
        inner = int(dim // reduction)
        self.pos_embed = nn.Sequential(
            nn.BatchNorm3d(dim),
            PointwiseConv(dim, inner, 1),
            TemporalConv(inner, inner, (3, 1, 1), padding=(1, 0, 0), groups=inner),
            PointwiseConv(inner, dim, 1),
        )
        zero_(self.pos_embed[3])

    def forward(self, patches: Tensor) -> Tensor:
        """Return the residual branch, of the shape of the input."""
        norm, *convolutions = self.pos_embed
        x = norm(patches.unsqueeze(3).permute(0, 4, 1, 2, 3)).permute(0, 2, 3, 4, 1).squeeze(3)
        for convolution in convolutions:
            x = convolution(x)
        return x


class LocalUniBlock(nn.Module):
    """A block of the image ViT with temporal aggregation of the patch tokens before its attention.

    Args:
        tower: architecture of the image ViT.
        local: whether to aggregate; False is a plain block of the image ViT.
        double: aggregate again between attention and feed-forward layers.
        reduction: ratio of the width outside to the width inside the aggregation.
        drop_path: rate of stochastic depth.
    """

    def __init__(self, tower: VisionTower, local: bool, double: bool, reduction: float, drop_path: float) -> None:
        super().__init__()
        dim = tower.width
        if local:
            self.lmhra1 = LocalMHRA(dim, reduction)
            if double:
                self.lmhra2 = LocalMHRA(dim, reduction)
        self.local, self.twice = local, local and double
        self.attn = SelfAttention(dim, tower.heads)
        self.ln_1 = nn.LayerNorm(dim, eps=tower.eps)
        self.mlp = feed_forward(dim, tower.mlp_width or 4 * dim, activation=tower.activation)
        self.ln_2 = nn.LayerNorm(dim, eps=tower.eps)
        self.ls_1, self.ls_2 = layer_scales(tower.layer_scale, dim)
        self.drop_path = DropPath(drop_path)

    def _aggregate(self, x: Tensor, mhra: LocalMHRA) -> Tensor:
        cls_tokens, patches = x.split([1, x.shape[2] - 1], dim=2)
        patches = patches.contiguous()
        return torch.cat([cls_tokens, patches + self.drop_path(mhra(patches))], dim=2)

    def forward(self, x: Tensor) -> Tensor:
        """Return the updated tokens (B, T, 1 + H*W, C)."""
        if self.local:
            x = self._aggregate(x, self.lmhra1)
        x = x + self.drop_path(scaled(self.attn(self.ln_1(x)), self.ls_1))
        if self.twice:
            x = self._aggregate(x, self.lmhra2)
        return x + self.drop_path(scaled(self.mlp(self.ln_2(x)), self.ls_2))


class GlobalUniBlock(nn.Module):
    """Attention of one query token over all tokens of all frames; the last layers of both branches start at zero."""

    def __init__(self, dim: int, heads: int, mlp_factor: float, mlp_dropout: float, drop_path: float) -> None:
        super().__init__()
        self.attn = QueryAttention(dim, heads)
        self.ln_1 = nn.LayerNorm(dim)
        self.mlp = feed_forward(dim, round(mlp_factor * dim), mlp_dropout)
        self.ln_2 = nn.LayerNorm(dim)
        self.ln_3 = nn.LayerNorm(dim)
        self.drop_path = DropPath(drop_path)
        nn.init.xavier_uniform_(self.attn.in_proj_weight)
        nn.init.xavier_uniform_(self.mlp.get_parameter("c_fc.weight"))
        zero_(self.attn.out_proj)
        zero_(self.mlp.get_submodule("c_proj"))

    def forward(self, query: Tensor, tokens: Tensor) -> Tensor:
        """Return the query (B, 1, C) after attention over tokens (B, L, C)."""
        tokens = self.ln_3(tokens)
        query = query + self.drop_path(self.attn(self.ln_1(query), tokens))
        return query + self.drop_path(self.mlp(self.ln_2(query)))


# ---- network --------------------------------------------------------------------------------------------------------


class VideoTransformer(nn.Module):
    """The local and global blocks of `UniFormerV2`, and its classifier `proj`; `dim` is the width C of a token.

    Random initial values depend on the order of the layers, so the blocks are iterators, which make them here.
    """

    balance: nn.Parameter | None

    def __init__(
        self,
        dim: int,
        return_list: Sequence[int],
        local_blocks: Iterable[LocalUniBlock],
        global_blocks: Iterable[GlobalUniBlock],
        cls_dropout: float,
        frozen: bool,
    ) -> None:
        super().__init__()
        self.return_list = tuple(return_list)
        self.temporal_cls_token = nn.Parameter(torch.zeros(1, 1, dim))
        self.register_parameter("balance", None if frozen else nn.Parameter(torch.zeros(dim)))
        self.resblocks = nn.ModuleList(local_blocks)
        self.dpe = nn.ModuleList(depthwise_conv(dim, 3, ndim=3) for _ in return_list)
        self.dec = nn.ModuleList(global_blocks)
        self.proj = nn.Sequential(nn.LayerNorm(dim), nn.Dropout(cls_dropout), nn.Identity())
        for dpe in self.dpe:
            nn.init.zeros_(dpe.get_parameter("bias"))
        self.checkpointed = 0  # number of blocks that recompute their activations in the backward pass
        self.kept = "nothing"  # of such a block, see `recompute`

    def forward(self, x: Tensor, size: Sequence[int], taps: dict[int, Any], stop: int | None) -> Tensor:
        """Return features (B, C) of (B, T, 1 + H*W, C); `size` is (H, W); see also `TimmBackbone.forward_stages`."""
        query = self.temporal_cls_token.expand(x.shape[0], -1, -1)
        j = 0
        for i, block in enumerate(self.resblocks):
            if i == stop:
                break
            recomputed = self.training and torch.is_grad_enabled() and i < self.checkpointed
            x = recompute(block, x, keep=self.kept) if recomputed else block(x)
            if i in taps:
                taps[i] = to_video(x, size)
            if i in self.return_list:
                patches = to_video(x, size)
                patches = patches + self.dpe[j](patches)
                query = self.dec[j](query, torch.cat([x[:, :, 0], to_tokens(patches)], dim=1))
                j += 1
        feature = query[:, 0]
        if self.balance is not None:
            weight = self.balance.sigmoid()
            feature = (1 - weight) * feature + weight * x[:, :, 0].mean(1)
        return feature


class VisionTransformer(nn.Module):
    """The embeddings of the image ViT in front of `VideoTransformer`: (B, 3, T, H, W) -> features (B, C)."""

    transformer: VideoTransformer  # set by `UniFormerV2`

    def __init__(self, tower: VisionTower, temporal_downsample: bool, in_channels: int) -> None:
        super().__init__()
        dim, patch = tower.width, tower.patch
        self.class_embedding = nn.Parameter(dim**-0.5 * torch.randn(dim))
        self.positional_embedding = nn.Parameter(dim**-0.5 * torch.randn((tower.resolution // patch) ** 2 + 1, dim))
        kernel, stride, padding = (3, 2, 1) if temporal_downsample else (1, 1, 0)
        self.conv1 = PatchConv(
            in_channels, dim, (kernel, patch, patch), (stride, patch, patch), (padding, 0, 0), bias=False
        )
        self.ln_pre = nn.LayerNorm(dim, eps=tower.eps) if tower.pre_norm else nn.Identity()

    def forward(self, video: Tensor, taps: dict[int, Any], stop: int | None) -> Tensor:
        """Return features; see `TimmBackbone.forward_stages`."""
        x = self.conv1(video)
        size, x = x.shape[3:], x.flatten(3).permute(0, 2, 3, 1)
        x = torch.cat([self.class_embedding.expand(*x.shape[:2], 1, -1), x], dim=2)
        x = self.ln_pre(x + resize_position_embedding(self.positional_embedding, size))
        return self.transformer(x, size, taps, stop)


class UniFormerV2(TimmBackbone):
    """UniFormerV2: (B, C, T, H, W) -> logits (B, K), for any T and any H and W that are multiples of the patch size.

    Args:
        num_classes: K; 0 returns features, without a classifier.
        backbone: name in `TOWERS`, "timm/<name>" for a plain ViT of timm, or a `VisionTower`.
        return_list: blocks of the image ViT after which a global block reads all tokens.
        n_head: number of attention heads of the global blocks.
        mlp_factor: ratio of hidden to input width of the global blocks.
        mlp_dropout: dropout rate in the global blocks; one number, or one per block.
        cls_dropout: dropout rate before the classifier.
        backbone_drop_path_rate: stochastic depth of the last block of the image ViT; rates rise linearly from 0.
        drop_path_rate: the same for the global blocks.
        no_lmhra: leave out the local temporal aggregation.
        double_lmhra: aggregate twice in each block.
        dw_reduction: ratio of the width outside to the width inside the local aggregation.
        temporal_downsample: use a first convolution over 3 frames with stride 2 in time.
        frozen: train only the global blocks and the classifier, without the class tokens of the frames in the feature.
        in_channels: number of channels of the input.

    Raises:
        ValueError: the backbone is unknown, or lists do not fit each other.
    """

    head_names = ("backbone.transformer.proj",)
    pools = ("token",)
    section = "UNIFORMERV2"  # section of the configuration
    kinetics_orders = {400: "k400", 600: "k600_v2", 700: "k700_v2", 710: "k710"}  # noqa: RUF012
    # parts that an image ViT does not have; the residual branches of local and global blocks are initially zero
    identity_at_start = ("temporal_cls_token", "balance", ".dpe.", ".dec.", "transformer.proj.", "lmhra")

    def __init__(
        self,
        num_classes: int = 400,
        backbone: str | VisionTower = "uniformerv2_b16",
        return_list: Sequence[int] = (8, 9, 10, 11),
        n_head: int = 12,
        mlp_factor: float = 4.0,
        mlp_dropout: float | Sequence[float] = 0.5,
        cls_dropout: float = 0.5,
        backbone_drop_path_rate: float = 0.0,
        drop_path_rate: float = 0.0,
        no_lmhra: bool = False,
        double_lmhra: bool = True,
        dw_reduction: float = 1.5,
        temporal_downsample: bool = True,
        frozen: bool = False,
        in_channels: int = 3,
    ) -> None:
        super().__init__(num_classes)
        if isinstance(backbone, str):
            backbone = vision_tower(backbone)
        dropouts = list(mlp_dropout) if isinstance(mlp_dropout, Sequence) else [mlp_dropout] * len(return_list)
        if len(dropouts) != len(return_list):
            raise ValueError(
                f"mlp_dropout has {len(dropouts)} rates for {len(return_list)} global blocks: give one each"
            )
        if not all(0 <= block < backbone.layers for block in return_list) or sorted(set(return_list)) != [*return_list]:
            raise ValueError(f"return_list {[*return_list]} must name blocks of 0 to {backbone.layers - 1}, rising")
        if backbone.width % n_head:
            raise ValueError(
                f"n_head {n_head} does not divide the {backbone.width} channels: set it to {backbone.heads}"
            )
        self.tower, self.patch, self.num_features = backbone, backbone.patch, backbone.width
        self.options = {"n_head": n_head, "return_list": return_list}
        strides = {"reduction": backbone.patch, "temporal_reduction": 2 if temporal_downsample else 1}
        self.feature_info = [
            {"num_chs": backbone.width, **strides, "module": f"backbone.transformer.resblocks.{i}"}
            for i in range(backbone.layers)
        ]
        local_blocks = (
            LocalUniBlock(backbone, not no_lmhra, double_lmhra, dw_reduction, rate)
            for rate in torch.linspace(0, backbone_drop_path_rate, backbone.layers, device="cpu").tolist()
        )
        rates = torch.linspace(0, drop_path_rate, len(return_list), device="cpu").tolist()
        global_blocks = (
            GlobalUniBlock(backbone.width, n_head, mlp_factor, dropout, rate)
            for dropout, rate in zip(dropouts, rates, strict=True)
        )
        self.backbone = VisionTransformer(backbone, temporal_downsample, in_channels)
        self.backbone.transformer = VideoTransformer(
            backbone.width, return_list, local_blocks, global_blocks, cls_dropout, frozen
        )
        self.reset_classifier(num_classes)
        if frozen:
            self.surplus_at_start = ("transformer.balance",)
            trained = ("temporal_cls_token", "dpe", "dec", "proj")
            for name, parameter in self.named_parameters():
                parameter.requires_grad_(name.split(".")[2] in trained if "transformer." in name else False)

    @staticmethod
    def unseen_options(options: Mapping[str, Any]) -> dict[str, Any]:
        """Return values of `options` that tensor shapes do not show; the image ViT is compared separately."""
        return {"n_head": options["n_head"], "return_list": list(options["return_list"])}

    def check_options(self, trained: Mapping[str, Any]) -> None:
        name, here, there = str(trained.get("backbone", "")), self.tower, None
        if name == "custom" and "tower" in trained:
            there = VisionTower(*trained["tower"])
        elif name in TOWERS or name.startswith("timm/"):
            there = vision_tower(name)
        # position embeddings are resized to another resolution, and a wrong hidden width shows in the shapes
        if there and replace(there, resolution=here.resolution, mlp_width=here.mlp_width) != here:
            option = "tower" if name == "custom" else "backbone"
            raise ValueError(
                f"the checkpoint was trained with {option} {trained[option]}, which is another image ViT than {here}: "
                f"set it to {trained[option]}"
            )
        super().check_options(trained)

    def check_image_vit(self, layout: str, activation: str) -> Sequence[str]:
        here, exact = self.tower.activation, "backbone timm/<name of the ViT in timm>"
        if activation and activation != here:
            cure = exact if activation == "gelu" else "one of CLIP's own, such as uniformerv2_b16"
            raise ValueError(
                f"{layout} weights were trained with the activation {activation}, and the image ViT here computes "
                f"{here}: take {cure}"
            )
        if activation or here == "gelu":
            return ()
        return (
            "the file does not show its activation, and the image ViT here computes OpenAI's QuickGELU; weights "
            f"trained with the exact GELU (those of LAION, for example) need {exact}",
        )

    def resize_parameter(self, name: str, value: Tensor, shape: torch.Size) -> Tensor | None:
        """Return a position embedding (1 + S*S, C), resized to the grid of this network; None for any other tensor."""
        if not name.endswith("positional_embedding") or value.ndim != 2 or not len(value):
            return None
        sides = [math.isqrt(length - 1) for length in (len(value), shape[0])]
        if [(1 + side**2, shape[-1]) for side in sides] != [tuple(value.shape), tuple(shape)]:
            return None
        return resize_position_embedding(value, (sides[1], sides[1]))

    def set_grad_checkpointing(self, enable: bool | Sequence[int] = True, keep: str = "nothing") -> None:
        """Recompute activations of all blocks of the image ViT, of none, or of the first [n]; see also `FourStages`."""
        transformer = self.backbone.transformer
        (transformer.checkpointed,) = recomputed_blocks(enable, [len(transformer.resblocks)])
        transformer.kept = keep

    def classifier_names(self) -> tuple[str, ...]:
        """Return the name of the linear layer of the classifier."""
        return ("backbone.transformer.proj.2",)

    def group_matcher(self, coarse: bool = False) -> dict[str, Any]:
        """Return patterns of parameter names for `timm.models.group_parameters`, from input to output.

        Args:
            coarse: one group for the image ViT and one for the global blocks instead of one per block.
        """
        number = "" if coarse else r"\.(\d+)"
        return {
            "stem": r"^backbone\.(?!transformer)",
            "blocks": rf"^backbone\.transformer\.resblocks{number}",
            "global": [
                (rf"^backbone\.transformer\.(?:dpe|dec){number}", None),
                (r"^backbone\.transformer\.temporal_cls_token", () if coarse else (0,)),
            ],
        }

    def prune_intermediate_layers(
        self, indices: int | Sequence[int] = 1, prune_norm: bool = False, prune_head: bool = True
    ) -> list[int]:
        """Remove the layers that the feature maps after the blocks `indices` do not need; return the blocks from 0."""
        wanted, last = self.take_indices(indices)
        transformer = self.backbone.transformer
        transformer.resblocks = transformer.resblocks[: last + 1]
        self.feature_info = self.feature_info[: last + 1]
        if prune_head:
            transformer.return_list, transformer.proj = (), nn.Sequential(nn.Identity(), nn.Identity(), nn.Identity())
            transformer.dpe, transformer.dec = nn.ModuleList(), nn.ModuleList()
            transformer.temporal_cls_token.requires_grad_(False)  # no output depends on it after the cut
            transformer.register_parameter("balance", None)
            self.num_classes = 0
        return wanted

    def forward_stages(self, video: Tensor, taps: dict[int, Any], stop: int | None = None) -> Tensor:
        """Return features (B, C') of a video (B, C, T, H, W); see `TimmBackbone.forward_stages`.

        Raises:
            ValueError: height or width is not a multiple of the patch size.
        """
        height, width, patch = video.shape[3], video.shape[4], self.patch
        if not torch.jit.is_tracing() and (height % patch or width % patch):  # in a trace, `PatchConv` checks it
            raise ValueError(
                f"frames of {height} x {width} pixels are not made of whole patches of {patch}: use multiples "
                f"of {patch}"
            )
        return self.backbone(video, taps, stop)

    def forward_head(self, features: Tensor, pre_logits: bool = False) -> Tensor:
        """Return logits (B, K) of features (B, C'), or the input of the classifier (B, C')."""
        head = self.backbone.transformer.proj
        return head[:2](features) if pre_logits else head(features)
