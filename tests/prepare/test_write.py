"""Lists from folders and from official annotations, of files that are there."""

from __future__ import annotations

import json
import os
import re
from dataclasses import replace
from pathlib import Path

import pytest

from slowfast.datasets.catalog import DATASETS, FRAME_COLUMNS
from slowfast.datasets.lists import ListError, read_list
from slowfast.prepare.annotations import lists_from_annotations
from slowfast.prepare.scan import Found, describe, find_media
from slowfast.prepare.split import lists_from_folders
from slowfast.prepare.write import Lists, write_lists, write_unlabelled


def touch(root: Path, *paths: str, content: str | None = None) -> Path:
    """Files whose content is their own path: lists look at names and bytes, never into videos."""
    for path in paths:
        (root / path).parent.mkdir(parents=True, exist_ok=True)
        (root / path).write_bytes(os.fsencode(path if content is None else content))
    return root


def make_classes(root: Path, count: int, classes: str = "abc") -> Path:
    return touch(root, *(f"{name}/{i}.mp4" for name in classes for i in range(count)))


def places(lists: Lists) -> dict[str, str]:
    """Path -> split."""
    return {path: split for split in ("train", "val", "test") for path, _ in lists.splits[split]}


def notes_of(lists: Lists) -> str:
    return "\n".join(describe(lists.notes))


def test_every_video_is_in_one_list_and_shares_are_about_those_given(tmp_path):
    lists = lists_from_folders(make_classes(tmp_path, 200), val_share=0.1, test_share=0.3)
    sizes = {split: len(rows) for split, rows in lists.splits.items()}
    assert sum(sizes.values()) == 600 == len(places(lists))
    assert 120 < sizes["test"] < 240 and 30 < sizes["val"] < 90
    assert lists.class_names == ["a", "b", "c"]
    assert all("abc".index(path[0]) == label for rows in lists.splits.values() for path, label in rows)


def test_a_video_keeps_its_place_when_others_come(tmp_path):
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


def test_classes_too_small_for_three_lists_are_notes_of(tmp_path):
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


def test_folders_of_splits_are_taken_as_they_are(tmp_path):
    touch(tmp_path, *(f"{split}/{name}/{i}.mp4" for split in ("train", "Validation") for name in "ab" for i in "012"))
    lists = lists_from_folders(tmp_path)
    assert [path for path, _ in lists.splits["test"]] == [f"Validation/{name}/{i}.mp4" for name in "ab" for i in "012"]
    assert lists.splits["val"] == lists.splits["test"] and len(lists.splits["train"]) == 6
    assert lists.class_names == ["a", "b"]


def test_odd_things_are_counted_and_notes_of(tmp_path):
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
        "1 empty files, left out: a/empty.mp4",
        "1 no regular files, left out: a/pipe.mp4",
        "1 broken links, left out: a/link.mp4",
        "1 folders that were there already, left out: a/loop",
        "1 outside of a class folder, left out: loose.mp4",
        "1 classes without a video, left out: none",
        "1 copies of another file, left out: a/copy.mp4 = a/0.mp4",
        "1 of the same content as a file of another class or split, kept: c/0.mp4 = b/same.mp4",
        "2 with blanks in the name, kept: b/y, z.mp4, c/é 'q'.mp4",
        "1 with commas in the name, kept: b/y, z.mp4",
        "1 with quotes in the name, kept: c/é 'q'.mp4",
        "1 with letters beyond ASCII in the name, kept: c/é 'q'.mp4",
        "1 with a leading dash in the name, kept: b/-x.mp4",
    ):
        assert line in notes_of(lists)
    assert places(lists)["c/0.mp4"] == places(lists)["b/same.mp4"]  # the same content is never trained and tested on


def test_strange_names_come_back_from_a_list(tmp_path):
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


def test_class_names_fix_the_labels(tmp_path):
    lists = lists_from_folders(make_classes(tmp_path, 5), class_names=["c", "x", "a", "b"])
    assert {path[0]: label for path, label in lists.splits["train"]} == {"c": 0, "a": 2, "b": 3}
    assert "1 classes without a video: x" in notes_of(lists)
    with pytest.raises(ValueError, match=r"'c'"):
        lists_from_folders(tmp_path, class_names=["a", "b"])


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


def test_folders_that_hold_nothing_to_learn_from_are_refused(tmp_path):
    with pytest.raises(ValueError, match="no folder"):
        find_media(tmp_path / "nowhere")
    (tmp_path / "a").mkdir()
    with pytest.raises(ValueError, match=r"no video below .*it is empty"):
        lists_from_folders(tmp_path)
    with pytest.raises(ValueError, match="1 class folders with videos"):
        lists_from_folders(make_classes(tmp_path, 3, "a"))


