"""Compute the metrics of training, validation and test, and their running means in training."""

from __future__ import annotations

import math
import time
from collections.abc import Callable, Mapping
from functools import partial
from typing import Any

import torch
from torch import Tensor

from slowfast.utils import distributed
from slowfast.utils.scores import mean_average_precision


def in_top(scores: Tensor, labels: Tensor, k: int) -> Tensor:
    """Return for each row of `scores` (N, K) whether its label (N,) is among the k highest; a k beyond K counts as K.

    Of equal scores, that of the first class is the highest.
    """
    labels = labels.view(-1, 1)
    own = scores.gather(1, labels)
    classes = torch.arange(scores.shape[1], device=scores.device)
    higher = (scores > own) | ((scores == own) & (classes < labels))
    return higher.sum(1) < k


def check_tensor(value: Any, shape: tuple[int, ...], origin: str) -> None:
    """Check what code of a user returns, without reading from the device.

    Args:
        value: what it returns.
        shape: the only possible one; a size of -1 is any.
        origin: what returns it, for messages.

    Raises:
        ValueError: it is no tensor of this shape.
    """
    found = tuple(value.shape) if torch.is_tensor(value) else (None,)
    if len(found) != len(shape) or any(size not in (-1, at) for size, at in zip(shape, found, strict=True)):
        text = f"a tensor of shape {found}" if torch.is_tensor(value) else f"a {type(value).__name__}"
        raise ValueError(f"{origin} returns {text}: return a tensor of shape {str(shape).replace('-1', 'any')}")


def metric_values(scores: Tensor, labels: Tensor) -> dict[str, Tensor]:
    """Return the values (N,) of each metric of scores (N, K) and labels (N,).

    Raises:
        ValueError: a metric returns something else.
    """
    values = {name: metric(scores, labels) for name, metric in METRICS.items()}
    for name, value in values.items():
        check_tensor(value, tuple(labels.shape), f"the metric {name}")
    return values


# Name in metrics.jsonl, in TensorBoard and in results -> function of scores (N, K) and labels (N,). It returns (N,)
# values between 0 and 1, whose mean is reported in percent. A new metric is a function and a row; the first row decides
# which checkpoint is the best.
METRICS: dict[str, Callable[[Tensor, Tensor], Tensor]] = {"top1": partial(in_top, k=1), "top5": partial(in_top, k=5)}

# Name of the mean over classes of the first metric of `METRICS`: the mean of every class counts the same, however many
# videos it has. Log lines and training steps do not contain it.
MEAN_CLASS = "mean_class"

# The same for multi-label lists: functions of all scores (N, K) and targets (N, K) of a validation or test. Each
# returns one value from 0 to 1. Training steps do not compute them.
MULTI_LABEL_METRICS: dict[str, Callable[[Tensor, Tensor], float]] = {"mAP": mean_average_precision}


def metric_names(multi_label: bool) -> list[str]:
    """Return the names of the metrics of a validation or test; the first one decides which checkpoint is the best."""
    return [*MULTI_LABEL_METRICS] if multi_label else [*METRICS, MEAN_CLASS]


def metrics_text(values: Mapping[str, float], num_classes: int) -> str:
    """Return the metrics as text, such as "top1 50.00  top5 75.00"; for K < 5 classes, top5 is called topK."""
    names = {"top5": f"top{min(5, num_classes)}"}
    found = [name for name in (*METRICS, *MULTI_LABEL_METRICS) if name in values]
    return "  ".join(f"{names.get(name, name)} {values[name]:.2f}" for name in found)


def merge_mixed(scores: Tensor, target: Tensor) -> tuple[Tensor, Tensor]:
    """Return scores (N, K) and labels (N,) for the metrics of mixed samples with soft targets (N, K).

    The label is the class of the largest target. The score of the class with the second largest target is added to the
    score of this class, as in the released training logs.
    """
    first, second = target.topk(2, dim=1).indices.split(1, dim=1)
    # indexing with tensors would wait for the device
    merged = scores.scatter(1, first, scores.gather(1, first) + scores.gather(1, second))
    return merged.scatter(1, second, 0.0), first[:, 0]


class TrainMeter:
    """Means of the loss and the metrics, over the period since the last log line and over the epoch.

    The sums are on the device. `update` does not wait for it; `log_values`, `epoch_values` and `state_dict` do, and
    every process must call them. With `multi_label`, labels are (B, K), and there are no metrics.
    """

    def __init__(self, device: torch.device, multi_label: bool = False) -> None:
        self.metrics = {} if multi_label else METRICS
        # rows: period, epoch; columns: clips, loss, metrics
        self.sums = torch.zeros(2, 2 + len(self.metrics), dtype=torch.float64, device=device)
        self.restart_clock()

    def restart_clock(self) -> None:
        """Restart the clock of the period; time and waiting for data before it do not count."""
        self.clips, self.waited, self.started = 0, 0.0, time.perf_counter()

    @torch.no_grad()
    def update(self, loss: Tensor, scores: Tensor, labels: Tensor, waited: float, kept: Tensor | None = None) -> None:
        """Add a batch: its mean loss, scores (B, K), labels, and the seconds until the loader returned it.

        It does not count if `kept` () is False on the device.
        """
        clips = len(scores)
        values = metric_values(scores, labels) if self.metrics else {}
        hits = [value.double().sum() for value in values.values()]
        total = loss.double() * clips
        added = torch.stack([torch.full_like(total, clips), total, *hits])
        self.sums += added if kept is None else torch.where(kept, added, 0.0)
        self.clips += clips
        self.waited += waited

    def _means(self, row: int) -> dict[str, float]:
        clips, loss, *hits = distributed.all_reduce_sum(self.sums[row].clone()).tolist()
        self.sums[row] = 0.0
        clips = clips or math.nan  # no step was finite
        values = {name: 100.0 * sum_ / clips for name, sum_ in zip(self.metrics, hits, strict=True)}
        return {"loss": loss / clips} | values

    def log_values(self) -> dict[str, float]:
        """Return the means of the period, clips per second of all processes and the share of time without data."""
        means = self._means(0)  # waits for the device, so the time below includes the work queued there
        seconds = time.perf_counter() - self.started
        speed = {"clips_per_s": self.clips * distributed.world_size() / seconds, "data_wait": self.waited / seconds}
        self.restart_clock()
        return means | speed

    def epoch_values(self) -> dict[str, float]:
        """Return the means of the epoch."""
        return self._means(1)

    def state_dict(self) -> dict[str, Tensor]:
        """Return the sums over all processes; after a resume, the main process has them."""
        return {"sums": distributed.all_reduce_sum(self.sums.clone()).cpu()}

    def load_state_dict(self, state: Mapping[str, Tensor]) -> None:
        """Continue the sums of a checkpoint; start from zero if they are of other metrics."""
        self.sums.zero_()
        if distributed.is_main() and state["sums"].shape == self.sums.shape:
            self.sums.copy_(state["sums"])
