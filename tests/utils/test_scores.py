"""Average precision equals that of scikit-learn."""

from __future__ import annotations

import math

import numpy as np
import pytest
import torch
from sklearn.metrics import average_precision_score

from slowfast.utils.scores import average_precisions, mean_average_precision


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


def test_without_positive_samples_there_is_no_average_precision():
    assert math.isnan(mean_average_precision(torch.rand(4, 3), torch.zeros(4, 3)))
