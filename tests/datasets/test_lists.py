"""Test that lists in every official format are read, and that errors show file, line and cure of faulty rows."""

import gc
import json
import pickle
import re

import numpy as np
import pytest

from slowfast.datasets.lists import (
    ListError,
    Sample,
    VideoList,
    read_list,
    read_something_something,
)
from slowfast.datasets.rows import RowFormat, find_suffix

FRAMES = ("path", "num_frames", "label")
SEGMENTS = ("path", "total", "begin", "end", "label")


def write(path, text, encoding="utf-8"):
    path.write_bytes(text.encode(encoding))
    return path


def test_rows_of_a_video_list(tmp_path):
    path = write(tmp_path / "train.csv", "a/b.mp4 3\n\n  c.mp4 0  \n#d.mp4 1\n")
    samples = read_list(path, prefix="/videos", num_classes=4)
    assert len(samples) == 3
    assert list(samples) == [Sample("/videos/a/b.mp4", 3), Sample("/videos/c.mp4", 0), Sample("/videos/#d.mp4", 1)]
    assert samples.labels.tolist() == [3, 0, 1] and samples.class_names is None
    with pytest.raises(IndexError, match=r"row 3 of a list of 3 .*train\.csv"):
        samples[3]


def test_rows_split_from_the_right_and_may_be_quoted(tmp_path):
    path = write(tmp_path / "a.csv", 'one, two.mp4,1\n"three,3.mp4",2\n"say ""hi"".mp4","0"\n/abs/ü.mp4, 7\n')
    paths = [(sample.path, sample.label) for sample in read_list(path, separator=",", prefix="p")]
    assert paths == [("p/one, two.mp4", 1), ("p/three,3.mp4", 2), ('p/say "hi".mp4', 0), ("/abs/ü.mp4", 7)]
    spaces = write(tmp_path / "b.csv", "my video.mp4 1\nb.mp4\t2\nc.mp4   3\n")
    assert [s.path for s in read_list(spaces)] == ["my video.mp4", "b.mp4", "c.mp4"]


def test_windows_files_read_like_others(tmp_path):
    path = write(tmp_path / "a.csv", "a.mp4,1\r\n\r\nb.mp4,2\r\n", "utf-8-sig")
    assert list(read_list(path, separator=",")) == [Sample("a.mp4", 1), Sample("b.mp4", 2)]


def test_a_list_in_utf_16_is_recognised(tmp_path):
    path = write(tmp_path / "a.csv", "a.mp4 1\r\nb.mp4 2\r\n", "utf-16")
    with pytest.raises(ListError, match="UTF-16"):
        read_list(path)


def test_paths_that_are_not_unicode_survive(tmp_path):
    (tmp_path / "a.csv").write_bytes(b"caf\xe9.mp4 1\n")
    assert read_list(tmp_path / "a.csv")[0].path == "caf\udce9.mp4"


@pytest.mark.parametrize("separator", [" ", ","])
def test_frame_lists_may_always_use_blanks(tmp_path, separator):
    path = write(tmp_path / "a.txt", "78687 48 3\n42326 51 7\n")
    assert list(read_list(path, FRAMES, separator=separator)) == [Sample("78687", 3, 48), Sample("42326", 7, 51)]
    blanks = write(tmp_path / "c.txt", "a,b,c 48 3\n")
    assert list(read_list(blanks, FRAMES, separator=separator)) == [Sample("a,b,c", 3, 48)]
    commas = write(tmp_path / "b.txt", "a b,48,3\n")
    assert list(read_list(commas, FRAMES, separator=",")) == [Sample("a b", 3, 48)]


def test_segments_come_in_the_official_order(tmp_path):
    path = write(tmp_path / "a.csv", "v_1.mp4 120.5 3 17.25 9\n")
    assert read_list(path, SEGMENTS)[0] == Sample("v_1.mp4", 9, None, (120.5, 3.0, 17.25))
    late = write(tmp_path / "b.csv", "v_1.mp4 120.5 1.2e2 121 9\n")  # annotators' clocks differ from the file's
    assert read_list(late, SEGMENTS)[0].segment == (120.5, 120.0, 121.0)


