"""Test that released classifiers predict the right class names on lists in another order.

The classifiers here have zero weights, and the bias of a row is its number: the output with bias r shows where row r of
the file went.
"""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
import torch
from small_networks import LIGHT_KEYS as LIGHT
from small_networks import UNIFORMER_KEYS as V1
from small_networks import UNIFORMERV2_KEYS as V2
from small_networks import configuration, initialized
from torch import Tensor, nn

from slowfast.config.load import ConfigNode
from slowfast.engine.test import load_model
from slowfast.models import build_model
from slowfast.utils.class_names import kinetics400_names
from slowfast.weights.class_order import places_of_rows, rows_of_k710, rows_of_places
from slowfast.weights.layouts import to_mmaction2

# rows of the authors' label map of Kinetics-400
OFFICIAL = {
    **{0: "riding a bike", 1: "marching", 2: "dodgeball", 3: "playing cymbals", 16: "applauding", 158: "air drumming"},
    **{175: "passing American football (in game)", 302: "archery", 341: "abseiling"},
    **{263: "massaging person's head", 398: "applying cream", 399: "playing badminton"},
}


def configured(network: dict[str, Any], classes: int, *more: object) -> ConfigNode:
    cfg = configuration(network, {"MODEL.NUM_CLASSES": classes})
    cfg.merge_from_list([*more])
    return cfg


def heads(model: nn.Module) -> list[str]:
    return [name.removesuffix(".weight") for name, value in model.state_dict().items()
            if value.ndim == 2 and name.startswith(tuple(model.head_names))]  # fmt: skip  # pyright: ignore


def numbered(network: dict[str, Any], rows: int) -> dict[str, Tensor]:
    """Return tensors by the official names; each bias of the classifier is its row number."""
    model = build_model(configured(network, rows))
    state = {name: value.clone() for name, value in model.state_dict().items()}
    for head in heads(model):
        state[f"{head}.weight"].zero_()
        state[f"{head}.bias"] = torch.arange(float(rows))
    return state


def predictions(model: nn.Module, names: list[str] | None) -> dict[int, str]:
    """Return, by row r of the file, the class name of the output that took row r."""
    assert names is not None
    (rows,) = {tuple(model.state_dict()[f"{head}.bias"].int().tolist()) for head in heads(model)}
    assert len(set(rows)) == len(names) == len(rows)
    return dict(zip(rows, names, strict=True))


def names_of(classes: int) -> list[str]:
    """Return the class names beside the lists of `prepare_data.py lists`: sorted."""
    return sorted([*kinetics400_names(), *(f"class {i:03d}" for i in range(classes - 400))])


def truth(order: str, classes: int) -> dict[int, str]:
    places = places_of_rows(order, classes)
    assert places is not None
    return {row: names_of(classes)[place] for row, place in enumerate(places)}


WRAPS = {
    "trainer": lambda state: {"epoch": 99, "model_state": state, "optimizer_state": {}, "cfg": "MODEL:\n  ARCH: x\n"},
    "model": lambda state: {"model": state},
    "bare": lambda state: state,
}


