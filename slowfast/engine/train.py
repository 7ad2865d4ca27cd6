"""Training, from top to bottom: build, start or resume, run the epochs, validate, save."""

from __future__ import annotations

import contextlib
import datetime
import itertools
import logging
import math
import time
import warnings
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import torch
from fvcore.common.config import CfgNode
from fvcore.nn.precise_bn import update_bn_stats
from torch import Tensor, nn
from torch.nn.modules.batchnorm import _BatchNorm
from torch.nn.parallel import DistributedDataParallel
from torch.utils.data import DataLoader
from tqdm import tqdm

from slowfast.datasets.build import Split, build_loader
from slowfast.datasets.list_checks import log_labels
from slowfast.datasets.mixup import MixUp, one_hot
from slowfast.engine.ema import ModelEma
from slowfast.engine.evaluate import ViewEnsemble, evaluate
from slowfast.engine.meters import TrainMeter, mixed_topk_correct, topk_correct
from slowfast.engine.official import adopt
from slowfast.engine.setup import BadVideos, amp_dtype, clip_mover, place
from slowfast.engine.state import TrainState
from slowfast.engine.tensorboard import TensorBoard
from slowfast.models.build import build_model, initialize
from slowfast.optim.build import build_loss, build_optimizer, learning_rate, set_learning_rate
from slowfast.run import interrupt
from slowfast.run.checkpoint import CheckpointWriter, is_official, resumable_checkpoint
from slowfast.run.preflight import build_alike
from slowfast.run.resume import check_resume, describe_run, warn_of_weights_only
from slowfast.run.watchdog import progress
from slowfast.utils import distributed
from slowfast.utils.distributed import SharedError
from slowfast.utils.io import atomic_write
from slowfast.utils.logging import MetricsLog
from slowfast.utils.profiling import count_parameters, peak_memory_gib
from slowfast.utils.rng import random_state_for, rng_for
from slowfast.weights.fetch import fetch_checkpoint
from slowfast.weights.tensors import load_tensors

logger = logging.getLogger(__name__)

DUMPS = 3  # batches kept by each process of steps that are not finite


@dataclass
class Run:
    """What a training step uses and never changes."""

    cfg: CfgNode
    facts: dict[str, Any]  # for checkpoints
    device: torch.device
    network: nn.Module  # the model in its distributed wrapper
    to_device: Callable[[Tensor], Tensor]
    loss: Callable[[Tensor, Tensor], Tensor]
    mixup: MixUp | None
    amp: torch.dtype | None
    log: MetricsLog
    board: TensorBoard
    bad: BadVideos
    writer: CheckpointWriter
    steps_per_epoch: int
    first_step: int  # of this process
    last_step: int  # to stop after
    started: float = field(default_factory=time.perf_counter)
    saved: float = field(default_factory=time.monotonic)  # a clock that nobody sets


