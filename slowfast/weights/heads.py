"""Choose the row of a checkpoint's classifier for each class of a network."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

from torch import Tensor, nn

from slowfast.utils.class_names import read_class_names
from slowfast.weights.class_order import ClassOrder, check_names, class_rows
from slowfast.weights.fetch import fetch
from slowfast.weights.layouts import ENTRIES, StateDict

HeadKind = Literal["keep", "fresh", "fresh if mismatched", "rows", "by name"]


@dataclass(frozen=True)
class Choice:
    """The part of a classifier that a network takes.

    Attributes:
        takes: whether rows are taken; if False, the classifier of the network keeps its initial values.
        rows: row of each class of the network, or None for a class that keeps its initial values; None instead of a
            list takes all rows in their order.
        class_names: class names of the rows, if `HeadPolicy.class_names` does not contain them.
        notes: remarks for the report.
    """

    takes: bool = True
    rows: Sequence[int | None] | None = None
    class_names: Sequence[str] | None = None
    notes: tuple[str, ...] = ()


@dataclass(frozen=True)
class HeadPolicy:
    """The rule for the classifier when weights are loaded into a network.

    Attributes:
        kind: "keep": take all rows, which must be those of the network's classes; "fresh": start a new classifier;
            "fresh if mismatched": start a new one if the number or the names of the classes differ, else keep;
            "rows": take `rows`; "by name": take the rows of `class_names`, and in a training start new rows for
            classes that the checkpoint lacks.
        class_names: class names of the network's outputs; None if they are not known.
        order: class of each row of the checkpoint's classifier; "keep" puts the rows into the order of `class_names`;
            without class names, rows keep their order.
        rows: row of each class of the network.
        by_place: without `class_names`, "keep" puts rows into the order of the sorted names.
        allow_missing: a classifier that the checkpoint lacks keeps its initial values, as with the kinds "fresh".
        as_trained: the network is tested, so an error does not propose another kind.
    """

    kind: HeadKind = "keep"
    class_names: Sequence[str] | None = None
    order: ClassOrder | None = None
    rows: Sequence[int] = ()
    by_place: bool = False
    allow_missing: bool = False
    as_trained: bool = False

    @property
    def resets(self) -> bool:
        """Whether a classifier that is missing or has other classes keeps its initial values."""
        return self.allow_missing or self.kind.startswith("fresh")

    def choose(self, checkpoint: Mapping[str, Any], count: int, classes: int, to_train: bool) -> Choice:
        """Return the part of the classifier in `checkpoint` that a network takes.

        Args:
            checkpoint: the result of `load_tensors`.
            count: number of rows of its classifier; 0 if it has none.
            classes: number of classes of the network.
            to_train: classes may get new rows.

        Raises:
            ValueError: the rows of the network's classes cannot be found.
        """
        if not classes or self.kind == "fresh":
            return Choice(takes=False)
        if self.kind == "rows":
            return Choice(rows=self.rows)
        stated, order = stated_classes(checkpoint).get("class_names"), self.order
        if self.kind == "by name":
            trained = order.row_names(count) if order else None
            return Choice(rows=self._rows_by_name(trained or stated, count, to_train))
        if order and (self.kind == "keep" or count == classes):
            rows = order.rows_for(self.class_names, classes, count, partly=to_train, by_place=self.by_place)
            names = None if self.by_place else order.row_names(classes)
            return Choice(rows=rows, class_names=names, notes=(order.why,))
        if stated and self.class_names and [*stated] != [*self.class_names]:
            if self.kind == "keep":
                raise ValueError(_other_classes(stated, self.class_names, to_train))
            return Choice(takes=False)
        return Choice(class_names=stated)

    def _rows_by_name(self, trained: Sequence[str] | None, count: int, partly: bool) -> Sequence[int | None]:
        if not self.class_names:
            raise ValueError(
                "no class names in the data set, so classes cannot be found by name: write class_names.txt beside its "
                "lists, or give the rows as a file of numbers"
            )
        if not trained:
            raise ValueError(
                "no class names in the checkpoint, so classes cannot be found by name: give head_rows a file of them, "
                "one per line, or of the rows as numbers"
            )
        check_names(count, trained)
        return class_rows(trained, self.class_names, partly)


def rows_policy(
    head_rows: str, checkpoint: Mapping[str, Any], order: ClassOrder | None, class_names: Sequence[str] | None
) -> HeadPolicy:
    """Return the policy that selects rows of the classifier in a checkpoint that `load_tensors` returned.

    `head_rows` is "names", to find the rows by the class names that `order` or the checkpoint contain, or a file, see
    `read_rows`.

    Raises:
        ValueError: the file cannot be used, or contradicts the checkpoint.
    """
    if head_rows == "names":
        return HeadPolicy("by name", class_names, order)
    rows, trained = read_rows(head_rows)
    if rows:
        return HeadPolicy("rows", class_names, rows=rows)
    stated = stated_classes(checkpoint).get("class_names")
    if stated and stated != trained:
        raise ValueError(f"the checkpoint has other class names than {head_rows}: set head_rows to names")
    return HeadPolicy("by name", class_names, ClassOrder(names=trained))


def read_rows(path: str) -> tuple[list[int], list[str]]:
    """Return the row of each class of a network, or the class names of all rows, from a file or address.

    A JSON list of numbers, or a file with one number per line, contains the row of each class, counted from 0. Any
    other file contains class names, see `read_class_names`. One of the two returned lists is empty.

    Raises:
        ValueError: the file is missing or contains neither.
    """
    local = Path(fetch(path))
    text = local.read_text(encoding="utf-8-sig", errors="replace").strip() if local.is_file() else ""
    try:
        rows = json.loads(text) if text.startswith("[") else [int(line) for line in text.splitlines()]
    except ValueError:
        rows = None
    if rows and all(type(row) is int for row in rows):
        return rows, []
    return [], read_class_names(local)


def stated_classes(checkpoint: Mapping[str, Any]) -> Mapping[str, Any]:
    """Return the statements of a checkpoint about its classes, the entries "class_names" and "class_order".

    A checkpoint of a training has the first entry; the state_dict of a model of the zoo has both in its metadata.
    """
    if "class_names" in checkpoint and _are_names(checkpoint["class_names"]):
        return {"class_names": checkpoint["class_names"]}
    for state in (*map(checkpoint.get, ENTRIES), checkpoint):
        for stated in getattr(state, "_metadata", {}).values():  # per module, as the model may be inside a wrapper
            if isinstance(stated, Mapping) and isinstance(stated.get("class_order"), str):
                names = stated.get("class_names")
                return {"class_order": stated["class_order"], "class_names": names if _are_names(names) else None}
    return {}


def _are_names(value: Any) -> bool:
    return value is None or (isinstance(value, list) and all(isinstance(name, str) for name in value))


def state_classes(model: nn.Module) -> None:
    """Add the `class_names` and `class_order` of `model` to every state_dict of it.

    Otherwise saved tensors that are loaded again would be treated as released weights.
    """
    model.register_state_dict_post_hook(_state_classes)


def _state_classes(model: nn.Module, state: Any, prefix: str, metadata: dict[str, Any]) -> None:
    metadata |= {"class_order": model.class_order, "class_names": model.class_names}


def _other_classes(trained: Sequence[str], wanted: Sequence[str], to_train: bool) -> str:
    at = next((i for i, (a, b) in enumerate(zip(trained, wanted, strict=False)) if a != b), None)
    first = f"; class {at} is {trained[at]!r} there and {wanted[at]!r} here" if at is not None else ""
    cure = (
        "set head_rows to names to find them by their names, or reset_head to start a new classifier"
        if to_train
        else "give class names, and number the labels of a list, as in training, or give no class names"
    )
    return f"the checkpoint was trained on other classes ({len(trained)}, here {len(wanted)}{first}): {cure}"


# ---- tensors of classifiers -----------------------------------------------------------------------------------------


def classifiers(state: Mapping[str, Tensor], heads: Sequence[str]) -> list[str]:
    """Return the prefixes of the linear layers in the modules `heads`: the names before `weight` and `bias`."""
    inside = tuple(f"{head}." for head in heads)
    weights = [name for name, value in state.items() if value.ndim == 2 and name.startswith(inside)]
    return [name.removesuffix("weight") for name in weights if name.endswith(".weight")]


def _outputs(state: Mapping[str, Tensor], heads: Sequence[str]) -> list[str]:
    """Return those of `classifiers` that have as many rows as the last one of their head; others are hidden layers."""
    layers = [classifiers(state, [head]) for head in heads]
    rows = {layer: len(state[f"{layer}weight"]) for part in layers for layer in part}
    return [layer for part in layers for layer in part if rows[layer] == rows[part[-1]]]


def count_classes(state: Mapping[str, Tensor], heads: Sequence[str]) -> int:
    """Return the number of classes of the classifiers in the modules `heads`; 0 if there is none."""
    return max((len(state[f"{layer}weight"]) for layer in _outputs(state, heads)), default=0)


def select_classes(
    state: Mapping[str, Tensor], heads: Sequence[str], rows: Sequence[int | None], initial: Mapping[str, Tensor]
) -> StateDict:
    """Return `state` with selected rows of the classifiers in `heads`, for example 400 of Kinetics-710.

    A class whose row is None, because the checkpoint lacks it, keeps its row in `initial`, the tensors of the network.

    Raises:
        ValueError: there is no classifier, a row does not exist, or the network has another number of classes.
    """
    layers, classes = _outputs(state, heads), count_classes(initial, heads)
    if not layers:
        raise ValueError("the checkpoint has no classifier to take rows from: start a new one (reset_head)")
    selected = dict(state)
    known = [row for row in rows if row is not None]
    fresh = [i for i, row in enumerate(rows) if row is None]
    for layer in layers:
        count = len(state[f"{layer}weight"])
        if not all(0 <= row < count for row in known):
            raise ValueError(
                f"class rows reach from {min(known)} to {max(known)}, but {layer}weight has {count} classes: give the "
                "rows of this checkpoint"
            )
        for name in {f"{layer}weight", f"{layer}bias"} & state.keys():
            selected[name] = state[name][[row or 0 for row in rows]]
            # `load.fit` refuses a classifier of another shape
            if fresh and name in initial and initial[name].shape == selected[name].shape:
                selected[name][fresh] = initial[name][fresh].to(selected[name].dtype)
    if len(rows) != classes:
        raise ValueError(
            f"head_rows gives {len(rows)} classes, but the network has {classes}: give one row per class, or if the "
            "checkpoint lacks classes, head_rows names and the names of all classes beside the list"
        )
    return selected
