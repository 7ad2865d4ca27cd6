"""A training on videos with any number of classes: metrics, losses, two processes, predictions and the report."""

from __future__ import annotations

import csv
import json
import re
from pathlib import Path

import cv2
import numpy as np
import pytest
import torch
from run_fixtures import EXPERIMENT
from sklearn.metrics import average_precision_score

import slowfast
from slowfast.config import load_config
from slowfast.engine.evaluate import Evaluation, ViewEnsemble
from slowfast.engine.meters import MULTI_LABEL_METRICS, TrainMeter
from slowfast.utils.logging import read_metrics
from slowfast.visualization.outcomes import MultiLabelOutcomes, precision_rows, read_outcomes
from slowfast.visualization.runs import read_run

NAMES = ("red", "green", "blue", "left", "right")


def test_the_metric_is_the_mean_average_precision_of_the_videos_with_known_classes():
    rng = np.random.default_rng(0)
    label = (rng.random((40, 6)) < 0.3).astype(np.int8)
    label[7] = -1
    scores = rng.standard_normal((40, 6)).astype(np.float32)
    values = Evaluation(np.arange(40), label, scores).metrics()
    known = np.delete(np.arange(40), 7)
    expected = 100 * average_precision_score(label[known], scores[known], average="macro")
    assert values["mAP"] == pytest.approx(expected, abs=1e-7)
    logits, targets = torch.from_numpy(scores[known]).double(), torch.from_numpy(label[known]).double()
    loss = torch.nn.functional.binary_cross_entropy_with_logits(logits, targets).item()
    assert values["loss"] == pytest.approx(loss) and values["num_labelled"] == 39
    assert not {"top1", "top5"} & values.keys()


def test_without_a_known_class_there_is_no_metric_and_without_any_class_it_is_zero():
    def values(number: int) -> dict:
        return Evaluation(np.arange(3), np.full((3, 4), number, np.int8), np.zeros((3, 4), np.float32)).metrics()

    assert values(-1)["mAP"] is None and values(-1)["loss"] is None and values(-1)["num_labelled"] == 0
    assert values(0)["mAP"] == 0.0 and values(0)["loss"] == pytest.approx(np.log(2))


def test_a_new_metric_of_several_labels_is_one_row(monkeypatch):
    monkeypatch.setitem(MULTI_LABEL_METRICS, "right", lambda scores, targets: (scores > 0).eq(targets).double().mean())
    label, scores = np.array([[1, 0]], np.int8), np.array([[1.0, 1.0]], np.float32)
    assert Evaluation(np.arange(1), label, scores).metrics()["right"] == 50.0


def test_scores_are_sums_of_sigmoids_over_the_views():
    ensemble = ViewEnsemble("sum", softmax=False, sigmoid=True)
    logits, label = torch.randn(4, 3), torch.tensor([[1, 0, 1], [1, 0, 1], [0, 0, 0], [0, 0, 0]], dtype=torch.int8)
    ensemble.update(ensemble.values(logits), label, torch.tensor([0, 0, 1, 1]), torch.tensor([0, 1, 0, 1]))
    expected = logits.sigmoid().unflatten(0, (2, 2)).sum(1).numpy()
    np.testing.assert_allclose(ensemble.scores[:2], expected, rtol=1e-6)
    assert ensemble.labels[0].tolist() == [1, 0, 1]


def test_scores_of_logits_in_bfloat16_are_not_rounded():
    logits = torch.tensor([[7.0, 8.0], [8.0, 9.0]], dtype=torch.bfloat16)
    labels = torch.tensor([[0, 1], [1, 0]], dtype=torch.int8)
    ensemble = ViewEnsemble("sum", softmax=False, sigmoid=True)
    ensemble.update(ensemble.values(logits), labels, torch.arange(2), torch.zeros(2, dtype=torch.int64))
    assert len(np.unique(ensemble.scores)) == 3 and ensemble.scores.max() < 1
    labels.zero_()  # the memory of a batch is used again
    assert ensemble.labels[0].tolist() == [0, 1]


def test_training_steps_have_a_loss_only():
    meter = TrainMeter(torch.device("cpu"), multi_label=True)
    meter.update(torch.tensor(0.5), torch.zeros(2, 3), torch.zeros(2, 3, dtype=torch.int8), 0.0)
    assert meter.epoch_values() == {"loss": 0.5}


