"""Shared folders: the same network on another machine, and a model card of the run."""

from __future__ import annotations

import json
import re
import shutil
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
import yaml
from huggingface_hub import ModelCard
from make_demo_data import CLASS_NAMES

import slowfast
from slowfast.config import load_config
from slowfast.inference.network import Network
from slowfast.models.build import build_model
from slowfast.models.zoo import create_model
from slowfast.weights.heads import stated_classes
from slowfast.weights.tensors import load_tensors

ROOT = Path(__file__).parents[2]


@pytest.fixture(scope="module")
def shared(net, tmp_path_factory) -> Path:
    """Return the shared folder of a trained network."""
    folder = tmp_path_factory.mktemp("shared") / "demo"
    net.save_pretrained(folder)
    return folder


def test_a_shared_folder_predicts_the_same_to_the_last_bit(net, shared, videos):
    assert sorted(path.name for path in shared.iterdir()) == ["README.md", "config.yaml", "model.safetensors"]
    paths = [str(videos / f"val_{i}.mp4") for i in range(3)]
    other = slowfast.load(shared, device="cpu")
    assert other.class_names == net.class_names and other.num_views == net.num_views
    for mine, theirs in zip(net.predict(paths), other.predict(paths), strict=True):
        assert np.array_equal(mine.scores, theirs.scores) and mine.top == theirs.top


def test_a_shared_folder_contains_no_places_of_this_machine(net, shared):
    text = (shared / "config.yaml").read_text() + (shared / "README.md").read_text()
    assert net.cfg.DATA.PATH_TO_DATA_DIR not in text and net.cfg.OUTPUT_DIR not in text
    config = yaml.safe_load((shared / "config.yaml").read_text())
    assert config["DATA"]["NUM_FRAMES"] == 4 and config["TEST"]["CHECKPOINT_FILE_PATH"] == ""


def test_the_card_contains_the_results_of_the_test_of_these_weights(shared, trained):
    metrics = json.loads((trained / "test/metrics.json").read_text())["metrics"]
    card = ModelCard.load(shared / "README.md")
    data = card.data.to_dict()
    assert data["pipeline_tag"] == "video-classification" and "license" not in data
    (result,) = data["model-index"][0]["results"]
    assert not {"kinetics", "kinetics_sparse"} & {*result["dataset"].values()}  # the row that read own videos
    values = {row["name"]: row["value"] for row in result["metrics"]}
    assert values["top1"] == pytest.approx(metrics["top1"], abs=1e-3) and "top5" in values
    rows = [line for line in card.text.splitlines() if line.startswith("|")]
    known = {row.split("|")[1].strip(): row.split("|")[2:4] for row in rows}
    videos, accuracy = zip(*(known[name] for name in CLASS_NAMES if name in known), strict=True)
    assert sum(map(int, videos)) == metrics["num_labelled"]
    correct = sum(int(n) * float(share) / 100 for n, share in zip(videos, accuracy, strict=True))
    assert 100 * correct / metrics["num_labelled"] == pytest.approx(metrics["top1"], abs=0.1)


def test_the_card_of_other_weights_has_no_results(trained, tmp_path):
    folder = tmp_path / "run"
    shutil.copytree(trained, folder)
    used = slowfast.load(folder, device="cpu").weights
    torch.save({**torch.load(used, weights_only=True), "other": 1}, used)
    slowfast.load(folder, device="cpu").save_pretrained(tmp_path / "shared", licence="apache-2.0")
    data = ModelCard.load(tmp_path / "shared/README.md").data.to_dict()
    assert "model-index" not in data and data["license"] == "apache-2.0"


def test_an_edited_card_is_kept_and_a_shared_network_can_be_shared(shared, tmp_path):
    folder = tmp_path / "demo"
    shutil.copytree(shared, folder)
    (folder / "README.md").write_text("mine")
    slowfast.load(folder, device="cpu").save_pretrained(folder)
    assert (folder / "README.md").read_text() == "mine"
    assert (folder / "config.yaml").read_bytes() == (shared / "config.yaml").read_bytes()
    content = [load_tensors(place / "model.safetensors") for place in (folder, shared)]
    assert content[0]["class_names"] == content[1]["class_names"] == [*CLASS_NAMES]
    assert all(torch.equal(value, content[1]["model_state"][name]) for name, value in content[0]["model_state"].items())


