"""Logs: lines for people, JSON lines for programs, and the reader of those lines."""

from __future__ import annotations

import json
import logging
import os
import sys
import warnings
from pathlib import Path
from typing import Any

from tqdm import tqdm

from slowfast.utils.io import to_json


class _Formatter(logging.Formatter):
    """Bytes of a file name that are no UTF-8 are shown as such, and cost no line."""

    def format(self, record: logging.LogRecord) -> str:
        return super().format(record).encode("utf-8", "backslashreplace").decode("utf-8")


class _TerminalHandler(logging.StreamHandler):
    """Writes above a running progress bar instead of through it; tracebacks are for the file."""

    def emit(self, record: logging.LogRecord) -> None:
        if record.exc_info:
            return
        tqdm.write(self.format(record), file=sys.stdout)
        sys.stdout.flush()


def setup_logging(output_dir: str | os.PathLike, main: bool) -> None:
    """Send the package's log to the terminal and `output_dir`/log.txt; processes other than the main one only warn.

    Raises:
        ValueError: the folder cannot be written.
    """
    logger = logging.getLogger("slowfast")
    logger.handlers.clear()
    logger.propagate = False
    logger.setLevel(logging.INFO if main else logging.WARNING)
    handlers: list[logging.Handler] = [_TerminalHandler()]
    if main:
        try:
            Path(output_dir).mkdir(parents=True, exist_ok=True)
            handlers.append(logging.FileHandler(Path(output_dir) / "log.txt", encoding="utf-8"))
        except OSError as error:
            raise ValueError(
                f"OUTPUT_DIR {os.fspath(output_dir)!r} cannot be written ({error}); choose another"
            ) from error
    for handler in handlers:
        handler.setFormatter(_Formatter("[%(asctime)s] %(message)s", "%m-%d %H:%M:%S"))
        logger.addHandler(handler)
    if not main:
        warnings.simplefilter("ignore")  # the main process has shown them


class MetricsLog:
    """Appends one JSON object a line to `output_dir`/metrics.jsonl; a disabled log (other ranks) writes nothing.

    A full or vanished disk costs lines, never the run.
    """

    def __init__(self, output_dir: str | os.PathLike, enabled: bool = True) -> None:
        self.path = Path(output_dir) / "metrics.jsonl"
        self.enabled = enabled
        try:
            if enabled and self.path.is_file() and not self.path.read_bytes().endswith(b"\n"):
                self._append("\n")  # the last process was killed in the middle of a line
        except OSError as error:
            logging.getLogger(__name__).error("%s cannot be written: %s", self.path, error)

    def write(self, kind: str, **values: Any) -> None:
        """Append a record; `kind` is "start", "train", "nonfinite", "epoch", "val" or "test"."""
        if not self.enabled:
            return
        try:
            self._append(to_json({"kind": kind, **values}) + "\n")
        except OSError as error:
            logging.getLogger(__name__).error("a line of %s is lost: %s", self.path, error)

    def _append(self, text: str) -> None:
        with open(self.path, "a", encoding="utf-8") as file:
            file.write(text)


def read_metrics(path: str | os.PathLike) -> list[dict[str, Any]]:
    """Read a metrics.jsonl file, or the one in a folder, as one undisturbed history.

    A run that resumed at step s repeats the steps after s, and the end of an epoch that was not over: what the lost
    attempt wrote about them is dropped. Lines that are no records, such as the torn last one of a killed process, are
    left out with one warning.
    """
    path = Path(path)
    if path.is_dir():
        path = path / "metrics.jsonl"
    records: list[dict[str, Any]] = []
    wrong = 0
    with open(path, "rb") as file:
        for line in file:
            record = _record(line)
            if record is None:
                wrong += bool(line.strip())
                continue
            if record["kind"] == "start":
                records = [r for r in records if r.get("step", -1) <= record["step"]]
            elif record["kind"] in ("epoch", "val"):
                key = (record["kind"], record["step"])
                records = [r for r in records if (r["kind"], r.get("step")) != key]
            records.append(record)
    if wrong:
        logging.getLogger(__name__).warning("%s: %d lines are no records of a run and were left out", path, wrong)
    return records


def _record(line: bytes) -> dict[str, Any] | None:
    """Return the record in a line, or None if it holds something else."""
    try:
        record = json.loads(line)
    except (ValueError, RecursionError):  # also bytes that are not UTF-8
        return None
    if not isinstance(record, dict) or not isinstance(record.get("kind"), str):
        return None
    step = record.get("step", None if record["kind"] in ("start", "epoch", "val") else 0)
    return record if isinstance(step, int) else None
