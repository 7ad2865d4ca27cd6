"""What training and testing prepare alike: precision, the way of clips to the device, bad videos."""

from __future__ import annotations

import csv
import io
import logging
from collections.abc import Callable, Sequence
from pathlib import Path

import torch
from fvcore.common.config import CfgNode
from torch import Tensor, nn

from slowfast.datasets.transforms import normalize
from slowfast.utils import distributed
from slowfast.utils.distributed import SharedError
from slowfast.utils.io import write_text

logger = logging.getLogger(__name__)


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