def test_own_frame_folders_get_their_template(tmp_path, write_folder):
    videos = tmp_path / "videos"
    for name in ("a/one", "a/two", "a/three", "b/one", "b/two", "b/three"):
        write_folder(videos / name, frames=3, template="frame{:04d}.jpg")
    lists = lists_from_folders(videos)
    write_lists(lists, tmp_path / "lists", videos, DATASETS["own"], recipe=tmp_path / "r/exp/x/config.yaml")
    assert "IMAGE_TEMPLATE: frame{:04d}.jpg" in (tmp_path / "lists/data.yaml").read_text()
    assert len(read_list(tmp_path / "lists/train.csv")) == 2
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


# ---- official annotations -------------------------------------------------------------------------------------------

K3 = replace(DATASETS["k400"], num_classes=3)


def kinetics(folder: Path, rows: str) -> Path:
    folder.mkdir(exist_ok=True)
    (folder / "k.csv").write_text("label,youtube_id,time_start,time_end,split,is_cc\n" + rows)
    return folder


def test_kinetics(tmp_path):
    annotations = kinetics(
        tmp_path / "annotations",
        "zumba,-abc_DEF,3,13,train,0\narchery,xyz,0,10,train,0\n\"playing, loud\",uvw,120,130,validate,0\n"
        "archery,gone,5,15,train,0\nzumba,tst,1,11,test,1\n,unk,1,11,test,1\narchery,xyz,0,10,train,0\n",
    )  # fmt: skip
    videos = touch(
        tmp_path / "videos", "train/zumba/-abc_DEF_000003_000013.mp4", "train/xyz_000000_000010.mkv",
        "val/uvw_000120_000130.mp4", "replacement/uvw_000120_000130.mp4", "test/tst_000001_000011.mp4", "extra.mp4",
    )  # fmt: skip
    lists = lists_from_annotations(videos, annotations, K3)
    assert lists.class_names == ["archery", "playing, loud", "zumba"]
    assert lists.splits == {
        "train": [("train/xyz_000000_000010.mkv", 0), ("train/zumba/-abc_DEF_000003_000013.mp4", 2)],
        "val": [("replacement/uvw_000120_000130.mp4", 1)],
        "test": [("replacement/uvw_000120_000130.mp4", 1)],
        "official_test": [("test/tst_000001_000011.mp4", 2)],
    }
    for line in (
        "1 of train, not found: gone_000005_000015",
        "1 without a label, left out: unk",
        "1 annotated more than once, kept once: xyz_000000_000010",
        "1 found more than once, the first one kept: uvw_000120_000130",
        "2 that no annotation names, left out",
        "published accuracies are of the validation videos",
    ):
        assert line in notes_of(lists)
    write_lists(lists, tmp_path / "lists", videos, K3)
    assert (tmp_path / "lists/val.csv").read_text() == "replacement/uvw_000120_000130.mp4,1\n"
    assert read_list(tmp_path / "lists/train.csv", separator=",", num_classes=3)[1].label == 2


def test_faulty_kinetics_annotations_are_refused(tmp_path):
    videos = touch(tmp_path / "videos", "xyz_000000_000010.mp4")
    annotations = kinetics(tmp_path / "annotations", "archery,xyz,0,10,train,0\n")
    with pytest.raises(ValueError, match=r"names 1 classes, but Kinetics-400 has 3.*--subset"):
        lists_from_annotations(videos, annotations, K3)
    with pytest.raises(ValueError, match=r"no videos for val and test \(1 for train\S*\): \S+/annotations must name"):
        lists_from_annotations(videos, annotations, K3, subset=True)
    kinetics(annotations, "archery,xyz,zero,10,train,0\n")
    with pytest.raises(ValueError, match=r"k.csv:2: not a row of label"):
        lists_from_annotations(videos, annotations, K3)
    kinetics(annotations, "archery,other,0,10,train,0\n")
    with pytest.raises(ValueError, match=r"none of the videos .*'other_000000_000010'.*'xyz_000000_000010.mp4'"):
        lists_from_annotations(videos, annotations, K3, subset=True)
    (annotations / "k.csv").write_text("a,b\n")
    with pytest.raises(ValueError, match="no CSV file with the columns label"):
        lists_from_annotations(videos, annotations, K3)
    with pytest.raises(ValueError, match=r"annotations of ActivityNet 1.3"):
        lists_from_annotations(videos, annotations, DATASETS["anet"])


def something_json(folder: Path) -> None:
    entries = [
        {"id": "7", "label": "Pushing cup", "template": "Pushing [something]"},
        {"id": "12", "template": "Lifting"},
    ]
    touch(folder, "something-something-v2-train.json", content=json.dumps(entries))
    touch(
        folder,
        "something-something-v2-validation.json",
        content=json.dumps([*entries[:1], {"id": "5", "template": "Lifting"}]),
    )
    touch(folder, "something-something-v2-labels.json", content=json.dumps({"Lifting": "0", "Pushing something": "1"}))


def something_csv(folder: Path) -> None:
    touch(folder, "something-something-v1-train.csv", content="7;Pushing something\n12;Lifting\n")
    touch(folder, "something-something-v1-validation.csv", content="7;Pushing something\n5;Lifting\n")
    touch(folder, "something-something-v1-labels.csv", content="Lifting\nPushing something\n")


