"""Define depthwise convolutions with the fastest exact kernels of each device, and their gradients.

On CPUs, oneDNN's forward kernel also computes the gradients. On GPUs, kernels in Triton compute result and gradients.
"""

from __future__ import annotations

import functools
import importlib.util
import logging
from typing import Any

import torch
from torch import Tensor, nn
from torch.autograd import Function
from torch.nn import functional as F
from torch.nn.modules.conv import _ConvNd

from slowfast.models.linear import channels_last, faster_routes, is_plain

logger = logging.getLogger(__name__)


class DepthwiseFunction(Function):
    """Depthwise convolution of stride 1 whose gradients are forward convolutions too.

    oneDNN's kernels for the gradients are 6 to 20 times slower than its forward kernel, and that for the gradient of
    bfloat16 weights is wrong for clips shorter than the kernel. The gradient of the input is the convolution of the
    gradient with the flipped kernel; the gradient of the kernel is the convolution of the input with the gradient.
    """

    generate_vmap_rule = True  # for several gradients at once

    @staticmethod
    def forward(x: Tensor, weight: Tensor, bias: Tensor | None) -> Tensor:
        return _convolve(x, weight, bias)

    @staticmethod
    def setup_context(ctx: Any, inputs: tuple[Any, ...], output: Tensor) -> None:
        ctx.save_for_backward(*inputs[:2])

    @staticmethod
    def backward(ctx: Any, *grad_outputs: Tensor) -> tuple[Tensor | None, ...]:
        x, weight = ctx.saved_tensors
        grad, axes = channels_last(grad_outputs[0]), list(range(2, x.ndim))
        grads: list[Tensor | None] = [None, None, None]
        if ctx.needs_input_grad[0]:
            grads[0] = DepthwiseFunction.apply(grad, weight.flip(axes), None)  # pyright: ignore
        if ctx.needs_input_grad[1]:
            kernel = _triton_gradient if x.is_cuda else _kernel_gradient
            grads[1] = kernel(channels_last(x), grad, list(weight.shape[2:])).to(weight.dtype)
        if ctx.needs_input_grad[2]:
            grads[2] = grad.sum([0, *axes])
        return tuple(grads)


