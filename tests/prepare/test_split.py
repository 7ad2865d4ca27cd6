"""Test the split of folders of videos per class into training, validation and test videos."""

from __future__ import annotations

import pytest
from list_fixtures import make_classes, notes_of, places, touch

from slowfast.prepare.split import lists_from_folders


def test_every_video_is_in_one_list_and_shares_are_about_those_given(tmp_path):
    lists = lists_from_folders(make_classes(tmp_path, 200), val_share=0.1, test_share=0.3)
    sizes = {split: len(rows) for split, rows in lists.splits.items()}
    assert sum(sizes.values()) == 600 == len(places(lists))
    assert 120 < sizes["test"] < 240 and 30 < sizes["val"] < 90
    assert lists.class_names == ["a", "b", "c"]
    assert all("abc".index(path[0]) == label for rows in lists.splits.values() for path, label in rows)


def test_a_video_keeps_its_split_when_others_are_added(tmp_path):
    before = places(lists_from_folders(make_classes(tmp_path, 50)))
    touch(tmp_path, *(f"a/more_{i}.mp4" for i in range(30)), "d/0.mp4", "d/1.mp4", "d/2.mp4")
    after = places(lists_from_folders(tmp_path))
    assert before.items() <= after.items() and len(after) == len(before) + 33
    assert places(lists_from_folders(tmp_path, seed=1)) != after


@pytest.mark.parametrize("count", [3, 4, 7])
@pytest.mark.parametrize("seed", range(8))
def test_small_classes_are_in_every_list(tmp_path, count, seed):
    lists = lists_from_folders(make_classes(tmp_path, count), seed=seed, val_share=0.05, test_share=0.05)
    for rows in lists.splits.values():
        assert {label for _, label in rows} == {0, 1, 2}


def test_classes_too_small_for_three_lists_are_reported(tmp_path):
    lists = lists_from_folders(touch(make_classes(tmp_path, 9, "ab"), "c/0.mp4", "d/0.mp4", "d/1.mp4"))
    assert places(lists)["c/0.mp4"] == "train" and {places(lists)[f"d/{i}.mp4"] for i in (0, 1)} == {"train", "test"}
    assert "2 classes without a val video: c, d" in notes_of(lists) and "1 classes without a test video: c" in notes_of(
        lists
    )


def test_groups_stay_together_across_classes(tmp_path):
    touch(tmp_path, *(f"{name}/v_g{group:02d}_c{i}.mp4" for name in "ab" for group in range(20) for i in range(3)))
    of_path = places(lists_from_folders(tmp_path, group=r"g(\d+)"))
    of_group: dict[str, set[str]] = {}
    for path, split in of_path.items():
        of_group.setdefault(path[5:7], set()).add(split)
    assert len(of_group) == 20 and all(len(splits) == 1 for splits in of_group.values())
    assert set.union(*of_group.values()) == {"train", "val", "test"}


def test_a_share_of_zero_uses_the_other_list(tmp_path):
    lists = lists_from_folders(make_classes(tmp_path, 20), val_share=0)
    assert lists.splits["val"] == lists.splits["test"] and "val and test are both the test videos" in notes_of(lists)
    with pytest.raises(ValueError, match=r"--val-share 0 and --test-share 0"):
        lists_from_folders(tmp_path, val_share=0, test_share=0)


def test_folders_of_splits_are_kept(tmp_path):
    touch(tmp_path, *(f"{split}/{name}/{i}.mp4" for split in ("train", "Validation") for name in "ab" for i in "012"))
    lists = lists_from_folders(tmp_path)
    assert [path for path, _ in lists.splits["test"]] == [f"Validation/{name}/{i}.mp4" for name in "ab" for i in "012"]
    assert lists.splits["val"] == lists.splits["test"] and len(lists.splits["train"]) == 6
    assert lists.class_names == ["a", "b"]


def test_class_names_fix_the_labels(tmp_path):
    lists = lists_from_folders(make_classes(tmp_path, 5), class_names=["c", "x", "a", "b"])
    assert {path[0]: label for path, label in lists.splits["train"]} == {"c": 0, "a": 2, "b": 3}
    assert "1 classes without a video: x" in notes_of(lists)
    with pytest.raises(ValueError, match=r"'c'"):
        lists_from_folders(tmp_path, class_names=["a", "b"])
