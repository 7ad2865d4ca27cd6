"""The page of figures is made of the records, and of records of every kind."""

from __future__ import annotations

import report


def kinds(cpu_s: float, wall_s: float) -> dict:
    values = {
        "clips_per_s": 8 / wall_s, "wall_s": wall_s, "cpu_s": cpu_s, "peak_gib": 1.5, "share_of_matrix_rate": 0.25,
        "times_reference": 4.0 / wall_s, "times_reference_cpu": 4.0 / cpu_s,
    }  # fmt: skip
    return {"forward": values, "train": values}


def network(device: str) -> dict:
    figures = {"reference": kinds(4.0, 4.0), "ours": kinds(2.5, 1.25), "compiled": kinds(2.0, 1.0)}
    return {
        "network": "uniformer_s", "batch": 8, "input_shape": [3, 16, 224, 224], "dtype": "bfloat16", "device": device,
        "threads": 2, "figures": figures,
    }  # fmt: skip


def test_the_page_is_that_of_the_records():
    assert report.main(["--check"]) == 0


def test_networks_are_compared_by_cpu_time_on_a_cpu_and_by_wall_time_on_a_gpu():
    text = report.page([network("CPU: P"), network("NVIDIA H100")])
    cpu, gpu = text.split("## On a GPU")
    assert "| uniformer_s | 8x16x224x224 | bfloat16 | 2 | 3.20, 1.60 times | 1.50 / 1.50 |" in cpu and "\nP:\n" in cpu
    products = {kind: {"wall_s": 1.0, "cpu_s": 2.0} for kind in ("forward", "train")}
    assert "| 3.20, 1.60 of 2.00 times |" in report.page([network("CPU: P") | {"products": products}])
    assert "| uniformer_s (compiled) | 8x16x224x224 | bfloat16 | 8.00, 4.00 times |" in gpu and "NVIDIA H100" in gpu
    assert "NVIDIA H100" not in cpu and report.NOT_MEASURED in cpu and report.NOT_MEASURED not in gpu


def test_loading_views_and_training_have_their_lines():
    result = {
        "workers": 1, "cpu": {"decode": 60.0, "ours": 50.0, "plain": 800.0, "plain_to_ours": 16.0},
        "complete": 91.0, "plain_to_complete": 8.8,
    }  # fmt: skip
    loading = {"machine": {"CPU": "P"}, "cfg": "exp/a/config.yaml"}
    loading["test"] = {"clips": 12, "results": [result]}
    views = {
        "views": [{"size": "340x256", "short_side": 224, "worker_ms": 0.1, "cut_ms": 38.6}],
        "start_s": 1.25,
        "device": "CPU: Q",
    }
    training = {"training": "a", "device": "NVIDIA H100", "overhead": 0.021, "busy": 0.95, "workers": 16}
    text = report.page([loading, views, training])
    assert "| a, test | 12 | 1 | 60 | 50 | 800 | 16.0 | 91 | 8.8 |" in text and "\nP:\n" in text
    assert "| 340x256 | 224 | 0 | 39 |" in text and "\nQ:\n" in text and "1.2 seconds" in text
    assert ("2.1 %" in text and "96 % busy" in text) or "95 % busy" in text
