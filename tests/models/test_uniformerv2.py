"""Test UniFormerV2 against the official implementation, and with further frame sizes and counts."""

from __future__ import annotations

import gzip
import json
from dataclasses import replace
from pathlib import Path

import pytest
import torch

from slowfast.config import get_cfg
from slowfast.config.rules import patch_size
from slowfast.models import build_model
from slowfast.models.image_vit import TOWERS, resize_position_embedding
from slowfast.models.timm_tower import VisionTower
from slowfast.models.uniformerv2 import LocalUniBlock, UniFormerV2
from slowfast.optim.losses import soft_cross_entropy

GOLDEN = Path(__file__).parents[1] / "golden" / "uniformerv2.json.gz"
VARIANTS = json.loads(gzip.decompress(GOLDEN.read_bytes()))
# with every option; weights/test_layouts.py compares the logits of the network without local attention
FULL = "uniformerv2_b16_16x224_ssv2"
TOWER = VisionTower(width=32, layers=3, heads=4, patch=8, resolution=32)


def configured(options: dict) -> torch.nn.Module:
    cfg = get_cfg()
    cfg.merge_from_list([item for pair in options.items() for item in pair])
    return build_model(cfg)


def small(**options) -> UniFormerV2:
    torch.manual_seed(0)
    return UniFormerV2(**{"num_classes": 5, "backbone": TOWER, "return_list": (1, 2), "n_head": 4, **options})


@pytest.mark.parametrize("name", VARIANTS)
def test_names_and_shapes_are_the_official_ones(name):
    with torch.device("meta"):
        model = configured(VARIANTS[name]["config"])
    assert [[key, list(value.shape)] for key, value in model.state_dict().items()] == VARIANTS[name]["keys"]


@pytest.mark.slow
def test_logits_and_stages_match_the_official_network(golden, assert_golden):
    def official_layout(stage, tokens):
        if "resblocks" in stage:  # (B, T, 1 + HW, C) -> (1 + HW, B * T, C)
            return tokens.flatten(0, 1).transpose(0, 1)
        return tokens.flatten(0, 1) if "ln_pre" in stage else tokens

    logits = golden("uniformerv2_logits.npz")[FULL]
    assert_golden(lambda: configured(VARIANTS[FULL]["config"]), VARIANTS[FULL], logits, official_layout)


@pytest.mark.slow
def test_gradients_match_the_official_network(golden, golden_state, golden_input):
    case = golden("uniformerv2_train_mode.json")
    with torch.device("meta"):
        model = configured({**VARIANTS[case["variant"]]["config"], **case["changes"]}).train()
    model.load_state_dict(golden_state(model.state_dict()), assign=True)
    video = torch.cat([golden_input(seed, (1, 3, 4, 224, 224)) for seed in (1004, 2004)])
    hot = torch.nn.functional.one_hot(torch.tensor(case["labels"]), 174) * 0.9 + 0.1 / 174
    loss = soft_cross_entropy(model(video), 0.3 * hot + 0.7 * hot.flip(0))
    loss.backward()
    assert loss.item() == pytest.approx(case["loss"], rel=1e-6)
    for name, parameter in model.named_parameters():
        norm = case["grad_norm"][name]
        if norm > 1e-6 * case["total_grad_norm"]:
            assert parameter.grad.double().norm().item() == pytest.approx(norm, rel=1e-4), name


@pytest.mark.parametrize("options", [{}, {"no_lmhra": True}, {"temporal_downsample": False}, {"double_lmhra": False}])
@pytest.mark.parametrize("shape", [(1, 32, 32), (4, 48, 32), (7, 24, 40)])
def test_any_frame_count_and_size_is_accepted(options, shape):
    assert small(**options).eval()(torch.randn(2, 3, *shape)).shape == (2, 5)


def test_position_embedding_keeps_its_grid_and_its_class_token():
    embedding = torch.randn(17, 8)
    assert resize_position_embedding(embedding, (4, 4)) is embedding
    smooth = torch.cat([embedding[:1], torch.linspace(0, 1, 4).repeat(4).view(16, 1).expand(-1, 8)])
    resized = resize_position_embedding(smooth, (6, 8))
    assert torch.equal(resized[0], smooth[0]) and resized.shape == (49, 8)
    rows = resized[1:].view(6, 8, 8)[..., 0]
    assert torch.allclose(rows, rows[:1].expand(6, -1), atol=1e-5) and (rows[0].diff() > 0).all()


def test_frozen_trains_only_new_parameters():
    model = small(frozen=True, no_lmhra=True)
    trained = {name.split(".")[2] for name, parameter in model.named_parameters() if parameter.requires_grad}
    assert trained == {"temporal_cls_token", "dpe", "dec", "proj"}
    assert not any("balance" in name for name in model.state_dict())


def test_checkpointing_does_not_change_gradients():
    video = torch.randn(2, 3, 4, 32, 32)
    gradients, statistics = [], []
    for blocks in (False, True, [2]):
        model = small(backbone_drop_path_rate=0.3, drop_path_rate=0.3).train()
        model.set_grad_checkpointing(blocks)
        torch.manual_seed(7)
        model(video).square().sum().backward()
        gradients.append([p.grad for p in model.parameters()])
        statistics.append(list(model.buffers()))
    for values in (gradients, statistics):
        for other in values[1:]:
            assert all(torch.allclose(a, b, rtol=1e-5, atol=1e-6) for a, b in zip(values[0], other, strict=True))


def test_drop_path_drops_whole_videos():
    tower = VisionTower(width=8, layers=1, heads=2, patch=8, resolution=32)
    block = LocalUniBlock(tower, local=False, double=False, reduction=1.5, drop_path=0.5).train()
    x = torch.randn(6, 4, 5, 8)
    with torch.no_grad():
        block.mlp.get_parameter("c_proj.weight").zero_()
        block.mlp.get_parameter("c_proj.bias").zero_()
        dropped = (block(x) == x).flatten(1)
    assert all(len(video.unique()) == 1 for video in dropped)
    assert dropped.any() and not dropped.all()


def test_every_image_vit_is_built_with_the_default_crop_sizes():
    """A network accepts any size that is a multiple of the patch size; the configuration checks the sizes of a run."""
    with torch.device("meta"):
        for name, tower in TOWERS.items():
            assert patch_size(name, []) == tower.patch
            values = {"MODEL.MODEL_NAME": "Uniformerv2", "MODEL.ARCH": "uniformerv2", "UNIFORMERV2.BACKBONE": name}
            values |= {"UNIFORMERV2.N_DIM": tower.width, "UNIFORMERV2.N_HEAD": tower.heads}
            model = configured(values).eval()
            assert model(torch.zeros(1, 3, 2, 2 * tower.patch, 3 * tower.patch)).shape == (1, 400)


def test_wrong_options_are_refused():
    with pytest.raises(ValueError, match="'b32' is not known"):
        small(backbone="b32")
    with pytest.raises(ValueError, match=r"return_list \[1, 3\]"):
        small(return_list=(1, 3))
    with pytest.raises(ValueError, match="mlp_dropout has 1 rates"):
        small(mlp_dropout=[0.5])
    with pytest.raises(ValueError, match=r"n_head 5 .* 32 channels: set it to 4"):
        small(n_head=5)
    with pytest.raises(ValueError, match=r"5 heads .* 32 channels"):
        small(backbone=replace(TOWER, heads=5))
    with pytest.raises(ValueError, match="whole patches of 8"):
        small()(torch.zeros(1, 3, 2, 36, 32))
