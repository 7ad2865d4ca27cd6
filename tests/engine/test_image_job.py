"""The image job through the same engine: train, validate, test, resume, two processes, weights of other programs."""

from __future__ import annotations

import csv
import json
from pathlib import Path

import numpy as np
import pytest
import torch
from make_demo_data import IMAGE_CLASS_NAMES, make_demo_data
from run_fixtures import losses

from slowfast.config import get_cfg
from slowfast.engine.setup import clip_mover, place
from slowfast.models.build import build_model, input_shape
from slowfast.run.checkpoint import list_checkpoints
from slowfast.weights.load import load_weights
from slowfast.weights.tensors import load_tensors

EXPERIMENT = """
NUM_GPUS: 0
LOG_PERIOD: 1
OUTPUT_DIR: {out}
DATA: {{PATH_TO_DATA_DIR: {data}, TRAIN_CROP_SIZE: 32, TEST_CROP_SIZE: 32, TRAIN_JITTER_SCALES_RELATIVE: [0.3, 1.0],
       TRAIN_JITTER_ASPECT_RELATIVE: [0.75, 1.3333]}}
MODEL: {{MODEL_NAME: Uniformer_image, NUM_CLASSES: 8, LOSS_FUNC: soft_cross_entropy}}
UNIFORMER: {{DEPTH: [1, 1, 1, 1], EMBED_DIM: [8, 16, 32, 32], HEAD_DIM: 16, DROP_DEPTH_RATE: 0.2}}
SOLVER: {{OPTIMIZING_METHOD: adamw, BASE_LR: 1.0e-3, WARMUP_START_LR: 1.0e-5, WARMUP_EPOCHS: 1.0, COSINE_END_LR: 1.0e-5,
         MAX_EPOCH: 2, ZERO_WD_1D_PARAM: True, CLIP_GRADIENT: 0}}
TRAIN: {{DATASET: imagenet, BATCH_SIZE: 8, EVAL_PERIOD: 1, CHECKPOINT_PERIOD: 1}}
TEST: {{DATASET: imagenet, BATCH_SIZE: 8, NUM_ENSEMBLE_VIEWS: 1, NUM_SPATIAL_CROPS: 1}}
AUG: {{ENABLE: True, NUM_SAMPLE: 3}}
MIXUP: {{ENABLE: True}}
EMA: {{ENABLE: True}}
DATA_LOADER: {{NUM_WORKERS: 0}}
"""


def image_cfg(*overrides):
    cfg = get_cfg()
    cfg.merge_from_list(
        [
            *("MODEL.MODEL_NAME", "Uniformer_image", "MODEL.NUM_CLASSES", 5, "DATA.TEST_CROP_SIZE", 64),
            *("UNIFORMER.DEPTH", [1, 1, 1, 1], "UNIFORMER.EMBED_DIM", [8, 16, 32, 32], "UNIFORMER.HEAD_DIM", 16),
            *("DATA.MEAN", [0.485, 0.456, 0.406], "DATA.STD", [0.229, 0.224, 0.225]),
            *overrides,
        ]
    )
    return cfg


@pytest.mark.parametrize(
    "options",
    [
        (),
        ("UNIFORMER.OVERLAPPED_STEM", True, "UNIFORMER.LAYER_SCALE", [0, 0, 1e-6, 1e-6]),
        ("UNIFORMER.AUX_HEAD", True, "UNIFORMER.LAYER_SCALE", [1e-6] * 4),
        ("MODEL.MODEL_NAME", "Uniformer_light_image", "UNIFORMER.DEPTH", [1, 1, 2, 2]),
    ],
)
def test_weights_in_the_layout_of_the_released_files_load(options):
    cfg = image_cfg(*options)
    torch.manual_seed(0)
    trained, model = build_model(cfg).eval(), build_model(cfg).eval()
    report = load_weights(model, {"model": trained.state_dict()})
    assert not (report.missing or report.unexpected or report.reshaped or report.dropped)
    images = torch.randn(2, *input_shape(cfg))
    assert images.shape == (2, 3, 64, 64) and model(images).shape == (2, 5)
    place(model, torch.device("cpu"))  # channels last changes nothing but the speed
    assert torch.allclose(model(images), trained(images), atol=1e-5)


@pytest.mark.parametrize("option", ["UNIFORMER.SPLIT", "UNIFORMER.STD"])
def test_options_of_time_are_refused(option):
    with pytest.raises(ValueError, match=rf"{option.rpartition('.')[2].lower()} .*UNIFORMER"):
        build_model(image_cfg(option, True))


def test_images_are_normalized_on_their_way():
    images = torch.randint(256, (2, 3, 6, 4), dtype=torch.uint8)
    cfg = image_cfg()
    moved = clip_mover(cfg, torch.device("cpu"))(images)
    mean, std = (torch.tensor(values)[:, None, None] for values in (cfg.DATA.MEAN, cfg.DATA.STD))
    assert torch.allclose(moved, (images / 255 - mean) / std, atol=1e-6)
    assert moved.is_contiguous(memory_format=torch.channels_last)


@pytest.fixture(scope="module")
def images(tmp_path_factory) -> Path:
    return make_demo_data(tmp_path_factory.mktemp("images") / "data", train=24, test=11, images=True)


@pytest.fixture
def experiment(images, tmp_path) -> Path:
    path = tmp_path / "config.yaml"
    path.write_text(EXPERIMENT.format(data=images, out=tmp_path / "out"))
    return path


@pytest.mark.slow
def test_an_interrupted_image_job_resumes_exactly(experiment, run_net, tmp_path):
    """Two steps, a resume within the epoch, a validation and a test; training as in one go."""
    whole, out = tmp_path / "whole", tmp_path / "out"
    run_net(experiment, "OUTPUT_DIR", whole, "TEST.ENABLE", False)
    run_net(experiment, "TRAIN.MAX_STEPS", 2, "TEST.ENABLE", False)
    done = run_net(experiment, "DATA_LOADER.NUM_WORKERS", 1)
    assert "at step 2" in done.stdout and "11 videos x 1 views" in done.stdout
    assert losses(whole) == losses(out) and len(losses(out)) == 6
    a, b = (load_tensors(list_checkpoints(str(folder))[-1]) for folder in (whole, out))
    for entry in ("model_state", "ema_state"):
        assert all(torch.equal(a[entry][name], b[entry][name]) for name in a[entry])
    assert b["class_names"] == sorted(IMAGE_CLASS_NAMES)

    with open(out / "test/predictions.csv", newline="") as file:
        rows = list(csv.DictReader(file))
    assert len(rows) == 11 and rows[0]["label"] == "arrow" and "/val/arrow/" in rows[0]["id"]
    assert json.loads((out / "test/metrics.json").read_text())["metrics"]["num_videos"] == 11


@pytest.mark.slow
def test_two_processes_train_and_test_like_one(experiment, run_net, tmp_path):
    folders = tmp_path / "one", tmp_path / "two"
    common = ("MODEL.FROZEN_BN", True, "MIXUP.ENABLE", False, "UNIFORMER.DROP_DEPTH_RATE", 0.0)
    for ranks, folder in zip((0, 2), folders, strict=True):
        run_net(experiment, *common, "OUTPUT_DIR", folder, ranks=ranks)
    one, two = map(losses, folders)
    assert two == pytest.approx(one, abs=1e-5) and len(one) == 6
    one, two = (np.load(folder / "test/scores.npz")["scores"] for folder in folders)
    assert two == pytest.approx(one, abs=1e-3) and one.shape == (11, 8)
