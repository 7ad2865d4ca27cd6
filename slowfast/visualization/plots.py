"""Draw the curves of a run as a picture."""

from __future__ import annotations

import os

from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.figure import Figure

from slowfast.visualization.runs import read_run


def plot_curves(output_dir: str | os.PathLike[str], path: str | os.PathLike[str]) -> None:
    """Draw loss, accuracy and learning rate over epochs into the PNG `path`; nothing for a run that only tested."""
    run = read_run(output_dir)
    metric = "mAP" if run.rows("val", "mAP") else "top1"
    titles = {"loss": "Loss", metric: run.title(metric), "lr": "Learning rate"}
    if not any(run.curves(field) for field in titles):
        return
    figure = Figure(figsize=(12, 3.5))
    FigureCanvasAgg(figure)
    # room for all texts; measuring them would take longer than the rest of the drawing
    margins = {"left": 0.05, "right": 0.99, "bottom": 0.13, "top": 0.9, "wspace": 0.2}
    for axes, (field, title) in zip(figure.subplots(1, 3, gridspec_kw=margins), titles.items(), strict=True):
        for series in run.curves(field):
            if series.level:
                axes.axhline(series.y[0], color=f"C{series.color}", linestyle="--", label=series.name)
            else:
                marker = "o" if series.marks else ""
                axes.plot(series.x, series.y, color=f"C{series.color}", marker=marker, label=series.name)
        axes.set(title=title, xlabel="epoch", ylim=(0, 101) if field == metric else None)
        axes.grid(alpha=0.3)
        if axes.lines:
            axes.legend()
    figure.savefig(os.fspath(path), dpi=110)
