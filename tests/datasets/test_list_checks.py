"""Test the comparison of lists with folders and classes, and the cures of lists in the formats of other toolboxes."""

import logging
import os
import threading
from pathlib import Path

import pytest

from slowfast.datasets.list_checks import check_files, check_frame_counts, check_image_names, log_labels
from slowfast.datasets.lists import ListError, VideoList, read_list
from slowfast.datasets.reader import of_folder
from slowfast.datasets.rows import RowFormat, cure_rows

ROOT = Path(__file__).parents[2]
VIDEO, FRAMES = ("path", "label"), ("path", "num_frames", "label")
SEGMENTS = ("path", "total", "begin", "end", "label")


@pytest.mark.parametrize(("listed", "warns"), [(96, False), (97, False), (94, False), (48, True), (1, True)])
def test_frame_lists_with_too_few_images_are_reported(tmp_path, caplog, listed, warns):
    """The list is of an extraction at half the frame rate, as for Something-Something at 12 frames per second."""
    for folder in ("1", "2", "3"):
        (tmp_path / folder).mkdir()
        for number in range(1, 97):
            (tmp_path / folder / f"img_{number:05d}.jpg").touch()
            (tmp_path / folder / f"flow_x_{number:05d}.jpg").touch()
    (tmp_path / "3/img_00001.jpg").with_name("img_00097.jpg").touch()
    samples = VideoList(["1", "2", "3"], [0, 0, 0], [listed] * 3, prefix=str(tmp_path), source="train.txt")
    check_frame_counts(samples, "img_{:05d}.jpg")
    assert len(caplog.records) == warns
    if warns:
        text = caplog.records[0].getMessage()
        assert f"3 of 3 checked folders ({tmp_path}/1: the list names {listed}, and 96 exist)" in text


@pytest.mark.parametrize(("held", "complete"), [(45, 0), (45, 1), (112, 0), (117, 0)])
def test_frame_lists_with_too_many_images_are_reported(tmp_path, caplog, held, complete):
    """The list is of an extraction at 30 frames per second, the folders of one at 12."""
    for folder in range(3):
        (tmp_path / str(folder)).mkdir()
        for number in range(117 if folder < complete else held):
            (tmp_path / str(folder) / f"{number + 1:05d}.jpg").touch()
    samples = VideoList(["0", "1", "2"], [0, 0, 0], [117] * 3, prefix=str(tmp_path), source="train.txt")
    found = f"{3 - complete} of 3 checked folders ({tmp_path}/{complete}: the list names 117, and 45 exist)"
    if held == 45 and not complete:
        with pytest.raises(ListError) as error:
            check_frame_counts(samples, "{:05d}.jpg")
        assert found in str(error.value)
    else:
        check_frame_counts(samples, "{:05d}.jpg")
        assert [found in record.getMessage() for record in caplog.records] == [True] * (held == 45)


def test_video_lists_have_no_frame_counts(tmp_path, caplog):
    (tmp_path / "a.webm").touch()
    check_frame_counts(VideoList(["a.mp4"], [0], prefix=str(tmp_path)), "{:05d}.jpg")
    check_frame_counts(VideoList(["a"], [0], [5], prefix=str(tmp_path), suffix=".webm"), "{:05d}.jpg")
    assert not caplog.records


@pytest.mark.parametrize(
    ("name", "image_template", "cure"),
    [
        ("{folder}_{:06d}.jpg", "{:05d}.jpg", "{folder}_{:06d}.jpg"),  # PySlowFast
        ("{:05d}.jpg", "img_{:05d}.jpg", "{:05d}.jpg"),
        ("img_{:05d}.png", "img_{:05d}.jpg", "img_{:05d}.png"),
        ("{:d}{{.jpg", "{:05d}.jpg", ""),
    ],
)
def test_images_with_other_names_are_an_error_with_their_template(tmp_path, name, image_template, cure):
    for folder in ("7", "8"):
        (tmp_path / folder).mkdir()
        for number in range(1, 4):
            (tmp_path / folder / of_folder(name, folder).format(number)).touch()
    (tmp_path / "9").mkdir()
    (tmp_path / "a.mp4").touch()
    samples = VideoList(["a.mp4", "9", "7", "8"], [0] * 4, [3] * 4, prefix=str(tmp_path), source="train.txt")
    with pytest.raises(ListError) as error:
        check_image_names(samples, image_template)
    assert str(error.value).endswith(f", for example to {cure}" if cure else image_template)
    check_image_names(samples, name)
    (tmp_path / "8" / of_folder(image_template, "8").format(1)).touch()
    check_image_names(samples, image_template)  # one folder has such names: the others are bad videos
    check_image_names(VideoList(["a.mp4", "9"], [0, 0], [3, 3], prefix=str(tmp_path)), image_template)


