"""How the weights of a checkpoint get into a model.

Loading ends in one report of what was loaded, inflated, dropped, missing and unexpected. Anything unexplained is an
error: a checkpoint never loads silently wrong. The layouts of other programs are in `convert`.
"""

from __future__ import annotations

import json
import logging
import math
import re
import sys
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any, Literal

import torch
from torch import Tensor, nn

from slowfast.models.convert import (
    IMAGE_TOWERS,
    OWN,
    Layout,
    StateDict,
    class_rows,
    classifiers,
    convert,
    select_classes,
    trained_activation,
)
from slowfast.models.uniformerv2 import TOWERS, VisionTower, resize_position_embedding, vision_tower
from slowfast.utils.io import fetch

logger = logging.getLogger(__name__)


@dataclass
class LoadReport:
    """What became of every tensor; names are the model's, except in `left_out` and `unexpected`.

    `left_out` has no counterpart in this network and needs none (the text tower of CLIP), `dropped` keeps its initial
    value on purpose, `fresh_classes` are those whose rows of the classifier do, `reshaped` does not fit. `notes` say
    what the tensors cannot tell.
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
    """Tell the user of the Python API once: in the log if anybody set one up, else on the standard error stream."""
    if logger.hasHandlers():
        logger.info(message)
    else:
        print(message, file=sys.stderr)


def extract_state_dict(checkpoint: Mapping[str, Any]) -> StateDict:
    """The tensors of a checkpoint in any of the released layouts: under `model_state`, under `model`, or bare.

    Averaged weights (`ema_state`), where there are any, are what was validated, so they come first. A `module.` prefix
    left by a wrapper is taken off.

    Raises:
        ValueError: no tensors where they should be.
    """
    if not isinstance(checkpoint, Mapping):
        raise ValueError(f"the checkpoint is a {type(checkpoint).__name__}, not a dictionary of tensors")
    for key in ("ema_state", "model_state", "model", "state_dict"):
        if key in checkpoint and isinstance(checkpoint[key], Mapping):
            checkpoint = checkpoint[key]
            break
    state = {name: value for name, value in checkpoint.items() if torch.is_tensor(value)}
    if not state:
        raise ValueError(
            f"the checkpoint holds no tensors; its entries are {sorted(map(str, checkpoint))[:8]}, "
            "expected 'model_state', 'model', or a bare state_dict"
        )
    if all(name.startswith("module.") for name in state):
        state = {name.removeprefix("module."): value for name, value in state.items()}
    return state


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
        reset_head: leave a classifier of another class count at its initial value.
        identity_at_start: parts of names whose initial value is meant to stand in for a missing tensor.
        to_train: accept that, if `source` has none of these parts at all.
        layout: where `source` comes from; it knows how a 2D kernel becomes 3D.
        left_out: names of that layout which are not in `source` any more, for the report.

    Returns:
        The tensors to load, with the report.

    Raises:
        ValueError: something is missing, unexpected or of another shape, and nobody asked for it.
    """
    report = LoadReport(layout.name, left_out=list(left_out))
    fitted: StateDict = {}
    prefixes = tuple(f"{head}." for head in heads)
    # a source that has some of these parts and not others is of another configuration
    without_identity = not any(part in name for name in source for part in identity_at_start)
    faults = []
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
            if name.startswith(prefixes) and value.ndim == 2:
                faults.append(
                    f"the checkpoint has {source[name].shape[0]} classes and the model {value.shape[0]}: "
                    f"set MODEL.NUM_CLASSES {source[name].shape[0]} to use it as it is, MODEL.HEAD_ROWS to pick the "
                    "rows of its classifier, or MODEL.RESET_HEAD True to start a new classifier from its features"
                )
    report.unexpected = [name for name in source if name not in target]
    if without_identity and any(part in name for name in report.missing for part in identity_at_start):
        faults.append("it can start a training, which begins with these parts doing nothing; a test needs them")
    if report.missing or report.unexpected or (report.reshaped and not faults):
        faults.append(
            "the checkpoint is of another model: compare MODEL.MODEL_NAME and the widths, depths and options of its "
            "section with the configuration the checkpoint was trained with"
        )
    if faults:
        raise ValueError(f"weights do not fit: {report}\n  " + "\n  ".join(faults))
    return fitted, report


def _square_grids(*embeddings: Tensor) -> bool:
    """Whether these are position embeddings (1 + S*S, C) of square grids and one width."""
    return all(e.ndim == 2 and math.isqrt(max(len(e) - 1, 0)) ** 2 == len(e) - 1 for e in embeddings) and (
        len({e.shape[1] for e in embeddings}) == 1
    )


