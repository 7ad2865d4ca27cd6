"""Test the rules for classifiers: rows by number, by name and by default, and files of rows."""

from __future__ import annotations

import json

import pytest
import torch
from torch import nn

from slowfast.models import UniFormer
from slowfast.models.timm_tower import VisionTower
from slowfast.models.uniformerv2 import UniFormerV2
from slowfast.weights.class_order import class_rows
from slowfast.weights.heads import HeadPolicy, read_rows, select_classes
from slowfast.weights.load import load_weights


def small() -> UniFormerV2:
    tower = VisionTower(width=16, layers=1, heads=2, patch=16, resolution=32)
    return UniFormerV2(num_classes=5, backbone=tower, return_list=(0,), n_head=2, no_lmhra=True)


def small_v1() -> UniFormer:
    return UniFormer(num_classes=5, depth=(1, 1, 1, 1), embed_dim=(8, 16, 32, 32), head_dim=16)


def test_class_rows_are_found_by_names():
    trained = ["abseiling", "air drumming", '"hugging (not baby)"', "Yoga"]
    assert class_rows(trained, ["yoga", "air_drumming", "hugging (not baby)"]) == [3, 1, 2]
    assert class_rows(["Holding something", "Pushing something"], ["Pushing [something]"]) == [
        1
    ]  # category.txt of SSv2
    with pytest.raises(ValueError, match=r"2 class names, of which 1 .*'zumba'"):
        class_rows(trained, ["yoga", "zumba"])
    with pytest.raises(ValueError, match="of which 1 "):
        class_rows(["a", "A"], ["a"])


@pytest.mark.parametrize("make", [small, small_v1])
def test_head_of_710_classes_becomes_one_of_400(make):
    big = make()
    big.reset_classifier(710)
    checkpoint = big.state_dict()
    rows = [(7 * i) % 710 for i in range(400)]
    model = make()
    model.reset_classifier(400)
    report = load_weights(model, checkpoint, HeadPolicy("rows", rows=rows))
    assert len(report.loaded) == len(checkpoint) and report.notes == ["classifier rows 710 -> 400"]
    head = "backbone.transformer.proj.2" if make is small else "head"
    for kind in ("weight", "bias"):
        assert torch.equal(model.state_dict()[f"{head}.{kind}"], checkpoint[f"{head}.{kind}"][rows])
    with pytest.raises(ValueError, match=r"reach from 0 to 710.*has 710 classes"):
        load_weights(model, checkpoint, HeadPolicy("rows", rows=[*rows[:-1], 710]))
    with pytest.raises(ValueError, match=r"\b710\b.*\b400\b.*reset_head.*head_rows"):
        load_weights(model, checkpoint)
    with pytest.raises(ValueError, match="no classifier"):
        select_classes({"norm.weight": torch.zeros(3)}, ("head",), rows, {})


def test_rows_of_a_classifier_without_bias_are_selected():
    trained, model = (nn.ModuleDict({"head": nn.Linear(4, classes, bias=False)}) for classes in (3, 2))
    load_weights(model, trained.state_dict(), HeadPolicy("rows", rows=[2, 0]))
    assert torch.equal(model.state_dict()["head.weight"], trained.state_dict()["head.weight"][[2, 0]])


def test_class_names_decide():
    source = small_v1()
    checkpoint = {"model_state": source.state_dict(), "class_names": ["a", "b", "c", "d", "e"]}
    wanted = ["e", "d", "c", "b", "a"]
    with pytest.raises(ValueError, match=r"'a' .*'e' .*head_rows.*reset_head"):
        load_weights(small_v1(), checkpoint, HeadPolicy(class_names=wanted), to_train=True)
    with pytest.raises(ValueError, match=r"class 0 is 'a' there and 'e' here.*as in training"):
        load_weights(small_v1(), checkpoint, HeadPolicy(class_names=wanted))
    model = small_v1()
    load_weights(model, checkpoint, HeadPolicy("by name", wanted))
    assert torch.equal(model.state_dict()["head.weight"], source.state_dict()["head.weight"].flip(0))
    assert load_weights(small_v1(), checkpoint, HeadPolicy("fresh", wanted)).dropped == ["head.weight", "head.bias"]
    assert not load_weights(small_v1(), checkpoint, HeadPolicy(class_names=["a", "b", "c", "d", "e"])).dropped
    with pytest.raises(ValueError, match="no class names in the checkpoint"):
        load_weights(small_v1(), source.state_dict(), HeadPolicy("by name", wanted))


