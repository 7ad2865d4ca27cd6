"""Test the comparison of lists with frame folders and with the classes of the network."""

import logging

import pytest

from slowfast.datasets.list_checks import check_files, check_frame_counts, log_labels
from slowfast.datasets.lists import ListError, VideoList


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
        assert caplog.records[0].args == ("train.txt", 3, 3, f"{tmp_path}/1", listed, 96)


def test_video_lists_have_no_frame_counts(tmp_path, caplog):
    (tmp_path / "a.webm").touch()
    check_frame_counts(VideoList(["a.mp4"], [0], prefix=str(tmp_path)), "{:05d}.jpg")
    check_frame_counts(VideoList(["a"], [0], [5], prefix=str(tmp_path), suffix=".webm"), "{:05d}.jpg")
    assert not caplog.records


def test_folders_that_cannot_be_listed_count_as_empty(tmp_path, caplog, monkeypatch):
    def refuse(folder: str) -> list[str]:
        raise PermissionError(13, "Permission denied", folder)

    samples = VideoList(["a"], [0], [5], prefix=str(tmp_path))
    monkeypatch.setattr("slowfast.datasets.list_cures.os.listdir", refuse)
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
    level, text = labels_of(caplog, 9, train=[0, 1, 2, 3, 4], val=[5, 6, 7, 8])
    assert level == "WARNING" and text.endswith("labels 5, 6, 7, ... occur in val.csv only")
    level, text = labels_of(caplog, 5, train=[1, 2, 3, 4], val=[1, 2])
    assert level == "WARNING" and "label 0 never occurs" in text


def test_a_test_may_have_few_classes_or_none(caplog):
    assert labels_of(caplog, 400, test=[7, 7]) == ("INFO", "labels: 1 of 400 classes occur in test.csv")
    assert labels_of(caplog, 400, test=[-1, -1])[0] == "INFO"
    assert labels_of(caplog, 4, test=[1, 3])[0] == "INFO"  # some of the videos
    level, text = labels_of(caplog, 4, test=[1, 2, 3])
    assert level == "WARNING" and "count from 1" in text
