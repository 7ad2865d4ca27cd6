"""Test the class orders of released classifiers, and how they are found for weights."""

from __future__ import annotations

import re

import numpy as np
import pytest

from slowfast.utils.class_names import kinetics400_names
from slowfast.weights import fetch
from slowfast.weights.class_order import (
    AS_LISTED,
    K710,
    ORDERS,
    ClassOrder,
    places_of_names,
    places_of_rows,
    rows_of_k710,
    rows_of_names,
    rows_of_places,
)

# released weights -> its class_order
EXAMPLES = {
    "uniformer_s16x4_k400": "k400",
    "uniformer_xxs4_128_k400": "k400",
    "uniformer_b32x4_k600": "k600_uniformer",
    "k400_k710_uniformerv2_l14_64x336": "k400",
    "k600_uniformerv2_b16_8x224": "k600_v2",
    "frozen_k700_k710_uniformerv2_l14_8x336": "k700_v2",
    "k710_uniformerv2_b16_8x224": "k710",
    "uniformer_s16_sthv1_prek600": "sorted",
    "sthv1_uniformerv2_l14_32x224": "sorted",
    "uniformer_b32_sthv2_prek400": "annotation",
    "sthv2_uniformerv2_b16_16x224": "annotation",
    "uniformer_s16x4_ucf101_prek400": "ucf101",
    "uniformer_s16x4_hmdb51_prek400": "sorted",
    "mit_uniformerv2_b16_8x224": "annotation",
    "uniformer-base_imagenet1k-pre_32x4x1_kinetics400-rgb": "sorted",
    "uniformerv2-base-p16-res224_clip-kinetics710-pre_8xb32-u8_kinetics600-rgb": "sorted",
    "uniformerv2-base-p16-res224_clip-pre_u8_kinetics710-rgb": "k710_mmaction2",
    "uniformer_small_in1k": "imagenet",
    "clip_vit_b16": "none",
}


def test_all_released_weights_name_an_order():
    released = fetch.released_weights()
    for entry in released.values():
        assert entry["class_order"] in {*ORDERS, *AS_LISTED, *K710, "sorted", "ucf101"}, entry["name"]
    assert {name: released[name]["class_order"] for name in EXAMPLES} == EXAMPLES


@pytest.mark.parametrize(
    ("order", "classes"), [("k400", 400), ("k600_uniformer", 600), ("k600_v2", 600), ("k700_v2", 700), ("sorted", 174)]
)
def test_an_order_has_every_place_once(order, classes):
    places = places_of_rows(order, classes)
    assert places is not None and {*places} == {*range(classes)}
    rows = rows_of_places(order, classes)
    assert rows is not None and [rows[place] for place in places] == [*range(classes)]
    assert places_of_rows(order, classes - 1) is None or order == "sorted"


def test_official_row_0_of_kinetics_400():
    places = places_of_rows("k400", 400)
    assert places is not None and places[0] == 267
    names = ClassOrder("k400").row_names(400)
    assert names is not None and names[:3] == ["riding a bike", "marching", "dodgeball"] and len({*names}) == 400
    assert ClassOrder("sorted").row_names(400) == kinetics400_names() == sorted(kinetics400_names())
    assert ClassOrder("sorted", is_kinetics=False).row_names(400) is None
    assert ClassOrder("k600_v2").row_names(600) is None


@pytest.mark.parametrize("classes", [400, 600, 700])
def test_kinetics_710_gives_the_rows_of_the_other_sets(classes):
    """A class of two data sets has one row in Kinetics-710, and the orders of both data sets agree with it."""
    rows = rows_of_k710(classes)
    assert rows is not None and len({*rows}) == classes and max(rows) < 710
    places = places_of_rows({400: "k400", 600: "k600_v2", 700: "k700_v2"}[classes], classes)
    by_place = rows_of_places("k710", classes)
    assert places is not None and by_place is not None
    assert [by_place[place] for place in places] == rows
    assert rows_of_places("k710", 710) is None and rows_of_k710(174) is None


def test_kinetics_710_of_mmaction2():
    """The first 400 rows are the sorted classes of Kinetics-400, and the other rows those that came later."""
    rows = {classes: rows_of_places("k710_mmaction2", classes) or [] for classes in (400, 600, 700)}
    assert rows[400] == [*range(400)] and ClassOrder("k710_mmaction2").row_names(400) == kinetics400_names()
    # of label_map_k710.txt: abseiling, acting in play, adjusting glasses, air drumming, alligator wrestling
    assert rows[600][:5] == rows[700][:5] == [0, 661, 611, 1, 694]
    assert rows[600][-3:] == rows[700][-3:] == [397, 398, 399]  # yawning, yoga, zumba
    assert all(len({*rows[classes]}) == classes for classes in rows)
    assert {*rows[600]} - {*rows[400]} - {*rows[700]} == {708, 709}  # chopping vegetables, bull fighting
    assert {*rows[700]} - {*rows[400]} - {*rows[600]} == {*range(400, 492)}
    assert rows_of_places("k710_mmaction2", 710) is None


@pytest.mark.parametrize("order", ["k400", "sorted", "k710", "k710_mmaction2"])
def test_rows_follow_the_names_in_any_order_of_the_list(order):
    names = [f"name {i:03d}" for i in range(400)]
    by_place = rows_of_names(order, names)
    assert by_place == rows_of_places(order, 400)
    mixed = np.random.default_rng(0).permutation(400)
    assert by_place is not None and rows_of_names(order, [names[i] for i in mixed]) == [by_place[i] for i in mixed]
    assert rows_of_names("k400", names[:-1]) is None


def test_places_follow_names():
    assert places_of_names(["b", "A", "a_c", '"a b"']) == [3, 0, 2, 1]
    # classInd.txt is sorted without regard to case
    names = ["Haircut", "HammerThrow", "Hammering", "JumpRope", "JumpingJack"]
    assert rows_of_names("ucf101", names) == [0, 2, 1, 4, 3] and rows_of_names("sorted", names) == [0, 1, 2, 3, 4]
    spelt = ["haircut", "Hammer Throw", "hammering", "jump_rope", "Jumping_Jack"]
    assert rows_of_names("ucf101", spelt) == [0, 2, 1, 4, 3]


@pytest.mark.parametrize("separator", ["", "_", " "])
def test_names_of_kinetics_400_may_be_folders_without_punctuation(separator):
    """Without its bracket, "skiing (not slalom or crosscountry)" would be sorted after "skiing crosscountry"."""
    names = kinetics400_names()
    folders = [re.sub(r"[^a-z0-9]+", separator, name.lower()).strip("_ ") for name in names]
    assert folders != sorted(folders)
    assert places_of_names(folders) == [*range(400)]
    assert rows_of_names("k400", folders[::-1]) == (rows_of_names("k400", names) or [])[::-1]


def test_stated_names_keep_their_rows_if_those_of_the_network_are_not_known():
    order = ClassOrder(names=["b", "a"])
    assert order.rows_for(None, 2, 2) is None
    assert order.rows_for(["a", "b"], 2, 2) == [1, 0]
