"""Lists without the rows of bad files, and what a list had before it was cleaned in its place."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

from slowfast.datasets.lists import ListError, Sample, VideoList, read_list
from slowfast.datasets.rows import find_suffix


def read_any_list(source: str | Path, columns: Sequence[str], separator: str, videos: str | Path) -> VideoList:
    """Return the rows of a list, their paths relative to the folder `videos`, with the suffix that the files have.

    A comma and a blank are tried if `separator` does not fit, because lists from elsewhere have their own separators.
    """
    faults = []
    for one in dict.fromkeys((separator, ",", " ")):
        try:
            samples = read_list(source, columns, separator=one, unknown=True)
            samples.suffix = find_suffix(str(videos), samples.listed)
            return samples
        except ListError as error:
            faults.append(error)
    raise faults[0]


def filter_list(
    source: str | Path, bad: set[str], columns: Sequence[str], separator: str, videos: str | Path = ""
) -> tuple[str, int, list[int]]:
    """A list without the rows of some paths; also how many those are, and labels that no row has any more.

    Raises:
        ValueError: no row would be left.
    """
    samples = read_any_list(source, columns, separator, videos)
    text = Path(source).read_text(encoding="utf-8-sig", errors="surrogateescape")
    rows = [row for row in text.split("\n") if row.strip()]
    kept = [index for index in range(len(rows)) if samples.path(index) not in bad]
    if not kept:
        raise ValueError(f"all {len(rows)} videos of {source} are bad, so that no row would be left: repair them first")
    labels = set(map(int, samples.labels))
    lost = sorted(labels - {int(samples.labels[index]) for index in kept})
    return "".join(f"{rows[index]}\n" for index in kept), len(rows) - len(kept), lost


def original_of(path: Path) -> Path:
    """Where a list is kept as it was before bad files were taken out of it in its place."""
    return path.with_name(f"{path.name}.orig")


def taken_out(path: Path, columns: Sequence[str], separator: str, videos: str | Path = "") -> list[Sample] | None:
    """The rows that a list had before bad files were taken out of it in its place; None if it was not, as far as one
    can see: there is no .orig, or that of another list."""
    original = original_of(path)
    if not original.exists():
        return None
    now = read_any_list(path, columns, separator, videos)
    try:
        before = read_any_list(original, columns, separator, videos)
    except ListError:
        return None
    known = set(zip(now.listed, now.labels.tolist(), strict=True))
    whole = zip(before.listed, before.labels.tolist(), strict=True)
    rows = [row for row, entry in enumerate(whole) if entry not in known]
    return [before[row] for row in rows] if len(before) - len(rows) == len(now) else None
