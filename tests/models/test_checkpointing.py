"""Blocks that recompute their activations: all, or all but the results of products; same gradients, less memory."""

from __future__ import annotations

import weakref
from typing import Any

import pytest
import torch
from small_networks import small, video_for
from torch import Tensor, nn
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves

WAYS = {"none": (False, "nothing"), "all": (True, "nothing"), "but products": (True, "products")}
PRODUCTS = (torch.ops.aten.addmm, torch.ops.aten.mm, torch.ops.aten.bmm, torch.ops.mkldnn._linear_pointwise)
FAMILIES = ("uniformer", "uniformer_split", "uniformer_image", "light", "v2")


class Allocations(TorchDispatchMode):
    """Count the bytes of the tensors that operations make, as long as these exist, and the products."""

    def __init__(self) -> None:
        super().__init__()
        self.now = self.peak = self.products = 0
        self.known: set[int] = set()

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        made = func(*args, **(kwargs or {}))
        self.products += func.overloadpacket in PRODUCTS
        for tensor in tree_leaves(made):
            if torch.is_tensor(tensor):
                self.add(tensor.untyped_storage())
        return made

    def add(self, storage: Any) -> None:
        if storage._cdata not in self.known:
            self.known.add(storage._cdata)
            self.now += storage.nbytes()
            self.peak = max(self.peak, self.now)
            weakref.finalize(storage, self.remove, storage._cdata, storage.nbytes())

    def remove(self, number: int, size: int) -> None:
        self.known.discard(number)
        self.now -= size


def make(name: str, way: str, **options: Any) -> nn.Module:
    model = small(name, **options).train()
    model.set_grad_checkpointing(*WAYS[way])
    return model


def loss_of(model: nn.Module, video: Tensor) -> Tensor:
    torch.manual_seed(7)
    logits = model(video)
    return torch.stack(logits if isinstance(logits, tuple) else (logits,)).square().sum()


def gradients(model: nn.Module, video: Tensor) -> list[Tensor]:
    loss_of(model, video).backward()
    return [parameter.grad.clone() for parameter in model.parameters() if parameter.grad is not None]


@pytest.mark.slow
@pytest.mark.parametrize("amp", [False, True])
@pytest.mark.parametrize("name", FAMILIES)
def test_gradients_and_statistics_are_those_without_checkpointing(name, amp):
    results = []
    dropout = {"backbone_drop_path_rate": 0.3} if name == "v2" else {"drop_depth_rate": 0.3, "dropout_rate": 0.1}
    for blocks, keep in [*WAYS.values(), ([2] if name == "v2" else [0, 1, 2, 0], "nothing")]:
        model = small(name, **dropout).train()
        model.set_grad_checkpointing(blocks, keep)
        with torch.autocast("cpu", torch.bfloat16, enabled=amp):
            results.append([*gradients(model, video_for(name)), *model.buffers()])
    for other in results[1:]:
        torch.testing.assert_close(other, results[0], rtol=1e-5, atol=1e-6)


@pytest.mark.parametrize("name", FAMILIES)
def test_products_are_computed_once_and_other_results_take_no_memory(name):
    counted, kept = {}, {}
    for way in WAYS:
        model, video = make(name, way), video_for(name, batch=4)
        with Allocations() as counted[way]:
            loss = loss_of(model, video)
            kept[way] = counted[way].now
            loss.backward()
    none, everything, products = counted.values()
    assert kept["all"] < kept["but products"] < kept["none"]  # for the backward pass
    assert everything.peak <= products.peak < none.peak
    assert none.products == products.products < everything.products


def test_draws_of_dropout_are_repeated():
    results = [gradients(make("uniformer", way, attention_dropout_rate=0.3), video_for("uniformer")) for way in WAYS]
    for other in results[1:]:
        torch.testing.assert_close(other, results[0], rtol=1e-5, atol=1e-6)
