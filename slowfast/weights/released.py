"""Recognise released weights and the order of their classes."""

from __future__ import annotations

import hashlib
import os
from collections.abc import Mapping, Sequence
from functools import lru_cache
from typing import Any
from urllib.parse import unquote, urlsplit

from torch import nn

from slowfast.utils.class_names import read_class_names
from slowfast.weights.class_order import ORDERS, ClassOrder, looks_like_kinetics, places_of_names
from slowfast.weights.fetch import fetch, released_weights
from slowfast.weights.heads import count_classes, stated_classes
from slowfast.weights.layouts import MMACTION2, convert, extract_state_dict
from slowfast.weights.network import rules_of

SUFFIXES = (".pyth", ".pth", ".pt", ".bin", ".safetensors")
# Order of the authors of a network -> order of MMAction2.
MMACTION2_ORDERS = {**dict.fromkeys(ORDERS, "sorted"), "k710": "k710_mmaction2"}
# Data sets by the name of their reader; "" for an unknown one.
KINETICS = ("", "kinetics", "kinetics_sparse")


def identify(address: str | os.PathLike[str]) -> dict[str, Any] | None:
    """Return the row of released weights; None if they are not known.

    Args:
        address: a name or alias, a web address, or a path, whose file name or checksum is compared.
    """
    address = str(address)
    released = released_weights()
    if entry := released.get(address):
        return entry
    by_name = {_stem(known): entry for known, entry in released.items()}
    if entry := by_name.get(_stem(address)):
        return entry
    for entry in released.values():
        if "google_drive" in entry and entry["google_drive"] in address:
            return entry
    if os.path.isfile(address):
        status = os.stat(address)
        digests = _digests(address, status.st_size, status.st_mtime_ns)
        for entry in released.values():
            if any(entry.get(kind) and digest.startswith(entry[kind]) for kind, digest in digests.items()):
                return entry
    return None


@lru_cache(16)
def _digests(path: str, *_: int) -> dict[str, str]:
    """Return the checksums of a file; its size and time of change are arguments too, as part of the cache's key."""
    digests = {name: hashlib.new(name, usedforsecurity=False) for name in ("sha256", "md5")}
    with open(path, "rb") as file:
        while chunk := file.read(1 << 20):
            for digest in digests.values():
                digest.update(chunk)
    return {name: digest.hexdigest() for name, digest in digests.items()}


def _stem(address: str) -> str:
    """Return the file name of a path or web address without its suffix, with "_" for "+" as in some copies."""
    path = unquote(urlsplit(address).path) if "://" in address else address
    name = os.path.basename(path).replace("+", "_")
    return next((name.removesuffix(suffix) for suffix in SUFFIXES if name.endswith(suffix)), name)


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
        model: the network that is to be initialized.
        checkpoint: the result of `load_tensors`.
        address: the path or address that it was loaded from.
        choice: "auto"; "sorted", the order of the sorted class names; "released", the order of the authors of the
            network; or a file of the class names of the rows.
        dataset: name of the reader of the data set; "" if it is not known.
        class_names: class names of the list, which show whether its classes are those of Kinetics.

    Returns:
        The order; None if there is no classifier, or if the checkpoint contains its class names.

    Raises:
        ValueError: no order of that choice is known for such a classifier.
    """
    initial = model.state_dict()
    converted = convert(extract_state_dict(checkpoint, initial), initial)
    layout = converted.layout
    rows = count_classes(converted.state, rules_of(model).head_names)
    if not rows:
        return None
    if choice == "sorted":
        return ClassOrder("sorted", "class order sorted, as set", is_kinetics=dataset in KINETICS)
    if choice not in ("auto", "released"):
        return ClassOrder(names=read_class_names(fetch(choice)), why=f"class names of the rows from {choice}")
    stated = stated_classes(checkpoint)
    if choice == "auto" and stated:
        if "class_order" not in stated:
            return None
        names = stated["class_names"]
        return ClassOrder("" if names else stated["class_order"], "classes as stated in the file", names)
    entry = identify(address) or {}
    known = entry.get("class_order")
    if known and (choice == "auto" or entry["source"] != "MMAction2"):
        return ClassOrder(known, f"class order {known} of {entry['name']}")
    name = "" if layout.is_image_vit else _order_of_classes(model, rows, dataset, class_names)
    if choice == "auto" and not name:
        return ClassOrder(why="class order not known, assumed to be that of the list; class_order sets another")
    if choice == "auto":
        name = MMACTION2_ORDERS.get(name, name) if layout in MMACTION2 else name
        why = f"class order {name} assumed from the layout ({layout.name}) and {rows} classes; class_order sets another"
        return ClassOrder(name, why)
    if not name:
        raise ValueError(
            f"class_order released: no classifier of {rows} classes of this network was released: give a file of the "
            "class names of its rows"
        )
    return ClassOrder(name, f"class order {name}, as set")


def _order_of_classes(model: nn.Module, rows: int, dataset: str, class_names: Sequence[str] | None) -> str:
    """Return the order that the authors of a network used for a data set with `rows` classes; "" if it is not known."""
    if dataset in KINETICS and (not class_names or looks_like_kinetics(class_names)):
        return rules_of(model).kinetics_orders.get(rows, "")
    if dataset == "sth" and rows == 174 and class_names:
        # the numbers of V2's labels.json are almost sorted, the lines of V1's labels.csv are not
        at_their_place = sum(place == index for index, place in enumerate(places_of_names(class_names)))
        return "annotation" if 2 * at_their_place > rows else "sorted"
    return ""
