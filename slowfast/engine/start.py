"""Start a training: make its initial state, from weights or a checkpoint, and the parts that a step uses."""

from __future__ import annotations

import logging
import os
import warnings
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
import torch
from fvcore.common.config import CfgNode
from torch import nn
from torch.nn.parallel import DistributedDataParallel
from torch.utils.data import DataLoader

from slowfast.config.extensions import VARIABLE
from slowfast.datasets.build import build_loader
from slowfast.datasets.lists import VideoList
from slowfast.datasets.mixup import MixUp
from slowfast.engine.batch_norm import train_mode
from slowfast.engine.ema import ModelEma
from slowfast.engine.log import RunLog
from slowfast.engine.meters import TrainMeter, check_tensor
from slowfast.engine.official import adopt
from slowfast.engine.setup import amp_dtype, clip_mover, compile_blocks, listed, place
from slowfast.engine.state import TrainState
from slowfast.engine.step import Run, forward_backward
from slowfast.models.build import errors_name_keys, initialize, input_shape
from slowfast.models.layers import BATCH_NORM
from slowfast.optim.build import build_loss, build_optimizer
from slowfast.run.checkpoint import CheckpointWriter, is_official, resumable_checkpoint
from slowfast.run.health import BadVideos
from slowfast.run.resume import check_resume, warn_of_weights_only
from slowfast.run.watchdog import progress
from slowfast.utils import distributed
from slowfast.utils.profiling import count_parameters
from slowfast.weights.fetch import fetch_checkpoint
from slowfast.weights.tensors import load_tensors

logger = logging.getLogger(__name__)


def check_test(cfg: CfgNode) -> None:
    """Check before a training that the test after it can start; every process must call it.

    Raises:
        ValueError: in every process, if the list or the weights of the test cannot be read.
    """

    def check() -> None:
        build_loader(cfg, "test", local_world_size=distributed.local_world_size())
        tested = cfg.TEST.CHECKPOINT_FILE_PATH
        if tested and not Path(tested).absolute().is_relative_to(Path(cfg.OUTPUT_DIR).absolute()):
            fetch_checkpoint(tested)

    if cfg.TEST.ENABLE:
        distributed.on_main(check)
        progress()


def count_steps(cfg: CfgNode, loader: DataLoader[Any]) -> int:
    """Return the optimizer steps of an epoch.

    Raises:
        ValueError: the list is shorter than a step.
    """
    steps, videos = len(loader) // cfg.SOLVER.ACCUMULATION_STEPS, len(listed(loader))
    if steps == 0:
        raise ValueError(
            f"a step takes SOLVER.ACCUMULATION_STEPS {cfg.SOLVER.ACCUMULATION_STEPS} x TRAIN.BATCH_SIZE "
            f"{cfg.TRAIN.BATCH_SIZE} videos per node, more than the {videos} of the list; lower one of them"
        )
    unused = videos - steps * cfg.TRAIN.BATCH_SIZE * cfg.SOLVER.ACCUMULATION_STEPS * cfg.NUM_SHARDS
    logger.info("videos: %d, steps per epoch: %d, videos left out of each epoch: %d", videos, steps, unused)
    return steps


def prepare_state(
    cfg: CfgNode, model: nn.Module, steps_per_epoch: int, lists: Mapping[str, VideoList], device: torch.device
) -> tuple[TrainState, bool]:
    """Return the initial state, and whether it comes from a checkpoint in OUTPUT_DIR.

    `lists` are those of the training ("train") and of its validations ("val").
    """
    # the main process decides for all: the machines of a job need not see the same disk
    source = distributed.on_main(lambda: resumable_checkpoint(cfg.OUTPUT_DIR)) if cfg.TRAIN.AUTO_RESUME else None
    progress()
    if source is None:
        if note := getattr(cfg, "rate_note", ""):
            logger.warning("%s", note)
        warn_of_weights_only(cfg)
        initialize(model, cfg, lists["train"].class_names)
    state = new_state(cfg, model, steps_per_epoch, device)
    logger.info("%s: %.2f M parameters", cfg.MODEL.MODEL_NAME, count_parameters(state.model) / 1e6)
    if source is not None:
        resume(state, source, cfg, lists)
    return state, source is not None


