"""List files: what videos there are, with which labels. Every complaint names the file, the line and the cure."""

import json
import math
import os
from array import array
from collections.abc import Iterable, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path
from typing import TypeVar

import numpy as np

# Columns a list can have; the path is the first one, the others are numbers.
COLUMNS = {
    "path": "video file or folder of frames, relative to DATA.PATH_PREFIX",
    "label": "class, counted from 0",
    "num_frames": "frames in the folder",
    "total": "duration of the video in seconds",
    "begin": "start of the action in seconds",
    "end": "end of the action in seconds",
}
SEPARATORS = (",", " ", "\t", ";", "|")
CLASS_FILES = ("classes.txt", "class_names.txt")
VIDEO_SUFFIXES = (".webm", ".mp4")
SHOWN = 3

T = TypeVar("T")


class ManifestError(ValueError):
    """A list of videos, or the videos it names, cannot be used as they are."""


@dataclass(frozen=True)
class Sample:
    """One row of a list: `segment` is (total, begin, end) in seconds."""

    path: str
    label: int
    num_frames: int | None = None
    segment: tuple[float, float, float] | None = None


class Manifest(Sequence[Sample]):
    """The samples of one list, held in a few arrays: workers share them and nothing is copied or counted per row.

    Args:
        paths: as listed.
        labels: one per path.
        num_frames: one per path, or None where the list does not tell.
        segments: (total, begin, end) per path, or None.
        prefix: folder put before every path that is not absolute.
        source: the list file, for messages.
        class_names: in the order of the labels, or None if nobody told.
    """

    def __init__(
        self,
        paths: Iterable[str],
        labels: Iterable[int],
        num_frames: Iterable[int] | None = None,
        segments: Iterable[Sequence[float]] | None = None,
        *,
        prefix: str = "",
        source: str = "",
        class_names: Sequence[str] | None = None,
    ) -> None:
        blob, ends = bytearray(), array("q")
        for path in paths:
            blob += path.encode("utf-8", "surrogateescape")
            ends.append(len(blob))
        self._blob = bytes(blob)
        self._ends = np.array(ends, np.int64)
        self.labels = np.fromiter(labels, np.int64)
        self._num_frames = None if num_frames is None else np.fromiter(num_frames, np.int64)
        self._segments = None if segments is None else np.array(list(segments), np.float64).reshape(-1, 3)
        self.prefix = prefix
        self.source = source
        self.class_names = None if class_names is None else list(class_names)
        assert len(self.labels) == len(self._ends)

    def __len__(self) -> int:
        return len(self.labels)

    def path(self, index: int) -> str:
        """Return the full path of row `index`."""
        begin = self._ends[index - 1] if index else 0
        return os.path.join(self.prefix, self._blob[begin : self._ends[index]].decode("utf-8", "surrogateescape"))

    def __getitem__(self, index: int) -> Sample:  # type: ignore[override]  # no slices
        index = int(index)
        if not 0 <= index < len(self):
            raise IndexError(f"row {index} of a list of {len(self)} ({self.source})")
        return Sample(
            self.path(index),
            int(self.labels[index]),
            None if self._num_frames is None else int(self._num_frames[index]),
            None if self._segments is None else tuple(self._segments[index].tolist()),
        )


def load_manifest(
    path: str | Path,
    columns: Sequence[str] = ("path", "label"),
    *,
    separator: str = " ",
    prefix: str = "",
    num_classes: int | None = None,
) -> Manifest:
    """Read a list with one video per line.

    Rows are split from the right, so a path may contain the separator; a field may be quoted. A blank as the separator
    stands for any run of blanks and tabs. A list of frame folders may always use blanks, because the released recipes
    name a comma where the lists have blanks. Blank lines, a byte order mark and Windows line ends do not matter. Class
    names are read from `classes.txt` or `class_names.txt` beside the list, one per line, where there is one.

    Args:
        path: the list file.
        columns: names from `COLUMNS`, as they stand in the file.
        separator: between the columns (DATA.PATH_LABEL_SEPARATOR).
        prefix: folder of the videos (DATA.PATH_PREFIX).
        num_classes: labels must be below it (MODEL.NUM_CLASSES); None does not check.

    Raises:
        ManifestError: the file is missing or empty, or rows are faulty; all are counted and the first three shown.
    """
    text = _read(path)
    rows = [(number, row) for number, line in enumerate(text.split("\n"), 1) if (row := line.strip())]
    if not rows:
        raise ManifestError(f"{path} has no rows: write one '{separator.join(columns)}' per line")
    first = rows[0][1]
    if "num_frames" in columns and not _fits(first, columns, separator) and _fits(first, columns, " "):
        separator = " "

    paths: list[str] = []
    numbers = {name: array("q" if name in ("label", "num_frames") else "d") for name in columns[1:]}
    faults: list[str] = []
    cure = ""
    for number, row in rows:
        fields, fault = _parse(row, columns, separator, num_classes)
        if fault:
            faults.append(f"{path}:{number}: {row!r}: {fault}" if len(faults) < SHOWN else "")
            cure = cure or _cure(row, columns, separator, fault)
            continue
        paths.append(fields[0])
        for column, value in zip(numbers.values(), fields[1:], strict=True):
            column.append(value)
    if faults:
        raise ManifestError(_report(faults, len(rows), str(path)) + cure)
    segments = zip(numbers["total"], numbers["begin"], numbers["end"], strict=True) if "total" in numbers else None
    return Manifest(
        paths,
        numbers["label"],
        numbers.get("num_frames"),
        segments,
        prefix=prefix,
        source=str(path),
        class_names=_class_names(Path(path).parent, num_classes),
    )


