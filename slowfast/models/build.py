"""Build the network of a configuration, and initialize it with weights."""

from __future__ import annotations

import inspect
import logging
import re
from ast import literal_eval
from collections.abc import Callable, Generator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field, replace
from typing import Any

from fvcore.common.config import CfgNode
from torch import nn

from slowfast.models.image_vit import vision_tower
from slowfast.models.options import check_options, parameters_of
from slowfast.models.timm_tower import VisionTower
from slowfast.models.uniformer import UniFormer
from slowfast.models.uniformer_light import UniFormerLight
from slowfast.models.uniformerv2 import UniFormerV2
from slowfast.utils.tables import check_call
from slowfast.weights.heads import HeadKind, HeadPolicy, rows_policy
from slowfast.weights.load import check_head_width, load_weights
from slowfast.weights.network import rules_of
from slowfast.weights.released import find_order
from slowfast.weights.tensors import load_tensors

logger = logging.getLogger(__name__)


@dataclass(frozen=True)
class Family:
    """Rules that apply to all networks of one paper.

    Args:
        section: section of the configuration whose lower-case keys are keyword arguments of the networks; "" for
            networks that take MODEL.OPTIONS.
        sums_softmax: add up class probabilities over the views of a test; False adds up logits.
        options: cfg -> keyword arguments that are not plain values of the section; it also checks the section.
        start: cfg -> name or address of the initial weights ("" for none), and the rule for their classifier.
    """

    section: str = ""
    sums_softmax: bool = False
    options: Callable[[CfgNode], Mapping[str, Any]] = lambda cfg: {}
    start: Callable[[CfgNode], tuple[str, HeadKind]] = lambda cfg: ("", "keep")


@dataclass(frozen=True)
class Row:
    """A value of MODEL.MODEL_NAME.

    Args:
        network: the class; it takes `num_classes`, `in_channels` and the options of the family, see
            `slowfast.models.backbone`.
        family: the family of the network.
        is_image: whether it takes (B, C, H, W) instead of (B, C, T, H, W).
        fixed: keyword arguments that override those of the family.

    Raises:
        TypeError: `network` is a network, not its class.
    """

    network: Callable[..., nn.Module]
    family: Family = Family()
    is_image: bool = False
    fixed: Mapping[str, Any] = field(default_factory=dict)

    def __post_init__(self) -> None:
        """Refuse a network that exists already, because its options are those of the configuration."""
        if isinstance(self.network, nn.Module):
            name = type(self.network).__name__
            raise TypeError(f"Row({name}(...)) has a network: give its class, Row({name})")


def _start_of_uniformerv2(cfg: CfgNode) -> tuple[str, HeadKind]:
    v2 = cfg.UNIFORMERV2
    path = v2.PRETRAIN or CLIP_WEIGHTS.get(v2.BACKBONE, "")
    if v2.FROZEN and not path:
        raise ValueError(
            f"UNIFORMERV2.FROZEN True would keep the image ViT {v2.BACKBONE} at random values: give its weights in "
            "UNIFORMERV2.PRETRAIN or TRAIN.CHECKPOINT_FILE_PATH"
        )
    return path, "fresh if mismatched" if v2.DELETE_SPECIAL_HEAD else "keep"


def _uniformerv2_options(cfg: CfgNode) -> Mapping[str, Any]:
    v2 = cfg.UNIFORMERV2
    if len(v2.RETURN_LIST) != v2.N_LAYERS:
        raise ValueError(
            f"UNIFORMERV2.N_LAYERS {v2.N_LAYERS} is not the number of blocks in UNIFORMERV2.RETURN_LIST "
            f"{v2.RETURN_LIST}: set it to {len(v2.RETURN_LIST)}"
        )
    tower = VisionTower(*v2.TOWER) if v2.BACKBONE == "custom" else vision_tower(v2.BACKBONE)
    if tower.width != v2.N_DIM:
        raise ValueError(f"UNIFORMERV2.N_DIM {v2.N_DIM} is not the width of the image ViT: set it to {tower.width}")
    return {"backbone": tower}


# Initial weights of the image ViT of a UniFormerV2; names of slowfast/weights/released.json.
CLIP_WEIGHTS = {
    "uniformerv2_b16": "clip_vit_b16",
    "uniformerv2_l14": "clip_vit_l14",
    "uniformerv2_l14_336": "clip_vit_l14_336",
}
UNIFORMER = Family("UNIFORMER", start=lambda cfg: (cfg.UNIFORMER.PRETRAIN_NAME, "fresh if mismatched"))
UNIFORMERV2 = Family("UNIFORMERV2", True, _uniformerv2_options, _start_of_uniformerv2)

