"""The benchmark of a network runs, and compares the networks that it measures."""

from __future__ import annotations

import json
import math
import os
import subprocess
import sys
from pathlib import Path

import model
import pytest
import torch
from torch.utils.flop_counter import FlopCounterMode

ROOT = Path(__file__).parents[2]


@pytest.mark.slow
@pytest.mark.parametrize("network", ["demo"])
def test_figures_of_both_networks_and_their_difference(network, tmp_path):
    command = [sys.executable, "benchmarks/model.py", network, "--batch", "2", "--device", "cpu", "--rounds", "1"]
    environment = {**os.environ, "PYTHONPATH": str(ROOT)}
    out = [*command, "--threads", "1", "--profile", "--json", str(tmp_path / "out.json")]
    printed = subprocess.run(out, cwd=ROOT, env=environment, check=True, capture_output=True, text=True).stdout
    assert "share of copies" in printed
    record = json.loads((tmp_path / "out.json").read_text())
    assert max(record["errors"]["ours"].values()) < 1e-4 and record["threads"] == 1
    assert all(values["cpu_s"] > 0 for values in record["products"].values()) and len(record["products"]) == 2
    for kinds in record["figures"].values():
        for values in kinds.values():
            assert values["clips_per_s"] > 0 and values["cpu_s"] > 0 and 0 < values["share_of_matrix_rate"] < 1
            assert values["peak_gib"] > 0 or not sys.platform.startswith("linux")


def test_matrix_products_are_counted_as_pytorch_counts_them():
    a, b, images = torch.ones(2, 3, 4), torch.ones(2, 4, 5), torch.ones(2, 3, 8, 8)
    linear, patches = torch.nn.Linear(4, 6), torch.nn.Conv2d(3, 7, 4, stride=4)

    def work():
        (linear(a).sum() + patches(images).sum()).backward()
        with torch.no_grad():
            _ = linear(a) @ torch.ones(2, 6, 5) + a @ b

    with model.Products() as products:
        work()
    with FlopCounterMode(display=False) as counter:
        work()
    assert sum(2 * math.prod(shape) * n for shape, n in products.shapes.items()) == counter.get_total_flops()


def test_attention_is_two_products_forward_and_four_backward():
    q, k = (torch.ones(1, 2, tokens, 8, requires_grad=True) for tokens in (3, 5))
    with model.Products() as products:
        torch.nn.functional.scaled_dot_product_attention(q, k, k).sum().backward()
    assert products.shapes == {(2, 3, 8, 5): 3, (2, 3, 5, 8): 3}
