"""List files: what videos there are, with which labels. Every complaint names the file, the line and the cure."""

import hashlib
import json
import math
import os
import re
from array import array
from collections.abc import Iterable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import TypeVar

import numpy as np

from slowfast.utils.class_names import read_class_names

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
BLOCK = 1 << 20  # bytes of a list that are parsed at once; arrays of many times their size are needed meanwhile
DIGITS = 15  # of a number: all such are exact in a float64
# what Python reads besides, such as 1_000 and the digits of other scripts, is more likely a mistake than a number
WHOLE = re.compile(r"[+-]?[0-9]+")
NUMBER = re.compile(r"[+-]?([0-9]+\.?[0-9]*|\.[0-9]+)([eE][+-]?[0-9]+)?")

UNKNOWN = -1  # the label of a video in a test list whose class nobody knows

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


class Manifest(Sequence[Sample]):
    """The samples of one list, held in a few arrays: workers share them and nothing is copied or counted per row.

    Args:
        paths: as listed; they are kept in `listed`.
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
        labels: Sequence[int] | np.ndarray,
        num_frames: Sequence[int] | np.ndarray | None = None,
        segments: Sequence[Sequence[float]] | np.ndarray | None = None,
        *,
        prefix: str = "",
        source: str = "",
        class_names: Sequence[str] | None = None,
    ) -> None:
        self.listed = paths if isinstance(paths, Paths) else Paths.of(paths)
        self.labels = np.asarray(labels, np.int64)
        self._num_frames = None if num_frames is None else np.asarray(num_frames, np.int64)
        self._segments = None if segments is None else np.asarray(segments, np.float64).reshape(-1, 3)
        self.prefix = prefix
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
        return os.path.join(self.prefix, self.listed[index])

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
    unknown: bool = False,
) -> Manifest:
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
        ManifestError: the file is missing or empty, or rows are faulty; all are counted and the first three shown.
    """
    lowest = UNKNOWN if unknown else 0
    blob = bytearray()
    ends: list[np.ndarray] = []
    numbers: list[np.ndarray] = []
    faults: list[str] = []
    cure = ""
    lines = rows = 0
    for data in _read_blocks(path):
        if not rows and "num_frames" in columns:
            first = _text(data.lstrip().split(b"\n", 1)[0]).strip()
            if not _fits(first, columns, separator, lowest) and _fits(first, columns, " ", lowest):
                separator = " "
        block = _Block(data, columns, separator, num_classes)
        paths: dict[int, str] = {}  # of the rows that only the careful parser understands
        for line in np.flatnonzero(~(block.clean | block.empty)).tolist():
            row = _text(block.line(line)).strip()
            if not row:
                block.empty[line] = True
                continue
            fields, fault = _parse(row, columns, separator, num_classes, lowest)
            if fault:
                faults.append(f"{path}:{lines + line + 1}: {row!r}: {fault}" if len(faults) < SHOWN else "")
                cure = cure or _cure(row, columns, separator, fault, lowest)
            else:
                paths[line] = fields[0]
                block.values[:, line] = fields[1:]
        listed, sizes = block.paths(paths)
        ends.append(len(blob) + np.cumsum(sizes))
        blob += listed
        numbers.append(block.values[:, ~block.empty])
        rows += len(sizes)
        lines += len(block.empty)
    if not rows:
        raise ManifestError(f"{path} has no rows: write one '{separator.join(columns)}' per line")
    if faults:
        raise ManifestError(_report(faults, rows, str(path)) + cure)
    values = dict(zip(columns[1:], np.concatenate(numbers, 1), strict=True))
    return Manifest(
        Paths(blob, np.concatenate(ends)),
        values["label"],
        values.get("num_frames"),
        np.stack([values[name] for name in ("total", "begin", "end")], 1) if "total" in values else None,
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
    """Look for every video of a list, a folder at a time: asking for each file takes several times as long.

    Raises:
        ManifestError: some are missing; all are counted and the first three named.
    """

    def entries(folder: str) -> frozenset[str]:
        try:
            with os.scandir(os.path.join(manifest.prefix, folder) or ".") as found:
                return frozenset(entry.name for entry in found if not entry.is_symlink())  # it may lead nowhere
        except OSError:
            return frozenset()

    folders = sorted({path[: path.rfind("/") + 1] for path in manifest.listed})
    with ThreadPoolExecutor(threads) as pool:
        there = dict(zip(folders, pool.map(entries, folders), strict=True))
    cuts = ((path, path.rfind("/") + 1) for path in manifest.listed)
    unseen = [index for index, (path, cut) in enumerate(cuts) if path[cut:] not in there[path[:cut]]]
    lost = [index for index in unseen if not os.path.exists(manifest.path(index))]
    if lost:
        names = "".join(f"\n  {manifest.path(index)}" for index in lost[:SHOWN])
        raise ManifestError(
            f"{len(lost)} of {len(manifest)} videos of {manifest.source} do not exist, first of them:{names}\n"
            f"Set DATA.PATH_PREFIX (now {manifest.prefix!r}) to the folder that the listed paths start from, or "
            "DATA.CHECK_FILES False to begin without looking."
        )


class _Block:
    """Some whole lines of a list, parsed all at once where they are plain.

    A plain row is what programs write: printable ASCII without quotes, one separator between the fields, no blanks
    around them, numbers of digits and at most one point, and values that are allowed. The others are left to `_parse`,
    which knows every form and what to say about each fault.

    Args:
        lines: UTF-8, each ending in a line feed except for the last of the file.
        columns: as those of `load_manifest`.
        separator: likewise.
        num_classes: likewise.

    Attributes:
        clean: (lines,) True where a line is a plain row.
        empty: (lines,) True where a line has nothing in it.
        values: (columns - 1, lines) float64 numbers of the clean rows.
    """

    def __init__(self, lines: bytes, columns: Sequence[str], separator: str, num_classes: int | None) -> None:
        data = np.frombuffer(lines, np.uint8)
        self._data = data
        newline = np.flatnonzero(data == ord("\n"))
        self._end = newline if len(newline) and newline[-1] == len(data) - 1 else np.append(newline, len(data))
        self._begin = np.append(0, self._end[:-1] + 1)
        self._path_end = self._end
        self.empty = self._begin == self._end
        self.clean = ~self.empty
        self.values = np.zeros((len(columns) - 1, len(self._end)))
        character = (separator.strip(" ") or " ").encode()
        if len(character) != 1:
            self.clean[:] = False
            return
        odd = ((data < 32) & (data != ord("\n")) | (data > 126) | (data == ord('"'))) & (data != character[0])
        self.clean[np.searchsorted(self._end, np.flatnonzero(odd))] = False

        cuts = np.flatnonzero(data == character[0])
        cut = np.searchsorted(cuts, self._end)  # the first one after the line
        for number in reversed(range(1, len(columns))):
            cut = cut - 1
            place = cuts[cut.clip(0)] if len(cuts) else np.zeros_like(cut)
            self.clean &= (cut >= 0) & (place > self._begin)
            self._number(number - 1, place + 1, self._path_end, columns[number] in ("label", "num_frames"))
            self._path_end = place
        for edge in (self._begin, self._path_end - 1):
            self.clean &= data[edge.clip(0, len(data) - 1)] > ord(" ")  # a tab lies below it

        value = dict(zip(columns[1:], self.values, strict=True))
        if num_classes is not None:
            self.clean &= value["label"] < num_classes
        for name in ("num_frames", "total"):
            if name in value:
                self.clean &= value[name] > 0
        if "begin" in value:
            self.clean &= (value["begin"] <= value["end"]) & (value["begin"] < value["total"])

    def line(self, number: int) -> bytes:
        """Line `number` without its end."""
        return self._data[self._begin[number] : self._end[number]].tobytes()

    def paths(self, others: dict[int, str]) -> tuple[bytes, np.ndarray]:
        """The paths of all lines that are not empty, end to end, and their lengths.

        Args:
            others: paths of rows that are not clean; a row that is neither has faults, and no path.
        """
        sizes = np.where(self.clean, self._path_end - self._begin, 0)
        if not others:
            edges = np.zeros(len(self._data) + 1, np.int8)
            np.add.at(edges, self._begin[self.clean], 1)
            np.add.at(edges, self._path_end[self.clean], -1)
            return self._data[np.cumsum(edges[:-1], dtype=np.int8).view(bool)].tobytes(), sizes[~self.empty]
        parts = []
        for line in np.flatnonzero(~self.empty).tolist():
            plain = self._data[self._begin[line] : self._path_end[line]].tobytes() if self.clean[line] else b""
            parts.append(others[line].encode("utf-8", "surrogateescape") if line in others else plain)
        return b"".join(parts), np.array([len(part) for part in parts])

    def _number(self, row: int, begin: np.ndarray, end: np.ndarray, whole: bool) -> None:
        """Read the digits in [begin, end) of each line into `values[row]`; what is no plain number is not clean."""
        size = end - begin
        self.clean &= (size > 0) & (size <= DIGITS)
        mantissa, decimals, point = np.zeros(len(end)), np.zeros(len(end), int), np.zeros(len(end), bool)
        for place in range(int(size[self.clean].max(initial=0))):
            inside = self.clean & (place < size)
            character = self._data[np.where(inside, begin + place, 0)]
            dot = inside & (character == ord(".")) & ~point & (not whole)
            digit = inside & (character >= ord("0")) & (character <= ord("9"))
            self.clean &= ~inside | dot | digit
            mantissa = np.where(digit, mantissa * 10 + (character - float(ord("0"))), mantissa)
            decimals += digit & point
            point |= dot
        self.clean &= size > point
        # both are exact in a float64, so the quotient is what float() makes of the text
        self.values[row] = mantissa / 10.0**decimals


def _parse(
    row: str, columns: Sequence[str], separator: str, num_classes: int | None, lowest: int = 0
) -> tuple[list, str]:
    """Return the values of a row and what is wrong with it ('' for nothing)."""
    fields = [_unquote(field) for field in row.rsplit(separator.strip(" ") or None, len(columns) - 1)]
    if len(fields) < len(columns):
        return [], f"{len(fields)} of {len(columns)} columns ({', '.join(columns)}) when split by {separator!r}"
    if not fields[0]:
        return [], "the path is empty"
    values: list = [fields[0]]
    for name, field in zip(columns[1:], fields[1:], strict=True):
        whole = name in ("label", "num_frames")
        value = float(field) if (WHOLE if whole else NUMBER).fullmatch(field) else math.nan
        if not math.isfinite(value) or (whole and abs(value) >= 10**DIGITS):
            return [], f"{name} {field!r} is not a {f'whole number below 10**{DIGITS}' if whole else 'number'}"
        value = int(value) if whole else value
        if name == "label" and (fault := _label_fault(value, num_classes, lowest)):
            return [], fault
        if name in ("num_frames", "total") and value <= 0:
            return [], f"{name} {field!r} is not above 0"
        values.append(value)
    if "begin" in columns:
        total, begin, end = (values[columns.index(name)] for name in ("total", "begin", "end"))
        if not 0 <= begin <= end:
            return [], "the annotated segment does not begin at or after 0 and end after that"
        if begin >= total:
            return [], f"the annotated segment begins at {begin:g} s, where the video of {total:g} s has ended"
    return values, ""


def _fits(row: str, columns: Sequence[str], separator: str, lowest: int) -> bool:
    return not _parse(row, columns, separator, None, lowest)[1]


def _label_fault(label: float, num_classes: int | None, lowest: int = 0) -> str:
    if label < lowest or (num_classes is not None and label >= num_classes):
        top = "" if num_classes is None else f"..{num_classes - 1} (MODEL.NUM_CLASSES {num_classes})"
        return f"label {label} is outside {lowest}{top}"
    return ""


def _cure(row: str, columns: Sequence[str], separator: str, fault: str, lowest: int) -> str:
    if not _fits(row, columns, separator, lowest):
        for other in SEPARATORS:
            if _fits(row, columns, other, lowest):
                return f"\nThe rows look separated by {other!r}: set DATA.PATH_LABEL_SEPARATOR to it."
    if re.match(r"label -\d", fault):
        return f"\nLabels count from 0; {UNKNOWN}, for a class that nobody knows, is for test lists only."
    if "MODEL.NUM_CLASSES" in fault:
        return "\nRaise MODEL.NUM_CLASSES, or count the labels from 0."
    told = ", ".join(f"{name} ({COLUMNS[name]})" for name in columns)
    return f"\nA row holds {told}, with DATA.PATH_LABEL_SEPARATOR {separator!r} between them."


def _unquote(field: str) -> str:
    field = field.strip()
    return field[1:-1].replace('""', '"') if len(field) > 1 and field[0] == field[-1] == '"' else field


def _report(faults: list[str], total: int, path: str) -> str:
    return f"{len(faults)} of {total} rows of {path} cannot be used, first of them:\n  " + "\n  ".join(faults[:SHOWN])


def _text(row: bytes) -> str:
    return row.decode("utf-8", "surrogateescape")


def _read_blocks(path: str | Path) -> Iterator[bytes]:
    """Pieces of about BLOCK bytes, of whole lines that end in line feeds, without a byte order mark."""
    try:
        with open(path, "rb") as file:
            data = file.read(BLOCK).removeprefix(b"\xef\xbb\xbf")
            while data := data + file.readline():
                yield data.replace(b"\r\n", b"\n").replace(b"\r", b"\n")
                data = file.read(BLOCK)
    except OSError as error:
        folder = Path(path).parent
        there = sorted(p.name for p in folder.iterdir() if p.is_file())[:10] if folder.is_dir() else None
        beside = f"the folder holds {', '.join(there) or 'no file'}" if there is not None else "nor is there the folder"
        raise ManifestError(
            f"no list file {path} ({error.strerror}; {beside}): set DATA.PATH_TO_DATA_DIR to the folder of the lists, "
            "and DATA.LABEL_PATH_TEMPLATE where the data set names its lists by it"
        ) from None


def _read(path: str | Path) -> str:
    return _text(b"".join(_read_blocks(path)))


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
            names = read_class_names(folder / name)
            if num_classes is not None and len(names) != num_classes:
                raise ManifestError(
                    f"{folder / name} names {len(names)} classes, but MODEL.NUM_CLASSES is {num_classes}: "
                    "make them agree, or move the file away"
                )
            return names
    return None