def _convolve(x: Tensor, weight: Tensor, bias: Tensor | None) -> Tensor:
    """Return the convolution of (B, C, *grid) with kernels (C, 1, *size) of odd size; the result has the same grid."""
    if x.is_cuda:
        from slowfast.models.depthwise_triton import convolve

        if x.ndim == 4:
            return _convolve(x[:, :, None], weight[:, :, None], bias)[:, :, 0]
        return convolve(x.movedim(1, -1), weight, bias).movedim(-1, 1)
    padding = [size // 2 for size in weight.shape[2:]]
    return (F.conv3d if x.ndim == 5 else F.conv2d)(x, weight, bias, padding=padding, groups=weight.shape[0])


def _kernel_gradient(x: Tensor, grad: Tensor, size: list[int]) -> Tensor:
    """Return the gradient (C, 1, *size) of a depthwise kernel: each clip is convolved with its gradient."""
    if not x.shape[0]:
        return x.new_zeros(x.shape[1], 1, *size)
    if x.ndim == 4:  # the images are the frames of one clip
        x, grad = x.transpose(0, 1)[None], grad.transpose(0, 1)[None]
        return _kernel_gradient(x, grad, [1, *size])[:, :, 0]
    kernels, padding = grad.transpose(0, 1).split(1, dim=1), [length // 2 for length in size]
    gradients = [F.conv3d(x[i : i + 1], k, padding=padding, groups=k.shape[0]) for i, k in enumerate(kernels)]
    return sum(gradients[1:], gradients[0]).transpose(0, 1)


def _triton_gradient(x: Tensor, grad: Tensor, size: list[int]) -> Tensor:
    """Return the gradient (C, 1, *size) of a depthwise kernel, computed by a kernel in Triton."""
    from slowfast.models.depthwise_triton import kernel_gradient

    if x.ndim == 4:
        return _triton_gradient(x[:, :, None], grad[:, :, None], [1, *size])[:, :, 0]
    return kernel_gradient(x.movedim(1, -1), grad.movedim(1, -1), size)


def add_depthwise(layer: nn.Module, x: Tensor) -> Tensor:
    """Return `x + layer(x)`; in float32, a depthwise convolution that nothing listens to adds `x` itself."""
    plain = is_plain(layer, DepthwiseConv2d, DepthwiseConv3d)
    out = depthwise(layer, x, residual=True) if plain else None  # pyright: ignore[reportArgumentType]
    return x + layer(x) if out is None else out


def depthwise(layer: _ConvNd, x: Tensor, residual: bool = False) -> Tensor | None:
    """Return the result of a depthwise convolution layer for (B, C, *grid); None if PyTorch must compute it.

    Under autocast, the result has the type of autocast, as in PyTorch.

    Args:
        layer: the convolution.
        x: its input.
        residual: add `x` to the result, only in float32.
    """
    batched = x.ndim == len(layer.kernel_size) + 2
    if not batched or not faster_routes(x) or (x.is_cuda and not has_triton(x.device.index)):
        return None
    inputs: Any = (x, layer.weight, layer.bias)  # read the weight once: a parametrization computes it at each access
    autocast = torch.is_autocast_enabled(x.device.type)
    if residual:
        if autocast or not x.dtype == layer.weight.dtype == torch.float32:
            return None
        identity = torch.zeros_like(layer.weight)
        identity[(..., *(size // 2 for size in layer.kernel_size))] = 1
        inputs = (x, layer.weight + identity, layer.bias)
    elif autocast:
        dtype = torch.get_autocast_dtype(x.device.type)
        inputs = [None if value is None else value.to(dtype) for value in inputs]
    if not faster_routes(inputs[0]):
        return None
    if not torch.is_grad_enabled():
        return _convolve(*inputs)
    return DepthwiseFunction.apply(*inputs)  # pyright: ignore


def has_triton(index: int) -> bool:
    """Return whether Triton can compile kernels for the GPU with this number; if it fails, log the reason."""
    return _has_triton(index)


# as torch.compiler.assume_constant_result does, which would take a second to import the compiler
has_triton._dynamo_marked_constant = True  # pyright: ignore[reportFunctionMemberAccess]


@functools.cache
def _has_triton(index: int) -> bool:
    if not importlib.util.find_spec("triton"):
        return False
    try:
        clip = torch.ones(1, 8, 1, 1, 1, device=f"cuda:{index}")
        return bool((_convolve(clip, clip.new_ones(8, 1, 1, 1, 1), None) == 1).all())
    except Exception as error:  # Triton, which also needs a C compiler, fails in many ways
        logger.warning("depthwise convolutions are slow here, because Triton cannot compile kernels: %s", error)
        return False


class _Depthwise(_ConvNd):
    """Depthwise convolution that keeps the size of its input."""

    def __init__(self, dim: int, kernel: int) -> None:
        super().__init__(dim, dim, kernel, padding=kernel // 2, groups=dim)  # pyright: ignore

    def forward(self, input: Tensor) -> Tensor:
        out = depthwise(self, input)
        return super().forward(input) if out is None else out


class DepthwiseConv2d(_Depthwise, nn.Conv2d):
    """Depthwise convolution of images."""


class DepthwiseConv3d(_Depthwise, nn.Conv3d):
    """Depthwise convolution of video."""


def depthwise_conv(dim: int, kernel: int, ndim: int) -> nn.Module:
    """Return a depthwise convolution that keeps the size of its input; `ndim` is 3 for video, 2 for images."""
    return (DepthwiseConv3d if ndim == 3 else DepthwiseConv2d)(dim, kernel)
