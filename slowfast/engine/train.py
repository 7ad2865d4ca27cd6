"""Train, from top to bottom: prepare, start or resume, run the epochs, validate, save."""

from __future__ import annotations

import itertools
import logging
from pathlib import Path
from typing import Any

import torch
from fvcore.common.config import CfgNode
from torch.utils.data import DataLoader

from slowfast.datasets.list_checks import log_labels
from slowfast.engine.batch_norm import train_mode, update_statistics
from slowfast.engine.evaluate import ViewEnsemble, evaluate
from slowfast.engine.meters import metric_names
from slowfast.engine.results import write_scores
from slowfast.engine.setup import Inference, listed, make_loader
from slowfast.engine.start import (
    arrange_buckets,
    check_evaluation,
    check_test,
    count_steps,
    prepare_run,
    prepare_state,
    warn_of_single_clips,
)
from slowfast.engine.state import TrainState
from slowfast.engine.step import Run, settle, train_step
from slowfast.models.build import build_model
from slowfast.optim.build import learning_rate, set_learning_rate
from slowfast.run import interrupt
from slowfast.run.resume import describe_run
from slowfast.run.watchdog import progress
from slowfast.utils import distributed
from slowfast.utils.distributed import SharedError
from slowfast.utils.environment import environment
from slowfast.utils.profiling import peak_memory

logger = logging.getLogger(__name__)


def train(cfg: CfgNode) -> None:
    """Train as the configuration says, or continue an unfinished run in OUTPUT_DIR.

    Raises:
        ValueError: data, weights or an output folder that do not belong to this configuration.
        Interruption: in every process, if one was interrupted; all is saved.
    """
    progress()
    device = distributed.device(cfg.NUM_GPUS)
    torch.manual_seed(cfg.RNG_SEED)
    model = build_model(cfg)
    train_loader, val_loader = make_loader(cfg, "train", device), make_loader(cfg, "val", device)
    check_test(cfg)
    lists = {"train": listed(train_loader), "val": listed(val_loader)}
    if distributed.is_main():
        log_labels(lists, cfg.MODEL.NUM_CLASSES)
    state, resumed = prepare_state(cfg, model, count_steps(cfg, train_loader), lists, device)
    check_evaluation(cfg, state.model, device)
    warn_of_single_clips(cfg, state.model)
    videos = lists["train"]
    run = prepare_run(cfg, state, len(videos), describe_run(cfg, lists), device, resumed, videos.labels)
    where = {"step": state.step, "steps_per_epoch": state.steps_per_epoch, "processes": distributed.world_size()}
    run.log.records.write("start", **where, environment=environment() if distributed.is_main() else {})
    with run.writer, run.log:
        try:
            arrange_buckets(state, run)
            run_epochs(state, run, train_loader, val_loader)
        except (interrupt.Interruption, SharedError) as end:
            wait_for_all(run, stop_on_error=isinstance(end, interrupt.Interruption))
            raise
        wait_for_all(run, stop_on_error=True)


def run_epochs(state: TrainState, run: Run, train_loader: DataLoader[Any], val_loader: DataLoader[Any]) -> None:
    """Train up to the last step of the run, or until TRAIN.PATIENCE validations in a row were not the best."""
    while True:
        if state.epochs_closed < state.epoch:
            close_epoch(state, run, train_loader, val_loader)
        if state.step >= run.last_step or out_of_patience(state, run.cfg):
            return
        interrupted = train_epoch(state, run, train_loader)
        if interrupted or (state.step == run.last_step and state.within_epoch):
            save(state, run, failing=True)
        if interrupted:
            raise interrupt.Interruption(f"asked to stop, saved at step {state.step}")


def out_of_patience(state: TrainState, cfg: CfgNode) -> bool:
    """Return whether the last TRAIN.PATIENCE validations were not better than one before them; 0 is off.

    All processes have the metrics of the main one, so they agree.
    """
    patience = cfg.TRAIN.PATIENCE
    if not patience or state.since_best < patience:
        return False
    logger.info(
        "%s %.2f was not exceeded in the last %d validations: the training ends (TRAIN.PATIENCE %d; a larger "
        "one, or 0, continues it)",
        metric_names(cfg.DATA.MULTI_LABEL)[0], state.best, state.since_best, patience,
    )  # fmt: skip
    return True


