"""Draw the curves of a run as a picture."""

from __future__ import annotations

import os
from typing import Any

from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.figure import Figure

from slowfast.utils.logging import read_metrics


def plot_curves(output_dir: str | os.PathLike[str], path: str | os.PathLike[str]) -> None:
    """Draw loss, accuracy and learning rate over epochs from `output_dir`/metrics.jsonl into the PNG `path`.

    If there are several tests of a kind, the last one is shown. A run that only tested has no curves.
    """
    records = read_metrics(output_dir)
    metric = "mAP" if _rows(records, "val", "mAP") else "top1"
    name = {"top1": "top-1"}.get(metric, metric)
    train = _rows(records, "train", "epoch", "loss", "lr")
    val = _rows(records, "val", "epoch", metric)
    tests = {bool(r["shuffled_frames"]): r[metric] for r in _rows(records, "test", "shuffled_frames", metric)}
    if not train and not val:
        return
    figure = Figure(figsize=(12, 3.5))
    FigureCanvasAgg(figure)
    # room for all texts; measuring them would take longer than the rest of the drawing
    margins = {"left": 0.05, "right": 0.99, "bottom": 0.13, "top": 0.9, "wspace": 0.2}
    loss, accuracy, rate = figure.subplots(1, 3, gridspec_kw=margins)
    epochs = [r["epoch"] for r in train]
    loss.plot(epochs, [r["loss"] for r in train], label="training")
    losses = _rows(val, "val", "loss")  # absent from older runs
    loss.plot([r["epoch"] for r in losses], [r["loss"] for r in losses], "o-", label="validation")
    loss.set_title("loss")
    loss.legend()
    if steps := _rows(train, "train", metric):  # absent if videos have several classes
        accuracy.plot([r["epoch"] for r in steps], [r[metric] for r in steps], label=f"training, {name}")
    accuracy.plot([r["epoch"] for r in val], [r[metric] for r in val], "o-", label=f"validation, {name}")
    for shuffled, value in tests.items():
        words = "test, shuffled frames" if shuffled else "test, all views"
        accuracy.axhline(value, color="gray" if shuffled else "black", linestyle="--", label=words)
    accuracy.set(title="accuracy in percent", ylim=(0, 101))
    accuracy.legend()
    rate.plot(epochs, [r["lr"] for r in train])
    rate.set_title("learning rate")
    for axes in (loss, accuracy, rate):
        axes.set_xlabel("epoch")
        axes.grid(alpha=0.3)
    figure.savefig(os.fspath(path), dpi=110)


def _rows(records: list[dict[str, Any]], kind: str, *fields: str) -> list[dict[str, Any]]:
    """Return the records of a kind with numbers in all `fields`; a test without labels has no accuracy."""
    return [r for r in records if r["kind"] == kind and all(isinstance(r.get(name), (int, float)) for name in fields)]
