"""Test that rows of bad files are removed from lists, and other rows stay unchanged."""

from __future__ import annotations

import pytest

from slowfast.datasets.catalog import DATASETS
from slowfast.datasets.lists import read_list
from slowfast.prepare.clean import ListFile, clean_lists, list_files


def test_rows_of_bad_files_are_left_out_and_others_stay_as_they_are(tmp_path):
    (tmp_path / "train.csv").write_text('\ufeff"a b.mp4",0\n\nbad, 1.mp4,1\nc.mp4,  2\r\n', encoding="utf-8")
    bad = {"bad, 1.mp4", "elsewhere.mp4"}
    text, dropped, lost = ListFile(tmp_path / "train.csv", ("path", "label"), ",", "").without(bad)
    assert (dropped, lost) == (1, [1])
    (tmp_path / "clean.csv").write_text(text)
    assert [(s.path, s.label) for s in read_list(tmp_path / "clean.csv", separator=",")] == [
        ("a b.mp4", 0),
        ("c.mp4", 2),
    ]


@pytest.mark.parametrize("separator", [" ", ","])
@pytest.mark.parametrize("given", [" ", ","])
def test_rows_with_several_labels_are_cleaned(tmp_path, separator, given):
    rows = [f'{name}.mp4{separator}"{labels}"' for name, labels in (("a", "0,2"), ("b", "1,2"), ("c", ""))]
    (tmp_path / "train.csv").write_text("\n".join(rows))
    (tmp_path / "a.mp4").touch()
    file = ListFile(tmp_path / "train.csv", ("path", "label"), given, str(tmp_path))
    assert [sample.label for sample in file.read()] == [(0, 2), (1, 2), ()]
    assert file.without({"b.mp4"}) == (f"{rows[0]}\n{rows[2]}\n", 1, [1])


@pytest.mark.parametrize(("row", "label"), [("a.mp4 3,17", (3, 17)), ("a.mp4,17", 17), ("a 3.mp4,17", 17)])
def test_the_first_video_decides_how_rows_are_read(tmp_path, row, label):
    (tmp_path / "train.csv").write_text(f"{row}\n")
    (tmp_path / "a.mp4").touch()
    (tmp_path / "a 3.mp4").touch()
    for given in (" ", ","):
        assert ListFile(tmp_path / "train.csv", ("path", "label"), given, str(tmp_path)).read()[0].label == label


@pytest.mark.parametrize("name", ["class_names.txt", "classes.txt"])
def test_a_list_that_is_cleaned_into_another_folder_keeps_its_class_names(tmp_path, name):
    (tmp_path / "train.csv").write_text("a.mp4 0\nb.mp4 1\n")
    (tmp_path / name).write_text("cat\ndog\n")
    clean_lists(list_files(tmp_path, DATASETS["own"]), tmp_path / "clean", {"a.mp4"})
    cleaned = read_list(tmp_path / "clean/train.csv", num_classes=2)
    assert len(cleaned) == 1 and cleaned.class_names == ["cat", "dog"]


def test_a_list_without_good_files_is_refused(tmp_path):
    (tmp_path / "train.csv").write_text("a.mp4 0\nb.mp4 1\n")
    with pytest.raises(ValueError, match=r"all 2 videos of .*train\.csv are bad"):
        ListFile(tmp_path / "train.csv", ("path", "label"), " ", "").without({"a.mp4", "b.mp4"})


@pytest.mark.parametrize("separator", [" ", ","])
def test_lists_of_frame_folders_need_no_special_name(tmp_path, separator):
    (tmp_path / "clip 1").mkdir()
    rows = [("lost", 20, 3), ("clip 1", 30, 4)]
    (tmp_path / "train.csv").write_text("".join(f"{separator.join(map(str, row))}\n" for row in rows))
    (file,) = list_files(tmp_path, DATASETS["own"], str(tmp_path))
    assert [(row.path, row.num_frames, row.label) for row in file.read()] == rows
