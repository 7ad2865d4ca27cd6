"""Which checkpoint is tested, and what happens after the scores."""

from __future__ import annotations

import json
import sys

import numpy as np
import pytest
import torch

from slowfast.config import dump_config, get_cfg, load_config
from slowfast.engine.evaluate import Evaluation
from slowfast.engine.meters import METRICS
from slowfast.engine.test import _check_classes, find_checkpoint, load_model
from slowfast.engine.test import test as engine_test
from slowfast.models.build import build_model
from slowfast.run.checkpoint import CheckpointWriter, best_checkpoint, list_checkpoints
from slowfast.utils.io import sha256

DEMO = "exp/demo/config.yaml"


@pytest.fixture
def cfg(tmp_path):
    """Of a run with checkpoints after 10 and 20 steps, the first of which is the best."""
    with CheckpointWriter(str(tmp_path)) as writer:
        for step in (10, 20):
            state = {"step": step, "steps_per_epoch": 10, "model_state": {"w": torch.full((2,), float(step))}}
            writer.save(state, best=step == 10)
    cfg = get_cfg()
    cfg.OUTPUT_DIR = str(tmp_path)
    return cfg


def damage(path):
    """Change one bit of one weight, which PyTorch would load."""
    content = bytearray(path.read_bytes())
    step = float(torch.load(path)["step"])
    content[content.index(torch.full((2,), step).numpy().tobytes())] ^= 1
    path.unlink()  # the best one may be another name of this file
    path.write_bytes(content)


def test_the_last_or_the_best_or_what_training_started_from(cfg, tmp_path, caplog):
    best, (first, last) = best_checkpoint(cfg.OUTPUT_DIR), list_checkpoints(cfg.OUTPUT_DIR)
    assert find_checkpoint(cfg) == str(last)
    cfg.TEST.TEST_BEST = True
    assert find_checkpoint(cfg) == str(best)
    assert not caplog.messages
    best.unlink()
    assert find_checkpoint(cfg) == str(last)
    assert [str(best) in message for message in caplog.messages] == [True]
    cfg.TEST.CHECKPOINT_FILE_PATH = str(first)
    assert find_checkpoint(cfg) == str(first)
    cfg.merge_from_list(["OUTPUT_DIR", str(tmp_path / "nothing"), "TEST.CHECKPOINT_FILE_PATH", ""])
    with pytest.raises(ValueError, match="no checkpoint to test"):
        find_checkpoint(cfg)
    cfg.TRAIN.CHECKPOINT_FILE_PATH = "start.pth"
    assert find_checkpoint(cfg) == "start.pth"


def test_a_damaged_one_is_never_tested(cfg):
    best, (first, last) = best_checkpoint(cfg.OUTPUT_DIR), list_checkpoints(cfg.OUTPUT_DIR)
    damage(last)
    assert find_checkpoint(cfg) == str(first)
    damage(best)
    cfg.TEST.TEST_BEST = True
    with pytest.raises(ValueError, match=r"best\.pyth .*TEST\.TEST_BEST False"):
        find_checkpoint(cfg)
    cfg.TEST.TEST_BEST = False
    damage(first)
    with pytest.raises(ValueError, match="none of the checkpoints"):
        find_checkpoint(cfg)


@pytest.mark.parametrize("replaced", [True, False])
def test_a_checkpoint_that_a_training_replaces_or_removes_is_described_as_it_was_tested(
    replaced, experiment, tmp_path, monkeypatch
):
    path = tmp_path / "tested.pth"
    cfg = load_config(str(experiment), ["TRAIN.ENABLE", "False", "TEST.CHECKPOINT_FILE_PATH", str(path)])
    torch.save({"model_state": build_model(cfg).state_dict()}, path)
    tested = sha256(path)

    def metric_of_another_training(scores, labels):
        path.unlink(missing_ok=True)
        if replaced:
            path.write_bytes(b"newer")
        return torch.zeros(len(labels))

    monkeypatch.setitem(METRICS, "other", metric_of_another_training)
    engine_test(cfg)
    report = json.loads((tmp_path / "out" / "test" / "metrics.json").read_text())
    assert report["checkpoint"] == {"path": str(path), "sha256": tested}


def test_a_test_does_not_fail_without_scipy(monkeypatch, caplog):
    label = np.repeat(np.arange(10), 10)
    evaluation = Evaluation(np.arange(100), label, np.eye(10, dtype=np.float32)[(label + 1) % 10])
    _check_classes(evaluation, None, None)
    monkeypatch.setitem(sys.modules, "scipy.optimize", None)
    _check_classes(evaluation, None, None)
    assert ["top1" in message for message in caplog.messages] == [True, False]


@pytest.fixture
def warnings_of_a_test(tmp_path, caplog):
    """Return a function of KEY VALUE pairs: the warnings of a test with them, if the training had none.

    A checkpoint of another program has another recorded configuration.
    """

    def test(*pairs: str, recorded: str = dump_config(load_config(DEMO))) -> list[str]:
        path = str(tmp_path / "x.pyth")
        torch.save({"model_state": build_model(load_config(DEMO)).state_dict(), "cfg": recorded}, path)
        load_model(load_config(DEMO, pairs), path, None)
        return [record.getMessage() for record in caplog.records if record.levelname == "WARNING"]

    return test


@pytest.mark.parametrize(
    ("dataset", "reversed_channels", "warned"),
    [("kinetics", False, False), ("sth", False, True), ("sth", True, False), ("kinetics", True, True)],
)
def test_a_test_of_other_colours_than_the_training_warns(dataset, reversed_channels, warned, warnings_of_a_test):
    """Something-Something is read as BGR, as the released weights need it."""
    found = warnings_of_a_test("TEST.DATASET", dataset, "DATA.REVERSE_INPUT_CHANNEL", str(reversed_channels))
    assert [f"set DATA.REVERSE_INPUT_CHANNEL {not reversed_channels} " in text for text in found] == [True] * warned


@pytest.mark.parametrize(
    ("key", "value", "trained"), [("DATA.MEAN", "[0.5, 0.5, 0.5]", "[0.45, 0.45, 0.45]"), ("DATA.NUM_FRAMES", "4", "8")]
)
def test_a_test_of_another_input_than_that_of_the_training_warns(key, value, trained, warnings_of_a_test):
    found = warnings_of_a_test(key, value, "DATA.STD", "[0.225, 0.225, 0.225]")
    assert [f"{key} {trained}, not {value}: " in text for text in found] == [True]


@pytest.mark.parametrize("recorded", ["TRAIN: {BATCH_SIZE: 8}", "TRAIN: {DATASET: [kinetics, ssv2]}", "- a list", "}"])
def test_a_checkpoint_of_another_program_need_not_say_how_its_clips_were_made(recorded, warnings_of_a_test):
    assert warnings_of_a_test("TEST.DATASET", "sth", recorded=recorded) == []