def write_clip(path: Path, classes: tuple[int, ...], seed: int) -> None:
    """Write 8 frames: three colours that occur or not, and a square on the left or right side or none."""
    frame = np.full((40, 48, 3), 40, np.uint8)
    frame[..., [2 - k for k in classes if k < 3]] = 200
    for side in (k - 3 for k in classes if k >= 3):
        frame[14:26, 6 + 24 * side : 18 + 24 * side] = 255
    writer = cv2.VideoWriter(str(path), cv2.VideoWriter.fourcc(*"mp4v"), 8, (48, 40))
    rng = np.random.default_rng(seed)
    for _ in range(8):
        writer.write(np.clip(frame + rng.normal(0, 12, frame.shape), 0, 255).astype(np.uint8))
    writer.release()


@pytest.fixture(scope="session")
def coloured(made_once) -> Path:
    """32 training and 11 test videos; the lists of their classes are separated by blanks, and in `comma` by commas."""

    def make(folder: Path) -> None:
        rng = np.random.default_rng(3)
        (folder / "comma").mkdir()
        for split, count in (("train", 32), ("val", 11)):
            rows: list[tuple[str, str]] = []
            for i in range(count):
                classes = tuple(np.flatnonzero(rng.random(5) < 0.45).tolist())
                write_clip(folder / f"{split}_{i}.mp4", classes, seed=i)
                rows.append((f"{split}_{i}.mp4", ",".join(map(str, classes))))
            for place, separator in ((folder, " "), (folder / "comma", ",")):
                (place / f"{split}.csv").write_text("".join(f'{path}{separator}"{text}"\n' for path, text in rows))
        for place in (folder, folder / "comma"):
            (place / "test.csv").write_text((place / "val.csv").read_text())
            (place / "class_names.txt").write_text("\n".join(NAMES) + "\n")

    return made_once("coloured", make)


OPTIONS = (
    "DATA.MULTI_LABEL", True, "MODEL.LOSS_FUNC", "bce", "MODEL.NUM_CLASSES", 5, "SOLVER.MAX_EPOCH", 4,
    "SOLVER.BASE_LR", 2e-3, "SOLVER.WARMUP_EPOCHS", 2.0, "TEST.TEST_BEST", True, "DATA.TRAIN_JITTER_SCALES", "[32,34]",
)  # fmt: skip


@pytest.fixture(scope="session")
def several(coloured, run_net, made_once) -> Path:
    """Return the OUTPUT_DIR of a training on these videos, and of its test."""

    def train(folder: Path) -> None:
        (folder / "config.yaml").write_text(EXPERIMENT.format(data=coloured, out=folder / "out"))
        run_net(folder / "config.yaml", *OPTIONS, "TENSORBOARD.ENABLE", True, options=["pictures"])

    return made_once("several", train) / "out"


def records(folder: Path, kind: str) -> list[dict]:
    return [record for record in read_metrics(folder) if record["kind"] == kind]


@pytest.mark.slow
def test_a_training_lowers_the_loss_and_its_mean_average_precision_equals_that_of_scikit_learn(several):
    found, losses = ([record[name] for record in records(several, "val")] for name in ("mAP", "loss"))
    assert len(found) == 4 and max(found) > 80, found
    assert losses == sorted(losses, reverse=True) and losses[-1] < 0.9 * losses[0], losses
    for folder in ("validation", "test"):
        with np.load(several / folder / "scores.npz") as file:
            label, scores = file["label"], file["scores"]
        assert label.shape == scores.shape == (11, 5)
        expected = 100 * average_precision_score(label, scores, average="macro")
        assert expected == pytest.approx(max(found) if folder == "validation" else records(several, "test")[0]["mAP"])
    tested = json.loads((several / "test/metrics.json").read_text())
    assert tested["checkpoint"]["path"].endswith("best.pyth")
    assert "top1" not in {key for record in read_metrics(several) for key in record}
    assert any((several / "tensorboard").iterdir()) and (several / "curves.png").is_file()


@pytest.mark.slow
def test_predictions_list_all_classes_of_a_video(several, coloured):
    with open(several / "test/predictions.csv", newline="") as file:
        rows = list(csv.DictReader(file))
    listed = [re.findall(r"\d+", line.split(" ")[1]) for line in (coloured / "test.csv").read_text().splitlines()]
    assert [row["label"] for row in rows] == [";".join(NAMES[int(k)] for k in classes) for classes in listed]
    assert all(0 < float(row["score5"]) <= float(row["score1"]) < 1 for row in rows)


