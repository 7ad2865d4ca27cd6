"""Test checkpoint layouts, inflation, and that weights that do not fit are refused."""

from __future__ import annotations

import json
import re
from pathlib import Path

import numpy as np
import pytest
import torch
from small_networks import LIGHT_KEYS, UNIFORMER_KEYS, UNIFORMERV2_KEYS, configuration, initialized
from torch import Tensor, nn

from slowfast import create_model
from slowfast.config.keys import leaves
from slowfast.models import UniFormer, build_model
from slowfast.weights.heads import HeadPolicy
from slowfast.weights.layouts import extract_state_dict
from slowfast.weights.load import load_weights
from slowfast.weights.tensors import load_tensors

FRESH, IF_MISMATCHED = HeadPolicy("fresh"), HeadPolicy("fresh if mismatched")
ROOT = Path(__file__).parents[2]
INFLATE = json.loads((ROOT / "tests" / "golden" / "inflate.json").read_text())


def small(**options) -> UniFormer:
    return UniFormer(
        **{"num_classes": 5, "depth": (1, 1, 1, 1), "embed_dim": (8, 16, 32, 32), "head_dim": 16, **options}
    )


@pytest.mark.parametrize("prefix", ["module.", "_orig_mod.", "module._orig_mod.", "model.", "model._orig_mod."])
@pytest.mark.parametrize(
    "wrap",
    [
        lambda state: {"model": state},
        lambda state: {"model_state": state, "epoch": 3},
        lambda state: {"model": {"depth": 4}, "state_dict": state},
        lambda state: {"module": state, "lr_scheduler": None},  # DeepSpeed
        lambda state: {"n_averaged": torch.tensor(7), **state},  # AveragedModel
        lambda state: state,
    ],
)
def test_every_layout_of_a_checkpoint_loads(wrap, prefix, tmp_path):
    source, target = small(), small()
    state = {f"{prefix}{name}": value for name, value in source.state_dict().items()}
    torch.save(wrap(state), tmp_path / "weights.pth")
    report = load_weights(target, load_tensors(tmp_path / "weights.pth"))
    assert len(report.loaded) == len(state) and not report.missing
    assert all(
        torch.equal(a, b) for a, b in zip(source.state_dict().values(), target.state_dict().values(), strict=True)
    )


class Whole(nn.Module):
    """A network of a user that consists of one part."""

    def __init__(self, part: str) -> None:
        super().__init__()
        self.add_module(part, small(num_classes=0))
        self.head_names = (f"{part}.head",)


def test_the_counter_of_averaged_weights_is_kept_for_a_network_that_has_it():
    state = torch.optim.swa_utils.AveragedModel(nn.Linear(2, 3)).state_dict()
    assert extract_state_dict(state, state).keys() == state.keys() >= {"n_averaged", "module.weight"}
    assert extract_state_dict(state).keys() == {"weight", "bias"}


@pytest.mark.parametrize("part", ["model", "module", "backbone", "model.model"])
@pytest.mark.parametrize("prefix", ["", "module.", "model."])
def test_a_part_with_the_name_of_a_wrapper_or_of_another_program_is_kept(part, prefix, tmp_path):
    """A trained network of a user must be tested."""
    outer, _, inner = part.partition(".")
    source, target = Whole(inner or outer), Whole(inner or outer)
    if inner:
        source, target = nn.ModuleDict({outer: source}), nn.ModuleDict({outer: target})
    state = {f"{prefix}{name}": value for name, value in source.state_dict().items()}
    torch.save({"model_state": state, "class_names": None}, tmp_path / "best.pyth")
    checkpoint = load_tensors(tmp_path / "best.pyth")
    report = load_weights(target, checkpoint)
    assert len(report.loaded) == len(state)
    assert all(torch.equal(value, source.state_dict()[name]) for name, value in target.state_dict().items())


@pytest.mark.parametrize(
    ("classes", "width", "classes_differ", "model_differs"),
    [(5, 32, False, False), (5, 64, False, True), (7, 32, True, False), (7, 64, False, True)],
)
def test_a_classifier_of_another_width_is_of_another_model(classes, width, classes_differ, model_differs):
    source = small(num_classes=classes, embed_dim=(8, 16, 32, width)).state_dict()
    if not (classes_differ or model_differs):
        load_weights(small(), {"model": source})
        return
    with pytest.raises(ValueError) as caught:
        load_weights(small(), {"model": source})
    assert ("classes and the model" in str(caught.value)) == classes_differ
    assert ("of another model" in str(caught.value)) == model_differs


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16])
def test_kernels_of_half_precision_are_inflated_in_full_precision(dtype):
    target = small()
    kernels = {name: value.to(dtype) for name, value in small(ndim=2).state_dict().items() if value.ndim == 4}
    load_weights(target, {**target.state_dict(), **kernels})
    for name, kernel in kernels.items():
        assert torch.allclose(target.state_dict()[name].sum(2), kernel.float(), rtol=1e-6, atol=0)


