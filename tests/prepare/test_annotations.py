"""Test that lists are made from official annotations of public data sets, for files that exist."""

from __future__ import annotations

import json
from dataclasses import replace
from math import inf, nan
from pathlib import Path

import pytest
from list_fixtures import notes_of, touch

from slowfast.datasets.catalog import CATALOG, DATASETS, FRAME_COLUMNS
from slowfast.datasets.lists import read_list
from slowfast.prepare.annotations import lists_from_annotations
from slowfast.prepare.write import write_lists

K3 = replace(DATASETS["k400"], num_classes=3)


def kinetics(folder: Path, rows: str) -> Path:
    folder.mkdir(exist_ok=True)
    (folder / "k.csv").write_text("label,youtube_id,time_start,time_end,split,is_cc\n" + rows)
    return folder


def test_kinetics_annotations_become_lists(tmp_path):
    annotations = kinetics(
        tmp_path / "annotations",
        "zumba,-abc_DEF,3,13,train,0\narchery,xyz,0,10,train,0\n\"playing, loud\",uvw,120,130,validate,0\n"
        "archery,gone,5,15,train,0\nzumba,tst,1,11,test,1\n,unk,1,11,test,1\narchery,xyz,0,10,train,0\n",
    )  # fmt: skip
    videos = touch(
        tmp_path / "videos", "train/zumba/-abc_DEF_000003_000013.mp4", "train/xyz_000000_000010.mkv",
        "val/uvw_000120_000130.mp4", "replacement/uvw_000120_000130.mp4", "test/tst_000001_000011.mp4", "extra.mp4",
        "readme.pdf",
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
        "1 of an unknown type, left out: readme.pdf",
        "published accuracies are of the validation videos",
    ):
        assert line in notes_of(lists)
    write_lists(lists, tmp_path / "lists", videos, K3)
    assert (tmp_path / "lists/val.csv").read_text() == "replacement/uvw_000120_000130.mp4,1\n"
    assert read_list(tmp_path / "lists/train.csv", separator=",", num_classes=3)[1].label == 2


def test_faulty_kinetics_annotations_are_refused(tmp_path):
    videos = touch(tmp_path / "videos", "xyz_000000_000010.mp4")
    annotations = kinetics(tmp_path / "annotations", "archery,xyz,0,10,train,0\n")
    with pytest.raises(ValueError, match=r"\b1\b.*Kinetics-400.*\b3\b.*--subset"):
        lists_from_annotations(videos, annotations, K3)
    with pytest.raises(ValueError, match=r"no videos for val and test \(1 for train\S*\): \S+/annotations must name"):
        lists_from_annotations(videos, annotations, K3, subset=True)
    with pytest.raises(ValueError, match=r"'archery' of xyz"):
        lists_from_annotations(videos, annotations, K3, subset=True, class_names=["bowling"])
    kinetics(annotations, "archery,xyz,zero,10,train,0\n")
    with pytest.raises(ValueError, match=r"k.csv:2: not a row of label"):
        lists_from_annotations(videos, annotations, K3)
    kinetics(annotations, "archery,other,0,10,train,0\n")
    with pytest.raises(ValueError, match=r"'other_000000_000010'.*'xyz_000000_000010.mp4'"):
        lists_from_annotations(videos, annotations, K3, subset=True)
    (annotations / "k.csv").write_text("a,b\n")
    with pytest.raises(ValueError, match="no CSV file with the columns label"):
        lists_from_annotations(videos, annotations, K3)
    with pytest.raises(ValueError, match=r"annotations of ImageNet"):
        lists_from_annotations(videos, annotations, DATASETS["imagenet"])


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
    touch(folder, "something-something-v2-labels.json", content=json.dumps({"Lifting": "1", "Pushing something": "0"}))


def something_csv(folder: Path) -> None:
    touch(folder, "something-something-v1-train.csv", content="7;Pushing something\n12;Lifting\n")
    touch(folder, "something-something-v1-validation.csv", content="7;Pushing something\n5;Lifting\n")
    touch(folder, "something-something-v1-labels.csv", content="Pushing something\nLifting\n")


