"""The metrics log and its reader."""

from __future__ import annotations

import logging
import os

import pytest

from slowfast.utils.logging import MetricsLog, read_metrics, setup_logging


@pytest.fixture
def package_logger(monkeypatch):
    """The logger of the package, whose state before the test comes back after it."""
    logger = logging.getLogger("slowfast")
    for name in ("propagate", "level"):
        monkeypatch.setattr(logger, name, getattr(logger, name))
    monkeypatch.setattr(logger, "handlers", [])
    yield logger
    for handler in logger.handlers:
        handler.close()


def test_names_that_are_not_utf8_can_be_logged(tmp_path, package_logger, capsys):
    setup_logging(tmp_path, main=True)
    package_logger.warning("replaced caf\u00e9 \udcff.mp4")  # as Python reads the byte 0xff
    for text in (capsys.readouterr().out, (tmp_path / "log.txt").read_text(encoding="utf-8")):
        assert text.endswith("replaced caf\u00e9 \\udcff.mp4\n")


def test_history_after_a_resume_has_no_repeats(tmp_path):
    log = MetricsLog(tmp_path)
    log.write("start", step=0)
    for step in (5, 10, 15):
        log.write("train", step=step, loss=1.0 / step)
    with open(log.path, "a") as file:
        file.write('{"kind": "train", "step": 20, "lo')  # the process was killed while writing
    log = MetricsLog(tmp_path)
    log.write("start", step=10)
    log.write("train", step=15, loss=0.5)
    records = [r for r in read_metrics(tmp_path) if r["kind"] == "train"]
    assert [r["step"] for r in records] == [5, 10, 15] and records[-1]["loss"] == 0.5


def test_a_full_disk_costs_lines_and_one_message(tmp_path, package_logger, capsys):
    for name in ("log.txt", "metrics.jsonl"):
        (tmp_path / name).symlink_to("/dev/full")
    setup_logging(tmp_path, main=True)
    log = MetricsLog(tmp_path)

    def write() -> list[str]:
        for step in range(20):
            package_logger.info("step %d", step)
            log.write("train", step=step)
        return [line for line in capsys.readouterr().err.splitlines() if "No space left" in line]

    messages = write()
    assert len(messages) == 2 and all(f"{tmp_path}/" in message for message in messages)
    assert write() == []
    # there is room for a while
    (tmp_path / "metrics.jsonl").unlink()
    [stream] = [handler.stream for handler in package_logger.handlers if isinstance(handler, logging.FileHandler)]
    with open(tmp_path / "room", "w") as room, open("/dev/full", "w") as full:
        os.dup2(room.fileno(), stream.fileno())
        assert write() == [] and "step 19\n" in (tmp_path / "room").read_text() and len(read_metrics(tmp_path)) == 20
        os.dup2(full.fileno(), stream.fileno())
        assert len(write()) == 1
        os.dup2(room.fileno(), stream.fileno())  # what is left in the buffer can be written


def test_a_full_disk_with_the_output_costs_lines_only(tmp_path, package_logger, monkeypatch, capsys):
    setup_logging(tmp_path, main=True)
    with open("/dev/full", "w") as full:
        monkeypatch.setattr("sys.stdout", full)
        for step in range(20):
            package_logger.info("step %d", step)
        os.dup2(os.open(os.devnull, os.O_WRONLY), full.fileno())
    assert capsys.readouterr().err.count("No space left") == 1
    assert len((tmp_path / "log.txt").read_text().splitlines()) == 20


def test_disabled_log_writes_nothing(tmp_path):
    MetricsLog(tmp_path, enabled=False).write("train", step=1)
    assert not list(tmp_path.iterdir())