@pytest.mark.slow
@pytest.mark.parametrize("name", INFLATE)
def test_image_weights_are_inflated(name, golden, golden_state, golden_input, fill_rest):
    case = INFLATE[name]
    cfg = configuration(case["video_config"])
    with torch.device("meta"):  # all values are replaced
        model = build_model(cfg).eval()
        source = UniFormer(num_classes=1000, ndim=2) if "image" in name else UniFormer(num_classes=400)
    model.to_empty(device="cpu")
    report = load_weights(model, {"model": golden_state(source.state_dict())}, IF_MISMATCHED, to_train=True)
    fill_rest(model, report)
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


def test_a_missing_classifier_gets_initial_values_when_asked():
    checkpoint = {name: value for name, value in small().state_dict().items() if not name.startswith("head.")}
    assert load_weights(small(), checkpoint, FRESH).dropped == ["head.weight", "head.bias"]
    with pytest.raises(ValueError, match="of another model"):
        load_weights(small(), checkpoint)


def test_reset_head_gives_the_classifiers_initial_values():
    """This is so even if the class count is the same, for which the official rule keeps the classifiers."""
    source = small(aux_head=True, ndim=2)
    model = small(aux_head=True, ndim=2)
    fresh = {name: value.clone() for name, value in model.state_dict().items()}
    report = load_weights(model, source.state_dict(), FRESH)
    heads = ["head.weight", "head.bias", "aux_head.weight", "aux_head.bias"]
    assert report.dropped == heads and len(report.loaded) == len(fresh) - 4
    assert all(torch.equal(model.state_dict()[name], fresh[name]) for name in heads)
    assert not load_weights(model, source.state_dict(), IF_MISMATCHED).dropped
    assert torch.equal(model.state_dict()["head.weight"], source.state_dict()["head.weight"])


@pytest.mark.parametrize(
    ("base", "key", "value"),
    [
        (UNIFORMER_KEYS, "UNIFORMER.HEAD_DIM", 32),
        (UNIFORMER_KEYS, "UNIFORMER.QKV_SCALE", 0.5),
        (LIGHT_KEYS, "UNIFORMER.PRUNE_RATIO", [[], [], [1.0], [0.25]]),
        (LIGHT_KEYS, "UNIFORMER.TRADE_OFF", [[], [], [1.0], [0.25]]),
        (UNIFORMERV2_KEYS, "UNIFORMERV2.N_HEAD", 8),
        (UNIFORMERV2_KEYS, "UNIFORMERV2.RETURN_LIST", [0]),
        (UNIFORMERV2_KEYS, "UNIFORMERV2.TOWER", [32, 2, 8, 16, 32]),
    ],
)
def test_options_that_no_shape_shows_must_be_the_same(base, key, value):
    """A checkpoint of this package contains its configuration."""
    cfg, other = configuration(base), configuration(base, {key: value})
    checkpoint = {"model_state": build_model(cfg).state_dict(), "cfg": cfg.dump()}
    load_weights(build_model(cfg), checkpoint)
    load_weights(build_model(other), checkpoint["model_state"])  # without a configuration, nothing shows the difference
    with pytest.raises(ValueError, match=re.escape(f"trained with {key.split('.')[1].lower()} {leaves(cfg)[key]}")):
        load_weights(build_model(other), checkpoint)


def test_the_same_network_written_in_another_way():
    cfg = configuration(LIGHT_KEYS)
    checkpoint = {"model_state": build_model(cfg).state_dict(), "cfg": cfg.dump()}
    longer = {"UNIFORMER.QKV_SCALE": 0.25, "UNIFORMER.PRUNE_RATIO": [[], [], [1.0, 0.1], [0.5, 0.1]]}
    load_weights(build_model(configuration(LIGHT_KEYS, longer)), checkpoint)
    for foreign in ("{", "text", "UNIFORMER: 3", ""):
        load_weights(build_model(cfg), {**checkpoint, "cfg": foreign})


# ---- the start of a training ----------------------------------------------------------------------------------------