# Add a row for a new backbone; names of networks for images end in _image.
MODELS: dict[str, Row] = {
    "Uniformer": Row(UniFormer, UNIFORMER),
    "Uniformer_image": Row(UniFormer, UNIFORMER, is_image=True),
    "Uniformer_light": Row(UniFormerLight, UNIFORMER, fixed={"init_value": None}),
    "Uniformer_light_image": Row(UniFormerLight, UNIFORMER, is_image=True, fixed={"init_value": None}),
    "Uniformer_light_fp32": Row(UniFormerLight, UNIFORMER, fixed={"init_value": None}),
    "Uniformer_light_ls_fp32": Row(UniFormerLight, UNIFORMER),
    "Uniformerv2": Row(UniFormerV2, UNIFORMERV2),
}
# Keys that only some networks of their section have; unset by default.
OPTIONAL = ("REPRESENTATION_SIZE", "SPLIT", "STD", "OVERLAPPED_STEM", "LAYER_SCALE", "AUX_HEAD")


def model_row(cfg: CfgNode) -> Row:
    """Return the row of MODEL.MODEL_NAME.

    Raises:
        ValueError: the name is unknown, or a user has added something else than a row.
    """
    name = cfg.MODEL.MODEL_NAME
    if name not in MODELS:
        raise ValueError(
            f"MODEL.MODEL_NAME {name!r} is not known: choose from {sorted(MODELS)}, or name the module that "
            "adds it in SLOWFAST_IMPORT"
        )
    row: Any = MODELS[name]  # a user may have forgotten to make a Row
    if not isinstance(row, Row):
        shown = getattr(row, "__name__", type(row).__name__)
        raise ValueError(f"MODELS[{name!r}] is {shown}, not a row: write MODELS[{name!r}] = Row({shown})")
    return row


def _options(cfg: CfgNode, row: Row) -> dict[str, Any]:
    """Return the keyword arguments of the network other than `num_classes` and `in_channels`.

    Raises:
        ValueError: the network does not have an option.
    """
    name, section = cfg.MODEL.MODEL_NAME, row.family.section
    known = parameters_of(row.network)
    given = dict(item.partition("=")[::2] for item in cfg.MODEL.OPTIONS)
    options = {option: _literal(text) for option, text in given.items()}
    keys = {key.lower(): f"{section}.{key}" for key in (cfg[section] if section else ()) if key.lower() in known}
    for option, key in {**keys, "in_channels": "DATA.INPUT_CHANNEL_NUM"}.items():
        if option in options:
            raise ValueError(f"MODEL.OPTIONS {option} has a key of its own: use {key}")
    check_options(f"MODEL.OPTIONS: {name}", row.network, options)
    options |= {option: cfg[section][key.rpartition(".")[2]] for option, key in keys.items()}
    for key in OPTIONAL:
        if section and cfg[section].get(key) and key.lower() not in known:
            raise ValueError(f"{section}.{key} {cfg[section][key]} is not for {name}: remove it")
    fixed = {"ndim": 2} if row.is_image and "ndim" in known else {}
    fixed |= {**row.family.options(cfg), **row.fixed}
    for option in given.keys() & fixed.keys():
        raise ValueError(f"MODEL.OPTIONS {option}={given[option]}: it is {fixed[option]} in every {name}: remove it")
    return options | fixed


def _literal(text: str) -> Any:
    """Return the Python value that `text` spells, or `text` itself."""
    try:
        return literal_eval(text)
    except (ValueError, SyntaxError):
        return text


def build_model(cfg: CfgNode) -> nn.Module:
    """Return the network of the configuration with its initial values, unwrapped and on the CPU.

    Raises:
        ValueError: MODEL.MODEL_NAME is unknown, the network does not have an option, or options exclude each other.
    """
    row = model_row(cfg)
    sizes = {"num_classes": cfg.MODEL.NUM_CLASSES, "in_channels": cfg.DATA.INPUT_CHANNEL_NUM[0]}
    options = sizes | _options(cfg, row)
    cure = "a network must take num_classes and in_channels, and its other arguments need a default or a value in "
    check_call(row.network, f"MODEL.MODEL_NAME {cfg.MODEL.MODEL_NAME}", f"{cure}MODEL.OPTIONS", **options)
    try:
        model = row.network(**options)
    except ValueError as error:
        raise ValueError(f"{cfg.MODEL.MODEL_NAME}: {error} (see {row.family.section or 'MODEL.OPTIONS'})") from error
    _check_heads(model, cfg)
    if cfg.MODEL.USE_CHECKPOINT:
        _set_checkpointing(model, cfg)
    return model


