"""Make copies of videos that decode fast, with another short side and another distance of key frames."""

from __future__ import annotations

import csv
import json
import os
from collections.abc import Sequence
from contextlib import closing
from dataclasses import asdict, dataclass
from fractions import Fraction
from functools import partial
from pathlib import Path
from statistics import median
from time import perf_counter
from typing import Any

import av
from av.filter import Graph

from slowfast.datasets.container import address, every_frame, open_video, video_stream
from slowfast.datasets.decode import orientation
from slowfast.datasets.reader import read_frames
from slowfast.prepare.killable import Failure, run_killable
from slowfast.utils.io import csv_text, write_text
from slowfast.utils.rng import rng_for

SETTINGS, WITHOUT_COPY = "reencode.json", "without_copy.csv"
RECORDS = (SETTINGS, WITHOUT_COPY)
PRESETS = (
    "ultrafast", "superfast", "veryfast", "faster", "fast", "medium", "slow", "slower", "veryslow", "placebo",
)  # fmt: skip
ACCESS_FRAMES = 16
TIME_UNITS = (1, 100, 1000, 10**9)  # nanoseconds, of modification times: local disks, SMB, some NFS servers, Lustre
MIN_SHARE = 0.9  # of the duration in the header, which is often slightly wrong


@dataclass(frozen=True)
class Settings:
    """The settings of the encoder, H.264 (libx264).

    Args:
        short_side: pixels; smaller videos keep their size, except for the even sides that H.264 needs.
        key_frames: largest distance between key frames: at most this number of frames is decoded to reach any frame.
        crf: constant rate factor; 18 hardly differs from the original, 23 is the encoder's default.
        preset: one of `PRESETS`; slower presets make smaller files.
        b_frames: number of consecutive pictures to which no other picture refers; a reader can skip them.
    """

    short_side: int = 320
    key_frames: int = 16
    crf: int = 20
    preset: str = "fast"
    b_frames: int = 3


def reencode(
    videos: str | Path,
    paths: Sequence[str],
    out: str | Path,
    settings: Settings,
    *,
    workers: int,
    timeout: float = 3600,
    folders: Sequence[str] = (),
) -> dict[str, str]:
    """Encode every file to the same path below `out`, so that lists stay valid; copies are MP4, with any suffix.

    Frames and the differences of their times stay the same, and the first time becomes 0. Sound and other streams are
    removed. A rotation or mirroring in the header is applied. A file appears complete or not at all, with the
    modification time of its source, and is made again only if this time has changed, so a repeated call continues an
    interrupted one. If a changed source cannot be encoded, the copy of its earlier content stays: it may be the last
    readable version of the video. The same source and settings give the same bytes. `out`/without_copy.csv names the
    videos without a copy, also after a kill, and `folders` of images, which are not encoded. A file that takes longer
    than `timeout` seconds has no copy.

    Returns:
        Path of each of `paths` without a copy of its present content -> reason.

    Raises:
        ValueError: `out` is in `videos` or the reverse, or contains copies made with other settings.
    """
    videos, out = Path(videos), Path(out)
    here, there = videos.resolve(), out.resolve()
    if here.is_relative_to(there) or there.is_relative_to(here):
        raise ValueError(f"--out {out} and {videos} lie in one another: choose a folder beside it")
    note = out / SETTINGS
    before = json.loads(note.read_text(encoding="utf-8")) if note.exists() else asdict(settings)
    if before != asdict(settings):
        raise ValueError(f"{out} contains copies made with {before}, not {asdict(settings)}: choose another folder")
    write_text(note, json.dumps(asdict(settings)) + "\n")

    todo = [path for path in paths if not _is_current(out / path, videos / path)]
    broken: dict[str, str] = {}
    left = dict.fromkeys(folders, "a folder of images, which is not encoded")
    _record(out, left | dict.fromkeys(todo, "not encoded yet"))
    encode = partial(_encode, str(videos), str(out), settings)
    done = len(paths) - len(todo)
    with closing(run_killable(encode, todo, workers=workers, timeout=timeout, title="reencode", done=done)) as outcomes:
        for path, outcome in outcomes:
            if isinstance(outcome, Failure):
                kept = "; the copy of its earlier content is kept" if (out / path).exists() else ""
                broken[path] = " ".join(outcome.reason.split()) + kept
                _part(out / path).unlink(missing_ok=True)
    _record(out, left | broken)
    return broken


def without_copy(copies: str | Path) -> list[str]:
    """Return the originals without a copy in a folder of `reencode`, as recorded there; none for any other folder."""
    try:
        with open(Path(copies, WITHOUT_COPY), encoding="utf-8", errors="surrogateescape", newline="") as file:
            rows = list(csv.DictReader(file))
    except OSError:
        return []
    return [row["path"] for row in rows if not Path(copies, row["path"]).exists()]


def _record(out: Path, reasons: dict[str, str]) -> None:
    write_text(out / WITHOUT_COPY, csv_text([("path", "reason"), *sorted(reasons.items())]))


def access_times(folders: Sequence[str | Path], paths: Sequence[str]) -> list[float]:
    """Return, per folder, the median time in milliseconds to open a video and decode 16 random frames on one core.

    The folders alternate file by file, so that they are measured under the same conditions.
    """
    times = [
        [median(_time_access(os.path.join(folder, path), turn) for turn in range(3)) for folder in folders]
        for path in paths
    ]
    return [1000 * median(of_folder) for of_folder in zip(*times, strict=True)]


