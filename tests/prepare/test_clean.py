"""Test that rows of bad files are removed from lists, and other rows stay unchanged."""

from __future__ import annotations

import pytest

from slowfast.datasets.lists import read_list
from slowfast.prepare.clean import ListFile


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


def test_a_list_without_good_files_is_refused(tmp_path):
    (tmp_path / "train.csv").write_text("a.mp4 0\nb.mp4 1\n")
    with pytest.raises(ValueError, match=r"all 2 videos of .*train\.csv are bad"):
        ListFile(tmp_path / "train.csv", ("path", "label"), " ", "").without({"a.mp4", "b.mp4"})