def train(cfg: CfgNode) -> None:
    """Train as the configuration says; a run found unfinished in OUTPUT_DIR goes on where it was.

    Raises:
        ValueError: data, weights or an output folder that do not belong to this configuration.
        Interruption: in every process, if one was asked to stop; all is saved.
    """
    progress()
    device = distributed.device(cfg.NUM_GPUS)
    torch.manual_seed(cfg.RNG_SEED)

    model = build_model(cfg)
    train_loader, val_loader = _loader(cfg, "train", device), _loader(cfg, "val", device)
    if cfg.TEST.ENABLE and distributed.is_main():
        # a fault of the test shows now, not after days of training
        build_loader(cfg, "test", local_world_size=distributed.local_world_size())
        tested = cfg.TEST.CHECKPOINT_FILE_PATH
        if tested and not Path(tested).absolute().is_relative_to(Path(cfg.OUTPUT_DIR).absolute()):
            fetch_checkpoint(tested)
        progress()
    lists = train_loader.dataset.samples, val_loader.dataset.samples  # pyright: ignore
    if distributed.is_main():
        log_labels(dict(zip(("train", "val"), lists, strict=True)), cfg.MODEL.NUM_CLASSES)
    num_videos = len(lists[0])
    steps_per_epoch = len(train_loader) // cfg.SOLVER.ACCUMULATION_STEPS
    if steps_per_epoch == 0:
        raise ValueError(
            f"a step takes SOLVER.ACCUMULATION_STEPS {cfg.SOLVER.ACCUMULATION_STEPS} x TRAIN.BATCH_SIZE "
            f"{cfg.TRAIN.BATCH_SIZE} videos a node, more than the {num_videos} of the list; lower one of them"
        )

    schedule_end = cfg.SOLVER.MAX_EPOCH * steps_per_epoch

    # the main process decides for all: the machines of a job need not see the same disk
    resume_from = None
    if cfg.TRAIN.AUTO_RESUME:
        resume_from = distributed.on_main(lambda: resumable_checkpoint(cfg.OUTPUT_DIR))
    progress()
    if resume_from is None:
        warn_of_weights_only(cfg)
        initialize(model, cfg, lists[0].class_names)
    place(model, device)
    if cfg.BN.NORM_TYPE == "sync_batchnorm" and distributed.world_size() > 1:
        if device.type == "cpu":
            raise ValueError("BN.NORM_TYPE sync_batchnorm needs GPUs; use batchnorm with NUM_GPUS 0")
        model = nn.SyncBatchNorm.convert_sync_batchnorm(model)
    logger.info("%s: %.2f M parameters", cfg.MODEL.MODEL_NAME, count_parameters(model) / 1e6)
    step_videos = cfg.TRAIN.BATCH_SIZE * cfg.SOLVER.ACCUMULATION_STEPS * cfg.NUM_SHARDS
    left = num_videos - steps_per_epoch * step_videos
    logger.info("%d videos, %d steps an epoch; %d other videos left out each epoch", num_videos, steps_per_epoch, left)

    amp = amp_dtype(cfg, device)
    scaler = torch.amp.GradScaler(device.type, enabled=amp is torch.float16)  # pyright: ignore
    ema = ModelEma(model, cfg.EMA.DECAY) if cfg.EMA.ENABLE else None
    state = TrainState(model, build_optimizer(model, cfg), scaler, TrainMeter(device), ema)
    if resume_from is not None:
        checkpoint = load_tensors(resume_from)
        if is_official(checkpoint):
            adopt(checkpoint, state, steps_per_epoch, cfg, lists[0].class_names)
        else:
            state.load_state_dict(checkpoint, steps_per_epoch, resume_from)  # checks the content, so it comes first
        check_resume(checkpoint, cfg, *lists)
        logger.info("resumed from %s at step %d", resume_from, state.step)
        if state.step >= schedule_end:
            logger.info(
                "nothing is left to train: SOLVER.MAX_EPOCH %d is reached; a larger one continues this run; a "
                "new run, also with other videos, needs another OUTPUT_DIR",
                cfg.SOLVER.MAX_EPOCH,
            )
        progress()

    network = model
    if distributed.world_size() > 1:
        # channels last lays 1x1x1 kernels out in another, equally good order; it is only a matter of speed
        warnings.filterwarnings("ignore", message="Grad strides do not match bucket view strides")
        network = DistributedDataParallel(
            model, device_ids=[device] if device.type == "cuda" else None, gradient_as_bucket_view=True
        )
    main = distributed.is_main()
    run = Run(
        cfg=cfg,
        facts=describe_run(cfg, *lists),
        device=device,
        network=network,
        to_device=clip_mover(cfg, device),
        loss=build_loss(cfg),
        mixup=_build_mixup(cfg),
        amp=amp,
        log=MetricsLog(cfg.OUTPUT_DIR, enabled=main),
        board=TensorBoard(cfg, state.step, enabled=main),
        bad=BadVideos(cfg, num_videos, device, resumed=resume_from is not None),
        writer=CheckpointWriter(
            cfg.OUTPUT_DIR,
            cfg.TRAIN.KEEP_CHECKPOINTS,
            cfg.TRAIN.KEEP_EVERY,
            stop_on_error=cfg.TRAIN.ON_SAVE_ERROR == "stop",
        ),
        steps_per_epoch=steps_per_epoch,
        first_step=state.step,
        last_step=min(cfg.TRAIN.MAX_STEPS or schedule_end, schedule_end),
    )
    run.log.write("start", step=state.step, steps_per_epoch=steps_per_epoch, processes=distributed.world_size())

    quiet = None if main else True  # None: a bar on a terminal only
    with run.writer, run.board, tqdm(total=run.last_step, initial=state.step, desc="train", disable=quiet) as bar:
        try:
            while True:
                if state.epochs_closed < state.step // steps_per_epoch:
                    close_epoch(state, run, train_loader, val_loader)
                if state.step >= run.last_step:
                    break
                interrupted = train_epoch(state, run, train_loader, bar)
                within_epoch = state.step % steps_per_epoch > 0
                if interrupted or (state.step == run.last_step and within_epoch):
                    save(state, run, anyway=True)
                if interrupted:
                    raise interrupt.Interruption(f"asked to stop, saved at step {state.step}")
        except (interrupt.Interruption, SharedError) as end:
            wait_for_all(run, stop_on_error=isinstance(end, interrupt.Interruption))
            raise
        wait_for_all(run, stop_on_error=True)


