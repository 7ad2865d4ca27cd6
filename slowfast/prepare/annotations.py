"""Make lists of public data sets from their official annotations; each format has a reader, a row of `READERS`."""

from __future__ import annotations

import csv
import os
from collections import defaultdict
from collections.abc import Callable, Iterable, Sequence
from pathlib import Path

from slowfast.datasets.catalog import Dataset
from slowfast.datasets.lists import read_something_something
from slowfast.datasets.rows import VIDEO_SUFFIXES
from slowfast.prepare.scan import Notes, find_media
from slowfast.prepare.write import SPLIT_NAMES, Lists, complete
from slowfast.utils.class_names import read_class_names

# Split -> (name of a video, name of its class), in the order of the annotations.
Annotations = dict[str, list[tuple[str, str]]]


def lists_from_annotations(
    videos: str | Path,
    annotations: str | Path,
    dataset: Dataset,
    *,
    fold: int = 1,
    class_names: Sequence[str] | None = None,
    subset: bool = False,
) -> Lists:
    """Make the lists of a public data set from its annotations; videos may be anywhere below the folder.

    Args:
        videos: folder of the videos or frame folders.
        annotations: folder of the official files, or one file.
        dataset: row of `catalog.DATASETS`.
        fold: number of the official split of UCF101 or HMDB51, 1 to 3.
        class_names: the classes in the order of their labels; None takes the order of the annotations.
        subset: accept a number of classes that differs from that of the data set.

    Raises:
        ValueError: annotations are missing or malformed, or none of the videos exists.
    """
    if dataset.annotations not in READERS:
        raise ValueError(f"the annotations of {dataset.name} cannot be read: write its lists as DATASET.md describes")
    notes: Notes = defaultdict(list)
    annotated, names = READERS[dataset.annotations](Path(annotations), fold, notes)
    names = list(class_names or names)
    if dataset.num_classes not in (None, len(names)) and not subset:
        raise ValueError(
            f"{annotations} names {len(names)} classes, but {dataset.name} has {dataset.num_classes}, which the labels "
            "depend on: name all with --class-names, one per line, or accept other labels with --subset"
        )
    found = find_media(videos)
    notes |= found.notes
    labels = {name: label for label, name in enumerate(names)}
    for name, of_class in (pair for pairs in annotated.values() for pair in pairs):
        if of_class not in labels:
            raise ValueError(f"{annotations}: the class {of_class!r} of {name} is not among the class names: add it")
    splits = {
        split: [(path, labels[of_class]) for path, of_class in pairs]
        for split, pairs in _match(annotated, found.sizes, notes).items()
    }
    taken = {path for pairs in splits.values() for path, _ in pairs}
    if not taken:
        example = next((name for pairs in annotated.values() for name, _ in pairs), "none")
        raise ValueError(
            f"none of the videos of {annotations}, such as {example!r}, is below {videos}, which contains "
            f"{next(iter(found.sizes))!r}: name the folder of these videos"
        )
    notes["that no annotation names, left out"] += [path for path in found.sizes if path not in taken]
    cure = f"{annotations} must name videos of these splits, and the videos must be below {videos}"
    return complete(Lists(splits, names, notes), dataset.tested_on, cure)


def _match(annotated: Annotations, paths: Iterable[str], notes: Notes) -> Annotations:
    """Return the annotations with the path of each video in place of its name.

    Names are compared without folders and suffixes. If several files match, one in the folder that the annotation names
    is preferred.
    """
    of_stem: dict[str, list[str]] = defaultdict(list)
    for path in paths:
        of_stem[_stem(path)].append(path)
    matched: Annotations = {split: [] for split in annotated}
    taken: set[str] = set()
    for split, pairs in annotated.items():
        for name, of_class in pairs:
            everywhere = of_stem.get(_stem(name), [])
            candidates = [path for path in everywhere if Path(path).parent.name == Path(name).parent.name] or everywhere
            if not candidates:
                notes[f"of {split}, not found"].append(name)
            elif candidates[0] in taken:
                notes["annotated more than once, kept once"].append(name)
            else:
                if len(candidates) > 1:
                    notes["found more than once, the first one kept"].append(name)
                taken.add(candidates[0])
                matched[split].append((candidates[0], of_class))
    return matched


def _stem(path: str) -> str:
    name = path.rpartition("/")[2]
    stem, suffix = os.path.splitext(name)
    return stem if suffix.lower() in VIDEO_SUFFIXES else name


KINETICS_COLUMNS = ("label", "youtube_id", "time_start", "time_end", "split")