@pytest.mark.parametrize("annotate", [something_json, something_csv])
def test_something_something(tmp_path, write_folder, annotate):
    annotate(tmp_path / "annotations")
    dataset = replace(DATASETS["sthv1"], num_classes=2)
    for number, frames in (("7", 3), ("12", 4), ("5", 2)):
        write_folder(tmp_path / "frames" / number, frames=frames, template="{:05d}.jpg")
    lists = lists_from_annotations(tmp_path / "frames", tmp_path / "annotations", dataset)
    assert "1 annotated more than once, kept once: 7" in notes_of(lists)
    write_lists(lists, tmp_path / "lists", tmp_path / "frames", dataset)
    train = read_list(tmp_path / "lists/somesomev1_rgb_train_split.txt", FRAME_COLUMNS)
    assert [(s.path, s.num_frames, s.label) for s in train] == [("12", 4, 0), ("7", 3, 1)]
    assert (tmp_path / "lists/somesomev1_rgb_val_split.txt").read_text() == "5 2 0\n"
    assert train.class_names == ["Lifting", "Pushing something"]

    touch(tmp_path / "webm", "7.webm", "12.webm", "5.webm")
    lists = lists_from_annotations(tmp_path / "webm", tmp_path / "annotations", dataset)
    write_lists(lists, tmp_path / "lists", tmp_path / "webm", dataset, overwrite=True)
    assert (tmp_path / "lists/train.csv").read_text() == "12.webm 0\n7.webm 1\n"

    write_folder(tmp_path / "webm/5", frames=2)
    (tmp_path / "webm/5.webm").unlink()
    lists = lists_from_annotations(tmp_path / "webm", tmp_path / "annotations", dataset)
    with pytest.raises(ValueError, match="1 frame folders and 2 video files"):
        write_lists(lists, tmp_path / "mixed", tmp_path / "webm", dataset)


def test_ucf101(tmp_path):
    files = [f"{name}/v_{name}_g0{group}_c01.avi" for name in ("Bowling", "Archery") for group in (1, 2, 3)]
    annotations = touch(tmp_path / "splits", "classInd.txt", content="1 Bowling\n2 Archery\n")
    touch(
        annotations,
        "trainlist02.txt",
        content="".join(f"{f} {1 + f.startswith('A')}\r\n" for f in files[:2] + files[3:5]),
    )
    touch(annotations, "testlist02.txt", content=f"{files[2]}\r\n{files[5]}\r\n")
    videos = touch(tmp_path / "videos", *files[:5], files[5].replace(".avi", ".mp4"))
    lists = lists_from_annotations(videos, annotations, replace(DATASETS["ucf101"], num_classes=2), fold=2)
    assert lists.class_names == ["Bowling", "Archery"]  # their order is that of classInd.txt
    assert lists.splits["test"] == [(files[5].replace(".avi", ".mp4"), 1), (files[2], 0)] == lists.splits["val"]
    assert len(lists.splits["train"]) == 4
    with pytest.raises(ValueError, match=r"trainlist01.txt cannot be read"):
        lists_from_annotations(videos, annotations, DATASETS["ucf101"])


def test_hmdb51(tmp_path):
    videos = touch(tmp_path / "videos", "run/a#(1)_run.avi", "run/b.avi", "walk/b.avi", "walk/c & d.avi", "walk/e.avi")
    annotations = touch(tmp_path / "splits", "run_test_split1.txt", content="a#(1)_run.avi 1 \nb.avi 2 \n")
    touch(annotations, "walk_test_split1.txt", content="b.avi 1 \nc & d.avi 2 \ne.avi 0 \n")
    touch(annotations, "walk_test_split2.txt", content="e.avi 1\n")
    dataset = replace(DATASETS["hmdb51"], num_classes=2)
    lists = lists_from_annotations(videos, annotations, dataset)
    assert lists.splits["train"] == [("run/a#(1)_run.avi", 0), ("walk/b.avi", 1)]
    assert lists.splits["test"] == [("run/b.avi", 0), ("walk/c & d.avi", 1)] == lists.splits["val"]
    with pytest.raises(ValueError, match=r"<class>_test_split3\.txt"):
        lists_from_annotations(videos, annotations, dataset, fold=3)
    touch(annotations, "walk_test_split1.txt", content="b.avi 7\n")
    with pytest.raises(ValueError, match=r"walk_test_split1.txt:1: .* does not end in 0, 1 or 2"):
        lists_from_annotations(videos, annotations, dataset)


def test_what_is_written_is_what_training_accepts(tmp_path):
    """A label beyond the classes would be refused by the reader of lists: the same reader judges ours."""
    videos = make_classes(tmp_path / "videos", 4)
    write_lists(lists_from_folders(videos), tmp_path / "lists", videos, DATASETS["own"])
    assert len(read_list(tmp_path / "lists/train.csv", num_classes=3))
    with pytest.raises(ListError):
        read_list(tmp_path / "lists/train.csv", num_classes=2)
