"""Read the configuration: which backbone, with which options, started from which weights."""

from __future__ import annotations

import logging
from collections.abc import Callable
from pathlib import Path
from typing import Any

from fvcore.common.config import CfgNode
from torch import nn

from slowfast.models.uniformer import UniFormer
from slowfast.models.weights import load_weights
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


# A new backbone is a row: MODEL.MODEL_NAME -> class, and the keyword arguments its config section stands for.
MODELS: dict[str, tuple[type[nn.Module], Callable[[CfgNode], dict[str, Any]]]] = {
    "Uniformer": (UniFormer, _uniformer_options),
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


def initialize(model: nn.Module, cfg: CfgNode) -> None:
    """Start `model` from TRAIN.CHECKPOINT_FILE_PATH, or from UNIFORMER.PRETRAIN_NAME, if one is set.

    Pre-trained weights are there to be fine-tuned, so a classifier of another class count is left out, as officially; a
    checkpoint is taken whole unless MODEL.RESET_HEAD.

    Raises:
        ValueError: the file is missing, or its weights are not those of this model.
    """
    path = cfg.TRAIN.CHECKPOINT_FILE_PATH or pretrained_path(cfg.UNIFORMER.PRETRAIN_NAME)
    if path:
        reset_head = cfg.MODEL.RESET_HEAD or not cfg.TRAIN.CHECKPOINT_FILE_PATH
        report = load_weights(model, load_tensors(path), reset_head=reset_head, to_train=True)
        logger.info("initial weights from %s: %s", path, report)


def pretrained_path(name: str) -> str:
    """The file a pre-trained weight name stands for: the path itself, or pretrained/<name>.pth."""
    if not name or Path(name).suffix in (".pth", ".pyth", ".pt"):
        return name
    path = Path("pretrained") / f"{name}.pth"
    if not path.is_file():
        raise ValueError(
            f"UNIFORMER.PRETRAIN_NAME {name!r} needs {path}; download the released file and put it there, "
            "give a path that ends in .pth, or leave the name empty to train from scratch"
        )
    return str(path)


def sums_softmax(cfg: CfgNode) -> bool:
    """Whether the views of a test add up class probabilities (UniFormerV2) or raw logits (UniFormer)."""
    if cfg.TEST.ADD_SOFTMAX is not None:
        return cfg.TEST.ADD_SOFTMAX
    return cfg.MODEL.ARCH == "uniformerv2"
