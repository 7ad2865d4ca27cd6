"""List files: what videos there are, with which labels. Every complaint names the file, the line and the cure."""

import hashlib
import json
import os
from array import array
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import TypeVar

import numpy as np

from slowfast.datasets.rows import UNKNOWN, VIDEO_SUFFIXES, cure_rows, fits, label_fault, parse_row
from slowfast.utils.class_names import read_class_names

CLASS_FILES = ("classes.txt", "class_names.txt")
SHOWN = 3
LOOKS = 10  # rows checked to find the suffix of all
KNOWN = 100_000  # parsed ends of rows that are kept

T = TypeVar("T")


class ListError(ValueError):
    """A list of videos, or the videos it names, cannot be used as they are."""


@dataclass(frozen=True)
class Sample:
    """One row of a list: `segment` is (total, begin, end) in seconds."""

    path: str
    label: int
    num_frames: int | None = None
    segment: tuple[float, float, float] | None = None


class Paths(Sequence[str]):
    """Strings end to end in one piece of memory, so that a million of them are one object.

    Args:
        blob: their bytes, UTF-8 where they are text.
        ends: (N,) where each ends.
    """

    def __init__(self, blob: bytes | bytearray, ends: np.ndarray) -> None:
        self.blob, self.ends = blob, ends

    @classmethod
    def of(cls, paths: Iterable[str]) -> "Paths":
        """Join `paths`."""
        blob, ends = bytearray(), array("q")
        for path in paths:
            blob += path.encode("utf-8", "surrogateescape")
            ends.append(len(blob))
        return cls(blob, np.array(ends, np.int64))

    def __len__(self) -> int:
        return len(self.ends)

    def __getitem__(self, index: int) -> str:  # type: ignore[override]  # no slices
        begin = self.ends[index - 1] if index else 0
        return self.blob[begin : self.ends[index]].decode("utf-8", "surrogateescape")

    def __iter__(self) -> Iterator[str]:
        begin = 0
        for start in range(0, len(self), 1000):  # Python's integers are faster than NumPy's, but take memory
            for end in self.ends[start : start + 1000].tolist():
                yield self.blob[begin:end].decode("utf-8", "surrogateescape")
                begin = end


class VideoList(Sequence[Sample]):
    """The samples of one list, held in a few arrays: workers share them and nothing is copied or counted per row.

    Args:
        paths: as listed; they are kept in `listed`.
        labels: one per path.
        num_frames: one per path, or None where the list does not tell.
        segments: (total, begin, end) per path, or None.
        prefix: folder put before every path that is not absolute.
        suffix: put after every path.
        source: the list file, for messages.
        class_names: in the order of the labels, or None if unknown.
    """

    def __init__(
        self,
        paths: Iterable[str],
        labels: Sequence[int] | np.ndarray,
        num_frames: Sequence[int] | np.ndarray | None = None,
        segments: Sequence[Sequence[float]] | np.ndarray | None = None,
        *,
        prefix: str = "",
        suffix: str = "",
        source: str = "",
        class_names: Sequence[str] | None = None,
    ) -> None:
        self.listed = paths if isinstance(paths, Paths) else Paths.of(paths)
        self.labels = np.asarray(labels, np.int64)
        self._num_frames = None if num_frames is None else np.asarray(num_frames, np.int64)
        self._segments = None if segments is None else np.asarray(segments, np.float64).reshape(-1, 3)
        self.prefix = prefix
        self.suffix = suffix
        self.source = source
        self.class_names = None if class_names is None else list(class_names)
        assert len(self.labels) == len(self.listed)

    def __len__(self) -> int:
        return len(self.labels)

    @cached_property
    def fingerprint(self) -> str:
        """The first digits of a SHA-256 of all rows; where the videos lie does not matter."""
        digest = hashlib.sha256(self.listed.blob)
        for column in (self.listed.ends, self.labels, self._num_frames, self._segments):
            digest.update(b"none" if column is None else column.tobytes())
        return digest.hexdigest()[:12]

    def path(self, index: int) -> str:
        """Return the full path of row `index`."""
        return os.path.join(self.prefix, self.listed[index] + self.suffix)

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


