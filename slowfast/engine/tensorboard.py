"""Scalars for TensorBoard."""

from __future__ import annotations

import contextlib
import logging
from collections.abc import Mapping
from pathlib import Path

from fvcore.common.config import CfgNode

logger = logging.getLogger(__name__)


class TensorBoard:
    """Writes scalars to OUTPUT_DIR/TENSORBOARD.LOG_DIR; does nothing when disabled or in other processes."""

    def __init__(self, cfg: CfgNode, step: int, enabled: bool) -> None:
        self.writer = None
        if enabled and cfg.TENSORBOARD.ENABLE:
            from torch.utils.tensorboard import SummaryWriter  # slow to import, and not everybody wants it

            folder = Path(cfg.OUTPUT_DIR) / (cfg.TENSORBOARD.LOG_DIR or "tensorboard")
            # a resumed run repeats steps: what was written after `step` is hidden
            self.writer = SummaryWriter(str(folder), purge_step=step + 1 if step else None)

    def __enter__(self) -> TensorBoard:
        return self

    def __exit__(self, *_: object) -> None:
        if self.writer:
            with contextlib.suppress(OSError):  # of a full disk; `write` has told
                self.writer.close()

    def write(self, group: str, values: Mapping[str, float], step: int) -> None:
        """Add every value as "group/name"."""
        if self.writer:
            try:
                for name, value in values.items():
                    self.writer.add_scalar(f"{group}/{name}", value, step)
            except OSError as error:  # its thread could not write, and gave up
                logger.error("no more curves for TensorBoard: %s", error)
                self.writer = None