def wait_for_all(run: Run, stop_on_error: bool) -> None:
    """Wait until every process is here and the last checkpoint is written; a launcher may kill those that stay longer
    than the first one.

    Raises:
        ValueError: in every process, if it could not be written and `stop_on_error` is True.
    """
    distributed.barrier()
    distributed.on_main(lambda: run.writer.wait(stop_on_error=stop_on_error))
    progress()


def train_epoch(state: TrainState, run: Run, loader: DataLoader, bar: tqdm) -> bool:
    """Run the rest of the current epoch, or up to the last step of the run; returns whether it was asked to stop."""
    cfg = run.cfg
    epoch, first = divmod(state.step, run.steps_per_epoch)
    loader.batch_sampler.set_position(epoch, first * cfg.SOLVER.ACCUMULATION_STEPS)  # pyright: ignore
    state.model.train()
    if cfg.MODEL.FROZEN_BN:
        freeze_batch_norm(state.model)
    state.meter.restart_clock()
    batches = iter(loader)
    for _ in range(first, run.steps_per_epoch):
        lr = learning_rate(state.step / run.steps_per_epoch, cfg)
        set_learning_rate(state.optimizer, lr)
        done = train_step(state, run, itertools.islice(batches, cfg.SOLVER.ACCUMULATION_STEPS))
        state.step += 1
        bar.update()
        if state.step % cfg.LOG_PERIOD == 0 or state.step == run.last_step:
            log_step(state, run, lr, done.grad_norm)
        if done.stop:
            return True
        if state.step == run.last_step:
            break
        if done.save and state.step % run.steps_per_epoch:
            save(state, run)
    return False


@dataclass
class StepOutcome:
    """What every process knows after a step.

    Attributes:
        grad_norm: L2 norm of the gradient before clipping.
        stop: some process was asked to stop.
        save: the main process wants a checkpoint.
    """

    grad_norm: float
    stop: bool
    save: bool


