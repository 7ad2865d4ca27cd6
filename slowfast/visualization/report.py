"""Write the report of a run, or of several runs side by side, as one HTML file that needs no network."""

from __future__ import annotations

import os
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import jinja2
import numpy as np
from markupsafe import Markup

from slowfast.config import changed_keys, get_cfg
from slowfast.utils.io import to_json, write_text
from slowfast.visualization import outcomes as results
from slowfast.visualization.charts import NUM_COLORS, Chart, Series, calibration_chart, curve_chart, matrix_chart
from slowfast.visualization.outcomes import MultiLabelOutcomes, Outcomes
from slowfast.visualization.runs import TESTS, Run, read_run
from slowfast.visualization.thumbnails import Thumbnails

CLUSTERED = 50  # classes above which the matrix is ordered by similarity
PAIRS, PER_PAIR, LOSSES = 10, 3, 12  # shown confusions, videos of each, and videos with the largest losses
DECODE_LIMIT = 60.0  # seconds for all thumbnails of a report
NOT_ABOVE = {"shuffled: top-5, %", "shuffled: loss"}  # results that the first lines leave out
# Field of training records -> title of its curve. Accuracies and the loss, which validations have too, come first.
SPEED = {
    "lr": "Learning rate",
    "grad_norm": "Gradient norm, before clipping",
    "clips_per_s": "Throughput, clips per second",
    "data_wait": "Data wait, share of the time",
    "memory_gib": "Peak memory, GiB",
}


def write_report(output_dir: str | os.PathLike[str], path: str | os.PathLike[str] | None = None) -> Path:
    """Write the report of a run.

    Args:
        output_dir: of the run.
        path: of the HTML file; the default is report.html in `output_dir`.

    Returns:
        The path.

    Raises:
        ValueError: `output_dir` is not the output folder of a run.
        OSError: the file cannot be written.
    """
    run = read_run(output_dir)
    path = Path(path or run.folder / "report.html")
    numbers = {name: value for name, value in run.numbers().items() if name not in NOT_ABOVE}
    analysis = _analysis(run)
    if analysis and "calibration" in analysis:
        numbers[f"{analysis['source']}: ECE, %"] = analysis["calibration"].ece
    page = {
        "title": run.name,
        "runs": [run],
        "numbers": numbers,
        "charts": run_charts(run),
        "analysis": analysis,
        "settings": _settings(run),
        "skipped": {TESTS[name]: test["skipped"] for name, test in run.tests.items() if test.get("skipped")},
    }
    write_text(path, _render(page))
    return path


def write_comparison(runs: Sequence[Run], table: Sequence[Sequence[str]], path: str | os.PathLike[str]) -> None:
    """Write a page with the curves of several runs in the same charts, and the table of `comparison_table`.

    Raises:
        OSError: the file cannot be written.
    """
    title = " · ".join(run.name for run in runs)
    write_text(path, _render({"title": title, "runs": runs, "table": table, "charts": comparison_charts(runs)}))


def run_charts(run: Run) -> list[Chart]:
    """Return the curves of a run."""
    titles = {"loss": "Loss"} | {name: run.title(name) for name in run.accuracies} | SPEED
    return [
        curve_chart(title, series, field, percent=field in run.accuracies)
        for field, title in titles.items()
        if (series := run.curves(field))
    ]


def comparison_charts(runs: Sequence[Run]) -> list[Chart]:
    """Return charts with one curve per run."""
    accuracies = [*dict.fromkeys(name for run in runs for name in run.accuracies)]
    wanted = [("train", "loss", "Training loss"), ("val", "loss", "Validation loss")]
    for name in accuracies:
        wanted += [(kind, name, f"{words}: {runs[0].title(name)}") for kind, words in
                   (("train", "Training"), ("val", "Validation"))]  # fmt: skip
    wanted += [("train", field, title) for field, title in SPEED.items()]
    charts: list[Chart] = []
    for kind, field, title in wanted:
        series = [
            Series(run.name, *points, color=number, marks=kind == "val")
            for number, run in enumerate(runs)
            if (points := run.points(kind, field))[0]
        ]
        if series:
            charts.append(curve_chart(title, series, f"{kind}_{field}", percent=field in accuracies))
    return charts


