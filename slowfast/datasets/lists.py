"""Read lists, which name videos and their labels. An error names the file, the line and the cure."""

from __future__ import annotations

import hashlib
import json
import os
import re
from array import array
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass, replace
from functools import cached_property
from itertools import islice
from pathlib import Path
from typing import Any

import numpy as np

from slowfast.datasets.rows import UNKNOWN, RowFormat, cure_rows, find_suffix
from slowfast.utils.class_names import read_class_names

CLASS_FILES = ("class_names.txt", "classes.txt")  # the first one that exists is read
SHOWN = 3  # faults and paths that an error shows
UTF16 = ("\udcff\udcfe", "\udcfe\udcff")  # byte order marks, read as UTF-8
KNOWN = 100_000  # limit of the parsed ends of rows that are kept for reuse


class ListError(ValueError):
    """A list, or the videos that it names, cannot be used."""


@dataclass(frozen=True)
class Sample:
    """One row of a list: `segment` is (total, begin, end) in seconds, `label` a tuple in a multi-label list."""

    path: str
    label: int | tuple[int, ...]
    num_frames: int | None = None
    segment: tuple[float, float, float] | None = None


class Paths(Sequence[str]):
    """A sequence of strings in one block of memory, so that a million strings are one object.

    `blob` contains the bytes of the strings, UTF-8 where they are text; `ends` (N,) the positions where they end.
    """

    def __init__(self, blob: bytes | bytearray, ends: np.ndarray) -> None:
        self.blob, self.ends = blob, ends

    @classmethod
    def of(cls, paths: Iterable[str]) -> Paths:
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
        for end in self.ends:
            yield self.blob[begin:end].decode("utf-8", "surrogateescape")
            begin = end


