"""A test of released weights on lists that `prepare_data.py lists` wrote: names, accuracy, and the warning."""

from __future__ import annotations

import csv
import json
import re
import sys

import numpy as np
import prepare_data
import pytest
import run_net
import torch
from make_demo_data import write_video

from slowfast.config import load_config
from slowfast.datasets.build import build_loader
from slowfast.engine.evaluate import ViewEnsemble, evaluate
from slowfast.engine.setup import clip_mover
from slowfast.models import build_model
from slowfast.utils.class_names import kinetics400_names
from slowfast.weights.class_order import places_of_rows

VIDEOS = 20
CPU = torch.device("cpu")


@pytest.fixture
def overrides(tmp_path, monkeypatch):
    """Return settings for a test on 20 videos of Kinetics-400, each of another class."""
    (tmp_path / "videos").mkdir()
    (tmp_path / "annotations").mkdir()
    names = np.random.default_rng(0).permutation(kinetics400_names()).tolist()
    for i in range(VIDEOS):
        write_video(tmp_path / f"videos/val{i}_000003_000013.mp4", seed=0, split="val", index=i)
    (tmp_path / "videos/train0_000003_000013.mp4").symlink_to(tmp_path / "videos/val0_000003_000013.mp4")
    for split in ("train", "val"):
        with open(tmp_path / f"annotations/{split}.csv", "w", newline="") as file:
            writer = csv.writer(file)
            writer.writerow(["label", "youtube_id", "time_start", "time_end", "split"])
            writer.writerows([name, f"{split}{i}", 3, 13, split] for i, name in enumerate(names))
    command = ["lists", "videos", "--dataset", "k400", "--annotations", "annotations", "--out", "lists"]
    with monkeypatch.context() as patch:
        patch.chdir(tmp_path)
        patch.setattr(sys, "argv", ["prepare_data.py", *command])
        assert prepare_data.main() == 0
    data = {"PATH_TO_DATA_DIR": tmp_path / "lists", "PATH_PREFIX": tmp_path / "videos", "PATH_LABEL_SEPARATOR": ","}
    views = ("TEST.NUM_ENSEMBLE_VIEWS", "1", "TEST.NUM_SPATIAL_CROPS", "1", "TEST.CHECKPOINT_FILE_PATH")
    settings = [str(item) for key, value in data.items() for item in (f"DATA.{key}", value)]
    return [*settings, "MODEL.NUM_CLASSES", "400", "TRAIN.ENABLE", "False", *views, str(tmp_path / "weights.pyth")]


def test_kinetics_400_weights_predict_the_names_of_sorted_lists(experiment, overrides, tmp_path, monkeypatch, capsys):
    """A network that is right on every video, in the released layout and order."""
    cfg = load_config(str(experiment), overrides)
    model = build_model(cfg)
    state = {name: value.clone() for name, value in model.state_dict().items()}
    model.reset_classifier(0)  # pyright: ignore
    loader = build_loader(cfg, "test")
    features = evaluate(model, loader, clip_mover(cfg, CPU), CPU, ViewEnsemble("sum", softmax=False), 8, "features")
    mean = features.scores.mean(0)
    weight = np.linalg.pinv((features.scores - mean).astype(np.float64)).T  # (20, C): 0.95 on its own video
    row_of_place = np.argsort(np.array(places_of_rows("k400", 400)))
    rows = row_of_place[features.label]  # labels are places in the sorted names
    state["head.weight"].zero_()
    state["head.bias"].fill_(-9)
    state["head.weight"][rows] = torch.from_numpy(weight).float()
    state["head.bias"][rows] = torch.from_numpy(-weight @ mean).float()
    torch.save(
        {"epoch": 99, "model_state": state, "optimizer_state": {}, "cfg": "MODEL: {}\n"}, tmp_path / "weights.pyth"
    )

    def run(*more: str) -> tuple[float, list[list[str]], str]:
        monkeypatch.setattr(sys, "argv", ["run_net.py", "--cfg", str(experiment), *overrides, *more])
        assert run_net.main() == 0
        metrics = json.loads((tmp_path / "out/test/metrics.json").read_text())["metrics"]
        with open(tmp_path / "out/test/predictions.csv", newline="") as file:
            rows = [[row["label"], row["top1"]] for row in csv.DictReader(file)]
        warning = re.search("rows of the classifier [a-z ]+ in the order ([a-z0-9_]+)", "".join(capsys.readouterr()))
        return metrics["top1"], rows, warning[1] if warning else ""

    right = [[sorted(kinetics400_names())[i]] * 2 for i in features.label]
    assert run() == (100.0, right, "")
    top1, predicted, order = run("MODEL.CLASS_ORDER", "sorted")
    assert top1 < 10 and order == "k400" and predicted != right
    # the authors' own list: their numbers, and no names
    released = np.argsort(np.array(places_of_rows("k400", 400)))
    lines = [line.rsplit(",", 1) for line in (tmp_path / "lists/test.csv").read_text().splitlines()]
    (tmp_path / "lists/test.csv").write_text("".join(f"{path},{released[int(label)]}\n" for path, label in lines))
    (tmp_path / "lists/class_names.txt").unlink()
    assert run() == (100.0, right, "")