def test_folders_that_cannot_be_listed_count_as_empty(tmp_path, caplog, monkeypatch):
    def refuse(folder: str) -> list[str]:
        raise PermissionError(13, "Permission denied", folder)

    samples = VideoList(["a"], [0], [5], prefix=str(tmp_path))
    monkeypatch.setattr("slowfast.datasets.list_checks.os.listdir", refuse)
    check_frame_counts(samples, "img_{:05d}.jpg")
    assert not caplog.records
    with pytest.raises(ListError, match="1 of 1"):
        check_files(samples)


def labels_of(caplog, num_classes, **lists):
    caplog.clear()
    with caplog.at_level(logging.INFO):
        lists = {
            split: VideoList(["x"] * len(labels), labels, source=f"/d/{split}.csv") for split, labels in lists.items()
        }
        log_labels(lists, num_classes)
    (record,) = caplog.records
    return record.levelname, record.getMessage()


def test_a_run_logs_the_classes_of_its_lists(caplog):
    level, text = labels_of(caplog, 4, train=[0, 1, 2, 3, 3], val=[0, 2])
    assert level == "INFO" and "4 of 4 classes occur in train.csv; 2 of 4 classes occur in val.csv" in text
    level, text = labels_of(caplog, 400, train=[1, 2, 2], val=[0, 2])
    assert level == "WARNING" and "2 of 400 classes occur in train.csv" in text
    assert text.endswith("label 0 occurs in val.csv only")
    assert labels_of(caplog, 2, train=[1, 1], val=[1])[0] == "WARNING"
    assert labels_of(caplog, 1, train=[0, 0], val=[0])[0] == "INFO"
    level, text = labels_of(caplog, 9, train=[0, 1, 2, 3, 4], val=[5, 6, 7, 8])
    assert level == "WARNING" and text.endswith("labels 5, 6, 7, ... occur in val.csv only")
    level, text = labels_of(caplog, 5, train=[1, 2, 3, 4], val=[1, 2])
    assert level == "WARNING" and "label 0 never occurs" in text


def test_labels_that_stand_for_unknown_classes_are_reported(caplog):
    level, text = labels_of(caplog, 174, test=[0, 0, -1])
    assert level == "WARNING" and "test.csv" in text and "-1" in text
    level, text = labels_of(caplog, 3, train=[0, 1, 2], val=[0, 0])
    assert level == "WARNING" and "val.csv" in text and "-1" not in text


def test_a_test_may_have_few_classes_or_none(caplog):
    assert labels_of(caplog, 400, test=[7, 7]) == ("INFO", "labels: 1 of 400 classes occur in test.csv")
    assert labels_of(caplog, 400, test=[-1, -1]) == ("INFO", "labels: test.csv has none")
    assert labels_of(caplog, 4, test=[1, 3])[0] == "INFO"  # some of the videos
    assert labels_of(caplog, 4, test=[0])[0] == labels_of(caplog, 1, test=[0, 0])[0] == "INFO"
    level, text = labels_of(caplog, 4, test=[1, 2, 3])
    assert level == "WARNING" and "count from 1" in text