@pytest.mark.parametrize(
    ("text", "columns", "separator", "expected"),
    [
        ("a.mp4,1\n", ("path", "label"), " ", [r"a\.csv:1: 'a\.mp4,1'", r"separator"]),
        ("my a.mp4,1\n", ("path", "label"), " ", [r"label 'a\.mp4,1' is not a whole number", r"separator to ','"]),
        ("a.mp4 1\n", ("path", "label"), ",", [r"1 of 2 columns", r"separator to ' '"]),
        ("a.mp4;1\n", ("path", "label"), ",", [r"separator to ';'"]),
        ("a.mp4 1\nb.mp4 dog\n", ("path", "label"), " ", [r"1 of 2 rows", r":2: 'b\.mp4 dog': label 'dog'"]),
        ("a.mp4 1\nb.mp4 5\n", ("path", "label"), " ", [r":2: .*label 5 .* 0\.\.4", r"num_classes"]),
        ("a.mp4 -1\n", ("path", "label"), " ", [r"label -1 is outside"]),
        ("a\n", ("path", "label"), " ", [r"1 of 2 columns \(path, label\)", r"path \(video file or"]),
        ("a.mp4\n", ("path", "label"), " ", [r"1 of 2 columns \(path, label\)", r"paths only"]),
        (",3\n", ("path", "label"), ",", [r":1: ',3': the path is empty"]),
        ("a 0 1\n", FRAMES, " ", [r"num_frames '0' is not above 0"]),
        ("a 3.5 1\n", FRAMES, " ", [r"num_frames '3\.5' is not a whole number"]),
        ("a.mp4 0 1 2 1\n", SEGMENTS, " ", [r"total '0' is not above 0"]),
        ("a.mp4 9 x 2 1\n", SEGMENTS, " ", [r"begin 'x' is not a number"]),
        ("a.mp4 9 nan 2 1\n", SEGMENTS, " ", [r"begin 'nan' is not a number"]),
        ("a.mp4 1_0\n", ("path", "label"), " ", [r"label '1_0' is not a whole number"]),
        ("a.mp4 ٣\n", ("path", "label"), " ", [r"label '٣' is not a whole number"]),
        ("a 1_0 1\n", FRAMES, " ", [r"num_frames '1_0' is not a whole number"]),
        ("a.mp4 1_0 2 3 1\n", SEGMENTS, " ", [r"total '1_0' is not a number"]),
        ("a.mp4 9 ٣ 4 1\n", SEGMENTS, " ", [r"begin '٣' is not a number"]),
        ("a.mp4 9 9 12 1\n", SEGMENTS, " ", [r"begin 9 .*total 9"]),
        ('"a.mp4" 9 9.5 12 1\n', SEGMENTS, " ", [r"begin 9\.5 .*total 9"]),
        (
            'original_vido_id video_id frame_id path labels\nv 0 0 v/1.jpg "1,2"\n',
            FRAMES,
            " ",
            ["prepare_data.py lists"],
        ),
        ("a.mp4 9 4 3 1\n", SEGMENTS, " ", [r"begin 4 .*end 3"]),
    ],
)
def test_faulty_rows_are_shown_with_file_line_and_cure(tmp_path, text, columns, separator, expected):
    path = write(tmp_path / "a.csv", text)
    for pattern in expected:
        with pytest.raises(ListError, match=pattern):
            read_list(path, columns, separator=separator, num_classes=5)


def test_all_faults_are_counted_and_three_are_shown(tmp_path):
    path = write(tmp_path / "a.csv", "a.mp4 1\n" + "".join(f"b{n}.mp4 {n + 10}\n" for n in range(20)))
    with pytest.raises(ListError) as caught:
        read_list(path, num_classes=12)
    text = str(caught.value)
    assert "18 of 21 rows" in text and text.count("a.csv:") == 3 and "a.csv:4: 'b2.mp4 12'" in text
    assert "29" in text.splitlines()[-1]


def test_the_error_of_a_missing_list_names_the_file(tmp_path):
    for path in (tmp_path / "train.csv", tmp_path / "nowhere" / "train.csv"):
        with pytest.raises(ListError, match=re.escape(str(path))):
            read_list(path)


def test_an_empty_list_is_refused(tmp_path):
    with pytest.raises(ListError, match=r"a\.csv"):
        read_list(write(tmp_path / "a.csv", "\n \n"))


def test_class_names_beside_the_list(tmp_path):
    path = write(tmp_path / "train.csv", "a.mp4 1\n")
    write(tmp_path / "class_names.txt", "cat\nbig dog\n")
    assert read_list(path, num_classes=2).class_names == ["cat", "big dog"]
    with pytest.raises(ListError, match=r"class_names\.txt .*2.*num_classes is 3"):
        read_list(path, num_classes=3)
    write(tmp_path / "class_names.txt", "big dog\t1\r\ncat\t0\r\n", "utf-8-sig")
    write(tmp_path / "classes.txt", "another\norder\n")  # `prepare_data.py classes` writes the other file
    assert read_list(path, num_classes=2).class_names == ["cat", "big dog"]


