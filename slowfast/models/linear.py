"""Compute linear layers and feed-forward layers by the fastest exact route of each device."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import torch
from torch import Tensor, nn
from torch.autograd import Function, forward_ad
from torch.nn import functional as F
from torch.nn.modules.conv import _ConvNd
from torch.nn.modules.module import _has_any_global_hook

# oneDNN has the fast kernels on such CPUs
X86_VECTORS = torch.backends.cpu.get_cpu_capability().startswith("AVX") and torch.backends.mkldnn.is_available()

PART = 1 << 19  # hidden values of feed-forward layers that a thread computes at once: 2 MB
MANY = 1 << 22  # hidden values that no cache contains: 16 MB


def is_exporting() -> bool:
    """Return whether `torch.export` traces the network.

    Before PyTorch 2.14, `torch.compiler.is_exporting` is also true in `torch.compile`.
    """
    return torch.compiler._is_exporting_flag  # pyright: ignore[reportPrivateUsage]


def _in_transform() -> bool:
    """Return whether `torch.func` or forward-mode differentiation is active: the faster routes have no rules for it."""
    if torch.compiler.is_compiling():
        return False
    return torch._C._are_functorch_transforms_active() or forward_ad._current_level >= 0


def faster_routes(x: Tensor) -> bool:
    """Return whether layers take the routes that are fastest with channels last, on GPUs and on CPUs with oneDNN.

    Exported networks, other devices and other types take the convolutions of PyTorch.
    """
    if is_exporting() or torch.jit.is_tracing() or _in_transform():
        return False
    if x.device.type == "cpu":
        return X86_VECTORS and x.dtype in (torch.float32, torch.bfloat16)
    return x.device.type == "cuda" and x.dtype in (torch.float32, torch.bfloat16, torch.float16)


def channels_last(x: Tensor) -> Tensor:
    """Return `x`, (B, C, *grid), in the channels-last memory format if the layers are faster with it."""
    if not faster_routes(x):
        return x
    return x.movedim(1, -1).contiguous().movedim(-1, 1)


class _LinearFunction(Function):
    """Linear layer of which oneDNN computes the result and the gradient of the input."""

    @staticmethod
    def forward(x: Tensor, weight: Tensor, bias: Tensor | None) -> Tensor:
        return _onednn_linear(x, weight, bias)

    @staticmethod
    def setup_context(ctx: Any, inputs: tuple[Any, ...], output: Tensor) -> None:
        ctx.save_for_backward(*inputs[:2])

    @staticmethod
    def backward(ctx: Any, *grad_outputs: Tensor) -> tuple[Tensor | None, ...]:
        x, weight = ctx.saved_tensors
        grad, transposed = grad_outputs[0], weight.t()
        rows = grad.reshape(-1, grad.shape[-1])
        if len(rows) > weight.numel():
            transposed = transposed.contiguous()
        grads: list[Tensor | None] = [None, None, None]
        if ctx.needs_input_grad[0]:
            grads[0] = linear(grad, transposed, None)
        if ctx.needs_input_grad[1]:
            grads[1] = rows.t() @ x.reshape(-1, x.shape[-1])
        if ctx.needs_input_grad[2]:
            grads[2] = rows.sum(0)
        return tuple(grads)


class _FeedForwardFunction(Function):
    """Two linear layers with a GELU in between, computed for one part of the tokens after the other.

    The hidden values of a part stay in the cache until all that needs them is computed. The backward pass computes the
    GELU again, which takes less time than reading its result from memory.
    """

    @staticmethod
    def forward(ctx: Any, x: Tensor, w1: Tensor, b1: Tensor, w2: Tensor, b2: Tensor) -> Tensor:
        hidden: list[Tensor] = []
        out = x.new_empty(*x.shape[:-1], len(w2))
        for part, target in _split(_part_size(w1), x, out):
            hidden.append(_onednn_linear(part, w1, b1))
            target.copy_(_onednn_linear(F.gelu(hidden[-1]), w2, b2))
        ctx.save_for_backward(x, w1, b1, w2, b2, *hidden)
        return out

    @staticmethod
    def backward(ctx: Any, *grad_outputs: Tensor) -> tuple[Tensor, ...]:
        x, w1, b1, w2, b2, *hidden = ctx.saved_tensors
        inputs = [x, w1, b1, w2, b2]
        twice = torch.is_grad_enabled()  # for second derivatives
        if twice or _is_batched(grad_outputs[0]):
            with torch.enable_grad():
                # other tensors than the inputs, of which one may be computed from another
                x, w1, b1, w2, b2 = inputs = [value.view_as(value) for value in inputs]
                out = linear(F.gelu(linear(x, w1, b1)), w2, b2)
            return torch.autograd.grad(out, inputs, grad_outputs, create_graph=twice)
        grads = [x.new_empty(x.shape), *(torch.zeros_like(value) for value in inputs[1:])]
        w1_t, w2_t = w1.t().contiguous(), w2.t().contiguous()
        parts = _split(len(hidden[0]), x, grad_outputs[0], grads[0])
        for (part, grad, grad_x), h in zip(parts, hidden, strict=True):
            grad_h = _onednn_linear(grad, w2_t, None)
            grads[3].addmm_(grad.t(), F.gelu(h))
            torch.ops.aten.gelu_backward(grad_h, h, grad_input=grad_h)
            grad_x.copy_(_onednn_linear(grad_h, w1_t, None))
            grads[1].addmm_(grad_h.t(), part)
            grads[2].add_(grad_h.sum(0))
            grads[4].add_(grad.sum(0))
        return tuple(grads)


def _is_batched(x: Tensor) -> bool:
    """Return whether `vmap` maps over a tensor; it has no rules for operations that write into other tensors."""
    functorch: Any = torch._C._functorch  # pyright: ignore[reportAttributeAccessIssue]
    return functorch.is_batchedtensor(x) or functorch.is_legacy_batchedtensor(x)


def _in_parts(
    x: Tensor, w1: Tensor, b1: Tensor | None, w2: Tensor, b2: Tensor | None, residual: Tensor | None
) -> Tensor:
    """Return tokens after two linear layers with a GELU in between, plus `residual`."""
    out = x.new_empty(*x.shape[:-1], len(w2))
    # copied without a residual: oneDNN writes its result into a tensor of its own
    for part, added, target in _split(_part_size(w1), x, out if residual is None else residual, out):
        update = _onednn_linear(_onednn_linear(part, w1, b1, "gelu"), w2, b2)
        target.copy_(update) if residual is None else torch.add(added, update, out=target)
    return out


def _part_size(w1: Tensor) -> int:
    """Return how many tokens have `PART` hidden values per thread."""
    return max(PART // len(w1), 256) * torch.get_num_threads()


def _split(size: int, *tokens: Tensor) -> Iterator[tuple[Tensor, ...]]:
    """Yield parts of as many tokens of each tensor (..., C)."""
    return zip(*(tensor.flatten(0, -2).split(size) for tensor in tokens), strict=True)


def _onednn_linear(x: Tensor, weight: Tensor, bias: Tensor | None, activation: str = "none") -> Tensor:
    bias = None if bias is None else bias.contiguous()  # oneDNN reads it without its stride
    return torch.ops.mkldnn._linear_pointwise(x, weight, bias, activation, [], "none")


def _on_onednn(x: Tensor) -> bool:
    """Return whether operations of oneDNN are called directly for x."""
    return (
        x.device.type == "cpu"
        and x.dtype == torch.float32
        and faster_routes(x)
        and not torch.compiler.is_compiling()
        and not torch.is_autocast_enabled("cpu")
        and not _has_any_global_hook()  # for example of PyTorch's counter of FLOPs, which omits operations of oneDNN
        and hasattr(torch.ops.mkldnn, "_linear_pointwise")
    )


def _is_dense(weight: Tensor) -> bool:
    """Return whether a weight is a plain tensor; subclasses and sparse tensors have products of their own."""
    return type(weight) in (Tensor, nn.Parameter) and weight.layout == torch.strided


def _by_onednn(x: Tensor, weight: Tensor) -> bool:
    """Return whether oneDNN computes the product of x (..., C) and a weight (C', C, 1...)."""
    return (
        _on_onednn(x)
        and x.ndim > 1
        and _is_dense(weight)
        and (weight.dtype, weight.device, weight.shape[1]) == (x.dtype, x.device, x.shape[-1])
    )


def linear(x: Tensor, weight: Tensor, bias: Tensor | None) -> Tensor:
    """Return the linear map (..., C') of x (..., C).

    On CPUs in float32, oneDNN computes it. PyTorch would use MKL, which takes 10 to 60 % longer for these sizes (on an
    AMD EPYC with AVX512), and would copy the bias first.
    """
    if not _by_onednn(x, weight):
        return F.linear(x, weight, bias)
    compute: Any = _LinearFunction.apply if torch.is_grad_enabled() else _onednn_linear
    return compute(x, weight, bias)


class _Pointwise(_ConvNd):
    """Convolution of size 1, computed as a matrix product of tokens: no layout is converted."""

    def forward(self, input: Tensor) -> Tensor:
        if not faster_routes(input):
            return super().forward(input)
        return linear(input.movedim(1, -1), self.weight.flatten(1), self.bias).movedim(-1, 1)


class PointwiseConv2d(_Pointwise, nn.Conv2d):
    """Convolution of size 1 for images."""


class PointwiseConv3d(_Pointwise, nn.Conv3d):
    """Convolution of size 1 for video."""


def pointwise_conv(dim: int, out: int, ndim: int) -> nn.Module:
    """Return a convolution of size 1; `ndim` is 3 for video, 2 for images."""
    return (PointwiseConv3d if ndim == 3 else PointwiseConv2d)(dim, out, 1)


def unhooked(*modules: nn.Module) -> bool:
    """Return whether modules need not be called to compute them: nothing listens to a call, or replaces `forward`.

    A compiled network calls them all, because the faster routes of a CPU are not for it.
    """
    if torch.compiler.is_compiling():
        return False
    own = [(m._forward_hooks, m._forward_pre_hooks, m._backward_hooks, m._backward_pre_hooks) for m in modules]
    return not (any(map(any, own)) or _has_any_global_hook() or any("forward" in vars(m) for m in modules))


def is_plain(layer: Any, *kinds: type[nn.Module]) -> bool:
    """Return whether a layer of one of these kinds need not be called: it has no hooks, and its weight is a tensor."""
    return type(layer) in kinds and _is_dense(layer.weight) and unhooked(layer)


def _is_linear(layer: nn.Module) -> bool:
    return is_plain(layer, nn.Linear, PointwiseConv2d, PointwiseConv3d)


def folds(norm: nn.Module, x: Tensor) -> bool:
    """Return whether a BatchNorm can be folded into the weights of its neighbour: in inference on a CPU in float32."""
    return (
        type(norm) in (nn.BatchNorm2d, nn.BatchNorm3d)
        and not (norm.training or torch.is_grad_enabled())
        and unhooked(norm)
        # `torch.func` removes the statistics
        and all(isinstance(value, Tensor) for value in (norm.running_var, norm.weight, norm.bias))
        and _on_onednn(x)
    )


def _weights(layer: Any, norm: Any) -> tuple[Tensor, Tensor | None]:
    """Return weight (C', C) and bias (C') of a plain layer, with the BatchNorm before it folded into them."""
    weight, bias = layer.weight.flatten(1), layer.bias
    if norm is None:
        return weight, bias
    scale = norm.weight * (norm.running_var + norm.eps).rsqrt()
    shift = weight @ (norm.bias - norm.running_mean * scale)
    return weight * scale, shift if bias is None else bias + shift


def plus(residual: Tensor | None, branch: Tensor) -> Tensor:
    """Return `residual + branch`; without a residual, `branch`."""
    return branch if residual is None else residual + branch


def apply_linear(layer: Any, x: Tensor, norm: nn.Module | None = None) -> Tensor:
    """Return `layer(norm(x))` for a linear layer or a convolution of size 1.

    Without hooks, it is computed by `linear`. The layer remains an `nn.Linear`, because tools for quantization replace
    layers of exactly this class. In inference on a CPU, a BatchNorm is folded into the weights.
    """
    if norm is not None and not (_is_linear(layer) and folds(norm, x)):
        x, norm = norm(x), None
    if not _is_linear(layer) or (norm is None and type(layer) is not nn.Linear):
        return layer(x)
    tokens = x if type(layer) is nn.Linear else x.movedim(1, -1)
    out = linear(tokens, *_weights(layer, norm))
    return out if tokens is x else out.movedim(-1, 1)


def apply_feed_forward(
    first: Any, second: Any, x: Tensor, norm: nn.Module | None = None, residual: Tensor | None = None
) -> Tensor:
    """Return `second(gelu(first(norm(x))))`, plus `residual`, for two linear layers or two convolutions of size 1.

    A CPU computes one part of the tokens after the other: in inference, and in training if there are many tokens. In
    inference, it folds a BatchNorm into the weights.
    """
    plain = _is_linear(first) and _is_linear(second)
    if norm is not None and not (plain and folds(norm, x)):
        x, norm = norm(x), None
    tokens = x.movedim(1, -1) if isinstance(first, _Pointwise) else x
    if not plain or not _by_onednn(tokens, first.weight):
        return plus(residual, apply_linear(second, F.gelu(apply_linear(first, x, norm))))
    inputs: Any = (tokens, *_weights(first, norm), *_weights(second, None))
    many = tokens.shape[:-1].numel() * len(first.weight) > MANY
    if not torch.is_grad_enabled():
        added = residual if residual is None or tokens is x else residual.movedim(1, -1)
        out: Any = _in_parts(*inputs, residual=added)
        residual = None
    elif many and all(value is not None and value.requires_grad for value in inputs):
        out = _FeedForwardFunction.apply(*inputs)
    else:
        out = linear(F.gelu(linear(*inputs[:3])), *inputs[3:])
    return plus(residual, out if tokens is x else out.movedim(-1, 1))
