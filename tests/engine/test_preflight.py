"""Processes that do not fit together are told apart before training, with rank and node."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import pytest
from cluster import free_ports

from slowfast.config import get_cfg
from slowfast.engine.preflight import code_hash, data, differences

ROOT = Path(__file__).parents[2]


def records(facts_of_ranks, cfgs=None):
    cfgs = cfgs or [get_cfg()] * len(facts_of_ranks)
    return [(f"rank {i} on node{i // 2}", f, c) for i, (f, c) in enumerate(zip(facts_of_ranks, cfgs, strict=True))]


def test_the_odd_one_is_named():
    same = {"all-reduce": "right", "package slowfast": "abc", "PyTorch": "2.9"}
    assert not list(differences(records([same] * 4)))
    [fault] = differences(records([same, same, {**same, "package slowfast": "xyz"}, same]))
    assert "package slowfast is abc on the others, but rank 2 on node1: xyz" in fault
    # the first process can be the odd one; of two, it is right
    [fault] = differences(records([{**same, "PyTorch": "2.4"}, same, same]))
    assert "PyTorch is 2.9 on the others, but rank 0 on node0: 2.4" in fault
    [fault] = differences(records([same, {**same, "PyTorch": "2.4"}]))
    assert "but rank 1 on node0: 2.4" in fault


def test_sums_that_are_wrong_everywhere():
    [fault] = differences(records([{"all-reduce": "3 of 1024 sums are wrong"}] * 2))
    assert "3 of 1024 sums are wrong in every process" in fault and "DIST_BACKEND" in fault


def test_keys_that_differ_are_named():
    one, two = get_cfg(), get_cfg()
    two.SHARD_ID = 1
    assert not list(differences(records([{"all-reduce": "right"}] * 2, [one, two])))
    two.SOLVER.BASE_LR = 7.0
    two.LOG_PERIOD = 99  # may differ from one attempt to the next, not from one process to the next
    faults = list(differences(records([{"all-reduce": "right"}] * 2, [one, two])))
    assert len(faults) == 2 and any("SOLVER.BASE_LR" in f and "7.0 for rank 1" in f for f in faults)


def test_code_is_compared_by_content(tmp_path):
    for name in ("a", "b"):
        (tmp_path / name / "sub").mkdir(parents=True)
        (tmp_path / name / "sub" / "x.py").write_text("x = 1\n")
        (tmp_path / name / f"note_{name}.txt").write_text(name)
    assert code_hash(tmp_path / "a") == code_hash(tmp_path / "b")
    (tmp_path / "b" / "sub" / "x.py").write_text("x = 2\n")
    assert code_hash(tmp_path / "a") != code_hash(tmp_path / "b")


def test_data_is_looked_at(tmp_path):
    cfg = get_cfg()
    cfg.DATA.PATH_TO_DATA_DIR, cfg.DATA.PATH_PREFIX = str(tmp_path), str(tmp_path / "nowhere")
    (tmp_path / "train.csv").write_text("a.mp4 0\n")
    found = data(cfg)
    assert found[f"DATA.PATH_TO_DATA_DIR {tmp_path}"] == "readable"
    assert found[f"DATA.PATH_PREFIX {tmp_path}/nowhere"] == "missing or unreadable"
    assert found[f"the list {tmp_path}/train.csv"] == "readable, 8 bytes"
    assert found[f"the list {tmp_path}/val.csv"] == "missing or unreadable"


@pytest.mark.slow
def test_two_nodes_that_differ_end_before_training(experiment, tmp_path):
    [port] = free_ports(1)
    node = ["--cfg", str(experiment), "--num_shards", "2", "--init_method", f"tcp://127.0.0.1:{port}"]
    common = {**os.environ, "OMP_NUM_THREADS": "1", "PYTHONPATH": str(ROOT)}
    jobs = [
        subprocess.Popen(
            [sys.executable, "tools/run_net.py", *node, "--shard_id", str(shard), "SOLVER.BASE_LR", rate],
            cwd=ROOT, env={**common, "SLURMD_NODENAME": f"n{shard}"}, stderr=subprocess.PIPE, text=True,
        )
        for shard, rate in enumerate(("0.1", "0.2"))
    ]  # fmt: skip
    for job in jobs:
        message = job.communicate(timeout=240)[1]
        assert job.returncode == 2
        assert "SOLVER.BASE_LR is 0.1 for rank 0 on n0 and 0.2 for rank 1 on n1" in message
    assert not (tmp_path / "out").exists()