@pytest.fixture
def something(tmp_path):
    """Return the official files of Something-Something: annotation and labels."""
    entries = [
        {"id": "78687", "label": "holding potato", "template": "Holding [something]", "placeholders": ["potato"]},
        {"id": "42326", "label": "x", "template": "Moving [something] and [something]", "placeholders": ["x", "y"]},
    ]
    labels = {"Moving something and something": "1", "Holding something": "0"}
    return (
        write(tmp_path / "train.json", json.dumps(entries)),
        write(tmp_path / "labels.json", json.dumps(labels)),
        entries,
    )


def test_official_something_something_files(tmp_path, something):
    path, labels, _ = something
    samples = read_something_something(path, labels, prefix=str(tmp_path), num_classes=2)
    assert list(samples) == [Sample(f"{tmp_path}/78687", 0), Sample(f"{tmp_path}/42326", 1)]
    assert samples.class_names == ["Holding something", "Moving something and something"]
    (tmp_path / "78687.webm").touch()
    videos = read_something_something(path, labels, prefix=str(tmp_path), num_classes=2)
    assert videos[1].path == f"{tmp_path}/42326.webm"


def test_faulty_something_something_files(tmp_path, something):
    path, labels, entries = something
    with pytest.raises(ListError, match=r"labels\.json names 2 classes.* num_classes is 1"):
        read_something_something(path, labels, num_classes=1)
    named = {"template": "Holding [something]"}
    for wrong in ({"id": "3", "template": "Eating [something]"}, {"id": "3"}, named, {**named, "template": [1]}, "3"):
        write(path, json.dumps([*entries, wrong]))
        with pytest.raises(ListError, match=r"1 of 3 rows(.|\n)*entry 3: .*labels\.json"):
            read_something_something(path, labels)
    for text in ('{"Holding something": "many"}', "[]", '{"Holding something": "1"}'):
        with pytest.raises(ListError, match=r"^\S*labels\.json "):
            read_something_something(path, write(tmp_path / "xlabels.json", text))
    for text in ("[{]", "[]", '{"id": 3}', "null", "[" * 100_000):
        with pytest.raises(ListError, match=r"train\.json"):
            read_something_something(write(path, text), labels)
    with pytest.raises(ListError, match=r"val\.json"):
        read_something_something(tmp_path / "val.json", labels)


def test_the_fingerprint_depends_on_every_column_but_not_on_the_folder_of_the_videos():
    columns = [["a", "bc"], [0, 1], [5, 6], [(9, 1, 2), (9, 1, 2)]]
    others = [["ab", "c"], [1, 1], [5, 7], [(9, 1, 2), (9, 1, 3)]]
    changed = [[other if i == j else c for j, c in enumerate(columns)] for i, other in enumerate(others)]
    lists = [columns, columns[:2], columns[:3], *changed]
    found = {VideoList(*arguments).fingerprint for arguments in lists}
    assert len(found) == 7
    assert VideoList(*columns).fingerprint == VideoList(*columns, prefix="/elsewhere").fingerprint


def test_a_label_may_be_unknown_where_that_is_allowed(tmp_path):
    path = write(tmp_path / "test.csv", "a.mp4 3\nb.mp4 -1\n")
    assert read_list(path, num_classes=4, unknown=True).labels.tolist() == [3, -1]
    for text, unknown, shown in (("b.mp4 -1\n", False, "label -1"), ("b.mp4 -2\n", True, "label -2")):
        with pytest.raises(ListError, match=rf"test.csv:1: .*{shown} is outside"):
            read_list(write(path, text), num_classes=4, unknown=unknown)


def test_a_large_list_takes_little_memory(tmp_path):
    rows = 20000
    path = write(
        tmp_path / "a.csv", "".join(f"train/class_{n % 400}/video_{n:06d}.mp4 {n % 400}\n" for n in range(rows))
    )
    samples = read_list(path)
    copy = pickle.dumps(samples)
    assert len(copy) < path.stat().st_size + 16 * rows + 2000  # the text and two numbers per row
    assert pickle.loads(copy)[rows - 1] == Sample("train/class_399/video_019999.mp4", 399)


