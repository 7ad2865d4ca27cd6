"""Find the class of each row of a checkpoint's classifier, and the rows that a model takes from it."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

from torch import nn

from slowfast.models.uniformerv2 import UniFormerV2
from slowfast.utils.class_names import read_class_names
from slowfast.weights.class_order import (
    AS_LISTED,
    ORDERS,
    identify,
    looks_like_kinetics,
    names_of_rows,
    places_of_names,
    rows_of_k710,
    rows_of_names,
    rows_of_places,
)
from slowfast.weights.fetch import fetch
from slowfast.weights.layouts import IMAGE_TOWERS, MMACTION2, class_rows, classifiers, convert, extract_state_dict

OVERRIDE = "MODEL.CLASS_ORDER (in Python class_order) sets another"
# Data sets by the name of their reader; "" for an unknown one.
KINETICS = ("", "kinetics", "kinetics_sparse")


@dataclass(frozen=True)
class ClassOrder:
    """The class of each row of a classifier.

    Args:
        name: an order of `slowfast.weights.class_order`; "" if none is known.
        why: how the order was found, for the log.
        names: the class names of the rows, if a file contains them.
        is_kinetics: whether the data set may be one of Kinetics.
    """

    name: str = ""
    why: str = ""
    names: Sequence[str] | None = None
    is_kinetics: bool = True

    def row_names(self, rows: int) -> list[str] | None:
        """Return the class names of a classifier with this number of rows; None if they are not known."""
        return list(self.names) if self.names else names_of_rows(self.name, rows, self.is_kinetics)


def head_prefixes(model: nn.Module) -> Sequence[str]:
    """Return the names of the modules of a model that hold its classifiers."""
    return getattr(model, "head_names", ("head",))


def classifier_rows(model: nn.Module, checkpoint: Mapping[str, Any]) -> int:
    """Return how many classes the classifier for `model` in a loaded checkpoint has; 0 if there is none."""
    state = convert(extract_state_dict(checkpoint), model).state
    return max((len(state[f"{layer}weight"]) for layer in classifiers(state, head_prefixes(model))), default=0)


def stated_classes(checkpoint: Mapping[str, Any]) -> Mapping[str, Any]:
    """Return the information of a checkpoint about its classes: the entries "class_names" and "class_order".

    A checkpoint of a training has the first; the state_dict of a model of the zoo has them in its metadata.
    """
    if "class_names" in checkpoint and _are_names(checkpoint["class_names"]):
        return {"class_names": checkpoint["class_names"]}
    for state in (checkpoint.get("model_state"), checkpoint.get("model"), checkpoint.get("state_dict"), checkpoint):
        for stated in getattr(state, "_metadata", {}).values():  # by module: a wrapper has the model as one of its own
            if isinstance(stated, Mapping) and isinstance(stated.get("class_order"), str):
                names = stated.get("class_names")
                return {"class_order": stated["class_order"], "class_names": names if _are_names(names) else None}
    return {}


def _are_names(value: Any) -> bool:
    return value is None or (isinstance(value, list) and all(isinstance(name, str) for name in value))


def state_classes(model: nn.Module) -> None:
    """Add the `class_names` and `class_order` of `model` to every state_dict of it.

    Otherwise its tensors, saved and loaded again, would be treated as released weights.
    """
    model.register_state_dict_post_hook(_state_classes)


def _state_classes(model: nn.Module, state: Any, prefix: str, metadata: dict[str, Any]) -> None:
    metadata |= {"class_order": model.class_order, "class_names": model.class_names}


def find_order(
    model: nn.Module,
    checkpoint: Mapping[str, Any],
    address: str,
    choice: str = "auto",
    dataset: str = "",
    class_names: Sequence[str] | None = None,
) -> ClassOrder | None:
    """Find the class of each row of the classifier in a loaded checkpoint.

    Args:
        model: the network to be loaded.
        checkpoint: the result of `load_tensors`.
        address: the path or address that it was loaded from.
        choice: "auto", "sorted" (the class names sorted), "released" (as the authors of the network numbered them), or
            a file of the class names of the rows.
        dataset: name of the reader of the data set; "" if it is not known.
        class_names: class names of the list, which show whether its classes are those of Kinetics.

    Returns:
        The order; None if there is no classifier, or if the checkpoint names its classes itself.

    Raises:
        ValueError: no order of that choice is known for such a classifier.
    """
    rows = classifier_rows(model, checkpoint)
    if not rows:
        return None
    is_kinetics = dataset in KINETICS
    if choice == "sorted":
        return ClassOrder("sorted", "class order sorted, as set", is_kinetics=is_kinetics)
    if choice not in ("auto", "released"):
        return ClassOrder(names=read_class_names(fetch(choice)), why=f"class names of the rows from {choice}")
    stated = stated_classes(checkpoint)
    if choice == "auto" and stated:
        if "class_order" not in stated:
            return None
        names = stated["class_names"]
        return ClassOrder("" if names else stated["class_order"], "classes as stated in the file", names)
    entry = identify(address)
    known = entry.get("class_order", "") if entry else ""
    if entry and known and (choice == "auto" or entry["source"] != "MMAction2"):
        return ClassOrder(known, f"class order {known} of {entry['name']}", is_kinetics=known not in AS_LISTED)
    layout = convert(extract_state_dict(checkpoint), model).layout
    name = "" if layout in IMAGE_TOWERS else _released_order(model, rows, dataset, class_names)
    if choice == "released":
        return ClassOrder(_known(name, rows), f"class order {name}, as set", is_kinetics=is_kinetics)
    if layout in MMACTION2 and name in ORDERS:
        name = "sorted"
    why = (
        f"class order {name} assumed from the layout ({layout.name}) and {rows} classes"
        if name
        else "the order of its classes is not known: read in the order of the list"
    )
    return ClassOrder(name, f"{why}; {OVERRIDE}", is_kinetics=is_kinetics)


def _known(name: str, rows: int) -> str:
    if not name:
        raise ValueError(
            f"MODEL.CLASS_ORDER released: no classifier of {rows} classes of this network was released; set a file of "
            "the class names of its rows instead"
        )
    return name


def _released_order(model: nn.Module, rows: int, dataset: str, class_names: Sequence[str] | None) -> str:
    """Return the order of the authors of this network for this number of classes of a data set; "" if unknown."""
    second = isinstance(model, UniFormerV2)
    if dataset in KINETICS:
        if class_names and not looks_like_kinetics(class_names):
            return ""
        return {400: "k400", 600: "k600_v2" if second else "k600_uniformer"}.get(
            rows, {700: "k700_v2", 710: "k710"}.get(rows, "") if second else ""
        )
    if dataset == "sth" and rows == 174 and class_names:
        # the numbers of V2's labels.json are almost sorted, the lines of V1's labels.csv are not
        at_their_place = sum(place == index for index, place in enumerate(places_of_names(class_names)))
        return "annotation" if 2 * at_their_place > rows else "sorted"
    return ""


def rows_to_take(
    order: ClassOrder, rows: int, classes: int, class_names: Sequence[str] | None, to_train: bool, by_place: bool
) -> list[int | None] | None:
    """Return the row of a classifier that each class of a model takes; None if all rows keep their place.

    Args:
        order: order of the rows of the classifier.
        rows: number of rows of the classifier.
        classes: number of classes of the model.
        class_names: class names of the model; None if they are not known.
        to_train: a class that a file of names lacks becomes None.
        by_place: without class names, the model's classes are in the order of their sorted names.

    Raises:
        ValueError: a file of names has another number of names than there are rows, or lacks classes.
    """
    if order.names:
        check_names(rows, order.names)
        return class_rows(order.names, class_names, partly=to_train) if class_names else None
    if rows != (710 if order.name == "k710" else classes):
        return None
    if class_names:
        return rows_of_names(order.name, class_names)
    if by_place:
        return rows_of_places(order.name, classes)
    return list(rows_of_k710(classes) or ()) or None if order.name == "k710" else None


def read_rows(path: str) -> tuple[list[int] | Literal["names"], list[str] | None]:
    """Return `head_rows` and `trained_names` of `load_weights` from a file or address.

    A JSON list of numbers, or one number per line, is the row of each class of the model, counted from 0; any other
    file contains the names of all classes of the checkpoint, see `read_class_names`.

    Raises:
        ValueError: the file is missing or has another content.
    """
    local = Path(fetch(path))
    if not local.is_file():
        raise ValueError(f"file of class rows {path!r} does not exist")
    try:
        text = local.read_text(encoding="utf-8-sig").strip()
    except UnicodeDecodeError:
        text = "?"  # names
    lines = text.splitlines()
    if text and not text.startswith("[") and not all(line.strip().isdigit() for line in lines):
        return "names", read_class_names(local)
    try:
        rows = json.loads(text) if text.startswith("[") else [int(line) for line in lines]
    except ValueError:
        rows = None
    if isinstance(rows, list) and rows and all(type(row) is int for row in rows):
        return rows, None
    if isinstance(rows, list) and rows and all(type(row) is str for row in rows):
        return "names", read_class_names(local)
    raise ValueError(
        f"{path!r} is not a list of class rows; write [12, 7, ...], one number per line for each class here, or the "
        "names of all classes of the checkpoint, one per line"
    )


def check_names(rows: int, names: Sequence[str]) -> None:
    """Raise ValueError unless there is one class name per row of a classifier; 0 rows means no classifier."""
    if rows not in (0, len(names)):
        raise ValueError(
            f"{len(names)} class names for the {rows} rows of the checkpoint's classifier; the file must name every "
            "row, one per line"
        )


def rows_by_name(
    rows: int, trained: Sequence[str] | None, wanted: Sequence[str] | None, partly: bool
) -> list[int | None]:
    """Return the row of each of the `wanted` classes among the `rows` of a classifier; None as in `class_rows`."""
    if not wanted:
        raise ValueError(
            "no class names in the data set, so classes cannot be found by name; write class_names.txt beside its "
            "lists, or give the rows as a file of numbers"
        )
    if not trained:
        raise ValueError(
            "no class names in the checkpoint, so classes cannot be found by name; give MODEL.HEAD_ROWS a file of "
            "them, one per line, or of the rows as numbers"
        )
    check_names(rows, trained)
    return class_rows(trained, wanted, partly=partly)
