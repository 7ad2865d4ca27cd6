"""Log a training: a progress bar and text, records in metrics.jsonl, curves for TensorBoard."""

from __future__ import annotations

import contextlib
import datetime
import logging
import time
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from fvcore.common.config import CfgNode
from tqdm import tqdm

from slowfast.engine.meters import METRICS, metrics_text
from slowfast.utils import distributed
from slowfast.utils.logging import MetricsLog

logger = logging.getLogger(__name__)


class RunLog:
    """Write the numbers of a run, in the main process only. Leave the `with` block to close it.

    Args:
        cfg: of the run.
        step: number of steps that the run has already done.
        last_step: of the run.
    """

    def __init__(self, cfg: CfgNode, step: int, last_step: int) -> None:
        main = distributed.is_main()
        self.num_classes = cfg.MODEL.NUM_CLASSES
        self.records = MetricsLog(cfg.OUTPUT_DIR, enabled=main)
        self.board = _summary_writer(cfg, step) if main and cfg.TENSORBOARD.ENABLE else None
        # None: a bar on a terminal only
        self.bar = tqdm(total=last_step, initial=step, desc="train", disable=None if main else True)
        self.started, self.first_step, self.last_step = time.perf_counter(), step, last_step

    def __enter__(self) -> RunLog:
        return self

    def __exit__(self, *_: object) -> None:
        self.bar.close()
        if self.board:
            with contextlib.suppress(OSError):  # of a full disk; `_draw` has reported it
                self.board.close()

    def write(self, kind: str, step: int, **values: Any) -> None:
        """Write a record, see `MetricsLog.write`."""
        self.records.write(kind, step=step, **values)

    def train(self, step: int, epoch: float, values: Mapping[str, float]) -> None:
        """Write the values of a number of training steps; `epoch` counts epochs, with a fraction."""
        seconds = (time.perf_counter() - self.started) / (step - self.first_step)
        eta = datetime.timedelta(seconds=round(seconds * (self.last_step - step)))
        logger.info(
            "epoch %.2f step %d/%d  loss %.4f  %s  lr %.3g  grad %.2f  %.1f clips/s  data wait %.0f%%  "
            "%.1f GiB  eta %s",
            epoch, step, self.last_step, values["loss"], metrics_text(values, self.num_classes), values["lr"],
            values["grad_norm"], values["clips_per_s"], 100 * values["data_wait"], values["memory_gib"], eta,
        )  # fmt: skip
        self.write("train", step, epoch=epoch, **values)
        self._draw("train", step, values)

    def epoch(self, step: int, epoch: int, values: Mapping[str, float]) -> None:
        """Write the means of an epoch of training."""
        logger.info("epoch %d done: loss %.4f  top1 %.2f", epoch, values["loss"], values["top1"])
        self.write("epoch", step, epoch=epoch, **values)

    def validation(self, step: int, epoch: int, values: Mapping[str, Any], best: float) -> None:
        """Write the metrics of a validation; `best` is the best top-1 so far."""
        logger.info(
            "validation after epoch %d: %s  loss %.4f  (%d videos, best top1 %.2f)",
            epoch, metrics_text(values, self.num_classes), values["loss"], values["num_videos"], best,
        )  # fmt: skip
        self.write("val", step, epoch=epoch, **values)
        self._draw("val", step, {name: values[name] for name in ("loss", *METRICS)})

    def _draw(self, group: str, step: int, values: Mapping[str, float]) -> None:
        """Add every value to the curve "group/name" of TensorBoard."""
        if self.board:
            try:
                for name, value in values.items():
                    self.board.add_scalar(f"{group}/{name}", value, step)
            except OSError as error:  # its thread could not write, and has ended
                logger.error("no more curves for TensorBoard: %s", error)
                self.board = None


def _summary_writer(cfg: CfgNode, step: int) -> Any:
    from torch.utils.tensorboard import SummaryWriter  # slow to import, and only used if TENSORBOARD.ENABLE

    folder = Path(cfg.OUTPUT_DIR) / (cfg.TENSORBOARD.LOG_DIR or "tensorboard")
    # a resumed run repeats steps: what was written after `step` is hidden
    return SummaryWriter(str(folder), purge_step=step + 1 if step else None)