def test_the_order_of_the_classes_is_shared(monkeypatch, tmp_path):
    monkeypatch.setenv("SLOWFAST_HOME", str(tmp_path))
    path = tmp_path / "uniformer_xxs4_128_k400.pth"
    torch.save(dict(create_model("uniformer_xxs", num_classes=400, init_value=0.1).state_dict()), path)
    names = sorted(slowfast.load(path, device="cpu").class_names or ())
    net = slowfast.load(path, device="cpu", class_names=names)
    net.save_pretrained(tmp_path / "shared")
    other = slowfast.load(tmp_path / "shared", device="cpu")
    assert other.class_names == names
    assert all(torch.equal(value, other.model.state_dict()[name]) for name, value in net.model.state_dict().items())


@pytest.mark.parametrize(("of_a_training", "order"), [(True, "annotation"), (False, "sorted")])
def test_the_order_of_classes_without_names_is_shared(of_a_training, order, tmp_path):
    """A network of 400 classes that was trained on a list without names need not be one of Kinetics."""
    classes = "400" if of_a_training else "600"
    options = ["MODEL.NUM_CLASSES", classes, "MODEL.CLASS_ORDER", "auto" if of_a_training else order]
    state = dict(create_model("uniformer_xxs", num_classes=int(classes), init_value=0.1).state_dict())
    torch.save({"model_state": state, "class_names": None} if of_a_training else state, tmp_path / "weights.pyth")
    net = slowfast.load(tmp_path / "weights.pyth", "uniformer_xxs4_128_k400", device="cpu", overrides=options)
    net.save_pretrained(tmp_path / "shared")
    stated = stated_classes(load_tensors(tmp_path / "shared/model.safetensors"))
    assert stated == {"class_order": order, "class_names": None}
    other = slowfast.load(tmp_path / "shared", device="cpu")
    assert other.class_names is net.class_names is None
    assert other.model.class_order == net.model.class_order == order
    assert all(torch.equal(value, other.model.state_dict()[name]) for name, value in state.items())


@pytest.mark.parametrize("name", ["demo", "owner/demo@main", "owner/a/b", ""])
def test_a_wrong_name_is_an_error_before_anything_is_written(name, net, tmp_path):
    with pytest.raises(ValueError, match="OWNER/NAME"):
        net.push_to_hub(name, tmp_path / "shared")
    assert not (tmp_path / "shared").exists()


@pytest.mark.parametrize("edited", [True, False])
def test_an_upload_sends_the_three_files_to_the_repository(edited, net, tmp_path, monkeypatch):
    sent: dict[str, Any] = {}

    class Hub:
        def create_repo(self, name: str, **options: Any) -> None:
            sent.update(name=name, **options)

        def upload_folder(self, repo_id: str, folder_path: Path, allow_patterns: list[str]) -> None:
            files = {pattern: (folder_path / pattern).read_bytes() for pattern in allow_patterns}
            sent.update(repo_id=repo_id, files=files)

    monkeypatch.setattr("huggingface_hub.HfApi", Hub)
    (tmp_path / "README.md").write_text("mine")
    assert net.push_to_hub("owner/demo", tmp_path if edited else None, private=True) == "hf://owner/demo"
    assert sent["name"] == sent["repo_id"] == "owner/demo" and sent["private"] and sent["exist_ok"]
    assert sorted(sent["files"]) == ["README.md", "config.yaml", "model.safetensors"]
    assert (sent["files"]["README.md"] == b"mine") == edited
    monkeypatch.setattr(Hub, "create_repo", lambda *_, **__: 1 / 0)
    with pytest.raises(ValueError, match=r"^owner/demo cannot"):
        net.push_to_hub("owner/demo", tmp_path)


def test_the_card_of_an_image_network_speaks_of_images(tmp_path):
    cfg = load_config(ROOT / "exp" / "demo_image" / "config.yaml")
    Network(build_model(cfg).eval(), cfg, None, torch.device("cpu"), "").save_pretrained(tmp_path)
    card = ModelCard.load(tmp_path / "README.md")
    assert card.data.to_dict()["pipeline_tag"] == "image-classification"
    size = str(cfg.DATA.TEST_CROP_SIZE)
    assert f"images of 3 x {size} x {size} (channels, height, width)" in card.text and "video" not in card.text


def test_the_card_states_the_frames_of_a_dense_clip(tmp_path):
    overrides = ["TRAIN.DATASET", "kinetics", "TEST.DATASET", "kinetics", "DATA.SAMPLING_RATE", "5"]
    cfg = load_config(ROOT / "exp" / "demo" / "config.yaml", overrides)
    net = Network(build_model(cfg).eval(), cfg, None, torch.device("cpu"), "")
    net.save_pretrained(tmp_path)
    (row,) = [line for line in ModelCard.load(tmp_path / "README.md").text.splitlines() if "frames of a clip" in line]
    chosen = net.frame_indices(40)[:8]  # with a step of 39/7, not 5
    assert [int(number) for number in re.findall(r"\d+", row)] == [8, chosen[-1] - chosen[0] + 1]
