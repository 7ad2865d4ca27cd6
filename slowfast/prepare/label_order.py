"""Find the class names of lists from other programs, in the order of their labels."""

from __future__ import annotations

import csv
import re
from collections import Counter, defaultdict
from collections.abc import Mapping, Sequence
from pathlib import Path

from slowfast.datasets.catalog import Dataset
from slowfast.datasets.lists import VideoList
from slowfast.prepare.annotations import READERS, file_lines, read_database
from slowfast.utils.class_names import kinetics400_names, read_class_names

# The name of a clip extends that of its video: in Kinetics by the seconds of the cut, in ActivityNet and HACS by "v_".
CLIP = re.compile(r"_\d{6}_\d{6}$")


def annotated_classes(path: str | Path, dataset: Dataset) -> tuple[list[str], dict[str, str]]:
    """Return the class names of an annotation in its own order, and the class of each video that it names.

    Args:
        path: folder of the official files, one of them, or any file that `read_class_names` reads; "" takes the names
            of Kinetics-400 from torchvision.
        dataset: row of `catalog.DATASETS`.

    Raises:
        ValueError: the annotation cannot be read, or has another number of classes than the data set.
    """
    if path:
        names, videos = _read(Path(path), dataset)
    elif dataset.num_classes == 400:
        names, videos = kinetics400_names(), []
    else:
        raise ValueError(f"{dataset.name} needs --annotations: its official files, or a file of its class names")
    if not names or dataset.num_classes not in (None, len(names)):
        raise ValueError(
            f"{path} names {len(names)} classes, but {dataset.name} has {dataset.num_classes or 'at least one'}: give "
            "its official annotations, or a file of its class names"
        )
    classes: dict[str, str | None] = {}
    for video, of_class in videos:
        for key in _keys(video):
            classes[key] = of_class if classes.get(key, of_class) == of_class else None
    return names, {video: of_class for video, of_class in classes.items() if of_class is not None}


def order_by_labels(
    lists: Sequence[VideoList], names: Sequence[str], classes: Mapping[str, str]
) -> tuple[list[str], int]:
    """Return `names` in the order of the labels of `lists`, and the number of rows that show this order.

    A row shows the class of its label if `classes` contains its video, or if its folder has the name of a class. If no
    row shows a class, the order is that of `names`.

    Raises:
        ValueError: the rows contradict the order of `names`, but do not show the labels of all classes.
    """
    folders: dict[str, str | None] = {}
    for name in names:
        folders[_plain(name)] = None if _plain(name) in folders else name
    seen: dict[int, Counter[str]] = defaultdict(Counter)
    for samples in lists:
        for row, path in enumerate(samples.listed):
            labels = samples.labels_of(row)
            of_class = next((classes[key] for key in _keys(path) if key in classes), None)
            name = of_class or folders.get(_plain(Path(path).parent.name))
            if name and len(labels) == 1:
                seen[labels[0]][name] += 1
    shown = {label: found.most_common(1)[0][0] for label, found in seen.items() if label >= 0}
    rows = sum(found[shown[label]] for label, found in seen.items() if label >= 0)
    wrong = [label for label, name in shown.items() if label >= len(names) or names[label] != name]
    if not wrong:
        return list(names), rows
    if sorted(shown) == list(range(len(names))) and len(set(shown.values())) == len(names):
        return [shown[label] for label in range(len(names))], rows
    label = min(wrong)
    other = f"{names[label]!r} in the annotation" if label < len(names) else f"there are {len(names)} classes"
    raise ValueError(
        f"label {label} is {shown[label]!r} in the lists, but {other}, and only {len(shown)} of {len(names)} labels "
        "show their class: give --annotations a file of the class names in the order of the labels"
    )


def _keys(path: str) -> list[str]:
    stem = Path(path).stem
    return [stem, CLIP.sub("", stem), stem.removeprefix("v_")]


def _plain(name: str) -> str:
    return re.sub(r"[\W_]+", "", name).casefold()


def _read(path: Path, dataset: Dataset) -> tuple[list[str], list[tuple[str, str]]]:
    if path.is_dir():
        files = [file for file in sorted(path.iterdir()) if file.suffix in (".json", ".csv", ".txt")]
        if len(files) != 1 and dataset.annotations in READERS:
            return _read_as(dataset.annotations, path)
        if len(files) != 1:
            raise ValueError(f"{path} has {len(files)} files of annotations: name one of them")
        path = files[0]
    header = next(csv.reader(file_lines(path)), [])
    column = "classname" if "classname" in header else "label"
    if {"youtube_id", column} <= {*header}:
        entries = csv.DictReader(file_lines(path))  # label -1 of HACS Clips is a class that a clip does not show
        rows = [(row["youtube_id"], row[column]) for row in entries if row.get("label") != "-1"]
        return sorted({of_class for _, of_class in rows if of_class}), [row for row in rows if row[1]]
    if path.suffix == ".json" and read_database(path) is not None:
        return _read_as("activitynet", path)
    return read_class_names(path), []


def _read_as(kind: str, path: Path) -> tuple[list[str], list[tuple[str, str]]]:
    annotated, names = READERS[kind](path, 1, defaultdict(list))
    return names, [(row.video, row.of_class) for rows in annotated.values() for row in rows]