@pytest.mark.parametrize("make", [small, small_v1])
def test_classes_that_the_checkpoint_lacks_get_new_rows(make, caplog):
    source, model = make(), make()
    model.reset_classifier(3)
    head = f"{model.head_names[0]}.2" if make is small else "head"
    fresh = {kind: model.state_dict()[f"{head}.{kind}"][1].clone() for kind in ("weight", "bias")}
    checkpoint = {"model_state": source.state_dict(), "class_names": ["a", "b", "c", "d", "e"]}
    wanted = ["d", "new", "a"]
    with pytest.raises(ValueError, match=r"3 class names, of which 1 .*'new'"):  # a test needs them all
        load_weights(model, checkpoint, HeadPolicy("by name", wanted))
    report = load_weights(model, checkpoint, HeadPolicy("by name", wanted), to_train=True)
    assert report.fresh_classes == ["new"] and "fresh classes 1 (new)" in str(report) and "rows: new" in caplog.text
    for kind in ("weight", "bias"):
        rows, trained = model.state_dict()[f"{head}.{kind}"], source.state_dict()[f"{head}.{kind}"]
        assert torch.equal(rows[0], trained[3]) and torch.equal(rows[2], trained[0])
        assert torch.equal(rows[1], fresh[kind])
    with pytest.raises(ValueError, match=r"2 class names, of which 2 "):
        model.reset_classifier(2)
        load_weights(model, checkpoint, HeadPolicy("by name", ["x", "y"]), to_train=True)
    with pytest.raises(ValueError, match=r"2 class names, of which 1 "):  # the name fits two rows
        checkpoint["class_names"] = ["a", "b", "a", "d", "e"]
        load_weights(model, checkpoint, HeadPolicy("by name", ["a", "b"]), to_train=True)


class OwnHead(nn.Module):
    """A classifier with a hidden layer, and a matrix that is not the weight of a layer."""

    head_names = ("head",)

    def __init__(self) -> None:
        super().__init__()
        self.head = nn.Sequential(nn.Linear(8, 64), nn.GELU(), nn.Linear(64, 3))
        self.head.register_parameter("query", nn.Parameter(torch.randn(1, 8)))
        self.options = ["of", "its", "own"]


def test_any_classifier_keeps_its_class_names_or_starts_anew():
    checkpoint = {"model_state": OwnHead().state_dict(), "class_names": ["a", "b", "c"]}
    tested, fresh = OwnHead(), OwnHead()
    report = load_weights(tested, checkpoint)
    assert len(report.loaded) == 5 and report.class_names == ["a", "b", "c"]
    assert torch.equal(tested.state_dict()["head.query"], checkpoint["model_state"]["head.query"])
    report = load_weights(fresh, checkpoint, HeadPolicy("fresh"), to_train=True)
    assert report.loaded == ["head.query"] and report.class_names is None


@pytest.mark.parametrize("hidden", [2, 8])
def test_rows_of_the_last_layer_of_a_classifier_are_selected(hidden):
    class Network(nn.Module):
        def __init__(self, classes: int) -> None:
            super().__init__()
            self.head = nn.Sequential(nn.Linear(4, hidden), nn.GELU(), nn.Linear(hidden, classes))

    trained, model = Network(3), Network(2)
    checkpoint = {"model_state": trained.state_dict(), "class_names": ["run", "jump", "dive"]}
    load_weights(model, checkpoint, HeadPolicy("by name", ["dive", "run"]), to_train=True)
    found, before = model.state_dict(), trained.state_dict()
    assert torch.equal(found["head.0.weight"], before["head.0.weight"])
    assert torch.equal(found["head.2.weight"], before["head.2.weight"][[2, 0]])


def test_rows_are_read_from_a_file(tmp_path):
    (tmp_path / "rows.json").write_text(json.dumps([3, 1, 2]))
    (tmp_path / "rows.txt").write_text("3\n1\n2\n")
    assert read_rows(str(tmp_path / "rows.json")) == read_rows(str(tmp_path / "rows.txt")) == ([3, 1, 2], [])
    (tmp_path / "names.txt").write_text("abseiling\n7 \nair drumming\n")
    assert read_rows(str(tmp_path / "names.txt")) == ([], ["abseiling", "7", "air drumming"])
    (tmp_path / "map.txt").write_text("riding a bike\t1\nair drumming\t0\n")  # as authors write them
    assert read_rows(str(tmp_path / "map.txt")) == ([], ["air drumming", "riding a bike"])
    (tmp_path / "map.json").write_text('{"0": "abseiling", "1": "air drumming"}')
    assert read_rows(str(tmp_path / "map.json")) == ([], ["abseiling", "air drumming"])
    for content in ("", "[]", '["a", 1]', "[1"):
        (tmp_path / "wrong.txt").write_text(content)
        with pytest.raises(ValueError, match=r"wrong\.txt"):
            read_rows(str(tmp_path / "wrong.txt"))
    with pytest.raises(ValueError, match=r"nothing\.json"):
        read_rows(str(tmp_path / "nothing.json"))
