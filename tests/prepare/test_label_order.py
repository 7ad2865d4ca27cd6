"""Test the class names of lists of other programs: published file formats, labels in any order."""

import json
import random
from dataclasses import replace

import pytest
from torchvision.models.video import R3D_18_Weights

from slowfast.datasets.catalog import DATASETS
from slowfast.datasets.lists import VideoList
from slowfast.prepare.label_order import annotated_classes, order_by_labels

K400 = sorted(R3D_18_Weights.DEFAULT.meta["categories"])
KINETICS_HEADER = "label,youtube_id,time_start,time_end,split,is_cc\n"


def kinetics_rows(names):
    return "".join(f'"{name}",video-{n:05d}_x,{n},{n + 10},train,0\n' for n, name in enumerate(names))


def test_names_follow_kinetics_lists_in_the_order_of_their_authors(tmp_path):
    """The official lists of UniFormer have rows `<youtube id>.mp4,<label>`, with labels in another order."""
    (tmp_path / "train.csv").write_text(KINETICS_HEADER + kinetics_rows(K400))
    names, classes = annotated_classes(tmp_path, DATASETS["k400"])
    assert names == K400
    order = random.Random(0).sample(range(400), 400)  # row r of the classifier is class order[r]
    theirs = VideoList([f"video-{n:05d}_x.mp4" for n in order], range(400))
    found, shown = order_by_labels([theirs], names, classes)
    assert found == [K400[n] for n in order] and shown == 400
    ours = VideoList([f"val/video-{n:05d}_x_{n:06d}_{n + 10:06d}.mkv" for n in range(400)], range(400))
    assert order_by_labels([ours], names, classes) == (K400, 400)


def test_kinetics_400_needs_no_file_and_folders_show_the_order():
    names, classes = annotated_classes("", DATASETS["k400"])
    assert names == K400 and classes == {}
    assert order_by_labels([VideoList(["a.mp4", "b.mp4"], [3, 1])], names, classes) == (K400, 0)
    folders = [name.replace(" ", "_").replace("(", "").replace(")", "") for name in K400]
    backwards = VideoList([f"train/{folder}/x.mp4" for folder in folders], range(399, -1, -1))
    assert order_by_labels([backwards], names, classes) == (K400[::-1], 400)


def test_a_part_of_the_classes_cannot_show_another_order():
    names, classes = annotated_classes("", DATASETS["k400"])
    few = VideoList([f"{K400[n]}/x.mp4" for n in (0, 1)], [0, 1])
    assert order_by_labels([few], names, classes) == (K400, 2)
    with pytest.raises(ValueError, match=r"'air drumming' .*2 of 400"):
        order_by_labels([VideoList([f"{K400[n]}/x.mp4" for n in (0, 1)], [1, 0])], names, classes)
    with pytest.raises(ValueError, match="there are 400 classes"):
        order_by_labels([VideoList([f"{K400[0]}/x.mp4"], [400])], names, classes)


def test_folders_that_fit_two_classes_show_none():
    names = ["a b", "a-b"]
    assert order_by_labels([VideoList(["a b/x.mp4"], [0])], names, {}) == (names, 0)


def test_something_something_lists_name_the_id(tmp_path):
    templates = ["Holding [something]", "Moving [something] down", "[Something] falling like a rock"]
    entries = [{"id": str(n), "template": template, "placeholders": ["x"]} for n, template in enumerate(templates)]
    for part in ("train", "validation"):
        (tmp_path / f"something-something-v2-{part}.json").write_text(json.dumps(entries))
    labels = {template.replace("[", "").replace("]", ""): str(n) for n, template in enumerate(templates)}
    (tmp_path / "something-something-v2-labels.json").write_text(json.dumps(labels))
    dataset = replace(DATASETS["sthv2"], num_classes=3)
    names, classes = annotated_classes(tmp_path, dataset)
    assert names == list(labels)
    assert order_by_labels([VideoList(["0", "1", "2"], [2, 0, 1], [9, 9, 9])], names, classes)[0] == [
        names[1],
        names[2],
        names[0],
    ]
    assert annotated_classes(tmp_path / "something-something-v2-labels.json", dataset) == (names, {})


