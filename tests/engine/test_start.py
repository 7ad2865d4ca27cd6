"""What a training checks before its first step."""

from __future__ import annotations

import pytest
import torch
from torch import nn

from slowfast.config import load_config
from slowfast.engine.start import warn_of_single_clips
from slowfast.models.build import build_model
from slowfast.models.zoo import create_model


def test_one_clip_has_the_same_features_as_any_other():
    model = create_model("uniformer_s", depth=[1] * 4, embed_dim=[8, 16, 32, 32], head_dim=16, num_classes=0).train()
    with torch.no_grad():
        one, other, two = (model(torch.randn(clips, 3, 4, 64, 64)) for clips in (1, 1, 2))
    assert torch.allclose(one, other, atol=1e-5) and two.std(0).mean() > 1e-2


@pytest.mark.parametrize(
    ("overrides", "warns"),
    [
        ("TRAIN.BATCH_SIZE 1", True),
        ("TRAIN.BATCH_SIZE 1 MODEL.MODEL_NAME Uniformer_light AUG.NUM_SAMPLE 2", True),
        ("TRAIN.BATCH_SIZE 2", False),
        ("TRAIN.BATCH_SIZE 1 MODEL.FROZEN_BN True", False),
        ("TRAIN.BATCH_SIZE 1 AUG.ENABLE True AUG.NUM_SAMPLE 2", False),
        ("TRAIN.BATCH_SIZE 1 MODEL.MODEL_NAME Uniformerv2", False),
    ],
)
def test_a_network_that_cannot_learn_is_reported(overrides, warns, caplog):
    cfg = load_config(None, ["NUM_GPUS", "0", *overrides.split()])
    with torch.device("meta"):
        model = build_model(cfg)
    warn_of_single_clips(cfg, model)
    assert len(caplog.records) == warns


def test_synchronized_statistics_are_of_several_clips(caplog):
    cfg = load_config(None, ["NUM_GPUS", "0", "TRAIN.BATCH_SIZE", "1"])
    warn_of_single_clips(cfg, nn.SyncBatchNorm.convert_sync_batchnorm(build_model(cfg)))
    assert not caplog.records
