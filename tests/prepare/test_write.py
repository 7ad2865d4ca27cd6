"""Test that training reads the names and labels that were written, and that lists are replaced only on request."""

from __future__ import annotations

import re
from dataclasses import replace

import pytest
from list_fixtures import make_classes, notes_of, touch

from slowfast.datasets.catalog import DATASETS
from slowfast.datasets.lists import ListError, read_list
from slowfast.prepare.scan import Found, find_media
from slowfast.prepare.split import lists_from_folders
from slowfast.prepare.write import write_lists, write_unlabelled


def test_unusual_names_survive_writing_and_reading(tmp_path):
    names = [
        " a b .mp4",
        '"q".mp4',
        "x,1.mp4",
        "-v 3.mp4",
        "日本.mp4",
        "\udcff.mp4",
        "tail.mp4",
        'say "hi".mp4',
        "\ufeffb.mp4",
    ]
    videos = touch(tmp_path / "videos", *(f"{folder}/{name}" for folder in ("1", "2") for name in names))
    (videos / "2/with\nbreak.mp4").write_text("x")
    (videos / "2/with\rreturn.mp4").write_text("x")
    (videos / "2/empty\r.mp4").touch()
    touch(videos, "2/frames\r/1.jpg")
    lists = lists_from_folders(videos)
    assert "4 with a line break in the name" in notes_of(lists) and "\r" not in notes_of(lists)
    assert find_media(videos).unusable == []
    write_lists(lists, tmp_path / "lists", videos, DATASETS["own"])
    found = {}
    for split in ("train", "val", "test"):
        samples = read_list(tmp_path / f"lists/{split}.csv", prefix=str(videos), num_classes=2)
        assert samples.class_names == ["1", "2"]
        found |= {sample.path: sample.label for sample in samples}
    assert found == {f"{videos}/{folder}/{name}": int(folder) - 1 for folder in ("1", "2") for name in names}

    flat = touch(tmp_path / "flat", *(name for name in (*names, ' "', '""') if name.endswith(".mp4")))
    write_unlabelled(tmp_path / "new", find_media(flat).sizes, Found().notes)
    samples = read_list(tmp_path / "new/test.csv", prefix=str(flat), unknown=True)
    assert sorted(sample.path for sample in samples) == sorted(f"{flat}/{name}" for name in names)


def test_lists_that_differ_are_not_overwritten(tmp_path):
    videos, out = make_classes(tmp_path / "videos", 9), tmp_path / "lists"
    recipe = tmp_path / "repository/exp/finetune/config.yaml"
    first = write_lists(lists_from_folders(videos), out, videos, DATASETS["own"], recipe=recipe)
    assert {path.name for path in first} == {
        "train.csv", "val.csv", "test.csv", "class_names.txt", "data.yaml", "config.yaml",
    }  # fmt: skip
    assert write_lists(lists_from_folders(videos), out, videos, DATASETS["own"], recipe=recipe) == []
    (out / "config.yaml").write_text("mine: True\n")
    touch(videos, "a/new.mp4", "d/0.mp4")
    before = {path: path.read_bytes() for path in out.iterdir()}
    with pytest.raises(ValueError, match=r"\(train.csv, .*--overwrite"):
        write_lists(lists_from_folders(videos), out, videos, DATASETS["own"], recipe=recipe)
    assert {path: path.read_bytes() for path in out.iterdir()} == before
    write_lists(lists_from_folders(videos), out, videos, DATASETS["own"], recipe=recipe, overwrite=True)
    assert (out / "class_names.txt").read_text() == "a\nb\nc\nd\n"
    assert "NUM_CLASSES: 4" in (out / "data.yaml").read_text()
    assert (out / "config.yaml").read_text() == "mine: True\n"  # what a person wrote stays