def train_step(state: TrainState, run: Run, batches: Iterator[dict[str, Any]]) -> StepOutcome:
    """One optimizer step over the micro-batches; one that is not finite changes nothing but the step count.

    Raises:
        SharedError: the loss or the gradient is not finite, and the configuration says stop.
    """
    cfg = run.cfg
    accumulation = cfg.SOLVER.ACCUMULATION_STEPS
    where = (cfg.RNG_SEED, state.step, distributed.rank())
    torch.manual_seed(int(rng_for("network", *where).integers(2**62)))  # dropout and drop path
    buffers = [buffer.clone() for buffer in state.model.buffers()]  # running statistics, in case this step is dropped
    used, results = [], []
    for micro in range(accumulation):
        started = time.perf_counter()
        batch = next(batches)
        waited = time.perf_counter() - started
        progress()
        run.bad.record(batch["bad"])
        used.append(batch)

        video = run.to_device(batch["video"])
        target = label = batch["label"].to(run.device, non_blocking=True)
        if run.mixup:
            video, target = run.mixup(video, label, random_state_for("mixup", *where, micro))
        elif cfg.MODEL.LOSS_FUNC == "soft_cross_entropy":
            target = one_hot(label, cfg.MODEL.NUM_CLASSES, cfg.MIXUP.LABEL_SMOOTH_VALUE)
        elif cfg.MODEL.LOSS_FUNC != "cross_entropy":
            target = one_hot(label, cfg.MODEL.NUM_CLASSES)

        synchronize = micro == accumulation - 1 or not isinstance(run.network, DistributedDataParallel)
        with contextlib.nullcontext() if synchronize else run.network.no_sync():  # pyright: ignore
            with torch.autocast(run.device.type, dtype=run.amp, enabled=run.amp is not None):
                outputs = run.network(video)
                # light networks train a second classifier, on the class token, with the same weight
                outputs = outputs if isinstance(outputs, tuple) else (outputs,)
                loss = torch.stack([run.loss(logits, target) for logits in outputs]).mean()
            state.scaler.scale(loss / accumulation).backward()

        with torch.no_grad():
            logits = outputs[0]
            hits = mixed_topk_correct(logits, target, (1, 5)) if run.mixup else topk_correct(logits, label, (1, 5))
            results.append((loss.detach(), hits, len(video), waited))

    state.scaler.unscale_(state.optimizer)
    limit = cfg.SOLVER.CLIP_GRADIENT or math.inf
    norm = nn.utils.clip_grad_norm_(state.model.parameters(), limit)
    losses = torch.stack([loss for loss, *_ in results])
    # the only time a step waits for the device: all processes agree on what to do
    broken, stop, save_now, grad_norm = _agree(losses, norm, run)
    finite = not broken and math.isfinite(grad_norm)
    if finite:
        state.scaler.step(state.optimizer)
        state.nonfinite = 0
    if finite or state.scaler.is_enabled():
        state.scaler.update()
    state.optimizer.zero_grad(set_to_none=True)
    # a gradient beyond float16 is everyday business as long as there is a scale to lower
    overflow = not finite and not broken and state.scaler.is_enabled() and state.scaler.get_scale() >= 1
    if finite or overflow:
        for result in results:
            state.meter.update(*result)
        if state.ema:
            state.ema.update(state.model)
    else:
        for buffer, before in zip(state.model.buffers(), buffers, strict=True):
            buffer.copy_(before)
        state.nonfinite += 1
        report_nonfinite(state, run, used, losses.tolist(), grad_norm)
    return StepOutcome(grad_norm, stop, save_now)


def _agree(losses: Tensor, grad_norm: Tensor, run: Run) -> tuple[bool, bool, bool, float]:
    """(a loss is not finite, someone was asked to stop, a checkpoint is due) in any process; the gradient norm."""
    minutes = run.cfg.TRAIN.CHECKPOINT_MINUTES
    due = distributed.is_main() and 0 < 60 * minutes <= time.monotonic() - run.saved
    wishes = torch.tensor([0.0, interrupt.received() is not None, due], device=run.device)
    wishes[0] = ~losses.isfinite().all()
    wishes = distributed.all_reduce_max(wishes)
    broken, stop, save_now, norm = torch.cat([wishes, grad_norm.detach().float().view(1)]).tolist()
    return broken > 0, stop > 0, save_now > 0, norm


def report_nonfinite(
    state: TrainState, run: Run, batches: list[dict[str, Any]], losses: list[float], grad_norm: float
) -> None:
    """Keep the batch of a step that was not finite, and stop when there were too many.

    Raises:
        SharedError: TRAIN.NONFINITE is stop, or too many steps in a row.
    """
    cfg = run.cfg
    mine = f"rank_{distributed.rank()}.pth"
    path = Path(cfg.OUTPUT_DIR) / "nonfinite" / f"step_{state.step:06d}_{mine}"
    try:
        if len(list(path.parent.glob(f"step_*_{mine}"))) < DUMPS:
            entries = {"step": state.step, "losses": losses, "grad_norm": grad_norm, "cfg": cfg.dump()}
            with atomic_write(path) as file:
                torch.save({**entries, "batches": batches}, file)
    except (OSError, RuntimeError) as error:
        logger.error("%s could not be written: %s", path, error)
    what = f"loss {sum(losses) / len(losses)}, gradient norm {grad_norm} at step {state.step}"
    if cfg.TRAIN.NONFINITE == "stop" or state.nonfinite >= cfg.TRAIN.MAX_NONFINITE:
        raise SharedError(
            f"{what}: {state.nonfinite} steps in a row were not finite (TRAIN.NONFINITE {cfg.TRAIN.NONFINITE}, "
            f"TRAIN.MAX_NONFINITE {cfg.TRAIN.MAX_NONFINITE}); they changed nothing, and the first such batches "
            f"are in {path.parent}. Go on with TRAIN.AMP_DTYPE bfloat16 or TRAIN.MIXED_PRECISION False, or start again "
            "with a lower SOLVER.BASE_LR in another OUTPUT_DIR"
        )
    logger.warning("%s: the step was left out (%d in a row)", what, state.nonfinite)
    run.log.write("nonfinite", step=state.step, in_a_row=state.nonfinite)


