"""Log a training: a progress bar and text, records in metrics.jsonl, curves for trackers."""

from __future__ import annotations

import datetime
import logging
import time
from collections.abc import Mapping
from typing import Any

from fvcore.common.config import CfgNode
from tqdm import tqdm

from slowfast.engine.meters import metric_names, metrics_text
from slowfast.engine.trackers import Link, close, start_trackers
from slowfast.run.interrupt import Interruption
from slowfast.utils import distributed
from slowfast.utils.logging import MetricsLog

logger = logging.getLogger(__name__)


class RunLog:
    """Write the numbers of a run, in the main process only. Leave the `with` block to close it.

    All processes must create it. The run has already done `step` of its `last_step` steps.

    Raises:
        ValueError: in every process, if a tracker of a new run does not start.
    """

    def __init__(self, cfg: CfgNode, step: int, last_step: int) -> None:
        main = distributed.is_main()
        self.num_classes, self.metrics = cfg.MODEL.NUM_CLASSES, metric_names(cfg.DATA.MULTI_LABEL)
        self.records = MetricsLog(cfg.OUTPUT_DIR, enabled=main)
        self.trackers: list[Link] = []
        distributed.on_main(lambda: self.trackers.extend(start_trackers(cfg, step)))
        # None: a bar on a terminal only
        self.bar = tqdm(total=last_step, initial=step, desc="train", disable=None if main else True)
        self.started, self.first_step, self.last_step = time.perf_counter(), step, last_step

    def __enter__(self) -> RunLog:
        return self

    def __exit__(self, kind: type[BaseException] | None, *_: object) -> None:
        self.bar.close()
        close(self.trackers, failed=kind is not None and not issubclass(kind, Interruption))

    def train(self, step: int, epoch: float, values: Mapping[str, float]) -> None:
        """Write the values of a number of training steps; `epoch` counts epochs, with a fraction."""
        seconds = (time.perf_counter() - self.started) / (step - self.first_step)
        eta = datetime.timedelta(seconds=round(seconds * (self.last_step - step)))
        logger.info(
            "epoch %.2f step %d/%d  loss %.4f%s  lr %.3g  grad %.2f  %.1f clips/s  data wait %.0f%%  "
            "%.1f GiB  eta %s",
            epoch, step, self.last_step, values["loss"], self._metrics(values), values["lr"],
            values["grad_norm"], values["clips_per_s"], 100 * values["data_wait"], values["memory_gib"], eta,
        )  # fmt: skip
        self.records.write("train", step=step, epoch=epoch, **values)
        self._draw("train", step, values)

    def epoch(self, step: int, epoch: int, values: Mapping[str, float]) -> None:
        """Write the means of an epoch of training."""
        first = {name: values[name] for name in self.metrics[:1] if name in values}
        logger.info("epoch %d done: loss %.4f%s", epoch, values["loss"], self._metrics(first))
        self.records.write("epoch", step=step, epoch=epoch, **values)

    def validation(self, step: int, epoch: int, values: Mapping[str, Any], best: float) -> None:
        """Write the metrics of a validation; `best` is the best value of the first metric so far."""
        logger.info(
            "validation after epoch %d: %s  loss %.4f  (%d videos, best %s %.2f)", epoch,
            metrics_text(values, self.num_classes), values["loss"], values["num_videos"], self.metrics[0], best,
        )  # fmt: skip
        self.records.write("val", step=step, epoch=epoch, **values)
        self._draw("val", step, {name: values[name] for name in ("loss", *self.metrics)})

    def _metrics(self, values: Mapping[str, float]) -> str:
        """Return the metrics as text after two blanks; "" if there are none."""
        text = metrics_text(values, self.num_classes)
        return f"  {text}" if text else ""

    def _draw(self, group: str, step: int, values: Mapping[str, float]) -> None:
        """Send every value to the curve "group/name" of all trackers."""
        for tracker in self.trackers:
            tracker.send({f"{group}/{name}": value for name, value in values.items()}, step)