def test_own_frame_folders_get_their_template(tmp_path, write_folder):
    videos = tmp_path / "videos"
    for name in ("a/one", "a/two", "a/three", "b/one", "b/two", "b/three"):
        write_folder(videos / name, frames=3, template="frame{:04d}.jpg")
    lists = lists_from_folders(videos)
    write_lists(lists, tmp_path / "lists", videos, DATASETS["own"], recipe=tmp_path / "r/exp/x/config.yaml")
    assert "IMAGE_TEMPLATE: frame{:04d}.jpg" in (tmp_path / "lists/data.yaml").read_text()
    assert len(read_list(tmp_path / "lists/train.csv")) == 2

    named = tmp_path / "named"
    for name in ("a/10", "a/6", "a/1", "b/2", "b/3", "b/4"):
        write_folder(named / name, frames=3, template=f"{name[2:]}_{{:06d}}.jpg")
    out = tmp_path / "r/exp/x/config.yaml"
    write_lists(lists_from_folders(named), tmp_path / "named_lists", named, DATASETS["own"], recipe=out)
    assert "IMAGE_TEMPLATE: '{folder}_{:06d}.jpg'" in (tmp_path / "named_lists/data.yaml").read_text()

    (videos / "b/two/frame0001.jpg").unlink()
    with pytest.raises(ValueError, match="not numbered from 1"):
        write_lists(lists, tmp_path / "other", videos, DATASETS["own"], recipe=tmp_path / "r/exp/x/config.yaml")
    (videos / "b/two/frame0002.jpg").rename(videos / "b/two/img_1.jpg")
    (videos / "b/two/frame0003.jpg").rename(videos / "b/two/img_2.jpg")
    with pytest.raises(ValueError, match=r"named 'frame\{:04d\}.jpg' in a/one, but 'img_\{:01d\}.jpg' in b/two"):
        write_lists(lists, tmp_path / "other", videos, DATASETS["own"], recipe=tmp_path / "r/exp/x/config.yaml")
    assert not (tmp_path / "other").exists()


def test_class_names_with_line_breaks_are_refused(tmp_path):
    lists = lists_from_folders(make_classes(tmp_path / "videos", 5))
    for name in ("x\ry", "x\ny"):
        strange = replace(lists, class_names=["a", name, "c"])
        with pytest.raises(ValueError, match=r"class name 'x\\[rn]y' has a line break"):
            write_lists(strange, tmp_path / "lists", tmp_path / "videos", DATASETS["own"])
    assert not (tmp_path / "lists").exists()


def test_cleaned_lists_stay_clean_until_the_videos_change(tmp_path):
    videos, out = make_classes(tmp_path / "videos", 5), tmp_path / "lists"
    write_lists(lists_from_folders(videos), out, videos, DATASETS["own"])
    (out / "train.csv.orig").write_bytes((out / "train.csv").read_bytes())
    (out / "train.csv").write_text("a/0.mp4 0\n")
    lists = lists_from_folders(videos)
    assert write_lists(lists, out, videos, DATASETS["own"]) == []
    assert (out / "train.csv").read_text() == "a/0.mp4 0\n"
    assert re.search(r"^1 without their bad files.*--overwrite.*: train\.csv$", notes_of(lists), re.MULTILINE)
    touch(videos, *(f"a/new{i}.mp4" for i in range(9)))
    lists = lists_from_folders(videos)
    with pytest.raises(ValueError, match=r"\(train.csv"):
        write_lists(lists, out, videos, DATASETS["own"])
    write_lists(lists, out, videos, DATASETS["own"], overwrite=True)
    assert not (out / "train.csv.orig").exists()
    assert re.search(r"^1 rewritten .*check --clean.*: train\.csv$", notes_of(lists), re.MULTILINE)
    (out / "train.csv.orig").write_bytes((out / "train.csv").read_bytes())
    (out / "train.csv").write_text("a/0.mp4 0\n")
    lists = lists_from_folders(videos)
    assert [path.name for path in write_lists(lists, out, videos, DATASETS["own"], overwrite=True)] == ["train.csv"]
    assert not (out / "train.csv.orig").exists() and "a/1.mp4" in "".join(
        (out / f"{s}.csv").read_text() for s in lists.splits
    )

    new = write_unlabelled(tmp_path / "new", ["a.mp4", "b.mp4"], Found().notes)
    (tmp_path / "new/test.csv.orig").write_bytes(new.read_bytes())
    new.write_text("a.mp4 -1\n")
    write_unlabelled(tmp_path / "new", ["a.mp4", "b.mp4"], Found().notes)
    assert new.read_text() == "a.mp4 -1\n"
    write_unlabelled(tmp_path / "new", ["a.mp4", "b.mp4"], Found().notes, overwrite=True)
    assert new.read_text() == "a.mp4 -1\nb.mp4 -1\n" and not (tmp_path / "new/test.csv.orig").exists()
    write_unlabelled(tmp_path / "new", ["a.mp4", "c.mp4"], Found().notes, overwrite=True)
    assert not (tmp_path / "new/test.csv.orig").exists() and new.read_text().endswith("c.mp4 -1\n")


def test_written_lists_are_accepted_by_the_reader_of_lists(tmp_path):
    """The reader refuses a label beyond the classes, here by a class count that is too small."""
    videos = make_classes(tmp_path / "videos", 4)
    write_lists(lists_from_folders(videos), tmp_path / "lists", videos, DATASETS["own"])
    assert len(read_list(tmp_path / "lists/train.csv", num_classes=3))
    with pytest.raises(ListError):
        read_list(tmp_path / "lists/train.csv", num_classes=2)