def log_step(state: TrainState, run: Run, lr: float, grad_norm: float) -> None:
    """Read the meters and write one line each for people, programs and TensorBoard."""
    values = state.meter.log_values()
    epoch = state.step / run.steps_per_epoch
    values |= {"lr": lr, "grad_norm": grad_norm, "memory_gib": peak_memory_gib(run.device)}
    seconds_per_step = (time.perf_counter() - run.started) / (state.step - run.first_step)
    eta = datetime.timedelta(seconds=round(seconds_per_step * (run.last_step - state.step)))
    logger.info(
        "epoch %.2f step %d/%d  loss %.4f  top1 %.2f  top%d %.2f  lr %.3g  grad %.2f  %.1f clips/s  data wait %.0f%%  "
        "%.1f GiB  eta %s",
        epoch, state.step, run.last_step, values["loss"], values["top1"],
        min(5, run.cfg.MODEL.NUM_CLASSES), values["top5"], lr, values["grad_norm"],
        values["clips_per_s"], 100 * values["data_wait"], values["memory_gib"], eta,
    )  # fmt: skip
    run.log.write("train", step=state.step, epoch=epoch, **values)
    run.board.write("train", values, state.step)
    run.bad.check()


def close_epoch(state: TrainState, run: Run, train_loader: DataLoader, val_loader: DataLoader) -> None:
    """What follows the last step of an epoch: statistics, validation, checkpoint."""
    epoch = state.step // run.steps_per_epoch
    last = state.step == run.last_step
    validated = epoch % run.cfg.TRAIN.EVAL_PERIOD == 0 or last
    if validated:
        save(state, run)  # validation takes its time; whoever is killed meanwhile goes on from here
    models = [state.model, state.ema.module] if state.ema else [state.model]
    buffers = [buffer.clone() for model in models for buffer in model.buffers()]
    means = state.meter.state_dict()
    try:
        finish_epoch(state, run, train_loader)
        best = validated and validate(state, run, val_loader)
    except interrupt.Interruption:
        # the next attempt does all of this again, from what was
        for buffer, before in zip((b for model in models for b in model.buffers()), buffers, strict=True):
            buffer.copy_(before)
        state.meter.load_state_dict(means)
        if not validated or state.nonfinite:  # otherwise it is saved already
            save(state, run, anyway=True)
        raise
    state.epochs_closed = epoch
    # a best checkpoint without one to resume from would be overwritten by the next attempt
    if validated or epoch % run.cfg.TRAIN.CHECKPOINT_PERIOD == 0:
        save(state, run, best=best, anyway=validated)


def finish_epoch(state: TrainState, run: Run, loader: DataLoader) -> None:
    """Log the epoch's means; make every process's BatchNorm statistics the same, recomputed precisely when asked.

    Raises:
        SharedError: too many videos are bad.
        Interruption: in every process, if one was asked to stop.
    """
    values = state.meter.epoch_values()
    epoch = state.step // run.steps_per_epoch
    logger.info("epoch %d done: loss %.4f  top1 %.2f", epoch, values["loss"], values["top1"])
    run.log.write("epoch", step=state.step, epoch=epoch, **values)
    run.bad.check()
    models = [state.model, state.ema.module] if state.ema else [state.model]
    for model in models:
        if run.cfg.BN.USE_PRECISE_STATS and not run.cfg.MODEL.FROZEN_BN:
            loader.batch_sampler.set_position(epoch, 0)  # pyright: ignore
            where = (run.cfg.RNG_SEED, epoch, distributed.rank())
            torch.manual_seed(int(rng_for("precise", *where).integers(2**62)))  # dropout and drop path
            clips = clips_until_stopped(run, loader)
            update_bn_stats(model.train(), clips, min(run.cfg.BN.NUM_BATCHES_PRECISE, len(loader)))
        if distributed.world_size() > 1:
            for buffer in model.buffers():
                torch.distributed.broadcast(buffer, 0)


