"""Test that media below a folder are found, and all other files are counted and reported."""

from __future__ import annotations

import os

import pytest
from list_fixtures import make_classes, notes_of, places, touch

from slowfast.prepare.scan import find_media, image_template
from slowfast.prepare.split import lists_from_folders


def test_odd_things_are_counted_and_reported(tmp_path):
    make_classes(tmp_path, 5)
    touch(tmp_path, ".DS_Store", "a/._0.mp4", "a/notes.txt", "b/-x.mp4", "b/y, z.mp4", "c/é 'q'.mp4", "loose.mp4")
    touch(tmp_path, "a/copy.mp4", content="a/0.mp4")
    touch(tmp_path, "b/same.mp4", content="c/0.mp4")
    touch(tmp_path, "a/empty.mp4", content="")
    (tmp_path / "none").mkdir()
    os.mkfifo(tmp_path / "a/pipe.mp4")
    (tmp_path / "a/link.mp4").symlink_to("nowhere.mp4")
    (tmp_path / "a/loop").symlink_to(tmp_path)
    lists = lists_from_folders(tmp_path)
    assert len(places(lists)) == 15 + 3 + 1 and lists.class_names == ["a", "b", "c"]
    for line in (
        "2 hidden, left out: .DS_Store, a/._0.mp4",
        "1 of an unknown type, left out: a/notes.txt",
        "1 empty, left out: a/empty.mp4",
        "1 no regular files, left out: a/pipe.mp4",
        "1 broken links, left out: a/link.mp4",
        "1 folders that were there already, left out: a/loop",
        "1 outside of a class folder, left out: loose.mp4",
        "1 classes without a video, left out: none",
        "1 copies of another file, left out: a/copy.mp4 = a/0.mp4",
        "1 of the same content as a file of another class or split, kept: c/0.mp4 = b/same.mp4",
        "3 with blanks, commas, quotes, letters beyond ASCII or a leading dash in the name, kept: b/-x.mp4, b/y, z.mp4",
    ):
        assert line in notes_of(lists)
    assert places(lists)["c/0.mp4"] == places(lists)["b/same.mp4"]  # the same content is never trained and tested on


def test_folders_without_videos_are_refused(tmp_path):
    with pytest.raises(ValueError, match="no folder"):
        find_media(tmp_path / "nowhere")
    (tmp_path / "a").mkdir()
    with pytest.raises(ValueError, match=r"no video below .*it is empty"):
        lists_from_folders(tmp_path)
    with pytest.raises(ValueError, match="1 class folders with videos"):
        lists_from_folders(make_classes(tmp_path, 3, "a"))


def test_braces_in_the_names_of_images_are_one_clear_error(tmp_path):
    """A template with them would name other files."""
    touch(tmp_path, "{3f2a}_001.jpg", "{3f2a}_002.jpg")
    with pytest.raises(ValueError, match=r"\{3f2a\}_001\.jpg .*braces .*rename"):
        image_template(tmp_path)