@pytest.mark.slow
def test_predictions_of_a_loaded_network_equal_those_of_the_test(several, coloured):
    net = slowfast.load(several, device="cpu")
    with np.load(several / "test/scores.npz") as file:
        paths, scores = file["id"].tolist(), file["scores"]
    found = net.predict(paths)
    assert np.array_equal(np.stack([prediction.scores for prediction in found]), scores)
    probabilities = np.stack([prediction.probabilities for prediction in found])
    np.testing.assert_allclose(probabilities, scores / 6, rtol=1e-6)  # 2 x 3 views
    assert not np.allclose(probabilities.sum(1), 1, atol=0.05)
    card = net.save_pretrained(coloured.parent / "shared") or (coloured.parent / "shared/README.md").read_text()
    assert "mAP" in card and all(f"| {name}" in card for name in NAMES)
    assert slowfast.load(coloured.parent / "shared", device="cpu").cfg.DATA.MULTI_LABEL


@pytest.mark.slow
def test_the_report_has_the_average_precision_of_each_class(several):
    page, outcomes = (several / "report.html").read_text(), read_outcomes(several / "test/scores.npz")
    assert isinstance(outcomes, MultiLabelOutcomes)
    rows = precision_rows(outcomes)
    mean = np.mean([row.precision for row in rows])
    assert mean == pytest.approx(records(several, "test")[0]["mAP"])
    assert [row.precision for row in rows] == sorted(row.precision for row in rows) and len(rows) == 5
    assert all(f"<td>{row.name}</td>" in page for row in rows) and "Confusion" not in page.partition("<script>")[0]
    run = read_run(several)
    assert run.best_validation["mAP"] == max(record["mAP"] for record in records(several, "val"))
    assert {
        "test: mAP, %",
        "validation: mAP, %",
    } <= run.numbers().keys() and "validation: top-1, %" not in run.numbers()


@pytest.mark.slow
def test_two_processes_and_another_separator_give_the_same_numbers(several, coloured, run_net, tmp_path):
    (tmp_path / "config.yaml").write_text(EXPERIMENT.format(data=coloured, out=tmp_path / "out"))
    best = ("TEST.CHECKPOINT_FILE_PATH", several / "checkpoints/best.pyth", "TRAIN.ENABLE", False)
    comma = ("DATA.PATH_TO_DATA_DIR", coloured / "comma", "DATA.PATH_LABEL_SEPARATOR", ",")
    run_net(tmp_path / "config.yaml", *OPTIONS, *best, *comma, ranks=2)
    with np.load(several / "test/scores.npz") as one, np.load(tmp_path / "out/test/scores.npz") as two:
        assert all(np.array_equal(one[name], two[name]) for name in ("id", "label", "scores"))
    assert records(tmp_path / "out", "test")[0]["mAP"] == records(several, "test")[0]["mAP"]


@pytest.mark.slow
def test_two_processes_train_as_one_and_mixed_targets_change_the_loss(coloured, run_net, tmp_path):
    (tmp_path / "config.yaml").write_text(EXPERIMENT.format(data=coloured, out=tmp_path / "out"))
    short = ("SOLVER.MAX_EPOCH", 1, "SOLVER.WARMUP_EPOCHS", 0, "TEST.ENABLE", False, "MODEL.FROZEN_BN", True)

    def losses(name: str, *options: object, ranks: int = 0) -> list[float]:
        out = tmp_path / name
        run_net(tmp_path / "config.yaml", *OPTIONS, *short, "OUTPUT_DIR", out, *options, ranks=ranks)
        return [record["loss"] for record in (*records(out, "train"), *records(out, "val"))]

    one = losses("one")
    assert len(one) == 9 and losses("two", ranks=2) == pytest.approx(one, rel=1e-4)
    mixed = losses("mixed", "MIXUP.ENABLE", True)
    assert len(mixed) == 9 and np.isfinite(mixed).all() and mixed != one


@pytest.mark.slow
def test_a_list_of_several_classes_is_refused_without_the_key(coloured, tmp_path, call):
    (tmp_path / "config.yaml").write_text(EXPERIMENT.format(data=coloured, out=tmp_path / "out"))
    done = call("tools/run_net.py", "--cfg", tmp_path / "config.yaml", "MODEL.NUM_CLASSES", "5")
    assert done.returncode == 2 and "DATA.MULTI_LABEL" in done.stderr.strip().splitlines()[-1]
    overrides = [str(value) for value in OPTIONS]
    assert load_config(str(tmp_path / "config.yaml"), overrides).DATA.MULTI_LABEL
