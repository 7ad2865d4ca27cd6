"""Load the weights of a checkpoint into a model.

Loading returns a report of loaded, inflated, dropped, missing and unexpected tensors. A tensor without an
explanation is an error, so that no checkpoint is silently loaded wrongly. See `convert` for other layouts.
"""

from __future__ import annotations

import logging
import math
import sys
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import Any, Literal

import yaml
from torch import Tensor, nn

from slowfast.models.uniformerv2 import TOWERS, VisionTower, resize_position_embedding, vision_tower
from slowfast.weights.class_order import identify
from slowfast.weights.heads import ClassOrder, head_prefixes, rows_by_name, rows_to_take, stated_classes
from slowfast.weights.layouts import (
    IMAGE_TOWERS,
    OWN,
    Layout,
    StateDict,
    classifiers,
    convert,
    extract_state_dict,
    select_classes,
    trained_activation,
)

logger = logging.getLogger(__name__)


@dataclass
class LoadReport:
    """The result of a load for every tensor; names are the model's, except in `left_out` and `unexpected`.

    `left_out` has no counterpart in this network and needs none (the text tower of CLIP), `dropped` keeps its initial
    value on purpose, `fresh_classes` are those whose rows of the classifier do, `reshaped` does not fit. `notes` are
    facts that the tensors do not show. `class_names` are those of the model's outputs, None if they are not known.
    """

    layout: str = "own"
    loaded: list[str] = field(default_factory=list)
    inflated: list[str] = field(default_factory=list)
    interpolated: list[str] = field(default_factory=list)
    dropped: list[str] = field(default_factory=list)
    fresh_classes: list[str] = field(default_factory=list)
    left_out: list[str] = field(default_factory=list)
    missing: list[str] = field(default_factory=list)
    unexpected: list[str] = field(default_factory=list)
    reshaped: list[str] = field(default_factory=list)
    notes: list[str] = field(default_factory=list)
    class_names: list[str] | None = None

    def __str__(self) -> str:
        parts = [f"layout {self.layout}, loaded {len(self.loaded)}"]
        for kind in KINDS:
            names = getattr(self, kind)
            if kind == "fresh_classes" and not names:
                continue
            some = f" ({', '.join(names[:4])}{', ...' if len(names) > 4 else ''})" if names else ""
            parts.append(f"{kind.replace('_', ' ')} {len(names)}{some}")
        return "; ".join([", ".join(parts), *self.notes])


KINDS = ("inflated", "interpolated", "dropped", "fresh_classes", "left_out", "missing", "unexpected", "reshaped")


def announce(message: str) -> None:
    """Print a message for users of the Python API: to the log if one is set up, else to the standard error stream."""
    if logger.hasHandlers():
        logger.info(message)
    else:
        print(message, file=sys.stderr)


