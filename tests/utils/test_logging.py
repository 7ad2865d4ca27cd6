"""The metrics log and its reader."""

from __future__ import annotations

from slowfast.utils.logging import MetricsLog, read_metrics


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


def test_disabled_log_writes_nothing(tmp_path):
    MetricsLog(tmp_path, enabled=False).write("train", step=1)
    assert not list(tmp_path.iterdir())