def new_state(cfg: CfgNode, model: nn.Module, steps_per_epoch: int, device: torch.device) -> TrainState:
    """Return the state before the first step, with the model on the device.

    Raises:
        ValueError: BatchNorm cannot be synchronized on this device.
    """
    place(model, device)
    if cfg.BN.NORM_TYPE == "sync_batchnorm" and distributed.world_size() > 1:
        if device.type == "cpu":
            raise ValueError("BN.NORM_TYPE sync_batchnorm needs GPUs; use batchnorm with NUM_GPUS 0")
        model = nn.SyncBatchNorm.convert_sync_batchnorm(model)
    scaler = torch.amp.GradScaler(device.type, enabled=amp_dtype(cfg, device) is torch.float16)  # pyright: ignore
    ema = ModelEma(model, cfg.EMA.DECAY) if cfg.EMA.ENABLE else None
    meter = TrainMeter(device, cfg.DATA.MULTI_LABEL)
    return TrainState(model, build_optimizer(model, cfg), scaler, meter, steps_per_epoch, ema)


def check_evaluation(cfg: CfgNode, model: nn.Module, device: torch.device) -> None:
    """Run the network once as a validation does, if there are modules of users.

    The first validation follows an epoch, which would be lost.

    Raises:
        ValueError: it does not return logits (B, K).
    """
    if not os.environ.get(VARIABLE):
        return
    clips = torch.zeros(1, *input_shape(cfg), device=device)
    with torch.no_grad():
        logits = model.eval()(clips)
    check_tensor(logits, (1, cfg.MODEL.NUM_CLASSES), f"MODEL.MODEL_NAME {cfg.MODEL.MODEL_NAME}: forward in eval mode")


def warn_of_single_clips(cfg: CfgNode, model: nn.Module) -> None:
    """Warn if each process gets one clip, and the network cannot learn from a single one."""
    copies = cfg.AUG.NUM_SAMPLE if cfg.AUG.ENABLE else 1
    processes = distributed.local_world_size()
    if copies * cfg.TRAIN.BATCH_SIZE == processes and not learns_from_single_clips(cfg, model):
        logger.warning(
            "the network cannot learn with one clip per process (TRAIN.BATCH_SIZE %d), because BatchNorm makes the "
            "features of all clips the same: set TRAIN.BATCH_SIZE to %d or more, or for fine-tuning MODEL.FROZEN_BN "
            "True",
            cfg.TRAIN.BATCH_SIZE,
            2 * processes,
        )


def learns_from_single_clips(cfg: CfgNode, model: nn.Module) -> bool:
    """Return whether a process may get one clip; the BatchNorm after the last block of a UniFormer needs several.

    The features of a clip are the means over the positions of its output. BatchNorm of a single clip gives these means
    the same values for every clip.
    """
    return type(getattr(model, "norm", None)) not in BATCH_NORM.values() or cfg.MODEL.FROZEN_BN


def resume(state: TrainState, source: Path, cfg: CfgNode, lists: Mapping[str, VideoList]) -> None:
    """Continue from a checkpoint.

    Raises:
        ValueError: it is not one of this run.
    """
    checkpoint = load_tensors(source)
    if is_official(checkpoint):
        try:
            with errors_name_keys(state.model, str(source)):
                adopt(checkpoint, state, cfg, lists["train"].class_names)
        except ValueError as error:
            raise ValueError(
                f"{error}\n  a run resumes what OUTPUT_DIR contains: to start from the weights of this file instead, "
                "move it to another folder and set TRAIN.CHECKPOINT_FILE_PATH to it, with MODEL.RESET_HEAD True if the "
                "classes differ"
            ) from error
    else:
        state.load_state_dict(checkpoint, str(source))  # checks the content, so it comes first
    check_resume(checkpoint, cfg, lists)
    logger.info("resumed from %s at step %d", source, state.step)
    if state.step >= cfg.SOLVER.MAX_EPOCH * state.steps_per_epoch:
        logger.info(
            "nothing is left to train: SOLVER.MAX_EPOCH %d is reached; a larger one continues this run; a new run, "
            "also with other videos, needs another OUTPUT_DIR",
            cfg.SOLVER.MAX_EPOCH,
        )
    progress()


