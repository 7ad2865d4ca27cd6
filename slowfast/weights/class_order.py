"""Find the class of each row of a released classifier.

The authors of released weights numbered their classes in different orders. `class_orders.json` contains these orders as
numbers only: the row of each class, in the order of the class names of the data set, sorted as Python sorts strings. An
order and the class names of a list, in any order, therefore give the row of every class.

An order has a name: one of `ORDERS` or of `K710`, which are in that file, "sorted" (rows in the order of the sorted
names), "ucf101" (sorted by their letters, as in classInd.txt), or one of `AS_LISTED`, for which rows keep their
order.
"""

from __future__ import annotations

import json
import re
from collections.abc import Sequence
from dataclasses import dataclass
from functools import cache
from pathlib import Path

import numpy as np

from slowfast.utils.class_names import kinetics400_names

FIGURES = Path(__file__).with_name("class_orders.json")
ORDERS = ("k400", "k600_uniformer", "k600_v2", "k700_v2")
# Order of the official annotation, and of lists made from it; order of image folders; no classifier.
AS_LISTED = ("annotation", "imagenet", "none")
K710 = ("k710", "k710_mmaction2")  # Kinetics-710, which contains the classes of Kinetics-400, 600 and 700
# Orders of UniFormerV2 that Kinetics-710 contains, by the number of their classes.
PARTS_OF_K710 = {400: "k400", 600: "k600_v2", 700: "k700_v2"}


@cache
def _figures() -> dict[str, dict[str, list[int]]]:
    return json.loads(FIGURES.read_text(encoding="utf-8"))


def rows_of_places(order: str, classes: int) -> list[int] | None:
    """Return the row of each class, in the order of the sorted class names of a data set with this number of classes.

    An order of `K710` gives the rows for Kinetics-400, 600 and 700. The result is None if the order is of another data
    set.
    """
    return [*range(classes)] if order == "sorted" else _figures().get(order, {}).get(str(classes))


def places_of_rows(order: str, classes: int) -> list[int] | None:
    """Return the place of the class of each row among the sorted class names; None for another number of classes.

    The order must not be one of `K710`, whose classifiers have more rows than these classes.
    """
    rows = rows_of_places(order, classes)
    return None if rows is None else np.argsort(rows).tolist()


def rows_of_k710(classes: int) -> list[int] | None:
    """Return the row of Kinetics-710 for each row of a classifier of 400, 600 or 700 classes; None for others."""
    rows, places = rows_of_places("k710", classes), places_of_rows(PARTS_OF_K710.get(classes, ""), classes)
    return [rows[place] for place in places] if rows and places else None


def order_of_part(order: str, classes: int) -> str:
    """Return the order of a classifier whose rows were taken from `order` without class names; "" if it has none.

    Only orders of `K710` differ from the result.
    """
    return {"k710": PARTS_OF_K710.get(classes, ""), "k710_mmaction2": "sorted"}.get(order, order)


def places_of_names(names: Sequence[str], order: str = "sorted") -> list[int]:
    """Return the place of each name among the sorted names; underscores count as blanks, and quotes are ignored.

    The names of Kinetics-400 may lack their punctuation, which would change the order of two of them.
    """
    known = {_letters(name): place for place, name in enumerate(kinetics400_names())}
    letters = [_letters(name) for name in names]
    if {*letters} == known.keys():
        return [known[name] for name in letters]

    def key(name: str) -> str:
        return _letters(name) if order == "ucf101" else name.replace("_", " ").strip('" ')

    in_order = sorted(range(len(names)), key=lambda index: key(names[index]))
    return np.argsort(in_order).tolist()


def rows_of_names(order: str, names: Sequence[str]) -> list[int] | None:
    """Return the row of each class of a list, found by its name; None if the order has another number of classes."""
    rows = rows_of_places("sorted" if order == "ucf101" else order, len(names))
    return None if rows is None else [rows[place] for place in places_of_names(names, order)]


