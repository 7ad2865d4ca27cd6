"""Test the kernels of depthwise convolutions in Triton, on a GPU and in its interpreter, against double precision."""

import os
import re
import subprocess
import sys

import pytest
import torch
from torch import Tensor
from torch.nn import functional as F

triton = pytest.importorskip("triton")

# (B, T, H, W, C) and the size of the kernel: part of a tile, several parts of a clip, channels that are not aligned
CASES = [
    ((1, 3, 5, 6, 24), (5, 5, 5)),
    ((1, 8, 9, 9, 20), (3, 3, 3)),
    ((1, 11, 1, 17, 66), (3, 1, 1)),
    ((2, 1, 7, 7, 16), (1, 5, 5)),
]


def relative_errors(shape: tuple[int, ...], size: tuple[int, ...], dtype: torch.dtype, device: str) -> list[float]:
    """Return the errors of the convolution, and of the gradients of its input and its kernel."""
    from slowfast.models.depthwise_triton import convolve, kernel_gradient

    generator = torch.Generator().manual_seed(0)

    def draw(*shape: int) -> Tensor:
        return torch.randn(shape, generator=generator).to(dtype)

    x, weight, bias, grad = draw(*shape), draw(shape[-1], 1, *size), draw(shape[-1]), draw(*shape)
    exact = [value.double().requires_grad_() for value in (x.movedim(-1, 1), weight)]
    expected = F.conv3d(exact[0], exact[1], bias.double(), padding=[length // 2 for length in size], groups=shape[-1])
    expected.backward(grad.double().movedim(-1, 1))
    wanted = [expected.detach(), *(value.grad for value in exact)]
    x, weight, bias, grad = (value.to(device) for value in (x, weight, bias, grad))
    bias = torch.stack([bias, grad.new_zeros(bias.shape)], 1)[:, 0]  # its values are not adjacent
    found = [
        convolve(x, weight, bias).movedim(-1, 1),
        convolve(grad, weight.flip(2, 3, 4), None).movedim(-1, 1),
        kernel_gradient(x, grad, list(size)),
    ]
    return [float((a.cpu().double() - b).norm() / b.norm()) for a, b in zip(found, wanted, strict=True)]


@pytest.mark.gpu
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float16])
@pytest.mark.parametrize(("shape", "size"), CASES)
def test_kernels_equal_pytorch(shape, size, dtype):
    errors = relative_errors(shape, size, dtype, "cuda")
    assert max(errors) <= (1e-5 if dtype is torch.float32 else 1e-2)


@pytest.mark.slow
def test_the_interpreter_of_triton_gives_the_same():
    program = """
import torch
from triton.runtime import interpreter

patch = interpreter._patch_lang_tensor

def patch_numbers(tensor, *scope):  # the interpreter of Triton 3.6 gives NumPy 2.5 arrays of one element as numbers
    patch(tensor, *scope)
    tensor.__index__ = lambda self: int(self.handle.data.item())

interpreter._patch_lang_tensor = patch_numbers

from test_depthwise import CASES, relative_errors
for shape, size in CASES:
    print(max(relative_errors(shape, size, torch.float32, "cpu")))
"""
    paths = os.pathsep.join([os.path.dirname(__file__), *sys.path])
    done = subprocess.run(
        [sys.executable, "-c", program], env=os.environ | {"TRITON_INTERPRET": "1", "PYTHONPATH": paths},
        stdout=subprocess.PIPE, text=True, check=True,
    )  # fmt: skip
    errors = [float(line) for line in done.stdout.split()]
    assert len(errors) == len(CASES) and max(errors) < 1e-5


@pytest.mark.slow
@pytest.mark.parametrize(
    ("capability", "dtype"), [*((number, "bf16") for number in (70, 75, 80, 86, 89, 90, 100, 120)), (90, "fp32")]
)
def test_kernels_compile_for_every_generation_of_gpus(capability, dtype, monkeypatch, tmp_path):
    """A program of the largest kernels fits into the registers; no GPU is needed to compile it."""
    from triton.backends.compiler import GPUTarget
    from triton.compiler import ASTSource

    from slowfast.models import depthwise_triton as kernels

    monkeypatch.setenv("TRITON_CACHE_DIR", str(tmp_path))
    target = GPUTarget("cuda", capability, 32)
    constants = {"unit": 16, "kt": 5, "kh": 5, "kw": 5, "length": kernels.FRAMES, "whole": True}
    forward = {"positions": kernels.POSITIONS, "channels": kernels.CHANNELS}
    backward = {"positions": kernels.GRADIENT_POSITIONS, "channels": kernels.GRADIENT_CHANNELS}
    for kernel, tile, warps in (
        (kernels._convolve, forward, kernels.WARPS),
        (kernels._kernel_gradient, backward, kernels.GRADIENT_WARPS),
    ):
        fixed = constants | tile
        pointers = {"x", "weight", "bias", "grad", "out"}
        types = {
            name: "constexpr" if name in fixed else f"*{dtype}" if name in pointers else "i32"
            for name in kernel.arg_names
        }
        aligned = {(i,): [["tt.divisibility", 16]] for i, name in enumerate(kernel.arg_names) if name in pointers}
        compiled = triton.compile(ASTSource(kernel, types, fixed, aligned), target, {"num_warps": warps})
        (tmp_path / "cubin").write_bytes(compiled.asm["cubin"])
        usage = subprocess.run(
            [triton.knobs.nvidia.cuobjdump.path, "--dump-resource-usage", tmp_path / "cubin"],
            capture_output=True, text=True, check=True,
        ).stdout  # fmt: skip
        registers, stack = re.findall(r"REG:(\d+) STACK:(\d+)", usage)[-1]
        assert 32 < int(registers) <= 255 and int(stack) <= 256  # bytes per thread; 216 by Triton 3.4, 40 by 3.6


@pytest.mark.gpu
def test_custom_operators_are_described_correctly():
    from slowfast.models.depthwise_triton import convolve, kernel_gradient

    x, weight = torch.randn(2, 3, 4, 5, 24, device="cuda"), torch.randn(24, 1, 3, 3, 3, device="cuda")
    torch.library.opcheck(convolve, (x, weight, None))
    torch.library.opcheck(kernel_gradient, (x, x, [3, 3, 3]))
