"""Check that every file decodes; write a report, and a list of the files that do not decode."""

from __future__ import annotations

import csv
import io
import os
from collections.abc import Iterable, Mapping
from contextlib import closing
from dataclasses import astuple, dataclass, fields, replace
from functools import partial
from itertools import chain
from pathlib import Path

import av

from slowfast.datasets.container import MediaError, open_video, packets, seconds_of, video_stream
from slowfast.datasets.reader import read_frames
from slowfast.prepare.killable import Failure, run_killable
from slowfast.prepare.scan import image_template
from slowfast.utils.io import csv_text, write_text

REPORT, QUARANTINE = "report.csv", "quarantine.txt"


@dataclass(frozen=True)
class Row:
    """A row of the report.

    Args:
        path: path as in a list.
        ok: 1 for a good file, 0 for a bad one.
        reason: fault of a bad file; for a good file that every read decodes from the beginning to the end, the cause.
        frames: number of frames of the video, as the reader counts them.
        width: width of the decoded frames in pixels.
        height: height of the decoded frames in pixels.
        fps: average frame rate of the file.
        codec: codec of the file; "images" for a folder.
        seconds: duration of the video stream, or of the file if it does not contain that.
        size: size in bytes.
        modified: time of the last change in nanoseconds; the row is valid while this and the size stay the same.
        full: 1 if every frame was decoded, not only the two ends and the middle.
    """

    path: str
    ok: int
    reason: str = ""
    frames: int | str = ""
    width: int | str = ""
    height: int | str = ""
    fps: float | str = ""
    codec: str = ""
    seconds: float | str = ""
    size: str = ""
    modified: str = ""
    full: int | str = ""


COLUMNS = tuple(field.name for field in fields(Row))


def check_media(
    videos: str | Path,
    media: Mapping[str, int | None],
    out: str | Path,
    *,
    workers: int,
    timeout: float = 60,
    recheck: bool = False,
    full: bool = False,
) -> list[Row]:
    """Decode the first, middle and last frame of every file, or all frames, and write a report.

    The files are `out`/report.csv and `out`/quarantine.txt. A row is written when its file is done. A repeated call
    continues where an interrupted one stopped, and does not decode unchanged files again.

    `media` maps the path of each file and folder to the number of images of a frame folder, if a list contains it. A
    file that takes longer than `timeout` seconds is bad. With `recheck`, bad files are decoded again. With `full`,
    every frame is decoded, also of good files that were not checked in full.

    Returns:
        The rows of the report for `media`, sorted by path.

    Raises:
        ValueError: `out` contains another report.csv.
    """
    videos, out = Path(videos), Path(out)
    rows = {
        row.path: row
        for row in _read_report(out / REPORT)
        if row.path in media
        and ((not full or row.full) if row.ok else not recheck)
        and (row.size, row.modified) == _state(videos / row.path)
    }
    _write_report(out, rows.values())
    outcomes = run_killable(
        partial(_look, str(videos), full),
        [item for item in media.items() if item[0] not in rows],
        workers=workers, timeout=timeout, title="check", done=len(rows),
    )  # fmt: skip
    with closing(outcomes), open(out / REPORT, "a", encoding="utf-8", errors="surrogateescape", newline="") as file:
        for (path, _), row in outcomes:
            if isinstance(row, Failure):
                row = Row(path, 0, row.reason)
            size, modified = _state(videos / path)
            rows[path] = replace(row, reason=" ".join(row.reason.split()), size=size, modified=modified)
            file.write(csv_text([astuple(rows[path])]))
            file.flush()
    found = [rows[path] for path in sorted(rows)]
    _write_report(out, found)
    write_text(out / QUARANTINE, "".join(f"{row.path}\n" for row in found if not row.ok))
    return found


def _look(videos: str, full: bool, item: tuple[str, int | None]) -> Row:
    """Decode the ends and the middle of one file, or all of it, in a separate process.

    Raises:
        MediaError: the file is bad.
    """
    name, num_frames = item
    path = os.path.join(videos, name)
    length, slow = 0, [""]

    def choose(number: int) -> list[int]:
        nonlocal length
        length = number
        return [0, number // 2, number - 1]

    named = image_template(Path(path)) if os.path.isdir(path) else ""
    frames = read_frames(path, choose, num_frames=num_frames, image_template=named, report_slow=slow.append)
    if full:
        _decode_all(path, length, named)
    height, width = frames.shape[1:3]
    row = Row(name, 1, slow[-1], frames=length, width=width, height=height, codec="images", full=1 if full else "")
    if os.path.isdir(path):
        return row
    try:
        with open_video(path) as container:
            stream = video_stream(path, container)
            rate, seconds = stream.average_rate, seconds_of(container, stream)
            return replace(
                row,
                codec=stream.codec_context.name,
                fps=round(float(rate), 3) if rate else "",
                seconds=round(seconds, 3) if seconds else "",
            )
    except (av.FFmpegError, MediaError):  # frames were decoded, so a bad header does not make the file bad
        return replace(row, codec="")


def _decode_all(path: str, length: int, template: str) -> None:
    """Decode every frame of a file, or every image of a folder, one at a time.

    Raises:
        MediaError: a frame cannot be decoded, or the decoder concealed damage in it.
    """
    if os.path.isdir(path):
        for number in range(length):
            read_frames(path, lambda _, wanted=number: [0, wanted], num_frames=length, image_template=template)
        return
    number = 0
    try:
        with open_video(path) as container:
            stream = video_stream(path, container)
            for packet in chain(packets(container, stream), [None]):  # None: the frames that the decoder still holds
                frames = stream.codec_context.decode(packet)
                if any(part.is_corrupt for part in (packet, *frames) if part is not None):
                    raise MediaError(path, f"damaged near frame {number}, with invented pixels; download it again")
                number += len(frames)
    except av.FFmpegError as error:
        raise MediaError(path, f"damaged after {number} frames ({error.strerror}); download it again") from None


def _state(path: Path) -> tuple[str, str]:
    """Return size and time of the last change, as strings of the report; empty strings if the file does not exist."""
    try:
        stat = path.stat()
    except OSError:
        return "", ""
    return str(stat.st_size), str(stat.st_mtime_ns)


def _write_report(out: Path, rows: Iterable[Row]) -> None:
    write_text(out / REPORT, csv_text([COLUMNS, *(astuple(row) for row in rows)]))


def _read_report(path: Path) -> list[Row]:
    """Return the rows of an earlier call, without incomplete lines, such as the last one of a killed call."""
    if not path.exists():
        return []
    text = path.read_bytes().decode("utf-8", "surrogateescape")
    lines = list(csv.reader(io.StringIO(text[: text.rfind("\n") + 1], newline="")))
    if lines[:1] != [list(COLUMNS)]:
        raise ValueError(f"{path} is not a report of this command: choose another folder, or remove the file")
    whole = [line for line in lines[1:] if len(line) == len(COLUMNS) and line[1] in ("0", "1")]
    return [Row(line[0], int(line[1]), *line[2:]) for line in whole]
