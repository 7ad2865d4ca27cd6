"""Make lists of public data sets from their official annotations; each format has a reader, a row of `READERS`."""

from __future__ import annotations

import csv
import os
from collections import defaultdict
from collections.abc import Callable, Iterable, Mapping, Sequence
from math import isfinite
from pathlib import Path
from typing import Any, NamedTuple

from slowfast.datasets.catalog import Dataset
from slowfast.datasets.lists import CLASS_FILES, read_json, read_list, read_something_something, text_lines
from slowfast.datasets.rows import VIDEO_SUFFIXES
from slowfast.prepare.scan import Notes, find_media
from slowfast.prepare.write import SPLIT_NAMES, Lists, Segment, complete
from slowfast.utils.class_names import read_class_names


class Annotation(NamedTuple):
    """A video of the annotations.

    Attributes:
        video: its name or path in the annotations; after the match with files, the path of its file.
        of_class: name of its class.
        segments: (duration of the video, begin, end) of each annotated segment in seconds; () for the whole video.
    """

    video: str
    of_class: str
    segments: tuple[Segment, ...] = ()


# Split -> videos, in the order of the annotations.
Annotations = dict[str, list[Annotation]]


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
        raise ValueError(f"the annotations of {dataset.name} are not read: DATASET.md describes its folders or lists")
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
    for video, of_class, _ in (row for rows in annotated.values() for row in rows):
        if of_class not in labels:
            raise ValueError(f"{annotations}: the class {of_class!r} of {video} is not among the class names: add it")
    matched = _match(annotated, found.sizes, notes)
    splits = {split: [(row.video, labels[row.of_class]) for row in rows] for split, rows in matched.items()}
    taken = {row.video: row.segments for rows in matched.values() for row in rows}
    if not taken:
        example = next((row.video for rows in annotated.values() for row in rows), "none")
        raise ValueError(
            f"none of the videos of {annotations}, such as {example!r}, is below {videos}, which contains "
            f"{next(iter(found.sizes))!r}: name the folder of these videos"
        )
    notes["that no annotation names, left out"] += [path for path in found.sizes if path not in taken]
    cure = f"{annotations} must name videos of these splits, and the videos must be below {videos}"
    return complete(Lists(splits, names, notes, taken), dataset.tested_on, cure)


def _match(annotated: Annotations, paths: Iterable[str], notes: Notes) -> Annotations:
    """Return the annotations with the path of each video in place of its name.

    Names are compared without folders and suffixes, and files may have the prefix "v_" of ActivityNet and HACS. If
    several files match, one in the folder that the annotation names is preferred.
    """
    of_stem: dict[str, list[str]] = defaultdict(list)
    for path in paths:
        of_stem[_stem(path)].append(path)
    matched: Annotations = {split: [] for split in annotated}
    taken: set[str] = set()
    for split, rows in annotated.items():
        for row in rows:
            name = row.video
            everywhere = of_stem.get(_stem(name)) or of_stem.get(f"v_{_stem(name)}", [])
            candidates = [path for path in everywhere if Path(path).parent.name == Path(name).parent.name] or everywhere
            if not candidates:
                notes[f"of {split}, not found"].append(name)
            elif candidates[0] in taken:
                notes["annotated more than once, kept once"].append(name)
            else:
                if len(candidates) > 1:
                    notes["found more than once, the first one kept"].append(name)
                taken.add(candidates[0])
                matched[split].append(row._replace(video=candidates[0]))
    return matched


def _stem(path: str) -> str:
    name = path.rpartition("/")[2]
    stem, suffix = os.path.splitext(name)
    return stem if suffix.lower() in VIDEO_SUFFIXES else name


def _read_lists(path: Path, fold: int, notes: Notes) -> tuple[Annotations, list[str]]:
    """Read train.csv, val.csv and test.csv (path, comma or blank, label), and the class names in the only .txt file."""
    named = path / CLASS_FILES[0]
    files = [named] if named.is_file() else sorted(path.glob("*.txt"))
    if len(files) != 1:
        raise ValueError(
            f"{path} has {len(files)} files with the suffix .txt, and needs one: the class names in the order of the "
            "labels, beside the lists train.csv, val.csv or test.csv"
        )
    names, splits = read_class_names(files[0]), Annotations()
    for split in ("train", "val", "test"):
        if (file := path / f"{split}.csv").is_file():
            separator = "," if any("," in line for line in file_lines(file)[:1]) else " "
            samples = read_list(file, separator=separator, num_classes=len(names))
            rows = zip(samples.listed, samples.labels, strict=True)
            splits[split] = [Annotation(video, names[label]) for video, label in rows]
    return splits, names


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
            video = f"{row['youtube_id']}_{begin:06d}_{end:06d}"
            splits.setdefault(split, []).append(Annotation(video, row["label"].strip()))
    if not read:
        raise ValueError(f"{path} contains no CSV file with the columns {', '.join(KINETICS_COLUMNS)}")
    return splits, _sorted_classes(splits)


def _sorted_classes(splits: Annotations) -> list[str]:
    return sorted({row.of_class for rows in splits.values() for row in rows})


def _read_something(path: Path, fold: int, notes: Notes) -> tuple[Annotations, list[str]]:
    """Read *train, *validation and *labels, all JSON (V2) or all CSV (V1: "id;template", and one template per line)."""
    for suffix, read in ((".json", _something_json), (".csv", _something_csv)):
        files = [sorted(path.glob(f"*{part}{suffix}")) for part in ("train", "validation", "labels")]
        if all(files):
            train, validation, labels = (paths[0] for paths in files)
            (rows, names), (others, _) = read(train, labels), read(validation, labels)
            return {"train": rows, "val": others}, names
    raise ValueError(f"{path} is no folder with *train, *validation and *labels, all .json or all .csv: name that one")


