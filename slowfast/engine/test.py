"""Test with several views: find the checkpoint, evaluate every view of every video, write the results."""

from __future__ import annotations

import logging
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import torch
from fvcore.common.config import CfgNode
from torch import nn

from slowfast.config import recorded_config
from slowfast.datasets.build import channel_order
from slowfast.datasets.catalog import CATALOG
from slowfast.datasets.list_checks import log_labels
from slowfast.engine.class_check import find_permutation
from slowfast.engine.evaluate import Evaluation, ViewEnsemble, evaluate, first_bad
from slowfast.engine.results import log_results, test_folder, write_results
from slowfast.engine.setup import Inference, clip_mover, inference_dtype, listed, make_loader, place, share_weights
from slowfast.engine.trackers import send_results
from slowfast.models.build import build_model, errors_name_keys, sums_softmax
from slowfast.run.checkpoint import best_checkpoint, damage, official_best, resumable_checkpoint
from slowfast.run.watchdog import progress
from slowfast.utils import distributed
from slowfast.utils.io import counted, sha256
from slowfast.weights.class_order import ClassOrder
from slowfast.weights.fetch import fetch_checkpoint
from slowfast.weights.heads import HeadPolicy, stated_classes
from slowfast.weights.load import check_head_width, load_weights
from slowfast.weights.released import find_order
from slowfast.weights.tensors import load_tensors

logger = logging.getLogger(__name__)


def test(cfg: CfgNode) -> dict[str, Any]:
    """Test a checkpoint on TEST.NUM_ENSEMBLE_VIEWS x TEST.NUM_SPATIAL_CROPS views of every video.

    Returns:
        The metrics, which are also in OUTPUT_DIR/test/metrics.json beside predictions.csv and scores.npz
        (OUTPUT_DIR/test_shuffled for the control with shuffled frames).

    Raises:
        ValueError: no checkpoint, one of another model, or data that cannot be read.
    """
    device = distributed.device(cfg.NUM_GPUS)
    loader = make_loader(cfg, "test", device)
    samples = listed(loader)
    if distributed.is_main():
        log_labels({"test": samples}, cfg.MODEL.NUM_CLASSES)
    # the main process decides for all, and has written the last checkpoint by now
    path = distributed.on_main(lambda: find_checkpoint(cfg))
    progress()
    # now: a training that runs at the same time may replace or remove the file during the test
    checkpoint = {"path": path, "sha256": distributed.on_main(lambda: sha256(fetch_checkpoint(path)))}
    progress()
    model, order, names = load_model(cfg, path, samples.class_names)
    place(model, device)
    share_weights(model)
    progress()
    evaluation = score(cfg, model, loader, device, "test")
    metrics, folder = evaluation.metrics(), Path(cfg.OUTPUT_DIR) / test_folder(cfg)

    def publish() -> None:
        write_results(folder, evaluation, samples, names, cfg, checkpoint)
        if not cfg.TEST.SHUFFLE_FRAMES:
            _check_classes(evaluation, samples.class_names, order)
        log_results(folder, metrics, named=names is not None, cfg=cfg)
        send_results(cfg, folder.name, metrics)

    progress()
    distributed.on_main(publish)  # no process exits earlier, because a launcher would treat that as the end of the job
    progress()
    if evaluation.bad and not cfg.TEST.SKIP_BAD:
        raise ValueError(
            f"{counted(len(evaluation.bad), 'test video')} cannot be decoded, nothing took their place; first of them:"
            f"{first_bad(evaluation.bad)}\nThe results in {folder} are over the other {metrics['num_videos']}. Repair "
            "the videos and test again, or accept that with TEST.SKIP_BAD True"
        )
    return metrics


def score(cfg: CfgNode, model: nn.Module, loader: Any, device: torch.device, description: str) -> Evaluation:
    """Return the scores of all views of a test, see `evaluate`; the loader has its list (`listed`)."""
    clips = clips_at_once(cfg, distributed.local_world_size())
    return evaluate(
        Inference(model, inference_dtype(cfg, device), clips, cfg.MODEL.COMPILE),
        loader,
        clip_mover(cfg, device, reuse=True),
        device,
        view_ensemble(cfg, len(listed(loader))),
        max_clips=clips,
        description=description,
    )


def view_ensemble(cfg: CfgNode, videos: int = 0) -> ViewEnsemble:
    """Return an empty ensemble for the views of a test of so many videos; 0 if their number is not known."""
    return ViewEnsemble(cfg.DATA.ENSEMBLE_METHOD, sums_softmax(cfg), cfg.DATA.MULTI_LABEL, videos)