def _read_kinetics(path: Path, fold: int, notes: Notes) -> tuple[Annotations, list[str]]:
    """Read CSV files with the columns label, youtube_id, time_start, time_end (seconds) and split."""
    splits: Annotations = {}
    read = False
    for file in sorted(path.glob("*.csv")) if path.is_dir() else [path]:
        rows = csv.DictReader(file_lines(file))
        if not set(KINETICS_COLUMNS) <= set(rows.fieldnames or ()):
            continue
        read = True
        for row in rows:
            if not row["label"]:
                notes["without a label, left out"].append(row["youtube_id"])
                continue
            try:
                begin, end = (int(float(row[column])) for column in ("time_start", "time_end"))
                split = SPLIT_NAMES[row["split"].strip().lower()]
            except (TypeError, ValueError, KeyError, AttributeError):
                raise ValueError(f"{file}:{rows.line_num}: not a row of {', '.join(KINETICS_COLUMNS)}: {row}") from None
            splits.setdefault(split, []).append((f"{row['youtube_id']}_{begin:06d}_{end:06d}", row["label"].strip()))
    if not read:
        raise ValueError(f"{path} contains no CSV file with the columns {', '.join(KINETICS_COLUMNS)}")
    return splits, sorted({of_class for pairs in splits.values() for _, of_class in pairs})


def _read_something(path: Path, fold: int, notes: Notes) -> tuple[Annotations, list[str]]:
    """Read *train, *validation and *labels, all JSON (V2) or all CSV (V1: "id;template", and one template per line)."""
    for suffix, read in ((".json", _something_json), (".csv", _something_csv)):
        files = [sorted(path.glob(f"*{part}{suffix}")) for part in ("train", "validation", "labels")]
        if all(files):
            train, validation, labels = (paths[0] for paths in files)
            (pairs, names), (others, _) = read(train, labels), read(validation, labels)
            return {"train": pairs, "val": others}, names
    raise ValueError(f"{path} is no folder with *train, *validation and *labels, all .json or all .csv: name that one")


def _something_json(file: Path, labels: Path) -> tuple[list[tuple[str, str]], list[str]]:
    samples = read_something_something(file, labels)
    names = samples.class_names or []
    return [(name, names[label]) for name, label in zip(samples.listed, samples.labels, strict=True)], names


def _something_csv(file: Path, labels: Path) -> tuple[list[tuple[str, str]], list[str]]:
    parts = [line.strip().partition(";") for line in file_lines(file) if line.strip()]
    names = [name for line in file_lines(labels) if (name := line.strip())]
    return [(name, template) for name, _, template in parts], names


def _read_ucf101(path: Path, fold: int, notes: Notes) -> tuple[Annotations, list[str]]:
    """Read classInd.txt, trainlistNN.txt and testlistNN.txt."""
    names = read_class_names(path / "classInd.txt")
    splits: Annotations = {}
    for split in ("train", "test"):
        files = [line.split()[0] for line in file_lines(path / f"{split}list{fold:02d}.txt") if line.strip()]
        splits[split] = [(name, name.split("/")[0]) for name in files]
    return splits, names


def _read_hmdb51(path: Path, fold: int, notes: Notes) -> tuple[Annotations, list[str]]:
    """Read <class>_test_split<N>.txt: a file and 0 (not in this split), 1 (train) or 2 (test) per line."""
    ending = f"_test_split{fold}.txt"
    files = {file.name.removesuffix(ending): file for file in sorted(path.rglob(f"*{ending}"))}
    if not files:
        raise ValueError(f"{path} contains no file <class>{ending}: name the folder of HMDB51's split files")
    splits: Annotations = {"train": [], "test": []}
    for of_class, file in files.items():
        for number, line in enumerate(file_lines(file), 1):
            name, _, role = line.strip().rpartition(" ")
            if role not in ("0", "1", "2", ""):
                raise ValueError(f"{file}:{number}: {line!r} does not end in 0, 1 or 2")
            if role in ("1", "2"):
                splits["train" if role == "1" else "test"].append((f"{of_class}/{name.strip()}", of_class))
    return splits, sorted(files)


def file_lines(path: Path) -> list[str]:
    """Return the lines of an official file.

    Raises:
        ValueError: it cannot be read.
    """
    try:
        return path.read_text(encoding="utf-8-sig", errors="surrogateescape").splitlines()
    except OSError as error:
        raise ValueError(f"{path} cannot be read ({error.strerror}): name the folder of the official files") from None


# Value of `Dataset.annotations` -> reader. A reader takes the folder or file, the fold, and the notes, to which it may
# add; it returns the annotations, and the class names in the order of their labels.
READERS: dict[str, Callable[[Path, int, Notes], tuple[Annotations, list[str]]]] = {
    "kinetics": _read_kinetics,
    "something": _read_something,
    "ucf101": _read_ucf101,
    "hmdb51": _read_hmdb51,
}
