"""Test `create_model` with released weights: classes by name, features, head widths that shapes do not show."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch
from small_networks import configuration, initialized
from torch import Tensor

from slowfast import create_model
from slowfast.engine.test import load_model
from slowfast.utils.class_names import kinetics400_names
from slowfast.weights.class_order import places_of_rows

SMALL: dict[str, Any] = {"depth": (1, 1, 1, 1), "embed_dim": (8, 16, 32, 32), "head_dim": 16}
IMAGE: dict[str, Any] = {"depth": (1, 1, 1, 1), "embed_dim": (64, 64, 64, 64)}


def numbered(rows: int) -> dict[str, Tensor]:
    """Return tensors; each bias of the classifier is its row number."""
    state = dict(create_model("uniformer_s", num_classes=rows, **SMALL).state_dict())
    state["head.bias"] = torch.arange(float(rows))
    return state


def places(model: Any) -> list[int]:
    """Return the output to which each row of the file went."""
    return model.head.bias.argsort().tolist()


def truth(order: str, classes: int) -> list[Any]:
    found = places_of_rows(order, classes)
    assert found is not None
    return found


def test_a_model_of_the_zoo_names_its_classes(tmp_path):
    torch.save(numbered(400), tmp_path / "uniformer_small_k400_8x8.pth")
    model = create_model("uniformer_s", weights=tmp_path / "uniformer_small_k400_8x8.pth", **SMALL)
    assert model.class_names == kinetics400_names()
    assert places(model) == truth("k400", 400)
    # saved and loaded again as tensors, they are not read in the authors' order
    for content in (model.state_dict(), {"model": model.state_dict()}):
        torch.save(content, tmp_path / "again.pth")
        again = create_model("uniformer_s", weights=tmp_path / "again.pth", **SMALL)
        assert torch.equal(again.head.bias, model.head.bias) and again.class_names == model.class_names  # pyright: ignore
    own = [*reversed(kinetics400_names())]
    model = create_model("uniformer_s", weights=tmp_path / "uniformer_small_k400_8x8.pth", class_names=own, **SMALL)
    assert model.class_names == own and places(model) == [399 - place for place in truth("k400", 400)]
    as_sorted = create_model(
        "uniformer_s", weights=tmp_path / "uniformer_small_k400_8x8.pth", class_order="sorted", **SMALL
    )
    assert places(as_sorted) == [*range(400)]
    new = create_model("uniformer_s", weights=tmp_path / "uniformer_small_k400_8x8.pth", reset_head=True, **SMALL)
    assert new.class_names is None
    with pytest.raises(ValueError, match="2 class names for 400 classes"):
        create_model("uniformer_s", class_names=["a", "b"], **SMALL)


def test_without_names_the_outputs_are_in_the_order_of_the_sorted_names(tmp_path):
    torch.save(numbered(600), tmp_path / "w.pth")
    model = create_model("uniformer_s", num_classes=600, weights=tmp_path / "w.pth", **SMALL)
    assert model.class_names is None and places(model) == truth("k600_uniformer", 600)
    torch.save(model.state_dict(), tmp_path / "again.pth")
    again = create_model("uniformer_s", num_classes=600, weights=tmp_path / "again.pth", **SMALL)
    assert torch.equal(again.head.bias, model.head.bias)  # pyright: ignore


@pytest.mark.parametrize(
    "form", ["state_dict", "of a wrapper", "module", "wrapper", "module in a checkpoint", "wrapper in a checkpoint"]
)
@pytest.mark.parametrize("start", ["nothing", "released", "new classifier"])
def test_a_saved_model_is_loaded_unchanged(start, form, tmp_path):
    """The same applies after a training on the same number of other classes, without class names."""
    released = tmp_path / "uniformer_small_k400_8x8.pth"
    torch.save(numbered(400), released)
    model: Any = create_model("uniformer_s", weights=None if start == "nothing" else released, **SMALL)
    if start == "new classifier":
        model.reset_classifier(400)
    model.head.bias.data = torch.rand(400)
    saved = {
        "state_dict": model.state_dict(),
        "of a wrapper": torch.nn.DataParallel(model).state_dict(),
        "module": model,
        "wrapper": torch.nn.DataParallel(model),
        "wrapper in a checkpoint": {"model": torch.nn.DataParallel(model)},
        "module in a checkpoint": {"model": model, "epoch": 3},
    }[form]
    torch.save(saved, tmp_path / "again.pth")
    again: Any = create_model("uniformer_s", weights=tmp_path / "again.pth", **SMALL)
    assert torch.equal(again.head.bias, model.head.bias)
    assert again.class_names == (kinetics400_names() if start == "released" else None)


def test_a_new_classifier_has_no_class_names(tmp_path):
    torch.save(numbered(400), tmp_path / "uniformer_small_k400_8x8.pth")
    model = create_model("uniformer_s", weights=tmp_path / "uniformer_small_k400_8x8.pth", **SMALL)
    model.reset_classifier(12)
    assert model.class_names is None
    torch.save(model.state_dict(), tmp_path / "again.pth")
    assert create_model("uniformer_s", num_classes=12, weights=tmp_path / "again.pth", **SMALL).class_names is None


@pytest.mark.parametrize("names", [5, ["a", 1], {"a": 0}])
def test_class_names_of_another_form_are_passed_over(names, tmp_path):
    state = create_model("uniformer_s", num_classes=3, **SMALL).state_dict()
    state._metadata[""]["class_names"] = names  # pyright: ignore[reportAttributeAccessIssue]
    for content in ({"model": dict(state), "class_names": names}, state):
        torch.save(content, tmp_path / "a.pth")
        assert create_model("uniformer_s", num_classes=3, weights=tmp_path / "a.pth", **SMALL).class_names is None


@pytest.mark.parametrize("network", ["uniformer_s", "uniformer_xxs"])
def test_features_of_a_file_with_a_classifier(network, tmp_path):
    options = SMALL if network == "uniformer_s" else {**SMALL, "prune_ratio": ((), (), (1,), (0.5,))}
    whole = create_model(network, num_classes=5, **options).eval()
    torch.save({"model_state": whole.state_dict()}, tmp_path / "w.pth")
    model = create_model(network, num_classes=0, weights=tmp_path / "w.pth", **options).eval()
    video = torch.randn(1, 3, 8, 64, 64)
    with torch.no_grad():
        assert torch.equal(model.forward_features(video), whole.forward_features(video))
        assert model(video).shape == (1, 32)
    assert {"head.weight", "head.bias"} <= {*model.load_report.left_out} and not model.load_report.dropped  # pyright: ignore


# ---- token labelling ------------------------------------------------------------------------------------------------


def save_image(path: Path, head_dim: int, aux_head: bool = True) -> Any:
    """Save weights in the authors' form, of a small network with heads of `head_dim` channels."""
    torch.manual_seed(0)
    model = create_model("uniformer_image_s", num_classes=7, head_dim=head_dim, aux_head=aux_head, **IMAGE)
    for name, value in model.state_dict().items():
        if name.endswith("qkv.weight"):
            value.mul_(50)  # attention that is not flat, so that the heads matter
    torch.save({"model": model.state_dict()}, path)
    return model.eval()