def start(tmp_path, classes: int, checkpoint: dict, names: list[str] | None = None, **options: object) -> nn.Module:
    """Make a UniFormerV2 with a number of classes, and initialize it from UNIFORMERV2.PRETRAIN."""
    torch.save(checkpoint, tmp_path / "weights.pth")
    pretrain = {"UNIFORMERV2.PRETRAIN": str(tmp_path / "weights.pth"), "MODEL.NUM_CLASSES": classes}
    cfg = configuration(UNIFORMERV2_KEYS, pretrain, {key.replace("__", "."): value for key, value in options.items()})
    return initialized(cfg, names)


def trained(classes: int) -> dict[str, Tensor]:
    return build_model(configuration(UNIFORMERV2_KEYS, {"MODEL.NUM_CLASSES": classes})).state_dict()


HEAD = "backbone.transformer.proj.2.weight"


def test_the_first_rows_of_kinetics_710_are_kinetics_400(tmp_path):
    state = trained(710)
    model = start(tmp_path, 400, state)
    assert torch.equal(model.state_dict()[HEAD], state[HEAD][:400])
    assert "classifier rows 710 -> 400" in str(model.load_report)
    for classes in (600, 400):  # of others, no rows are taken on a guess
        state = trained(classes)
        if classes == 600:
            with pytest.raises(ValueError, match=r"\b600\b.*\b400\b.*MODEL.HEAD_ROWS"):
                start(tmp_path, 400, state)
        else:
            assert torch.equal(start(tmp_path, 400, state).state_dict()[HEAD], state[HEAD])


def test_a_checkpoint_with_class_names_is_never_sliced(tmp_path):
    names = [f"class {i}" for i in range(400)]
    for count in (400, 710):
        checkpoint = {"model_state": trained(count), "class_names": [f"class {i}" for i in reversed(range(count))]}
        with pytest.raises(ValueError, match=r"class 0 .*'class \d+'.*MODEL.HEAD_ROWS"):
            start(tmp_path, 400, checkpoint, names)
        model = start(tmp_path, 400, checkpoint, names, MODEL__HEAD_ROWS="names")
        rows = list(reversed(range(count)))[:400]
        assert torch.equal(model.state_dict()[HEAD], checkpoint["model_state"][HEAD][rows])
        assert f"classifier rows {count} -> 400" in str(model.load_report)


def test_rows_follow_the_class_names_of_the_weights(tmp_path, caplog):
    state, names = trained(710), ["Class 3", "class_700", "new"]
    with pytest.raises(ValueError, match=r"\b710\b.*\b3\b.*710 class names"):
        start(tmp_path, 3, state, names)
    with pytest.raises(ValueError, match=r"no class names in the checkpoint.*a file of them"):
        start(tmp_path, 3, state, names, MODEL__HEAD_ROWS="names")
    path = tmp_path / "k710.txt"
    path.write_text("".join(f"class {i}\n" for i in range(710)))
    model = start(tmp_path, 3, state, names, MODEL__HEAD_ROWS=str(path))
    assert torch.equal(model.state_dict()[HEAD][:2], state[HEAD][[3, 700]])
    report = str(model.load_report)
    assert "fresh classes 1 (new)" in report and "new rows: new" in caplog.text
    assert "classifier rows 710 -> 3" in report
    with pytest.raises(ValueError, match=r"class_names\.txt"):
        start(tmp_path, 3, state, None, MODEL__HEAD_ROWS=str(path))
    with pytest.raises(ValueError, match=r"other class names than .*k710\.txt"):
        start(tmp_path, 3, {"model": state, "class_names": ["a"] * 710}, names, MODEL__HEAD_ROWS=str(path))
    path.write_text("class 3\nclass 700\n")
    with pytest.raises(ValueError, match="2 class names for the 710 rows"):
        start(tmp_path, 3, state, names, MODEL__HEAD_ROWS=str(path))


@pytest.mark.parametrize("delete", [False, True])
def test_rows_of_another_number_than_the_classes_are_refused(delete, tmp_path):
    (tmp_path / "rows.txt").write_text("3\n1\n")
    options = {"MODEL__HEAD_ROWS": str(tmp_path / "rows.txt"), "UNIFORMERV2__DELETE_SPECIAL_HEAD": delete}
    with pytest.raises(ValueError, match=r"MODEL.HEAD_ROWS gives 2 classes.* has 3"):
        start(tmp_path, 3, trained(5), **options)
    (tmp_path / "rows.txt").write_text("3\n1\n0\n")
    state = trained(5)
    assert torch.equal(start(tmp_path, 3, state, **options).state_dict()[HEAD], state[HEAD][[3, 1, 0]])