def looks_like_kinetics(names: Sequence[str]) -> bool:
    """Return whether at least half of the names of Kinetics-400 are in `names`, as in Kinetics-600, 700 and 710."""
    known = {_plain(name) for name in kinetics400_names()}
    return 2 * len(known & {_plain(name) for name in names}) >= len(known)


def _plain(name: str) -> str:
    return " ".join(re.sub(r"[\[\]\"]", "", name.replace("_", " ")).casefold().split())


def _letters(name: str) -> str:
    return re.sub(r"[^a-z0-9]", "", name.casefold())


def class_rows(trained: Sequence[str], wanted: Sequence[str], partly: bool = False) -> list[int | None]:
    """Return the row of each class in `wanted`; case, quotes, brackets and underscores are ignored.

    Args:
        trained: class name of each row.
        wanted: class names to find.
        partly: a class without a row becomes None if at least one class has a row.

    Raises:
        ValueError: a class has several rows, or no row.
    """
    found: dict[str, list[int]] = {}
    for row, name in enumerate(trained):
        found.setdefault(_plain(name), []).append(row)
    rows = [found.get(_plain(name), []) for name in wanted]
    enough = (0, 1) if partly and any(rows) else (1,)
    wrong = [name for name, places in zip(wanted, rows, strict=True) if len(places) not in enough]
    if wrong:
        raise ValueError(
            f"{len(wanted)} class names, of which {len(wrong)} do not name exactly one of the {len(trained)} classes "
            f"of the checkpoint: {wrong[:5]}; correct the names, give the rows as numbers, or start a new classifier"
        )
    return [places[0] if places else None for places in rows]


def check_names(rows: int, names: Sequence[str]) -> None:
    """Raise ValueError unless there is one class name per row of a classifier; 0 rows means no classifier."""
    if rows not in (0, len(names)):
        raise ValueError(
            f"{len(names)} class names for the {rows} rows of the checkpoint's classifier: name every row, one per line"
        )


@dataclass(frozen=True)
class ClassOrder:
    """The class of each row of a classifier.

    Attributes:
        name: name of an order; "" if the order is not known.
        why: how the order was found, for the report.
        names: class name of each row, if a file contains it.
        is_kinetics: whether a classifier of 400 classes is one of Kinetics-400.
    """

    name: str = ""
    why: str = ""
    names: Sequence[str] | None = None
    is_kinetics: bool = True

    def row_names(self, rows: int) -> list[str] | None:
        """Return the class names of a classifier with this number of rows; None if they are not known.

        Without `names`, those of Kinetics-400 are known, also for the rows that a network takes from Kinetics-710.
        """
        if self.names:
            return list(self.names)
        places = places_of_rows(order_of_part(self.name, rows), rows) if self.is_kinetics and rows == 400 else None
        return None if places is None else [kinetics400_names()[place] for place in places]

    def rows_for(
        self,
        class_names: Sequence[str] | None,
        classes: int,
        count: int,
        *,
        partly: bool = False,
        by_place: bool = False,
    ) -> Sequence[int | None] | None:
        """Return the row that each class of a network takes; None if all rows keep their place.

        Args:
            class_names: class names of the network; None if they are not known.
            classes: number of classes of the network.
            count: number of rows of the classifier.
            partly: a class that `names` lacks becomes None.
            by_place: without `class_names`, the classes of the network are in the order of their sorted names.

        Raises:
            ValueError: the number of `names` is not that of the rows, or `names` lacks classes.
        """
        if self.names:
            check_names(count, self.names)
            return class_rows(self.names, class_names, partly) if class_names else None
        if count != (710 if self.name in K710 else classes):
            return None
        if class_names:
            return rows_of_names(self.name, class_names)
        if by_place or self.name == "k710_mmaction2":
            return rows_of_places(self.name, classes)
        return rows_of_k710(classes) if self.name == "k710" else None
