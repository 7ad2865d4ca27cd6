"""What training and testing prepare alike: the output folder, precision, the way of clips to the device, bad videos."""

from __future__ import annotations

import csv
import logging
from collections.abc import Callable, Sequence
from pathlib import Path

import torch
from fvcore.common.config import CfgNode
from torch import Tensor, nn

from slowfast.config import changed_keys, dump_config, load_config
from slowfast.datasets.transforms import normalize
from slowfast.engine.checkpoint import last_checkpoint
from slowfast.utils import distributed
from slowfast.utils.io import write_text

logger = logging.getLogger(__name__)


def prepare_output_dir(cfg: CfgNode) -> None:
    """Make OUTPUT_DIR and leave the configuration there, runnable as it is.

    Raises:
        ValueError: the folder holds a run of another configuration, or one that may not be resumed, or cannot be made.
    """
    if not cfg.TRAIN.ENABLE:
        return  # a test writes into a folder of its own
    path = Path(cfg.OUTPUT_DIR) / "config.yaml"
    if last_checkpoint(cfg.OUTPUT_DIR):
        if not cfg.TRAIN.AUTO_RESUME:
            raise ValueError(
                f"OUTPUT_DIR {cfg.OUTPUT_DIR} holds a run already and TRAIN.AUTO_RESUME is False; choose another "
                "OUTPUT_DIR, or set it True to go on with that run"
            )
        changed = changed_keys(load_config(str(path)), cfg) if path.is_file() else {}
        if changed:
            differences = ", ".join(f"{key} {there!r} there, {here!r} here" for key, (there, here) in changed.items())
            raise ValueError(
                f"OUTPUT_DIR {cfg.OUTPUT_DIR} holds a run of another configuration ({differences}); choose another "
                "OUTPUT_DIR, or undo the change to go on with that run"
            )
    distributed.barrier()
    if distributed.is_main() and not (last_checkpoint(cfg.OUTPUT_DIR) and path.is_file()):
        try:
            write_text(path, dump_config(cfg))
        except OSError as error:
            raise ValueError(f"OUTPUT_DIR {cfg.OUTPUT_DIR!r} cannot be written ({error}); choose another") from error


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


def layout(device: torch.device) -> torch.memory_format:
    """Memory format of weights and clips: oneDNN runs 3D convolutions about 1.7 times faster with channels last."""
    return torch.channels_last_3d if device.type == "cpu" else torch.contiguous_format


def place(model: nn.Module, device: torch.device) -> None:
    """Move a model to the device, in the memory format that suits it."""
    model.to(device=device, memory_format=layout(device))  # pyright: ignore[reportCallIssue]


def clip_mover(cfg: CfgNode, device: torch.device) -> Callable[[Tensor], Tensor]:
    """The one place where clips (B, C, T, H, W) in 0..255 reach the device, become floats and are normalized."""
    mean, std = (torch.tensor(values, dtype=torch.float32, device=device) for values in (cfg.DATA.MEAN, cfg.DATA.STD))

    def move(video: Tensor) -> Tensor:
        return normalize(video.to(device, non_blocking=True), mean, std).contiguous(memory_format=layout(device))

    return move


class BadVideos:
    """Counts the videos that training had to replace, and writes them to OUTPUT_DIR/bad_videos*.csv."""

    def __init__(self, cfg: CfgNode, num_videos: int, device: torch.device, resumed: bool) -> None:
        name = f"bad_videos_{distributed.rank()}.csv" if distributed.rank() else "bad_videos.csv"
        self.path = Path(cfg.OUTPUT_DIR) / name
        self.num_videos, self.max_share, self.device = num_videos, cfg.DATA.MAX_BAD_SHARE, device
        self.seen: set[str] = set()
        if not resumed:
            self.path.unlink(missing_ok=True)  # of a run that left nothing to resume
        elif self.path.is_file():
            with open(self.path, newline="", encoding="utf-8", errors="surrogateescape") as file:
                self.seen = {row[0] for row in csv.reader(file) if row}

    def record(self, bad: Sequence[tuple[str, str]]) -> None:
        """Take note of (path, reason) pairs."""
        new = {path: reason for path, reason in bad if path not in self.seen}
        if not new:
            return
        self.seen.update(new)
        with open(self.path, "a", newline="", encoding="utf-8", errors="surrogateescape") as file:
            csv.writer(file).writerows(new.items())
        for path, reason in new.items():
            logger.warning("replaced an undecodable video (%d so far): %s: %s", len(self.seen), path, reason)

    def check(self) -> None:
        """Compare the count of all processes with the limit; every process has to call.

        Raises:
            ValueError: more than DATA.MAX_BAD_SHARE of the list are bad.
        """
        count = int(distributed.all_reduce_sum(torch.tensor(len(self.seen), device=self.device)))
        if count > max(1, self.max_share * self.num_videos):
            raise ValueError(
                f"{count} of {self.num_videos} videos cannot be decoded, more than DATA.MAX_BAD_SHARE "
                f"{self.max_share}; {self.path.name} tells why. Repair them, or raise the share"
            )
