"""Define the layers that the backbones share: convolutions, attention, MLP, patch embedding, stochastic depth."""

from __future__ import annotations

from collections.abc import Generator, Sequence
from contextlib import AbstractContextManager, contextmanager, nullcontext
from functools import partial
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional as F
from torch.nn.modules.batchnorm import _BatchNorm
from torch.nn.modules.conv import _ConvNd
from torch.nn.utils.fusion import fuse_conv_bn_weights
from torch.utils.checkpoint import CheckpointPolicy, checkpoint, create_selective_checkpoint_contexts, noop_context_fn

from slowfast.models.linear import (
    apply_feed_forward,
    apply_linear,
    channels_last,
    faster_routes,
    folds,
    is_plain,
    linear,
    plus,
    pointwise_conv,
    unhooked,
)


class VideoConv(nn.Conv3d):
    """Convolution of video (B, C, T, H, W).

    If oneDNN pads bfloat16 clips that are smaller than the kernel in time or space, the gradient of the weight is
    wrong. Therefore, such clips are padded before.
    """

    def _conv_forward(self, input: Tensor, weight: Tensor, bias: Tensor | None) -> Tensor:
        half = input.dtype == torch.bfloat16 or torch.is_autocast_enabled("cpu")
        smaller = any(size < kernel for size, kernel in zip(input.shape[-3:], self.kernel_size, strict=True))
        if input.device.type == "cpu" and half and smaller:
            time, height, width = (int(size) for size in self.padding)
            padded = F.pad(input, (width, width, height, height, time, time))
            return F.conv3d(padded, weight, bias, self.stride, 0, self.dilation, self.groups)
        return super()._conv_forward(input, weight, bias)


# by the number of dimensions: 2 for images, 3 for video
CONV: dict[int, Any] = {2: nn.Conv2d, 3: VideoConv}
BATCH_NORM: dict[int, Any] = {2: nn.BatchNorm2d, 3: nn.BatchNorm3d}