@pytest.mark.parametrize("wrap", WRAPS)
@pytest.mark.parametrize(
    ("network", "classes", "order", "file"),
    [
        (V1, 400, "k400", "uniformer_small_k400_16x4.pth"),
        (V1, 400, "k400", "unknown.pth"),
        (LIGHT, 400, "k400", "unknown.pth"),
        (V2, 400, "k400", "k400_k710_uniformerv2_b16_8x224.pyth"),
        (V2, 400, "k400", "unknown.pyth"),
        (V1, 600, "k600_uniformer", "uniformer_base_k600_32x4.pth"),
        (V1, 600, "k600_uniformer", "unknown.pth"),
        (V2, 600, "k600_v2", "k600_uniformerv2_b16_8x224.pyth"),
        (V2, 600, "k600_v2", "unknown.pyth"),
        (V2, 700, "k700_v2", "unknown.pyth"),
    ],
)
def test_every_row_predicts_its_name(network, classes, order, file, wrap, tmp_path):
    torch.save(WRAPS[wrap](numbered(network, classes)), tmp_path / file)
    expected = truth(order, classes)
    if classes == 400:
        assert OFFICIAL.items() <= expected.items()
    path = str(tmp_path / file)
    start = "UNIFORMERV2.PRETRAIN" if network is V2 else "UNIFORMER.PRETRAIN_NAME"
    cfg = configured(network, classes, "TEST.DATASET", "kinetics_sparse", "TRAIN.DATASET", "kinetics", start, path)
    shuffled = np.random.default_rng(1).permutation(names_of(classes)).tolist()
    for names in (names_of(classes), shuffled):
        tested, _, of_outputs = load_model(cfg, path, names)
        assert of_outputs == names and predictions(tested, names) == expected
        trained = initialized(cfg, names)
        assert predictions(trained, names) == expected
    # lists of the authors: their numbers, and no names
    tested, _, of_outputs = load_model(cfg, path, None)
    assert torch.equal(tested.state_dict()[f"{heads(tested)[0]}.bias"], torch.arange(float(classes)))
    assert of_outputs is None if classes > 400 else predictions(tested, of_outputs) == expected


@pytest.mark.parametrize("file", ["k710_uniformerv2_b16_8x224.pyth", "unknown.pyth"])
@pytest.mark.parametrize(("classes", "order"), [(400, "k400"), (600, "k600_v2"), (700, "k700_v2")])
def test_kinetics_710_gives_the_classes_of_the_others(classes, order, file, tmp_path):
    """UNIFORMERV2.PRETRAIN needs no file of rows."""
    torch.save(numbered(V2, 710), tmp_path / file)
    cfg = configured(V2, classes, "TRAIN.DATASET", "kinetics_sparse", "UNIFORMERV2.PRETRAIN", str(tmp_path / file))
    rows = rows_of_k710(classes)
    assert rows is not None
    expected = {rows[row]: name for row, name in truth(order, classes).items()}
    for names in (names_of(classes), names_of(classes)[::-1]):
        model = initialized(cfg, names)
        assert predictions(model, names) == expected and "classifier rows 710 ->" in str(model.load_report)
    model = initialized(cfg)  # the authors' own lists
    assert model.state_dict()[f"{heads(model)[0]}.bias"].int().tolist() == rows
    cfg.UNIFORMERV2.DELETE_SPECIAL_HEAD = True
    model = initialized(cfg, names_of(classes))
    assert len(model.load_report.dropped) == 2  # pyright: ignore


@pytest.mark.parametrize("file", ["uniformerv2-base-p16-res224_clip-pre_u8_kinetics710-rgb_20230612-63cdbad9", "own"])
@pytest.mark.parametrize("classes", [400, 600, 700])
def test_kinetics_710_of_mmaction2_has_another_order(classes, file, tmp_path):
    path = str(tmp_path / f"{file}.pth")
    torch.save({"state_dict": to_mmaction2(numbered(V2, 710)), "meta": {}}, path)
    cfg = configured(V2, classes, "TRAIN.DATASET", "kinetics_sparse", "UNIFORMERV2.PRETRAIN", path)
    rows = rows_of_places("k710_mmaction2", classes)
    assert rows is not None
    expected = dict(zip(rows, names_of(classes), strict=True))
    for names in (names_of(classes), names_of(classes)[::-1]):
        model = initialized(cfg, names)
        assert predictions(model, names) == expected
    model = initialized(cfg)  # MMAction2's own lists, whose classes are sorted
    assert model.state_dict()[f"{heads(model)[0]}.bias"].int().tolist() == rows


