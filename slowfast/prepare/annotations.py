"""Official annotations of public data sets: which videos there are, in which split and of which class."""

from __future__ import annotations

import csv
import os
from collections import defaultdict
from collections.abc import Callable, Sequence
from pathlib import Path

from slowfast.datasets.catalog import Dataset
from slowfast.datasets.lists import read_something_something
from slowfast.datasets.rows import VIDEO_SUFFIXES
from slowfast.prepare.write import SPLIT_NAMES, Annotations, Lists, Notes, complete, find_media


def lists_from_annotations(
    videos: str | Path,
    annotations: str | Path,
    dataset: Dataset,
    *,
    fold: int = 1,
    class_names: Sequence[str] | None = None,
    subset: bool = False,
) -> Lists:
    """Lists of a public data set from its own annotations; videos may lie anywhere below the folder.

    Args:
        videos: folder of the videos or frame folders.
        annotations: folder of the official files, or one file.
        dataset: row of `catalog.DATASETS`.
        fold: which of the three official splits of UCF101 and HMDB51.
        class_names: the classes in the order of their labels; None takes the annotations' order.
        subset: accept another number of classes than the data set has.

    Raises:
        ValueError: annotations are missing or malformed, or no video is there.
    """
    if dataset.annotations not in READERS:
        raise ValueError(f"the annotations of {dataset.name} cannot be read; write its lists as DATASET.md describes")
    notes: Notes = defaultdict(list)
    annotated, names = READERS[dataset.annotations](Path(annotations), fold, notes)
    names = list(class_names or names)
    if dataset.num_classes not in (None, len(names)) and not subset:
        raise ValueError(
            f"{annotations} names {len(names)} classes, but {dataset.name} has {dataset.num_classes}, on which labels "
            "depend: name all by --class-names, a line each, or accept labels of your own with --subset"
        )
    found = find_media(videos)
    notes |= found.notes
    of_stem: dict[str, list[str]] = defaultdict(list)
    for path in found.sizes:
        of_stem[_stem(path)].append(path)
    labels = {name: label for label, name in enumerate(names)}
    splits: dict[str, list[tuple[str, int]]] = {}
    taken: set[str] = set()
    for split, pairs in annotated.items():
        splits[split] = []
        for name, of_class in pairs:
            candidates = of_stem.get(_stem(name), [])
            near = [path for path in candidates if Path(path).parent.name == Path(name).parent.name]
            path = next(iter(near or candidates), None)
            if of_class not in labels:
                raise ValueError(f"{annotations}: the class {of_class!r} of {name} is not among the class names")
            if path is None:
                notes[f"of {split}, not found"].append(name)
            elif path in taken:
                notes["annotated more than once, kept once"].append(name)
            else:
                if len(near or candidates) > 1:
                    notes["found more than once, the first one kept"].append(name)
                taken.add(path)
                splits[split].append((path, labels[of_class]))
    if not taken:
        example = next((name for pairs in annotated.values() for name, _ in pairs), "none")
        raise ValueError(
            f"none of the videos of {annotations} lies below {videos}: it names {example!r} and others, the folder "
            f"holds {next(iter(found.sizes))!r} and others"
        )
    notes["that no annotation names, left out"] += [path for path in found.sizes if path not in taken]
    cure = f"{annotations} must name videos of these splits, and the videos must be below {videos}"
    return complete(Lists(splits, names, notes), dataset.tested_on, cure)


def _stem(path: str) -> str:
    name = path.rpartition("/")[2]
    stem, suffix = os.path.splitext(name)
    return stem if suffix.lower() in VIDEO_SUFFIXES else name