def _analysis(run: Run) -> dict[str, Any] | None:
    """Return the analysis of the predictions of the test, or else of the best validation; None without either."""
    thumbnail = Thumbnails(DECODE_LIMIT, run.settings["DATA"]["IMAGE_TEMPLATE"])
    for folder in ("test", "validation"):
        file = run.folder / folder / "scores.npz"
        if not file.is_file():
            continue
        outcomes = results.read_outcomes(file)
        if isinstance(outcomes, MultiLabelOutcomes):
            return {"source": folder, **_multi_label(outcomes, thumbnail)}
        if outcomes:
            return {"source": folder, "top5": "top5" in run.accuracies, **_classification(outcomes, thumbnail)}
    return None


def _classification(outcomes: Outcomes, thumbnail: Thumbnails) -> dict[str, Any]:
    counts, classes = results.confusion(outcomes), len(outcomes.names)
    clustered = classes > CLUSTERED
    order = results.cluster_order(counts) if clustered else np.arange(classes)
    pairs = results.confused_pairs(outcomes, counts, PAIRS)
    largest = (-outcomes.loss).argsort(kind="stable")[:LOSSES].tolist()
    bins = results.calibration(outcomes)
    return {
        "clustered": clustered,
        "matrix": matrix_chart(counts, outcomes.names, order),
        "classes": results.class_rows(outcomes, counts),
        "pairs": [(pair, [_video(outcomes, row, thumbnail) for row in pair.rows[:PER_PAIR]]) for pair in pairs],
        "largest": [_video(outcomes, row, thumbnail) for row in largest],
        "calibration": bins,
        "calibration_chart": calibration_chart(bins),
        "videos": len(outcomes.labels),
    }


def _multi_label(outcomes: MultiLabelOutcomes, thumbnail: Thumbnails) -> dict[str, Any]:
    videos: list[dict[str, Any]] = []
    for row in (-outcomes.loss).argsort(kind="stable")[:LOSSES].tolist():
        true, predicted = ", ".join(outcomes.true(row)) or "no class", ", ".join(outcomes.predicted(row))
        videos.append(_described(outcomes, row, true, predicted, outcomes.probabilities[row].max(), thumbnail))
    return {"videos": len(outcomes.paths), "precisions": results.precision_rows(outcomes), "largest": videos}


def _video(outcomes: Outcomes, row: int, thumbnail: Thumbnails) -> dict[str, Any]:
    true, predicted = (outcomes.names[classes[row]] for classes in (outcomes.labels, outcomes.predicted))
    return _described(outcomes, row, true, predicted, outcomes.confidence[row], thumbnail)


def _described(
    outcomes: Outcomes | MultiLabelOutcomes, row: int, true: str, predicted: str, confidence: Any, thumbnail: Thumbnails
) -> dict[str, Any]:
    path = str(outcomes.paths[row])
    return {
        "path": path,
        "file": Path(path).name,
        "picture": thumbnail(path),
        "true": true,
        "predicted": predicted,
        "wrong": predicted != true,
        "confidence": 100 * float(confidence),
        "loss": float(outcomes.loss[row]),
    }


def _settings(run: Run) -> list[tuple[str, Any, str]]:
    """Return key, value and origin of the values that are not the defaults."""
    origins = run.origins()
    changed = changed_keys(run.settings, get_cfg(), ignore=()) if run.config else {}
    return [(key, value, origins.get(key, "")) for key, (value, _) in changed.items()]


def _render(page: dict[str, Any]) -> str:
    loader = jinja2.FileSystemLoader(Path(__file__).parent)
    environment = jinja2.Environment(loader=loader, autoescape=True, undefined=jinja2.StrictUndefined)
    environment.filters["json"] = lambda value: Markup(to_json(value).replace("<", "\\u003c"))
    environment.filters["svg"] = Markup
    absent = dict.fromkeys(("analysis", "settings", "numbers", "skipped", "table"))
    return environment.get_template("report.html").render(**{**absent, **page}, num_colors=NUM_COLORS)
