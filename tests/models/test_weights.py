"""Checkpoint layouts, inflation, and the refusal to load what does not fit."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
import torch

from slowfast import create_model
from slowfast.config import get_cfg
from slowfast.models import UniFormer, build_model
from slowfast.models.weights import extract_state_dict, load_weights
from slowfast.utils.io import load_tensors

INFLATE = json.loads((Path(__file__).parents[1] / "golden" / "inflate.json").read_text())


def small(**options) -> UniFormer:
    return UniFormer(
        **{"num_classes": 5, "depth": (1, 1, 1, 1), "embed_dim": (8, 16, 32, 32), "head_dim": 16, **options}
    )


@pytest.mark.parametrize("wrap", [lambda s: {"model": s}, lambda s: {"model_state": s, "epoch": 3}, lambda s: s])
def test_layouts(wrap, tmp_path):
    source, target = small(), small()
    state = {f"module.{name}": value for name, value in source.state_dict().items()}
    torch.save(wrap(state), tmp_path / "weights.pth")
    report = load_weights(target, load_tensors(tmp_path / "weights.pth"))
    assert len(report.loaded) == len(state) and not report.missing
    assert all(
        torch.equal(a, b) for a, b in zip(source.state_dict().values(), target.state_dict().values(), strict=True)
    )


@pytest.mark.parametrize("name", INFLATE)
def test_image_to_video(name, golden, golden_state, golden_input):
    case = INFLATE[name]
    cfg = get_cfg()
    cfg.merge_from_list([item for pair in case["video_config"].items() for item in pair])
    model = build_model(cfg).eval()
    model.load_state_dict(golden_state(model.state_dict()))
    source = UniFormer(num_classes=1000, ndim=2) if "image" in name else UniFormer(num_classes=400)
    report = load_weights(model, {"model": golden_state(source.state_dict())}, reset_head=True, to_train=True)
    assert len(report.inflated) == case["counts"].get("inflated", 0)
    assert len(report.loaded) == case["counts"]["copied"]
    with torch.no_grad():
        logits = model(golden_input(case["input_seed"], case["input_shape"]))[0].numpy()
    expected = golden("inflate_logits.npz")[name]
    assert np.abs(logits - expected).max() <= 1e-5 * np.abs(expected).max()


def test_missing_parts_that_start_as_the_identity_are_for_training_only():
    checkpoint = small().state_dict()
    assert load_weights(small(split=True), checkpoint, to_train=True).dropped
    with pytest.raises(ValueError, match="of another model"):
        load_weights(small(split=True), checkpoint)


def test_a_missing_classifier_starts_anew_when_asked():
    checkpoint = {name: value for name, value in small().state_dict().items() if not name.startswith("head.")}
    assert load_weights(small(), checkpoint, reset_head=True).dropped == ["head.weight", "head.bias"]
    with pytest.raises(ValueError, match="of another model"):
        load_weights(small(), checkpoint)


def test_another_class_count_is_refused_unless_asked():
    checkpoint = {"model_state": small(num_classes=7).state_dict()}
    with pytest.raises(ValueError, match=r"7 classes and the model 5.*MODEL.RESET_HEAD"):
        load_weights(small(), checkpoint)
    model = small()
    before = model.state_dict()["head.weight"].clone()
    report = load_weights(model, checkpoint, reset_head=True)
    assert report.dropped == ["head.weight", "head.bias"] and torch.equal(model.state_dict()["head.weight"], before)


@pytest.mark.parametrize("other", [{"depth": (1, 1, 2, 1)}, {"embed_dim": (8, 16, 48, 32)}, {"qkv_bias": False}])
def test_another_model_is_refused(other):
    before = small()
    with pytest.raises(ValueError, match="of another model"):
        load_weights(before, small(**other).state_dict())


def test_bad_files(tmp_path):
    with pytest.raises(ValueError, match="does not exist"):
        load_tensors(tmp_path / "nothing.pth")
    (tmp_path / "text.pth").write_text("not a checkpoint")
    with pytest.raises(ValueError, match=r"text\.pth.* cannot be loaded"):
        load_tensors(tmp_path / "text.pth")
    torch.save({"weights": torch.zeros(3)}, tmp_path / "torn.pth")
    content = (tmp_path / "torn.pth").read_bytes()
    (tmp_path / "torn.pth").write_bytes(content[: len(content) // 2])
    with pytest.raises(ValueError, match=r"torn\.pth.* cannot be loaded"):
        load_tensors(tmp_path / "torn.pth")
    with pytest.raises(ValueError, match="holds no tensors"):
        extract_state_dict({"epoch": 3})
    with pytest.raises(ValueError, match="not a dictionary"):
        extract_state_dict(torch.zeros(3))  # pyright: ignore[reportArgumentType]


@pytest.mark.parametrize("log", ["", "logging.basicConfig(level=logging.INFO); "])
def test_the_python_api_reports_every_load_once(log, tmp_path):
    options = {"depth": (1, 1, 1, 1), "embed_dim": (8, 16, 32, 32), "head_dim": 16}
    image = create_model("uniformer_image_s_plus", weights=None, **options)
    torch.save(image.state_dict(), tmp_path / "image.pth")
    code = (
        f"import logging; {log}from slowfast import create_model\n"
        f"model = create_model('uniformer_image_s_plus', weights='image.pth', **{options})\n"
        "assert len(model.load_report.loaded) == len(model.state_dict())"
    )
    environment = {**os.environ, "PYTHONPATH": str(Path(__file__).parents[2])}
    done = subprocess.run(
        [sys.executable, "-c", code], cwd=tmp_path, env=environment, capture_output=True, text=True, check=True
    )
    report = f"from image.pth: layout own, loaded {len(image.state_dict())},"
    assert done.stderr.count(report) == 1 and done.stdout == ""
    assert "have the same shapes" in done.stderr  # heads of 32 and of 64 channels
