"""Compare networks of MMAction2, and a checkpoint that its training saved, with those of this package."""

from __future__ import annotations

import lzma
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from torch import nn

from slowfast.models.timm_tower import VisionTower
from slowfast.models.uniformer import UniFormer
from slowfast.models.uniformerv2 import UniFormerV2
from slowfast.weights.layouts import to_mmaction2
from slowfast.weights.load import load_weights
from slowfast.weights.tensors import load_tensors

CHECKPOINT = "mmaction2_epoch_1.pth.xz"


def build(options: dict[str, Any], num_classes: int) -> nn.Module:
    """Return the network with the options of a backbone of MMAction2."""
    if options["type"] == "UniFormer":
        names = {"depth", "embed_dim", "head_dim", "mlp_ratio"} & options.keys()
        return UniFormer(num_classes=num_classes, **{name: options[name] for name in names}).eval()
    tower = VisionTower(
        width=options["width"],
        layers=options["layers"],
        heads=options["heads"],
        patch=options["patch_size"],
        resolution=options["input_resolution"],
    )
    names = {"return_list", "n_head", "mlp_dropout", "dw_reduction", "no_lmhra", "double_lmhra", "temporal_downsample"}
    given = {name: options[name] for name in names}
    return UniFormerV2(num_classes=num_classes, backbone=tower, **given).eval()


def logits_of(model: nn.Module, entry: dict[str, Any], golden_input) -> np.ndarray:
    for layer in model.modules():
        if isinstance(layer, nn.LayerNorm):
            layer.eps = 1e-5  # of all LayerNorms there; blocks of the authors' UniFormer have 1e-6
    with torch.no_grad():
        return model(golden_input(entry["input_seed"], entry["input_shape"]))[0].numpy()


@pytest.mark.parametrize("name", ["UniFormer", "UniFormerV2", "UniFormerV2 with local blocks"])
def test_networks_of_mmaction2_give_their_logits(name, golden, golden_state, golden_input):
    entry = golden("mmaction2.json.gz")[name]
    shapes = {key: tuple(shape) for key, shape in entry["shapes"].items()}
    state = golden_state({key: torch.empty(shape) for key, shape in shapes.items()})
    model = build(entry["options"], len(entry["logits"]))
    report = load_weights(model, {"meta": {}, "state_dict": state})
    assert report.layout == f"MMAction2 {entry['options']['type']}" and len(report.loaded) == len(state)
    assert logits_of(model, entry, golden_input) == pytest.approx(np.array(entry["logits"]), abs=2e-6)

    written = to_mmaction2(model.state_dict())
    assert {key: tuple(value.shape) for key, value in written.items()} == shapes
    assert all(torch.equal(written[key], state[key].to(written[key].dtype)) for key in shapes)


def test_a_checkpoint_that_mmaction2_saved_gives_its_averaged_logits(golden, golden_input, tmp_path):
    """MMEngine's `EMAHook` puts the averaged weights into `state_dict`."""
    path = tmp_path / "epoch_1.pth"
    path.write_bytes(lzma.decompress((Path(__file__).parents[1] / "golden" / CHECKPOINT).read_bytes()))
    content = load_tensors(path)
    assert {"message_hub", "optimizer", "param_schedulers", "ema_state_dict"} <= content.keys()
    entry = golden("mmaction2.json.gz")[CHECKPOINT]
    model = build(entry["options"], len(entry["logits"]))
    report = load_weights(model, content)
    assert len(report.loaded) == len(content["state_dict"]) and not report.left_out
    assert logits_of(model, entry, golden_input) == pytest.approx(np.array(entry["logits"]), abs=1e-6)

    averaged, current = content["state_dict"], content["ema_state_dict"]
    assert not torch.equal(averaged["cls_head.fc_cls.weight"], current["module.cls_head.fc_cls.weight"])