class VideoList(Sequence[Sample]):
    """The samples of one list, in a few arrays that workers share: without objects per row, no memory is copied.

    Args:
        paths: paths as in the file; they are kept in `listed`.
        labels: one per path; if `label_ends` is given, any number per path, those of the first path first.
        num_frames: one per path, or None if the list has no such column.
        segments: (total, begin, end) per path, or None.
        prefix: folder that is put before every path that is not absolute.
        suffix: suffix that is put after every path.
        source: the list file, for messages.
        class_names: in the order of the labels, or None if unknown.
        label_ends: (N,) positions in `labels` at which the labels of each path end; None if each path has one label.
        num_classes: K, number of classes; None derives it from the largest label.
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
        label_ends: np.ndarray | None = None,
        num_classes: int | None = None,
    ) -> None:
        self.listed = paths if isinstance(paths, Paths) else Paths.of(paths)
        self.labels = np.asarray(labels, np.int64)
        self._num_frames = None if num_frames is None else np.asarray(num_frames, np.int64)
        self._segments = None if segments is None else np.asarray(segments, np.float64).reshape(-1, 3)
        self.prefix = prefix
        self.suffix = suffix
        self.source = source
        self.class_names = None if class_names is None else list(class_names)
        self.label_ends = label_ends
        self.num_classes = num_classes
        assert len(self.labels if label_ends is None else label_ends) == len(self.listed)

    def __len__(self) -> int:
        return len(self.listed)

    @cached_property
    def fingerprint(self) -> str:
        """The first digits of a SHA-256 of all rows, without prefix and suffix."""
        digest = hashlib.sha256(self.listed.blob)
        for column in (self.listed.ends, self.labels, self._num_frames, self._segments):
            digest.update(b"none" if column is None else column.tobytes())
        digest.update(b"" if self.label_ends is None else self.label_ends.tobytes())
        return digest.hexdigest()[:12]

    def path(self, index: int) -> str:
        """Return the full path of row `index`."""
        return os.path.join(self.prefix, self.listed[index] + self.suffix)

    def labels_of(self, index: int) -> tuple[int, ...]:
        """Return the labels of row `index`: one, unless the list is a multi-label list."""
        if self.label_ends is None:
            return (int(self.labels[index]),)
        return tuple(self.labels[self.label_ends[index - 1] if index else 0 : self.label_ends[index]].tolist())

    def targets(self, rows: Sequence[int]) -> np.ndarray:
        """Return the labels of B rows, (B,) int64; for a multi-label list (B, K) int8, with 1 for each class of a row.

        If the classes of a row are not known, all its K numbers are `UNKNOWN`.
        """
        if self.label_ends is None:
            return self.labels[rows]
        targets = np.zeros((len(rows), self.num_classes or 1 + int(self.labels.max(initial=0))), np.int8)
        for target, row in zip(targets, rows, strict=True):
            labels = self.labels_of(row)
            if labels == (UNKNOWN,):
                target[:] = UNKNOWN
            else:
                target[list(labels)] = 1
        return targets

    def __getitem__(self, index: int) -> Sample:  # type: ignore[override]  # no slices
        index = int(index)
        if not 0 <= index < len(self):
            raise IndexError(f"row {index} of a list of {len(self)} ({self.source})")
        labels = self.labels_of(index)
        return Sample(
            self.path(index),
            labels[0] if self.label_ends is None else labels,
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
    multi_label: bool = False,
) -> VideoList:
    """Read a list with one video per line.

    Rows are split from the right, so a path may contain the separator; a field may be quoted. A blank as the separator
    means any run of blanks and tabs. A list of frame folders may always use blanks, because the official recipes set a
    comma although the lists have blanks. Blank lines, a byte order mark and Windows line ends are ignored. Class names
    are read from `class_names.txt` or `classes.txt` beside the list, if one of them exists.

    `prefix` is the folder of the videos. With `unknown`, the label `UNKNOWN` is accepted too. The other arguments are
    those of `RowFormat`.

    Raises:
        ListError: the file is missing or empty, or has faulty rows; the message shows their number and the first three.
    """
    form = RowFormat(columns, separator, num_classes, UNKNOWN if unknown else 0, multi_label)
    if "num_frames" in columns:
        first = [row for _, row in islice(_rows(path), 1)]
        forms = (replace(form, separator=other, num_classes=None) for other in (separator, " "))
        form = replace(form, separator=next((other.separator for other in forms if other.fits(first)), separator))
    listed, values = _read_rows(path, form)
    segments = np.stack([values[name] for name in ("total", "begin", "end")], 1) if "total" in columns else None
    return VideoList(
        listed,
        values["label"],
        values.get("num_frames"),
        segments,
        prefix=prefix,
        suffix=find_suffix(prefix, listed),
        source=str(path),
        class_names=_class_names(Path(path).parent, num_classes),
        label_ends=values.get("label_ends"),
        num_classes=num_classes,
    )


def _read_rows(path: str | Path, form: RowFormat) -> tuple[Paths, dict[str, np.ndarray]]:
    """Return the paths of a list, and one array of numbers per other column.

    For a multi-label list, "label" contains the labels of all rows, "label_ends" the positions at which those of each
    row end.
    """
    cut, count = form.cut, len(form.columns) - 1
    single = count - form.multi_label  # columns of one number per row
    blob, ends = bytearray(), array("q")
    numbers, labels, label_ends = array("d"), array("d"), array("q")
    keep = 0 if form.multi_label and cut == "," else KNOWN  # a comma may cut within the labels
    known: dict[str, tuple[array[float], array[float]]] = {}  # end of a row -> its numbers; many rows have the same end
    faults: list[str] = []
    for line, row in _rows(path):
        name = row.rsplit(cut, count)[0]
        end = row[len(name) :]
        name, values = name.strip(), known.get(end)
        if values is None or not name or '"' in name or (form.multi_label and name[-1] == ","):
            name, parsed, fault = form.parse(row)
            if fault:
                faults.append(f"{path}:{line}: {row!r}: {fault}" if len(faults) < SHOWN else "")
                continue
            values = array("d", parsed[:single]), array("d", parsed[single:])
            if len(known) < keep:
                known[end] = values
        blob += name.encode("utf-8", "surrogateescape")
        ends.append(len(blob))
        numbers += values[0]
        if form.multi_label:
            labels += values[1]
            label_ends.append(len(labels))
    if faults:
        cure = cure_rows([row for _, row in _rows(path)], form)
        raise ListError(f"{_report(faults, len(ends) + len(faults), path)}\n{cure}")
    if not ends:
        raise ListError(f"{path} has no rows: write one '{form.separator.join(form.columns)}' per line")
    table = np.array(numbers).reshape(len(ends), single)
    columns = dict(zip(form.columns[1 : 1 + single], table.T, strict=True))
    if form.multi_label:
        columns |= {"label": np.array(labels), "label_ends": np.array(label_ends)}
    return Paths(blob, np.array(ends)), columns


def read_something_something(
    path: str | Path, labels_path: str | Path, *, prefix: str = "", num_classes: int | None = None
) -> VideoList:
    """Read the official Something-Something annotation.

    Args:
        path: JSON list of {"id", "template", ...}.
        labels_path: JSON object from each template, without its brackets, to its class.
        prefix: folder of the frame folders or of the videos; their names are the ids.
        num_classes: labels must be below it; None does not check.

    Raises:
        ListError: a file is missing or malformed, or has faulty entries; the message shows their number and the first.
    """
    try:
        classes = {name: int(label) for name, label in read_json(labels_path).items()}
    except (AttributeError, TypeError, ValueError, OverflowError) as error:
        raise ListError(f"{labels_path} is no object from templates to numbers ({error})") from None
    names = sorted(classes, key=lambda name: classes[name])
    if [classes[name] for name in names] != list(range(num_classes or len(names))):
        raise ListError(
            f"{labels_path} names {len(names)} classes, but num_classes is {num_classes}: the numbers must be 0 to "
            f"{len(names) - 1}, and num_classes {len(names)}"
        )
    entries = read_json(path)
    if not isinstance(entries, list):
        raise ListError(f"{path} is no list of objects: download it again")
    paths, labels, faults = [], [], []
    for number, entry in enumerate(entries, 1):
        template = entry.get("template") if isinstance(entry, dict) else None
        label = classes.get(re.sub(r"[\[\]]", "", str(template)))
        if label is None or "id" not in entry:
            fault = f"an entry needs 'id', and a 'template' that is in {labels_path}; official test sets have none"
            faults.append(f"{path}: entry {number}: {str(entry)[:200]}: {fault}" if len(faults) < SHOWN else "")
        else:
            paths.append(str(entry["id"]))
            labels.append(label)
    if faults:
        raise ListError(_report(faults, len(entries), path))
    if not paths:
        raise ListError(f"{path} has no entries: download it again")
    suffix = find_suffix(prefix, paths)
    return VideoList(paths, labels, prefix=prefix, suffix=suffix, source=str(path), class_names=names)


def _report(faults: list[str], total: int, path: str | Path) -> str:
    return f"{len(faults)} of {total} rows of {path} cannot be used, first of them:\n  " + "\n  ".join(faults[:SHOWN])


def text_lines(path: str | Path, cure: str = "name an existing list") -> Iterator[str]:
    """Yield the lines of a text file, with their ends.

    Raises:
        ListError: it cannot be read, or is UTF-16.
    """
    try:
        with open(path, encoding="utf-8-sig", errors="surrogateescape") as file:
            for line in file:
                if line.startswith(UTF16):
                    raise ListError(f"{path} is UTF-16, as Windows programs write text: save it as UTF-8")
                yield line
    except OSError as error:
        raise ListError(f"{path} cannot be read ({error.strerror}): {cure}") from None


def _rows(path: str | Path) -> Iterator[tuple[int, str]]:
    """Yield the number and the stripped text of each line that is not blank."""
    for number, line in enumerate(text_lines(path), 1):
        if row := line.strip():
            yield number, row


def read_json(path: str | Path) -> Any:
    """Return the content of a JSON file.

    Raises:
        ListError: it cannot be read, or is not JSON.
    """
    try:
        return json.loads("".join(text_lines(path)))
    except json.JSONDecodeError as error:
        raise ListError(f"{path}:{error.lineno}: not JSON ({error.msg}): correct it, or download it again") from None
    except RecursionError:
        raise ListError(f"{path} is nested too deeply: download it again") from None


def _class_names(folder: Path, num_classes: int | None) -> list[str] | None:
    path = next((folder / name for name in CLASS_FILES if (folder / name).is_file()), None)
    names = None if path is None else read_class_names(path)
    if names is not None and num_classes not in (None, len(names)):
        raise ListError(
            f"{path} names {len(names)} classes, but num_classes is {num_classes}: make them agree, or move the file"
        )
    return names
