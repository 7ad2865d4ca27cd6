"""Speed and share of waiting in a log line."""

from __future__ import annotations

import numpy as np
import pytest
import torch

from slowfast.engine import meters
from slowfast.engine.evaluate import Evaluation, ViewEnsemble
from slowfast.utils import distributed

SCORES = torch.arange(6.0).flip(0).expand(4, 6)  # class 0 first, class 5 last


@pytest.mark.parametrize("processes", [1, 4])
def test_speed_is_that_of_all_processes_and_waiting_is_a_share_of_the_time(processes, monkeypatch):
    now = 100.0
    monkeypatch.setattr(meters.time, "perf_counter", lambda: now)
    monkeypatch.setattr(distributed, "world_size", lambda: processes)
    meter = meters.TrainMeter(torch.device("cpu"))
    for _ in range(2):
        meter.update(torch.tensor(1.5), SCORES, torch.tensor([0, 0, 2, 5]), waited=0.5)
    now += 4.0
    values = meter.log_values()
    assert values["clips_per_s"] == pytest.approx(2.0 * processes) and values["data_wait"] == pytest.approx(0.25)
    assert (values["loss"], values["top1"], values["top5"]) == pytest.approx((1.5, 50.0, 75.0))
    meter.update(torch.tensor(1.0), SCORES, torch.tensor([5] * 4), waited=0.0)
    now += 1.0
    assert meter.log_values()["data_wait"] == 0.0  # every period starts from zero


def test_an_epoch_without_a_finite_step_has_no_means():
    meter = meters.TrainMeter(torch.device("cpu"))
    meter.update(torch.tensor(1.5), SCORES, torch.tensor([0, 0, 2, 5]), waited=0.0, kept=torch.tensor(False))
    assert np.isnan([*meter.epoch_values().values()]).all()


@pytest.mark.parametrize(
    "wrong", [lambda scores, labels: 0.5, lambda scores, labels: (scores.argmax(1) == labels).sum()]
)
def test_a_metric_must_return_a_value_per_row(wrong, monkeypatch):
    """A mean would be added up as if it were the sum of a batch."""
    monkeypatch.setitem(meters.METRICS, "own", wrong)
    labels = torch.tensor([0, 0, 2, 5])
    with pytest.raises(ValueError, match=r"own .*\(4,\)"):
        meters.TrainMeter(torch.device("cpu")).update(torch.tensor(1.5), SCORES, labels, waited=0.5)
    evaluation = Evaluation(np.arange(4), labels.numpy(), SCORES.numpy())
    with pytest.raises(ValueError, match=r"own .*\(4,\)"):
        evaluation.metrics()


@pytest.mark.parametrize("outputs", [(SCORES, SCORES), SCORES[..., None]])
def test_a_network_must_return_logits_in_an_evaluation(outputs):
    with pytest.raises(ValueError, match=r"\(any, any\)"):
        ViewEnsemble("sum", softmax=True).values(outputs)