def fit(
    source: Mapping[str, Tensor],
    target: Mapping[str, Tensor],
    heads: Sequence[str] = ("head",),
    reset_head: bool = False,
    identity_at_start: Sequence[str] = (),
    to_train: bool = False,
    layout: Layout = OWN,
    left_out: Sequence[str] = (),
) -> tuple[StateDict, LoadReport]:
    """Make `source` fit the model whose state_dict is `target`.

    Args:
        heads: prefixes of the classifiers.
        reset_head: leave a classifier that is missing, or of another class count, at its initial value.
        identity_at_start: parts of names whose initial value is meant to stand in for a missing tensor.
        to_train: accept that, if `source` has none of these parts at all.
        layout: where `source` comes from; it knows how a 2D kernel becomes 3D.
        left_out: names of that layout which are not in `source` any more, for the report.

    Returns:
        The tensors to load, with the report.

    Raises:
        ValueError: something is missing, unexpected or of another shape, and no argument allows it.
    """
    report = LoadReport(layout.name, left_out=list(left_out))
    fitted: StateDict = {}
    prefixes = tuple(f"{head}." for head in heads)
    # a source that has some of these parts and not others is of another configuration
    without_identity = not any(part in name for name in source for part in identity_at_start)
    faults, other_model = [], False
    for name, value in target.items():
        starts_as_identity = without_identity and any(part in name for part in identity_at_start)
        if name not in source:
            # num_batches_tracked is absent from checkpoints of very old PyTorch and does not matter with a momentum
            if (
                name.endswith("num_batches_tracked")
                or (to_train and starts_as_identity)
                or (reset_head and name.startswith(prefixes))
            ):
                report.dropped.append(name)
            else:
                report.missing.append(name)
        elif source[name].shape == value.shape:
            fitted[name] = source[name]
            report.loaded.append(name)
        elif source[name].ndim == 4 and value.ndim == 5 and source[name].shape == value.shape[:2] + value.shape[3:]:
            fitted[name] = layout.inflation(source[name], value.shape)
            report.inflated.append(name)
        elif name.endswith("positional_embedding") and _square_grids(source[name], value):
            side = math.isqrt(len(value) - 1)
            fitted[name] = resize_position_embedding(source[name], (side, side))
            report.interpolated.append(name)
        elif name.startswith(prefixes) and reset_head:
            report.dropped.append(name)
        else:
            report.reshaped.append(f"{name} {tuple(source[name].shape)} -> {tuple(value.shape)}")
            if not name.startswith(prefixes) or source[name].shape[1:] != value.shape[1:]:
                other_model = True
            elif value.ndim == 2:
                classes = len(source[name])
                faults.append(
                    f"the checkpoint has {classes} classes and the model {len(value)}: set MODEL.NUM_CLASSES {classes} "
                    "to use all of it, MODEL.RESET_HEAD True (in Python reset_head) to start a new classifier from its "
                    "features, or MODEL.HEAD_ROWS to keep rows of its classifier: a file of the "
                    f"{classes} class names of the checkpoint, one per line, or of one row number per class "
                    "(for Kinetics the authors' label map)"
                )
    report.unexpected = [name for name in source if name not in target]
    if without_identity and any(part in name for name in report.missing for part in identity_at_start):
        faults.append("it can start a training, which begins with these parts doing nothing; a test needs them")
    if report.missing or report.unexpected or other_model or (report.reshaped and not faults):
        faults.append(
            "the checkpoint is of another model: compare MODEL.MODEL_NAME and the widths, depths and options of its "
            "section with the configuration the checkpoint was trained with"
        )
    if faults:
        raise ValueError(f"weights do not fit: {report}\n  " + "\n  ".join(faults))
    return fitted, report


def _square_grids(*embeddings: Tensor) -> bool:
    """Return whether these are position embeddings (1 + S*S, C) of square grids and one width."""
    return all(e.ndim == 2 and math.isqrt(max(len(e) - 1, 0)) ** 2 == len(e) - 1 for e in embeddings) and (
        len({e.shape[1] for e in embeddings}) == 1
    )


