"""Return the class of each row of a released classifier.

The authors of released weights numbered their classes in orders of their own. `class_orders.json` holds these orders as
figures only: entry r is the place of row r's class among the class names of the data set, sorted as Python sorts
strings. So an order and the class names of a list, in any order, give the row of every class.

An order has a name: a key of that file, "sorted" (rows in the order of the sorted names), "ucf101" (sorted without
regard to case, as in classInd.txt), or one of `AS_LISTED`, for which rows keep their order.
"""

from __future__ import annotations

import hashlib
import json
import os
from collections.abc import Sequence
from functools import cache, lru_cache
from pathlib import Path
from typing import Any
from urllib.parse import unquote, urlsplit

from slowfast.weights.fetch import released_weights

FIGURES = Path(__file__).with_name("class_orders.json")
ORDERS = ("k400", "k600_uniformer", "k600_v2", "k700_v2")
# The order of the official annotation, which is that of the lists made from it; image folders; no classifier.
AS_LISTED = ("annotation", "imagenet", "none")
# Orders of UniFormerV2 that Kinetics-710 contains, by the number of their classes.
PARTS_OF_K710 = {400: "k400", 600: "k600_v2", 700: "k700_v2"}
SUFFIXES = (".pyth", ".pth", ".pt", ".bin", ".safetensors")


@cache
def _figures() -> dict[str, Any]:
    return json.loads(FIGURES.read_text(encoding="utf-8"))


@cache
def kinetics400_names() -> list[str]:
    """Return the class names of Kinetics-400, sorted, as torchvision lists them for its own weights."""
    from torchvision.models.video import R3D_18_Weights  # takes longer to import than the rest of this package

    return sorted(R3D_18_Weights.DEFAULT.meta["categories"])


def places_of_rows(order: str, classes: int) -> list[int | None] | None:
    """Return the place of each row's class among the sorted class names; None for another number of classes.

    A class that the figures do not identify is None, unless it is the only one: then it has the remaining place.
    """
    if order == "sorted":
        return [*range(classes)]
    places = _figures()[order] if order in ORDERS else []
    if len(places) != classes:
        return None
    if places.count(None) == 1:
        (left,) = {*range(classes)} - {*places}
        places = [left if place is None else place for place in places]
    return places


def rows_of_places(order: str, classes: int) -> list[int | None] | None:
    """Return the row of the class at each place of the sorted class names of a data set of so many classes.

    The order k710 gives those of Kinetics-400, 600 and 700. None if the order is of another data set.
    """
    part = rows_of_k710(classes) if order == "k710" else None
    if order == "k710" and part is None:
        return None
    places = places_of_rows(order if part is None else PARTS_OF_K710[classes], classes)
    if places is None:
        return None
    rows: list[int | None] = [None] * classes
    for row, place in enumerate(places):
        if place is not None:
            rows[place] = row if part is None else part[row]
    return rows


def rows_of_k710(classes: int) -> list[int] | None:
    """Return the row of Kinetics-710 for each row of a classifier of 400, 600 or 700 classes; None for others."""
    name = PARTS_OF_K710.get(classes, "")
    return [*range(classes)] if name == "k400" else _figures()["k710_rows"].get(name)


def places_of_names(names: Sequence[str], order: str = "sorted") -> list[int]:
    """Return the place of each name among the sorted names; underscores are blanks and quotes are ignored."""

    def key(name: str) -> str:
        name = name.replace("_", " ").strip('" ')
        return name.casefold() if order == "ucf101" else name

    places = [0] * len(names)
    for place, index in enumerate(sorted(range(len(names)), key=lambda index: key(names[index]))):
        places[index] = place
    return places


def rows_of_names(order: str, names: Sequence[str]) -> list[int | None] | None:
    """Return the row of each class of a list, found by its name; None if the order is not of so many classes."""
    rows = rows_of_places("sorted" if order == "ucf101" else order, len(names))
    return None if rows is None else [rows[place] for place in places_of_names(names, order)]


def names_of_rows(order: str, classes: int, is_kinetics: bool) -> list[str] | None:
    """Return the class name of each row of a classifier; None if they depend on the user's data set.

    Those of k710 are the names of the rows that a model of so many classes takes from it.

    Args:
        is_kinetics: whether 400 classes are those of Kinetics-400.
    """
    order = PARTS_OF_K710.get(classes, "") if order == "k710" else order
    places = places_of_rows(order, classes) if is_kinetics and classes == 400 else None
    return None if places is None else [kinetics400_names()[place] for place in places if place is not None]


def looks_like_kinetics(names: Sequence[str]) -> bool:
    """Return whether half of the names of Kinetics-400 are among `names`, as in all its successors."""
    known = {name.casefold() for name in kinetics400_names()}
    return 2 * len(known & {name.replace("_", " ").strip('" ').casefold() for name in names}) >= len(known)


def identify(address: str | os.PathLike[str]) -> dict[str, Any] | None:
    """Return the row of the manifest of released weights; None if they are not known.

    Args:
        address: a name or alias, a web address, or a path, whose file name or checksum is compared.
    """
    address = str(address)
    released = released_weights()
    if entry := released.get(address):
        return entry
    by_name = {_stem(known): entry for known, entry in released.items()}
    by_name |= {_stem(entry["url"]): entry for entry in released.values() if "url" in entry}
    if entry := by_name.get(_stem(address)):
        return entry
    for entry in released.values():
        if "google_drive" in entry and entry["google_drive"] in address:
            return entry
    if not os.path.isfile(address):
        return None
    status = os.stat(address)
    digests = _digests(address, status.st_size, status.st_mtime_ns)
    for entry in released.values():
        if any(entry.get(name) and digest.startswith(entry[name]) for name, digest in digests.items()):
            return entry
    return None


@lru_cache(16)
def _digests(path: str, *_: int) -> dict[str, str]:
    """Return the checksums of a file; size and time of change, which follow its path, keep them current."""
    digests = {name: hashlib.new(name, usedforsecurity=False) for name in ("sha256", "md5")}
    with open(path, "rb") as file:
        while chunk := file.read(1 << 20):
            for digest in digests.values():
                digest.update(chunk)
    return {name: digest.hexdigest() for name, digest in digests.items()}


def _stem(address: str) -> str:
    """Return the file name of a path or web address without its suffix; the authors' "+" is "_" in other copies."""
    path = unquote(urlsplit(address).path) if "://" in address else address
    name = os.path.basename(path).replace("+", "_")
    return next((name.removesuffix(suffix) for suffix in SUFFIXES if name.endswith(suffix)), name)
