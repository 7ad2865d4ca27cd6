"""Processes that do not fit together are named before training, with rank and node."""

from __future__ import annotations

import multiprocessing
import os
import subprocess
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from functools import partial
from pathlib import Path
from types import SimpleNamespace

import pytest
import torch
from cluster import free_ports

from slowfast.config import extensions, get_cfg
from slowfast.datasets.image_folder import load_image_folder
from slowfast.datasets.lists import VideoList, read_list
from slowfast.run.preflight import SUMS, build_alike, code, differences, own_code, settings
from slowfast.run.rendezvous import join_group
from slowfast.utils import distributed

ROOT = Path(__file__).parents[2]


def records(values_of_ranks):
    return [(f"rank {i} on node{i // 2}", values) for i, values in enumerate(values_of_ranks)]


def test_the_odd_one_is_named():
    same = {SUMS: "right", "package slowfast": "abc", "PyTorch": "2.9"}
    assert not list(differences(records([same] * 4)))
    [fault] = differences(records([same, same, {**same, "package slowfast": "xyz"}, same]))
    assert "slowfast is abc " in fault and "rank 2 on node1: xyz" in fault
    # the first process can be the odd one; of two, it is right
    [fault] = differences(records([{**same, "PyTorch": "2.4"}, same, same]))
    assert "PyTorch is 2.9 " in fault and "rank 0 on node0: 2.4" in fault
    [fault] = differences(records([same, {**same, "PyTorch": "2.4"}]))
    assert "but rank 1 on node0: 2.4" in fault


def test_sums_that_are_wrong_everywhere_are_an_error():
    assert not list(differences(records([{SUMS: "right"}] * 2)))
    [fault] = differences(records([{SUMS: "wrong in 3 of 1024 sums"}] * 2))
    assert "3 of 1024 sums" in fault and "DIST_BACKEND" in fault


def test_keys_that_differ_are_named():
    one, two = get_cfg(), get_cfg()
    two.SHARD_ID = 1
    assert not list(differences(records([settings(one), settings(two)])))
    two.SOLVER.BASE_LR = 7.0
    two.LOG_PERIOD = 99  # may differ from one attempt to the next, not from one process to the next
    faults = list(differences(records([settings(one), settings(two)])))
    assert len(faults) == 2 and any("SOLVER.BASE_LR is 0.1" in f and "rank 1 on node0: 7.0" in f for f in faults)


def test_code_is_compared_by_content(tmp_path):
    for name in ("a", "b"):
        (tmp_path / name / "sub").mkdir(parents=True)
        (tmp_path / name / "sub" / "x.py").write_text("x = 1\n")
        (tmp_path / name / f"note_{name}.txt").write_text(name)
    assert list(code(tmp_path / "a").values()) == list(code(tmp_path / "b").values())
    (tmp_path / "b" / "sub" / "x.py").write_text("x = 2\n")
    assert list(code(tmp_path / "a").values()) != list(code(tmp_path / "b").values())


def test_modules_of_users_are_compared_by_content(tmp_path, monkeypatch):
    monkeypatch.syspath_prepend(tmp_path)

    def described(names: str, text: str = "") -> dict[str, str]:
        (tmp_path / "compared_rows.py").write_text(text)
        monkeypatch.setenv(extensions.VARIABLE, names)
        extensions.import_extensions()
        return own_code()

    without, one = described(""), described("compared_rows", "x = 1")
    assert described("compared_rows", "x = 1") == one
    [fault] = differences(records([one, described("compared_rows", "x = 2")]))
    assert "checksum of the modules in SLOWFAST_IMPORT" in fault
    fault, _ = differences(records([one, without]))
    assert "SLOWFAST_IMPORT is compared_rows on the others, but rank 1 on node0: not set" in fault


def build(rank: int, folder: Path, port: int, load: Callable[[], VideoList], results: multiprocessing.Queue) -> None:
    os.chdir(folder / f"node{rank}")  # each has its own disk
    place = {"RANK": str(rank), "WORLD_SIZE": "2", "MASTER_ADDR": "127.0.0.1", "MASTER_PORT": str(port)}
    os.environ |= place | {"SLURMD_NODENAME": f"n{rank}"}
    join_group("gloo", torch.device("cpu"), 30.0, lambda: None)
    try:
        build_alike(lambda: SimpleNamespace(dataset=SimpleNamespace(samples=load())))  # pyright: ignore
        results.put("alike")
    except ValueError as error:
        results.put(str(error))
    distributed.barrier()


ROWS = ["a.mp4 0\n", "b.mp4 1\n", "c.mp4 0\n"]


@pytest.mark.parametrize(
    ("files", "outcome"),
    [
        ({}, "alike"),
        ({"list.csv": "".join(ROWS).replace("\n", "\r\n")}, "alike"),
        ({"list.csv": "".join(reversed(ROWS))}, "the list list.csv is 3 rows with the checksum "),
        ({"list.csv": "".join(ROWS[:2])}, "rank 1 on n1: 2 rows"),
        ({"list.csv": "a.mp4\n"}, "rank 1 on n1: 1 of 1 rows of list.csv"),
        ({"class_names.txt": "jump\nrun\n"}, "class names"),
        ({"images/train/b/2.jpg": None}, "rank 1 on n1: 2 rows"),
        ({"images/train/a/1.jpg": None}, "rank 1 on n1: 1 of 2 class folders in images/train hold no images"),
    ],
)
def test_lists_that_differ_between_nodes_are_refused(files, outcome, tmp_path):
    for node in ("node0", "node1"):
        for image in ("a/1", "b/1", "b/2"):
            (tmp_path / node / "images" / "train" / image).parent.mkdir(parents=True, exist_ok=True)
            (tmp_path / node / "images" / "train" / f"{image}.jpg").touch()
        (tmp_path / node / "list.csv").write_text("".join(ROWS))
        (tmp_path / node / "class_names.txt").write_text("run\njump\n")
    for name, text in files.items():
        (tmp_path / "node1" / name).unlink() if text is None else (tmp_path / "node1" / name).write_text(text)
    images = any(name.startswith("images") for name in files)
    load = partial(load_image_folder, "images", "train") if images else partial(read_list, "list.csv")
    context, [port] = multiprocessing.get_context("fork"), free_ports(1)
    results = context.Queue()
    children = [context.Process(target=build, args=(rank, tmp_path, port, load, results)) for rank in range(2)]
    for child in children:
        child.start()
    outcomes = {results.get(timeout=30) for _ in children}
    for child in children:
        child.join(30)
    assert len(outcomes) == 1 and outcome in outcomes.pop()


@pytest.mark.slow
def test_two_nodes_that_differ_end_before_training(experiment, call, tmp_path):
    [port] = free_ports(1)
    program = ("tools/run_net.py", "--cfg", experiment, "--num_shards", 2, "--init_method", f"tcp://127.0.0.1:{port}")

    def node(shard: int) -> subprocess.CompletedProcess:
        options = ("--shard_id", shard, "SOLVER.BASE_LR", (0.1, 0.2)[shard])
        return call(*program, *options, environment={"SLURMD_NODENAME": f"n{shard}"})

    with ThreadPoolExecutor() as nodes:
        jobs = [*nodes.map(node, range(2))]
    for job in jobs:
        message = job.stderr
        assert job.returncode == 2
        assert "SOLVER.BASE_LR is 0.1 " in message and "rank 1 on n1: 0.2" in message
    assert not (tmp_path / "out").exists()
