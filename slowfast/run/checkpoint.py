"""Write the checkpoints of a run atomically in the background, find them by their content, and prune them."""

from __future__ import annotations

import logging
import os
import re
import shutil
import time
import zipfile
from collections.abc import Iterator, Mapping
from concurrent.futures import Future, ThreadPoolExecutor
from pathlib import Path
from typing import Any

import torch

from slowfast.utils.io import atomic_write
from slowfast.weights.tensors import load_tensors

logger = logging.getLogger(__name__)

_NAME = re.compile(r"checkpoint_epoch_(\d+)(?:_step_(\d+))?\.pyth$")


def checkpoint_dir(output_dir: str) -> Path:
    """Return the folder of the checkpoints of a run."""
    return Path(output_dir) / "checkpoints"


def best_checkpoint(output_dir: str) -> Path:
    """Return the path of the checkpoint with the best validation top-1 or mAP."""
    return checkpoint_dir(output_dir) / "best.pyth"


def official_best(output_dir: str) -> Path:
    """Return where the official programs save the best checkpoint."""
    return Path(output_dir) / "best.pyth"


def list_checkpoints(output_dir: str) -> list[Path]:
    """Return the checkpoints of a run from the oldest to the newest, without the best one."""
    paths = checkpoint_dir(output_dir).glob("checkpoint_epoch_*.pyth")
    # opening a pipe of that name would block
    return sorted((path for path in paths if _NAME.match(path.name) and path.is_file()), key=_progress)


def unfinished_checkpoints(output_dir: str) -> Iterator[Path]:
    """Yield the temporary files of checkpoints that are being written, or whose process was killed."""
    return checkpoint_dir(output_dir).glob(".*.pyth.*")


def _progress(path: Path) -> tuple[int, int]:
    """Return the epochs, and the steps after them, that are in the name of a checkpoint."""
    match = _NAME.match(path.name)
    assert match
    return int(match[1]), int(match[2] or 0)


def last_checkpoint(output_dir: str) -> Path | None:
    """Return the newest checkpoint of a run by name, or None."""
    return (list_checkpoints(output_dir) or [None])[-1]


def resumable_checkpoint(output_dir: str) -> Path | None:
    """Return the undamaged checkpoint with the most epochs, the best ones included; None if there is none.

    The content of the files decides, not their names or times. One that cannot be resumed is skipped with a
    warning; every byte of the chosen one has been compared with its checksum.

    Raises:
        ValueError: there are checkpoints, and none can be resumed.
    """
    paths = [*list_checkpoints(output_dir), *filter(Path.is_file, [best_checkpoint(output_dir)])]
    found = {path: peek(path) for path in [*paths, *filter(Path.is_file, [official_best(output_dir)])]}
    epochs = {path: epochs_done(entries) for path, entries in found.items()}
    unfit: dict[Path, str] = {}
    # files of unknown progress come first, for a warning
    for path in sorted(found, key=lambda path: (epochs[path] >= 0, -epochs[path])):
        unfit[path] = _unfit(path, found[path], epochs[path])
        if not unfit[path]:
            return path
        logger.warning("%s %s: skipped", path, unfit[path])
    if paths:
        raise ValueError(
            f"none of the checkpoints in {checkpoint_dir(output_dir)} can be resumed ({paths[-1].name} "
            f"{unfit[paths[-1]]}); make them readable, move them elsewhere, or choose another OUTPUT_DIR"
        )
    return None


def _unfit(path: Path, entries: Mapping[str, Any], epochs: float) -> str:
    """Return why a checkpoint cannot be resumed; "" if it can."""
    if epochs >= 0:
        return damage(path)
    if entries:
        what = f"contains {', '.join(sorted(map(str, entries))[:4])}, but not the entries that a resume needs"
        return f"{what} (TRAIN.CHECKPOINT_FILE_PATH starts from weights)"
    return damage(path) or "could not be read at first"


def newest_entries(output_dir: str) -> Mapping[str, Any]:
    """Return the entries of the newest checkpoint by name that can be opened, else those of the best one, or {}."""
    paths = [*reversed(list_checkpoints(output_dir)), *filter(Path.is_file, [best_checkpoint(output_dir)])]
    return next(filter(None, map(peek, paths)), {})


def peek(path: Path) -> Mapping[str, Any]:
    """Return the entries of a checkpoint without reading its tensors; {} if it cannot be opened."""
    try:
        return load_tensors(path, shapes_only=True)
    except Exception:  # a damaged file can raise any error
        return {}


def is_official(entries: Mapping[str, Any]) -> bool:
    """Return whether a checkpoint was written by the official programs, which count epochs only."""
    return "step" not in entries and {"epoch", "model_state", "optimizer_state"} <= entries.keys()


def epochs_done(entries: Mapping[str, Any]) -> float:
    """Return the completed epochs of a checkpoint; -1 if it does not contain them."""
    try:
        done = entries["epoch"] + 1 if is_official(entries) else entries["step"] / entries["steps_per_epoch"]
        return done if isinstance(done, (int, float)) else -1  # a tensor has no value here
    except (LookupError, TypeError, ZeroDivisionError):
        return -1


def damage(path: Path) -> str:
    """Return why a file cannot be loaded; "" if its records have the CRC-32 that `torch.save` wrote (since 1.6)."""
    try:
        with open(path, "rb") as file:
            file.read(1)
        if not zipfile.is_zipfile(path):
            whole = bool(peek(path))
        else:
            with zipfile.ZipFile(path) as archive:
                whole = archive.testzip() is None
    except OSError as error:
        return f"cannot be read ({error.strerror})"
    except Exception:  # a damaged file can raise any error
        whole = False
    return "" if whole else "is torn or damaged, or not a checkpoint"