@pytest.mark.parametrize("annotate", [something_json, something_csv])
def test_something_something_annotations_become_lists(tmp_path, write_folder, annotate):
    annotate(tmp_path / "annotations")
    dataset = replace(DATASETS["sthv1"], num_classes=2)
    for number, frames in (("7", 3), ("12", 4), ("5", 2)):
        write_folder(tmp_path / "frames" / number, frames=frames, template="{:05d}.jpg")
    lists = lists_from_annotations(tmp_path / "frames", tmp_path / "annotations", dataset)
    assert "1 annotated more than once, kept once: 7" in notes_of(lists)
    write_lists(lists, tmp_path / "lists", tmp_path / "frames", dataset)
    train = read_list(tmp_path / "lists/somesomev1_rgb_train_split.txt", FRAME_COLUMNS)
    assert [(s.path, s.num_frames, s.label) for s in train] == [("12", 4, 1), ("7", 3, 0)]
    assert (tmp_path / "lists/somesomev1_rgb_val_split.txt").read_text() == "5 2 1\n"
    assert train.class_names == ["Pushing something", "Lifting"]  # of the file, not sorted

    touch(tmp_path / "webm", "7.webm", "12.webm", "5.webm")
    lists = lists_from_annotations(tmp_path / "webm", tmp_path / "annotations", dataset)
    write_lists(lists, tmp_path / "lists", tmp_path / "webm", dataset, overwrite=True)
    assert (tmp_path / "lists/train.csv").read_text() == "12.webm 1\n7.webm 0\n"

    write_folder(tmp_path / "webm/5", frames=2)
    (tmp_path / "webm/5.webm").unlink()
    lists = lists_from_annotations(tmp_path / "webm", tmp_path / "annotations", dataset)
    with pytest.raises(ValueError, match="1 frame folders and 2 video files"):
        write_lists(lists, tmp_path / "mixed", tmp_path / "webm", dataset)


def test_ucf101_annotations_become_lists(tmp_path):
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
    touch(annotations, "classInd.txt", content="1 Bowling\n2 Archery\n2 Diving\n")
    with pytest.raises(ValueError, match=r"classInd\.txt, line 3"):
        lists_from_annotations(videos, annotations, DATASETS["ucf101"])


def test_hmdb51_annotations_become_lists(tmp_path):
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
    with pytest.raises(ValueError, match=r"walk_test_split1.txt:1: 'b\.avi 7' does not end in 0, 1 or 2"):
        lists_from_annotations(videos, annotations, dataset)


def test_moments_in_time_becomes_lists(tmp_path):
    annotations = tmp_path / "annotations"
    annotations.mkdir()
    (annotations / "moments_categories.txt").write_text("clapping,0\nadult+female+singing,2\nblocking,1\n")
    (annotations / "trainingSet.csv").write_text(
        "blocking/getty-karate-video-id635808620_4.mp4,blocking,3,1\nclapping/0-0-1_2.mp4,clapping,4,0\n"
    )
    (annotations / "validationSet.csv").write_text("adult+female+singing/0-0-1_2.mp4,adult+female+singing,3,0\n")
    videos = touch(
        tmp_path / "videos", "training/blocking/getty-karate-video-id635808620_4.mp4",
        "training/clapping/0-0-1_2.mp4", "validation/adult+female+singing/0-0-1_2.mp4",
    )  # fmt: skip
    row = replace(DATASETS["mit"], num_classes=3)
    lists = lists_from_annotations(videos, annotations, row)
    assert lists.class_names == ["clapping", "blocking", "adult+female+singing"]
    write_lists(lists, tmp_path / "lists", videos, row)
    assert (tmp_path / "lists/train.csv").read_text() == (
        "training/blocking/getty-karate-video-id635808620_4.mp4,1\ntraining/clapping/0-0-1_2.mp4,0\n"
    )
    assert (tmp_path / "lists/test.csv").read_text() == "validation/adult+female+singing/0-0-1_2.mp4,2\n"


def test_rows_of_moments_in_time_without_a_class_are_named(tmp_path):
    (tmp_path / "moments_categories.txt").write_text("run,0\r\njump,1\r\n")
    (tmp_path / "trainingSet.csv").write_bytes(b'"run/a.mp4",run,3,1\r\n\r\n   \r\n jump/b.mp4,jump,3,0\r\n')
    (tmp_path / "validationSet.csv").write_text("run/c.mp4,run,3,0\n")
    videos = touch(tmp_path / "videos", "run/a.mp4", "jump/b.mp4", "run/c.mp4")
    row = replace(DATASETS["mit"], num_classes=2)
    assert lists_from_annotations(videos, tmp_path, row).splits["train"] == [("jump/b.mp4", 1), ("run/a.mp4", 0)]
    (tmp_path / "validationSet.csv").write_text("filename,label,agree,disagree\nrun/c.mp4,run,3,0\n")
    with pytest.raises(ValueError, match=r"validationSet\.csv:1: .*filename"):
        lists_from_annotations(videos, tmp_path, row)


