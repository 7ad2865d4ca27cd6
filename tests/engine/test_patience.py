"""A training ends after some validations without a better accuracy, and a resume continues the count."""

from __future__ import annotations

import json

import pytest

from slowfast.run.checkpoint import list_checkpoints
from slowfast.utils.logging import read_metrics
from slowfast.weights.tensors import load_tensors

pytestmark = pytest.mark.slow

# nothing is learned, so that no validation is better than the first one; an epoch has 6 steps
STILL = (
    "SOLVER.BASE_LR", 0, "SOLVER.COSINE_END_LR", 0, "SOLVER.WARMUP_EPOCHS", 0, "MODEL.FROZEN_BN", True,
    "SOLVER.MAX_EPOCH", 6,
)  # fmt: skip


def epochs(folder) -> list[int]:
    return [record["epoch"] for record in read_metrics(folder) if record["kind"] == "val"]


def test_patience_is_counted_over_resumes(experiment, run_net, tmp_path):
    out = tmp_path / "out"
    run_net(experiment, *STILL, "TRAIN.PATIENCE", 2, "TRAIN.MAX_STEPS", 14, "TEST.ENABLE", False)  # within an epoch
    state = load_tensors(list_checkpoints(str(out))[-1])
    assert (state["step"], state["since_best"], epochs(out)) == (14, 1, [1, 2])
    run_net(experiment, *STILL, "TRAIN.PATIENCE", 2)
    assert epochs(out) == [1, 2, 3]
    tested = json.loads((out / "test/metrics.json").read_text())
    assert tested["checkpoint"]["path"].endswith("checkpoint_epoch_00003.pyth")
    # it stays finished, until the patience is longer
    run_net(experiment, *STILL, "TRAIN.PATIENCE", 2, "TEST.ENABLE", False)
    assert epochs(out) == [1, 2, 3]
    run_net(experiment, *STILL, "TRAIN.PATIENCE", 3, "TEST.ENABLE", False)
    assert epochs(out) == [1, 2, 3, 4]
    run_net(experiment, *STILL, "TRAIN.PATIENCE", 0, "TEST.ENABLE", False)
    assert epochs(out) == [1, 2, 3, 4, 5, 6]


def test_all_ranks_end_together(experiment, run_net, tmp_path):
    run_net(experiment, *STILL, "TRAIN.PATIENCE", 1, ranks=2)
    assert epochs(tmp_path / "out") == [1, 2] and (tmp_path / "out/test/metrics.json").is_file()
