"""Take one optimizer step: micro-batches, gradient, agreement of all processes, update; then read its facts."""

from __future__ import annotations

import contextlib
import math
import time
from collections import deque
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from typing import Any

import torch
from fvcore.common.config import CfgNode
from torch import Tensor, nn

from slowfast.datasets.mixup import MixUp, one_hot
from slowfast.engine.log import RunLog
from slowfast.engine.meters import check_tensor, merge_mixed
from slowfast.engine.setup import copy_to_cpu
from slowfast.engine.state import TrainState, running_statistics
from slowfast.optim.build import step_unless
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
    network: Any  # the model in its distributed wrapper, perhaps compiled
    to_device: Callable[[Tensor], Tensor]  # moves clips to the device and normalizes them
    loss: Callable[[Tensor, Tensor], Tensor]  # of logits (B, K) and labels (B,) or soft targets (B, K)
    mixup: MixUp | None
    amp: torch.dtype | None  # of autocast; None for float32
    log: RunLog
    bad: BadVideos
    writer: CheckpointWriter
    description: dict[str, Any]  # of the run, for its checkpoints
    last_step: int  # to stop after
    left_out: set[str] = field(default_factory=set)  # videos that validations could not decode; each is logged once
    pending: deque[PendingStep] = field(default_factory=deque)  # steps whose facts are not yet read


@dataclass
class PendingStep:
    """A step whose facts are on their way from the device."""

    number: int  # steps before it
    batches: list[dict[str, Any]]  # of this process, in case they must be reported
    facts: Callable[[], Tensor]  # -> requests to stop, a checkpoint is due, dropped, gradient norm, and losses


@dataclass
class StepOutcome:
    """The facts about some steps on which all processes agree."""

    stop: bool  # some process was interrupted
    save: bool  # TRAIN.CHECKPOINT_MINUTES have passed
    grad_norm: float  # L2 norm of the gradient of the last of them before clipping


def train_step(state: TrainState, run: Run, batches: Iterator[dict[str, Any]]) -> None:
    """Take one optimizer step over the micro-batches; one that is not finite changes only the counters.

    It does not wait for the device, so the next step can be prepared during this one: `settle` reads its facts.
    """
    where = (run.cfg.RNG_SEED, state.step, distributed.rank())
    seed(run.device, int(rng_for("network", *where).integers(2**62)))  # dropout and drop path
    statistics = running_statistics(state.model)
    before = [buffer.clone() for buffer in statistics]  # in case this step is dropped
    used, results = [], []
    # around all micro-batches, which share the copies of the weights in lower precision
    with torch.autocast(run.device.type, dtype=run.amp, enabled=run.amp is not None):
        for micro in range(run.cfg.SOLVER.ACCUMULATION_STEPS):
            started = time.perf_counter()
            batch = next(batches)
            waited = time.perf_counter() - started
            progress()
            run.bad.record(batch["bad"])
            used.append(batch)
            results.append((*forward_backward(state, run, batch, micro), waited))

    state.scaler.unscale_(state.optimizer)  # pyright: ignore[reportArgumentType]
    norm = nn.utils.clip_grad_norm_(state.model.parameters(), run.cfg.SOLVER.CLIP_GRADIENT or math.inf).detach()
    losses = torch.stack([loss for loss, *_ in results])
    broken, *requests = agree(losses, run)
    unfit = (broken > 0) | ~norm.isfinite()
    # an optimizer that draws numbers, such as timm/kron, must draw the same in every process
    seed(run.device, int(rng_for("optimizer", run.cfg.RNG_SEED, state.step).integers(2**62)))
    step_unless(unfit, state.optimizer)
    state.scaler.update()
    state.optimizer.zero_grad(set_to_none=True)
    kept = ~unfit
    if state.scaler.is_enabled():
        # gradients overflow in float16 occasionally, which is not a fault as long as the loss scale can be lowered
        kept |= (broken == 0) & (state.scaler._get_scale_async() >= 1)  # pyright: ignore[reportOptionalOperand]
    for buffer, old in zip(statistics, before, strict=True):
        buffer.copy_(torch.where(kept, buffer, old))
    for result in results:
        state.meter.update(*result, kept=kept)
    if state.ema:
        state.ema.update(state.model, kept)
    facts = torch.stack([*requests, (~kept).float(), norm.float(), *losses.float()])
    run.pending.append(PendingStep(state.step, used, copy_to_cpu(facts)))


