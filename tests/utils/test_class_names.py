"""Class names are read from the files of data sets, toolboxes and authors of weights."""

import json

import pytest

from slowfast.utils.class_names import format_class_names, read_class_names

NAMES = ["abseiling", "air drumming", "throwing 3 balls", "bull, fighting", "massaging person's head", "3 point shot"]


def numbered(form, base=0, order=None):
    rows = [form.format(name=name, number=number + base) for number, name in enumerate(NAMES)]
    return "\n".join(rows[i] for i in order or range(len(rows))) + "\n"


SHUFFLED = [4, 0, 5, 2, 1, 3]
TEXTS = {
    "one name per line": "\n".join(NAMES) + "\n",
    "without a last line end": "\n".join(NAMES),
    "quoted names": "".join(f'"{name}"\n' for name in NAMES),
    "name tab number": numbered("{name}\t{number}"),
    "number tab name": numbered("{number}\t{name}", 0, SHUFFLED),
    "name number": numbered("{name} {number}", 0, SHUFFLED),
    "number name": numbered("{number} {name}", 0, SHUFFLED),
    "number name from 1": numbered("{number} {name}", 1),  # classInd.txt
    "name,number": numbered("{name},{number}", 0, SHUFFLED),  # moments_categories.txt
    "number,name": numbered("{number}, {name}"),
    "quoted,number": numbered('"{name}",{number}'),
    "number;name": numbered("{number};{name}", 1, SHUFFLED),
    "csv with a header": "id,name\n" + numbered('{number},"{name}"', 0, SHUFFLED),
    "csv with another header": "class_name,class_id\n" + numbered("{name},{number}"),
    "csv of a data frame": ",name\n" + numbered("{number},{name}").replace("bull, fighting", '"bull, fighting"'),
    "table with a header": "label\tindex\n" + numbered("{name}\t{number}", 1),
    "json list": json.dumps(NAMES),
    "json list in lines": json.dumps(NAMES, indent=1),
    "json name: number": json.dumps({name: number for number, name in enumerate(NAMES)}),
    "json name: text": json.dumps({name: str(number) for number, name in reversed(list(enumerate(NAMES)))}, indent=2),
    "json number: name": json.dumps({str(number): name for number, name in reversed(list(enumerate(NAMES)))}),
    "json quoted twice": json.dumps({f'"{name}"': number for number, name in enumerate(NAMES)}),  # PySlowFast
}


@pytest.mark.parametrize("form", TEXTS)
@pytest.mark.parametrize("dress", [str.encode, lambda text: b"\xef\xbb\xbf" + text.replace("\n", "\r\n").encode()])
def test_every_form_gives_the_names_in_the_order_of_their_labels(tmp_path, form, dress):
    path = tmp_path / "classes.txt"
    path.write_bytes(dress(TEXTS[form]))
    assert read_class_names(path) == read_class_names(str(path)) == NAMES


def test_windows_unicode_text_is_read(tmp_path):
    path = tmp_path / "classes.txt"
    path.write_bytes("0\tmüde\r\n1\twach\r\n".encode("utf-16"))
    assert read_class_names(path) == ["müde", "wach"]


@pytest.mark.parametrize(
    "names",
    [
        ["level 1", "level 2", "level 3"],
        ["Boeing 747", "Airbus 320", "Cessna 172"],
        ["throwing 3 balls", "holding 2", "running"],
        ["2 hands", "2 feet", "1 hand", "1 foot"],
        ["A, 1", "A, 2", "B"],
        ["crane", "tench", "crane"],  # of ImageNet: the bird and the machine
        ["Putting something, something and something on the table", "Holding [something]"],
        ["[something] falls", "Holding [something]"],
        ["name", "other"],
        ["only"],
    ],
    ids=repr,
)
def test_numbers_and_commas_in_names_are_kept(tmp_path, names):
    path = tmp_path / "class_names.txt"
    path.write_text("".join(f"{name}\n" for name in names))
    assert read_class_names(path) == names


@pytest.mark.parametrize(
    ("text", "place"),
    [
        ("", "empty"),
        (" \n\n", "empty"),
        ("cat\n\ndog\n", "line 2"),
        ("cat\t0\ndog\t1\ncow\n", "line 3"),
        ("cat,0\ndog,1\ncow,1\n", "line 3"),
        ("cat 0\ndog 1\ncow 5\n", "line 3"),
        ("1 cat\n2 dog\n4 cow\n", "line 3"),
        ("id,name\n0,cat\n1,dog\n2,\n", "line 4"),
        ("cat,x\ndog,1\ncow,2\n", "line 1"),  # not a header: if counted from 1, the first class would be lost
        ("0 cats 1\n1 cat 0\n", "line 1"),
        ('["cat", ""]', "entry 2"),
        ('["cat",\n "dog"', "line 2"),
        ('{"cat": 0, "dog": 2, "cow": 1, "ox": 1}', "entry 4"),
        ('{"database": {"v_1": {"subset": "training"}}}', "neither"),
        ("[1, 2]", "neither"),
        ("[]", "neither"),
    ],
)
def test_faults_are_named_with_file_and_line(tmp_path, text, place):
    path = tmp_path / "classes.txt"
    path.write_text(text)
    with pytest.raises(ValueError, match=rf"classes\.txt.*{place}"):
        read_class_names(path)


def test_a_missing_file_is_a_value_error(tmp_path):
    with pytest.raises(ValueError, match=r"gone\.txt"):
        read_class_names(tmp_path / "gone.txt")


@pytest.mark.parametrize(
    "names",
    [
        NAMES,
        ["1 run", "10 walk", "2 sit"],  # folders of these names, sorted: not the order of the numbers
        ["cat 1", "dog 0"],
        [" cat", "dog "],
        ['"cat"', "dog"],
        ["name,1", "id,0"],
        ["cat\t1", "dog\t0"],
        ["[", "]"],
        ["level 1", "level 2"],
        ["1", "2", "10"],
    ],
    ids=repr,
)
def test_written_names_are_read_unchanged(tmp_path, names):
    path = tmp_path / "class_names.txt"
    path.write_text(format_class_names(names))
    assert read_class_names(path) == names


def test_plain_names_are_written_one_per_line():
    assert format_class_names(NAMES) == "".join(f"{name}\n" for name in NAMES)
