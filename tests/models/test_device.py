"""Test, without a GPU, that networks compute on the GPU that contains their weights, with simulated tensors."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import pytest
import torch
from small_networks import SMALL, small, video_for
from torch._subclasses.fake_tensor import FakeTensorMode
from torch.func import functional_call
from torch.utils._python_dispatch import TorchDispatchMode

from slowfast.models import depthwise


class Devices(TorchDispatchMode):
    """Collect the devices of all results; simulated tensors already refuse operands of different devices."""

    def __init__(self) -> None:
        super().__init__()
        self.found: set[str] = set()

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        out = func(*args, **(kwargs or {}))
        results = out if isinstance(out, tuple) else (out,)
        self.found |= {value.device.type for value in results if torch.is_tensor(value)}
        return out


@pytest.fixture(params=[False, True])
def half(request) -> Iterator[bool]:
    """Enable autocast in bfloat16 or not; `torch.autocast` ignores devices that the machine does not have."""
    torch.set_autocast_enabled("cuda", request.param)
    torch.set_autocast_dtype("cuda", torch.bfloat16)
    yield request.param
    torch.set_autocast_enabled("cuda", False)
    torch.set_autocast_dtype("cuda", torch.float16)  # the default
    torch.clear_autocast_cache()
    depthwise._has_triton.cache_clear()  # simulated tensors run no kernels, real ones may


@pytest.mark.skipif(torch.__version__ < "2.11", reason="older releases need a driver for simulated CUDA tensors")
@pytest.mark.filterwarnings("ignore:CUDA is not available")
@pytest.mark.parametrize("training", [False, True])
@pytest.mark.parametrize("name", SMALL)
def test_a_network_computes_on_the_device_of_its_weights(name, training, half):
    model, clips = small(name).train(training), video_for(name)
    tensors = {**dict(model.named_parameters()), **dict(model.named_buffers())}
    with FakeTensorMode(), Devices() as devices, torch.set_grad_enabled(training):
        simulated = {key: torch.empty(value.shape, dtype=value.dtype, device="cuda") for key, value in tensors.items()}
        clips = torch.empty(clips.shape, device="cuda")
        outputs = functional_call(model, simulated, clips)
    logits = outputs[0] if isinstance(outputs, tuple) else outputs
    assert devices.found == {"cuda"} and logits.shape == (2, 5)
    assert logits.dtype == (torch.bfloat16 if half else torch.float32)
