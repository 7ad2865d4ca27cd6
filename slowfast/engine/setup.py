"""What training and testing prepare alike: the output folder, precision, the way of clips to the device, bad videos."""

from __future__ import annotations

import csv
import io
import logging
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

import torch
from fvcore.common.config import CfgNode
from torch import Tensor, nn

from slowfast.config import changed_keys, dump_config, recorded_config
from slowfast.datasets.transforms import normalize
from slowfast.run.checkpoint import (
    checkpoint_dir,
    epochs_done,
    is_official,
    last_checkpoint,
    newest_entries,
    peek,
)
from slowfast.utils import distributed
from slowfast.utils.distributed import SharedError
from slowfast.utils.io import write_text
from slowfast.weights.fetch import fetch_checkpoint

logger = logging.getLogger(__name__)

# First line of every resolved configuration.
WRITTEN_HERE = "# The resolved configuration of a run, written by tools/run_net.py."

RATES = ("SOLVER.BASE_LR", "SOLVER.COSINE_END_LR", "SOLVER.WARMUP_START_LR")


def prepare_output_dir(cfg: CfgNode) -> None:
    """Make OUTPUT_DIR and write the resolved configuration there, which can be run again; call it in every process.

    Raises:
        ValueError: the folder holds a run of another configuration, or one that may not be resumed, or cannot be made.
    """
    if cfg.TRAIN.ENABLE:  # a test writes into its own folder
        distributed.on_main(lambda: _prepare_output_dir(cfg))


def _prepare_output_dir(cfg: CfgNode) -> None:
    if last_checkpoint(cfg.OUTPUT_DIR):
        if not cfg.TRAIN.AUTO_RESUME:
            raise ValueError(
                f"OUTPUT_DIR {cfg.OUTPUT_DIR} holds a run already and TRAIN.AUTO_RESUME is False; choose another "
                "OUTPUT_DIR, or set it True to go on with that run"
            )
        if changed := _changes(newest_entries(cfg.OUTPUT_DIR), cfg):
            differences = ", ".join(f"{key} {there!r} there, {here!r} here" for key, (there, here) in changed.items())
            raise ValueError(
                f"OUTPUT_DIR {cfg.OUTPUT_DIR} holds a run of another configuration ({differences}); choose another "
                "OUTPUT_DIR, or undo the change to go on with that run"
            )
    try:
        write_resolved(cfg, Path(cfg.OUTPUT_DIR))
    except OSError as error:
        raise ValueError(f"OUTPUT_DIR {cfg.OUTPUT_DIR!r} cannot be written ({error}); choose another") from error


def write_resolved(cfg: CfgNode, folder: Path) -> None:
    """Write `resolved_config.yaml`; keep a file of that name that no run wrote."""
    path = folder / "resolved_config.yaml"
    if path.exists() and path.read_text(encoding="utf-8", errors="replace").partition("\n")[0] != WRITTEN_HERE:
        logger.warning("%s was not written by a run: it is not replaced", path)
        return
    write_text(path, f"{WRITTEN_HERE}\n{dump_config(cfg)}")


def _changes(entries: Mapping[str, Any], now: CfgNode) -> dict[str, tuple[Any, Any]]:
    """Return the differences between the recipe of a checkpoint and this one.

    Another number of nodes is not a difference if a step keeps its videos and its learning rate; more epochs are not
    one for a run that has finished.
    """
    if not isinstance(entries.get("cfg"), str) or is_official(entries):
        return {}
    before, _ = recorded_config(entries["cfg"])
    changed = changed_keys(before, now)
    if now.SOLVER.MAX_EPOCH > before.SOLVER.MAX_EPOCH <= epochs_done(entries):
        changed.pop("SOLVER.MAX_EPOCH", None)
    if _step(before) == _step(now):
        split = ("NUM_SHARDS", "TRAIN.BATCH_SIZE", "SOLVER.ACCUMULATION_STEPS", "SOLVER.BASE_LR_SCALE_NUM_SHARDS")
        changed = {key: values for key, values in changed.items() if key not in (*split, *RATES)}
    return changed


