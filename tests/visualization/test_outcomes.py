"""The numbers of a report equal those computed by hand."""

from __future__ import annotations

import numpy as np
import pytest
import torch

from slowfast.datasets.lists import VideoList
from slowfast.engine.evaluate import Evaluation
from slowfast.engine.results import write_scores
from slowfast.visualization.outcomes import (
    Outcomes,
    calibration,
    class_rows,
    cluster_order,
    confused_pairs,
    confusion,
    read_outcomes,
)


def outcomes(pairs: list[tuple[int, int, float]], classes: int) -> Outcomes:
    """Return outcomes with (label, prediction, confidence) per video."""
    labels, predicted, confidence = (np.array(column) for column in zip(*pairs, strict=True))
    rank = np.where(labels == predicted, 0, 7)
    paths = np.array([f"{n}.mp4" for n in range(len(pairs))])
    names = [f"class {k}" for k in range(classes)]
    return Outcomes(paths, labels, predicted, rank, confidence, 1 - confidence, names)


MIXED = outcomes([(0, 0, 0.9), (0, 2, 0.6), (0, 2, 0.8), (2, 2, 1.0), (2, 0, 0.3)], classes=4)


def test_confusions_are_counted_per_true_and_predicted_class():
    counts = confusion(MIXED)
    assert counts.tolist() == [[1, 0, 2, 0], [0] * 4, [1, 0, 1, 0], [0] * 4]
    rows = class_rows(MIXED, counts)
    assert [(row.name, row.videos, row.confused, row.times) for row in rows] == [
        ("class 0", 3, "class 2", 2),
        ("class 2", 2, "class 0", 1),
    ]
    assert [row.top1 for row in rows] == pytest.approx([100 / 3, 50.0])
    assert [row.loss for row in rows] == pytest.approx([0.7 / 3, 0.35])


def test_pairs_are_ordered_by_frequency_and_their_videos_by_confidence():
    pairs = confused_pairs(MIXED, confusion(MIXED), limit=5)
    assert [(pair.true, pair.predicted, pair.times, pair.videos, pair.rows) for pair in pairs] == [
        ("class 0", "class 2", 2, 3, [2, 1]),
        ("class 2", "class 0", 1, 2, [4]),
    ]
    assert len(confused_pairs(MIXED, confusion(MIXED), limit=1)) == 1


def test_the_calibration_error_is_the_mean_distance_of_confidence_and_accuracy():
    bins = calibration(MIXED)  # five videos in five intervals
    assert bins.ece == pytest.approx(100 * (0.1 + 0.6 + 0.8 + 0.0 + 0.3) / 5)
    together = calibration(outcomes([(0, 0, 0.61), (0, 1, 0.65)], classes=2))
    assert together.ece == pytest.approx(100 * abs(0.63 - 0.5)) and together.videos.tolist()[9] == 2


def test_confused_classes_become_neighbours():
    counts = np.diag(np.full(6, 10))
    for one, other in ((0, 5), (1, 3)):
        counts[one, other] = counts[other, one] = 8
    place = cluster_order(counts).argsort()
    assert abs(place[0] - place[5]) == abs(place[1] - place[3]) == 1


@pytest.mark.parametrize(("probabilities", "summed"), [(False, 1), (False, 3), (True, 3)])
def test_outcomes_of_a_file_equal_those_of_the_evaluation(probabilities, summed, tmp_path):
    scores = torch.randn(7, 6)
    scores = summed * (scores.softmax(1) if probabilities else scores)
    label = np.array([0, 1, -1, 3, 4, 5, 2])
    result = Evaluation(np.arange(7), label, scores.numpy(), probabilities=probabilities, summed=summed)
    write_scores(tmp_path, result, VideoList([f"{n}.mp4" for n in range(7)], label), None)
    found = read_outcomes(tmp_path / "scores.npz")
    metrics = result.metrics()
    assert isinstance(found, Outcomes) and found.loss.mean() == pytest.approx(metrics["loss"], rel=1e-9)
    assert 100 * (~found.wrong).mean() == pytest.approx(metrics["top1"])
    assert 100 * (found.rank < 5).mean() == pytest.approx(metrics["top5"])
    assert found.paths.tolist() == [f"{n}.mp4" for n in (0, 1, 3, 4, 5, 6)] and found.names[5] == "5"


def test_of_equal_scores_that_of_the_first_class_is_the_highest(tmp_path):
    label = np.array([0, 4, 5])
    result = Evaluation(np.arange(3), label, np.ones((3, 6), np.float32))
    write_scores(tmp_path, result, VideoList(["a", "b", "c"], label), None)
    found = read_outcomes(tmp_path / "scores.npz")
    assert isinstance(found, Outcomes) and found.rank.tolist() == label.tolist()
    assert 100 * (found.rank < 5).mean() == pytest.approx(result.metrics()["top5"])


def test_files_without_labels_or_of_older_versions_have_no_outcomes(tmp_path):
    result = Evaluation(np.arange(2), np.array([-1, -1]), np.zeros((2, 3), np.float32))
    write_scores(tmp_path, result, VideoList(["a", "b"], result.label), None)
    assert read_outcomes(tmp_path / "scores.npz") is None
    np.savez(tmp_path / "old.npz", label=np.zeros(2, int), scores=np.zeros((2, 3)))
    assert read_outcomes(tmp_path / "old.npz") is None
