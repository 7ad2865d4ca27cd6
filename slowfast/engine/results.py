"""Write the results of a test: files in its folder, a record in metrics.jsonl, and log lines."""

from __future__ import annotations

import logging
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import yaml
from fvcore.common.config import CfgNode

from slowfast.config import dump_config
from slowfast.datasets.lists import VideoList
from slowfast.engine.evaluate import Evaluation
from slowfast.engine.meters import metrics_text
from slowfast.run.resume import write_resolved
from slowfast.utils.environment import environment
from slowfast.utils.io import atomic_write, csv_text, write_json, write_text
from slowfast.utils.logging import MetricsLog

logger = logging.getLogger(__name__)


def test_folder(cfg: CfgNode) -> str:
    """Return the name of the folder of results in OUTPUT_DIR."""
    return "test_shuffled" if cfg.TEST.SHUFFLE_FRAMES else "test"


def write_results(
    folder: Path,
    evaluation: Evaluation,
    samples: VideoList,
    names: Sequence[str] | None,
    cfg: CfgNode,
    checkpoint: Mapping[str, str],
) -> None:
    """Write predictions.csv (one row per video), scores.npz, metrics.json and resolved_config.yaml.

    The scores of predictions.csv are means over the views, so means of probabilities lie between 0 and 1;
    scores.npz has the sums. For a multi-label list, the column "label" has all classes of a video, separated by ";".
    If `names` is None, predictions.csv has class numbers. `checkpoint` is the path and the checksum of the tested one.
    """
    top = min(5, evaluation.scores.shape[1])
    ranks = range(1, top + 1)
    rows = [["id", "label", *(f"top{k}" for k in ranks), *(f"score{k}" for k in ranks)]]
    paths = [samples.path(int(i)) for i in evaluation.index]
    for path, label, scores in zip(paths, evaluation.label, evaluation.scores, strict=True):
        order = np.argsort(-scores, kind="stable")[:top].tolist()
        true = [int(label)] if label.ndim == 0 else np.flatnonzero(label > 0).tolist()
        named, classes = (["" if k < 0 else names[k] if names else str(k) for k in part] for part in (true, order))
        rows.append([path, ";".join(named), *classes, *(f"{scores[k] / evaluation.summed:.6g}" for k in order)])
    write_text(folder / "predictions.csv", csv_text(rows))
    write_scores(folder, evaluation, samples, names)
    report = {
        "metrics": evaluation.metrics(),
        "views": {"temporal": cfg.TEST.NUM_ENSEMBLE_VIEWS, "spatial": cfg.TEST.NUM_SPATIAL_CROPS},
        "skipped": evaluation.bad,
        "checkpoint": dict(checkpoint),
        "config": yaml.safe_load(dump_config(cfg)),
        "environment": environment(),
    }
    write_resolved(cfg, folder)
    write_json(folder / "metrics.json", report)


def write_scores(folder: Path, evaluation: Evaluation, samples: VideoList, names: Sequence[str] | None) -> None:
    """Write scores.npz: per video its path, row, label and scores, and what the scores and their columns are."""
    with atomic_write(folder / "scores.npz") as file:
        np.savez_compressed(
            file,
            id=np.array([samples.path(int(i)) for i in evaluation.index]),
            index=evaluation.index,
            label=evaluation.label,
            scores=evaluation.scores,
            probabilities=evaluation.probabilities,
            summed=evaluation.summed,
            class_names=np.array(names or [], dtype=str),
        )


def log_results(folder: Path, metrics: Mapping[str, Any], named: bool, cfg: CfgNode) -> None:
    """Log the metrics of a test and, if the classes have no names, how to name them."""
    MetricsLog(cfg.OUTPUT_DIR).write("test", shuffled_frames=cfg.TEST.SHUFFLE_FRAMES, **metrics)
    if not named:
        logger.info(
            "predictions.csv contains class numbers, because neither the list nor the weights name the classes: write "
            "class_names.txt beside the list, one name per line in the order of the labels, or for a public data "
            "set run `python tools/prepare_data.py classes`"
        )
    videos, labelled, skipped = metrics["num_videos"], metrics["num_labelled"], metrics["num_skipped"]
    left_out = [f"{videos - labelled} without a label"] if 0 < labelled < videos else []
    left_out += [f"{skipped} undecodable ones left out"] if skipped else []
    logger.info(
        "test%s: %s %d videos x %d views%s; results in %s",
        " with shuffled frames" if cfg.TEST.SHUFFLE_FRAMES else "",
        f"{metrics_text(metrics, cfg.MODEL.NUM_CLASSES)}  loss {metrics['loss']:.4f}  over"
        if labelled
        else "predictions of",
        labelled or videos,
        cfg.TEST.NUM_ENSEMBLE_VIEWS * cfg.TEST.NUM_SPATIAL_CROPS,
        f" ({', '.join(left_out)})" if left_out else "",
        folder,
    )
