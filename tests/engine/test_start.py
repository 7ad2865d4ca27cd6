"""What a training checks before its first step."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from torch import nn

from slowfast.config import load_config
from slowfast.datasets.lists import VideoList
from slowfast.engine.start import check_evaluation, prepare_state, warn_of_single_clips
from slowfast.models.build import build_model
from slowfast.models.zoo import create_model
from slowfast.run.checkpoint import CheckpointWriter
from slowfast.run.resume import describe_run


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


def test_a_network_of_a_user_is_evaluated_before_the_first_epoch(monkeypatch):
    class Network(nn.Module):
        def __init__(self, outputs: str) -> None:
            super().__init__()
            self.outputs, self.head = outputs, nn.Linear(3, 5)

        def forward(self, video: torch.Tensor) -> Any:
            logits = self.head(video.mean((2, 3, 4)))
            only_logits = self.outputs == "logits" or (self.outputs == "tuple if training" and not self.training)
            return logits if only_logits else (logits, logits)

    five, six = (load_config(None, ["NUM_GPUS", "0", "MODEL.NUM_CLASSES", count]) for count in "56")
    device = torch.device("cpu")
    monkeypatch.delenv("SLOWFAST_IMPORT", raising=False)
    check_evaluation(five, Network("tuple"), device)  # networks of this package are not run
    monkeypatch.setenv("SLOWFAST_IMPORT", "mine")
    check_evaluation(five, Network("logits"), device)
    check_evaluation(five, Network("tuple if training"), device)
    with pytest.raises(ValueError, match="tuple"):
        check_evaluation(five, Network("tuple"), device)
    with pytest.raises(ValueError, match="6"):
        check_evaluation(six, Network("logits"), device)


def test_a_new_run_logs_that_its_rate_is_for_other_steps(tmp_path, caplog):
    settings = ["TRAIN.BATCH_SIZE", "4", "OUTPUT_DIR", str(tmp_path)]
    cfg = load_config("exp/demo/config.yaml", settings)
    lists = {split: VideoList(["a.mp4"], [0]) for split in ("train", "val")}

    def start():
        caplog.clear()
        state, resumed = prepare_state(cfg, build_model(cfg), 3, lists, torch.device("cpu"))
        return state, resumed, sum(record.getMessage() == cfg.rate_note for record in caplog.records)

    state, resumed, logged = start()
    assert cfg.rate_note and not resumed and logged == 1
    state.step = 1
    with CheckpointWriter(str(tmp_path)) as writer:
        writer.save(state.state_dict() | describe_run(cfg, lists))
    _, resumed, logged = start()
    assert resumed and logged == 0  # the steps of a run stay as they were