def test_a_second_classifier_that_start_weights_lack_stays_fresh_beside_chosen_rows(tmp_path):
    """Like without rows; a checkpoint that is not one of the start weights must contain both."""
    source, rows = small(num_classes=9).state_dict(), [3, 1, 0, 8, 2]
    torch.save(source, tmp_path / "weights.pth")
    (tmp_path / "rows.json").write_text(json.dumps(rows))
    chosen = {"UNIFORMER.AUX_HEAD": True, "MODEL.HEAD_ROWS": str(tmp_path / "rows.json")}
    cfg = configuration(UNIFORMER_KEYS, chosen, {"UNIFORMER.PRETRAIN_NAME": str(tmp_path / "weights.pth")})
    model = initialized(cfg)
    assert torch.equal(model.state_dict()["head.weight"], source["head.weight"][rows])
    assert model.load_report.dropped == ["aux_head.weight", "aux_head.bias"]  # pyright: ignore
    cfg = configuration(UNIFORMER_KEYS, chosen, {"TRAIN.CHECKPOINT_FILE_PATH": str(tmp_path / "weights.pth")})
    with pytest.raises(ValueError, match="aux_head"):
        initialized(cfg)


def test_reset_head_is_a_key_of_the_configuration(tmp_path):
    state = trained(5)
    kept = start(tmp_path, 5, state, UNIFORMERV2__DELETE_SPECIAL_HEAD=True).state_dict()[HEAD]
    reset = start(tmp_path, 5, state, MODEL__RESET_HEAD=True).state_dict()[HEAD]
    assert torch.equal(kept, state[HEAD]) and not torch.equal(reset, state[HEAD])


def test_another_class_count_is_refused_unless_asked():
    checkpoint = {"model_state": small(num_classes=7).state_dict()}
    with pytest.raises(ValueError, match=r"7 classes and the model 5.*reset_head"):
        load_weights(small(), checkpoint)
    with pytest.raises(ValueError, match="num_classes to 7") as caught:
        load_weights(small(), checkpoint, HeadPolicy(as_trained=True))
    assert "reset_head" not in str(caught.value) and "head_rows" not in str(caught.value)
    model = small()
    before = model.state_dict()["head.weight"].clone()
    report = load_weights(model, checkpoint, FRESH)
    assert report.dropped == ["head.weight", "head.bias"] and torch.equal(model.state_dict()["head.weight"], before)


@pytest.mark.parametrize("other", [{"depth": (1, 1, 2, 1)}, {"embed_dim": (8, 16, 48, 32)}, {"qkv_bias": False}])
def test_another_model_is_refused(other):
    before = small()
    with pytest.raises(ValueError, match="of another model"):
        load_weights(before, small(**other).state_dict())


def test_bad_files_are_refused(tmp_path):
    with pytest.raises(ValueError, match="does not exist"):
        load_tensors(tmp_path / "nothing.pth")
    with pytest.raises(ValueError, match="holds no tensors"):
        extract_state_dict({"epoch": 3})
    with pytest.raises(ValueError, match="not a dictionary"):
        extract_state_dict(torch.zeros(3))  # pyright: ignore[reportArgumentType]


@pytest.mark.slow
@pytest.mark.parametrize("log", ["", "logging.basicConfig(level=logging.INFO); "])
def test_the_python_api_reports_every_load_once(log, call, tmp_path):
    options = {"depth": (1, 1, 1, 1), "embed_dim": (8, 16, 32, 32), "head_dim": 16}
    image = create_model("uniformer_image_s_plus", weights=None, **options)
    torch.save(image.state_dict(), tmp_path / "image.pth")
    (tmp_path / "use.py").write_text(
        f"import logging; {log}from slowfast import create_model\n"
        f"model = create_model('uniformer_image_s_plus', weights='image.pth', **{options})\n"
        "assert len(model.load_report.loaded) == len(model.state_dict())"
    )
    done = call("use.py", folder=tmp_path, options=["fresh"], environment={"PYTHONPATH": str(ROOT)})
    assert done.returncode == 0, done.stderr
    report = f"from image.pth: layout own, loaded {len(image.state_dict())},"
    assert done.stderr.count(report) == 1 and done.stdout == ""
    assert "have the same shapes" in done.stderr  # heads of 32 and of 64 channels
