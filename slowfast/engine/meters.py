"""Accuracy, and running sums that stay on the device until a log line is due."""

from __future__ import annotations

import time
from collections.abc import Sequence

import torch
from torch import Tensor

from slowfast.utils import distributed


def topk_correct(scores: Tensor, labels: Tensor, ks: Sequence[int]) -> list[Tensor]:
    """How many rows of `scores` (B, K) have their label (B,) among the k highest; a k beyond K counts as K."""
    top = scores.topk(min(max(ks), scores.shape[1]), dim=1).indices
    hits = top.eq(labels.view(-1, 1))
    return [hits[:, :k].sum() for k in ks]


def mixed_topk_correct(scores: Tensor, target: Tensor, ks: Sequence[int]) -> list[Tensor]:
    """`topk_correct` for mixed samples with soft targets (B, K).

    The score of the second largest target class counts for the largest one, as in the released training logs.
    """
    first, second = target.topk(2, dim=1).indices.unbind(1)
    rows = torch.arange(len(scores), device=scores.device)
    merged = scores.clone()
    merged[rows, first] += merged[rows, second]
    merged[rows, second] = 0.0
    return topk_correct(merged, first, ks)


class TrainMeter:
    """Sums of clips, loss and hits since the last log line and since the start of the epoch.

    Sums live on the device and are read, and reduced over processes, only in `log_values` and `epoch_values`, so that
    a training step never waits for the device.
    """

    def __init__(self, device: torch.device) -> None:
        # rows: since the last log line, since the start of the epoch; columns: clips, loss, top-1 hits, top-5 hits
        self.sums = torch.zeros(2, 4, dtype=torch.float64, device=device)
        self.restart_clock()

    def restart_clock(self) -> None:
        """Begin a period: forget time and data waits so far."""
        self.clips, self.waited, self.started = 0, 0.0, time.perf_counter()

    def update(self, loss: Tensor, hits: Sequence[Tensor], clips: int, waited: float) -> None:
        """Add a batch: mean loss, top-1 and top-5 hits (device tensors), its clips and the seconds waited for it."""
        values = torch.stack([loss.detach().double() * clips, *(h.double() for h in hits)])
        self.sums[:, 1:] += values
        self.sums[:, 0] += clips
        self.clips += clips
        self.waited += waited

    def _means(self, row: int) -> dict[str, float]:
        clips, loss, top1, top5 = distributed.all_reduce_sum(self.sums[row].clone()).tolist()
        self.sums[row] = 0.0
        clips = max(clips, 1.0)
        return {"loss": loss / clips, "top1": 100.0 * top1 / clips, "top5": 100.0 * top5 / clips}

    def log_values(self) -> dict[str, float]:
        """Means over the period, clips per second over all processes, and the share of time spent waiting for data."""
        means = self._means(0)  # reads from the device, so the clock below includes the work queued there
        seconds = time.perf_counter() - self.started
        speed = {"clips_per_s": self.clips * distributed.world_size() / seconds, "data_wait": self.waited / seconds}
        self.restart_clock()
        return {**means, **speed}

    def epoch_values(self) -> dict[str, float]:
        """Means over the epoch."""
        return self._means(1)

    def state_dict(self) -> dict[str, Tensor]:
        """Sums over all processes; they are held by the main process after a resume."""
        return {"sums": distributed.all_reduce_sum(self.sums.clone()).cpu()}

    def load_state_dict(self, state: dict[str, Tensor]) -> None:
        """Continue the sums of a checkpoint."""
        self.sums.copy_(state["sums"] if distributed.is_main() else torch.zeros_like(self.sums))
