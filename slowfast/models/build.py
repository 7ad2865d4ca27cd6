"""Read the configuration: which backbone, with which options, started from which weights."""

from __future__ import annotations

import inspect
import logging
from collections.abc import Callable, Sequence
from typing import Any, Literal

from fvcore.common.config import CfgNode
from torch import nn

from slowfast.models.uniformer import UniFormer
from slowfast.models.uniformer_light import UniFormerLight
from slowfast.models.uniformerv2 import UniFormerV2, VisionTower, vision_tower
from slowfast.weights.heads import find_order, read_rows
from slowfast.weights.load import check_head_width, load_weights
from slowfast.weights.tensors import load_tensors

logger = logging.getLogger(__name__)


def _options(network: type[nn.Module], section: CfgNode) -> dict[str, Any]:
    """The values of a section that the network has a keyword argument for: its lower-case name."""
    known = inspect.signature(network).parameters
    return {key.lower(): value for key, value in section.items() if key.lower() in known}


def _uniformer_options(cfg: CfgNode) -> dict[str, Any]:
    if cfg.UNIFORMER.REPRESENTATION_SIZE:
        raise ValueError("UNIFORMER.REPRESENTATION_SIZE is in no released model; leave it None")
    return _options(UniFormer, cfg.UNIFORMER)


def _image_options(cfg: CfgNode) -> dict[str, Any]:
    if cfg.UNIFORMER.SPLIT or cfg.UNIFORMER.STD:
        raise ValueError("UNIFORMER.SPLIT and UNIFORMER.STD are about time, which images lack; leave them False")
    return {**_uniformer_options(cfg), "ndim": 2}


def _light_options(cfg: CfgNode) -> dict[str, Any]:
    for name in ("REPRESENTATION_SIZE", "SPLIT", "STD", "OVERLAPPED_STEM", "LAYER_SCALE", "AUX_HEAD"):
        if cfg.UNIFORMER[name]:
            raise ValueError(f"UNIFORMER.{name} is not for light networks; leave it at its default")
    return {**_options(UniFormerLight, cfg.UNIFORMER), "init_value": None}


def _light_layer_scale_options(cfg: CfgNode) -> dict[str, Any]:
    return {**_light_options(cfg), "init_value": cfg.UNIFORMER.INIT_VALUE}


def _uniformerv2_options(cfg: CfgNode) -> dict[str, Any]:
    v2 = cfg.UNIFORMERV2
    if len(v2.RETURN_LIST) != v2.N_LAYERS:
        raise ValueError(
            f"UNIFORMERV2.N_LAYERS {v2.N_LAYERS} global blocks, but UNIFORMERV2.RETURN_LIST names "
            f"{len(v2.RETURN_LIST)} blocks to read from; they have to be as many"
        )
    tower = VisionTower(*v2.TOWER) if v2.BACKBONE == "custom" else vision_tower(v2.BACKBONE)
    if tower.width != v2.N_DIM:
        raise ValueError(f"UNIFORMERV2.N_DIM {v2.N_DIM} has to be the width of the image ViT, {tower.width}")
    return {**_options(UniFormerV2, v2), "backbone": tower}


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


# Initial weights of the image ViT of a UniFormerV2; names of slowfast/weights/manifest.json.
CLIP_WEIGHTS = {
    "uniformerv2_b16": "clip_vit_b16",
    "uniformerv2_l14": "clip_vit_l14",
    "uniformerv2_l14_336": "clip_vit_l14_336",
}


def build_model(cfg: CfgNode) -> nn.Module:
    """Return the network of the configuration with its initial values, unwrapped and on the CPU.

    Raises:
        ValueError: an unknown MODEL.MODEL_NAME, or options that exclude each other.
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

    As in the official code, a UniFormerV2 on a tower of CLIP starts from CLIP by default, and PRETRAIN_NAME and
    UNIFORMERV2.DELETE_SPECIAL_HEAD drop a classifier with another number of classes. The rows of a released classifier
    are put into the order of the list's classes (MODEL.CLASS_ORDER); from Kinetics-710, those of 400, 600 and 700
    classes are selected. Any other checkpoint is loaded whole. MODEL.RESET_HEAD starts new classifiers in any case.
    MODEL.HEAD_ROWS selects rows of the classifier instead; if they are found by names, classes that the checkpoint does
    not have keep their initial value.

    Args:
        class_names: of the training list, for MODEL.HEAD_ROWS and MODEL.CLASS_ORDER.

    Raises:
        ValueError: the file is missing, or its weights are not those of this model.
    """
    path, head_rows = cfg.TRAIN.CHECKPOINT_FILE_PATH, cfg.MODEL.HEAD_ROWS or None
    official = not path  # the rules of the official loaders
    reset_head: bool | Literal["mismatch"] = cfg.MODEL.RESET_HEAD
    if official and cfg.MODEL.ARCH == "uniformerv2":
        path = cfg.UNIFORMERV2.PRETRAIN or CLIP_WEIGHTS.get(cfg.UNIFORMERV2.BACKBONE, "")
        reset_head = reset_head or ("mismatch" if cfg.UNIFORMERV2.DELETE_SPECIAL_HEAD else False)
        if cfg.UNIFORMERV2.FROZEN and not path:
            raise ValueError(
                f"UNIFORMERV2.FROZEN True would keep the image ViT {cfg.UNIFORMERV2.BACKBONE} at random values; give "
                "its weights in UNIFORMERV2.PRETRAIN or TRAIN.CHECKPOINT_FILE_PATH"
            )
    elif official:
        path, reset_head = cfg.UNIFORMER.PRETRAIN_NAME, reset_head or "mismatch"
    if not path:
        return
    checkpoint = load_tensors(path)
    check_head_width(model, checkpoint, path)
    trained_names = None
    if head_rows not in (None, "names"):
        head_rows, trained_names = read_rows(head_rows)
    report = load_weights(
        model,
        checkpoint,
        reset_head=reset_head,
        to_train=True,
        head_rows=head_rows,
        class_names=class_names,
        trained_names=trained_names,
        order=find_order(model, checkpoint, path, cfg.MODEL.CLASS_ORDER, cfg.TRAIN.DATASET, class_names),
    )
    logger.info("initial weights from %s: %s", path, report)


def sums_softmax(cfg: CfgNode) -> bool:
    """Whether the views of a test add up class probabilities (UniFormerV2) or raw logits (UniFormer)."""
    if cfg.TEST.ADD_SOFTMAX is not None:
        return cfg.TEST.ADD_SOFTMAX
    return cfg.MODEL.ARCH == "uniformerv2"
