"""Create models by name, without a configuration file."""

from __future__ import annotations

import inspect
import os
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from fnmatch import fnmatch
from typing import Any

from slowfast.models.backbone import feature_getter
from slowfast.models.options import check_options
from slowfast.models.uniformer import UniFormer
from slowfast.models.uniformer_light import UniFormerLight
from slowfast.models.uniformerv2 import UniFormerV2
from slowfast.utils.class_names import kinetics400_names
from slowfast.utils.tables import close_to
from slowfast.weights.class_order import ClassOrder, rows_of_places
from slowfast.weights.heads import HeadPolicy, state_classes
from slowfast.weights.layouts import extract_state_dict
from slowfast.weights.load import announce, load_weights
from slowfast.weights.released import find_order, identify
from slowfast.weights.tensors import load_tensors

Network = UniFormer | UniFormerLight | UniFormerV2


@dataclass(frozen=True)
class Variant:
    """A row of the zoo.

    Args:
        network: the class.
        start: name of the released image weights from which its recipes start; for an image model, its own weights.
        size: height and width in pixels of the input for which it is made.
        num_classes: default number of outputs.
        options: keyword arguments of the class that differ from its defaults.
    """

    network: type[Network]
    start: str
    size: int = 224
    num_classes: int = 400
    options: dict[str, Any] = field(default_factory=dict)


def _image(start: str, options: dict[str, Any], size: int = 224, network: type[Network] = UniFormer) -> Variant:
    return Variant(network, start, size, num_classes=1000, options={"ndim": 2, **options})


_BASE = {"depth": (5, 8, 20, 7)}
_SMALL_PLUS = {"depth": (3, 5, 9, 3), "overlapped_stem": True}
_SAME_SHAPES = (
    "the weights of uniformer_image_s_plus (heads of 32 channels) and uniformer_image_s_plus_dim64 have the same "
    "shapes, so a wrong choice is not detected; a much too low accuracy indicates one"
)
_XS = {
    "depth": (3, 5, 9, 3),
    "embed_dim": (64, 128, 256, 512),
    "head_dim": 32,
    "prune_ratio": ((), (), (1, *[0.5] * 8), (0.5, 0.5, 0.5)),
    "trade_off": ((), (), (1, *[0.5] * 8), (0.5, 0.5, 0.5)),
}
_LARGE_LS = {
    **{"depth": (5, 10, 24, 7), "embed_dim": (128, 192, 448, 640), "head_dim": 64},
    **{"layer_scale": 1e-6, "aux_head": True},
}
# UniFormerV2 as on Kinetics: no local blocks, no temporal downsampling, global blocks on the last four blocks
_V2 = {"no_lmhra": True, "temporal_downsample": False}
_V2_LARGE = {**_V2, "n_head": 16, "return_list": (20, 21, 22, 23)}

VARIANTS: dict[str, Variant] = {
    "uniformer_xxs": Variant(UniFormerLight, "uniformer_xxs_128_in1k", 128),
    "uniformer_xs": Variant(UniFormerLight, "uniformer_xs_192_in1k", 192, options=_XS),
    "uniformer_s": Variant(UniFormer, "uniformer_small_in1k"),
    "uniformer_b": Variant(UniFormer, "uniformer_base_in1k", options=_BASE),
    "uniformerv2_b16": Variant(UniFormerV2, "clip_vit_b16", options={"backbone": "uniformerv2_b16", **_V2}),
    "uniformerv2_l14": Variant(UniFormerV2, "clip_vit_l14", options={"backbone": "uniformerv2_l14", **_V2_LARGE}),
    "uniformerv2_l14_336": Variant(
        UniFormerV2, "clip_vit_l14_336", 336, options={"backbone": "uniformerv2_l14_336", **_V2_LARGE}
    ),
    "uniformer_image_xxs": _image("uniformer_xxs_128_in1k", {}, 128, UniFormerLight),
    "uniformer_image_xs": _image("uniformer_xs_192_in1k", _XS, 192, UniFormerLight),
    "uniformer_image_s": _image("uniformer_small_in1k", {}),
    "uniformer_image_s_plus": _image("uniformer_small_plus_in1k", {"head_dim": 32, **_SMALL_PLUS}),
    "uniformer_image_s_plus_dim64": _image("uniformer_small_plus_in1k_2", {"head_dim": 64, **_SMALL_PLUS}),
    "uniformer_image_b": _image("uniformer_base_in1k", _BASE),
    "uniformer_image_b_ls": _image("uniformer_base_ls_in1k", {"layer_scale": (None, None, 1e-6, 1e-6), **_BASE}),
    "uniformer_image_l_ls": _image("uniformer_large_ls_in1k_token_labeling", _LARGE_LS),
}


def list_models(pattern: str = "*") -> list[str]:
    """Return the names for `create_model` that match a shell pattern, for example "uniformerv2*"."""
    return sorted(name for name in VARIANTS if fnmatch(name, pattern))