def load_weights(
    model: nn.Module,
    checkpoint: Mapping[str, Any],
    reset_head: bool | Literal["mismatch"] = False,
    to_train: bool = False,
    head_rows: Sequence[int] | Literal["names"] | None = None,
    class_names: Sequence[str] | None = None,
    trained_names: Sequence[str] | None = None,
    order: ClassOrder | None = None,
    by_place: bool = False,
) -> LoadReport:
    """Fill `model` from a loaded checkpoint of any known layout; see `convert` and `fit` for rules and errors.

    A model without a classifier takes everything but the classifiers.

    Args:
        reset_head: leave the classifiers at their initial values; "mismatch" does so if their class count, or the
            class names, are others.
        to_train: parts that start as the identity may be missing; a test needs them.
        head_rows: rows of the checkpoint's classifiers that become those of the model, one per class; "names" finds
            them by the class names of the checkpoint; with `to_train`, missing classes get new rows.
        class_names: classes of the model, in the order of its outputs; a checkpoint with other names is refused
            unless `reset_head`, `head_rows` or `order` is given.
        trained_names: class names of the checkpoint's classifier, if it does not contain them.
        order: the class of each row of the checkpoint's classifier (`heads.find_order`); rows are put into the order
            of `class_names`, and without them keep their order.
        by_place: without `class_names`, put them into the order of the sorted class names.

    Returns:
        The report, which is also left in `model.load_report`.
    """
    if reset_head is True and head_rows is not None:
        raise ValueError(
            "MODEL.RESET_HEAD True starts a new classifier, so MODEL.HEAD_ROWS has no effect; remove one of them"
        )
    source, initial, heads = extract_state_dict(checkpoint), model.state_dict(), head_prefixes(model)
    converted = convert(source, model)
    _check_options(checkpoint, model)
    notes = _check_activation(source, model, converted.layout)
    state, left_out = converted.state, list(converted.left_out)
    classes, count = _classes(initial, heads), _classes(state, heads)
    stated = stated_classes(checkpoint).get("class_names")
    if trained_names and stated and list(stated) != list(trained_names):
        raise ValueError("the checkpoint has other class names than the file: set MODEL.HEAD_ROWS names")
    trained = trained_names or (order.row_names(count) if order else None) or stated  # what is set comes first

    rows: Sequence[int | None] | None = None
    if not classes or reset_head is True:
        kept = _without_classifiers(state, heads)
        left_out += [name for name in state if name not in kept] if not classes else []
        state, trained = kept, None
    elif head_rows == "names":
        rows = rows_by_name(count, trained, class_names, partly=to_train)
    elif head_rows is not None:
        rows, trained = head_rows, None
    elif order and (reset_head != "mismatch" or count == classes):
        rows = rows_to_take(order, count, classes, class_names, to_train, by_place)
        notes += [order.why]
        trained = order.row_names(classes) if not by_place else None
    elif stated and class_names and list(stated) != list(class_names):
        state = _without_other_classes(state, heads, stated, class_names, reset_head, to_train)
    fresh: list[str] = []
    if rows is not None:
        state = _take_rows(state, heads, rows, initial, notes)
        fresh = [class_names[i] if class_names else f"class {i}" for i, row in enumerate(rows) if row is None]
        if fresh:
            what = "get new rows" if to_train else "cannot be recognised"
            logger.warning("the checkpoint has no classes of these names; they %s: %s", what, ", ".join(fresh))
    fitted, report = fit(
        state,
        initial,
        heads=heads,
        reset_head=bool(reset_head),
        identity_at_start=getattr(model, "identity_at_start", ()),
        to_train=to_train,
        layout=converted.layout,
        left_out=left_out,
    )
    model.load_state_dict(fitted, strict=False)  # `fit` has accounted for every name
    report.fresh_classes, report.notes = fresh, notes
    known = trained if trained and len(trained) == classes and not report.dropped else None
    report.class_names = list(class_names or known or ()) or None
    model.load_report = report  # pyright: ignore[reportAttributeAccessIssue, reportArgumentType]
    return report


def check_head_width(model: nn.Module, checkpoint: Mapping[str, Any], address: str) -> None:
    """Raise ValueError if known weights have attention heads of another width, which shapes do not show."""
    width = getattr(model, "options", {}).get("head_dim")
    if width is None or "class_names" in checkpoint:  # a checkpoint of this package contains its configuration
        return
    entry = identify(address) or {}
    if entry.get("head_dim", width) != width:
        raise ValueError(
            f"{entry['name']} has attention heads of {entry['head_dim']} channels, which shapes do not show, and "
            f"UNIFORMER.HEAD_DIM is {width}: set UNIFORMER.HEAD_DIM {entry['head_dim']}"
        )


def _classes(state: Mapping[str, Tensor], heads: Sequence[str]) -> int:
    return max((len(state[f"{layer}weight"]) for layer in classifiers(state, heads)), default=0)


def _without_other_classes(
    state: StateDict,
    heads: Sequence[str],
    trained: Sequence[str],
    wanted: Sequence[str],
    reset_head: bool | str,
    to_train: bool,
) -> StateDict:
    """Return `state` without its classifiers, which have other classes.

    Raises:
        ValueError: `reset_head` is not set.
    """
    if reset_head:
        return _without_classifiers(state, heads)
    at = next((i for i, (a, b) in enumerate(zip(trained, wanted, strict=False)) if a != b), None)
    first = f"; class {at} is {trained[at]!r} there and {wanted[at]!r} here" if at is not None else ""
    cure = (
        "set MODEL.HEAD_ROWS names to find them by their names, or MODEL.RESET_HEAD True to start a new classifier "
        "from its features"
        if to_train
        else "labels mean different things; order the list's labels and class names as in training"
    )
    raise ValueError(f"the checkpoint was trained on other classes ({len(trained)}, here {len(wanted)}{first}): {cure}")


