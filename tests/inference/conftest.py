"""A tiny trained network, and the programs that use it."""

from __future__ import annotations

from pathlib import Path

import pytest
from run_fixtures import EXPERIMENT

import slowfast
from slowfast.inference.network import Network


@pytest.fixture(scope="session")
def trained(videos, run_net, made_once) -> Path:
    """Return the OUTPUT_DIR of a run that was trained and tested; class names are known."""

    def train(folder: Path) -> None:
        config = folder / "config.yaml"
        config.write_text(EXPERIMENT.format(data=videos, out=folder / "out"))
        run_net(config, "SOLVER.MAX_EPOCH", "1", "SOLVER.WARMUP_EPOCHS", "0.0")

    return made_once("trained", train) / "out"


@pytest.fixture(scope="session")
def net(trained) -> Network:
    """Return the network of `trained`, which tests must not change."""
    return slowfast.load(trained, device="cpu")


@pytest.fixture(scope="session")
def one_crop(trained) -> Network:
    """Return the network of `trained`, with one crop per view."""
    return slowfast.load(trained, device="cpu", overrides=["TEST.NUM_SPATIAL_CROPS", "1"])
