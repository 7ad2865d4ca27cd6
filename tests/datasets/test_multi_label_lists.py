"""Lists of videos with any number of classes: rows, arrays, batches and errors."""

from __future__ import annotations

import numpy as np
import pytest

from slowfast.datasets.lists import ListError, Sample, VideoList, read_list

VIDEO, FRAMES = ("path", "label"), ("path", "num_frames", "label")
SEGMENTS = ("path", "total", "begin", "end", "label")


def write(tmp_path, *rows: str) -> str:
    path = tmp_path / "train.csv"
    path.write_text("".join(f"{row}\n" for row in rows))
    return str(path)


@pytest.mark.parametrize(
    ("row", "columns", "separator", "sample"),
    [
        ("a.mp4 3,17", VIDEO, " ", Sample("a.mp4", (3, 17))),
        ("a.mp4\t17", VIDEO, " ", Sample("a.mp4", (17,))),
        ("my own.mp4 3,17", VIDEO, " ", Sample("my own.mp4", (3, 17))),
        ('my own.mp4 "3, 17"', VIDEO, " ", Sample("my own.mp4", (3, 17))),
        ('"my own.mp4" "3,17"', VIDEO, " ", Sample("my own.mp4", (3, 17))),
        ('a.mp4 ""', VIDEO, " ", Sample("a.mp4", ())),
        ('a.mp4,"3,17"', VIDEO, ",", Sample("a.mp4", (3, 17))),
        ('a, b.mp4, "3,17,4"', VIDEO, ",", Sample("a, b.mp4", (3, 17, 4))),
        ("a.mp4,17", VIDEO, ",", Sample("a.mp4", (17,))),
        ('a.mp4,""', VIDEO, ",", Sample("a.mp4", ())),
        ("a.mp4 -1", VIDEO, " ", Sample("a.mp4", (-1,))),
        ("78687 48 3,17", FRAMES, " ", Sample("78687", (3, 17), 48)),
        ('78687,48,"3,17"', FRAMES, ",", Sample("78687", (3, 17), 48)),
        ("v 120.5 3 17.25 9,2", SEGMENTS, " ", Sample("v", (9, 2), None, (120.5, 3.0, 17.25))),
        ('v 120.5 3 17.25 ""', SEGMENTS, " ", Sample("v", (), None, (120.5, 3.0, 17.25))),
    ],
)
def test_rows_with_any_number_of_labels(tmp_path, row, columns, separator, sample):
    options = {"separator": separator, "num_classes": 18, "unknown": True, "multi_label": True}
    comma = separator.join(["x", *["5"] * (len(columns) - 2), "17"]).replace("x", "b.mp4")
    if columns == SEGMENTS:
        comma = "b.mp4 9 1 2 17"
    samples = read_list(write(tmp_path, comma, row, row, comma), columns, **options)
    assert [samples[1], samples[2]] == [sample, sample]  # one of them is read in the fast way
    assert samples[0] == samples[3] and samples[0].label == (17,)


def test_labels_are_one_array_with_the_ends_of_the_rows(tmp_path):
    samples = read_list(write(tmp_path, "a 3,17", 'b ""', "c 0"), num_classes=18, multi_label=True)
    assert samples.labels.tolist() == [3, 17, 0] and samples.label_ends is not None
    assert samples.label_ends.tolist() == [2, 2, 3] and len(samples) == 3
    assert [samples.labels_of(row) for row in range(3)] == [(3, 17), (), (0,)]
    single = read_list(write(tmp_path, "a 3", "b 17"), num_classes=18)
    assert single.label_ends is None and single.labels_of(1) == (17,)
    assert single.targets([1, 0]).tolist() == [17, 3]


def test_random_lists_keep_their_labels(tmp_path):
    rng = np.random.default_rng(0)
    labels = [tuple(rng.permutation(30)[: rng.integers(5)].tolist()) for _ in range(500)]
    for separator in (" ", ","):
        texts = [",".join(map(str, row)) for row in labels]
        rows = [f'v/{n}.mp4{separator}"{text}"' for n, text in enumerate(texts)]
        samples = read_list(write(tmp_path, *rows), separator=separator, num_classes=30, multi_label=True)
        assert [sample.label for sample in samples] == labels
        targets = samples.targets(range(500))
        assert targets.dtype == np.int8 and [set(np.flatnonzero(row)) for row in targets] == [set(r) for r in labels]


def test_targets_of_unknown_classes_are_all_unknown(tmp_path):
    samples = read_list(write(tmp_path, "a 1,0", "b -1", 'c ""'), num_classes=3, unknown=True, multi_label=True)
    assert samples.targets([1, 0, 2]).tolist() == [[-1, -1, -1], [1, 1, 0], [0, 0, 0]]


def test_the_fingerprint_depends_on_which_row_has_a_label():
    def fingerprint(*ends: int) -> str:
        return VideoList(["a", "b"], [1, 2, 0], label_ends=np.array(ends), num_classes=3).fingerprint

    assert len({fingerprint(1, 3), fingerprint(2, 3), fingerprint(0, 3)}) == 3


@pytest.mark.parametrize(
    ("rows", "separator", "named"),
    [
        (["a.mp4 0,18"], " ", "to 18"),
        (["a.mp4 18,0"], " ", "to 18"),
        (["a.mp4 18,3"], " ", "from 3 to 18"),
        (["a.mp4 3,x"], " ", "'x' is not a whole number"),
        (["a.mp4 3,"], " ", "'' is not a whole number"),
        (["a.mp4,"], ",", "'' is not a whole number"),
        (["a.mp4,17", "b.mp4,3,17"], ",", "quotes"),
        (["a.mp4 17", "b.mp4 3, 17"], " ", "quotes"),
        (["a.mp4 3", "b.mp4 -1,3"], " ", "the only one"),
        (["a.mp4 1,0", "b.mp4 18"], " ", "to 18"),
        (["a.mp4 1,2", "b.mp4 2,3"], ",", "' '"),
        (['a.mp4,"1,2"', 'b.mp4,"2"'], " ", "','"),
        (["path label", "a.mp4 1,2", "b.mp4 1"], " ", "header"),
        (["a.mp4,1", "b.mp4,2|17|3"], ",", '"2,17,3" with its quotes for 2'),
        (["a.mp4 1;2", "b.mp4 2"], " ", '"1,2" with its quotes for 1;2'),
        (["a.mp4 1,2", "b.mp4"], " ", 'no class has ""'),
    ],
)
def test_faulty_rows_are_named_with_a_cure(tmp_path, rows, separator, named):
    with pytest.raises(ListError, match=named):
        read_list(write(tmp_path, *rows), separator=separator, num_classes=18, multi_label=True, unknown=True)


@pytest.mark.parametrize(
    ("rows", "separator"),
    [(["a.mp4 3,17", "b.mp4 2"], " "), (['a.mp4,"3,17"', "b.mp4,2"], ","), (['a.mp4 ""', "b.mp4 2"], " ")],
)
def test_several_labels_in_a_list_of_one_class_per_video_are_an_error(tmp_path, rows, separator):
    with pytest.raises(ListError, match="multi_label True"):
        read_list(write(tmp_path, *rows), separator=separator, num_classes=18)
    read_list(write(tmp_path, *rows), separator=separator, num_classes=18, multi_label=True)