@pytest.mark.parametrize(
    ("rows", "columns", "separator", "named"),
    [
        # another separator
        (["x/a.mp4,1", "x/b.mp4,2"], VIDEO, " ", "','"),
        (["x/a.mp4 1", "x/b.mp4 2"], VIDEO, ",", "' '"),
        (["x/a.mp4\t1"], VIDEO, ",", "' '"),
        # a header, with the right and with another separator
        (["path,label", "a.mp4,1", "b.mp4,2"], VIDEO, ",", "header"),
        (["path,label", "a.mp4,1", "b.mp4,2"], VIDEO, " ", "header .*','"),
        # rows of other data sets: official Something-Something, ActivityNet, and video lists read as frame lists
        (["v_a.mp4 120.5 3.0 17.25 9", "v_b.mp4 12 3 7 9"], FRAMES, " ", "anet"),
        (["a.mp4 9", "b.mp4 8"], FRAMES, " ", "kinetics or kinetics_sparse or mit"),
        (["a.mp4,9", "b.mp4,8"], FRAMES, " ", "kinetics or kinetics_sparse or mit.*"),
        (["78687 48 3", "42326 51 7"], SEGMENTS, " ", "sth or hmdb"),
        # several labels: no separator helps
        (["a.mp4 1,3", "b.mp4 2", "c.mp4 5,6,7"], VIDEO, " ", "several labels"),
        # class names and official annotations in the place of numbers
        (["a.mp4,archery", "b.mp4,throwing 3"], VIDEO, ",", "class names .*'archery'"),
        (["a.mp4 archery", "b.mp4 rock-climbing"], VIDEO, " ", "class names .*'archery'"),
        (["file;label", "a.mp4;archery", "b.mp4;throwing 3"], VIDEO, " ", "header .*class names .*'archery'"),
        (["3 a.mp4", "4 b.mp4"], VIDEO, " ", r"path \(.*label \("),
        (["Archery/v_g01.avi", "Diving/v_g01.AVI"], VIDEO, " ", "paths only"),  # testlist01.txt of UCF101
        (["Archery/v_g01.avi", "Diving/v_g01"], VIDEO, " ", r"path \(.*label \("),
        (["a.mp4 archery", "b.mp4 3"], VIDEO, " ", r"path \(.*label \("),
        (["a.mp4 3.0", "b.mp4 2.0"], VIDEO, " ", r"write 3 for 3\.0"),
        (["a.mp4,3.0", "b.mp4,2.0"], VIDEO, " ", r"write 3 for 3\.0"),
        (["label,youtube_id,time_start,time_end,split,is_cc", "zumba,-abc,3,13,train,0"], VIDEO, ",", "header|label"),
        (["label,youtube_id,time_start,time_end,split", "zumba,-abc,3,13,train"], VIDEO, ",", r"path \(.*label \("),
        # labels
        (["a.mp4 1", "b.mp4 5"], VIDEO, " ", "from 1 to 5, .*subtract 1"),
        (["a.mp4 1", "b.mp4 7"], VIDEO, " ", r"from 1 to 7, .*num_classes - 1\."),
        (["a.mp4 0", "b.mp4 7"], VIDEO, " ", "from 0 to 7, .*set num_classes to at least 8"),
        (["a.mp4 0", "b.mp4 -1"], VIDEO, " ", "from 0 to num_classes"),
    ],
)
def test_the_cure_of_rows_that_cannot_be_read(tmp_path, rows, columns, separator, named):
    (tmp_path / "train.csv").write_text("".join(f"{row}\n" for row in rows))
    with pytest.raises(ListError, match=rf"train\.csv:\d: [^\n]*(\n[^\n]*)*\n[^\n]*{named}[^\n]*$"):
        read_list(tmp_path / "train.csv", columns, separator=separator, num_classes=5)


def test_a_separator_that_leaves_a_number_in_the_path_is_not_advised():
    for rows in (["a.mp4 1,3", "b.mp4 2,3"], ["a.mp4 1;3"], ["a.mp4 1|3", "b.mp4 4|5"]):
        assert "set separator" not in cure_rows(rows, RowFormat(VIDEO))


@pytest.fixture
def there(tmp_path):
    """Make videos in `videos/a` and `videos/b`, and frame folders in `frames`."""
    for folder in ("a", "b"):
        (tmp_path / "videos" / folder).mkdir(parents=True)
        for number in range(4):
            (tmp_path / f"videos/{folder}/{number}.mp4").touch()
        (tmp_path / f"videos/{folder}/camera.MP4").touch()
    for number in ("78687", "42326"):
        (tmp_path / "frames" / number).mkdir(parents=True)
        (tmp_path / f"videos/{number}.webm").touch()
    return tmp_path


ROWS = "".join(f"a/{n}.mp4 0\nb/{n}.mp4 1\n" for n in range(4))


