"""The main job in real processes: train, validate, test, resume, and several processes."""

from __future__ import annotations

import csv
import json
from concurrent.futures import ThreadPoolExecutor

import numpy as np
import pytest
import torch
from cluster import free_ports
from run_fixtures import losses

from slowfast.run.checkpoint import list_checkpoints
from slowfast.utils.io import sha256
from slowfast.utils.logging import read_metrics
from slowfast.weights.tensors import load_tensors

pytestmark = pytest.mark.slow

# everything random or stateful at once: both augmented copies, mixup, stochastic depth, averages, accumulation
BUSY = (
    "MIXUP.ENABLE", True, "UNIFORMER.DROP_DEPTH_RATE", 0.2, "EMA.ENABLE", True, "AUG.ENABLE", True, "AUG.NUM_SAMPLE", 2,
    "AUG.AA_TYPE", "rand-m7-n4-mstd0.5-inc1", "TRAIN.BATCH_SIZE", 3, "SOLVER.ACCUMULATION_STEPS", 2,
    "SOLVER.MAX_EPOCH", 4,
)  # fmt: skip


def test_a_run_trains_validates_tests_and_writes_its_files(experiment, run_net, call, tmp_path):
    out = tmp_path / "out"
    done = run_net(experiment, "TENSORBOARD.ENABLE", True, "DATA_LOADER.DECODE_TIMEOUT", 60, options=["pictures"])
    assert "test: top1" in done.stdout and "7 videos x 6 views" in done.stdout
    assert "8 of 8 classes occur in train.csv" in done.stdout and "in test.csv" in done.stdout

    with open(out / "test" / "predictions.csv", newline="") as file:
        rows = list(csv.DictReader(file))
    scores = np.load(out / "test" / "scores.npz")
    assert len(rows) == 7 and rows[0]["label"] == "move_left" and scores["scores"].shape == (7, 8)
    assert [row["id"] for row in rows] == scores["id"].tolist()
    assert float(rows[3]["score1"]) == pytest.approx(scores["scores"][3].max() / 6, rel=1e-5)

    report = json.loads((out / "test" / "metrics.json").read_text())
    checkpoint = out / "checkpoints" / "checkpoint_epoch_00002.pyth"
    assert report["checkpoint"] == {"path": str(checkpoint), "sha256": sha256(checkpoint)}
    correct = np.mean(scores["scores"].argmax(1) == scores["label"])
    assert report["metrics"]["top1"] == pytest.approx(100 * correct)
    assert report["config"]["TEST"]["NUM_SPATIAL_CROPS"] == 3

    content = load_tensors(checkpoint)
    assert content["epoch"] == 1 and content["class_names"][0] == "move_left"
    assert (out / "curves.png").stat().st_size > 5000 and list((out / "tensorboard").iterdir())
    assert "</html>" in (out / "report.html").read_text()
    # a job that is refused leaves the pictures of the run as they are
    before = [(out / name).stat().st_mtime_ns for name in ("curves.png", "report.html")]
    done = call("tools/run_net.py", "--cfg", experiment, "SOLVER.BASE_LR", 7, options=["pictures"])
    assert done.returncode == 2
    assert [(out / name).stat().st_mtime_ns for name in ("curves.png", "report.html")] == before
    records = read_metrics(out)
    assert records[0]["environment"]["torch"] == torch.__version__.partition("+")[0]
    best = np.load(out / "validation" / "scores.npz")
    assert best["scores"].shape == (7, 8) and best["class_names"][0] == "move_left"
    kinds = [record["kind"] for record in records]
    assert kinds == ["start", *["train"] * 6, "epoch", "val", *["train"] * 6, "epoch", "val", "test"]

    # what was dumped runs again: nothing is left to train, and the test gives the same scores
    done = run_net(out / "resolved_config.yaml")
    assert "nothing is left to train" in done.stdout
    assert np.array_equal(np.load(out / "test" / "scores.npz")["scores"], scores["scores"])
    # the control does not overwrite the results
    done = run_net(experiment, "TRAIN.ENABLE", False, "TEST.SHUFFLE_FRAMES", True)
    assert "with shuffled frames" in done.stdout
    shuffled = np.load(out / "test_shuffled" / "scores.npz")["scores"]
    assert not np.allclose(shuffled, scores["scores"])

    # a finished run takes more epochs, with its optimizer and the learning rates of the longer training
    run_net(out / "resolved_config.yaml", "SOLVER.MAX_EPOCH", 3, "TEST.ENABLE", False)
    records = read_metrics(out)
    start = max(i for i, record in enumerate(records) if record["kind"] == "start")
    assert records[start]["step"] == 12 and [r["step"] for r in records[start:] if r["kind"] == "train"] == [
        *range(13, 19)
    ]
    longer = load_tensors(list_checkpoints(str(out))[-1])
    assert longer["epoch"] == 2 and longer["optimizer_state"]["state"][0]["step"] == 18
    assert records[start + 1]["lr"] == pytest.approx(1e-5 + 0.5 * (1e-3 - 1e-5))  # half of the new cosine


