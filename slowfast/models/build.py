"""Read the configuration: which backbone, with which options, started from which weights."""

from __future__ import annotations

import logging
from collections.abc import Callable, Sequence
from typing import Any

from fvcore.common.config import CfgNode
from torch import nn

from slowfast.models.uniformer import UniFormer
from slowfast.models.uniformer_light import UniFormerLight
from slowfast.models.uniformerv2 import UniFormerV2, VisionTower
from slowfast.models.weights import load_weights, read_rows
from slowfast.utils.io import load_tensors

logger = logging.getLogger(__name__)


def _uniformer_options(cfg: CfgNode) -> dict[str, Any]:
    options = cfg.UNIFORMER
    if options.REPRESENTATION_SIZE:
        raise ValueError("UNIFORMER.REPRESENTATION_SIZE is in no released model; leave it None")
    return {
        "depth": options.DEPTH,
        "embed_dim": options.EMBED_DIM,
        "head_dim": options.HEAD_DIM,
        "mlp_ratio": options.MLP_RATIO,
        "qkv_bias": options.QKV_BIAS,
        "qk_scale": options.QKV_SCALE,
        "dropout": options.DROPOUT_RATE,
        "attention_dropout": options.ATTENTION_DROPOUT_RATE,
        "drop_path": options.DROP_DEPTH_RATE,
        "head_dropout": options.HEAD_DROPOUT_RATE,
        "split": options.SPLIT,
        "std": options.STD,
    }


def _light_options(cfg: CfgNode) -> dict[str, Any]:
    options = _uniformer_options(cfg)
    if options.pop("split") or options.pop("std"):
        raise ValueError("UNIFORMER.SPLIT and UNIFORMER.STD are not for light networks; leave them False")
    return {**options, "prune_ratio": cfg.UNIFORMER.PRUNE_RATIO, "trade_off": cfg.UNIFORMER.TRADE_OFF}


def _light_layer_scale_options(cfg: CfgNode) -> dict[str, Any]:
    return {**_light_options(cfg), "layer_scale": cfg.UNIFORMER.INIT_VALUE}


def _uniformerv2_options(cfg: CfgNode) -> dict[str, Any]:
    v2 = cfg.UNIFORMERV2
    names = (
        *("BACKBONE", "RETURN_LIST", "N_HEAD", "MLP_FACTOR", "MLP_DROPOUT", "CLS_DROPOUT", "BACKBONE_DROP_PATH_RATE"),
        *("DROP_PATH_RATE", "NO_LMHRA", "DOUBLE_LMHRA", "DW_REDUCTION", "TEMPORAL_DOWNSAMPLE", "FROZEN"),
    )
    if len(v2.RETURN_LIST) != v2.N_LAYERS:
        raise ValueError(
            f"UNIFORMERV2.N_LAYERS {v2.N_LAYERS} global blocks, but UNIFORMERV2.RETURN_LIST names "
            f"{len(v2.RETURN_LIST)} blocks to read from; they have to be as many"
        )
    chosen = {name.lower(): v2[name] for name in names}
    if v2.BACKBONE == "custom":
        chosen["backbone"] = VisionTower(*v2.TOWER)
    return chosen


# A new backbone is a row: MODEL.MODEL_NAME -> class, and the keyword arguments its config section stands for.
MODELS: dict[str, tuple[type[nn.Module], Callable[[CfgNode], dict[str, Any]]]] = {
    "Uniformer": (UniFormer, _uniformer_options),
    "Uniformer_light": (UniFormerLight, _light_options),
    "Uniformer_light_fp32": (UniFormerLight, _light_options),
    "Uniformer_light_ls_fp32": (UniFormerLight, _light_layer_scale_options),
    "Uniformerv2": (UniFormerV2, _uniformerv2_options),
}


def build_model(cfg: CfgNode) -> nn.Module:
    """The network of the configuration with its initial values, unwrapped and on the CPU.

    Raises:
        ValueError: an unknown MODEL.MODEL_NAME or options that do not go together.
    """
    if cfg.MODEL.MODEL_NAME not in MODELS:
        raise ValueError(f"MODEL.MODEL_NAME {cfg.MODEL.MODEL_NAME!r} is not known; choose from {sorted(MODELS)}")
    network, options = MODELS[cfg.MODEL.MODEL_NAME]
    channels = cfg.DATA.INPUT_CHANNEL_NUM
    model = network(
        num_classes=cfg.MODEL.NUM_CLASSES,
        in_channels=channels[0] if isinstance(channels, (list, tuple)) else channels,
        **options(cfg),
    )
    if cfg.MODEL.USE_CHECKPOINT:
        model.set_grad_checkpointing(cfg.MODEL.CHECKPOINT_NUM)  # pyright: ignore[reportCallIssue]
    return model


def initialize(model: nn.Module, cfg: CfgNode, class_names: Sequence[str] | None = None) -> None:
    """Start `model` from TRAIN.CHECKPOINT_FILE_PATH, UNIFORMER.PRETRAIN_NAME or UNIFORMERV2.PRETRAIN, if one is set.

    Pre-trained weights are there to be fine-tuned, so a classifier of another class count is left out, as officially; a
    checkpoint is taken whole unless MODEL.RESET_HEAD. MODEL.HEAD_ROWS picks rows of the classifier instead.

    Args:
        class_names: of the training list, for MODEL.HEAD_ROWS names.

    Raises:
        ValueError: the file is missing, or its weights are not those of this model.
    """
    name = cfg.UNIFORMERV2.PRETRAIN if cfg.MODEL.ARCH == "uniformerv2" else cfg.UNIFORMER.PRETRAIN_NAME
    path = cfg.TRAIN.CHECKPOINT_FILE_PATH or name
    if not path:
        return
    rows = cfg.MODEL.HEAD_ROWS
    report = load_weights(
        model,
        load_tensors(path),
        reset_head=cfg.MODEL.RESET_HEAD or not cfg.TRAIN.CHECKPOINT_FILE_PATH,
        to_train=True,
        head_rows="names" if rows == "names" else (read_rows(rows) if rows else None),
        class_names=class_names,
    )
    logger.info("initial weights from %s: %s", path, report)


def sums_softmax(cfg: CfgNode) -> bool:
    """Whether the views of a test add up class probabilities (UniFormerV2) or raw logits (UniFormer)."""
    if cfg.TEST.ADD_SOFTMAX is not None:
        return cfg.TEST.ADD_SOFTMAX
    return cfg.MODEL.ARCH == "uniformerv2"
