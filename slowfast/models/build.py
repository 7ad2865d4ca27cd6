"""Read the configuration: which backbone, with which options, started from which weights."""

from __future__ import annotations

import logging
from collections.abc import Callable, Sequence
from typing import Any

from fvcore.common.config import CfgNode
from torch import nn

from slowfast.models.uniformer import UniFormer
from slowfast.models.uniformer_light import UniFormerLight
from slowfast.models.uniformerv2 import UniFormerV2, VisionTower, vision_tower
from slowfast.models.weights import has_classifier, load_weights, read_rows
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
        "overlapped_stem": options.OVERLAPPED_STEM,
        "layer_scale": [scale or None for scale in options.LAYER_SCALE] or None,
        "aux_head": options.AUX_HEAD,
    }


def _image_options(cfg: CfgNode) -> dict[str, Any]:
    if cfg.UNIFORMER.SPLIT or cfg.UNIFORMER.STD:
        raise ValueError("UNIFORMER.SPLIT and UNIFORMER.STD are about time, which images lack; leave them False")
    return {**_uniformer_options(cfg), "ndim": 2}


def _light_options(cfg: CfgNode) -> dict[str, Any]:
    options = _uniformer_options(cfg)
    for name in ("split", "std", "overlapped_stem", "layer_scale", "aux_head"):
        if options.pop(name):
            raise ValueError(f"UNIFORMER.{name.upper()} is not for light networks; leave it at its default")
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
    tower = VisionTower(*v2.TOWER) if v2.BACKBONE == "custom" else vision_tower(v2.BACKBONE)
    if tower.width != v2.N_DIM:
        raise ValueError(f"UNIFORMERV2.N_DIM {v2.N_DIM} has to be the width of the image ViT, {tower.width}")
    return {name.lower(): v2[name] for name in names} | {"backbone": tower}


# A new backbone is a row: MODEL.MODEL_NAME -> class, and the keyword arguments its config section stands for.
MODELS: dict[str, tuple[type[nn.Module], Callable[[CfgNode], dict[str, Any]]]] = {
    "Uniformer": (UniFormer, _uniformer_options),
    "Uniformer_image": (UniFormer, _image_options),
    "Uniformer_light": (UniFormerLight, _light_options),
    "Uniformer_light_image": (UniFormerLight, lambda cfg: {**_light_options(cfg), "ndim": 2}),
    "Uniformer_light_fp32": (UniFormerLight, _light_options),
    "Uniformer_light_ls_fp32": (UniFormerLight, _light_layer_scale_options),
    "Uniformerv2": (UniFormerV2, _uniformerv2_options),
}


# What the image ViT of a UniFormerV2 starts from; names of pretrained/manifest.json.
CLIP_WEIGHTS = {
    "uniformerv2_b16": "clip_vit_b16",
    "uniformerv2_l14": "clip_vit_l14",
    "uniformerv2_l14_336": "clip_vit_l14_336",
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


def input_shape(cfg: CfgNode) -> tuple[int, ...]:
    """Shape of what the network of the configuration takes in a test, (C, T, H, W), or (C, H, W) for images."""
    size, channels = cfg.DATA.TEST_CROP_SIZE, cfg.DATA.INPUT_CHANNEL_NUM[0]
    is_image = MODELS[cfg.MODEL.MODEL_NAME][1](cfg).get("ndim") == 2
    return (channels, size, size) if is_image else (channels, cfg.DATA.NUM_FRAMES, size, size)


def initialize(model: nn.Module, cfg: CfgNode, class_names: Sequence[str] | None = None) -> None:
    """Start `model` from TRAIN.CHECKPOINT_FILE_PATH, UNIFORMER.PRETRAIN_NAME or UNIFORMERV2.PRETRAIN, if one is set.

    As officially, a UniFormerV2 on a tower of CLIP starts from CLIP when nothing else is named, and PRETRAIN_NAME
    leaves a classifier of another class count out; any other checkpoint is taken whole unless MODEL.RESET_HEAD, or
    UNIFORMERV2.DELETE_SPECIAL_HEAD, says so. MODEL.HEAD_ROWS picks rows of the classifier instead; found by names,
    those of classes that the checkpoint does not have keep their initial value.

    Args:
        class_names: of the training list, for MODEL.HEAD_ROWS names.

    Raises:
        ValueError: the file is missing, or its weights are not those of this model.
    """
    path, reset_head, rows = cfg.TRAIN.CHECKPOINT_FILE_PATH, cfg.MODEL.RESET_HEAD, cfg.MODEL.HEAD_ROWS
    head_rows = "names" if rows == "names" else (read_rows(rows) if rows else None)
    first_classes = False
    if not path and cfg.MODEL.ARCH == "uniformerv2":
        path = cfg.UNIFORMERV2.PRETRAIN
        reset_head = reset_head or cfg.UNIFORMERV2.DELETE_SPECIAL_HEAD
        first_classes = bool(path) and not reset_head and head_rows is None and cfg.MODEL.NUM_CLASSES == 400
        path = path or CLIP_WEIGHTS.get(cfg.UNIFORMERV2.BACKBONE, "")
        if cfg.UNIFORMERV2.FROZEN and not path:
            raise ValueError(
                f"UNIFORMERV2.FROZEN True would keep the image ViT {cfg.UNIFORMERV2.BACKBONE} at random values; give "
                "its weights in UNIFORMERV2.PRETRAIN or TRAIN.CHECKPOINT_FILE_PATH"
            )
    elif not path:
        path, reset_head = cfg.UNIFORMER.PRETRAIN_NAME, True
    if path:
        checkpoint = load_tensors(path)
        if first_classes and has_classifier(model, checkpoint):
            head_rows = range(400)  # the first classes of Kinetics-710 are those of Kinetics-400
        report = load_weights(
            model,
            checkpoint,
            reset_head=reset_head,
            to_train=True,
            head_rows=head_rows,
            class_names=class_names,
        )
        logger.info("initial weights from %s: %s", path, report)


def sums_softmax(cfg: CfgNode) -> bool:
    """Whether the views of a test add up class probabilities (UniFormerV2) or raw logits (UniFormer)."""
    if cfg.TEST.ADD_SOFTMAX is not None:
        return cfg.TEST.ADD_SOFTMAX
    return cfg.MODEL.ARCH == "uniformerv2"
