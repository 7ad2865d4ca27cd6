"""Test the layers that compute convolutions by other routes: values and gradients equal those of plain convolutions."""

from __future__ import annotations

import copy
from collections.abc import Callable
from typing import Any

import pytest
import torch
from small_networks import SHALLOW, SMALL, small, video_for
from torch import Tensor, nn
from torch.autograd import forward_ad
from torch.utils.flop_counter import FlopCounterMode

from slowfast.models import linear as linear_module
from slowfast.models.depthwise import add_depthwise, depthwise_conv
from slowfast.models.layers import CONV, DropPath, Mlp, OverlapPatchEmbed, PatchEmbed
from slowfast.models.linear import X86_VECTORS, apply_linear, linear, pointwise_conv

# (B, C, *grid): one clip, clips shorter than the kernel, channels that are no multiple of a vector, images
SHAPES = [(1, 16, 4, 9, 10), (2, 56, 1, 7, 7), (3, 16, 2, 6, 5), (2, 5, 7, 4, 8), (4, 28, 14, 14)]


def plain(layer: Any) -> nn.Module:
    """Return PyTorch's convolution with the weights of `layer`, in float64."""
    kind: Any = nn.Conv3d if isinstance(layer, nn.Conv3d) else nn.Conv2d
    same = (layer.in_channels, layer.out_channels, layer.kernel_size, layer.stride, layer.padding)
    conv = kind(*same, groups=layer.groups, dtype=torch.float64)
    conv.load_state_dict(layer.state_dict())
    return conv


def results(layer: nn.Module, x: Tensor, weight: Tensor) -> list[Tensor]:
    """Return the output and the gradients of the input and of all parameters."""
    x = x.clone().requires_grad_()
    out = layer(x)
    (out * weight).sum().backward()
    return [out.detach(), *(value.grad.double() for value in (x, *layer.parameters()))]


def layers(shape: tuple[int, ...]) -> list[Any]:
    channels, ndim = shape[1], len(shape) - 2
    torch.manual_seed(0)
    patches = PatchEmbed(channels, 24, (1, 2, 2)[-ndim:], (1, 2, 2)[-ndim:], (0, 0, 0)[-ndim:]).proj
    return [
        depthwise_conv(channels, 3, ndim),
        depthwise_conv(channels, 5, ndim),
        pointwise_conv(channels, 24, ndim),
        patches,
    ]


@pytest.mark.parametrize("shape", SHAPES)
@pytest.mark.parametrize("last", [True, False])
@pytest.mark.parametrize("dtype", [torch.float32, torch.float64, torch.bfloat16])
def test_outputs_and_gradients_equal_those_of_a_plain_convolution(shape, last, dtype):
    x = torch.randn(shape)
    x = x.movedim(1, -1).contiguous().movedim(-1, 1) if last else x
    limit = {torch.float32: 1e-5, torch.float64: 1e-12, torch.bfloat16: 3e-2}[dtype]
    for layer in layers(shape):
        double = plain(layer)
        weight = torch.randn_like(layer(x))
        with torch.autocast("cpu", dtype=torch.bfloat16, enabled=dtype is torch.bfloat16):
            kind = torch.float32 if dtype is torch.bfloat16 else dtype
            found = results(layer.to(kind), x.to(kind), weight)
        for value, expected in zip(found, results(double, x.double(), weight.double()), strict=True):
            assert value.shape == expected.shape
            assert (value - expected).norm() <= limit * expected.norm(), (layer, dtype)


class Residual(nn.Module):
    """Add a layer to its input."""

    def __init__(self, layer: nn.Module, add: Callable[[nn.Module, Tensor], Tensor]) -> None:
        super().__init__()
        self.layer, self.add = layer, add

    def forward(self, x: Tensor) -> Tensor:
        return self.add(self.layer, x)


@pytest.mark.parametrize("shape", SHAPES)
@pytest.mark.parametrize("dtype", [torch.float32, torch.float64, torch.bfloat16])
def test_a_depthwise_convolution_adds_its_input(shape, dtype):
    torch.manual_seed(0)
    layer: Any = depthwise_conv(shape[1], 3, len(shape) - 2)
    x, weight = torch.randn(shape), torch.randn(shape)
    layer.weight.data *= 0.1
    expected = results(Residual(plain(layer), lambda layer, x: x + layer(x)), x.double(), weight.double())
    kind = torch.float64 if dtype is torch.float64 else torch.float32
    with torch.autocast("cpu", dtype=torch.bfloat16, enabled=dtype is torch.bfloat16):
        found = results(Residual(layer, add_depthwise).to(kind), x.to(kind), weight)
    # autocast rounds the branch only, and the gradients of its parameters
    limit = {torch.float32: 1e-6, torch.float64: 1e-12, torch.bfloat16: 5e-4}[dtype]
    for value, wanted, factor in zip(found, expected, (1, 1, 10, 10), strict=True):
        assert (value - wanted).norm() <= factor * limit * wanted.norm()