def settle(state: TrainState, run: Run, leave: int = 0) -> StepOutcome:
    """Read the facts of the steps that are not yet settled; count and report the steps that were not finite.

    The last `leave` steps remain unsettled, because the device may still compute them.

    Raises:
        SharedError: the loss or the gradient is not finite, and the configuration does not allow another such step.
    """
    outcome = StepOutcome(stop=False, save=False, grad_norm=math.nan)
    while len(run.pending) > leave:
        step = run.pending.popleft()
        stop, save, dropped, norm, *losses = step.facts().numpy().tolist()
        interrupt.adopt(stop)
        outcome = StepOutcome(outcome.stop or stop > 0, outcome.save or save > 0, norm)
        if dropped:
            state.nonfinite += 1
            where = (step.number, run.last_step, state.nonfinite)
            report_nonfinite(run.cfg, run.amp, *where, step.batches, losses, norm)
            run.log.records.write("nonfinite", step=step.number, in_a_row=state.nonfinite)
        elif math.isfinite(norm):
            state.nonfinite = 0
    return outcome


def forward_backward(state: TrainState, run: Run, batch: dict[str, Any], micro: int) -> tuple[Tensor, Tensor, Tensor]:
    """Add the gradient of micro-batch number `micro`; return loss, scores (B, K) and labels for the metrics."""
    accumulation = run.cfg.SOLVER.ACCUMULATION_STEPS
    video = run.to_device(batch["video"])
    label = batch["label"].to(run.device, non_blocking=True)
    if run.mixup:
        where = (run.cfg.RNG_SEED, state.step, distributed.rank(), micro)
        video, target = run.mixup(video, label, random_state_for("mixup", *where))
    else:
        target = unmixed_target(run.cfg, label)

    exchange = micro == accumulation - 1 or not hasattr(run.network, "no_sync")
    with contextlib.nullcontext() if exchange else run.network.no_sync():
        outputs = run.network(video)
        outputs = outputs if isinstance(outputs, tuple) else (outputs,)
        name = run.cfg.MODEL.MODEL_NAME
        check_tensor(
            outputs[0],
            (len(video), run.cfg.MODEL.NUM_CLASSES),
            f"MODEL.MODEL_NAME {name}: forward, or the first of its tuple,",
        )
        loss = getattr(state.model, "training_loss", mean_loss)(outputs, target, run.loss)
        check_tensor(loss, (), f"training_loss of {name}, or MODEL.LOSS_FUNC {run.cfg.MODEL.LOSS_FUNC},")
        with torch.autocast(run.device.type, enabled=False):  # gradients have the types of the forward pass
            state.scaler.scale(loss / accumulation).backward()

    logits = outputs[0].detach()
    scores, labels = merge_mixed(logits, target) if run.mixup and label.ndim == 1 else (logits, label)
    return loss.detach(), scores, labels


def mean_loss(outputs: tuple[Tensor, ...], target: Tensor, loss: Callable[[Tensor, Tensor], Tensor]) -> Tensor:
    """Return the mean of the losses of all outputs: light networks train a second classifier, on the class token."""
    return torch.stack([loss(logits, target) for logits in outputs]).mean()


def seed(device: torch.device, number: int) -> None:
    """Seed the generators of the CPU and of a device.

    `torch.manual_seed` also prepares devices that do not exist, and records the stack for each of them.
    """
    torch.default_generator.manual_seed(number)
    if device.type == "cuda":
        torch.cuda.manual_seed(number)


def unmixed_target(cfg: CfgNode, label: Tensor) -> Tensor:
    """Return the targets of the loss: labels (B,), or soft targets (B, K) if the loss or the list has them."""
    if cfg.MODEL.LOSS_FUNC == "cross_entropy":
        return label
    smoothing = cfg.MIXUP.LABEL_SMOOTH_VALUE if cfg.MODEL.LOSS_FUNC == "soft_cross_entropy" else 0.0
    return one_hot(label, cfg.MODEL.NUM_CLASSES, smoothing)


def agree(losses: Tensor, run: Run) -> Tensor:
    """Return (3,) numbers; above 0 if in any process a loss is not finite, a stop is requested, or a save is due.

    The second is the number of a signal.
    """
    minutes = run.cfg.TRAIN.CHECKPOINT_MINUTES
    save = distributed.is_main() and 0 < 60 * minutes <= run.writer.seconds_since_save()
    # a number is written by the device itself, a tensor from the CPU would be copied, which waits
    requests = [torch.full((), float(flag), device=run.device) for flag in (interrupt.received() or 0, save)]
    return distributed.all_reduce_max(torch.stack([(~losses.isfinite().all()).float(), *requests]))
