"""Average precision equals that of scikit-learn."""

from __future__ import annotations

import math

import numpy as np
import pytest
import torch
from sklearn.metrics import average_precision_score

from slowfast.utils.scores import average_precisions, mean_average_precision, multi_label_losses


@pytest.mark.parametrize("levels", [0, 2, 7])
@pytest.mark.parametrize("samples", [1, 2, 500])
def test_average_precision_equals_that_of_scikit_learn(samples, levels):
    """Few levels make many equal scores."""
    rng = np.random.default_rng(samples + levels)
    targets = rng.random((samples, 12)) < np.linspace(0.02, 1.0, 12)
    scores = rng.standard_normal((samples, 12)).astype(np.float32) + targets
    if levels:
        scores = np.round(scores * levels)
    found = average_precisions(torch.from_numpy(scores), torch.from_numpy(targets)).numpy()
    for column, value in enumerate(found):
        if not targets[:, column].any():
            assert math.isnan(value)
        else:
            assert abs(value - average_precision_score(targets[:, column], scores[:, column])) < 1e-9
    known = targets.any(0)
    expected = average_precision_score(targets[:, known], scores[:, known], average="macro")
    assert abs(mean_average_precision(torch.from_numpy(scores), torch.from_numpy(targets).float()) - expected) < 1e-9


def test_large_scores_are_sorted_in_parts(monkeypatch):
    rng = np.random.default_rng(0)
    targets, scores = torch.from_numpy(rng.random((50, 7)) < 0.3), torch.from_numpy(rng.standard_normal((50, 7)))
    whole = average_precisions(scores, targets)
    for cells in (1, 100, 349):
        monkeypatch.setattr("slowfast.utils.scores.CELLS", cells)
        torch.testing.assert_close(average_precisions(scores, targets), whole, rtol=1e-12, atol=0)


@pytest.mark.parametrize("views", [1, 3])
def test_the_loss_of_several_labels_is_the_binary_cross_entropy_of_the_mean_over_the_views(views):
    rng = np.random.default_rng(0)
    logits, targets = torch.from_numpy(rng.standard_normal((views, 5, 4))), torch.from_numpy(rng.random((5, 4)) < 0.4)
    for probabilities, mean in ((True, logits.sigmoid().mean(0)), (False, logits.mean(0).sigmoid())):
        expected = torch.where(targets, -mean.log(), -(1 - mean).log()).mean(1)
        summed = (logits.sigmoid() if probabilities else logits).sum(0)
        torch.testing.assert_close(multi_label_losses(summed, targets, probabilities, views), expected)


def test_without_positive_samples_there_is_no_average_precision():
    assert math.isnan(mean_average_precision(torch.rand(4, 3), torch.zeros(4, 3)))