def warn_of_weights_only(cfg: CfgNode) -> None:
    """Warn if TRAIN.CHECKPOINT_FILE_PATH contains an optimizer state, which the official programs would resume."""
    path = cfg.TRAIN.CHECKPOINT_FILE_PATH
    if not path or not distributed.is_main():
        return
    entries = peek(Path(fetch_checkpoint(path)))
    if "optimizer_state" not in entries:
        return
    epochs, cure = epochs_done(entries), ""
    if is_official(entries) and _num_classes(entries) == cfg.MODEL.NUM_CLASSES:
        copy = checkpoint_dir(cfg.OUTPUT_DIR) / f"checkpoint_epoch_{int(epochs):05d}.pyth"
        cure = f"; to resume from its epoch {epochs:g} instead, copy it to {copy} and start again"
    logger.warning(
        "only the weights of TRAIN.CHECKPOINT_FILE_PATH %s are used, not its optimizer state and epoch%s", path, cure
    )


def _num_classes(entries: Mapping[str, Any]) -> int | None:
    text = entries.get("cfg")
    return recorded_config(text)[0].MODEL.NUM_CLASSES if isinstance(text, str) else None


def _step(cfg: CfgNode) -> tuple[float, ...]:
    """Videos of an optimizer step over all nodes, and the learning rates that its configuration leads to."""
    videos = cfg.NUM_SHARDS * cfg.TRAIN.BATCH_SIZE * cfg.SOLVER.ACCUMULATION_STEPS
    factor = cfg.NUM_SHARDS if cfg.SOLVER.BASE_LR_SCALE_NUM_SHARDS else 1
    return videos, *(factor * cfg.SOLVER[key.removeprefix("SOLVER.")] for key in RATES)


def amp_dtype(cfg: CfgNode, device: torch.device) -> torch.dtype | None:
    """The autocast type of training: bfloat16 where the GPU has it, else float16; None (float32) on the CPU."""
    if not cfg.TRAIN.MIXED_PRECISION or device.type != "cuda":
        return None
    if cfg.TRAIN.AMP_DTYPE != "auto":
        return {"bfloat16": torch.bfloat16, "float16": torch.float16}[cfg.TRAIN.AMP_DTYPE]
    if not torch.cuda.is_bf16_supported(including_emulation=False):
        return torch.float16
    return torch.bfloat16 if _bfloat16_convolution_is_right(device) else torch.float16


def _bfloat16_convolution_is_right(device: torch.device) -> bool:
    """Compare a 3D convolution in bfloat16 with float32: some releases of cuDNN (9.8 to 9.10) get it wrong."""
    generator = torch.Generator(device).manual_seed(0)
    video = torch.randn(2, 16, 4, 14, 14, device=device, generator=generator)
    kernel = torch.randn(32, 16, 3, 3, 3, device=device, generator=generator)
    exact = torch.nn.functional.conv3d(video, kernel, padding=1)
    half = torch.nn.functional.conv3d(video.bfloat16(), kernel.bfloat16(), padding=1).float()
    error = float((half - exact).abs().max() / exact.abs().max())
    if error > 3e-2:
        logger.warning(
            "bfloat16 3D convolutions are wrong here (error %.2g, torch %s, cuDNN %s); training in float16",
            error, torch.__version__, torch.backends.cudnn.version(),
        )  # fmt: skip
    return error <= 3e-2


def layout(device: torch.device, ndim: int) -> torch.memory_format:
    """Memory format of weights and inputs of `ndim` dimensions: 5 for clips, 4 for images.

    oneDNN runs 3D convolutions about 1.7 times faster with channels last; for images it is PyTorch's advice everywhere.
    """
    if ndim == 4:
        return torch.channels_last
    return torch.channels_last_3d if device.type == "cpu" else torch.contiguous_format


def place(model: nn.Module, device: torch.device) -> None:
    """Move a model to the device, in the memory format that suits it."""
    model.to(device)
    for parameter in model.parameters():
        if parameter.ndim in (4, 5):
            parameter.data = parameter.data.contiguous(memory_format=layout(device, parameter.ndim))