def load_something_something(
    path: str | Path, labels_path: str | Path, *, prefix: str = "", num_classes: int | None = None
) -> Manifest:
    """Read the official Something-Something annotation.

    Args:
        path: JSON list of {"id", "template", ...}.
        labels_path: JSON object from each template, without its brackets, to its class.
        prefix: folder of the frame folders, or of the videos, which are named after the id (DATA.PATH_PREFIX).
        num_classes: labels must be below it (MODEL.NUM_CLASSES); None does not check.

    Raises:
        ManifestError: a file is missing or malformed, or entries are faulty; all are counted and the first three shown.
    """
    entries = _read_json(path, list)
    if not entries:
        raise ManifestError(f"{path} has no entries")
    classes = _read_json(labels_path, dict)
    try:
        classes = {name: int(label) for name, label in classes.items()}
    except (TypeError, ValueError) as error:
        raise ManifestError(f"{labels_path}: a class is not a number ({error})") from None

    paths, labels, faults = [], [], []
    for number, entry in enumerate(entries, 1):
        fault = ""
        if not (isinstance(entry, dict) and "id" in entry and "template" in entry):
            fault = "an entry needs 'id' and 'template'; the test set of the official release has no labels"
        else:
            label = classes.get(entry["template"].replace("[", "").replace("]", ""))
            fault = f"the template is not in {labels_path}" if label is None else _label_fault(label, num_classes)
            paths.append(str(entry["id"]))
            labels.append(label)
        if fault:
            faults.append(f"{path}: entry {number}: {str(entry)[:200]}: {fault}" if len(faults) < SHOWN else "")
    if faults:
        raise ManifestError(_report(faults, len(entries), str(path)))
    names = sorted(classes, key=lambda name: classes[name])
    if [classes[name] for name in names] != list(range(len(names))) or num_classes not in (None, len(names)):
        raise ManifestError(
            f"{labels_path} names {len(names)} classes, numbered {classes[names[0]]} to {classes[names[-1]]}, but "
            f"MODEL.NUM_CLASSES is {num_classes}; the numbers have to be 0 to {len(names) - 1} and MODEL.NUM_CLASSES "
            f"{len(names)}"
        )
    # Extracted frames lie in a folder named after the id, the release has id.webm: one look tells which it is.
    first = os.path.join(prefix, paths[0])
    suffix = "" if os.path.exists(first) else next((s for s in VIDEO_SUFFIXES if os.path.exists(first + s)), "")
    return Manifest(
        (name + suffix for name in paths),
        labels,
        prefix=prefix,
        source=str(path),
        class_names=names,
    )


def check_files(manifest: Manifest, threads: int = 16) -> None:
    """Look for every video of a list.

    Raises:
        ManifestError: some are missing; all are counted and the first three named.
    """

    def missing(start: int) -> list[int]:
        stop = min(start + block, len(manifest))
        return [index for index in range(start, stop) if not os.path.exists(manifest.path(index))]

    block = 1000
    with ThreadPoolExecutor(threads) as pool:
        lost = [index for part in pool.map(missing, range(0, len(manifest), block)) for index in part]
    if lost:
        names = "".join(f"\n  {manifest.path(index)}" for index in lost[:SHOWN])
        raise ManifestError(
            f"{len(lost)} of {len(manifest)} videos of {manifest.source} do not exist, first of them:{names}\n"
            f"Set DATA.PATH_PREFIX (now {manifest.prefix!r}) to the folder that the listed paths start from, or "
            "DATA.CHECK_FILES False to begin without looking."
        )