def load_model(
    cfg: CfgNode, path: str, class_names: Sequence[str] | None
) -> tuple[nn.Module, ClassOrder | None, list[str] | None]:
    """Return the network with the weights of a file, the order of their classes, and the names of its outputs.

    Args:
        cfg: of the test.
        path: of the file, or its address.
        class_names: of the test list, whose order the outputs get; None keeps the order of the file.

    Raises:
        ValueError: the file is missing, or its weights are not those of this network.
    """
    checkpoint, model = load_tensors(path), build_model(cfg)
    # the order in the configuration of a training is that of the weights it started from, not of its checkpoints
    choice = "auto" if stated_classes(checkpoint).get("class_names") else cfg.MODEL.CLASS_ORDER
    with errors_name_keys(model, path):
        check_head_width(model, checkpoint, path)
        order = find_order(model, checkpoint, path, choice, cfg.TEST.DATASET, class_names)
        report = load_weights(model, checkpoint, HeadPolicy(class_names=class_names, order=order, as_trained=True))
    logger.info("weights of %s: %s", path, report)
    _check_input(checkpoint, cfg)
    return model, order, report.class_names


def _check_input(checkpoint: Mapping[str, Any], cfg: CfgNode) -> None:
    """Warn if the training, whose configuration may be recorded, had other frames, normalization or channel order."""
    if not isinstance(text := checkpoint.get("cfg"), str):
        return
    trained, known = recorded_config(text)
    for key in ("NUM_FRAMES", "MEAN", "STD"):
        if f"DATA.{key}" in known and trained.DATA[key] != cfg.DATA[key]:
            logger.warning(
                "the network was trained with DATA.%s %s, not %s: set it, unless the difference is intended",
                key, trained.DATA[key], cfg.DATA[key],
            )  # fmt: skip
    # it may be a row of a module that is not imported, or any value of another program
    if "TRAIN.DATASET" not in known or str(trained.TRAIN.DATASET) not in CATALOG:
        return
    before, now = channel_order(trained, "train"), channel_order(cfg, "test")
    if before != now:
        logger.warning(
            "the network was trained on %s clips of TRAIN.DATASET %s, and is given %s clips of TEST.DATASET %s: set "
            "DATA.REVERSE_INPUT_CHANNEL %s and, for a test, TRAIN.ENABLE False",
            before, trained.TRAIN.DATASET, now, cfg.TEST.DATASET, not cfg.DATA.REVERSE_INPUT_CHANNEL,
        )  # fmt: skip


def clips_at_once(cfg: CfgNode, local_world_size: int) -> int:
    """Return the clips in a forward pass: the views of a video, or several videos of one view.

    Rounding depends on the shape of a batch; with several views, the number of processes does not change this shape.
    """
    views = cfg.TEST.NUM_ENSEMBLE_VIEWS * cfg.TEST.NUM_SPATIAL_CROPS
    return min(views, cfg.TEST.BATCH_SIZE) if views > 1 else max(1, cfg.TEST.BATCH_SIZE // local_world_size)


def _check_classes(evaluation: Evaluation, class_names: Sequence[str] | None, order: ClassOrder | None) -> None:
    """Warn if predictions are numbered in another order than labels; lists with several labels are not checked."""
    if evaluation.label.ndim == 2:
        return
    predicted, classes = evaluation.scores.argmax(1), evaluation.scores.shape[1]
    taken_as = order.name if order else ""
    try:
        found = find_permutation(predicted, evaluation.label, classes, class_names, taken_as)
    except ImportError as error:  # of SciPy; the scores of a long test must not be lost for a warning
        logger.warning("the order of the classes is not checked: %s", error)
        return
    if found:
        logger.warning(
            "top1 is %.2f, but %.2f if each predicted class is read as another one: the classes of the weights and the "
            "labels of the list are in different orders%s. MODEL.CLASS_ORDER sets that of the weights",
            found.counted, found.matched, f"; {found.order}" if found.order else "",
        )  # fmt: skip


def find_checkpoint(cfg: CfgNode) -> str:
    """Return the path of the checkpoint to test.

    It is TEST.CHECKPOINT_FILE_PATH, else the best (TEST.TEST_BEST) or last one in OUTPUT_DIR, else
    TRAIN.CHECKPOINT_FILE_PATH.

    Raises:
        ValueError: there is none, or the best one is damaged; random weights are never tested.
    """
    if cfg.TEST.CHECKPOINT_FILE_PATH:
        return cfg.TEST.CHECKPOINT_FILE_PATH
    best = best_checkpoint(cfg.OUTPUT_DIR)
    if not best.is_file() and official_best(cfg.OUTPUT_DIR).is_file():
        best = official_best(cfg.OUTPUT_DIR)
    if cfg.TEST.TEST_BEST and best.is_file():
        if fault := damage(best):
            raise ValueError(
                f"{best} {fault}; test the last checkpoint with TEST.TEST_BEST False, or another one with "
                "TEST.CHECKPOINT_FILE_PATH"
            )
        return str(best)
    if cfg.TEST.TEST_BEST:
        logger.warning("TEST.TEST_BEST is True, but there is no %s; testing the last checkpoint", best)
    path = str(resumable_checkpoint(cfg.OUTPUT_DIR) or cfg.TRAIN.CHECKPOINT_FILE_PATH)
    if not path:
        raise ValueError(
            f"no checkpoint to test: TEST.CHECKPOINT_FILE_PATH is empty and {cfg.OUTPUT_DIR}/checkpoints holds none; "
            "give the path of one, or train first"
        )
    return path