@pytest.mark.parametrize("size", [(1, 16, 16), (2, 16, 16), (3, 16, 16), (3, 1, 2), (2, 2, 1)])
@pytest.mark.parametrize("kernel", [(3, 2, 2), (3, 3, 3)])
def test_bfloat16_gradients_of_small_clips_are_those_of_float32(kernel, size):
    torch.manual_seed(0)
    conv = CONV[3](16, 32, kernel, (1, 2, 2), tuple(length // 2 for length in kernel))
    x, found = torch.randn(2, 16, *size).to(memory_format=torch.channels_last_3d), []
    weight = torch.randn(conv(x).shape)
    for enabled in (False, True):
        conv.zero_grad()
        with torch.autocast("cpu", dtype=torch.bfloat16, enabled=enabled):
            found.append(results(conv, x, weight))
    for expected, value in zip(*found, strict=True):
        assert (value - expected).norm() <= 0.01 * expected.norm()


@pytest.mark.parametrize("more", [{"groups": 4}, {"dilation": 2, "padding": 2}])
def test_bfloat16_convolutions_of_small_clips_keep_their_groups_and_dilation(more):
    conv, x = CONV[3](16, 32, 3, **{"padding": 1, **more}), torch.randn(2, 16, 2, 8, 8)
    expected = conv(x)
    with torch.autocast("cpu", dtype=torch.bfloat16):
        found = conv(x)
    assert found.shape == expected.shape and (found - expected).norm() <= 0.01 * expected.norm()


def test_second_derivatives_of_a_depthwise_convolution():
    layer = depthwise_conv(16, 3, 3)
    x, gradients = torch.randn(2, 16, 3, 5, 5), []
    for conv, value in ((layer, x.clone()), (plain(layer), x.double())):
        value.requires_grad_()
        first = torch.autograd.grad(conv(value).square().sum(), [value, *conv.parameters()], create_graph=True)
        gradients.append(
            torch.autograd.grad(torch.stack([g.square().sum() for g in first]).sum(), [value, *conv.parameters()])
        )
    for found, expected in zip(*gradients, strict=True):
        assert (found - expected).norm() <= 1e-4 * expected.norm()


@pytest.mark.skipif(not X86_VECTORS, reason="on other CPUs, the convolutions of PyTorch choose the memory format")
@pytest.mark.parametrize("name", ["uniformer", "uniformer_image", "uniformer_plus_aux_image", "light"])
@pytest.mark.parametrize("batch", [1, 2])
def test_the_channels_are_last_in_every_block_and_its_gradient(name, batch):
    model, strides = small(name).train(), []

    def keep(_module, _inputs, out):
        maps = out[0] if isinstance(out, tuple) else out
        strides.append((maps.stride(), maps.shape))
        maps.register_hook(lambda grad: strides.append((grad.stride(), grad.shape)))

    for part, module in model.named_modules():
        if part.count(".") == 1 and part.startswith("blocks"):
            module.register_forward_hook(keep)
    out = model(video_for(name, batch))
    (torch.stack(out) if isinstance(out, tuple) else out).square().sum().backward()
    assert len(strides) == 2 * sum(model.depth)
    for stride, shape in strides:
        assert stride[1:] == torch.empty(shape[0], *shape[2:], shape[1]).movedim(-1, 1).stride()[1:]


@pytest.mark.slow
@pytest.mark.parametrize("name", [name for name in SMALL if "frozen" not in name])
def test_a_training_compiles_without_a_graph_break(name):
    """Compile whole networks, as users may; tests/engine/test_setup.py compiles blocks, as training and test do."""
    torch.compiler.reset()
    options = {} if name.startswith("light") else SHALLOW[name]  # their blocks use scores of earlier blocks
    model, video = small(name, **options).train(), video_for(name)
    results = []
    for run in (model, torch.compile(model, backend="eager", fullgraph=True)):
        out = run(video)
        out = torch.stack(out) if isinstance(out, tuple) else out
        out.square().sum().backward()
        results.append([out.detach(), *(p.grad.clone() for p in model.parameters() if p.grad is not None)])
        model.zero_grad()
    for eager, compiled in zip(*results, strict=True):
        torch.testing.assert_close(compiled, eager, rtol=1e-5, atol=1e-5)


def test_a_compiled_network_takes_the_same_routes_and_an_exported_one_those_of_pytorch():
    layer, clip, called = pointwise_conv(8, 8, 3), torch.randn(1, 8, 2, 4, 4), []

    def backend(graph: torch.fx.GraphModule, _: object) -> Callable[..., object]:
        called.extend(str(node.target) for node in graph.graph.nodes if node.op == "call_function")
        return graph.forward

    torch.compile(layer, backend=backend, fullgraph=True)(clip)
    exported = str(torch.export.export(layer, (clip,)).graph)
    if X86_VECTORS:
        assert any("linear" in name for name in called) and not any("conv" in name for name in called)
    assert "conv" in exported and "linear" not in exported
    torch.compiler.reset()


@pytest.mark.parametrize("shape", [(3, 16), (2, 7, 16), (2, 3, 400, 16)])
@pytest.mark.parametrize("with_bias", [True, False])
def test_a_linear_layer_has_the_values_and_gradients_of_pytorch(shape, with_bias):
    torch.manual_seed(0)
    inputs = [torch.randn(shape), torch.randn(24, 16), *([torch.randn(24)] if with_bias else [])]
    results = []
    for compute, dtype in ((linear, torch.float32), (nn.functional.linear, torch.float64)):
        values = [value.to(dtype, copy=True).requires_grad_() for value in inputs]
        out = compute(*values, *([] if with_bias else [None]))
        first = torch.autograd.grad(out.square().sum(), values, create_graph=True)
        second = torch.autograd.grad(torch.stack([value.square().sum() for value in first]).sum(), values)
        results.append([value.detach().double() for value in (out, *first, *second)])
    for found, expected in zip(*results, strict=True):
        torch.testing.assert_close(found, expected, rtol=1e-4, atol=1e-4 * float(expected.abs().max()))


LAYOUTS: dict[str, Callable[[], tuple[Tensor, Tensor]]] = {
    "bias of a column": lambda: (torch.randn(24, 16), torch.randn(48)[::2]),
    "bias of one value": lambda: (torch.randn(24, 16), torch.randn(1).expand(24)),
    "transposed weight": lambda: (torch.randn(16, 24).t(), torch.randn(24)),
    "sparse weight": lambda: (torch.randn(24, 16).to_sparse_csr(), torch.randn(24)),
}


@pytest.mark.filterwarnings("ignore:Sparse")
@pytest.mark.parametrize("make", LAYOUTS.values(), ids=LAYOUTS)
def test_a_linear_layer_may_have_weights_of_any_layout(make):
    layer, x = nn.Linear(16, 24), torch.randn(5, 16)
    layer.weight, layer.bias = map(nn.Parameter, make())
    with torch.no_grad():
        torch.testing.assert_close(apply_linear(layer, x), layer(x), rtol=1e-4, atol=1e-5)


def test_a_linear_layer_of_one_token():
    layer, x = nn.Linear(16, 24), torch.randn(16, requires_grad=True)
    found, expected = (torch.autograd.grad(out.square().sum(), x) for out in (apply_linear(layer, x), layer(x)))
    torch.testing.assert_close(found, expected)


@pytest.mark.parametrize("grad", [True, False])
def test_forward_mode_differentiation_of_a_linear_layer(grad):
    layer, x, tangent = nn.Linear(16, 24), torch.randn(5, 16), torch.randn(5, 16)
    with torch.set_grad_enabled(grad), forward_ad.dual_level():
        found = forward_ad.unpack_dual(apply_linear(layer, forward_ad.make_dual(x, tangent))).tangent
        torch.testing.assert_close(found, tangent @ layer.weight.t())


@pytest.mark.parametrize("many", [linear_module.MANY, 0])
def test_several_gradients_at_once(many, monkeypatch):
    monkeypatch.setattr(linear_module, "MANY", many)
    torch.manual_seed(0)
    model, video = small("uniformer").eval(), video_for("uniformer", 1).requires_grad_()
    logits, ones = model(video), torch.eye(5)[:, None]

    def gradient(of: Tensor, batched: bool = False) -> Tensor:
        return torch.autograd.grad(logits, video, of, retain_graph=True, is_grads_batched=batched)[0]

    each = torch.stack([gradient(one) for one in ones])
    for together in (gradient(ones, batched=True), torch.vmap(gradient)(ones)):
        torch.testing.assert_close(together, each, rtol=1e-4, atol=1e-6)


@pytest.mark.parametrize("conv_ndim", [None, 2, 3])
@pytest.mark.parametrize("last", [True, False])
def test_feed_forward_layers_in_parts_have_the_values_and_gradients_of_pytorch(conv_ndim, last, monkeypatch):
    monkeypatch.setattr(linear_module, "MANY", 0)
    monkeypatch.setattr(linear_module, "PART", 0)  # the smallest parts
    torch.manual_seed(0)
    mlp = Mlp(16, 40, conv_ndim=conv_ndim)
    x = torch.randn(3, *[11] * (conv_ndim or 2), 16)
    x = x.movedim(-1, 1) if conv_ndim else x
    x = x if last else x.contiguous()
    results = []
    for layer, value in ((mlp, x), (copy.deepcopy(mlp).double(), x.double())):
        inputs = [value.requires_grad_(), *layer.parameters()]
        out = layer(value)
        assert out.grad_fn is not None
        plain = torch.autograd.grad(out.square().sum(), inputs, retain_graph=True)
        first = torch.autograd.grad(out.square().sum(), inputs, create_graph=True)
        second = torch.autograd.grad(torch.stack([g.square().sum() for g in first]).sum(), inputs)
        added = [layer(value, residual=3 * value)]
        with torch.no_grad():
            added += [layer(value, residual=3 * value), 3 * value + layer(value)]
        results.append([each.detach().double() for each in (*added, out, *plain, *first, *second)])
    for found, expected in zip(*results, strict=True):
        torch.testing.assert_close(found, expected, rtol=1e-4, atol=1e-4 * float(expected.abs().max()))


def test_gradients_of_feed_forward_layers_that_follow_each_other(monkeypatch):
    monkeypatch.setattr(linear_module, "MANY", 0)
    torch.manual_seed(0)
    mlp, x = Mlp(16, 40), torch.randn(3, 5, 16, requires_grad=True)
    first, again = (
        torch.autograd.grad(mlp(mlp(x)).square().sum(), [x, *mlp.parameters()], create_graph=create)
        for create in (False, True)
    )
    torch.testing.assert_close(first, again, rtol=1e-5, atol=1e-4)


@pytest.mark.parametrize("part", ["fc1", "fc2"])
def test_feed_forward_layers_may_be_replaced(part):
    """A layer with a weight of another kind is called, after the BatchNorm."""

    class Other(Tensor):
        pass

    torch.manual_seed(0)
    mlp, norm, x = Mlp(8, 12, conv_ndim=3), nn.BatchNorm3d(8), torch.randn(2, 8, 2, 3, 3)
    norm(x)
    norm.eval()
    expected = mlp(norm(x))
    layer: Any = mlp.get_submodule(part)
    weight = layer.weight.detach().as_subclass(Other)
    del layer.weight
    layer.weight = weight
    with torch.no_grad():
        torch.testing.assert_close(mlp(x, norm).as_subclass(Tensor), expected)


@pytest.mark.parametrize("name", ["uniformer", "light", "uniformer_plus_aux_image"])
def test_inference_folds_layers_and_calls_hooks(name):
    torch.manual_seed(0)
    model, video, seen = small(name), video_for(name, 2), []
    for _ in range(2):
        model.train()(video)  # statistics that change something
    one_by_one = model.eval()(video)
    unused = {"aux_head", "norm_cls", "head_cls"} if name != "uniformer_plus_aux_image" else set()
    named = model.named_modules()
    layers = {m for path, m in named if path not in unused and (type(m) is Mlp or not list(m.children()))}
    with torch.no_grad():
        torch.testing.assert_close(model(video), one_by_one, rtol=1e-5, atol=1e-5)
        for layer in layers:
            layer.register_forward_hook(lambda module, *_: seen.append(module))
        torch.testing.assert_close(model(video), one_by_one, rtol=1e-5, atol=1e-5)
        assert set(seen) == layers


class Doubled(nn.Sequential):
    def forward(self, input: Tensor) -> Tensor:
        return 2 * super().forward(input)


def without_bias() -> nn.Module:
    """Make what `bias=False` of recent releases makes."""
    norm = nn.BatchNorm3d(8).eval()
    norm.register_parameter("bias", None)
    return norm


REPLACED: dict[str, Callable[[nn.Sequential], nn.Module]] = {
    "relu": lambda layers: nn.Sequential(*layers[:2], nn.ReLU(), *layers[3:]),
    "tanh": lambda layers: nn.Sequential(*layers[:2], nn.GELU(approximate="tanh"), *layers[3:]),
    "longer": lambda layers: nn.Sequential(*layers, nn.GELU()),
    "shorter": lambda layers: layers[:4],
    "no norm": lambda layers: nn.Sequential(layers[0], nn.Identity(), *layers[2:]),
    "norm without bias": lambda layers: nn.Sequential(layers[0], without_bias(), *layers[2:]),
    "one convolution": lambda layers: layers[0],
    "other sequence": lambda layers: Doubled(*layers),
}


@pytest.mark.parametrize("change", REPLACED.values(), ids=REPLACED)
def test_inference_computes_replaced_layers_of_a_stem(change):
    torch.manual_seed(0)
    stem = OverlapPatchEmbed((3, 8, 16), ((1, 2, 2), (1, 2, 2))).eval()
    stem.proj = change(stem.proj)
    x = 4 * torch.randn(1, 3, 2, 16, 16)
    with torch.no_grad():
        torch.testing.assert_close(stem(x), stem.proj(x), rtol=1e-5, atol=1e-5)


def test_a_norm_without_bias_is_not_folded():
    torch.manual_seed(0)
    mlp, norm, x = Mlp(8, 12, conv_ndim=3), without_bias(), torch.randn(2, 8, 2, 3, 3)
    with torch.no_grad():
        torch.testing.assert_close(mlp(x, norm), mlp(norm(x)))


def test_hooks_of_feed_forward_layers_see_normalized_values():
    torch.manual_seed(0)
    model, video, seen = small("uniformer").eval(), video_for("uniformer"), []
    block: Any = model.get_submodule("blocks1.0")
    block.norm2.running_mean.fill_(3.0)
    block.mlp.register_forward_hook(lambda module, inputs, output: seen.append(inputs[0].mean()))
    with torch.no_grad():
        model(video)
    assert seen[0] < -1


@pytest.mark.parametrize("grad", [True, False])
def test_operations_can_be_counted(grad):
    counts = []
    for device in ("cpu", "meta"):
        layers = nn.Sequential(pointwise_conv(8, 16, 3), Mlp(16, 24, conv_ndim=3), nn.Linear(4, 5)).to(device)
        with torch.set_grad_enabled(grad), FlopCounterMode(display=False) as counter:
            layers(torch.zeros(2, 8, 2, 3, 4, device=device))
        counts.append(counter.get_total_flops())
    assert counts == [2 * 48 * (8 * 16 + 2 * 16 * 24) + 2 * 192 * 4 * 5] * 2


def test_hooks_of_a_linear_layer_are_called():
    layer, seen = nn.Linear(4, 3), []
    layer.register_forward_hook(lambda module, inputs, output: seen.append(output.shape))
    apply_linear(layer, torch.randn(2, 4))
    assert seen == [(2, 3)]


def test_routes_leave_what_they_cannot_compute_to_pytorch():
    layer, x = nn.Linear(4, 3), torch.randn(5, 4)
    torch.testing.assert_close(torch.func.vmap(lambda row: apply_linear(layer, row))(x), layer(x))
    layer.forward = lambda input: input  # as programs do that load weights late
    assert apply_linear(layer, x) is x
    with pytest.raises(RuntimeError, match="shapes cannot be multiplied"):
        linear(torch.randn(5, 7), torch.randn(3, 4), None)


def test_rates_of_stochastic_depth_survive_the_meta_device():
    with torch.device("meta"):
        layer = DropPath(0.25)
    assert layer.to_empty(device="cpu").kept == 0.75


@pytest.mark.parametrize("ndim", [2, 3])
def test_a_depthwise_convolution_of_no_clips_has_no_gradient(ndim):
    layer = depthwise_conv(8, 3, ndim)
    layer(torch.randn(0, 8, *[5] * ndim)).sum().backward()
    assert not layer.get_parameter("weight").grad.any()