@pytest.mark.parametrize("network", [V1, V2])
def test_files_of_mmaction2_and_of_the_authors_agree(network, tmp_path):
    """The rows of MMAction2 are sorted."""
    model = build_model(configured(network, 400)).eval()
    official = model.state_dict()
    places = places_of_rows("k400", 400)
    rows = np.argsort(np.array(places))
    theirs = {name: value[rows] if name.startswith(tuple(heads(model))) else value for name, value in official.items()}
    torch.save({"model_state": official}, tmp_path / "official.pyth")
    torch.save({"state_dict": to_mmaction2(theirs), "meta": {}}, tmp_path / "mmaction2.pth")
    video = torch.randn(1, 3, 8, 32, 32)
    with torch.no_grad():
        for names in (names_of(400), names_of(400)[::-1], None):
            logits = {}
            for file in ("official.pyth", "mmaction2.pth"):
                cfg = configured(network, 400, "TEST.DATASET", "kinetics_sparse")
                tested, _, of_outputs = load_model(cfg, str(tmp_path / file), names)
                scores = tested.eval()(video)[0].tolist()
                logits[file] = dict(zip(of_outputs or (), scores, strict=True))
            assert logits["official.pyth"] == pytest.approx(logits["mmaction2.pth"], abs=1e-6)
            assert len(logits["official.pyth"]) == 400


@pytest.mark.parametrize("file", ["uniformer_small_sthv1_16_prek400.pth", "unknown.pth"])
def test_rows_of_something_something_v1_follow_the_list(file, tmp_path, monkeypatch):
    """Rows are the sorted templates; the lines of the official labels.csv, and so our lists, are not."""
    verbs = ("Pushing", "Holding", "Lifting", "Moving", "Poking", "Tilting")
    names = [f"{verb} something {where}" for verb in verbs
             for where in np.random.default_rng(2).permutation([f"near {i:02d}" for i in range(29)])]  # fmt: skip
    monkeypatch.chdir(tmp_path)
    torch.save({"model_state": numbered(V1, 174)}, file)
    model, _, _ = load_model(configured(V1, 174, "TEST.DATASET", "sth"), file, names)
    assert predictions(model, names) == dict(enumerate(sorted(names)))
    # V2's labels.json is almost sorted, and its numbers are the rows
    listed = sorted(names)
    listed[3], listed[4] = listed[4], listed[3]
    for name in ("uniformer_small_sthv2_16_prek400.pth", "unknown.pth"):
        torch.save(numbered(V1, 174), name)
        model, _, _ = load_model(configured(V1, 174, "TEST.DATASET", "sth"), name, listed)
        assert predictions(model, listed) == dict(enumerate(listed))


def test_a_configured_order_has_precedence(tmp_path):
    """MODEL.CLASS_ORDER sets the order of weights whose order is not found correctly."""
    path, names = str(tmp_path / "w.pth"), names_of(400)
    torch.save(numbered(V1, 400), path)
    by_number = np.random.default_rng(3).permutation(names).tolist()
    (tmp_path / "map.txt").write_text("".join(f"{name}\t{row}\n" for row, name in enumerate(by_number)))
    for choice, expected in (
        ("sorted", dict(enumerate(names))),
        ("released", truth("k400", 400)),
        (str(tmp_path / "map.txt"), dict(enumerate(by_number))),
    ):
        cfg = configured(
            *(V1, 400, "MODEL.CLASS_ORDER", choice, "UNIFORMER.PRETRAIN_NAME", path),
            *("TEST.DATASET", "kinetics", "TRAIN.DATASET", "kinetics"),
        )
        assert predictions(load_model(cfg, path, names)[0], names) == expected
        model = initialized(cfg, names)
        assert predictions(model, names) == expected
    with pytest.raises(ValueError, match="400 class names, of which 1 "):
        load_model(cfg, path, [*names[:-1], "new"])
    cfg = configured(V1, 12, "MODEL.CLASS_ORDER", "released")
    torch.save(numbered(V1, 12), path)
    with pytest.raises(ValueError, match=r"MODEL.CLASS_ORDER released: .* 12 classes"):
        load_model(cfg, path, None)
    (tmp_path / "map.txt").write_text("a\nb\n")
    with pytest.raises(ValueError, match="2 class names for the 12 rows"):
        load_model(configured(V1, 12, "MODEL.CLASS_ORDER", str(tmp_path / "map.txt")), path, [*"abcdefghijkl"])


