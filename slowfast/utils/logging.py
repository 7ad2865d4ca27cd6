"""Write logs as text and as JSON lines, and read the JSON lines."""

from __future__ import annotations

import contextlib
import json
import logging
import os
import sys
import warnings
from pathlib import Path
from typing import Any

from tqdm import tqdm

from slowfast.utils.io import print_error, to_json

# Warnings of these modules are about one process. Those of others are the same in all processes of a job.
OF_ONE_PROCESS = (
    "slowfast.datasets.workers",
    "slowfast.engine.setup",
    "slowfast.models.depthwise",
    "slowfast.run.launch",
)


class _Lines:
    """Write lines to a file; while writing fails, for example on a full disk, drop them and print one message.

    Args:
        path: of the file; None for the standard output.
    """

    def __init__(self, path: Path | None) -> None:
        self.path, self.failing = path, False

    def add(self, line: str) -> None:
        try:
            if self.path:
                with open(self.path, "a", encoding="utf-8", errors="backslashreplace") as file:
                    # file names need not be UTF-8; a part of the line that failed may be in the file
                    file.write("\n" * self.failing + line + "\n")
            else:
                # above a running progress bar instead of through it
                encoding = sys.stdout.encoding or "utf-8"
                tqdm.write(line.encode(encoding, "backslashreplace").decode(encoding), file=sys.stdout)
                sys.stdout.flush()
            self.failing = False
        except OSError as error:
            if not self.failing:
                name = self.path or "the standard output"
                print_error(f"error: {name} cannot be written ({error}): its lines are lost")
            self.failing = True


class _Handler(logging.Handler):
    """Format records and pass them to an output; tracebacks go to files only."""

    def __init__(self, path: Path | None) -> None:
        super().__init__()
        self.lines = _Lines(path)
        self.setFormatter(logging.Formatter("[%(asctime)s] %(message)s", "%m-%d %H:%M:%S"))

    def emit(self, record: logging.LogRecord) -> None:
        if self.lines.path or not record.exc_info:
            self.lines.add(self.format(record))


def setup_logging(output_dir: str | os.PathLike[str], main: bool) -> None:
    """Send the package's log to the terminal and `output_dir`/log.txt.

    A process that is not the main one (`main`) sends only errors and warnings about itself, and only to the terminal.
    """
    logger = logging.getLogger("slowfast")
    logger.handlers.clear()
    logger.propagate = False
    logger.setLevel(logging.INFO if main else logging.WARNING)
    terminal = _Handler(None)
    logger.addHandler(terminal)
    if main:
        logger.addHandler(_Handler(Path(output_dir) / "log.txt"))
    else:
        terminal.addFilter(lambda record: record.levelno >= logging.ERROR or record.name in OF_ONE_PROCESS)
        warnings.simplefilter("ignore")  # the main process shows them


class MetricsLog:
    """Append JSON objects, one per line, to `output_dir`/metrics.jsonl if `enabled`; on a full disk, lines are lost."""

    def __init__(self, output_dir: str | os.PathLike[str], enabled: bool = True) -> None:
        self.path = Path(output_dir) / "metrics.jsonl"
        self.enabled = enabled
        self.lines = _Lines(self.path)
        with contextlib.suppress(OSError):  # `write` reports it
            if enabled and self.path.is_file() and not self.path.read_bytes().endswith(b"\n"):
                self.lines.add("")  # the last process was killed in the middle of a line

    def write(self, kind: str, **values: Any) -> None:
        """Append a record; `kind` is "start", "train", "nonfinite", "epoch", "val" or "test"."""
        if self.enabled:
            self.lines.add(to_json({"kind": kind, **values}))


def read_metrics(path: str | os.PathLike[str]) -> list[dict[str, Any]]:
    """Read a metrics.jsonl file, or the one in a folder, as the history of a run without interruptions.

    A run that resumed at step s repeats the steps after s, and the end of an epoch that was not complete. The records
    that the interrupted attempt wrote about them are dropped. Lines that are not records, such as the torn last line of
    a killed process, are left out with one warning.
    """
    path = Path(path)
    if path.is_dir():
        path = path / "metrics.jsonl"
    records: list[dict[str, Any]] = []
    wrong = 0
    for line in path.read_bytes().splitlines():
        record = _record(line)
        if record is None:
            wrong += bool(line.strip())
            continue
        if record["kind"] == "start":
            # "nonfinite" counts the steps before its own
            records = [r for r in records if r.get("step", -1) + (r["kind"] == "nonfinite") <= record["step"]]
        elif record["kind"] in ("epoch", "val"):
            key = (record["kind"], record["step"])
            records = [r for r in records if (r["kind"], r.get("step")) != key]
        records.append(record)
    if wrong:
        logging.getLogger(__name__).warning("%s: %d lines are not records of a run and were left out", path, wrong)
    return records


def _record(line: bytes) -> dict[str, Any] | None:
    """Return the record in a line, or None if it is not a record."""
    try:
        record = json.loads(line)
    except (ValueError, RecursionError):  # also bytes that are not UTF-8
        return None
    if not isinstance(record, dict) or not isinstance(record.get("kind"), str):
        return None
    step = record.get("step", None if record["kind"] in ("start", "epoch", "val") else 0)
    return record if isinstance(step, int) else None
