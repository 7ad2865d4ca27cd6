"""The metrics log and its reader."""

from __future__ import annotations

import io
import json
import logging
import os
import resource
from pathlib import Path

from slowfast.utils.logging import MetricsLog, read_metrics, setup_logging
from slowfast.visualization.plots import plot_curves


def test_names_that_are_not_utf8_can_be_logged(tmp_path, package_logger, capsys):
    setup_logging(tmp_path, main=True)
    package_logger.warning("replaced caf\u00e9 \udcff.mp4")  # as Python reads the byte 0xff
    for text in (capsys.readouterr().out, (tmp_path / "log.txt").read_text(encoding="utf-8")):
        assert text.endswith("replaced caf\u00e9 \\udcff.mp4\n")


def test_names_that_the_terminal_cannot_show_can_be_logged(tmp_path, package_logger, monkeypatch):
    shown = io.BytesIO()
    monkeypatch.setattr("sys.stdout", io.TextIOWrapper(shown, encoding="latin-1"))
    setup_logging(tmp_path, main=True)
    package_logger.warning("caf\u00e9 \u89c6.mp4")
    assert shown.getvalue().endswith(b"caf\xe9 \\u89c6.mp4\n")
    assert (tmp_path / "log.txt").read_text(encoding="utf-8").endswith("caf\u00e9 \u89c6.mp4\n")


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


def test_history_after_a_resume_has_each_left_out_step_once(tmp_path):
    log = MetricsLog(tmp_path)
    log.write("start", step=0)
    for step in (4, 5):  # the fifth and the sixth step
        log.write("nonfinite", step=step, in_a_row=step - 3)
    log.write("start", step=5)
    log.write("nonfinite", step=5, in_a_row=2)
    assert [r["step"] for r in read_metrics(tmp_path) if r["kind"] == "nonfinite"] == [4, 5]


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
    # the disk has space for some lines
    for name in ("log.txt", "metrics.jsonl"):
        (tmp_path / name).unlink()
    assert write() == [] and "step 19\n" in (tmp_path / "log.txt").read_text() and len(read_metrics(tmp_path)) == 20
    (tmp_path / "log.txt").rename(tmp_path / "earlier.txt")
    (tmp_path / "log.txt").symlink_to("/dev/full")
    assert len(write()) == 1


def test_the_first_line_after_a_full_disk_is_a_record(tmp_path):
    log = MetricsLog(tmp_path)
    log.write("train", step=1)
    unlimited = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (log.path.stat().st_size + 10, unlimited[1]))
    try:
        log.write("train", step=2)
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, unlimited)
    assert not log.path.read_bytes().endswith(b"\n")
    for step in (3, 4):
        log.write("train", step=step)
    assert [record["step"] for record in read_metrics(tmp_path)] == [1, 3, 4]


def test_a_full_disk_with_the_output_costs_lines_only(tmp_path, package_logger, monkeypatch, capsys):
    setup_logging(tmp_path, main=True)
    with open("/dev/full", "w") as full:
        monkeypatch.setattr("sys.stdout", full)
        for step in range(20):
            package_logger.info("step %d", step)
        os.dup2(os.open(os.devnull, os.O_WRONLY), full.fileno())
    assert capsys.readouterr().err.count("No space left") == 1
    assert len((tmp_path / "log.txt").read_text().splitlines()) == 20


def test_other_processes_log_what_is_about_them_alone(tmp_path, package_logger, capsys):
    setup_logging(tmp_path, main=False)
    logging.getLogger("slowfast.run.health").warning("a video is bad")  # all processes know it
    logging.getLogger("slowfast.datasets.workers").warning("a worker was killed")
    logging.getLogger("slowfast.run.health").error("a file cannot be written")
    lines = capsys.readouterr().out.splitlines()
    assert [line.split("] ")[1] for line in lines] == ["a worker was killed", "a file cannot be written"]
    assert not (tmp_path / "log.txt").exists()


def test_a_log_that_cannot_be_read_does_not_end_the_run(tmp_path, monkeypatch):
    def fail(_: Path) -> bytes:
        raise OSError("stale file handle")

    (tmp_path / "metrics.jsonl").touch()
    with monkeypatch.context() as patch:
        patch.setattr(Path, "read_bytes", fail)
        MetricsLog(tmp_path).write("train", step=1)
    assert len(read_metrics(tmp_path)) == 1


def test_disabled_log_writes_nothing(tmp_path):
    MetricsLog(tmp_path, enabled=False).write("train", step=1)
    assert not list(tmp_path.iterdir())


def test_metrics_are_valid_json_even_with_numbers_that_are_not_finite(tmp_path):
    def refuse(constant: str) -> None:
        raise AssertionError(f"{constant} is not JSON")

    log = MetricsLog(tmp_path)
    for step, loss in enumerate((1.0, float("nan"), float("inf"))):
        log.write("train", step=step, epoch=float(step), loss=loss, top1=0.0, lr=0.1)
    losses = [json.loads(line, parse_constant=refuse)["loss"] for line in log.path.read_text().splitlines()]
    assert losses == [1.0, None, None]
    plot_curves(tmp_path, tmp_path / "curves.png")
    assert (tmp_path / "curves.png").stat().st_size > 0


def test_lines_that_are_not_records_are_left_out_with_one_warning(tmp_path, caplog):
    log = MetricsLog(tmp_path)
    others = [b"\xff\xfe\x00", b"[1, 2]", b"3", b"null", b'"text"', b"{}", b'{"kind": 3}', b'{"kind": "start"}',
              b'{"kind": "start", "step": null}', b'{"kind": "val", "step": [1]}', b'{"kind": "train", "step": "5"}',
              b"[" * 100_000, b"{" * 10, b'{"kind": "train", "st']  # fmt: skip
    log.write("start", step=0)
    for step, other in enumerate(others):
        log.write("train", step=step)
        with open(log.path, "ab") as file:
            file.write(other + b"\n")
    log.write("test", top1=50.0)
    log.write("start", step=len(others))
    records = read_metrics(tmp_path)
    assert [r["step"] for r in records if r["kind"] == "train"] == list(range(len(others)))
    assert [r["kind"] for r in records if r["kind"] != "train"] == ["start", "test", "start"]
    assert sum(f" {len(others)} lines" in message for message in caplog.messages) == 1


def test_curves_of_a_log_with_other_records(tmp_path):
    log = MetricsLog(tmp_path)
    for step in range(3):
        log.write("train", step=step, epoch=step, loss=1.0, top1=50.0, lr=0.1)
        log.write("train", step=step, epoch={}, loss=None)
        log.write("val", step=step, epoch=step, top1="good")
        log.write("test", top1=[3], shuffled_frames={})
    plot_curves(tmp_path, tmp_path / "curves.png")
    assert (tmp_path / "curves.png").stat().st_size > 1000
