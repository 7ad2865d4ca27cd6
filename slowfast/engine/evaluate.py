"""One evaluation loop: validation is a test with one view."""

from __future__ import annotations

import itertools
from collections.abc import Callable, Iterable
from dataclasses import dataclass, field
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn
from tqdm import tqdm

from slowfast.datasets.transforms import Views
from slowfast.engine import interrupt
from slowfast.utils import distributed
from slowfast.utils.distributed import SharedError
from slowfast.utils.watchdog import progress


class ViewEnsemble:
    """Adds up (or takes the maximum of) the scores of a video's views, each (index, view) counted once.

    Args:
        method: "sum" or "max" over views.
        softmax: turn logits into probabilities first.
    """

    def __init__(self, method: str, softmax: bool) -> None:
        assert method in ("sum", "max"), method
        self.method, self.softmax = method, softmax
        self.scores: dict[int, np.ndarray] = {}
        self.labels: dict[int, int] = {}
        self.views: dict[int, set[int]] = {}

    def update(self, logits: Tensor, label: Tensor, index: Tensor, view: Tensor) -> None:
        """Add clips: logits (B, K), label, index of the video and number of the view (B,)."""
        values = (logits.softmax(1) if self.softmax else logits).float().cpu().numpy()
        for row, y, i, v in zip(values, label.tolist(), index.tolist(), view.tolist(), strict=True):
            seen = self.views.setdefault(i, set())
            if v in seen:
                continue
            seen.add(v)
            self.labels[i] = y
            if i not in self.scores:
                self.scores[i] = row.copy()
            elif self.method == "sum":
                self.scores[i] += row
            else:
                np.maximum(self.scores[i], row, out=self.scores[i])


@dataclass
class Evaluation:
    """Scores of every evaluated video, in order of the list.

    Attributes:
        index: (N,) row in the list.
        label: (N,) true class, or -1 where nobody knows it.
        scores: (N, K) sum or maximum over views.
        bad: (path, reason) of videos left out because they could not be decoded.
    """

    index: np.ndarray
    label: np.ndarray
    scores: np.ndarray
    bad: list[tuple[str, str]] = field(default_factory=list)

    def metrics(self) -> dict[str, Any]:
        """Top-1 and top-5 accuracy in percent; with K < 5 classes, "top5" is the top-K that "top5_k" names.

        They are over the "num_labelled" videos whose class is known, and None if there is none.
        """
        k = min(5, self.scores.shape[1])
        order = np.argsort(-self.scores, axis=1, kind="stable")[:, :k]
        known = self.label >= 0
        hits = (order == self.label[:, None])[known]
        return {
            "top1": 100.0 * float(hits[:, 0].mean()) if known.any() else None,
            "top5": 100.0 * float(hits.any(1).mean()) if known.any() else None,
            "top5_k": k,
            "num_videos": len(self.index),
            "num_labelled": int(known.sum()),
            "num_skipped": len(self.bad),
        }


@torch.no_grad()
def evaluate(
    model: nn.Module,
    loader: Iterable[dict[str, Any]],
    to_device: Callable[[Tensor], Tensor],
    device: torch.device,
    ensemble: ViewEnsemble,
    max_clips: int,
    description: str,
) -> Evaluation:
    """Run `model` over every view of every video and gather the scores of all processes.

    Args:
        loader: yields batches of this process's videos.
        to_device: moves and normalizes a batch of clips.
        device: where views are cut out of frames.
        max_clips: clips in one forward pass.
        description: title of the progress bar.

    Returns:
        Scores of all videos that could be decoded, and the names of the others; nothing takes their place.

    Raises:
        SharedError: no video could be evaluated, or a score is not a finite number.
        Interruption: in every process, if one was asked to stop; nothing is lost but this evaluation.
    """
    was_training = model.training
    model.eval()
    bad: list[tuple[str, str]] = []
    asked = None
    for batch in tqdm(loader, desc=description, disable=None if distributed.is_main() else True, leave=False):
        progress()
        if asked := interrupt.received():
            break
        bad += batch["bad"]
        video = batch["video"]
        clips = video.cut(device) if isinstance(video, Views) else iter(video)
        for label, index, view in zip(
            *(batch[name].split(max_clips) for name in ("label", "index", "view")), strict=True
        ):
            if len(label):
                together = torch.stack([*itertools.islice(clips, len(label))])
                ensemble.update(model(to_device(together)), label, index, view)
    model.train(was_training)

    parts = distributed.all_gather((ensemble.scores, ensemble.labels, bad, asked and asked.name))
    progress()
    if names := [part[3] for part in parts if part[3]]:
        raise interrupt.Interruption(f"{names[0]} during {description}, which will start again")
    scores = {i: row for part in parts for i, row in part[0].items()}
    labels = {i: y for part in parts for i, y in part[1].items()}
    if not scores:
        broken = [entry for part in parts for entry in part[2]]
        first = "".join(f"\n  {path}: {reason}" for path, reason in broken[:3])
        raise SharedError(f"no video could be evaluated: none of {len(broken)} can be decoded, first of them:{first}")
    if not all(np.isfinite(row).all() for row in scores.values()):
        raise SharedError("the model gives scores that are not finite numbers; its weights are broken")
    index = np.array(sorted(scores))
    return Evaluation(
        index=index,
        label=np.array([labels[i] for i in index]),
        scores=np.stack([scores[i] for i in index]),
        bad=[entry for part in parts for entry in part[2]],
    )
