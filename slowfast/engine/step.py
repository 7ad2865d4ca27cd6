"""Take one optimizer step: micro-batches, gradient, agreement of all processes, update."""

from __future__ import annotations

import contextlib
import math
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import Any

import torch
from fvcore.common.config import CfgNode
from torch import Tensor, nn
from torch.nn.parallel import DistributedDataParallel

from slowfast.datasets.mixup import MixUp, one_hot
from slowfast.engine.log import RunLog
from slowfast.engine.meters import merge_mixed
from slowfast.engine.state import TrainState
from slowfast.run import interrupt
from slowfast.run.checkpoint import CheckpointWriter
from slowfast.run.health import BadVideos, report_nonfinite
from slowfast.run.watchdog import progress
from slowfast.utils import distributed
from slowfast.utils.rng import random_state_for, rng_for


@dataclass
class Run:
    """The parts of a training that no step replaces."""

    cfg: CfgNode
    device: torch.device
    network: nn.Module  # the model in its distributed wrapper
    to_device: Callable[[Tensor], Tensor]  # moves clips to the device and normalizes them
    loss: Callable[[Tensor, Tensor], Tensor]  # of logits (B, K) and labels (B,) or soft targets (B, K)
    mixup: MixUp | None
    amp: torch.dtype | None  # of autocast; None for float32
    log: RunLog
    bad: BadVideos
    writer: CheckpointWriter
    description: dict[str, Any]  # of the run, for its checkpoints
    last_step: int  # to stop after


@dataclass
class StepOutcome:
    """The facts about a step on which all processes agree.

    Attributes:
        losses_finite: every loss of every process is finite.
        stop: some process was interrupted.
        save: TRAIN.CHECKPOINT_MINUTES have passed.
        grad_norm: L2 norm of the gradient before clipping.
    """

    losses_finite: bool
    stop: bool
    save: bool
    grad_norm: float


def train_step(state: TrainState, run: Run, batches: Iterator[dict[str, Any]]) -> StepOutcome:
    """Take one optimizer step over the micro-batches; one that is not finite changes only the counters.

    Raises:
        SharedError: the loss or the gradient is not finite, and the configuration does not allow another such step.
    """
    where = (run.cfg.RNG_SEED, state.step, distributed.rank())
    torch.manual_seed(int(rng_for("network", *where).integers(2**62)))  # dropout and drop path
    buffers = [buffer.clone() for buffer in state.model.buffers()]  # running statistics, in case this step is dropped
    used, results = [], []
    for micro in range(run.cfg.SOLVER.ACCUMULATION_STEPS):
        started = time.perf_counter()
        batch = next(batches)
        waited = time.perf_counter() - started
        progress()
        run.bad.record(batch["bad"])
        used.append(batch)
        results.append((*forward_backward(state, run, batch, micro), waited))

    state.scaler.unscale_(state.optimizer)
    norm = nn.utils.clip_grad_norm_(state.model.parameters(), run.cfg.SOLVER.CLIP_GRADIENT or math.inf)
    losses = torch.stack([loss for loss, *_ in results])
    outcome = agree(losses, norm, run)
    finite = outcome.losses_finite and math.isfinite(outcome.grad_norm)
    if finite:
        state.scaler.step(state.optimizer)
        state.nonfinite = 0
    if finite or state.scaler.is_enabled():
        state.scaler.update()
    state.optimizer.zero_grad(set_to_none=True)
    # gradients overflow in float16 occasionally, which is not a fault as long as the loss scale can be lowered
    overflow = outcome.losses_finite and not finite and state.scaler.is_enabled() and state.scaler.get_scale() >= 1
    if finite or overflow:
        for result in results:
            state.meter.update(*result)
        if state.ema:
            state.ema.update(state.model)
    else:
        for buffer, before in zip(state.model.buffers(), buffers, strict=True):
            buffer.copy_(before)
        state.nonfinite += 1
        report_nonfinite(run.cfg, state.step, state.nonfinite, used, losses.tolist(), outcome.grad_norm)
        run.log.write("nonfinite", state.step, in_a_row=state.nonfinite)
    return outcome


def forward_backward(state: TrainState, run: Run, batch: dict[str, Any], micro: int) -> tuple[Tensor, Tensor, Tensor]:
    """Add the gradient of micro-batch number `micro`; return loss, scores (B, K) and labels (B,) for the metrics."""
    accumulation = run.cfg.SOLVER.ACCUMULATION_STEPS
    video = run.to_device(batch["video"])
    label = batch["label"].to(run.device, non_blocking=True)
    if run.mixup:
        where = (run.cfg.RNG_SEED, state.step, distributed.rank(), micro)
        video, target = run.mixup(video, label, random_state_for("mixup", *where))
    else:
        target = unmixed_target(run.cfg, label)

    exchange = micro == accumulation - 1 or not isinstance(run.network, DistributedDataParallel)
    with contextlib.nullcontext() if exchange else run.network.no_sync():  # pyright: ignore
        with torch.autocast(run.device.type, dtype=run.amp, enabled=run.amp is not None):
            outputs = run.network(video)
            # light networks train a second classifier, on the class token, with the same weight
            outputs = outputs if isinstance(outputs, tuple) else (outputs,)
            loss = torch.stack([run.loss(logits, target) for logits in outputs]).mean()
        state.scaler.scale(loss / accumulation).backward()

    logits = outputs[0].detach()
    scores, labels = merge_mixed(logits, target) if run.mixup else (logits, label)
    return loss.detach(), scores, labels


def unmixed_target(cfg: CfgNode, label: Tensor) -> Tensor:
    """Return the targets of the loss: labels (B,), or soft targets (B, K) if the loss takes them."""
    if cfg.MODEL.LOSS_FUNC == "cross_entropy":
        return label
    smoothing = cfg.MIXUP.LABEL_SMOOTH_VALUE if cfg.MODEL.LOSS_FUNC == "soft_cross_entropy" else 0.0
    return one_hot(label, cfg.MODEL.NUM_CLASSES, smoothing)


def agree(losses: Tensor, grad_norm: Tensor, run: Run) -> StepOutcome:
    """Exchange the state of this process with the others; this is where a step waits for the device."""
    minutes = run.cfg.TRAIN.CHECKPOINT_MINUTES
    save = distributed.is_main() and 0 < 60 * minutes <= run.writer.seconds_since_save()
    flags = torch.tensor([0.0, interrupt.received() is not None, save], device=run.device)
    flags[0] = ~losses.isfinite().all()
    flags = distributed.all_reduce_max(flags)
    broken, stop, save, norm = torch.cat([flags, grad_norm.detach().float().view(1)]).tolist()
    return StepOutcome(not broken, stop > 0, save > 0, norm)