def _take_rows(
    state: StateDict,
    heads: Sequence[str],
    rows: Sequence[int | None],
    initial: Mapping[str, Tensor],
    notes: list[str],
) -> StateDict:
    """Return `state` with these rows of its classifiers, and add their former number to `notes`.

    Raises:
        ValueError: their number is not the number of classes of the model, whose tensors are `initial`.
    """
    count, classes = _classes(state, heads), _classes(initial, heads)
    selected = select_classes(state, heads, rows, initial)
    if classes != len(rows):
        raise ValueError(
            f"MODEL.HEAD_ROWS gives {len(rows)} classes, but the model has {classes}; give one row for each"
        )
    notes.append(f"classifier rows {count} -> {len(rows)}")
    return selected


def _without_classifiers(state: StateDict, heads: Sequence[str]) -> StateDict:
    layers = tuple(classifiers(state, heads))
    return {name: value for name, value in state.items() if not name.startswith(layers)}


def _check_options(checkpoint: Mapping[str, Any], model: nn.Module) -> None:
    """Compare options of `model` that shapes do not show with the configuration in a checkpoint.

    Raises:
        ValueError: they compute differently.
    """
    try:
        written = yaml.safe_load(checkpoint["cfg"]) if isinstance(checkpoint.get("cfg"), str) else None
    except yaml.YAMLError:  # of a program that writes it in another way
        written = None
    options, key = getattr(model, "options", None), getattr(model, "section", "")
    section = written.get(key) if isinstance(written, Mapping) else None
    if not isinstance(section, Mapping) or options is None:
        return
    tower = getattr(model, "tower", None)
    if isinstance(tower, VisionTower):
        _check_tower(section, tower)
    here = model.unseen_options(options)  # pyright: ignore[reportCallIssue]
    given = {name: section[name.upper()] for name in here if name.upper() in section}
    for name, there in model.unseen_options({**options, **given}).items():  # pyright: ignore[reportCallIssue]
        if there != here[name] and name in given:
            raise ValueError(
                f"the checkpoint was trained with {key}.{name.upper()} {given[name]}, and the model here has "
                f"{options[name]}, which computes another result: set it to {given[name]}"
            )


def _check_tower(section: Mapping[str, Any], tower: VisionTower) -> None:
    """Compare the image ViT with the one that UNIFORMERV2, the `section` of another configuration, asks for."""
    name = str(section.get("BACKBONE", ""))
    if name == "custom" and "TOWER" in section:
        key, value, trained = "UNIFORMERV2.TOWER", section["TOWER"], VisionTower(*section["TOWER"])
    elif name in TOWERS or name.startswith("timm/"):
        key, value, trained = "UNIFORMERV2.BACKBONE", name, vision_tower(name)
    else:
        return
    # position embeddings follow another resolution
    if replace(trained, resolution=tower.resolution, mlp_width=tower.mlp_width) != tower:
        raise ValueError(
            f"the checkpoint was trained with {key} {value}, which is another image ViT than {tower}: set it"
        )


def _check_activation(source: StateDict, model: nn.Module, layout: Layout) -> list[str]:
    """Compare the activation an image ViT was trained with, as far as its file tells, with the one it would get here.

    Returns:
        What the user has to know where the file does not tell.

    Raises:
        ValueError: they differ.
    """
    tower = getattr(model, "tower", None)
    if layout not in IMAGE_TOWERS or not isinstance(tower, VisionTower):
        return []
    trained, exact = trained_activation(source), "UNIFORMERV2.BACKBONE timm/<name of the ViT in timm>"
    if trained and trained != tower.activation:
        cure = exact if trained == "gelu" else "one of CLIP's own, such as uniformerv2_b16"
        raise ValueError(
            f"{layout.name} weights were trained with the activation {trained}, and the image ViT here computes "
            f"{tower.activation}: take {cure}"
        )
    if not trained and tower.activation == "quick_gelu":
        return [
            "the file does not tell its activation, and the image ViT here computes OpenAI's QuickGELU; weights "
            f"trained with the exact GELU (those of LAION, for example) need {exact}"
        ]
    return []