def read_list(
    path: str | Path,
    columns: Sequence[str] = ("path", "label"),
    *,
    separator: str = " ",
    prefix: str = "",
    num_classes: int | None = None,
    unknown: bool = False,
) -> VideoList:
    """Read a list with one video per line.

    Rows are split from the right, so a path may contain the separator; a field may be quoted. A blank as the separator
    stands for any run of blanks and tabs. A list of frame folders may always use blanks, because the released recipes
    name a comma where the lists have blanks. Blank lines, a byte order mark and Windows line ends do not matter. Class
    names are read from `classes.txt` or `class_names.txt` beside the list, where there is one.

    Args:
        path: the list file.
        columns: names from `COLUMNS`, as they stand in the file.
        separator: between the columns (DATA.PATH_LABEL_SEPARATOR).
        prefix: folder of the videos (DATA.PATH_PREFIX).
        num_classes: labels must be below it (MODEL.NUM_CLASSES); None does not check.
        unknown: a label may be `UNKNOWN`, too.

    Raises:
        ListError: the file is missing or empty, or rows are faulty; all are counted and the first three shown.
    """
    lowest = UNKNOWN if unknown else 0
    if "num_frames" in columns:
        first = [next((row for line in _lines(path) if (row := line.strip())), "")]
        if not fits(first, columns, separator, lowest) and fits(first, columns, " ", lowest):
            separator = " "
    cut, count = separator.strip(" ") or None, len(columns) - 1
    blob, ends, numbers = bytearray(), array("q"), array("d")
    known: dict[str, list[float]] = {}  # what follows the path in a row -> its values
    faults: list[str] = []
    for line, row in enumerate(_lines(path), 1):
        row = row.strip()
        name = row.rsplit(cut, count)[0] if row else ""
        rest = row[len(name) :]
        values = known.get(rest)
        if values is None or '"' in name or (cut and (not name or name[-1].isspace())):  # the slow path parses it
            if not row:
                continue
            fields, fault = parse_row(row, columns, separator, num_classes, lowest)
            if fault:
                faults.append(f"{path}:{line}: {row!r}: {fault}" if len(faults) < SHOWN else "")
                continue
            name, *values = fields
            if len(known) >= KNOWN:
                known.clear()
            known[rest] = values
        blob += name.encode("utf-8", "surrogateescape")
        ends.append(len(blob))
        numbers.extend(values)
    rows = len(ends) + len(faults)
    if not rows:
        raise ListError(f"{path} has no rows: write one '{separator.join(columns)}' per line")
    if faults:
        every = [row for line in _lines(path) if (row := line.strip())]
        cure = cure_rows(every, columns, separator, num_classes, lowest)
        raise ListError(f"{_report(faults, rows, str(path))}\n{cure}")
    table = np.frombuffer(numbers).reshape(rows, count)
    values_of = {name: table[:, place] for place, name in enumerate(columns[1:])}
    listed = Paths(blob, np.frombuffer(ends, np.int64))
    return VideoList(
        listed,
        values_of["label"],
        values_of.get("num_frames"),
        table[:, [columns.index(name) - 1 for name in ("total", "begin", "end")]] if "total" in columns else None,
        prefix=prefix,
        suffix=find_suffix(prefix, listed),
        source=str(path),
        class_names=_class_names(Path(path).parent, num_classes),
    )