def prepare_run(
    cfg: CfgNode,
    state: TrainState,
    num_videos: int,
    description: dict[str, Any],
    device: torch.device,
    resumed: bool = False,
    labels: np.ndarray | None = None,
) -> Run:
    """Return the parts of a training that no step replaces, such as the distributed network, the loss and the logs.

    `labels` (N,) are those of the training list, for the weights of the classes.
    """
    network: Any = state.model
    if cfg.MODEL.COMPILE:
        compile_blocks(state.model)
    if distributed.world_size() > 1:
        # channels last lays 1x1x1 kernels out in another, equally good order; it is only a matter of speed
        warnings.filterwarnings("ignore", message="Grad strides do not match bucket view strides")
        devices = [device] if device.type == "cuda" else None
        network = DistributedDataParallel(network, device_ids=devices, gradient_as_bucket_view=True)
    last_step = cfg.SOLVER.MAX_EPOCH * state.steps_per_epoch
    last_step = min(cfg.TRAIN.MAX_STEPS or last_step, last_step)
    return Run(
        cfg=cfg,
        device=device,
        network=network,
        to_device=clip_mover(cfg, device, reuse=True),
        loss=build_loss(cfg, labels, device),
        mixup=build_mixup(cfg) if cfg.MIXUP.ENABLE else None,
        amp=amp_dtype(cfg, device),
        log=RunLog(cfg, state.step, last_step),
        bad=BadVideos(cfg.OUTPUT_DIR, num_videos, cfg.DATA.MAX_BAD_SHARE, device, resumed),
        writer=CheckpointWriter(cfg.OUTPUT_DIR, cfg.TRAIN.KEEP_CHECKPOINTS),
        description=description,
        last_step=last_step,
    )


def arrange_buckets(state: TrainState, run: Run) -> None:
    """Compute gradients of random clips once, so that all steps sum those of three or more processes in the same way.

    After its first backward pass, `DistributedDataParallel` puts the gradients into other buckets, in which the sums
    are rounded differently. Otherwise a resumed run would differ from one that was not interrupted. Every process must
    call this.
    """
    cfg = run.cfg
    if distributed.world_size() < 3 or state.step >= run.last_step:
        return
    before = {name: buffer.clone() for name, buffer in state.model.named_buffers()}
    train_mode(state.model, cfg.MODEL.FROZEN_BN)
    batch = random_batch(cfg, cfg.TRAIN.BATCH_SIZE // distributed.local_world_size())
    with torch.autocast(run.device.type, dtype=run.amp, enabled=run.amp is not None):
        forward_backward(state, run, batch, micro=cfg.SOLVER.ACCUMULATION_STEPS - 1)
    state.optimizer.zero_grad(set_to_none=True)
    for name, buffer in state.model.named_buffers():  # a forward pass may have replaced them by other tensors
        if name in before:
            buffer.copy_(before[name])
    progress()


def random_batch(cfg: CfgNode, videos: int) -> dict[str, Any]:
    """Return a training batch of random clips of the first class, or of no class for a multi-label list."""
    clips, side = videos * (cfg.AUG.NUM_SAMPLE if cfg.AUG.ENABLE else 1), cfg.DATA.TRAIN_CROP_SIZE
    label = torch.zeros((clips, cfg.MODEL.NUM_CLASSES) if cfg.DATA.MULTI_LABEL else clips, dtype=torch.long)
    video = torch.randint(256, (clips, *input_shape(cfg)[:-2], side, side), dtype=torch.uint8)
    return {"video": video, "label": label, "bad": []}


def build_mixup(cfg: CfgNode) -> MixUp:
    """Return the mixing of samples that the configuration describes."""
    return MixUp(
        alpha=cfg.MIXUP.ALPHA,
        cutmix_alpha=cfg.MIXUP.CUTMIX_ALPHA,
        prob=cfg.MIXUP.PROB,
        switch_prob=cfg.MIXUP.SWITCH_PROB,
        smoothing=cfg.MIXUP.LABEL_SMOOTH_VALUE,
        num_classes=cfg.MODEL.NUM_CLASSES,
    )
