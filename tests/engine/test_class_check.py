"""A test with classes in the wrong order is detected, and a weak model is not reported as one."""

from __future__ import annotations

import numpy as np
import pytest

from slowfast.engine.class_check import find_permutation
from slowfast.utils.class_names import kinetics400_names
from slowfast.weights.class_order import places_of_rows


def predictions(classes: int, videos: int, accuracy: float, seed: int = 0) -> tuple[np.ndarray, np.ndarray]:
    """Return labels in turn, and predictions of which the given share is right and the others random."""
    rng = np.random.default_rng(seed)
    label = np.arange(videos) % classes
    return np.where(rng.random(videos) < accuracy, label, rng.integers(classes, size=videos)), label


@pytest.mark.parametrize("seed", range(4))
@pytest.mark.parametrize("accuracy", [0.0, 0.1, 0.5, 1.0])
@pytest.mark.parametrize(("classes", "videos"), [(2, 3), (2, 40), (8, 7), (8, 200), (400, 30), (400, 2000), (101, 404)])
def test_a_weak_model_is_not_a_permutation(classes, videos, accuracy, seed):
    assert find_permutation(*predictions(classes, videos, accuracy, seed), classes, None) is None


@pytest.mark.parametrize("classes", [2, 8, 400])
def test_a_model_that_predicts_few_classes_is_not_a_permutation(classes):
    rng = np.random.default_rng(0)
    label = rng.choice(classes, size=600, p=np.r_[0.4, np.full(classes - 1, 0.6 / (classes - 1))])
    for predicted in (np.full(600, classes - 1), rng.integers(2, size=600), rng.integers(classes, size=600)):
        assert find_permutation(predicted, label, classes, None) is None


def test_any_permutation_is_found_from_two_videos_per_class():
    predicted, label = predictions(101, 404, 0.8)
    permutation = np.random.default_rng(1).permutation(101)
    found = find_permutation(permutation[predicted], label, 101, None)
    assert found is not None and found.order == ""
    assert found.counted < 5 and found.matched == pytest.approx(100 * (predicted == label).mean(), abs=3)
    assert find_permutation(permutation[predicted], np.full(404, -1), 101, None) is None


def test_the_matching_is_the_best_one():
    """The most frequent pair, of class 0 with itself, is not part of it."""
    predicted, label = np.repeat([0, 1, 0], [100, 90, 90]), np.repeat([0, 0, 1], [100, 90, 90])
    found = find_permutation(predicted, label, 2, None)
    assert found is not None
    assert (found.counted, found.matched) == pytest.approx((100 * 100 / 280, 100 * 180 / 280))


@pytest.mark.parametrize(
    ("order", "classes"), [("k400", 400), ("k600_uniformer", 600), ("k600_v2", 600), ("k700_v2", 700)]
)
@pytest.mark.parametrize("shuffled", [False, True])
def test_a_known_order_is_named_from_few_videos(order, classes, shuffled):
    """Known orders are found with one video for some of the classes, where a fit cannot find them."""
    names = kinetics400_names() if classes == 400 else [f"class {i:03d}" for i in range(classes)]
    listed = np.random.default_rng(2).permutation(classes) if shuffled else np.arange(classes)
    names, place_of = [names[i] for i in listed], listed  # of each class of the list
    of_rows = np.array(places_of_rows(order, classes))
    true = np.random.default_rng(3).permutation(classes)[:40]
    row = np.argsort(of_rows)[place_of[true]]
    predicted = np.argsort(place_of)[row]  # rows in that order, taken as sorted
    found = find_permutation(predicted, true, classes, names, "sorted")
    assert found is not None and "rows" in found.order and found.order.endswith(f"order {order}")
    assert found.counted < 10 and found.matched == 100
    # sorted rows, taken as released
    predicted = np.argsort(place_of)[of_rows[place_of[true]]]
    found = find_permutation(predicted, true, classes, names, order)
    assert found is not None and found.order.endswith("order sorted")


def test_the_two_orders_of_kinetics_600_are_distinguished():
    """380 rows of the two orders are the same, so nearly two thirds of the predictions are right."""
    uniformer, v2 = (np.array(places_of_rows(name, 600)) for name in ("k600_uniformer", "k600_v2"))
    place, _ = predictions(600, 1200, 0.8)
    label = np.arange(1200) % 600
    found = find_permutation(
        uniformer[np.argsort(v2)][place], label, 600, [f"c{i:03d}" for i in range(600)], "k600_uniformer"
    )
    assert found is not None and found.order.endswith("order k600_v2") and found.matched > found.counted + 20


def test_labels_in_the_order_of_the_authors_are_detected():
    """A list without class names, in released order, and sorted weights."""
    of_rows = np.array(places_of_rows("k400", 400))
    label = np.arange(400)
    found = find_permutation(of_rows[label], label, 400, None)
    assert found is not None and found.order.startswith("the labels") and found.order.endswith("order k400")