@pytest.mark.parametrize("workers", [0, 2])
def test_resume_is_exact(workers, experiment, run_net, tmp_path):
    """10 steps are 5 steps, a checkpoint, a new process and 5 steps: 4 steps an epoch, so it stops within one."""
    common = (*BUSY, "DATA_LOADER.NUM_WORKERS", workers, "TEST.ENABLE", False)
    whole, parts = tmp_path / "whole", tmp_path / "parts"
    run_net(experiment, *common, "OUTPUT_DIR", whole, "TRAIN.MAX_STEPS", 10)
    run_net(experiment, *common, "OUTPUT_DIR", parts, "TRAIN.MAX_STEPS", 5)
    assert list_checkpoints(str(parts))[-1].name == "checkpoint_epoch_00001_step_000001.pyth"
    done = run_net(experiment, *common, "OUTPUT_DIR", parts, "TRAIN.MAX_STEPS", 10)
    assert "resumed from" in done.stdout and "at step 5" in done.stdout
    assert losses(whole) == losses(parts) and len(losses(whole)) == 10

    a, b = (load_tensors(list_checkpoints(str(folder))[-1]) for folder in (whole, parts))
    assert a["step"] == b["step"] == 10
    for entry in ("model_state", "ema_state"):
        assert all(torch.equal(a[entry][name], b[entry][name]) for name in a[entry])
    moments = [
        (a["optimizer_state"]["state"][i], b["optimizer_state"]["state"][i]) for i in a["optimizer_state"]["state"]
    ]
    assert all(torch.equal(x[key], y[key]) for x, y in moments for key in x)
    assert torch.equal(a["meter_state"]["sums"], b["meter_state"]["sums"]) and a["best"] == b["best"]


def test_two_processes_train_like_one(experiment, run_net, tmp_path):
    """As torchrun starts them, two processes follow the losses of one with the same global batch.

    Those of NUM_PROCESSES do what these do: tests/run/test_never_lost.py compares them.
    """
    common = ("MODEL.FROZEN_BN", True, "SOLVER.MAX_EPOCH", 4, "TRAIN.MAX_STEPS", 14, "TEST.ENABLE", False)
    run_net(experiment, *common, "OUTPUT_DIR", tmp_path / "one")
    run_net(experiment, *common, "OUTPUT_DIR", tmp_path / "torchrun", ranks=2)
    one = losses(tmp_path / "one")
    assert len(one) == 14
    assert losses(tmp_path / "torchrun") == pytest.approx(one, abs=1e-5)


def test_two_nodes_train_like_one(experiment, run_net, tmp_path):
    """NUM_SHARDS 2 with the official flags, both "nodes" on this machine; a batch is counted per node."""
    common = ("MODEL.FROZEN_BN", True, "TRAIN.MAX_STEPS", 4, "TEST.ENABLE", False)
    run_net(experiment, *common, "OUTPUT_DIR", tmp_path / "one", "TRAIN.BATCH_SIZE", 8)
    flags = ("--num_shards", 2, "--init_method", f"tcp://127.0.0.1:{free_ports(1)[0]}")
    with ThreadPoolExecutor() as nodes:
        for done in [
            nodes.submit(run_net, experiment, *flags, "--shard_id", shard, *common, "OUTPUT_DIR", tmp_path / "two")
            for shard in (0, 1)
        ]:
            done.result()
    assert losses(tmp_path / "two") == pytest.approx(losses(tmp_path / "one"), abs=1e-5)


def test_the_number_of_processes_does_not_change_a_test(experiment, run_net, tmp_path):
    """Seven videos on one, two and three processes: no video twice, none missing, the same files."""
    run_net(experiment, "SOLVER.MAX_EPOCH", 2, "TRAIN.MAX_STEPS", 2, "TEST.ENABLE", False)
    tables, metrics = [], []
    for processes in (1, 2, 3):
        more = ("NUM_PROCESSES", processes) if processes == 2 else ()  # the others as torchrun starts them
        ranks = 0 if processes == 2 else processes
        run_net(experiment, "SOLVER.MAX_EPOCH", 2, "TRAIN.ENABLE", False, *more, ranks=ranks)
        tables.append((tmp_path / "out" / "test" / "predictions.csv").read_text())
        metrics.append(json.loads((tmp_path / "out" / "test" / "metrics.json").read_text())["metrics"])
    assert len(tables[0].splitlines()) == 8 and metrics[0]["num_videos"] == 7
    assert len(set(tables)) == 1 and all(other == metrics[0] for other in metrics)


def test_precise_batch_norm_updates_the_statistics_of_both_weights(experiment, run_net, tmp_path):
    run_net(
        experiment, "TRAIN.MAX_STEPS", 6, "BN.USE_PRECISE_STATS", True, "BN.NUM_BATCHES_PRECISE", 3,
        "SOLVER.OPTIMIZING_METHOD", "sgd", "EMA.ENABLE", True, "TEST.ENABLE", False,
    )  # fmt: skip
    state = load_tensors(list_checkpoints(str(tmp_path / "out"))[-1])
    # six training batches and three for the statistics, which the average gets for its own weights
    for weights in ("model_state", "ema_state"):
        assert int(state[weights]["norm.num_batches_tracked"]) == 9
    assert not torch.equal(state["ema_state"]["norm.running_mean"], state["model_state"]["norm.running_mean"])
