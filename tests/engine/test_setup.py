"""Number formats of training and test."""

from __future__ import annotations

import platform

import pytest
import torch
from small_networks import SHALLOW, SMALL, small, video_for
from torch import nn

from slowfast.config import get_cfg
from slowfast.engine.setup import Inference, amp_dtype, compile_blocks, inference_dtype, place
from slowfast.models import UniFormer
from slowfast.models.layers import DropPath

CPU = torch.device("cpu")
OLD = tuple(map(int, torch.__version__.split(".")[:2])) < (2, 14)


@pytest.mark.parametrize(
    ("enabled", "name", "expected"),
    [(True, "auto", None), (True, "bfloat16", torch.bfloat16), (False, "bfloat16", None)],
)
def test_the_cpu_trains_in_float32_unless_a_lower_precision_is_named(enabled, name, expected):
    cfg = get_cfg()
    cfg.TRAIN.MIXED_PRECISION, cfg.TRAIN.AMP_DTYPE = enabled, name
    assert amp_dtype(cfg, CPU) is expected


@pytest.mark.parametrize(
    ("machine", "fast"),
    [
        ("x86_64", False),
        ("aarch64", torch.backends.mkldnn.is_available() and torch.ops.mkldnn._is_mkldnn_bf16_supported()),
    ],
)
def test_a_cpu_without_instructions_for_bfloat16_is_reported(monkeypatch, caplog, machine, fast):
    monkeypatch.setattr(platform, "machine", lambda: machine)
    monkeypatch.setattr(torch.cpu, "_is_avx512_bf16_supported", lambda: False)  # as on every ARM processor
    cfg = get_cfg()
    cfg.TEST.AMP_DTYPE = "bfloat16"
    assert inference_dtype(cfg, CPU) is torch.bfloat16
    assert len(caplog.records) == (not fast)


@pytest.mark.parametrize("name", ["float32", "bfloat16", "float16"])
def test_a_test_computes_in_its_number_format(name):
    cfg = get_cfg()
    cfg.TEST.AMP_DTYPE = name
    model = nn.Sequential(nn.Linear(8, 4))
    types = []
    model[0].register_forward_hook(lambda module, inputs, output: types.append(output.dtype))
    Inference(model, inference_dtype(cfg, CPU), 2, compiled=False)(torch.randn(2, 8))
    assert types == [getattr(torch, name)] and next(model.parameters()).dtype is torch.float32


@pytest.mark.slow
@pytest.mark.parametrize("name", [name for name in SMALL if name not in ("uniformer_image", "v2_frozen")])
def test_blocks_of_every_family_are_compiled_once_for_all_batches(name, graphs):
    torch._dynamo.utils.counters.clear()
    model = small(name, **SHALLOW[name])
    network, made = Inference(model, None, 4, compiled=True), set[int]()
    with torch.no_grad():
        for clips in (4, 3, 1, 4):
            video = video_for(name, batch=clips)
            found = network(video)
            made.add(len(graphs))
            with torch.compiler.set_stance("force_eager"):
                torch.testing.assert_close(found, model(video), rtol=1e-3, atol=1e-4)
    assert len(made) == 1
    network.train()
    assert model.training
    outputs = model(video_for(name, batch=4))
    outputs = outputs if isinstance(outputs, tuple) else (outputs,)
    torch.stack([output.square().mean() for output in outputs]).sum().backward()
    assert len(graphs) > max(made) > 0
    assert not torch._dynamo.utils.counters["graph_break"]
    assert all(p.grad is not None and p.grad.isfinite().all() for p in model.parameters() if p.requires_grad)


def test_blocks_with_other_rates_of_stochastic_depth_share_their_code(graphs):
    options = {"depth": [2, 2, 4, 2], "embed_dim": [16, 16, 32, 32], "head_dim": 32, "drop_depth_rate": 0.2}
    model = UniFormer(num_classes=3, **options).train()
    compile_blocks(model)
    rates = [module.rate for module in model.modules() if isinstance(module, DropPath)]
    model(torch.randn(2, 3, 4, 64, 64)).sum().backward()
    assert len(set(rates)) == 10 and len(graphs) == 5  # one per stage, and one for the first block, which drops nothing


@pytest.mark.parametrize("frames", [4, 8])
def test_gradients_in_bfloat16_are_close_to_those_in_float32(frames):
    """Some gradients of a depthwise convolution over fewer frames than its kernel are uninitialised memory there."""
    model = small("uniformer").train()
    place(model, CPU)
    video = video_for("uniformer", frames=frames).contiguous(memory_format=torch.channels_last_3d)
    gradients = []
    for enabled in (False, True):
        model.zero_grad()
        with torch.autocast("cpu", dtype=torch.bfloat16, enabled=enabled):
            loss = nn.functional.cross_entropy(model(video), torch.tensor([1, 2]))
        loss.backward()
        gradients.append({name: value.grad for name, value in model.named_parameters()})
    total = torch.cat([gradient.flatten() for gradient in gradients[0].values()]).norm()
    for name, exact in gradients[0].items():
        error = (gradients[1][name] - exact).norm() / torch.maximum(exact.norm(), 1e-3 * total)
        # older releases of PyTorch sum the gradients of the biases of norms in bfloat16: 0.69 in 2.8
        assert error < (0.8 if "norm" in name and OLD else 0.3), (name, error)