def read_rows(path: str) -> list[int]:
    """Class rows from a file or address: a JSON list of numbers, or one number a line, counted from 0.

    Raises:
        ValueError: the file is missing or holds something else.
    """
    local = Path(fetch(path))
    if not local.is_file():
        raise ValueError(f"file of class rows {path!r} does not exist")
    text = local.read_text(encoding="utf-8").strip()
    try:
        rows = json.loads(text) if text.startswith("[") else [int(line) for line in text.splitlines()]
        if not rows or not all(type(row) is int for row in rows):
            raise ValueError
    except ValueError:
        raise ValueError(f"{path!r} is no list of class rows; write [12, 7, ...], or one number a line") from None
    return rows


def has_classifier(model: nn.Module, checkpoint: Mapping[str, Any]) -> bool:
    """Whether a loaded checkpoint has a classifier for `model`; an image tower has none."""
    state = convert(extract_state_dict(checkpoint), model).state
    return bool(classifiers(state, getattr(model, "head_names", ("head",))))


def load_weights(
    model: nn.Module,
    checkpoint: Mapping[str, Any],
    reset_head: bool = False,
    to_train: bool = False,
    head_rows: Sequence[int] | Literal["names"] | None = None,
    class_names: Sequence[str] | None = None,
) -> LoadReport:
    """Fill `model` from a loaded checkpoint of any known layout; see `convert` and `fit` for rules and errors.

    Args:
        reset_head: leave a classifier of another class count, or of other class names, at its initial value.
        to_train: parts that start as the identity may be missing; a test needs them.
        head_rows: rows of the checkpoint's classifiers that become those of the model; "names" finds them by the
            class names inside the checkpoint; with `to_train`, classes that are not there start anew.
        class_names: classes of the model, in the order of its outputs; a checkpoint that tells others is refused
            unless `reset_head` or `head_rows` says what to do.

    Returns:
        The report, which is also left in `model.load_report`.
    """
    source, initial = extract_state_dict(checkpoint), model.state_dict()
    converted = convert(source, model)
    _check_backbone(checkpoint, model)
    notes = _check_activation(source, model, converted.layout)
    state = converted.state
    fresh: list[str] = []
    heads = getattr(model, "head_names", ("head",))
    trained = checkpoint.get("class_names")
    if head_rows == "names":
        if not trained or not class_names:
            raise ValueError(
                f"no class names in the {'data set' if trained else 'checkpoint'}, so classes cannot be found by name; "
                "give the rows as a file of numbers"
            )
        found = class_rows(trained, class_names, partly=to_train)
        fresh = [name for name, row in zip(class_names, found, strict=True) if row is None]
        if fresh:
            logger.warning("the checkpoint has no classes of these names; they start anew: %s", ", ".join(fresh))
        state = select_classes(state, heads, found, initial)
    elif head_rows is not None:
        state = select_classes(state, heads, head_rows)
    elif trained and class_names and list(trained) != list(class_names):
        if not reset_head:
            at = next((i for i, (a, b) in enumerate(zip(trained, class_names, strict=False)) if a != b), None)
            raise ValueError(
                f"the checkpoint was trained on other classes ({len(trained)}, here {len(class_names)}"
                + (f"; class {at} is {trained[at]!r} there and {class_names[at]!r} here" if at is not None else "")
                + (
                    "): set MODEL.HEAD_ROWS names to find them by their names, or MODEL.RESET_HEAD True to start a new "
                    "classifier from its features"
                    if to_train
                    else "): labels mean different things; order the list's labels and class names as in training"
                )
            )
        layers = tuple(classifiers(state, heads))
        state = {name: value for name, value in state.items() if not name.startswith(layers)}
    fitted, report = fit(
        state,
        initial,
        heads=heads,
        reset_head=reset_head,
        identity_at_start=getattr(model, "identity_at_start", ()),
        to_train=to_train,
        layout=converted.layout,
        left_out=converted.left_out,
    )
    model.load_state_dict(fitted, strict=False)  # `fit` has accounted for every name
    report.fresh_classes, report.notes = fresh, notes
    model.load_report = report  # pyright: ignore[reportAttributeAccessIssue, reportArgumentType]
    return report


def _check_backbone(checkpoint: Mapping[str, Any], model: nn.Module) -> None:
    """Compare the image ViT of `model` with the one that a checkpoint written here was trained with.

    Raises:
        ValueError: they compute differently, which the shapes of their tensors may not show.
    """
    tower, written = getattr(model, "tower", None), checkpoint.get("cfg")
    match = re.search(r"^  BACKBONE: (\S+)$", written, re.MULTILINE) if isinstance(written, str) else None
    if not match or not isinstance(tower, VisionTower) or not (match[1] in TOWERS or match[1].startswith("timm/")):
        return
    # position embeddings follow another resolution
    if replace(vision_tower(match[1]), resolution=tower.resolution, mlp_width=tower.mlp_width) != tower:
        raise ValueError(
            f"the checkpoint was trained with UNIFORMERV2.BACKBONE {match[1]}, which is another image ViT: set it"
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
