"""A small data set of real videos, a small experiment, and how to run it in real processes."""

from __future__ import annotations

import json
import os
import socket
import subprocess
import sys
import tempfile
from collections.abc import Callable, Mapping
from concurrent.futures import ThreadPoolExecutor
from functools import partial
from pathlib import Path

import pytest
from cluster import free_ports
from make_demo_data import CLASS_NAMES, write_video

ROOT = Path(__file__).parents[1]
ENVIRONMENT = {**os.environ, "OMP_NUM_THREADS": "1", "PYTHONFAULTHANDLER": "1", "PYTHONPATH": str(ROOT)}
EXPERIMENT = """
NUM_GPUS: 0
LOG_PERIOD: 1
OUTPUT_DIR: {out}
DATA: {{PATH_TO_DATA_DIR: {data}, PATH_PREFIX: {data}, NUM_FRAMES: 4, TRAIN_CROP_SIZE: 32, TEST_CROP_SIZE: 32,
       TRAIN_JITTER_SCALES: [32, 40], RANDOM_FLIP: False}}
MODEL: {{NUM_CLASSES: 8, LOSS_FUNC: soft_cross_entropy}}
UNIFORMER: {{DEPTH: [1, 1, 1, 1], EMBED_DIM: [8, 16, 32, 32], HEAD_DIM: 16, DROP_DEPTH_RATE: 0.0}}
SOLVER: {{OPTIMIZING_METHOD: adamw, BASE_LR: 1.0e-3, WARMUP_START_LR: 1.0e-5, WARMUP_EPOCHS: 1.0, COSINE_END_LR: 1.0e-5,
         COSINE_AFTER_WARMUP: True, MAX_EPOCH: 2, ZERO_WD_1D_PARAM: True}}
TRAIN: {{DATASET: kinetics_sparse, BATCH_SIZE: 4, EVAL_PERIOD: 1, CHECKPOINT_PERIOD: 1}}
TEST: {{DATASET: kinetics_sparse, BATCH_SIZE: 8, NUM_ENSEMBLE_VIEWS: 2, NUM_SPATIAL_CROPS: 3}}
DATA_LOADER: {{NUM_WORKERS: 0}}
"""


@pytest.fixture(scope="session")
def videos(tmp_path_factory) -> Path:
    """24 training and 7 test videos with lists and class names."""
    folder = tmp_path_factory.mktemp("videos")
    for split, count in (("train", 24), ("val", 7)):
        for i in range(count):
            write_video(folder / f"{split}_{i}.mp4", seed=0, split=split, index=i)
        (folder / f"{split}.csv").write_text("".join(f"{split}_{i}.mp4 {i % 8}\n" for i in range(count)))
    (folder / "test.csv").write_text((folder / "val.csv").read_text())
    (folder / "class_names.txt").write_text("\n".join(CLASS_NAMES) + "\n")
    return folder


@pytest.fixture
def experiment(videos, tmp_path) -> Path:
    """Return the path of a small experiment; its output goes to <tmp_path>/out."""
    path = tmp_path / "config.yaml"
    path.write_text(EXPERIMENT.format(data=videos, out=tmp_path / "out"))
    return path


@pytest.fixture(scope="session")
def run_net(warm) -> Callable[..., subprocess.CompletedProcess]:
    """Run tools/run_net.py in a new process; it has to end well.

    `torchrun` is a number of processes under torchrun, `ranks` of processes as torchrun or Slurm start them.
    """

    def start(arguments: list[str], environment: Mapping[str, str]) -> subprocess.CompletedProcess:
        with (
            tempfile.TemporaryFile("w+") as out,
            tempfile.TemporaryFile("w+") as err,
            socket.socket(socket.AF_UNIX) as server,
        ):
            server.connect(warm)
            message = json.dumps((arguments, {**ENVIRONMENT, **environment}, str(ROOT))).encode()
            socket.send_fds(server, [message], [out.fileno(), err.fileno()])
            code = int(server.recv(100))
            out.seek(0)
            err.seek(0)
            return subprocess.CompletedProcess(arguments, code, out.read(), err.read())

    def run(config: Path, *overrides: object, torchrun: int = 0, ranks: int = 0) -> subprocess.CompletedProcess:
        arguments = ["tools/run_net.py", "--cfg", str(config), *map(str, overrides)]
        if torchrun:
            launcher = ["-m", "torch.distributed.run", "--standalone", f"--nproc_per_node={torchrun}"]
            command = [sys.executable, *launcher, *arguments]
            done = [subprocess.run(command, cwd=ROOT, env=ENVIRONMENT, capture_output=True, text=True)]
        elif ranks:
            place = {"MASTER_ADDR": "127.0.0.1", "MASTER_PORT": str(free_ports(1)[0])}
            place |= {"WORLD_SIZE": str(ranks), "LOCAL_WORLD_SIZE": str(ranks)}
            with ThreadPoolExecutor() as pool:
                environments = [place | {"RANK": str(rank), "LOCAL_RANK": str(rank)} for rank in range(ranks)]
                done = [*pool.map(partial(start, arguments), environments)]
        else:
            done = [start(arguments, {})]
        assert not any(process.returncode for process in done), "".join(p.stdout + p.stderr for p in done)
        return done[0]

    return run