def _something_json(file: Path, labels: Path) -> tuple[list[Annotation], list[str]]:
    samples = read_something_something(file, labels)
    names = samples.class_names or []
    return [Annotation(name, names[label]) for name, label in zip(samples.listed, samples.labels, strict=True)], names


def _something_csv(file: Path, labels: Path) -> tuple[list[Annotation], list[str]]:
    parts = [line.strip().partition(";") for line in file_lines(file) if line.strip()]
    names = [name for line in file_lines(labels) if (name := line.strip())]
    return [Annotation(name, template) for name, _, template in parts], names


def _read_ucf101(path: Path, fold: int, notes: Notes) -> tuple[Annotations, list[str]]:
    """Read classInd.txt, trainlistNN.txt and testlistNN.txt."""
    names = read_class_names(path / "classInd.txt")
    splits: Annotations = {}
    for split in ("train", "test"):
        files = [line.split()[0] for line in file_lines(path / f"{split}list{fold:02d}.txt") if line.strip()]
        splits[split] = [Annotation(name, name.split("/")[0]) for name in files]
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
                raise ValueError(f"{file}:{number}: {line.strip()!r} does not end in 0, 1 or 2: download it again")
            if role in ("1", "2"):
                video = f"{of_class}/{name.strip()}"
                splits["train" if role == "1" else "test"].append(Annotation(video, of_class))
    return splits, sorted(files)


def _read_moments(path: Path, fold: int, notes: Notes) -> tuple[Annotations, list[str]]:
    """Read trainingSet.csv and validationSet.csv ("class/video.mp4,class,votes,votes"), and moments_categories.txt."""
    splits: Annotations = {}
    for split, name in (("train", "trainingSet.csv"), ("val", "validationSet.csv")):
        rows = csv.reader(file_lines(path / name))
        splits[split] = []
        for row in rows:
            if not "".join(row).strip():
                continue
            video = row[0].strip()
            of_class = video.rpartition("/")[0]
            if not of_class:
                raise ValueError(f"{path / name}:{rows.line_num}: {row} begins without class/video: remove it")
            splits[split].append(Annotation(video, of_class))
    return splits, read_class_names(path / "moments_categories.txt")


def _read_activitynet(path: Path, fold: int, notes: Notes) -> tuple[Annotations, list[str]]:
    """Read the JSON file of ActivityNet or HACS Segments: subset, duration and segments in seconds of each video."""
    for file in sorted(path.glob("*.json")) if path.is_dir() else [path]:
        if (database := read_database(file)) is not None:
            break
    else:
        raise ValueError(f'{path} contains no JSON file with a "database" of videos: give the file of the annotations')
    splits: Annotations = {}
    for video, entry in database.items():
        try:
            split, row = SPLIT_NAMES[entry["subset"]], _untrimmed(video, entry, notes)
        except (LookupError, TypeError, ValueError) as error:
            raise ValueError(
                f"{file}: {video} lacks a known subset, a duration or labelled segments ({error!r}): correct or "
                "remove this entry"
            ) from None
        if row.segments:
            splits.setdefault(split, []).append(row)
        else:
            notes["without an annotated segment, left out"].append(video)
    return splits, _sorted_classes(splits)


def read_database(file: Path) -> dict[str, Any] | None:
    """Return the videos of a JSON file of ActivityNet or HACS Segments; None if it has none."""
    content = read_json(file)
    database = content.get("database") if isinstance(content, dict) else None
    return database if isinstance(database, dict) else None


def _untrimmed(video: str, entry: Mapping[str, Any], notes: Notes) -> Annotation:
    """Return an untrimmed video with the class of its first segment, and the segments of this class."""
    duration, found = float(entry["duration"]), entry.get("annotations") or ()
    of_class = found[0]["label"] if found else ""
    if not isfinite(duration) or not all(isinstance(segment["label"], str) for segment in found):
        raise ValueError("a duration or label is of another kind")
    if any(segment["label"] != of_class for segment in found):
        notes["with several classes, only segments of the first class kept"].append(video)
    limits = [_limits(segment["segment"]) for segment in found if segment["label"] == of_class]
    kept = tuple((duration, max(begin, 0.0), end) for begin, end in limits if max(begin, 0) < min(end, duration))
    return Annotation(video, of_class, kept)


def _limits(segment: Sequence[float]) -> list[float]:
    begin, end = sorted(map(float, segment))
    if isinstance(segment, str) or not (isfinite(begin) and isfinite(end)):
        raise ValueError(f"{segment!r} is no segment")
    return [begin, end]


def file_lines(path: Path) -> list[str]:
    """Return the lines of an official file."""
    return list(text_lines(path, "name the folder of the official files"))


# Value of `Dataset.annotations` -> reader. A reader takes the folder or file, the fold, and the notes, to which it may
# add; it returns the annotations, and the class names in the order of their labels.
READERS: dict[str, Callable[[Path, int, Notes], tuple[Annotations, list[str]]]] = {
    "kinetics": _read_kinetics,
    "lists": _read_lists,
    "something": _read_something,
    "ucf101": _read_ucf101,
    "hmdb51": _read_hmdb51,
    "moments": _read_moments,
    "activitynet": _read_activitynet,
}