class _Patches(_ConvNd):
    """Convolution of disjoint patches (the stride is the kernel), computed as a matrix product of patches."""

    def forward(self, input: Tensor) -> Tensor:
        if not faster_routes(input):
            return super().forward(input)
        x, ndim = input.movedim(1, -1), input.ndim - 2
        for axis, size in zip(range(1, 2 * ndim, 2), self.kernel_size, strict=True):
            if x.shape[axis] % size:  # as in a convolution, positions after the last patch are unused
                x = x.narrow(axis, 0, x.shape[axis] // size * size)
            x = x.unflatten(axis, (-1, size))
        x = x.permute(0, *range(1, 2 * ndim, 2), *range(2, 2 * ndim + 1, 2), -1).flatten(1 + ndim)
        return linear(x, self.weight.movedim(1, -1).flatten(1), self.bias).movedim(-1, 1)


class PatchConv2d(_Patches, nn.Conv2d):
    """Convolution of disjoint patches of images."""


class PatchConv3d(_Patches, nn.Conv3d):
    """Convolution of disjoint patches of video."""


PATCH_CONV: dict[int, Any] = {2: PatchConv2d, 3: PatchConv3d}


def to_tokens(x: Tensor) -> Tensor:
    """Flatten (B, C, *grid) to (B, L, C) with L = prod(grid), without a copy in the channels-last memory format."""
    return x.movedim(1, -1).flatten(1, -2)


def to_grid(tokens: Tensor, grid: Sequence[int]) -> Tensor:
    """Unflatten (B, L, C) to (B, C, *grid), the inverse of `to_tokens`."""
    return tokens.unflatten(1, tuple(grid)).movedim(-1, 1)


class PatchEmbed(nn.Module):
    """Strided convolution and LayerNorm over channels: (B, C_in, T, H, W) -> (B, C_out, T', H', W')."""

    def __init__(
        self, in_channels: int, dim: int, kernel: Sequence[int], stride: Sequence[int], padding: Sequence[int]
    ) -> None:
        super().__init__()
        self.norm = nn.LayerNorm(dim)
        conv = PATCH_CONV if tuple(kernel) == tuple(stride) and not any(padding) else CONV
        self.proj = conv[len(kernel)](in_channels, dim, tuple(kernel), tuple(stride), tuple(padding))

    def forward(self, x: Tensor) -> Tensor:
        x = self.proj(x)
        return to_grid(self.norm(to_tokens(x)), x.shape[2:])


class OverlapPatchEmbed(nn.Module):
    """Overlapping 3x3 (x3) convolutions with BatchNorm and GELUs in between: (B, C_in, ...) -> (B, C_out, ...).

    Args:
        channels: channels of the input and of the output of every convolution.
        strides: strides of every convolution, one number per axis.
    """

    def __init__(self, channels: Sequence[int], strides: Sequence[Sequence[int]]) -> None:
        super().__init__()
        ndim = len(strides[0])
        layers: list[nn.Module] = []
        for inputs, outputs, stride in zip(channels[:-1], channels[1:], strides, strict=True):
            layers += [nn.GELU()] if layers else []
            layers += [CONV[ndim](inputs, outputs, 3, tuple(stride), padding=1), BATCH_NORM[ndim](outputs)]
        self.proj = nn.Sequential(*layers)

    def forward(self, x: Tensor) -> Tensor:
        if type(self.proj) is not nn.Sequential or not unhooked(self.proj):
            return channels_last(self.proj(x))
        layers: list[Any] = list(self.proj)
        while layers:
            layer = layers.pop(0)
            if layers and is_plain(layer, *CONV.values()) and folds(layers[0], x):
                norm = layers.pop(0)
                statistics = norm.running_mean, norm.running_var, norm.eps, norm.weight, norm.bias
                x = layer._conv_forward(x, *fuse_conv_bn_weights(layer.weight, layer.bias, *statistics))
                if layers and type(layers[0]) is nn.GELU and unhooked(layers[0]):  # in place: nothing else needs x
                    x = torch.ops.aten.gelu_(x, approximate=layers.pop(0).approximate)
            else:
                x = layer(x)
        return channels_last(x)


def layer_scales(initial: float | None, *shape: int) -> tuple[nn.Parameter | None, nn.Parameter | None]:
    """Return the layer scales of the two residual branches of a block (arXiv:2103.17239, section 2); None for none."""
    if initial is None:
        return None, None
    return nn.Parameter(torch.full(shape, initial)), nn.Parameter(torch.full(shape, initial))


def scaled(branch: Tensor, gamma: Tensor | None) -> Tensor:
    """Return a residual branch times its layer scale, if it has one."""
    return branch if gamma is None else gamma * branch


class Mlp(nn.Module):
    """Two layers with a GELU in between: linear layers, or convolutions of size 1 in `conv_ndim` dimensions."""

    def __init__(self, dim: int, hidden: int, dropout: float = 0.0, conv_ndim: int | None = None) -> None:
        super().__init__()
        if conv_ndim is None:
            self.fc1, self.fc2 = nn.Linear(dim, hidden), nn.Linear(hidden, dim)
        else:
            self.fc1, self.fc2 = pointwise_conv(dim, hidden, conv_ndim), pointwise_conv(hidden, dim, conv_ndim)
        self.drop = nn.Dropout(dropout)

    def forward(self, x: Tensor, norm: nn.Module | None = None, residual: Tensor | None = None) -> Tensor:
        """Return the result for `norm(x)`, plus `residual`, of the shape of `x`."""
        drop = self.drop
        if drops_nothing(drop):
            return apply_feed_forward(self.fc1, self.fc2, x, norm, residual)
        return plus(residual, drop(apply_linear(self.fc2, drop(F.gelu(apply_linear(self.fc1, x, norm))))))


class DropPath(nn.Module):
    """Stochastic depth: drop the residual branch of whole samples (arXiv:1603.09382).

    timm and torchvision have the same layer, but importing either takes longer than importing PyTorch.

    Args:
        rate: share of samples that are dropped; samples are along the first dimension.

    Raises:
        ValueError: the rate is not from 0 to below 1; the samples that are kept are divided by 1 - rate.
    """

    def __init__(self, rate: float = 0.0) -> None:
        super().__init__()
        if not 0 <= rate < 1:
            raise ValueError(f"a rate of stochastic depth is {rate:g}: choose it from 0 to below 1")
        self.rate = rate
        self.kept: Tensor | None
        # a tensor, so that blocks with different rates share their compiled code
        kept = torch.tensor(1.0 - rate, device="cpu") if rate else None
        self.register_buffer("kept", kept, persistent=False)

    def _apply(self, fn: Any, recurse: bool = True) -> DropPath:
        super()._apply(fn, recurse)
        if self.kept is not None:
            self.kept.fill_(1.0 - self.rate)  # `to_empty` leaves what was in the memory
        return self

    def forward(self, x: Tensor) -> Tensor:
        if self.kept is None or not self.training:
            return x
        shape = (x.shape[0],) + (1,) * (x.ndim - 1)
        if torch.compiler.is_compiling():
            return x * ((torch.rand(shape, device=x.device) < self.kept) / self.kept).to(x.dtype)
        keep = x.new_empty(shape).bernoulli_(1.0 - self.rate)
        return x * (keep / (1.0 - self.rate))


def drops_nothing(layer: nn.Module) -> bool:
    """Return whether dropout or stochastic depth need not be called: it drops nothing, and has no hooks."""
    kinds: dict[type[nn.Module], str] = {nn.Dropout: "p", DropPath: "rate"}
    rate = kinds.get(type(layer))
    return rate is not None and not (layer.training and getattr(layer, rate)) and unhooked(layer)


def add_feed_forward(block: Any, x: Tensor) -> Tensor:
    """Return `x` plus the residual branch of the feed-forward layers of a block; an `Mlp` may add `x` itself."""
    mlp, norm = block.mlp, block.norm2
    if type(mlp) is not Mlp or not unhooked(mlp):
        branch = mlp(norm(x))
    elif block.gamma_2 is None and drops_nothing(block.drop_path):
        return mlp(x, norm, x)
    else:
        branch = mlp(x, norm)
    return x + block.drop_path(scaled(branch, block.gamma_2))


class Attention(nn.Module):
    """Multi-head self-attention over tokens (B, L, C), the global MHRA of UniFormer (arXiv:2201.04676, section 3.2)."""

    def __init__(
        self,
        dim: int,
        num_heads: int,
        qkv_bias: bool = True,
        qk_scale: float | None = None,
        attention_dropout: float = 0.0,
        dropout: float = 0.0,
    ) -> None:
        super().__init__()
        self.num_heads = num_heads
        self.scale = qk_scale or (dim // num_heads) ** -0.5
        self.attention_dropout = attention_dropout
        self.qkv = nn.Linear(dim, 3 * dim, bias=qkv_bias)
        self.proj = nn.Linear(dim, dim)
        self.drop = nn.Dropout(dropout)

    def project(self, x: Tensor) -> tuple[Tensor, ...]:
        """Project tokens (B, L, C) to queries, keys and values, each (B, heads, L, C / heads)."""
        return apply_linear(self.qkv, x).unflatten(2, (3, self.num_heads, -1)).permute(2, 0, 3, 1, 4).unbind(0)

    def weights(self, x: Tensor) -> Tensor:
        """Return the attention (B, heads, L, L) of every token of (B, L, C), the rows, to all tokens."""
        q, k, _ = self.project(x)
        return (self.scale * q @ k.transpose(2, 3)).softmax(3)

    def attend(self, q: Tensor, k: Tensor, v: Tensor) -> Tensor:
        """Return tokens (B, L, C) after attention with queries, keys and values."""
        dropout = self.attention_dropout if self.training else 0.0
        x = F.scaled_dot_product_attention(q, k, v, dropout_p=dropout, scale=self.scale)
        return self.drop(apply_linear(self.proj, x.transpose(1, 2).flatten(2)))

    def forward(self, x: Tensor) -> Any:
        return self.attend(*self.project(x))


def classifier(dim: int, num_classes: int) -> nn.Module:
    """Return a linear classifier; the identity for 0 classes."""
    return nn.Linear(dim, num_classes) if num_classes else nn.Identity()


def recompute(block: nn.Module, *inputs: Any, keep: str = "nothing") -> Any:
    """Run `block`; recompute its activations in the backward pass, but update BatchNorm statistics only once.

    Args:
        block: to run.
        inputs: of the block.
        keep: "products" keeps the results of matrix products, dense convolutions and attention, which take the most
            time; "nothing" recomputes them too.
    """
    selected = _KEEP[keep]
    if torch.compiler.is_compiling() or not _batch_norms(block):  # a compiled block updates its buffers only once
        options = {} if keep == "nothing" else {"context_fn": selected}  # compilers refuse `noop_context_fn`
        return checkpoint(block, *inputs, use_reentrant=False, **options)

    def contexts() -> tuple[Any, Any]:
        forward, backward = selected()
        return forward, _statistics_kept(block, backward)

    return checkpoint(block, *inputs, use_reentrant=False, context_fn=contexts)


def _policy(_: Any, op: Any, *args: Any, **kwargs: Any) -> CheckpointPolicy:
    """Return whether the results of an operation are kept."""
    name = op.overloadpacket.__name__
    if name == "convolution":
        kept = args[-1] == 1  # in one group
    elif name.startswith("_scaled_dot_product"):
        # dropout within the kernel must draw again, or the draws that follow would differ
        given = dict(zip((argument.name for argument in op._schema.arguments), args, strict=False)) | kwargs
        kept = not given.get("dropout_p")
    else:
        kept = name in ("mm", "addmm", "bmm", "baddbmm", "_linear_pointwise")
    return CheckpointPolicy.MUST_SAVE if kept else CheckpointPolicy.PREFER_RECOMPUTE


# what `recompute` keeps -> the contexts of the forward pass and of the recomputation
_KEEP: dict[str, Any] = {
    "nothing": noop_context_fn,
    "products": partial(create_selective_checkpoint_contexts, _policy),
}


def recomputed_blocks(blocks: Any, depth: Sequence[int]) -> tuple[int, ...]:
    """Return the number of blocks that recompute their activations, per part of a network.

    Args:
        blocks: True for all, False for none, or per part the number of the first blocks that do; a network of one part
            uses the first number.
        depth: number of blocks per part.

    Raises:
        ValueError: `blocks` is anything else.
    """
    if isinstance(blocks, bool):
        return tuple(blocks * count for count in depth)
    counts = list(blocks) if isinstance(blocks, Sequence) else []
    if len(counts) not in (len(depth), 4) or not all(type(count) is int and count >= 0 for count in counts):
        raise ValueError(
            f"activation checkpointing of {blocks!r} blocks is not possible: give True, False, or {len(depth)} whole "
            "numbers from 0"
        )
    return tuple(counts[: len(depth)])


def _batch_norms(module: nn.Module) -> list[_BatchNorm]:
    return [m for m in module.modules() if isinstance(m, _BatchNorm)]


@contextmanager
def _statistics_kept(module: nn.Module, context: Any) -> Generator[None, None, None]:
    norms = _batch_norms(module)
    kept = [{name: buffer.clone() for name, buffer in norm.named_buffers()} for norm in norms]
    try:
        with context:
            yield
    finally:  # PyTorch ends a recomputation early, by an exception
        with torch.no_grad():
            for norm, buffers in zip(norms, kept, strict=True):
                for name, value in buffers.items():
                    norm.get_buffer(name).copy_(value)


def uncompiled(model: nn.Module) -> AbstractContextManager[Any]:
    """Return a context in which compiled blocks run eagerly; compiled code does not call hooks that are added later."""
    compiled = any(module._compiled_call_impl is not None for module in model.modules())
    return torch.compiler.set_stance("force_eager") if compiled else nullcontext()


def single_input(video: Tensor | Sequence[Tensor]) -> Tensor:
    """Return the input tensor; by SlowFast's convention of a tensor per pathway, a list of exactly one is accepted."""
    if torch.is_tensor(video):
        return video
    if len(video) != 1:
        raise ValueError(f"{len(video)} inputs for a model of one pathway: pass one tensor (B, C, T, H, W)")
    return video[0]
