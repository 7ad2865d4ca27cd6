"""The Python API: every model of the zoo, by name and without configuration."""

from __future__ import annotations

import json
import subprocess
import sys
from typing import Any

import pytest
import torch

import slowfast
from slowfast import create_model, list_models
from slowfast.models.uniformer_light import UniFormerLight
from slowfast.models.zoo import VARIANTS
from slowfast.utils import io

# of the official implementation; those of 1000 classes are image models
PARAMETERS = {
    "uniformer_s": 21_400_400,
    "uniformer_b": 49_813_200,
    "uniformer_xxs": 9_833_896,
    "uniformerv2_b16": 114_552_208,
    "uniformer_image_s": 21_545_256,
    "uniformer_image_b": 49_776_552,
    "uniformer_image_s_plus": 24_032_552,
    "uniformer_image_b_ls": 49_796_520,
    "uniformer_image_xxs": 10_215_280,
}


@pytest.mark.parametrize("name", VARIANTS)
def test_every_model_takes_its_input(name):
    # autocast, which the light networks step out of, does not know the meta device
    light = VARIANTS[name].network is UniFormerLight
    with torch.device("cpu" if light else "meta"), torch.no_grad():
        model = create_model(name, num_frames=4).eval()
        images = "_image_" in name
        shape: Any = model.input_shape
        assert shape[1:-2] == (() if images else (4,))
        assert model(torch.zeros(2, *shape)).shape == (2, 1000 if images else 400)
        model.reset_classifier(7)
        model.set_grad_checkpointing(True)
        features = model.forward_features(torch.zeros(2, *shape))
        assert model.forward_head(features).shape == (2, 7)
    assert isinstance(model.no_weight_decay(), set)


@pytest.mark.parametrize("name", PARAMETERS)
def test_parameters_are_those_of_the_official_models(name):
    with torch.device("meta"):
        assert sum(parameter.numel() for parameter in create_model(name).parameters()) == PARAMETERS[name]


def test_options_are_those_of_the_class():
    with torch.device("meta"):
        model = create_model(
            "uniformerv2_b16", 16, 174, no_lmhra=False, temporal_downsample=True, return_list=range(4, 12)
        )
        assert sum(parameter.numel() for parameter in model.parameters()) == 162_992_814
        assert create_model("uniformer_image_s", in_channels=1).input_shape == (1, 224, 224)


def test_list_models():
    assert list_models("uniformerv2*") == ["uniformerv2_b16", "uniformerv2_l14", "uniformerv2_l14_336"]
    assert list_models() == sorted(VARIANTS)
    assert list_models("nothing*") == []


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"name": "uniformer_S"}, r"'uniformer_S' is not known \(meant 'uniformer_s'\?\)"),
        ({"name": "uniformer_s", "no_lmhra": True}, "uniformer_s has no option 'no_lmhra'"),
        ({"name": "uniformerv2_b16", "no_lmra": True}, r"meant 'no_lmhra'\?"),
        ({"name": "uniformer_s", "num_frames": 0}, "num_frames 0"),
        ({"name": "uniformer_image_s_plus_dim64", "weights": "start"}, "no released weights are known"),
        ({"name": "uniformer_s", "weights": "nothing.pth"}, "'nothing.pth' does not exist"),
    ],
)
def test_wrong_arguments(arguments, message):
    with pytest.raises(ValueError, match=message):
        create_model(**arguments)


def test_weights(tmp_path, monkeypatch):
    monkeypatch.setattr(io, "PRETRAINED", tmp_path)
    manifest = {"weights": {"uniformer_small_in1k": {"google_drive": "x"}}}
    (tmp_path / "manifest.json").write_text(json.dumps(manifest))
    image = create_model("uniformer_image_s")
    torch.save({"model": image.state_dict()}, tmp_path / "uniformer_small_in1k.pth")
    video = create_model("uniformer_s", num_classes=7, weights="start")
    assert torch.equal(video.state_dict()["norm.weight"], image.state_dict()["norm.weight"])
    kernel = video.state_dict()["patch_embed1.proj.weight"]
    torch.testing.assert_close(kernel.sum(2), image.state_dict()["patch_embed1.proj.weight"])

    path = tmp_path / "uniformer_small_in1k.pth"
    with pytest.raises(ValueError, match="1000 classes and the model 400"):
        create_model("uniformer_s", weights=path)
    again = create_model("uniformer_image_s", weights="uniformer_small_in1k")
    assert all(torch.equal(a, b) for a, b in zip(again.parameters(), image.parameters(), strict=True))


def test_every_start_is_in_the_manifest():
    assert {variant.start for variant in VARIANTS.values()} - {""} <= io.released_weights().keys()


def test_importing_the_package_imports_no_torch():
    code = (
        "import sys, slowfast; assert 'torch' not in sys.modules; slowfast.create_model; assert 'torch' in sys.modules"
    )
    subprocess.run([sys.executable, "-c", code], check=True)
    assert not hasattr(slowfast, "nothing")