def _parse(row: str, columns: Sequence[str], separator: str, num_classes: int | None) -> tuple[list, str]:
    """Return the values of a row and what is wrong with it ('' for nothing)."""
    fields = [_unquote(field) for field in row.rsplit(separator.strip(" ") or None, len(columns) - 1)]
    if len(fields) < len(columns):
        return [], f"{len(fields)} of {len(columns)} columns ({', '.join(columns)}) when split by {separator!r}"
    if not fields[0]:
        return [], "the path is empty"
    values: list = [fields[0]]
    for name, field in zip(columns[1:], fields[1:], strict=True):
        whole = name in ("label", "num_frames")
        try:
            value = int(field) if whole else float(field)
        except ValueError:
            value = math.nan
        if not math.isfinite(value):
            return [], f"{name} {field!r} is not a {'whole ' if whole else ''}number"
        if name == "label" and (fault := _label_fault(value, num_classes)):
            return [], fault
        if name in ("num_frames", "total") and value <= 0:
            return [], f"{name} {field!r} is not above 0"
        values.append(value)
    if "begin" in columns and not 0 <= values[columns.index("begin")] <= values[columns.index("end")]:
        return [], "the annotated segment does not begin at or after 0 and end after that"
    return values, ""


def _fits(row: str, columns: Sequence[str], separator: str) -> bool:
    return not _parse(row, columns, separator, None)[1]


def _label_fault(label: float, num_classes: int | None) -> str:
    if label < 0 or (num_classes is not None and label >= num_classes):
        top = "" if num_classes is None else f"..{num_classes - 1} (MODEL.NUM_CLASSES {num_classes})"
        return f"label {label} is outside 0{top}"
    return ""


def _cure(row: str, columns: Sequence[str], separator: str, fault: str) -> str:
    if not _fits(row, columns, separator):
        for other in SEPARATORS:
            if _fits(row, columns, other):
                return f"\nThe rows look separated by {other!r}: set DATA.PATH_LABEL_SEPARATOR to it."
    if "MODEL.NUM_CLASSES" in fault:
        return "\nRaise MODEL.NUM_CLASSES, or count the labels from 0."
    told = ", ".join(f"{name} ({COLUMNS[name]})" for name in columns)
    return f"\nA row holds {told}, with DATA.PATH_LABEL_SEPARATOR {separator!r} between them."


def _unquote(field: str) -> str:
    field = field.strip()
    return field[1:-1].replace('""', '"') if len(field) > 1 and field[0] == field[-1] == '"' else field


def _report(faults: list[str], total: int, path: str) -> str:
    return f"{len(faults)} of {total} rows of {path} cannot be used, first of them:\n  " + "\n  ".join(faults[:SHOWN])


def _read(path: str | Path) -> str:
    try:
        return Path(path).read_text(encoding="utf-8-sig", errors="surrogateescape")
    except OSError as error:
        folder = Path(path).parent
        there = sorted(p.name for p in folder.iterdir() if p.is_file())[:10] if folder.is_dir() else None
        beside = f"the folder holds {', '.join(there) or 'no file'}" if there is not None else "nor is there the folder"
        raise ManifestError(
            f"no list file {path} ({error.strerror}; {beside}): set DATA.PATH_TO_DATA_DIR to the folder of the lists, "
            "and DATA.LABEL_PATH_TEMPLATE where the data set names its lists by it"
        ) from None


def _read_json(path: str | Path, kind: type[T]) -> T:
    try:
        content = json.loads(_read(path))
    except json.JSONDecodeError as error:
        raise ManifestError(f"{path}:{error.lineno}: not JSON: {error.msg}") from None
    if not isinstance(content, kind):
        raise ManifestError(f"{path} holds a {type(content).__name__}, but a {kind.__name__} is needed")
    return content


def _class_names(folder: Path, num_classes: int | None) -> list[str] | None:
    for name in CLASS_FILES:
        if (folder / name).is_file():
            names = _read(folder / name).rstrip("\n").split("\n")
            if num_classes is not None and len(names) != num_classes:
                raise ManifestError(
                    f"{folder / name} names {len(names)} classes, but MODEL.NUM_CLASSES is {num_classes}: "
                    "make them agree, or move the file away"
                )
            return names
    return None
