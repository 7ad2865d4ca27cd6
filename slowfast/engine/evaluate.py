"""Evaluate a model on a list; a validation is a test with one view."""

from __future__ import annotations

import itertools
import time
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass, field
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn
from torch.nn import functional
from tqdm import tqdm

from slowfast.engine.meters import MEAN_CLASS, METRICS, MULTI_LABEL_METRICS, check_tensor, metric_values
from slowfast.engine.setup import copy_to_cpu, in_stream
from slowfast.run import interrupt
from slowfast.run.watchdog import progress
from slowfast.utils import distributed
from slowfast.utils.distributed import SharedError
from slowfast.utils.scores import log_probabilities, multi_label_losses

CHUNK = 8 << 20  # bytes of scores that are compared or sent at once
POLL, QUIET = 0.05, 60.0  # seconds between looks at the other processes, and without a batch of them until the exchange
_numbers = itertools.count()  # of the evaluations, the same in all processes


class ViewEnsemble:
    """The sum or maximum of the scores of each video's views; every (index, view) counts once.

    Args:
        method: "sum" or "max" over views.
        softmax: turn logits into probabilities first.
        sigmoid: turn logits into a probability per class first.
        videos: length of the list; 0 if it is not known, then the scores are copied whenever they grow.
    """

    def __init__(self, method: str, softmax: bool, sigmoid: bool = False, videos: int = 0) -> None:
        assert method in ("sum", "max"), method
        self.method, self.softmax, self.sigmoid, self.videos = method, softmax, sigmoid, videos
        self.scores = np.zeros((0, 0), np.float32)  # (rows of the list, K); 0 for rows not in `views`
        self.labels: dict[int, Any] = {}  # a number, or (K,)
        self.views: dict[int, int] = {}  # bit v: view v is counted
        self.num_views = 1  # of a video
        self.finite = True

    def values(self, logits: Tensor) -> Tensor:
        """Return the scores (B, K) of single views, before their sum or maximum."""
        check_tensor(logits, (-1, -1), "the network in a validation or test")
        logits = logits.float()  # in lower precision, many scores would be equal
        if self.sigmoid:
            return logits.sigmoid()
        return logits.softmax(1) if self.softmax else logits

    def update(self, scores: Tensor, label: Tensor, index: Tensor, view: Tensor) -> None:
        """Add clips: scores from `values` (B, K), label (B,) or (B, K), index of the video and of the view (B,)."""
        values = scores.numpy()
        self.finite = self.finite and bool(np.isfinite(values).all())
        self.reserve(int(index.max()) + 1, values.shape[1])
        self.num_views = max(self.num_views, int(view.max()) + 1)
        labels = label.tolist() if label.ndim == 1 else label.numpy().copy()  # or the batch would remain in memory
        for row, y, i, v in zip(values, labels, index.tolist(), view.tolist(), strict=True):
            seen = self.views.get(i, 0)
            if seen >> v & 1:
                continue
            self.views[i] = seen | 1 << v
            self.labels[i] = y
            if not seen:
                self.scores[i] = row
            elif self.method == "sum":
                self.scores[i] += row
            else:
                np.maximum(self.scores[i], row, out=self.scores[i])

    def reserve(self, rows: int, classes: int) -> None:
        """Allocate scores for the first `rows` of the list."""
        if not self.scores.size:
            # the system maps pages of a large array when they are written
            self.scores = np.zeros((max(rows, self.videos), classes), np.float32)
        elif rows > len(self.scores):
            before, self.scores = self.scores, np.zeros((rows + rows // 8, classes), np.float32)
            self.scores[: len(before)] = before


@dataclass
class Evaluation:
    """Scores of every evaluated video, in order of the list.

    Attributes:
        index: (N,) row in the list.
        label: (N,) true class, or -1 where it is not known; for a multi-label list (N, K) int8, 1 for each true class.
        scores: (N, K) sum or maximum over views.
        bad: (path, reason) of videos left out because they could not be decoded.
        probabilities: whether the scores are sums or maxima of probabilities, not of logits.
        summed: views that a score is the sum of; 1 for maxima.
    """

    index: np.ndarray
    label: np.ndarray
    scores: np.ndarray
    bad: list[tuple[str, str]] = field(default_factory=list)
    probabilities: bool = False
    summed: int = 1

    def metrics(self) -> dict[str, Any]:
        """Return "loss", the mean of each metric in percent, and of the first one also the mean over the classes.

        The loss is the mean cross-entropy, of the mean logits of the views or of their mean probabilities. For K < 5
        classes, "top5" is the top-K that "top5_k" names. For a multi-label list, the loss is the mean binary
        cross-entropy over all classes. All values are those of the "num_labelled" videos whose class is known, and None
        if there is no such video.
        """
        multi_label = self.label.ndim == 2
        known = np.flatnonzero((self.label[:, 0] if multi_label else self.label) >= 0)
        return {
            **(self._multi_label(known) if multi_label else self._single_label(known)),
            "num_videos": len(self.index),
            "num_labelled": len(known),
            "num_skipped": len(self.bad),
        }

    def _single_label(self, known: np.ndarray) -> dict[str, Any]:
        """Return the loss and the metrics of the rows `known`."""
        classes = self.scores.shape[1]
        sums = {name: np.zeros(classes) for name in METRICS}  # of the videos of each class
        loss = 0.0
        for rows in _chunks(known, self.scores):
            label = self.label[rows]
            scores, labels = torch.from_numpy(self.scores[rows]), torch.from_numpy(label)
            logs = log_probabilities(scores, self.probabilities, self.summed)
            loss += float(functional.nll_loss(logs, labels, reduction="sum"))
            for name, values in metric_values(scores, labels).items():
                sums[name] += np.bincount(label, values.double().numpy(), classes)
        if not len(known):
            return dict.fromkeys(("loss", *METRICS, MEAN_CLASS)) | {"top5_k": min(5, classes)}
        videos = np.bincount(self.label[known], minlength=classes)
        of_class = next(iter(sums.values()))[videos > 0] / videos[videos > 0]
        return {
            "loss": loss / len(known),
            **{name: 100.0 * (float(values.sum()) / len(known)) for name, values in sums.items()},
            MEAN_CLASS: 100.0 * float(of_class.mean()),
            "top5_k": min(5, classes),
        }

    def _multi_label(self, known: np.ndarray) -> dict[str, Any]:
        """Return the loss and the metrics of the rows `known`; 0 for a metric that is not defined."""
        if not len(known):
            return dict.fromkeys(("loss", *MULTI_LABEL_METRICS))
        loss = 0.0
        for rows in _chunks(known, self.scores):
            scores, targets = torch.from_numpy(self.scores[rows]), torch.from_numpy(self.label[rows])
            loss += float(multi_label_losses(scores, targets, self.probabilities, self.summed).sum())
        scores, targets = torch.from_numpy(self.scores[known]), torch.from_numpy(self.label[known])
        found = {name: float(metric(scores, targets)) for name, metric in MULTI_LABEL_METRICS.items()}
        return {"loss": loss / len(known)} | {name: 100.0 * float(np.nan_to_num(found[name])) for name in found}


def _chunks(rows: np.ndarray, scores: np.ndarray) -> Iterator[np.ndarray]:
    """Yield `rows` of the scores in parts of a few megabytes."""
    size = max(1, CHUNK // max(1, scores[:1].nbytes))
    for start in range(0, len(rows), size):
        yield rows[start : start + size]


class NothingDecodedError(SharedError):
    """None of the videos of a list can be decoded; `bad` contains their (path, reason)."""

    def __init__(self, bad: list[tuple[str, str]]) -> None:
        why = f"none of {len(bad)} can be decoded; the first:{first_bad(bad)}"
        super().__init__(f"no video could be evaluated, because {why}")
        self.bad = bad


@torch.no_grad()
def evaluate(
    model: nn.Module,
    loader: Iterable[dict[str, Any]],
    to_device: Callable[[Any], Tensor],
    device: torch.device,
    ensemble: ViewEnsemble,
    max_clips: int,
    description: str,
) -> Evaluation:
    """Run `model` over every view of every video and gather the scores of all processes.

    Args:
        model: from clips (B, C, T, H, W) to logits (B, K).
        loader: yields batches of this process's videos.
        to_device: moves a batch of clips, or cuts them out of views, and normalizes them.
        device: of the model.
        ensemble: empty; receives the scores.
        max_clips: clips in one forward pass.
        description: title of the progress bar.

    Returns:
        Scores of all videos that could be decoded, and the names of the others, which are not replaced.

    Raises:
        NothingDecodedError: no video could be evaluated.
        SharedError: a score is not a finite number.
        Interruption: in every process, if one was interrupted; only this evaluation is lost.
    """
    was_training = model.training
    model.eval()
    bad: list[tuple[str, str]] = []
    asked = before = None
    end = f"end of evaluation {next(_numbers)}"  # event: its results are not needed
    beside = torch.cuda.Stream(device) if device.type == "cuda" else None
    for batch in tqdm(loader, desc=description, disable=None if distributed.is_main() else True, leave=False):
        progress()
        asked = interrupt.received()
        if asked or not ensemble.finite:
            distributed.announce(end)
            break
        if distributed.announced(end):
            break
        distributed.count(f"batches before the {end}", 1)
        bad += batch["bad"]
        for clips, *described in _on_device(batch, max_clips, to_device, beside):
            scores = copy_to_cpu(ensemble.values(model(clips)))
            if before:  # read while the device computes these clips
                ensemble.update(before[0](), *before[1:])
            before = scores, *described
    if before:
        ensemble.update(before[0](), *before[1:])
    model.train(was_training)

    _wait_for_others(end)
    parts = distributed.all_gather((ensemble.labels, bad, asked, ensemble.finite))
    progress()
    if requests := [part[2] for part in parts if part[2]]:
        interrupt.adopt(requests[0])
        raise interrupt.Interruption(f"{requests[0].name} during {description}, which will start again")
    bad = [entry for part in parts for entry in part[1]]
    if not all(part[3] for part in parts):
        raise SharedError("the model gives scores that are not finite numbers; its weights are broken")
    labels = {i: y for part in parts for i, y in part[0].items()}
    if not labels:
        raise NothingDecodedError(bad)
    index = np.array(sorted(labels))
    scores, views = _gather(ensemble, index, device)
    return Evaluation(
        index=index,
        label=np.array([labels[i] for i in index.tolist()]),
        scores=scores,
        bad=bad,
        probabilities=ensemble.softmax or ensemble.sigmoid,
        summed=views if ensemble.method == "sum" else 1,
    )


def _wait_for_others(end: str) -> None:
    """Wait until all processes have evaluated their videos, or one has announced the end of the evaluation.

    A batch of any process is progress of this one, because a slow process may need longer than DIST_TIMEOUT. After
    `QUIET` seconds without one the exchange begins, which notices whether a process was killed.
    """
    arrived, batches, last = distributed.count(f"processes at the {end}", 1), -1, time.monotonic()
    while arrived < distributed.world_size() and not distributed.announced(end) and time.monotonic() < last + QUIET:
        if (now := distributed.count(f"batches before the {end}")) != batches:
            batches, last = now, time.monotonic()
            progress()
        time.sleep(POLL)
        arrived = distributed.count(f"processes at the {end}")


def _on_device(
    batch: dict[str, Any], max_clips: int, to_device: Callable[[Any], Tensor], beside: torch.cuda.Stream | None
) -> Iterator[tuple[Tensor, ...]]:
    """Yield clips with their label, index and view; clips are made in the stream `beside`, parallel to the network."""
    for video, *described in zip(
        *(batch[name].split(max_clips) for name in ("video", "label", "index", "view")), strict=True
    ):
        if not len(video):
            continue
        yield in_stream(beside, to_device, video), *described


def first_bad(bad: Sequence[tuple[str, str]]) -> str:
    """Return the first (path, reason) pairs, one per line, for a message."""
    return "".join(f"\n  {path}: {reason}" for path, reason in bad[:3])


def _gather(ensemble: ViewEnsemble, index: np.ndarray, device: torch.device) -> tuple[np.ndarray, int]:
    """Add up the scores of all processes, with a few megabytes beyond the memory of `ensemble`.

    Each process has evaluated other rows of the list; in these, the scores of `ensemble` are 0.

    Args:
        ensemble: the scores of this process.
        index: (N,) all rows that were evaluated, in order.
        device: of the tensors that are sent.

    Returns:
        (N, K) the scores of these rows, and the number of views.
    """
    shapes = distributed.all_gather((ensemble.scores.shape[1], ensemble.num_views))
    ensemble.reserve(int(index[-1]) + 1, max(classes for classes, _ in shapes))
    scores, end = ensemble.scores, 0
    for rows in _chunks(index, scores):
        sent = torch.from_numpy(scores[rows]).to(device)
        # rows move to the front if earlier videos could not be decoded
        begin, end = end, end + len(rows)
        scores[begin:end] = distributed.all_reduce_sum(sent).cpu().numpy()
        progress()
    return scores[:end], max(views for _, views in shapes)
