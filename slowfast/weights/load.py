"""Load the weights of a checkpoint into a network, and report every tensor.

A tensor that cannot be accounted for is an error, so that no checkpoint is loaded wrongly without notice. `layouts`
contains the names of other programs, `heads` the rules for classifiers.
"""

from __future__ import annotations

import logging
import sys
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import Any

import torch
import yaml
from torch import Tensor, nn

from slowfast.weights.heads import HeadPolicy, classifiers, count_classes, select_classes
from slowfast.weights.layouts import Converted, Layout, StateDict, convert, extract_state_dict, trained_activation
from slowfast.weights.network import WeightRules, rules_of
from slowfast.weights.released import identify

logger = logging.getLogger(__name__)

HALF = (torch.float16, torch.bfloat16)


@dataclass
class LoadReport:
    """The result of a load. Names are those in the network; in `left_out` and `unexpected`, those in the checkpoint.

    Attributes:
        layout: name of the layout of the checkpoint.
        loaded: tensors that were copied unchanged.
        inflated: 2D kernels that were converted to 3D.
        interpolated: tensors that were resized to the resolution of the network.
        dropped: tensors that keep their initial values on purpose.
        fresh_classes: classes whose rows of the classifier keep their initial values.
        left_out: tensors without a counterpart in the network that are not needed, such as CLIP's text transformer.
        missing: tensors that are not in the checkpoint; an error.
        unexpected: tensors that are not in the network; an error.
        reshaped: tensors of another shape; an error.
        notes: remarks about facts that the tensors do not show.
        class_names: class names of the network's outputs; None if they are not known.
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
            names: list[str] = getattr(self, kind)
            some = f" ({', '.join(names[:4])}{', ...' if len(names) > 4 else ''})" if names else ""
            if names or kind != "fresh_classes":
                parts.append(f"{kind.replace('_', ' ')} {len(names)}{some}")
        return "; ".join([", ".join(parts), *self.notes])


KINDS = ("inflated", "interpolated", "dropped", "fresh_classes", "left_out", "missing", "unexpected", "reshaped")


def announce(message: str) -> None:
    """Print a message for users of the Python API: to the log if one is set up, else to the standard error stream."""
    if logger.hasHandlers():
        logger.info(message)
    else:
        print(message, file=sys.stderr)


def load_weights(
    model: nn.Module, checkpoint: Mapping[str, Any], head: HeadPolicy | None = None, to_train: bool = False
) -> LoadReport:
    """Load a checkpoint of any known layout, as returned by `load_tensors`, into a network.

    Args:
        model: the network, not wrapped.
        checkpoint: the result of `load_tensors`.
        head: rule for the classifier; None keeps it, and is an error for other classes.
        to_train: accept a checkpoint without parts that have no effect at their initial values, or with parts that the
            network leaves out; a test needs them.

    Returns:
        The report, which is also set as `model.load_report`.

    Raises:
        ValueError: the weights are of another network, or of classes that `head` does not allow.
    """
    head, rules = head or HeadPolicy(), rules_of(model)
    heads = rules.head_names
    initial = model.state_dict()
    source = extract_state_dict(checkpoint, initial)
    # what is computed from tensors, such as a resized position embedding, must not be rounded to half precision
    source = {name: value.float() if value.dtype in HALF else value for name, value in source.items()}
    converted = convert(source, initial)
    rules.check_options(_recorded_options(checkpoint, rules.section))
    notes: list[str] = []
    if converted.layout.is_image_vit:
        notes += rules.check_image_vit(converted.layout.name, trained_activation(source))

    count, classes = count_classes(converted.state, heads), count_classes(initial, heads)
    choice = head.choose(checkpoint, count, classes, to_train)
    notes += choice.notes
    fresh: list[str] = []
    if not choice.takes:
        converted = _without_classifiers(converted, heads, is_left_out=not classes)
    elif choice.rows is not None:
        converted = replace(converted, state=select_classes(converted.state, heads, choice.rows, initial))
        notes.append(f"classifier rows {count} -> {len(choice.rows)}")
        fresh = _fresh_classes(choice.rows, head.class_names, to_train)

    fitted, report = fit(converted, initial, rules, head, to_train)
    model.load_state_dict(fitted, strict=False)  # `fit` has accounted for every name
    report.fresh_classes, report.notes = fresh, notes
    widths = {len(initial[f"{layer}weight"]) for layer in classifiers(initial, heads)}  # also of hidden layers
    known = choice.class_names if len(choice.class_names or ()) in widths and not report.dropped else None
    report.class_names = list(head.class_names or known or ()) or None
    model.load_report = report  # pyright: ignore[reportAttributeAccessIssue, reportArgumentType]
    return report


def _recorded_options(checkpoint: Mapping[str, Any], section: str) -> dict[str, Any]:
    """Return the arguments of a network from the configuration in a checkpoint; empty if it contains none."""
    try:
        recorded = yaml.safe_load(checkpoint["cfg"]) if isinstance(checkpoint.get("cfg"), str) else None
    except yaml.YAMLError:  # written by another program
        recorded = None
    options = recorded.get(section) if isinstance(recorded, dict) else None
    return {str(name).lower(): value for name, value in options.items()} if isinstance(options, dict) else {}


def _without_classifiers(converted: Converted, heads: Sequence[str], is_left_out: bool) -> Converted:
    layers = tuple(classifiers(converted.state, heads))
    removed = [name for name in converted.state if name.startswith(layers)]
    state = {name: value for name, value in converted.state.items() if name not in removed}
    return replace(converted, state=state, left_out=[*converted.left_out, *removed * is_left_out])


def _fresh_classes(rows: Sequence[int | None], class_names: Sequence[str] | None, to_train: bool) -> list[str]:
    """Return the names of the classes without a row, and log a warning."""
    fresh = [class_names[i] if class_names else f"class {i}" for i, row in enumerate(rows) if row is None]
    if fresh:
        effect = "they get new rows" if to_train else "they cannot be recognised"
        logger.warning("the checkpoint has no classes of these names; %s: %s", effect, ", ".join(fresh))
    return fresh


def check_head_width(model: nn.Module, checkpoint: Mapping[str, Any], address: str) -> None:
    """Raise ValueError if released weights have attention heads of another width, which shapes do not show."""
    entry = identify(address) or {}
    if "head_dim" in entry and "class_names" not in checkpoint:  # else it contains its configuration
        rules_of(model).check_options({"head_dim": entry["head_dim"]})


# ---- tensor by tensor -----------------------------------------------------------------------------------------------


def fit(
    converted: Converted, initial: Mapping[str, Tensor], rules: WeightRules, head: HeadPolicy, to_train: bool
) -> tuple[StateDict, LoadReport]:
    """Return the tensors that fit a network with the tensors `initial`, and the report; see `load_weights`.

    Raises:
        ValueError: a tensor is missing, unexpected or of another shape, which no argument allows.
    """
    state = converted.state
    optional = _optional(rules, state, initial, head, to_train)
    report = LoadReport(converted.layout.name, left_out=[*converted.left_out])
    fitted: StateDict = {}
    for name, value in initial.items():
        kind, tensor = "missing", None
        if name in state:
            kind, tensor = _adapt(name, state[name], value.shape, converted.layout, rules)
        if tensor is not None:
            fitted[name] = tensor
        elif name in optional:
            kind = "dropped"
        getattr(report, kind).append(name)
    surplus = rules.surplus_at_start if to_train else ()
    for name in (name for name in state if name not in initial):
        (report.left_out if _has_any([name], surplus) else report.unexpected).append(name)
    if faults := _faults(report, rules, state, initial, head.as_trained):
        for i, name in enumerate(report.reshaped):
            report.reshaped[i] += f" {tuple(state[name].shape)} -> {tuple(initial[name].shape)}"
        raise ValueError(f"weights do not fit: {report}\n  " + "\n  ".join(faults))
    return fitted, report


def _adapt(
    name: str, given: Tensor, shape: torch.Size, layout: Layout, rules: WeightRules
) -> tuple[str, Tensor | None]:
    """Return the field of the report for a tensor, and the tensor in the shape of the parameter, or None."""
    if given.shape == shape:
        return "loaded", given
    if given.ndim == 4 and len(shape) == 5 and given.shape == shape[:2] + shape[3:]:
        return "inflated", layout.inflate(given, shape)
    resized = rules.resize_parameter(name, given, shape)
    return "reshaped" if resized is None else "interpolated", resized


def _optional(
    rules: WeightRules, state: Mapping[str, Tensor], initial: Mapping[str, Tensor], head: HeadPolicy, to_train: bool
) -> set[str]:
    """Return the names of tensors that may keep their initial values."""
    parts = rules.identity_at_start if to_train and not _has_any(state, rules.identity_at_start) else ()
    heads = tuple(f"{name}." for name in rules.head_names) if head.resets else ()
    return {
        name
        for name in initial
        # checkpoints of very old PyTorch lack num_batches_tracked, which is not used with a momentum
        if name.endswith("num_batches_tracked") or _has_any([name], parts) or name.startswith(heads)
    }


def _has_any(names: Mapping[str, Any] | Sequence[str], parts: Sequence[str]) -> bool:
    return any(part in name for name in names for part in parts)


def _other_heads(count: int, as_trained: bool) -> str:
    """Return how to use a checkpoint of `count` classes, besides a network of as many classes."""
    if as_trained:
        return ", and number the labels of the list as in training"
    return (
        " to use all of it, reset_head to start a new classifier from its features, or head_rows to keep rows of its "
        f"classifier: a file of the {count} class names of the checkpoint, one per line, or of one row number per "
        "class (for Kinetics the authors' label map)"
    )


def _faults(
    report: LoadReport, rules: WeightRules, state: Mapping[str, Tensor], initial: Mapping[str, Tensor], as_trained: bool
) -> list[str]:
    """Return the reasons why weights do not fit, each with its cure; none if they do."""
    heads = tuple(f"{head}." for head in rules.head_names)
    of_classes = [
        name for name in report.reshaped if name.startswith(heads) and state[name].shape[1:] == initial[name].shape[1:]
    ]
    faults = [
        f"the checkpoint has {len(state[name])} classes and the model {len(initial[name])}: set num_classes to "
        f"{len(state[name])}{_other_heads(len(state[name]), as_trained)}"
        for name in of_classes
        if initial[name].ndim == 2
    ]
    # weights with only some of these parts were trained with other options
    if not _has_any(state, rules.identity_at_start) and _has_any(report.missing, rules.identity_at_start):
        faults.append(
            "the checkpoint can start a training, in which the missing parts have no effect at first; a test needs them"
        )
    others = [name for name in report.reshaped if name not in of_classes]
    if report.missing or report.unexpected or others or (of_classes and not faults):
        faults.append(
            "the checkpoint is of another model: compare the model's name, widths, depths and options with those that "
            "the checkpoint was trained with"
        )
    return faults