def snapshot(value: Any) -> Any:
    """Return a copy of nested containers of tensors on the CPU, which later training steps do not change."""
    if torch.is_tensor(value):
        return value.detach().to("cpu", copy=True)
    if isinstance(value, Mapping):
        return {key: snapshot(item) for key, item in value.items()}
    if isinstance(value, (list, tuple)):
        return type(value)(snapshot(item) for item in value)
    assert value is None or type(value) in (bool, int, float, str, torch.dtype), (
        f"{type(value)} would not be loaded again"
    )
    return value


def _write_file(path: Path, state: Mapping[str, Any]) -> None:
    with atomic_write(path) as file:
        torch.save(state, file)


def _link(path: Path, name: Path) -> None:
    """Give a file another name too, atomically; copy it where the file system has no hard links."""
    part = name.with_name(f".{name.name}.link")
    try:
        part.unlink(missing_ok=True)
        os.link(path, part)
        os.replace(part, name)
    except OSError:
        part.unlink(missing_ok=True)
        with open(path, "rb") as source, atomic_write(name) as file:
            shutil.copyfileobj(source, file)


class CheckpointWriter:
    """Write checkpoints in a thread: a training step waits for the copy to memory, not for the disk.

    A file appears complete, flushed and with checksums, or not at all, and older ones are removed only after that; so a
    full or vanished disk costs the new checkpoint and never the last good one. A best one that could not be written
    stays in memory, and is tried again with every later one and at the end. Leave the `with` block to wait for the last
    one. The newest `keep` checkpoints remain; 0 keeps all.
    """

    def __init__(self, output_dir: str, keep: int = 0) -> None:
        self.output_dir, self.keep = output_dir, keep
        self.thread = ThreadPoolExecutor(1, "checkpoint")
        self.pending: Future[None] | None = None
        self.best: dict[str, Any] | None = None  # until it is written
        self.logged: Path | None = None
        self.saved_at = time.monotonic()

    def __enter__(self) -> CheckpointWriter:
        for part in unfinished_checkpoints(self.output_dir):
            part.unlink(missing_ok=True)  # an earlier process was killed while it wrote
        return self

    def __exit__(self, kind: type[BaseException] | None, *_: object) -> None:
        try:
            self.wait(stop_on_error=kind is None)
            if self.best is not None:
                self.pending = self.thread.submit(self._write_best)
                self.wait(stop_on_error=kind is None)
        finally:
            self.thread.shutdown()

    def seconds_since_save(self) -> float:
        """Return the seconds since the last call of `save`, or since this object was made."""
        return time.monotonic() - self.saved_at

    def save(self, state: Mapping[str, Any], best: bool = False) -> None:
        """Copy `state` (plain containers and tensors), and write it under the name of its progress.

        With `best`, the same file becomes the best checkpoint too, under another name.
        """
        self.saved_at = time.monotonic()
        self.wait()
        self.pending = self.thread.submit(self._write, snapshot(state), best)

    def wait(self, stop_on_error: bool = False) -> None:
        """Return when everything is on the disk; log a write error, or raise it if `stop_on_error` is True.

        Raises:
            ValueError: a checkpoint could not be written, and `stop_on_error` is True.
        """
        pending, self.pending = self.pending, None
        if pending is None:
            return
        try:
            pending.result()
        except (OSError, RuntimeError) as error:
            # PyTorch's writer raises a RuntimeError about its position; the reason is the error before
            reason = error if isinstance(error, OSError) else error.__context__ or error
            last = last_checkpoint(self.output_dir)
            message = (
                f"a checkpoint could not be written in {checkpoint_dir(self.output_dir)} ({reason}); "
                f"{f'{last.name} is still there' if last else 'it would be the first one'}. Free disk space, make the "
                "folder writable again, or raise a quota or limit (ulimit -f)"
            )
            if stop_on_error:
                goes_on = "continues from that checkpoint" if last else "starts the run again"
                raise ValueError(f"{message}; then the same command {goes_on}") from error
            logger.error("%s; the run continues", message)

    def _write(self, state: dict[str, Any], best: bool) -> None:
        epochs, steps = divmod(state["step"], state["steps_per_epoch"])
        name = f"checkpoint_epoch_{epochs:05d}" + (f"_step_{steps:06d}" if steps else "") + ".pyth"
        regular = checkpoint_dir(self.output_dir) / name
        if best:
            self.best = state
            self._write_best()  # first: a run that resumes from the regular one assumes that this is done
            _link(best_checkpoint(self.output_dir), regular)
            self._finish(regular)
            return
        try:
            self._write_best()
        finally:
            _write_file(regular, state)
            self._finish(regular)

    def _write_best(self) -> None:
        if self.best is not None:
            _write_file(best_checkpoint(self.output_dir), self.best)
            logger.info("saved %s", best_checkpoint(self.output_dir))
            self.best = None

    def _finish(self, newest: Path) -> None:
        """Log that `newest` is written, once if it is written before and after a validation; remove old checkpoints."""
        if newest != self.logged:
            logger.info("saved %s", newest)
        self.logged = newest
        if not self.keep:
            return
        # those of more steps are damaged (else this run would have resumed there) and must not displace good ones
        found = [path for path in list_checkpoints(self.output_dir) if _progress(path) <= _progress(newest)]
        for old in found[: -self.keep]:
            if not is_official(peek(old)):
                old.unlink(missing_ok=True)