def read_something_something(
    path: str | Path, labels_path: str | Path, *, prefix: str = "", num_classes: int | None = None
) -> VideoList:
    """Read the official Something-Something annotation.

    Args:
        path: JSON list of {"id", "template", ...}.
        labels_path: JSON object from each template, without its brackets, to its class.
        prefix: folder of the frame folders, or of the videos, which are named after the id (DATA.PATH_PREFIX).
        num_classes: labels must be below it (MODEL.NUM_CLASSES); None does not check.

    Raises:
        ListError: a file is missing or malformed, or entries are faulty; all are counted and the first three shown.
    """
    entries = _read_json(path, list)
    if not entries:
        raise ListError(f"{path} has no entries")
    classes = _read_json(labels_path, dict)
    try:
        classes = {name: int(label) for name, label in classes.items()}
    except (TypeError, ValueError) as error:
        raise ListError(f"{labels_path}: a class is not a number ({error})") from None

    paths, labels, faults = [], [], []
    for number, entry in enumerate(entries, 1):
        fault = ""
        if not (isinstance(entry, dict) and "id" in entry and "template" in entry):
            fault = "an entry needs 'id' and 'template'; the test set of the official release has no labels"
        else:
            label = classes.get(entry["template"].replace("[", "").replace("]", ""))
            fault = f"the template is not in {labels_path}" if label is None else label_fault(label, num_classes)
            paths.append(str(entry["id"]))
            labels.append(label)
        if fault:
            faults.append(f"{path}: entry {number}: {str(entry)[:200]}: {fault}" if len(faults) < SHOWN else "")
    if faults:
        raise ListError(_report(faults, len(entries), str(path)))
    names = sorted(classes, key=lambda name: classes[name])
    if [classes[name] for name in names] != list(range(len(names))) or num_classes not in (None, len(names)):
        raise ListError(
            f"{labels_path} names {len(names)} classes, numbered {classes[names[0]]} to {classes[names[-1]]}, but "
            f"MODEL.NUM_CLASSES is {num_classes}; the numbers have to be 0 to {len(names) - 1} and MODEL.NUM_CLASSES "
            f"{len(names)}"
        )
    return VideoList(
        paths, labels, prefix=prefix, suffix=find_suffix(prefix, paths), source=str(path), class_names=names
    )


def find_suffix(prefix: str, paths: Sequence[str]) -> str:
    """Return the suffix that files have and listed names lack, as `78687` for `78687.webm`; "" for none.

    Extracted frames are in a folder of the listed name. The first path for which a file or folder exists decides.
    """
    for place in range(min(len(paths), LOOKS)):
        path = os.path.join(prefix, paths[place])
        if path.lower().endswith(VIDEO_SUFFIXES) or os.path.exists(path):
            return ""
        if suffix := next((suffix for suffix in VIDEO_SUFFIXES if os.path.exists(path + suffix)), ""):
            return suffix
    return ""


def _report(faults: list[str], total: int, path: str) -> str:
    return f"{len(faults)} of {total} rows of {path} cannot be used, first of them:\n  " + "\n  ".join(faults[:SHOWN])


def _lines(path: str | Path) -> Iterator[str]:
    try:
        with open(path, encoding="utf-8-sig", errors="surrogateescape") as file:
            yield from file
    except OSError as error:
        folder = Path(path).parent
        there = sorted(p.name for p in folder.iterdir() if p.is_file())[:10] if folder.is_dir() else None
        beside = f"the folder holds {', '.join(there) or 'no file'}" if there is not None else "nor is there the folder"
        raise ListError(
            f"no list file {path} ({error.strerror}; {beside}): set DATA.PATH_TO_DATA_DIR to the folder of the lists"
        ) from None


def _read_json(path: str | Path, kind: type[T]) -> T:
    try:
        content = json.loads("".join(_lines(path)))
    except json.JSONDecodeError as error:
        raise ListError(f"{path}:{error.lineno}: not JSON: {error.msg}") from None
    if not isinstance(content, kind):
        raise ListError(f"{path} holds a {type(content).__name__}, but a {kind.__name__} is needed")
    return content


def _class_names(folder: Path, num_classes: int | None) -> list[str] | None:
    for name in CLASS_FILES:
        if (folder / name).is_file():
            names = read_class_names(folder / name)
            if num_classes is not None and len(names) != num_classes:
                raise ListError(
                    f"{folder / name} names {len(names)} classes, but MODEL.NUM_CLASSES is {num_classes}: "
                    "make them agree, or move the file away"
                )
            return names
    return None