def clips_until_stopped(run: Run, loader: DataLoader) -> Iterator[Tensor]:
    """Yield the clips of every batch, on the device.

    Raises:
        Interruption: in every process, before the same batch, if one was asked to stop.
    """
    for batch in loader:
        progress()
        asked = torch.tensor(float(interrupt.received() is not None), device=run.device)
        if distributed.all_reduce_max(asked) > 0:
            raise interrupt.Interruption("asked to stop during the BatchNorm statistics, which will start again")
        yield run.to_device(batch["video"])


def validate(state: TrainState, run: Run, loader: DataLoader) -> bool:
    """Evaluate the model (its average when there is one) on one centre view; returns whether it is the best so far."""
    cfg = run.cfg
    model = state.ema.module if state.ema else state.model
    evaluation = evaluate(
        model,
        loader,
        run.to_device,
        run.device,
        ViewEnsemble("sum", softmax=False),
        max_clips=max(1, cfg.TRAIN.BATCH_SIZE // distributed.local_world_size()),
        description="validate",
    )
    metrics = evaluation.metrics()
    best = metrics["top1"] > state.best
    state.best = max(state.best, metrics["top1"])
    epoch = state.step // run.steps_per_epoch
    for path, reason in evaluation.bad:
        logger.warning("left out of the validation, it cannot be decoded: %s: %s", path, reason)
    logger.info(
        "validation after epoch %d: top1 %.2f  top%d %.2f  (%d videos, best top1 %.2f)",
        epoch, metrics["top1"], metrics["top5_k"], metrics["top5"], metrics["num_videos"], state.best,
    )  # fmt: skip
    run.log.write("val", step=state.step, epoch=epoch, **metrics)
    run.board.write("val", {key: metrics[key] for key in ("top1", "top5")}, state.step)
    return best


def save(state: TrainState, run: Run, best: bool = False, anyway: bool = False) -> None:
    """Write a checkpoint, also as the best if it is; every process takes part, the main one writes.

    Args:
        anyway: also while steps fail, which otherwise leave the good checkpoints alone: the run ends, or a validation
            has shown that the weights are sound.

    Raises:
        SharedError: more videos are bad than may be, while the checkpoint is on its way; or the one before could not be
            written, and the run is to stop then.
    """
    run.saved = time.monotonic()
    if state.nonfinite and not anyway:
        logger.warning("no checkpoint now: the last %d steps were not finite", state.nonfinite)
        return
    content = state.state_dict(run.steps_per_epoch) | run.facts
    run.bad.gather()  # a resume reads them from the disk, and knows nothing of the steps before
    distributed.on_main(lambda: run.writer.save(content, best=best))
    progress()
    run.bad.check()


def freeze_batch_norm(model: nn.Module) -> None:
    """Let BatchNorm use its running statistics, and leave them as they are, while the rest trains."""
    for module in model.modules():
        if isinstance(module, _BatchNorm):
            module.eval()


def _loader(cfg: CfgNode, split: Split, device: torch.device) -> DataLoader:
    # the main process checks every file of the list at this time
    loader = build_alike(
        lambda: build_loader(
            cfg,
            split,
            rank=distributed.rank(),
            world_size=distributed.world_size(),
            local_world_size=distributed.local_world_size(),
            pin_memory=cfg.DATA_LOADER.PIN_MEMORY and device.type == "cuda",
        )
    )
    progress()
    return loader


def _build_mixup(cfg: CfgNode) -> MixUp | None:
    if not cfg.MIXUP.ENABLE:
        return None
    return MixUp(
        alpha=cfg.MIXUP.ALPHA,
        cutmix_alpha=cfg.MIXUP.CUTMIX_ALPHA,
        prob=cfg.MIXUP.PROB,
        switch_prob=cfg.MIXUP.SWITCH_PROB,
        smoothing=cfg.MIXUP.LABEL_SMOOTH_VALUE,
        num_classes=cfg.MODEL.NUM_CLASSES,
    )
