"""A tiny trained network."""

from __future__ import annotations

from pathlib import Path

import pytest
from run_fixtures import EXPERIMENT


@pytest.fixture(scope="session")
def trained(videos, run_net, made_once) -> Path:
    """Return the OUTPUT_DIR of a run that was trained and tested; class names are known."""

    def train(folder: Path) -> None:
        config = folder / "config.yaml"
        config.write_text(EXPERIMENT.format(data=videos, out=folder / "out"))
        run_net(config, "SOLVER.MAX_EPOCH", "1", "SOLVER.WARMUP_EPOCHS", "0.0")

    return made_once("trained", train) / "out"