@pytest.mark.parametrize("separator", [",", " "])
@pytest.mark.parametrize("prefix", ["", "k400/", "/their/disk/kinetics_400/train/a b/"])
def test_lists_of_other_machines_find_their_videos_by_name(separator, prefix, tmp_path):
    videos = touch(
        tmp_path / "videos", "k400/train/a/1.mp4", "k600/2_000001_000011.mp4", "k700/val/b/3.mp4", "k700/4.mp4"
    )
    theirs = touch(tmp_path / "theirs", "label_map.txt", content="run\nclap hands\n")
    rows = [separator.join([prefix + name, label]) for name, label in (("1.mp4", "1"), ("2_000001_000011.mp4", "0"))]
    (theirs / "train.csv").write_text("\n".join([*rows, f"{prefix}gone.mp4{separator}1"]) + "\n")
    (theirs / "test.csv").write_text(f"{prefix}3.mp4{separator}1\n")
    row = replace(DATASETS["k710"], num_classes=2)
    lists = lists_from_annotations(videos, theirs, row)
    assert lists.class_names == ["run", "clap hands"]
    assert lists.splits["train"] == [("k400/train/a/1.mp4", 1), ("k600/2_000001_000011.mp4", 0)]
    assert lists.splits["val"] == lists.splits["test"] == [("k700/val/b/3.mp4", 1)]
    assert lists.notes["of train, not found"] == [f"{prefix}gone.mp4"]
    (theirs / "test.csv").write_text(f"{prefix}3.mp4{separator}2\n")
    with pytest.raises(ValueError, match=r"test\.csv:1"):
        lists_from_annotations(videos, theirs, row)
    (theirs / "other.txt").write_text("run\n")
    with pytest.raises(ValueError, match="2 files"):
        lists_from_annotations(videos, theirs, row)


def untrimmed(subset: str, duration: object, *segments: tuple[str, float, float]) -> dict[str, object]:
    annotations = [{"label": label, "segment": times} for label, *times in segments]
    return {"subset": subset, "duration": duration, "annotations": annotations, "url": "https://..."}


def test_untrimmed_videos_are_trained_by_segment_and_tested_as_a_whole(tmp_path):
    database = {
        "--0edUL8zmA": untrimmed("training", "92.166667", ("Dodgeball", 5.40, 11.60), ("Dodgeball", 12.60, 95.0)),
        "v_a": untrimmed("training", 20, ("Archery", -0.5, 9), ("Dodgeball", 10, 12), ("Archery", 21, 22)),
        "b": untrimmed("validation", 30.5, ("Archery", 1, 2), ("Archery", 3, 4)),
        "c": untrimmed("testing", 40),
        "gone": untrimmed("training", 40, ("Archery", 1, 2)),
    }
    file = tmp_path / "activity_net.v1-3.min.json"
    file.write_text(json.dumps({"version": "1.3", "taxonomy": [], "database": database}))
    videos = touch(tmp_path / "videos", "train/v_--0edUL8zmA.mp4", "train/v_a.mkv", "val/v_b.mp4", "test/v_c.mp4")
    row = replace(DATASETS["anet"], num_classes=2)
    lists = lists_from_annotations(videos, tmp_path, row)
    assert lists.class_names == ["Archery", "Dodgeball"]
    for line in (
        "1 of train, not found: gone",
        "1 with several classes, only segments of the first class kept: v_a",
        "1 without an annotated segment, left out: c",
    ):
        assert line in notes_of(lists)
    write_lists(lists, tmp_path / "lists", videos, row)
    assert (tmp_path / "lists/train.csv").read_text() == (
        "train/v_--0edUL8zmA.mp4 92.166667 5.4 11.6 1\ntrain/v_--0edUL8zmA.mp4 92.166667 12.6 95 1\n"
        "train/v_a.mkv 20 0 9 0\n"
    )
    assert (tmp_path / "lists/test.csv").read_text() == "val/v_b.mp4 30.5 1 2 0\n"
    samples = read_list(tmp_path / "lists/train.csv", columns=CATALOG["anet"].columns, num_classes=2)
    assert [samples[i].segment for i in range(3)] == [(92.166667, 5.4, 11.6), (92.166667, 12.6, 95.0), (20.0, 0.0, 9.0)]
    assert lists_from_annotations(videos, file, row).splits == lists.splits

    del database["b"]["duration"]
    file.write_text(json.dumps({"database": database}))
    with pytest.raises(ValueError, match=r"min\.json: b .*duration"):
        lists_from_annotations(videos, file, row)
    for text in ("[]", '{"database": []}'):
        file.write_text(text)
        with pytest.raises(ValueError, match="database"):
            lists_from_annotations(videos, file, row)


@pytest.mark.parametrize(
    ("duration", "label", "segment"),
    [
        (5, None, [1, 2]),
        (5, ["Run"], [1, 2]),
        (5, "Run", "12"),
        (5, "Run", [1, nan]),
        (inf, "Run", [1, 2]),
        (5, "Run", 1),
    ],
)
def test_an_untrimmed_video_with_malformed_values_is_named(duration, label, segment, tmp_path):
    entry = {"subset": "training", "duration": duration, "annotations": [{"label": label, "segment": segment}]}
    file = tmp_path / "anet.json"
    file.write_text(json.dumps({"database": {"good": untrimmed("validation", 5, ("Run", 1, 2)), "odd": entry}}))
    videos = touch(tmp_path / "videos", "good.mp4", "odd.mp4")
    with pytest.raises(ValueError, match=r"anet\.json: odd "):
        lists_from_annotations(videos, file, replace(DATASETS["anet"], num_classes=1))