@pytest.mark.parametrize(
    ("text", "separator", "prefix", "named"),
    [
        # surplus columns: rows of rawframe lists, several labels, names of classes
        ("78687 48 3\n42326 51 7\n", " ", "frames", "surplus columns.*' 48'"),
        ("78687 48 3\n42326 51 7\n", " ", "videos", "surplus columns.*' 48'"),
        ("78687,48,3\n42326,51,7\n", ",", "frames", "surplus columns.*',48'"),
        ("a/1.mp4 17 3\nb/2.mp4 1 2\n", " ", "videos", "surplus columns.*a/1.mp4.*' 17'"),
        ("a/1.mp4 1 2 3 4\n", " ", "videos", "surplus columns.*' 1 2 3'"),
        ("a/1.mp4,archery,4,0\nb/1.mp4,zumba,3,1\n", ",", "videos", "surplus columns.*',archery,4'"),
        ("0,a/1.mp4,3\n1,b/2.mp4,2\n", ",", "videos", "begin with their number"),
        ("0 a/1.mp4 3\n1 b/2.mp4 2\n", " ", "videos", "begin with their number"),
        # the suffix, the prefix, and the beginning of the paths
        ("a/1.avi 3\nb/2.avi 2\n", " ", "videos", r"suffix \.mp4, not \.avi"),
        ("a/camera.mp4 3\n", " ", "videos", r"suffix \.MP4, not \.mp4"),
        ("a\\1.mp4 3\nb\\2.mp4 2\n", " ", "videos", r"/ in place of \\"),
        ("/a/1.mp4 3\n/b/2.mp4 2\n", " ", "videos", "without '/' in front"),
        (ROWS, " ", "", "below .*/videos: set prefix"),
        (ROWS, " ", "videos/a", "below .*/videos: set prefix"),
        (ROWS, " ", ".", "below .*videos: set prefix"),
        ("x/y/a/1.mp4 0\nx/y/b/1.mp4 0\n", " ", "videos", "without 'x/y/' in front"),
        ("/gone/a/1.mp4 0\n", " ", "videos", "without '/gone/' in front"),
        ("z.mp4 0\n", " ", "videos", "Set prefix, which is '.*videos'"),
        # some are missing
        (ROWS + "a/5.mp4 0\n", " ", "videos", "prepare_data.py check .*videos --lists .*/lists --clean"),
    ],
)
def test_the_cure_of_missing_videos(there, monkeypatch, text, separator, prefix, named):
    monkeypatch.chdir(there)
    lists = there / ("videos" if not prefix else "lists")
    lists.mkdir(exist_ok=True)
    (lists / "train.csv").write_text(text)
    samples = read_list(lists / "train.csv", separator=separator, prefix=prefix and str(there / prefix))
    with pytest.raises(ListError, match=rf"do not exist(?s:.*)\n[^\n]*{named}[^\n]*$"):
        check_files(samples)


def test_something_something_lists_find_the_videos_of_their_ids(there):
    (there / "somesomev2_rgb_train_split.txt").write_text("78687 48 3\n42326 51 7\n")
    samples = read_list(there / "somesomev2_rgb_train_split.txt", FRAMES, separator=",", prefix=str(there / "videos"))
    assert [os.path.basename(sample.path) for sample in samples] == ["78687.webm", "42326.webm"]
    check_files(samples)
    frames = read_list(there / "somesomev2_rgb_train_split.txt", FRAMES, prefix=str(there / "frames"))
    assert frames[0].path == f"{there}/frames/78687" and frames.fingerprint == samples.fingerprint
    check_files(frames)


def test_many_missing_videos_are_counted_and_three_are_named(tmp_path):
    for number in range(0, 2500, 2):
        (tmp_path / f"{number}.mp4").touch()
    path = tmp_path / "a.csv"
    path.write_text("".join(f"{number}.mp4 0\n" for number in range(2500)))
    with pytest.raises(ListError) as caught:
        check_files(read_list(path, prefix=str(tmp_path)))
    text = str(caught.value)
    assert "1250 of 2500 videos" in text and text.count("\n  ") == 3 and f"{tmp_path}/5.mp4" in text
    assert "prefix" in text
    path.write_text("4.mp4 0\n")
    check_files(read_list(path, prefix=str(tmp_path)))


def test_a_broken_link_is_a_missing_video(tmp_path):
    (tmp_path / "real.mp4").touch()
    (tmp_path / "good.mp4").symlink_to("real.mp4")
    (tmp_path / "bad.mp4").symlink_to("gone.mp4")
    (tmp_path / "folder").mkdir()
    path = tmp_path / "a.csv"
    path.write_text(f"real.mp4 0\ngood.mp4 0\nfolder 0\nfolder/ 0\n{tmp_path}/real.mp4 0\n")
    check_files(read_list(path, prefix=str(tmp_path)))
    path.write_text("good.mp4 0\nbad.mp4 0\n")
    with pytest.raises(ListError, match=r"1 of 2 videos(.|\n)*bad\.mp4"):
        check_files(read_list(path, prefix=str(tmp_path)))


def test_links_are_followed_in_parallel(tmp_path, monkeypatch):
    """On a network drive, a folder of links would otherwise take one request after the other."""
    (tmp_path / "real.mp4").touch()
    for name in ("a.mp4", "b.mp4"):
        (tmp_path / name).symlink_to("real.mp4")
    (tmp_path / "list.csv").write_text("a.mp4 0\nb.mp4 0\n")
    samples, exists, both = read_list(tmp_path / "list.csv", prefix=str(tmp_path)), os.path.exists, threading.Barrier(2)
    monkeypatch.setattr(os.path, "exists", lambda path: both.wait(timeout=30) >= 0 and exists(path))
    check_files(samples)
