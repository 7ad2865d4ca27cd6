"""Test that every model of the zoo has the interface of timm's models."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from small_networks import SMALL, small, video_for
from timm.data import create_transform, resolve_model_data_config
from timm.models import group_parameters
from timm.models._features import FeatureGetterNet
from torch import nn

from slowfast import create_model, list_models
from slowfast.models.uniformerv2 import UniFormerV2


def meta(name: str, **options: Any) -> Any:
    with torch.device("meta"):
        return create_model(name, num_frames=4, **options).eval()


@pytest.fixture(scope="module", params=list_models())
def model(request) -> Any:
    """Return a model of the zoo with tensors on the device meta; tests must not change it."""
    return meta(request.param)


def empty(model: Any, batch: int = 2) -> torch.Tensor:
    return torch.zeros(batch, *model.input_shape, device="meta")


def test_data_configuration_is_read_by_timm(model):
    name = model.pretrained_cfg["architecture"]
    images = "_image_" in name
    assert name in list_models() and model.default_cfg == model.pretrained_cfg
    expected = {"xxs": 128, "xs": 192, "336": 336}.get(name.rpartition("_")[2], 224)
    data = resolve_model_data_config(model)
    assert data["input_size"] == model.input_shape == (3, *(() if images else (4,)), expected, expected)
    assert data["mean"] == ((0.485, 0.456, 0.406) if images else (0.45,) * 3)
    assert data["std"] == ((0.229, 0.224, 0.225) if images else (0.225,) * 3)
    assert model.pretrained_cfg["num_classes"] == model.num_classes == (1000 if images else 400)
    assert model.get_submodule(model.pretrained_cfg["first_conv"]).weight.shape[1] == 3
    if images:  # as in the validation of the recipes: int(256 / 224 * size)
        assert int(expected / data["crop_pct"]) == int(256 / 224 * expected)
        assert create_transform(**data)


@pytest.mark.slow
def test_features_and_head_have_the_declared_sizes(model):
    features = model.forward_features(empty(model))
    assert model.forward_head(features, pre_logits=True).shape == (2, model.num_features)
    assert model.forward_head(features).shape == (2, model.num_classes)
    assert model(empty(model, batch=0)).shape == (0, model.num_classes)
    names = model.pretrained_cfg["classifier"]
    layers, names = model.get_classifier(), names if isinstance(names, tuple) else (names,)
    layers = layers if isinstance(layers, tuple) else (layers,)
    assert [model.get_submodule(name) for name in names] == [*layers]
    for layer in layers:
        assert (layer.in_features, layer.out_features) == (model.num_features, model.num_classes)


def test_intermediate_maps_have_the_shapes_of_feature_info(model):
    info = model.feature_info
    for entry in info:
        assert isinstance(model.get_submodule(entry["module"]), nn.Module)
    maps = model.forward_intermediates(empty(model), intermediates_only=True)
    assert len(maps) == len(info)
    for entry, output in zip(info, maps, strict=True):
        assert ("temporal_reduction" in entry) == (len(model.input_shape) == 4)
        strides = [*[entry[key] for key in ("temporal_reduction",) if key in entry], *[entry["reduction"]] * 2]
        grid = [size // stride for size, stride in zip(model.input_shape[1:], strides, strict=True)]
        assert output.shape == (2, entry["num_chs"], *grid)
    with pytest.raises(ValueError, match="NHWC"):
        model.forward_intermediates(empty(model), output_fmt="NHWC")


def test_parameter_groups_run_from_input_to_output(model):
    fine, coarse = (group_parameters(model, model.group_matcher(coarse=coarse)) for coarse in (False, True))
    for groups in (fine, coarse):
        assert sorted(name for names in groups.values() for name in names) == sorted(dict(model.named_parameters()))
        assert model.pretrained_cfg["first_conv"] in {name.rpartition(".")[0] for name in groups[0]}
        last = groups[len(groups) - 1]
        assert all(any(name.startswith(head) for name in last) for head in model.head_names)
    if isinstance(model, UniFormerV2):
        transformer = model.backbone.transformer
        assert len(fine) == 2 + len(transformer.resblocks) + len(transformer.dec) and len(coarse) == 4
    else:
        blocks = [len(getattr(model, f"blocks{stage}")) for stage in (1, 2, 3, 4)]
        # stem, blocks, classifiers; the norm before those goes with the last block
        assert len(fine) == 2 + sum(blocks) and len(coarse) == 6


@pytest.mark.slow
@pytest.mark.parametrize("name", list_models())
def test_reset_classifier_changes_width_and_pooling(name):
    model = meta(name, num_classes=11)
    features = model.forward_features(empty(model))
    width = (2, model.num_features)
    assert model.num_classes == 11 and model.pretrained_cfg["num_classes"] in (400, 1000)
    model.reset_classifier(7, global_pool=model.global_pool)
    assert model.num_classes == 7 and model.forward_head(features).shape == (2, 7)
    model.reset_classifier(0)
    assert model.num_classes == 0 and model.forward_head(features).shape == width
    assert model.forward_head(features, pre_logits=True).shape == width
    if isinstance(model, UniFormerV2):  # its features are a token
        with pytest.raises(ValueError, match=r"global_pool '' .*'token'"):
            model.reset_classifier(0, "")
    else:
        model.reset_classifier(0, "")
        assert model.forward_head(features) is features
        with pytest.raises(ValueError, match=r"global_pool '' .*'avg'"):
            model.reset_classifier(7)
        model.reset_classifier(7, "avg")
        assert model.forward_head(features).shape == (2, 7)


def test_a_new_classifier_has_the_type_and_device_of_the_network():
    model = small("uniformer").double()
    model.reset_classifier(7)
    assert model(video_for("uniformer").double()).shape == (2, 7)


@pytest.mark.slow
def test_features_only_gives_the_declared_maps(model):
    name, info = model.pretrained_cfg["architecture"], model.feature_info
    features = meta(name, features_only=True)
    assert isinstance(features, FeatureGetterNet)
    assert features.feature_info.channels() == [entry["num_chs"] for entry in info[-4:]]
    assert features.feature_info.reduction() == [entry["reduction"] for entry in info[-4:]]
    features = meta(name, features_only=True, out_indices=(0, 1))
    assert [m.shape[1] for m in features(empty(model))] == [entry["num_chs"] for entry in info[:2]]
    with pytest.raises(ValueError, match="out_indices"):
        meta(name, features_only=True, out_indices=(99,))


@pytest.mark.parametrize("name", SMALL)
def test_intermediate_maps_are_the_outputs_of_their_modules(name):
    model, video, seen = small(name), video_for(name), {}
    for i, entry in enumerate(model.feature_info):
        module = model.get_submodule(entry["module"])
        module = module[-1] if isinstance(module, nn.ModuleList) else module
        module.register_forward_hook(
            lambda _m, _i, out, i=i: seen.update({i: out[0] if isinstance(out, tuple) else out})
        )
    with torch.no_grad():
        features, maps = model.forward_intermediates(video)
        for i, output in enumerate(maps):
            expected = seen[i][0] if isinstance(seen[i], tuple) else seen[i]
            if isinstance(model, UniFormerV2):  # (B, T, 1 + HW, C)
                output, expected = output.permute(0, 2, 3, 4, 1).flatten(2, 3), expected[:, :, 1:]
            assert torch.equal(output, expected)
        assert torch.equal(features, model.forward_features(video))
        assert torch.equal(model.forward_head(features), model(video))
        assert len(model.forward_intermediates(video, 2, intermediates_only=True)) == 2
        early, (output,) = model.forward_intermediates(video, [1], stop_early=True)
        assert torch.equal(output, maps[1])
        if not isinstance(model, UniFormerV2):
            assert torch.equal(early, maps[1])
            assert torch.equal(model.forward_intermediates(video, [-1], norm=True)[1][0], features)


@pytest.mark.parametrize("name", SMALL)
@pytest.mark.parametrize("last", [1, 2])
def test_all_parameters_of_a_truncated_network_are_trained(name, last):
    model, video = small(name), video_for(name)
    expected = model.forward_intermediates(video, [0, last], intermediates_only=True)
    cut: Any = FeatureGetterNet(model, out_indices=(0, last))
    for ours, theirs in zip(cut(video), expected, strict=True):
        assert torch.equal(ours, theirs)
    total = torch.stack([output.sum() for output in cut.train()(video)]).sum()
    if name != "v2_frozen":  # in it, nothing before the global blocks is trained
        total.backward()
    assert not [n for n, parameter in cut.named_parameters() if parameter.requires_grad and parameter.grad is None]
    cut.model.set_grad_checkpointing(True)
    assert len(cut(video)) == 2


def test_features_only_reads_a_file_with_a_classifier(tmp_path):
    whole = create_model("uniformer_xxs", num_frames=4).eval()
    torch.save(whole.state_dict(), tmp_path / "w.pth")
    features: Any = create_model("uniformer_xxs", 4, weights=tmp_path / "w.pth", features_only=True, out_indices=(2, 3))
    video = torch.randn(1, 3, 4, 64, 64)
    with torch.no_grad():
        maps = features.eval()(video)
        expected = whole.forward_intermediates(video, (2, 3), intermediates_only=True)
    assert len(maps) == 2 and all(torch.equal(ours, theirs) for ours, theirs in zip(maps, expected, strict=True))
