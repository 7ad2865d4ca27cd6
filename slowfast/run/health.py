"""Count faults that a training survives up to a limit: videos that cannot be decoded, and steps that are not finite."""

from __future__ import annotations

import csv
import logging
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import torch
from fvcore.common.config import CfgNode

from slowfast.utils import distributed
from slowfast.utils.distributed import SharedError
from slowfast.utils.io import atomic_write, csv_text, write_text

logger = logging.getLogger(__name__)

# Type of mixed precision -> beginning of the cure for steps that are not finite.
OTHER_CURES = {
    torch.float16: "Continue with TRAIN.AMP_DTYPE bfloat16 or TRAIN.MIXED_PRECISION False, or start again",
    torch.bfloat16: "Continue with TRAIN.MIXED_PRECISION False, or start again",
    None: "Start again",
}
DUMPS = 3  # largest number of steps whose batches each process keeps because they were not finite


class BadVideos:
    """Count the videos that training had to replace, and list them in bad_videos.csv.

    The list (path, reason) covers the whole job, in order of the paths. It depends only on the steps that were taken,
    not on the number of processes, workers or resumes.

    Args:
        output_dir: folder of the list.
        num_videos: length of the training list.
        max_share: share of them that may be bad.
        device: of the tensors that processes exchange.
        resumed: whether to continue the list in the folder; else it is removed, because its run left nothing to resume.
    """

    def __init__(self, output_dir: str, num_videos: int, max_share: float, device: torch.device, resumed: bool) -> None:
        self.path = Path(output_dir) / "bad_videos.csv"
        self.num_videos, self.max_share, self.device = num_videos, max_share, device
        known: dict[str, str] = {}
        if distributed.is_main():
            if not resumed:
                self.path.unlink(missing_ok=True)
            elif self.path.is_file():
                with open(self.path, newline="", encoding="utf-8", errors="surrogateescape") as file:
                    known = {row[0]: row[1] for row in csv.reader(file) if len(row) == 2}
        self.known: dict[str, str] = distributed.broadcast(known)
        self.batches = 0
        self.new: list[tuple[int, str, str]] = []  # not yet gathered, of this process: batch, path, reason
        self.too_many = False

    def record(self, bad: Sequence[tuple[str, str]]) -> None:
        """Record the (path, reason) pairs of a batch; must be called for every batch."""
        self.batches += 1
        new = [(self.batches, path, reason) for path, reason in bad if path not in self.known]
        self.new += new
        if new and distributed.is_main():
            self._write([self.new])  # now: the process may be killed before the next check

    def gather(self) -> None:
        """Write the records of all processes; must be called by every process."""
        if not int(distributed.all_reduce_sum(torch.tensor(len(self.new), device=self.device))):
            return
        before = len(self.known)
        self.known = self._write(distributed.all_gather(self.new))
        self.new = []
        for number, (path, reason) in enumerate(list(self.known.items())[before:], before + 1):
            logger.warning("replaced an undecodable video (%d so far): %s: %s", number, path, reason)
        # only now, not after a resume: the videos of the list may have been repaired
        self.too_many = len(self.known) > max(1, self.max_share * self.num_videos)

    def check(self) -> None:
        """Gather the records and compare their number with the limit; must be called by every process.

        Raises:
            SharedError: new ones were found, and more than DATA.MAX_BAD_SHARE of the list are bad.
        """
        self.gather()
        if self.too_many:
            raise SharedError(
                f"{len(self.known)} of {self.num_videos} videos cannot be decoded, more than DATA.MAX_BAD_SHARE "
                f"{self.max_share}; {self.path} lists them with the reasons. Repair them, remove them "
                "from the lists with `python tools/prepare_data.py check --clean`, or raise the share"
            )

    def _write(self, parts: Sequence[Sequence[tuple[int, str, str]]]) -> dict[str, str]:
        """Write the known videos and the records of all processes; return them together."""
        known = dict(self.known)
        # sorted by batch, then by process: the order in which a single process would read the videos
        for _, path, reason in sorted((entry for part in parts for entry in part), key=lambda entry: entry[0]):
            known.setdefault(path, reason)
        if distributed.is_main():
            try:
                write_text(self.path, csv_text(sorted(known.items())))
            except OSError as error:
                logger.error("%s could not be written: %s", self.path, error)
        return known


def report_nonfinite(
    cfg: CfgNode,
    amp: torch.dtype | None,
    step: int,
    last_step: int,
    in_a_row: int,
    batches: list[dict[str, Any]],
    losses: list[float],
    grad_norm: float,
) -> None:
    """Keep the batches of a step that was not finite in OUTPUT_DIR/nonfinite; `amp` is the type of mixed precision.

    Raises:
        SharedError: these are TRAIN.MAX_NONFINITE in a row, or all `last_step` steps of the run.
    """
    folder = Path(cfg.OUTPUT_DIR) / "nonfinite"
    mine = f"rank_{distributed.rank()}.pth"
    path = folder / f"step_{step:06d}_{mine}"
    try:
        if len(list(folder.glob(f"step_*_{mine}"))) < DUMPS:
            entries = {"step": step, "losses": losses, "grad_norm": grad_norm, "cfg": cfg.dump(), "batches": batches}
            with atomic_write(path) as file:
                torch.save(entries, file)
    except (OSError, RuntimeError) as error:
        logger.error("%s could not be written: %s", path, error)
    what = f"loss {sum(losses) / len(losses)}, gradient norm {grad_norm} at step {step}"
    if in_a_row >= min(cfg.TRAIN.MAX_NONFINITE, last_step):
        limit = f"TRAIN.MAX_NONFINITE {cfg.TRAIN.MAX_NONFINITE}" if in_a_row < last_step else "all of this run"
        raise SharedError(
            f"{what}: {in_a_row} steps in a row were not finite ({limit}); they changed nothing, and the first such "
            f"batches are in {folder}. {OTHER_CURES[amp]} with a lower SOLVER.BASE_LR in another OUTPUT_DIR"
        )
    logger.warning("%s: the step was left out (%d in a row)", what, in_a_row)
