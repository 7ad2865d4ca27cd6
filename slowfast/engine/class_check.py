"""Detect a test whose predictions number the classes in another order than its labels."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from typing import NamedTuple

import numpy as np

from slowfast.weights.class_order import ORDERS, order_of_part, places_of_names, places_of_rows

# A wrong order costs more accuracy than a weak model: at least LEAST_GAIN percent of the videos of a class, on average,
# and more than the random choice of the videos explains (DEVIATIONS standard deviations of McNemar's test).
LEAST_GAIN = 20.0
DEVIATIONS = 4.0


class Permutation(NamedTuple):
    """A one-to-one change of the predicted classes that explains the labels far better."""

    counted: float  # top-1 accuracy in percent as counted
    matched: float  # the same with the best matching of predicted to true classes
    order: str  # the known order that explains it, "" if none does


def find_permutation(
    predicted: np.ndarray, label: np.ndarray, classes: int, class_names: Sequence[str] | None, taken_as: str = ""
) -> Permutation | None:
    """Return the permutation of classes in the predictions of a test; None if there is none, or the model is weak.

    Known orders are tried first. Any other permutation is fitted to one half of the videos of each class and
    judged on the other half, where a fit to chance gains nothing.

    Args:
        predicted: (N,) most probable class of each video.
        label: (N,) true class, or -1 where it is not known.
        classes: K.
        class_names: of the list; None if they are not known.
        taken_as: the order in which the rows of the classifier were read; "" for the order of the file.
    """
    predicted, label = predicted[label >= 0], label[label >= 0]
    if not len(label):
        return None
    right = predicted == label
    found = {
        words: moved
        for words, mapping in _known_orders(classes, class_names, taken_as)
        if _explains(moved := mapping[predicted] == label, right, label)
    }
    order = max(found, key=lambda words: int(found[words].sum()), default="")
    if not order and not _explains(_held_out(predicted, label, classes), right, label):
        return None
    matched = _match(predicted, label, classes)[predicted] == label
    return Permutation(100.0 * float(right.mean()), 100.0 * float(matched.mean()), order)


def _explains(moved: np.ndarray, right: np.ndarray, label: np.ndarray) -> bool:
    """Return whether predictions that are right in `moved` are far more accurate than those right in `right`."""
    gained, lost = int((moved & ~right).sum()), int((right & ~moved).sum())
    if gained - lost < DEVIATIONS * np.sqrt(gained + lost) or not gained:
        return False
    count = np.bincount(label)
    gain = np.bincount(label, moved.astype(float) - right)[count > 0] / count[count > 0]
    return 100.0 * float(gain.mean()) >= LEAST_GAIN


def _match(predicted: np.ndarray, label: np.ndarray, classes: int) -> np.ndarray:
    """Return the true class of each predicted class in the best one-to-one matching; on a tie, the same class."""
    from scipy.optimize import linear_sum_assignment  # imports half of SciPy, which only a test with labels needs

    confusion = 0.001 * np.eye(classes)
    np.add.at(confusion, (predicted, label), 1.0)
    return linear_sum_assignment(confusion, maximize=True)[1]


def _held_out(predicted: np.ndarray, label: np.ndarray, classes: int) -> np.ndarray:
    """Return (N,) whether each video is right in a matching fitted to the other half of the videos of each class."""
    by_class = np.argsort(label, kind="stable")
    half = np.zeros(len(label), bool)
    half[by_class[1::2]] = True
    right = np.zeros(len(label), bool)
    for fitted in (half, ~half):
        mapping = _match(predicted[fitted], label[fitted], classes)
        right[~fitted] = mapping[predicted[~fitted]] == label[~fitted]
    return right


def _known_orders(classes: int, class_names: Sequence[str] | None, taken_as: str) -> Iterator[tuple[str, np.ndarray]]:
    """Yield a description of each possible confusion, with the true class of each predicted class."""
    listed = np.arange(classes)
    places = np.array(places_of_names(class_names)) if class_names else listed
    class_at = np.argsort(places)
    orders = {}  # name -> place of each row
    for name in ("sorted", *ORDERS):
        if of_rows := places_of_rows(name, classes):
            orders[name] = np.array(of_rows)
    taken = order_of_part(taken_as, classes)
    rows = np.argsort(orders[taken])[places] if taken in orders and class_names else listed
    for name, of_rows in orders.items():
        if name != taken:
            yield f"the rows of the classifier seem to be in the order {name}", class_at[of_rows][rows]
        yield f"the labels of the list seem to be in the order {name}", np.argsort(of_rows)[places]
    yield "the rows of the classifier seem to be in the order of the list", rows