COLUMN_SETS = [("path", "label"), FRAMES, SEGMENTS]
# Fields in the plain form, then in unusual and faulty forms.
PATH_FIELDS = ("a.mp4", "d/e f.mp4", "x,y.mp4", "p|q", "#", "ü.mp4", '"b,c.mp4"', '"say ""hi"""', " a", "a ", "", "\ta")
NUMBER_FIELDS = ("0", "3", "17", "007", "4", "1.5", ".5", "2.", "+3", "-1", "1_0", "1e1", " 2", "2 ", "", "x", "nan",
                 "inf", '"6"', "12345678901234567890", "0.1234567890123456789", ".", "1.2.3", "٣")  # fmt: skip


@pytest.mark.parametrize("columns", COLUMN_SETS, ids=len)
@pytest.mark.parametrize("separator", [" ", ",", ";", "\t", "|", ", ", "::"])
def test_rows_parsed_together_are_those_parsed_one_by_one(tmp_path, columns, separator):
    rng = np.random.default_rng(0)
    fields = [PATH_FIELDS, *[NUMBER_FIELDS] * (len(columns) - 1)]
    good, faulty, form = [], 0, RowFormat(columns, separator, 18)
    for _ in range(1500):
        plain = rng.random() < 0.7
        row = separator.join(of[rng.integers(5 if plain else len(of))] for of in fields)
        path, numbers, fault = form.parse(row.strip()) if row.strip() else ("", (), "empty")
        if not fault:
            good.append((row, [path, *numbers]))
        elif row.strip() and faulty < 60:  # a separate list, which is refused with the same message
            faulty += 1
            with pytest.raises(ListError) as caught:
                read_list(write(tmp_path / "bad.csv", f"{row}\n"), columns, separator=separator, num_classes=18)
            assert f"bad.csv:1: {row.strip()!r}: {fault}" in str(caught.value)
    assert len(good) > 100 and faulty == 60
    path = write(tmp_path / "good.csv", "".join(f"{row}\n" for row, _ in good))
    samples = read_list(path, columns, separator=separator, num_classes=18)
    read = [
        [sample.path, *[{"label": sample.label, "num_frames": sample.num_frames}.get(name) for name in columns[1:]]]
        for sample in samples
    ]
    for (row, values), sample, found in zip(good, samples, read, strict=True):
        if sample.segment is not None:
            found[1:4] = sample.segment
        assert found == values, row


def test_line_ends_do_not_matter(tmp_path):
    rows = [f"{'d/' * (n % 7)}{n}.mp4 {n % 5}" for n in range(300)]
    rows[17] = '"quoted 17.mp4"\t3'
    expected = list(read_list(write(tmp_path / "a.csv", "\n".join(rows) + "\n")))
    assert len(expected) == 300 and expected[17] == Sample("quoted 17.mp4", 3)
    for end in ("\n", "\r\n", "\r", "\n\n", "\n  \n"):
        assert list(read_list(write(tmp_path / "a.csv", end.join(rows)))) == expected, end
    with pytest.raises(ListError, match=r"a\.csv:5: 'e\.mp4 x'"):
        read_list(write(tmp_path / "a.csv", "a.mp4 1\r\n\r\nc.mp4 1\r\n\r\ne.mp4 x\r\nf.mp4 1"))


def test_workers_hold_no_object_per_row():
    samples = VideoList((f"{n}.mp4" for n in range(1000)), range(1000), range(1, 1001), [(3, 1, 2)] * 1000)
    gc.collect()
    assert len(gc.get_referents(samples.__dict__)) < 20
    held = [samples.listed.blob, samples.listed.ends, samples.labels]
    assert [type(part) for part in held] == [bytearray, np.ndarray, np.ndarray]
    assert samples[999] == Sample("999.mp4", 999, 1000, (3.0, 1.0, 2.0))


def test_the_first_path_that_exists_decides_the_suffix(tmp_path):
    (tmp_path / "frames").mkdir()
    for name in ("frames.webm", "video.webm"):
        (tmp_path / name).touch()
    for paths, suffix in (
        (["missing", "video"], ".webm"),
        (["missing.mp4", "video"], ""),
        (["frames", "video"], ""),
        (["missing"], ""),
    ):
        assert find_suffix(str(tmp_path), paths) == suffix, paths


def test_the_fingerprint_of_a_list_never_changes_because_checkpoints_contain_it():
    assert VideoList(["a.mp4", "b/c.mp4"], [1, 0]).fingerprint == "e8b16065f958"
    assert VideoList(["a"], [0], [7]).fingerprint == "f7cf03256894"
