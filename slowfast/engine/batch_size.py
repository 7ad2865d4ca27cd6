"""Find the largest batch of a training that fits into memory, by measured steps."""

from __future__ import annotations

import itertools
import multiprocessing
import tempfile
from collections.abc import Callable
from concurrent.futures import ProcessPoolExecutor
from concurrent.futures.process import BrokenProcessPool
from typing import NamedTuple

import torch
from fvcore.common.config import CfgNode
from torch import nn

from slowfast.config.rules import check_hardware, num_local_processes
from slowfast.engine.batch_norm import train_mode
from slowfast.engine.start import learns_from_single_clips, new_state, prepare_run, random_batch
from slowfast.engine.state import TrainState
from slowfast.engine.step import Run, train_step
from slowfast.models.build import build_model
from slowfast.optim.build import set_learning_rate
from slowfast.utils import distributed
from slowfast.utils.memory import available
from slowfast.utils.profiling import peak_memory

# Videos per process of the steps from which larger ones are estimated. With recomputed activations, the memory of fewer
# than 6 videos is that of the optimizer, and it grows too slowly.
SMALL = (1, 6)
SPARE = 0.05  # share of the memory that is left free, for fragments and for libraries
LESS_MEMORY = (
    "recompute activations (MODEL.USE_CHECKPOINT True, MODEL.CHECKPOINT_NUM), or choose a smaller network, crop or "
    "number of frames"
)


class Fit(NamedTuple):
    """Memory of training steps, in bytes of one process."""

    videos: int  # the largest number of videos of a process that fits; 0 if not even one does
    per_video: float  # memory of a video, with all its augmented clips
    fixed: float  # memory without a video: weights, gradients, optimizer state
    limit: int  # memory that may be used

    def needed(self, videos: int) -> float:
        """Return the estimate for another number of videos."""
        return self.fixed + self.per_video * videos


def find_batch(cfg: CfgNode, limit: int | None = None) -> Fit:
    """Return the largest training batch of a process that fits, for its device and with all that a step needs.

    On a GPU, a step with this batch is also measured. On the CPU, the batch is estimated from the memory of smaller
    steps, which are taken in another process.

    A process may use `limit` bytes, by default those of the device less the share `SPARE`.

    Raises:
        ValueError: this machine lacks GPUs of the configuration, or memory for even the smallest step.
    """
    check_hardware(cfg)
    if cfg.NUM_GPUS:
        steps = Steps(cfg)
        free = torch.cuda.mem_get_info(steps.run.device)[0] + torch.cuda.memory_reserved(steps.run.device)
        return fit(steps.peak, limit or int((1 - SPARE) * free), verify=True)
    limit = limit or int((1 - SPARE) * available() / num_local_processes(cfg))
    with ProcessPoolExecutor(1, multiprocessing.get_context("spawn")) as pool:
        try:
            peaks: dict[int, int | None] = pool.submit(_peaks, cfg).result()
        except BrokenProcessPool:
            raise ValueError(
                f"there is not enough memory to measure training steps of {SMALL[0]} and {SMALL[1]} videos: "
                f"{LESS_MEMORY}"
            ) from None
    return fit(lambda videos: peaks[videos], limit, verify=False)


def fit(peak: Callable[[int], int | None], limit: int, verify: bool) -> Fit:
    """Return the largest number of videos whose steps stay below a limit.

    Args:
        peak: from a number of videos to the peak memory of their steps; None if there is not enough.
        limit: of the peak.
        verify: also measure steps of this number, and lower it until they fit.
    """
    few, many = SMALL
    first, second = peak(few), peak(many)
    if first is None or first > limit:
        return Fit(0, first or limit, 0.0, limit)
    per_video = max(1.0, ((limit if second is None else second) - first) / (many - few))
    videos = int(few + (limit - first) / per_video)
    videos = min(videos, many - 1) if second is None else videos
    while verify and videos > few:
        measured = peak(videos)
        if measured is not None:
            per_video = (measured - first) / (videos - few)
            if measured <= limit:
                break
        videos = min(videos - 1, int(0.97 * videos))
    return Fit(videos, per_video, first - few * per_video, limit)