def test_a_configured_order_is_not_that_of_the_checkpoints_of_its_training(tmp_path):
    """A training puts the rows into the order of its list; a test or prediction of it must not do so again."""
    path, names = str(tmp_path / "w.pth"), names_of(400)
    torch.save(numbered(V1, 400), path)
    (tmp_path / "map.txt").write_text("\n".join([*names[7:], *names[:7], "of another data set"]))
    for choice, start in (("released", 400), ("sorted", 400), (str(tmp_path / "map.txt"), 401)):
        torch.save(numbered(V1, start), path)
        cfg = configured(V1, 400, "MODEL.CLASS_ORDER", choice, "TRAIN.CHECKPOINT_FILE_PATH", path)
        model = initialized(cfg, names[::-1])
        trained = str(tmp_path / "trained.pyth")
        torch.save({"model_state": model.state_dict(), "class_names": names[::-1]}, trained)
        for given in (names[::-1], None):
            tested, _, of_outputs = load_model(cfg, trained, given)
            assert torch.equal(tested.get_parameter("head.bias"), model.get_parameter("head.bias"))
            assert of_outputs == names[::-1]


def test_rows_without_a_known_order_keep_it(tmp_path):
    """Weights of the user keep their order: other classes, other data, or names in the file."""
    path = str(tmp_path / "w.pth")
    own = [f"own {i:03d}" for i in reversed(range(700))]
    for network, classes, names, dataset in (
        (V1, 12, [*"lkjihgfedcba"], "kinetics"),
        (V1, 400, own[:400], "kinetics"),
        (V1, 600, own[:600], "kinetics"),
        (V2, 700, own, "kinetics_sparse"),
        (V1, 400, names_of(400), "mit"),
    ):
        torch.save(numbered(network, classes), path)
        cfg = configured(network, classes, "TEST.DATASET", dataset)
        model, _, of_outputs = load_model(cfg, path, names)
        assert predictions(model, of_outputs) == dict(enumerate(names))
    torch.save({"model_state": numbered(V1, 400), "class_names": names_of(400)}, path)
    cfg = configured(V1, 400, "TEST.DATASET", "kinetics")
    assert predictions(load_model(cfg, path, names_of(400))[0], names_of(400)) == dict(enumerate(names_of(400)))
    assert load_model(cfg, path, None)[2] == names_of(400)
    with pytest.raises(ValueError, match=r"'abseiling' .*'zumba'"):
        load_model(cfg, path, names_of(400)[::-1])
    torch.save({"model_state": numbered(V1, 400), "class_names": None}, path)  # of a training on a list without names
    assert predictions(load_model(cfg, path, names_of(400))[0], names_of(400)) == dict(enumerate(names_of(400)))


def test_names_of_released_classes_are_used_in_fine_tuning(tmp_path):
    """MODEL.HEAD_ROWS names finds the classes of Kinetics-400 without a file."""
    path = str(tmp_path / "uniformer_small_k400_16x8.pth")
    torch.save(numbered(V1, 400), path)
    cfg = configured(V1, 3, "TRAIN.CHECKPOINT_FILE_PATH", path, "MODEL.HEAD_ROWS", "names")
    model = initialized(cfg, ["Abseiling", "playing_badminton", "new"])
    assert model.state_dict()["head.bias"][:2].tolist() == [341, 399]
    assert model.load_report.fresh_classes == ["new"]  # pyright: ignore


def test_a_file_of_class_names_counts_more_than_the_names_in_the_checkpoint(tmp_path):
    path = str(tmp_path / "w.pth")
    torch.save({"model_state": numbered(V1, 3), "class_names": ["a", "b", "c"]}, path)
    (tmp_path / "map.txt").write_text("c\nb\na\n")
    for rows, names, expected in (("", ["a", "b", "c"], [2, 1, 0]), ("names", ["a", "c"], [2, 0])):
        cfg = configured(
            *(V1, len(names), "TRAIN.CHECKPOINT_FILE_PATH", path),
            *("MODEL.CLASS_ORDER", str(tmp_path / "map.txt"), "MODEL.HEAD_ROWS", rows),
        )
        model = initialized(cfg, names)
        assert model.state_dict()["head.bias"].tolist() == expected
