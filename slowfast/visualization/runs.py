"""Read the record of a run from its output folder."""

from __future__ import annotations

import json
import math
import os
import statistics
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from functools import cached_property
from pathlib import Path
from typing import Any

from slowfast.config import recorded_config
from slowfast.utils.logging import read_metrics
from slowfast.visualization.charts import Series, finite

TESTS = {"test": "test", "test_shuffled": "shuffled"}  # folder -> words
# Fields of validations and tests that are not accuracies.
OTHER_FIELDS = (
    "kind", "step", "epoch", "loss", "top5_k", "num_videos", "num_labelled", "num_skipped", "shuffled_frames",
)  # fmt: skip


@dataclass(frozen=True)
class Run:
    """The record of a training, its tests, or both."""

    folder: Path  # OUTPUT_DIR
    name: str  # of the run on a page
    records: list[dict[str, Any]]  # of metrics.jsonl, see `read_metrics`
    tests: dict[str, dict[str, Any]]  # folder of `TESTS` -> content of its metrics.json
    config: str  # resolved configuration as YAML; "" if there is none

    def rows(self, kind: str, *fields: str) -> list[dict[str, Any]]:
        """Return the records of a kind with finite numbers in all `fields`."""
        return [r for r in self.records if r["kind"] == kind and finite([r.get(name) for name in fields])]

    def points(self, kind: str, field: str) -> tuple[list[float], list[float]]:
        """Return epochs and values of a field of the records of a kind.

        If an epoch has few steps, there are more means of epochs than training records, and they are returned.
        """
        rows = self.rows(kind, "epoch", field)
        if kind == "train":
            rows = max(rows, self.rows("epoch", "epoch", field), key=len)
        return [r["epoch"] for r in rows], [r[field] for r in rows]

    def curves(self, field: str) -> list[Series]:
        """Return the curves of a field in training and validation, and its values in the tests; [] if it has none."""
        training, validation = self.points("train", field), self.points("val", field)
        series = [Series("training", *training)] * bool(training[0])
        series += [Series("validation", *validation, color=1, marks=True)] * bool(validation[0])
        for number, (folder, words) in enumerate(TESTS.items()):
            value = self.tests.get(folder, {"metrics": {}})["metrics"].get(field)
            if series and finite([value]) and (field, folder) != ("loss", "test_shuffled"):  # far above the curves
                series.append(Series(words, [], [value], color=2 + number, level=True))
        return series

    @property
    def accuracies(self) -> list[str]:
        """The names of the metrics in percent that validations, tests or training steps contain.

        "top5" of at most 5 classes, which is always 100 %, is left out.
        """
        found = [*self.rows("val"), *(test["metrics"] for test in self.tests.values())]
        names = dict.fromkeys(name for metrics in found for name in percentages(metrics)) or ("top1", "top5")
        return [name for name in names if name != "top5" or self.settings["MODEL"]["NUM_CLASSES"] > 5]

    @property
    def best_validation(self) -> dict[str, Any]:
        """The record of the first validation with the highest top-1 or mAP; empty without validations."""
        name = "mAP" if self.rows("val", "mAP") else "top1"
        return max(self.rows("val", name), key=lambda record: record[name], default={})

    @property
    def environment(self) -> dict[str, str]:
        """The programs and the machine of the last attempt, or else of the last test."""
        found = [*(test for test in self.tests.values()), *self.rows("start")]
        return next((record["environment"] for record in reversed(found) if record.get("environment")), {})

    def label(self, accuracy: str) -> str:
        """Return the name of a metric for a reader, such as "top-5"."""
        return {"top1": "top-1", "top5": "top-5"}.get(accuracy, accuracy.replace("_", " "))

    def title(self, accuracy: str) -> str:
        """Return the title of the curve of a metric."""
        return "mAP, percent" if accuracy == "mAP" else f"{self.label(accuracy).capitalize()} accuracy, percent"

    def numbers(self) -> dict[str, float]:
        """Return name -> value of the results: of the tests, the best validation, the training, and its speed."""
        values: dict[str, Any] = {}
        best = self.best_validation
        results = {words: self.tests.get(folder, {"metrics": {}})["metrics"] for folder, words in TESTS.items()}
        for words, metrics in (results | {"validation": best}).items():
            values |= {f"{words}: {self.label(name)}, %": metrics.get(name) for name in self.accuracies}
            values[f"{words}: loss"] = metrics.get("loss")
        values["best epoch"] = best.get("epoch")
        values["training: loss"] = next(reversed(self.points("epoch", "loss")[1]), None)
        values["epochs"] = next(reversed(self.points("train", "epoch")[1]), None)
        speed = {field: self.points("train", field)[1] for field in ("clips_per_s", "data_wait", "memory_gib")}
        values["clips per second"] = statistics.median(speed["clips_per_s"] or [math.nan])
        values["data wait, %"] = 100 * statistics.median(speed["data_wait"] or [math.nan])
        values["peak memory, GiB"] = max(speed["memory_gib"], default=None)
        return {name: value for name, value in values.items() if finite([value])}

    def origins(self) -> dict[str, str]:
        """Return full key -> origin of the values that are not the defaults, from the comments of the configuration."""
        origins: dict[str, str] = {}
        section = ""
        for line in self.config.splitlines():
            key = line.partition(":")[0]
            if line.startswith("#") or not key:
                continue
            if not line.startswith(" "):
                section = key
            name = f"{section}.{key.strip()}" if line.startswith(" ") else key
            if "  # " in line:
                origins[name] = line.rsplit("  # ", 1)[1]
        return origins

    @cached_property
    def settings(self) -> Mapping[str, Any]:
        """The configuration as a tree; keys of other versions are left out."""
        return recorded_config(self.config)[0]


def percentages(metrics: Mapping[str, Any]) -> dict[str, float]:
    """Return the metrics in percent of a validation or test."""
    return {name: value for name, value in metrics.items() if name not in OTHER_FIELDS and finite([value])}


def read_run(folder: str | os.PathLike[str]) -> Run:
    """Read an output folder.

    Raises:
        ValueError: it is not the output folder of a run.
    """
    folder = Path(folder)
    if not folder.is_dir():
        raise ValueError(f"{folder} is not a folder: give the OUTPUT_DIR of a run")
    if not (folder / "metrics.jsonl").is_file():
        raise ValueError(f"{folder} contains no metrics.jsonl: give the OUTPUT_DIR of a run that has started")
    tests = {name: test for name in TESTS if (test := _metrics(folder / name / "metrics.json"))}
    configs = [folder / part / "resolved_config.yaml" for part in ("", *TESTS)]
    config = next((path.read_text(encoding="utf-8", errors="replace") for path in configs if path.is_file()), "")
    return Run(folder, folder.resolve().name, read_metrics(folder), tests, config)


def read_runs(folders: Sequence[str | os.PathLike[str]]) -> list[Run]:
    """Read output folders; runs are named for their folders, or for their paths if some have the same name.

    Raises:
        ValueError: one of them is not the output folder of a run.
    """
    runs = [read_run(folder) for folder in folders]
    if len({run.name for run in runs}) < len(runs):
        runs = [replace(run, name=str(run.folder)) for run in runs]
    return runs


def _metrics(path: Path) -> dict[str, Any]:
    """Return the content of a metrics.json file; empty if there is none, or if it is not one."""
    try:
        content = json.loads(path.read_bytes())
    except (OSError, ValueError):
        return {}
    return content if isinstance(content, dict) and isinstance(content.get("metrics"), dict) else {}