class Steps:
    """Training steps of a configuration with random clips; nothing is written and no list is read."""

    def __init__(self, cfg: CfgNode) -> None:
        cfg = cfg.clone()
        cfg.defrost()
        cfg.TENSORBOARD.ENABLE, cfg.TRACKERS = False, []
        # a second micro-batch finds the gradients of the first one in memory; further micro-batches need no more
        cfg.SOLVER.ACCUMULATION_STEPS = min(2, cfg.SOLVER.ACCUMULATION_STEPS)
        device = distributed.device(cfg.NUM_GPUS)
        self.state: TrainState = new_state(cfg, build_model(cfg), 1, device)
        with tempfile.TemporaryDirectory() as cfg.OUTPUT_DIR:
            self.run: Run = prepare_run(cfg, self.state, 1, {}, device)
        train_mode(self.state.model, cfg.MODEL.FROZEN_BN)
        set_learning_rate(self.state.optimizer, 0.0)

    def peak(self, videos: int) -> int | None:
        """Return the peak memory of two steps, because the first one makes the state of the optimizer.

        Returns:
            Bytes; None if the memory of a GPU is too small. On the CPU it is the peak since the start of the process.
        """
        cfg, device = self.run.cfg, self.run.device
        batch = random_batch(cfg, videos)
        try:
            if device.type == "cuda":
                torch.cuda.empty_cache()
                torch.cuda.reset_peak_memory_stats(device)
            for _ in range(2):
                train_step(self.state, self.run, itertools.repeat(batch))
                self.run.pending.clear()  # losses of random clips need not be finite
        except torch.OutOfMemoryError:
            self.state.optimizer.zero_grad(set_to_none=True)
            self.run.pending.clear()
            return None
        return peak_memory(device)


def _peaks(cfg: CfgNode) -> dict[int, int | None]:
    """Return the peak memory of steps of `SMALL` videos, in a process of their own."""
    steps = Steps(cfg)
    return {videos: steps.peak(videos) for videos in SMALL}


def describe(cfg: CfgNode, found: Fit) -> str:
    """Return the lines about a batch that `--find-batch` prints.

    Raises:
        ValueError: nothing fits.
    """
    processes, gib = num_local_processes(cfg), 2**30
    copies = cfg.AUG.NUM_SAMPLE if cfg.AUG.ENABLE else 1
    if not found.videos:
        raise ValueError(f"not even one video per process fits into {found.limit / gib:.2f} GiB: {LESS_MEMORY}")
    configured = cfg.TRAIN.BATCH_SIZE // processes
    needed = found.needed(configured) / gib
    lines = [
        f"TRAIN.BATCH_SIZE {found.videos * processes} is the largest that fits "
        f"({'measured' if cfg.NUM_GPUS else 'estimated'})",
        f"memory per clip {found.per_video / copies / gib:.3f} GiB ({copies} per video), "
        f"without clips {found.fixed / gib:.2f} GiB, limit per process {found.limit / gib:.2f} GiB",
        f"TRAIN.BATCH_SIZE {cfg.TRAIN.BATCH_SIZE} as configured: about {needed:.2f} GiB per process",
    ]
    if found.videos >= max(2, configured):
        return "\n".join(lines)
    model = build_model(cfg)
    fewest = 1 if copies > 1 or learns_from_single_clips(cfg, model) else 2
    if found.videos < configured and (part := _part_of_step(cfg, found, fewest, model)):
        step = cfg.TRAIN.BATCH_SIZE * cfg.SOLVER.ACCUMULATION_STEPS
        lines.append(
            f"TRAIN.BATCH_SIZE {part * processes} SOLVER.ACCUMULATION_STEPS {step // (part * processes)} takes the "
            f"configured {step} videos per step and node"
        )
    if found.videos < fewest:
        lines.append(
            "with one clip per process the network cannot learn, because BatchNorm makes the features of all clips the "
            f"same: {LESS_MEMORY}, or for fine-tuning set MODEL.FROZEN_BN True"
        )
    return "\n".join(lines)


def _part_of_step(cfg: CfgNode, found: Fit, fewest: int, model: nn.Module) -> int:
    """Return the largest number of videos of a process that fits and divides those of a step; 0 if there is none."""
    step, gradients = cfg.TRAIN.BATCH_SIZE // num_local_processes(cfg) * cfg.SOLVER.ACCUMULATION_STEPS, 0
    if cfg.SOLVER.ACCUMULATION_STEPS == 1:  # then the measured steps did not have gradients in memory from the start
        gradients = sum(value.nbytes for value in model.parameters() if value.requires_grad)
    parts = (videos for videos in range(fewest, found.videos + 1) if step % videos == 0)
    return max((videos for videos in parts if found.needed(videos) + gradients <= found.limit), default=0)