def train_epoch(state: TrainState, run: Run, loader: DataLoader[Any]) -> bool:
    """Train to the end of the epoch, or to the last step of the run; return whether it was interrupted before that."""
    cfg = run.cfg
    first = state.step % state.steps_per_epoch
    loader.batch_sampler.set_position(state.epoch, first * cfg.SOLVER.ACCUMULATION_STEPS)  # pyright: ignore
    train_mode(state.model, cfg.MODEL.FROZEN_BN)
    state.meter.restart_clock()
    batches = iter(loader)
    for _ in range(first, state.steps_per_epoch):
        lr = learning_rate(state.step / state.steps_per_epoch, cfg)
        set_learning_rate(state.optimizer, lr)
        train_step(state, run, itertools.islice(batches, cfg.SOLVER.ACCUMULATION_STEPS))
        state.step += 1
        run.log.bar.update()
        logs = state.step % cfg.LOG_PERIOD == 0 or state.step == run.last_step
        # between two log lines, the device computes a step while the facts of the one before are read
        outcome = settle(state, run, leave=int(state.within_epoch and not logs))
        if logs:
            memory = peak_memory(run.device) / 2**30
            values = state.meter.log_values() | {"lr": lr, "grad_norm": outcome.grad_norm, "memory_gib": memory}
            run.log.train(state.step, state.step / state.steps_per_epoch, values)
            run.bad.check()
        if outcome.stop or state.step == run.last_step:
            return outcome.stop
        if outcome.save and state.within_epoch:
            save(state, run)
    return False


def close_epoch(state: TrainState, run: Run, train_loader: DataLoader[Any], val_loader: DataLoader[Any]) -> None:
    """Do what follows the last step of an epoch: means, BatchNorm statistics, validation, checkpoint.

    Raises:
        SharedError: too many videos are bad.
        Interruption: in every process, if one was interrupted; the next attempt does all of this again.
    """
    validates = state.epoch % run.cfg.TRAIN.EVAL_PERIOD == 0 or state.step == run.last_step
    saved = validates and save(state, run)  # a run that is killed in the validation resumes here
    before = state.copy_statistics()
    try:
        run.log.epoch(state.step, state.epoch, state.meter.epoch_values())
        run.bad.check()
        update_statistics(state, run, train_loader)
        best = validates and validate(state, run, val_loader)
    except interrupt.Interruption:
        state.restore_statistics(before)
        if not saved:
            save(state, run, failing=True)
        raise
    state.epochs_closed = state.epoch
    if validates:
        save(state, run, best=best, failing=True)  # the validation has shown that the weights give finite scores
    elif state.epoch % run.cfg.TRAIN.CHECKPOINT_PERIOD == 0:
        save(state, run)


def validate(state: TrainState, run: Run, loader: DataLoader[Any]) -> bool:
    """Evaluate the model, or its average if there is one, on a central view; return whether it is the best so far."""
    clips = max(1, run.cfg.TRAIN.BATCH_SIZE // distributed.local_world_size())
    evaluation = evaluate(
        Inference(state.models[-1], None, clips, run.cfg.MODEL.COMPILE),
        loader,
        run.to_device,
        run.device,
        ViewEnsemble("sum", softmax=False, videos=len(listed(loader))),
        max_clips=clips,
        description="validate",
    )
    metrics = distributed.on_main(evaluation.metrics)  # other processes may round in another way
    value = metrics[metric_names(run.cfg.DATA.MULTI_LABEL)[0]]
    best = value > state.best
    state.best = max(state.best, value)
    state.since_best = 0 if best else state.since_best + 1
    for path, reason in evaluation.bad:
        if path not in run.left_out:
            run.left_out.add(path)
            logger.warning("left out of the validations, because it cannot be decoded: %s: %s", path, reason)
    run.log.validation(state.step, state.epoch, metrics, state.best)
    if best and distributed.is_main():  # the report shows its scores
        samples = listed(loader)
        try:
            write_scores(Path(run.cfg.OUTPUT_DIR) / "validation", evaluation, samples, samples.class_names)
        except OSError as error:  # for example of a full disk
            logger.warning("the scores of the validation could not be written: %s", error)
    return best


def save(state: TrainState, run: Run, *, best: bool = False, failing: bool = False) -> bool:
    """Write a checkpoint in the background; every process must call this, the main process writes.

    If the last steps were not finite, it is written only with `failing`. After a validation with the best top-1 or mAP
    so far (`best`), best.pyth is another name of the same file. Return whether it is written.

    Raises:
        SharedError: too many videos are bad, while the checkpoint is being written.
    """
    settle(state, run)
    if state.nonfinite and not failing:
        logger.warning("no checkpoint now: the last %d steps were not finite", state.nonfinite)
        return False
    content = state.state_dict() | run.description
    run.bad.gather()  # before the checkpoint: a resume reads them from the disk and does not repeat the steps
    distributed.on_main(lambda: run.writer.save(content, best=best))
    progress()
    run.bad.check()
    return True


def wait_for_all(run: Run, stop_on_error: bool) -> None:
    """Wait until every process has arrived and the last checkpoint is written.

    A launcher may kill the processes that run longer than the first one.

    Raises:
        ValueError: in every process, if the checkpoint could not be written and `stop_on_error` is True.
    """
    distributed.barrier()
    distributed.on_main(lambda: run.writer.wait(stop_on_error=stop_on_error))
    progress()
