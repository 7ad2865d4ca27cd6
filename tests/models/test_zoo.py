"""Test the Python API: every model of the zoo, by name and without configuration."""

from __future__ import annotations

import json
import subprocess
import sys
from typing import Any

import pytest
import torch

import slowfast
from slowfast import create_model, list_models
from slowfast.config.keys import DEFAULT_VALUES
from slowfast.models.options import check_options
from slowfast.models.zoo import VARIANTS
from slowfast.weights import fetch

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


@pytest.mark.parametrize("name", PARAMETERS)
def test_parameters_are_those_of_the_official_models(name):
    with torch.device("meta"):
        assert sum(parameter.numel() for parameter in create_model(name).parameters()) == PARAMETERS[name]


def test_options_reach_the_class():
    with torch.device("meta"):
        model = create_model(
            "uniformerv2_b16", 16, 174, no_lmhra=False, temporal_downsample=True, return_list=range(4, 12)
        )
        assert sum(parameter.numel() for parameter in model.parameters()) == 162_992_814
        assert create_model("uniformer_image_s", in_channels=1).input_shape == (1, 224, 224)


def test_list_models_filters_by_pattern():
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
        ({"name": "uniformer_s", "num_class": 5}, r"'num_class' \(meant 'num_classes'\?\)"),
        ({"name": "uniformer_s", "pretrained": True}, "'pretrained': choose from .*'weights'"),
        ({"name": "uniformer_s", "weights": "nothing.pth"}, "'nothing.pth' does not exist"),
        ({"name": "uniformer_s", "weights": "uniformer_s16x4"}, r"meant .*'uniformer_s16x4_k400'"),
    ],
)
def test_wrong_arguments_are_refused(arguments, message):
    with pytest.raises(ValueError, match=message):
        create_model(**arguments)


@pytest.mark.parametrize("kind", [int, "int"])  # an annotation without and with `from __future__ import annotations`
def test_a_value_of_another_type_names_the_type(kind):
    def network(num_classes, width=1) -> Any:
        raise AssertionError

    network.__annotations__ = {"width": kind}
    with pytest.raises(ValueError, match=r"'wide' must be int$"):
        check_options("Net", network, {"width": "wide"})


NETWORKS = {"UNIFORMER": ("uniformer_s", "uniformer_xxs"), "UNIFORMERV2": ("uniformerv2_b16",)}
NO_OPTIONS = {"n_dim", "n_layers", "tower", "pretrain", "pretrain_name", "delete_special_head", "representation_size"}


def takes(model: str, option: str, value: Any) -> bool:
    try:
        check_options(model, VARIANTS[model].network, {option: value})
    except ValueError as error:
        assert f"{model} has no option {option!r}" in str(error)
        return False
    return True


@pytest.mark.parametrize("key", [key for key in DEFAULT_VALUES if key.startswith(("UNIFORMER.", "UNIFORMERV2."))])
def test_options_are_the_names_of_the_configuration(key):
    section, _, name = key.partition(".")
    taken = [takes(model, name.lower(), DEFAULT_VALUES[key]) for model in NETWORKS[section]]
    assert any(taken) == (name.lower() not in NO_OPTIONS)


@pytest.mark.parametrize(
    ("name", "option", "value"),
    [
        ("uniformer_s", "depth", 3),
        ("uniformer_s", "depth", (3, 4, 8)),
        ("uniformer_s", "depth", (3, 4, 8, 3.5)),
        ("uniformer_s", "split", 1),
        ("uniformer_s", "head_dim", True),
        ("uniformer_s", "qkv_scale", "0.1"),
        ("uniformer_s", "layer_scale", (0.1, 0.1)),
        ("uniformer_xxs", "init_value", [0.1] * 4),
        ("uniformer_xxs", "prune_ratio", ((), (), (1,) * 8)),
        ("uniformerv2_b16", "return_list", 11),
        ("uniformerv2_b16", "backbone", 16),
    ],
)
def test_options_of_another_type_are_refused(name, option, value):
    with pytest.raises(ValueError, match=rf"{option} .*(must be|entries)"):
        create_model(name, **{option: value})


@pytest.mark.parametrize("name", ["uniformer_s", "uniformer_xxs", "uniformerv2_b16"])
def test_activation_checkpointing_is_set_in_one_way_only(name):
    with torch.device("meta"):
        model = create_model(name)
    for blocks in (True, False, [1, 0, 0, 0]):
        model.set_grad_checkpointing(enable=blocks)  # the keyword of timm
    if name == "uniformerv2_b16":
        model.set_grad_checkpointing([3])
        assert model.backbone.transformer.checkpointed == 3  # pyright: ignore
    wrong: list[Any] = [3, None, "all", [1, 2], [1.5] * 4, [True] * 4, [-1, 0, 0, 0], []]
    for blocks in wrong:
        with pytest.raises(ValueError, match=r"activation checkpointing .* True, False"):
            model.set_grad_checkpointing(blocks)


SMALL: dict[str, Any] = {"depth": (1, 1, 1, 1), "embed_dim": (8, 16, 32, 32), "head_dim": 16}


def test_reset_head_replaces_only_the_classifier(tmp_path):
    torch.save(create_model("uniformer_s", **SMALL).state_dict(), tmp_path / "w.pth")
    old = create_model("uniformer_s", weights=tmp_path / "w.pth", **SMALL)
    new = create_model("uniformer_s", weights=tmp_path / "w.pth", reset_head=True, **SMALL)
    new, old = new.state_dict(), old.state_dict()
    assert torch.equal(new["norm.weight"], old["norm.weight"])
    assert not torch.equal(new["head.weight"], old["head.weight"])


def test_weights_are_loaded_by_name_path_and_start(tmp_path, monkeypatch):
    small: dict[str, Any] = {
        "depth": (1, 1, 1, 1),
        "embed_dim": (64, 64, 64, 64),
    }  # heads as wide as in the released ones
    monkeypatch.setattr(fetch, "PRETRAINED", tmp_path)
    monkeypatch.setattr(fetch, "RELEASED", tmp_path / "released.json")
    table = {"weights": {"uniformer_small_in1k": {"google_drive": "x"}}}
    (tmp_path / "released.json").write_text(json.dumps(table))
    image = create_model("uniformer_image_s", **small)
    torch.save({"model": image.state_dict()}, tmp_path / "uniformer_small_in1k.pth")
    video = create_model("uniformer_s", num_classes=7, weights="start", **small)
    assert torch.equal(video.state_dict()["norm.weight"], image.state_dict()["norm.weight"])
    kernel = video.state_dict()["patch_embed1.proj.weight"]
    torch.testing.assert_close(kernel.sum(2), image.state_dict()["patch_embed1.proj.weight"])

    path = tmp_path / "uniformer_small_in1k.pth"
    with pytest.raises(ValueError, match="1000 classes and the model 400"):
        create_model("uniformer_s", weights=path, **small)
    again = create_model("uniformer_image_s", weights="uniformer_small_in1k", **small)
    assert all(torch.equal(a, b) for a, b in zip(again.parameters(), image.parameters(), strict=True))


def test_every_start_is_released():
    assert {variant.start for variant in VARIANTS.values()} - {""} <= fetch.released_weights().keys()


@pytest.mark.slow
def test_importing_the_package_imports_no_torch():
    code = (
        "import sys, slowfast; assert 'torch' not in sys.modules; slowfast.create_model; assert 'torch' in sys.modules"
    )
    subprocess.run([sys.executable, "-c", code], check=True)
    assert not hasattr(slowfast, "nothing")
