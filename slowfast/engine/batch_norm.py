"""Control BatchNorm in training: freeze it, exchange its statistics between processes, or recompute them."""

from __future__ import annotations

import warnings
from collections.abc import Iterator
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn.modules.batchnorm import _BatchNorm
from torch.utils.data import DataLoader

from slowfast.engine.state import TrainState
from slowfast.engine.step import Run
from slowfast.run import interrupt
from slowfast.run.watchdog import progress
from slowfast.utils import distributed
from slowfast.utils.rng import rng_for


def train_mode(model: nn.Module, frozen: bool) -> None:
    """Set the mode of training; `frozen` BatchNorm uses its running statistics and leaves them as they are."""
    for module in model.train().modules():
        if frozen and isinstance(module, _BatchNorm):
            module.eval()


def update_statistics(state: TrainState, run: Run, loader: DataLoader[Any]) -> None:
    """Make the statistics of all processes the same; recompute them over batches if BN.USE_PRECISE_STATS.

    Raises:
        Interruption: in every process, if one was interrupted.
    """
    for model in state.models:
        if run.cfg.BN.USE_PRECISE_STATS and not run.cfg.MODEL.FROZEN_BN:
            with warnings.catch_warnings():  # its import is slow, and calls the deprecated torch.jit.script
                warnings.simplefilter("ignore", FutureWarning)
                from fvcore.nn.precise_bn import update_bn_stats
            loader.batch_sampler.set_position(state.epoch, 0)  # pyright: ignore
            where = (run.cfg.RNG_SEED, state.epoch, distributed.rank())
            torch.manual_seed(int(rng_for("precise", *where).integers(2**62)))  # dropout and drop path
            clips = clips_until_stopped(run, loader)
            update_bn_stats(model.train(), clips, min(run.cfg.BN.NUM_BATCHES_PRECISE, len(loader)))
        for buffer in model.buffers():
            distributed.broadcast_tensor(buffer)


def clips_until_stopped(run: Run, loader: DataLoader[Any]) -> Iterator[Tensor]:
    """Yield the clips of every batch, on the device.

    Raises:
        Interruption: in every process, before the same batch, if one was interrupted.
    """
    for batch in loader:
        progress()
        asked = distributed.all_reduce_max(torch.tensor(float(interrupt.received() or 0), device=run.device))
        if asked > 0:
            interrupt.adopt(float(asked))
            raise interrupt.Interruption("asked to stop during the BatchNorm statistics, which will start again")
        yield run.to_device(batch["video"])