def _time_access(path: str, turn: int) -> float:
    start = perf_counter()
    read_frames(path, lambda length: rng_for(turn).integers(length, size=ACCESS_FRAMES).tolist())
    return perf_counter() - start


def _is_current(copy: Path, source: Path) -> bool:
    """Return whether a copy is complete, and its source has not changed since; some file systems cut times off."""
    try:
        made, now = copy.stat(), source.stat()
    except OSError:
        return False
    return made.st_size > 0 and any(made.st_mtime_ns == now.st_mtime_ns // unit * unit for unit in TIME_UNITS)


def _part(target: Path) -> Path:
    return target.with_name(f".{target.name}.part")


def _encode(videos: str, out: str, settings: Settings, path: str) -> None:
    """Encode one file, in a separate process."""
    source, target = Path(videos, path), Path(out, path)
    target.parent.mkdir(parents=True, exist_ok=True)
    part = _part(target)
    try:
        times = source.stat()
        _transcode(source, str(part), settings)
        with open(part, "rb+") as file:
            os.fsync(file.fileno())
        os.utime(part, ns=(times.st_atime_ns, times.st_mtime_ns))
        part.replace(target)
    except av.FFmpegError as error:
        raise ValueError(f"it does not decode to the end ({error.strerror})") from None
    finally:
        part.unlink(missing_ok=True)


def _transcode(source: Path, target: str, settings: Settings) -> None:
    with (
        open_video(str(source)) as reader,
        av.open(address(target), "w", format="mp4", options={"movflags": "faststart"}) as writer,
    ):
        video = video_stream(str(source), reader)
        time_base = video.time_base or Fraction(1, 90000)
        rate = video.average_rate or Fraction(25)
        graph: Graph | None = None
        stream: Any = None
        count, first, last, held = 0, 0, -1, 0
        for count, frame in enumerate(every_frame(reader, video), 1):
            # some containers have no times
            time: int = frame.pts if frame.pts is not None else round((count - 1) / rate / time_base)
            if graph is None:
                graph, first = _graph(frame, video, time_base, settings.short_side), time
            frame.pts = last = max(time - first, last + 1)
            held = frame.duration or 0  # long for the last frame of some screen recordings
            frame.time_base = time_base
            graph.push(frame)
            image: Any = graph.pull()
            if stream is None:
                stream = _add_stream(writer, image, rate, time_base, settings)
            image.pict_type = 0  # otherwise key frames of the source would become key frames of the copy
            writer.mux(stream.encode(image))
        whole = reader.duration / av.time_base if reader.duration and len(reader.streams) == 1 else 0.0
        promised = float(video.duration * time_base) if video.duration else whole
        end = float((last + 1) * time_base + max(1 / rate, held * time_base))
        # Matroska, WebM and ASF count a duration from time 0, the others from the first frame.
        if not count or end + max(0.0, float(first * time_base)) < MIN_SHARE * promised:
            raise ValueError(f"it ends after {count} frames, {end if count else 0:.2f} of {promised:.2f} s")
        writer.mux(stream.encode())


def _graph(frame: av.VideoFrame, video: Any, time_base: Fraction, short_side: int) -> Graph:
    """Build the filters: turn upright, limit the short side to `short_side` pixels, make sides even, 8-bit 4:2:0."""
    graph = Graph()
    nodes = [graph.add_buffer(template=video, time_base=time_base)]
    height, width = frame.height, frame.width
    swap, left_right, top_bottom = orientation(frame)
    if swap:
        nodes.append(graph.add("transpose", "cclock_flip"))  # rows become columns, nothing else
        height, width = width, height
    for name, wanted in (("hflip", left_right), ("vflip", top_bottom)):
        if wanted:
            nodes.append(graph.add(name))
    scale = min(1.0, short_side / min(height, width))
    sides = [max(2, round(side * scale / 2) * 2) for side in (width, height)]
    if sides != [width, height]:
        nodes.append(graph.add("scale", f"{sides[0]}:{sides[1]}:flags=area"))
    nodes.append(graph.add("format", "yuv420p"))
    nodes.append(graph.add("buffersink"))
    graph.link_nodes(*nodes).configure()
    return graph


def _add_stream(writer: Any, image: Any, rate: Fraction, time_base: Fraction, settings: Settings) -> Any:
    stream = writer.add_stream("libx264", rate=rate)
    stream.width, stream.height, stream.pix_fmt = image.width, image.height, "yuv420p"
    stream.time_base = stream.codec_context.time_base = time_base
    for name in ("colorspace", "color_range", "color_primaries", "color_trc"):
        setattr(stream.codec_context, name, getattr(image, name))
    # If a stream declares B-frames but has none, the reader does not trust its times and decodes all of it. So no
    # B-frames are declared if the distance of key frames is too small for them.
    b_frames = max(0, min(settings.b_frames, settings.key_frames - 2))
    stream.options = {
        "preset": settings.preset, "crf": str(settings.crf), "g": str(settings.key_frames),
        "bf": str(b_frames), "b_strategy": "0", "b-pyramid": "none",
        "threads": "1",  # there is one process per core
        "x264-params": "cpu-independent=1",  # otherwise it reads beyond odd sides, and bytes of copies differ
    }  # fmt: skip
    return stream