@pytest.mark.parametrize(
    ("name", "file", "head_dim"),
    [
        ("uniformer_image_s", "uniformer_small_tl_224.pth", 32),
        ("uniformer_image_s", "uniformer_small_in1k_token_labeling.pth", 32),
        ("uniformer_image_s", "uniformer_small_dim64_tl_224.pth", 64),
        ("uniformer_image_s", "uniformer_small_tl_384.pth", 32),
        ("uniformer_image_b", "uniformer_base_tl_224.pth", 32),
        ("uniformer_image_b", "uniformer_base_dim64_tl_224.pth", 64),
    ],
)
def test_weights_of_token_labelling_choose_their_heads(name, file, head_dim, tmp_path):
    trained = save_image(tmp_path / file, head_dim)
    image = torch.randn(2, 3, 64, 64)
    model = create_model(name, num_classes=7, weights=tmp_path / file, **IMAGE).eval()
    with torch.no_grad():
        assert torch.equal(model(image), trained(image))
        features = create_model(name, num_classes=0, weights=tmp_path / file, **IMAGE).eval()
        assert torch.equal(features.forward_features(image), trained.forward_features(image))
        assert features(image).shape == (2, 64)
    with pytest.raises(ValueError, match=rf"\b{head_dim} channels.*head_dim={96 - head_dim}"):
        create_model(name, num_classes=7, weights=tmp_path / file, head_dim=96 - head_dim, **IMAGE)


def test_unknown_weights_of_token_labelling_are_refused_unless_the_heads_are_given(tmp_path):
    path = tmp_path / "my.pth"
    trained = save_image(path, 32)
    image = torch.randn(1, 3, 64, 64)
    more: dict[str, Any]
    for more in ({}, {"aux_head": True}):
        with pytest.raises(ValueError, match=r"head_dim=32 .* or head_dim=64"):
            create_model("uniformer_image_s", num_classes=7, weights=path, **IMAGE, **more)
    with torch.no_grad():
        model = create_model("uniformer_image_s", num_classes=7, weights=path, head_dim=32, **IMAGE).eval()
        assert torch.equal(model(image), trained(image))
        other = create_model("uniformer_image_s", num_classes=7, weights=path, head_dim=64, **IMAGE).eval()
        assert not torch.allclose(other(image), trained(image), rtol=1e-3)  # a wrong guess would not be detected
    save_image(path, 64, aux_head=False)  # networks trained without it have heads of 64
    create_model("uniformer_image_s", num_classes=7, weights=path, **IMAGE)


def test_a_run_refuses_known_weights_with_heads_of_another_width(tmp_path):
    path = str(tmp_path / "uniformer_small_tl_224.pth")
    trained = save_image(Path(path), 32)
    keys = {"DEPTH": [1] * 4, "EMBED_DIM": [64] * 4, "AUX_HEAD": True, "HEAD_DIM": 64, "PRETRAIN_NAME": path}
    other = {"MODEL.MODEL_NAME": "Uniformer_image", "MODEL.NUM_CLASSES": 7, "TEST.DATASET": "imagenet"}
    cfg = configuration({f"UNIFORMER.{key}": value for key, value in keys.items()}, other)
    with pytest.raises(ValueError, match=r"uniformer_small_tl_224.*UNIFORMER.HEAD_DIM 32.* has 64"):
        load_model(cfg, path, None)
    with pytest.raises(ValueError, match=r"uniformer_small_tl_224.*UNIFORMER.HEAD_DIM 32.* has 64"):
        initialized(cfg)
    cfg.UNIFORMER.HEAD_DIM = 32
    initialized(cfg)
    image = torch.randn(1, 3, 64, 64)
    with torch.no_grad():
        assert torch.equal(load_model(cfg, path, None)[0].eval()(image), trained(image))