def clip_mover(cfg: CfgNode, device: torch.device) -> Callable[[Tensor], Tensor]:
    """The one place where clips (B, C, T, H, W), or images (B, C, H, W), reach the device, become floats and are
    normalized."""
    mean, std = (torch.tensor(values, dtype=torch.float32, device=device) for values in (cfg.DATA.MEAN, cfg.DATA.STD))

    def move(video: Tensor) -> Tensor:
        video = video.to(device, non_blocking=True).contiguous(memory_format=layout(device, video.ndim))
        return normalize(video if video.ndim == 5 else video[:, :, None], mean, std).view(video.shape)

    return move


class BadVideos:
    """Counts the videos that training had to replace, and lists them in OUTPUT_DIR/bad_videos.csv.

    The list (path, reason) is that of the whole job, in order of the paths. It depends on the steps that were taken,
    not on how many processes or workers took them, nor on resumes in between.
    """

    def __init__(self, cfg: CfgNode, num_videos: int, device: torch.device, resumed: bool) -> None:
        self.path = Path(cfg.OUTPUT_DIR) / "bad_videos.csv"
        self.num_videos, self.max_share, self.device = num_videos, cfg.DATA.MAX_BAD_SHARE, device
        known: dict[str, str] = {}
        if distributed.is_main():
            if not resumed:
                self.path.unlink(missing_ok=True)  # of a run that left nothing to resume
            elif self.path.is_file():
                with open(self.path, newline="", encoding="utf-8", errors="surrogateescape") as file:
                    known = {row[0]: row[1] for row in csv.reader(file) if len(row) == 2}
        self.known: dict[str, str] = distributed.broadcast(known)
        self.batches = 0
        self.new: list[tuple[int, str, str]] = []  # not yet gathered, of this process: batch, path, reason
        self.too_many = False

    def record(self, bad: Sequence[tuple[str, str]]) -> None:
        """Take note of the (path, reason) pairs of one batch; to be called for every batch."""
        self.batches += 1
        new = [(self.batches, path, reason) for path, reason in bad if path not in self.known]
        self.new += new
        if new and distributed.is_main():
            self._write([self.new])  # now: the process may be killed before the next check

    def gather(self) -> None:
        """Put the notes of all processes together and write them down; every process has to call."""
        if not int(distributed.all_reduce_sum(torch.tensor(len(self.new), device=self.device))):
            return
        before = len(self.known)
        self.known = self._write(distributed.all_gather(self.new))
        self.new = []
        for number, (path, reason) in enumerate(list(self.known.items())[before:], before + 1):
            logger.warning("replaced an undecodable video (%d so far): %s: %s", number, path, reason)
        self.too_many = len(self.known) > max(1, self.max_share * self.num_videos)

    def check(self) -> None:
        """Gather, and compare with the limit; every process has to call.

        Raises:
            SharedError: new ones were found, and more than DATA.MAX_BAD_SHARE of the list are bad.
        """
        self.gather()
        if self.too_many:
            raise SharedError(
                f"{len(self.known)} of {self.num_videos} videos cannot be decoded, more than DATA.MAX_BAD_SHARE "
                f"{self.max_share}; {self.path} tells why. Repair them, or raise the share"
            )

    def _write(self, parts: Sequence[Sequence[tuple[int, str, str]]]) -> dict[str, str]:
        """Add the notes of all processes to what is known, and write it down."""
        known = dict(self.known)
        # batch by batch, and in a batch process by process: the order of the videos in one process that takes all
        for _, path, reason in sorted((entry for part in parts for entry in part), key=lambda entry: entry[0]):
            known.setdefault(path, reason)
        if distributed.is_main():
            table = io.StringIO()
            csv.writer(table).writerows(sorted(known.items()))
            try:
                write_text(self.path, table.getvalue())
            except OSError as error:
                logger.error("%s could not be written: %s", self.path, error)
        return known