def _read_kinetics(path: Path, fold: int, notes: Notes) -> tuple[Annotations, list[str]]:
    """CSV files with the columns label, youtube_id, time_start, time_end (seconds) and split."""
    columns = ("label", "youtube_id", "time_start", "time_end", "split")
    files = sorted(path.glob("*.csv")) if path.is_dir() else [path]
    splits: Annotations = {}
    read = []
    for file in files:
        rows = csv.DictReader(file_lines(file))
        if not set(columns) <= set(rows.fieldnames or ()):
            continue
        read.append(file)
        for row in rows:
            if not row["label"]:
                notes["without a label, left out"].append(row["youtube_id"])
                continue
            try:
                begin, end = (int(float(row[column])) for column in ("time_start", "time_end"))
                split = SPLIT_NAMES[row["split"].strip().lower()]
            except (TypeError, ValueError, KeyError, AttributeError):
                raise ValueError(f"{file}:{rows.line_num}: not a row of {', '.join(columns)}: {row}") from None
            splits.setdefault(split, []).append((f"{row['youtube_id']}_{begin:06d}_{end:06d}", row["label"].strip()))
    if not read:
        raise ValueError(f"{path} holds no CSV file with the columns {', '.join(columns)}")
    return splits, sorted({of_class for pairs in splits.values() for _, of_class in pairs})


def _read_something(path: Path, fold: int, notes: Notes) -> tuple[Annotations, list[str]]:
    """Files *train, *validation and *labels, all .json (V2) or all .csv (V1: "id;template" and a template a line)."""
    if not path.is_dir():
        raise ValueError(f"{path} is no folder: name the one with the files *train, *validation and *labels")
    splits: Annotations = {}
    for suffix in (".json", ".csv"):
        files = {part: sorted(path.glob(f"*{part}{suffix}")) for part in ("train", "validation", "labels")}
        if not all(files.values()):
            continue
        train, validation, labels = (paths[0] for paths in files.values())
        if suffix == ".csv":
            names = [name for line in file_lines(labels) if (name := line.strip())]
            for split, file in (("train", train), ("val", validation)):
                pairs = [line.strip().partition(";") for line in file_lines(file) if line.strip()]
                splits[split] = [(name, template) for name, _, template in pairs]
            return splits, names
        names = []
        for split, file in (("train", train), ("val", validation)):
            samples = read_something_something(file, labels)
            names = samples.class_names or []
            ids = (Path(samples.path(i)).name for i in range(len(samples)))
            splits[split] = [(name, names[label]) for name, label in zip(ids, samples.labels, strict=True)]
        return splits, names
    raise ValueError(f"{path} lacks one of *train, *validation and *labels (all .json or all .csv)")


def _read_ucf101(path: Path, fold: int, notes: Notes) -> tuple[Annotations, list[str]]:
    """classInd.txt, trainlistNN.txt and testlistNN.txt."""
    if not path.is_dir():
        raise ValueError(f"{path} is no folder: name the one with classInd.txt, trainlist01.txt and testlist01.txt")
    numbered = [line.split(maxsplit=1) for line in file_lines(path / "classInd.txt") if line.strip()]
    names = [name.strip() for _, name in sorted(numbered, key=lambda pair: int(pair[0]))]
    splits: Annotations = {}
    for split in ("train", "test"):
        files = [line.split()[0] for line in file_lines(path / f"{split}list{fold:02d}.txt") if line.strip()]
        splits[split] = [(name, name.split("/")[0]) for name in files]
    return splits, names


def _read_hmdb51(path: Path, fold: int, notes: Notes) -> tuple[Annotations, list[str]]:
    """<class>_test_split<N>.txt of every class: a file and 0 (not in this split), 1 (train) or 2 (test) a line."""
    ending = f"_test_split{fold}.txt"
    files = {file.name.removesuffix(ending): file for file in sorted(path.rglob(f"*{ending}"))}
    if not files:
        raise ValueError(f"{path} holds no file <class>{ending}: name the folder of HMDB51's split files")
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
    try:
        return path.read_text(encoding="utf-8-sig", errors="surrogateescape").splitlines()
    except OSError as error:
        raise ValueError(f"{path} cannot be read ({error.strerror}); name the folder of the official files") from None


# Keys are those of `Dataset.annotations`. A reader takes the folder or file, the fold, and notes to add to.
READERS: dict[str, Callable[[Path, int, Notes], tuple[Annotations, list[str]]]] = {
    "kinetics": _read_kinetics,
    "something": _read_something,
    "ucf101": _read_ucf101,
    "hmdb51": _read_hmdb51,
}