ACTIVITYNET = {
    "version": "VERSION 1.3",
    "database": {
        "sJFgo9H6zNo": {"duration": 139.1, "subset": "training",
                        "annotations": [{"segment": [0, 139.1], "label": "Futsal"}]},
        "V1zhqaGFY2A": {"duration": 77.5, "subset": "validation",
                        "annotations": [{"segment": [57.9, 77.5], "label": "Archery"}]},
        "nOtEsT00000": {"duration": 77.5, "subset": "testing", "annotations": []},
        "nOtEsT00001": {"duration": 77.5, "subset": "testing"},
    },
    "taxonomy": [{"parentName": "Playing sports", "nodeName": "Futsal", "nodeId": 5, "parentId": 1}],
}  # fmt: skip


def test_annotations_of_activitynet_and_hacs_are_read(tmp_path):
    (tmp_path / "activity_net.v1-3.min.json").write_text(json.dumps(ACTIVITYNET))
    names, classes = annotated_classes(tmp_path, replace(DATASETS["anet"], num_classes=2))
    assert names == ["Archery", "Futsal"]
    segments = VideoList(["v_sJFgo9H6zNo.mp4", "v_V1zhqaGFY2A.mp4"], [0, 1], None, [(139.1, 0, 139), (77.5, 57, 77)])
    assert order_by_labels([segments], names, classes) == (["Futsal", "Archery"], 2)

    clips = tmp_path / "HACS_clips_v1.1.1.csv"
    clips.write_text(
        "classname,youtube_id,subset,start,end,label\nFutsal,a2X2hz1G6i8,training,15.5,17.5,1\n"
        "Archery,NUdji_CqvcY,training,77.5,79.5,-1\nArchery,0O_qMHxBfXg,training,24.5,26.5,1\n"
    )
    names, classes = annotated_classes(clips, replace(DATASETS["hacs"], num_classes=2))
    assert names == ["Archery", "Futsal"] and "NUdji_CqvcY" not in classes and classes["a2X2hz1G6i8"] == "Futsal"

    (tmp_path / "test.csv").write_text("youtube_id,time_start,time_end,split\na2X2hz1G6i8,0,10,test\n")
    with pytest.raises(ValueError, match=r"test\.csv"):  # official, but without classes
        annotated_classes(tmp_path / "test.csv", DATASETS["k600"])
    clips.write_text("classname,youtube_id,subset,start,end,label\n")
    with pytest.raises(ValueError, match="0 classes"):
        annotated_classes(clips, DATASETS["own"])
    for entry in (3, {"annotations": [3]}, {"annotations": [{"segment": [0, 1]}]}):
        (tmp_path / "torn.json").write_text(json.dumps({"database": {"v": entry}}))
        with pytest.raises(ValueError, match=r"torn\.json"):
            annotated_classes(tmp_path / "torn.json", DATASETS["anet"])


def test_files_of_class_names_are_read(tmp_path):
    (tmp_path / "moments_categories.txt").write_text("".join(f"act+{n},{n}\n" for n in range(339)))
    assert annotated_classes(tmp_path, DATASETS["mit"])[0] == [f"act+{n}" for n in range(339)]
    (tmp_path / "label_map_k710.txt").write_text("".join(f"act {n * 3} of 4\n" for n in range(710)))
    assert annotated_classes(tmp_path / "label_map_k710.txt", DATASETS["k710"])[0][709] == "act 2127 of 4"
    (tmp_path / "classInd.txt").write_text("".join(f"{n + 1} Act{n}\r\n" for n in range(101)))
    assert annotated_classes(tmp_path / "classInd.txt", DATASETS["ucf101"])[0][100] == "Act100"
    with pytest.raises(ValueError, match="3 files"):
        annotated_classes(tmp_path, DATASETS["k710"])
    with pytest.raises(ValueError, match="101 classes, but HMDB51 has 51"):
        annotated_classes(tmp_path / "classInd.txt", DATASETS["hmdb51"])
    with pytest.raises(ValueError, match="Kinetics-600 needs --annotations"):
        annotated_classes("", DATASETS["k600"])