def _check_heads(model: nn.Module, cfg: CfgNode) -> None:
    """Refuse a network, perhaps of a user, whose classifier is not found where a key or `head_names` expects it."""
    heads, modules = getattr(model, "head_names", ("head",)), dict(model.named_modules())
    wanted = hasattr(model, "head_names") or cfg.MODEL.RESET_HEAD or cfg.SOLVER.BACKBONE_LR_RATIO != 1
    if wanted and (isinstance(heads, str) or not all(head in modules for head in heads)):
        raise ValueError(
            f"MODEL.MODEL_NAME {cfg.MODEL.MODEL_NAME}: head_names {heads!r} does not name its classifiers: set the "
            'attribute to a tuple of names of its layers, such as ("head",)'
        )


def _set_checkpointing(model: Any, cfg: CfgNode) -> None:
    """Recompute the activations of the blocks that the configuration names.

    Raises:
        ValueError: the network cannot do it.
    """
    name, keep = cfg.MODEL.MODEL_NAME, cfg.MODEL.CHECKPOINT_KEEP
    if not hasattr(model, "set_grad_checkpointing"):
        raise ValueError(f"MODEL.USE_CHECKPOINT True is not for {name}: set it to False")
    if keep == "nothing":
        model.set_grad_checkpointing(cfg.MODEL.CHECKPOINT_NUM)
    elif "keep" in inspect.signature(model.set_grad_checkpointing).parameters:
        model.set_grad_checkpointing(cfg.MODEL.CHECKPOINT_NUM, keep=keep)
    else:
        raise ValueError(f"MODEL.CHECKPOINT_KEEP {keep} is not for {name}: set it to nothing")


def input_shape(cfg: CfgNode) -> tuple[int, ...]:
    """Return the shape of the input of the network in a test: (C, T, H, W), or (C, H, W) for images."""
    size, channels = cfg.DATA.TEST_CROP_SIZE, cfg.DATA.INPUT_CHANNEL_NUM[0]
    return (channels, size, size) if model_row(cfg).is_image else (channels, cfg.DATA.NUM_FRAMES, size, size)


def initialize(model: nn.Module, cfg: CfgNode, class_names: Sequence[str] | None = None) -> None:
    """Load TRAIN.CHECKPOINT_FILE_PATH into `model`, or else the initial weights of its family, if it has any.

    As in the official code, a UniFormerV2 on an image ViT of CLIP starts from CLIP by default, and
    UNIFORMER.PRETRAIN_NAME and UNIFORMERV2.DELETE_SPECIAL_HEAD drop a classifier with another number of classes. The
    rows of a released classifier are put into the order of the classes of the list (MODEL.CLASS_ORDER); of a classifier
    of Kinetics-710, the rows of 400, 600 or 700 classes are selected. Any other checkpoint is loaded unchanged.
    MODEL.RESET_HEAD always starts new classifiers. MODEL.HEAD_ROWS selects rows of the classifier instead; if they are
    selected by class names, classes that the checkpoint lacks keep their initial values.

    Args:
        model: the network, with its initial values.
        cfg: the configuration.
        class_names: class names of the training list, for MODEL.HEAD_ROWS and MODEL.CLASS_ORDER.

    Raises:
        ValueError: the file is missing, or its weights do not fit this model.
    """
    path, kind = cfg.TRAIN.CHECKPOINT_FILE_PATH, "keep"
    if not path:
        path, kind = model_row(cfg).family.start(cfg)
    if not path:
        return
    checkpoint = load_tensors(path)
    with errors_name_keys(model, path):
        check_head_width(model, checkpoint, path)
        order = find_order(model, checkpoint, path, cfg.MODEL.CLASS_ORDER, cfg.TRAIN.DATASET, class_names)
        if cfg.MODEL.HEAD_ROWS:
            head = rows_policy(cfg.MODEL.HEAD_ROWS, checkpoint, order, class_names)
            head = replace(head, allow_missing=kind == "fresh if mismatched")
        else:
            head = HeadPolicy("fresh" if cfg.MODEL.RESET_HEAD else kind, class_names, order)
        report = load_weights(model, checkpoint, head, to_train=True)
    logger.info("initial weights from %s: %s", path, report)


@contextmanager
def errors_name_keys(model: nn.Module, path: str) -> Generator[None, None, None]:
    """Add the file to errors about weights, and replace names of arguments by configuration keys."""
    try:
        yield
    except ValueError as error:
        text, rules = str(error), rules_of(model)
        for name in ("num_classes", "reset_head", "head_rows", "class_order"):
            text = re.sub(rf"\b{name}\b", f"MODEL.{name.upper()}", text)
        for name in rules.options:
            text = re.sub(rf"\b{name}\b", f"{rules.section}.{name.upper()}", text)
        raise ValueError(f"{path}: {text}") from error


def sums_softmax(cfg: CfgNode) -> bool:
    """Return whether a test adds up softmax scores over the views of a video, not logits or sigmoids."""
    softmax = model_row(cfg).family.sums_softmax if cfg.TEST.ADD_SOFTMAX is None else cfg.TEST.ADD_SOFTMAX
    return softmax and not cfg.DATA.MULTI_LABEL