def create_model(
    name: str,
    num_frames: int = 16,
    num_classes: int | None = None,
    weights: str | os.PathLike[str] | None = None,
    *,
    features_only: bool = False,
    out_indices: int | Sequence[int] = 4,
    reset_head: bool = False,
    to_train: bool = False,
    class_names: Sequence[str] | None = None,
    class_order: str = "auto",
    **options: Any,
) -> Network:
    """Return a model on the CPU, in training mode: (B, 3, T, H, W) -> logits (B, K); image models take (B, 3, H, W).

    Args:
        name: see `list_models`. uniformer_image_s_plus and uniformer_image_s_plus_dim64 differ in the channels of an
            attention head only, which the shapes of weights do not show: each accepts the weights of the other.
        num_frames: T of the clips; it only sets `model.input_shape`, because the networks accept any T.
        num_classes: K; None is 400, for image models 1000; 0 returns features without a classifier, also for
            `weights` that have one.
        weights: path or address of a file in any known layout (`slowfast.weights.layouts`), a name in
            `slowfast/weights/released.json`, or "start": the image weights that the recipes start from, as if with
            `to_train`, and without their classifier if it has another class count. None leaves the initial values.
        features_only: return timm's `FeatureGetterNet`, which gives a list of feature maps (B, C', T', H', W').
        out_indices: numbers of the stages (UniFormer) or blocks (UniFormerV2), from 0, or one number n for the last n.
        reset_head: start a new classifier, even if the one in `weights` fits.
        to_train: accept `weights` without temporal parts, which then start as the identity.
        class_names: classes of the model, in the order of its outputs; the rows of a released classifier are put into
            that order. None selects the sorted names; from Kinetics-710, those of Kinetics-400, 600 or 700.
        class_order: order of the rows of that classifier, if the default is unknown or wrong: "sorted", "released",
            or a file of their class names.
        options: keyword arguments of the class, which are the lower-case keys of its section in the configuration, for
            example drop_depth_rate, no_lmhra, or for a UniFormerV2 backbone="timm/vit_base_patch16_224.dino".

    Returns:
        The model, with `input_shape`, (3, T, H, W) or (3, H, W), with `class_names` (None if they are not known), and
        with `load_report` if weights were loaded. The report is also logged, or printed on the standard error stream if
        no log is set up.

    Raises:
        ValueError: a name or option is unknown, or the weights do not fit or cannot be fetched.
    """
    if name not in VARIANTS:
        raise ValueError(f"model {name!r} is not known{close_to(name, VARIANTS)}: choose from {list_models()}")
    variant = VARIANTS[name]
    own = [parameter for parameter in inspect.signature(create_model).parameters if parameter != "options"]
    check_options(name, variant.network, options, own)
    if num_frames < 1:
        raise ValueError(f"num_frames {num_frames} is not possible: give at least 1")
    start = weights == "start"
    source = variant.start if start else str(weights)
    checkpoint = None if weights is None else load_tensors(source)
    arguments = {**variant.options, **options}
    if checkpoint is not None and variant.network is UniFormer:
        arguments |= _options_of(checkpoint, source, variant, options)
    classes = variant.num_classes if num_classes is None else num_classes
    if class_names and len(class_names) != classes:
        raise ValueError(f"{len(class_names)} class names for {classes} classes: give num_classes={len(class_names)}")
    model = variant.network(num_classes=classes, **arguments)
    is_image = arguments.get("ndim") == 2
    size = model.tower.resolution if isinstance(model, UniFormerV2) else variant.size
    time = () if is_image else (num_frames,)
    model.describe(name, (arguments.get("in_channels", 3), *time, size, size), variant.num_classes)
    model.class_names = list(class_names) if class_names else None
    state_classes(model)
    if checkpoint is not None:
        dataset = "imagenet" if is_image else ""
        order = None if reset_head else find_order(model, checkpoint, source, class_order, dataset, class_names)
        kind = "fresh" if reset_head else "fresh if mismatched" if start else "keep"
        head = HeadPolicy(kind, class_names or _names_of(order, classes), order, by_place=True)
        report = load_weights(model, checkpoint, head, to_train=to_train or start)
        if "s_plus" in name and not identify(source):
            report.notes.append(_SAME_SHAPES)
        announce(f"weights of {name} from {source}: {report}")
        model.class_names = report.class_names
        if order and order.name:
            model.class_order = "sorted" if rows_of_places(order.name, classes) else order.name
    return feature_getter(model, out_indices) if features_only else model


def _names_of(order: ClassOrder | None, classes: int) -> Sequence[str] | None:
    """Return the class names of a model's outputs: for Kinetics-400 sorted, else in the order of the weights."""
    names = order.row_names(classes) if order else None
    if not names or len(names) != classes:
        return None
    return names if order and order.names else kinetics400_names()


def _options_of(
    checkpoint: Mapping[str, Any], source: str, variant: Variant, options: Mapping[str, Any]
) -> dict[str, Any]:
    """Return the known options of a UniFormer that its weights need and shapes do not show.

    Raises:
        ValueError: the weights have another head width than `options`, or `options` must contain it.
    """
    found: dict[str, Any] = {}
    second = "aux_head.weight" in extract_state_dict(checkpoint)
    if second and variant.options.get("ndim") == 2:
        found["aux_head"] = True
    entry = identify(source)
    if entry and "head_dim" in entry:
        found["head_dim"] = width = entry["head_dim"]
        if options.get("head_dim", width) != width:
            raise ValueError(
                f"{source} has attention heads of {width} channels, not head_dim={options['head_dim']}, which shapes "
                "do not show: leave head_dim out"
            )
    elif second and "head_dim" not in {**variant.options, **options} and "cfg" not in checkpoint:
        raise ValueError(
            f"{source} was trained with token labelling, and its shapes do not show the channels of an attention head: "
            "give head_dim=32 (files uniformer_*_tl_224 and *_tl_384) or head_dim=64 (files uniformer_*_dim64_tl_224)"
        )
    return {**found, **options}
