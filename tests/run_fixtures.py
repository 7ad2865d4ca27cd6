"""A small data set of real videos, a small experiment, and how to run it in real processes."""

from __future__ import annotations

import importlib
import json
import multiprocessing.context
import os
import select
import socket
import subprocess
import sys
import tempfile
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from types import ModuleType
from typing import IO, Any

import pytest
from cluster import free_ports
from make_demo_data import CLASS_NAMES, write_video

from slowfast.utils.io import guarded
from slowfast.utils.logging import read_metrics

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
DATA_LOADER: {{NUM_WORKERS: 0, DECODE_TIMEOUT: 0}}
"""
# A program in place of `python`, which forks Python files, `-c` and `-m pytest` from the server of tests/warm.py.
PYTHON = """#!{executable} -SE
import json, os, re, socket, sys

arguments = sys.argv[1:]
if arguments[:1] == ["-c"]:
    path = os.path.join({folder!r}, f"command_{{os.getpid()}}.py")
    with open(path, "w") as file:
        file.write(arguments[1])
    arguments[:2] = [path]
elif arguments[:2] == ["-m", "pytest"]:
    arguments[:2] = [{pytest!r}]
if not arguments or not arguments[0].endswith(".py"):
    os.execv({executable!r}, [{executable!r}, *arguments])
for pattern, flags, pairs in {smaller!r}:
    if re.search(pattern, " ".join(arguments)):
        given = {{argument.partition("=")[0] for argument in arguments}}
        new = [text for key, value in pairs.items() if key not in given for text in (key, value)]
        arguments += flags + new
        break
with socket.socket(socket.AF_UNIX) as server:
    server.connect({address!r})
    options = [*{options!r}]
    if "run_net" not in arguments[0] or re.search({pictures!r}, " ".join(arguments)):
        options.append("pictures")
    request = (arguments, dict(os.environ), os.getcwd(), 0, options)
    socket.send_fds(server, [json.dumps(request).encode()], [1, 2])
    _process, code = server.makefile()
    sys.exit(int(code))
"""


def losses(output_dir: Path) -> list[float]:
    """Return the loss of each training record of a run."""
    return [record["loss"] for record in read_metrics(output_dir) if record["kind"] == "train"]


def write_python(
    path: Path,
    address: str,
    smaller: Sequence[tuple[str, list[str], dict[str, str]]] = (),
    fresh: bool = False,
    pictures: str = "$^",
) -> None:
    """Write a program to use as `python`.

    Args:
        path: file to write.
        address: of the server of tests/warm.py.
        smaller: pattern of a command line, and the flags and KEY VALUE pairs to add to it; the first row that fits.
        fresh: whether programs import the package from PYTHONPATH instead of from this checkout.
        pictures: pattern of the command lines of runs that draw their curves and report.
    """
    path.unlink(missing_ok=True)
    rows = [tuple(row) for row in smaller]
    options = ["fresh"] * fresh
    values = {"smaller": rows, "address": address, "options": options, "pictures": pictures}
    own_pytest = str(Path(pytest.__file__).with_name("__main__.py"))
    path.write_text(PYTHON.format(executable=sys.executable, folder=str(path.parent), pytest=own_pytest, **values))
    path.chmod(0o755)


def run_command(name: str, *arguments: object) -> int:
    """Run a program of `slowfast.inference` in this process, as its console command does; return the exit code."""
    program = importlib.import_module(f"slowfast.inference.{name}")
    return guarded(lambda: program.execute(program.parse_args([*map(str, arguments)])))


@pytest.fixture
def run_here(monkeypatch, capsys) -> Callable[..., subprocess.CompletedProcess]:
    """Run a program of tools/, a module, in this process; return its exit code and its output."""

    def run(program: ModuleType, *arguments: object) -> subprocess.CompletedProcess:
        command = [program.__name__, *map(str, arguments)]
        monkeypatch.setattr(sys, "argv", command)
        try:
            code = program.main()
        except SystemExit as end:  # argparse
            code = int(end.code or 0)
        return subprocess.CompletedProcess(command, code, *capsys.readouterr())

    return run


@pytest.fixture(scope="session")
def videos(made_once) -> Path:
    """24 training and 7 test videos with lists and class names."""
    return made_once("videos", make_videos)


def make_videos(folder: Path) -> None:
    for split, count in (("train", 24), ("val", 7)):
        for i in range(count):
            write_video(folder / f"{split}_{i}.mp4", seed=0, split=split, index=i)
        (folder / f"{split}.csv").write_text("".join(f"{split}_{i}.mp4 {i % 8}\n" for i in range(count)))
    (folder / "test.csv").write_text((folder / "val.csv").read_text())
    (folder / "class_names.txt").write_text("\n".join(CLASS_NAMES) + "\n")


@pytest.fixture
def experiment(videos, tmp_path) -> Path:
    """Return the path of a small experiment; its output goes to <tmp_path>/out."""
    path = tmp_path / "config.yaml"
    path.write_text(EXPERIMENT.format(data=videos, out=tmp_path / "out"))
    return path


class Forked:
    """A process of the server of tests/warm.py, with the parts of `subprocess.Popen` that tests use."""

    def __init__(self, connection: socket.socket) -> None:
        self._answers = connection.makefile("r")
        self._connection = connection
        self.pid = int(self._answers.readline())
        self.returncode: int | None = None

    def poll(self) -> int | None:
        if self.returncode is None and select.select([self._connection], [], [], 0)[0]:
            self.wait()
        return self.returncode

    def wait(self, timeout: float | None = None) -> int:
        if self.returncode is None:
            if not select.select([self._connection], [], [], timeout)[0]:
                raise subprocess.TimeoutExpired(str(self.pid), timeout or 0)
            self.returncode = int(self._answers.readline())
            self._connection.close()
        return self.returncode


@pytest.fixture(scope="session")
def fork(warm) -> Callable[..., Forked]:
    """Start a program in a new session, in a process with all imports done.

    `fork(arguments, out, err)` writes to these files. `ranks` is a number of processes, as torchrun would start them;
    `options` are those of tests/warm.py: "fresh", "pictures" and "spawn".
    """

    def start(
        arguments: Sequence[object],
        out: IO[Any],
        err: IO[Any],
        ranks: int = 0,
        environment: Mapping[str, str] = {},
        folder: Path = ROOT,
        options: Sequence[str] = (),
    ) -> Forked:
        environment = {**ENVIRONMENT, **environment}
        if ranks:
            environment |= {"MASTER_ADDR": "127.0.0.1", "MASTER_PORT": str(free_ports(1)[0])}
        server = socket.socket(socket.AF_UNIX)
        server.connect(warm)
        options = [*options, *["pictures"] * ("run_net" not in str(arguments[0]))]
        request = ([*map(str, arguments)], environment, str(folder), ranks, options)
        socket.send_fds(server, [json.dumps(request).encode()], [out.fileno(), err.fileno()])
        return Forked(server)

    return start


@pytest.fixture
def forks(monkeypatch: pytest.MonkeyPatch) -> None:
    """Fork the processes that this process would spawn, because a new interpreter takes longer than their work."""
    spawn: Any = multiprocessing.get_context("fork")
    monkeypatch.setitem(multiprocessing.context._concrete_contexts, "spawn", spawn)  # pyright: ignore


@pytest.fixture(scope="session")
def call(fork) -> Callable[..., subprocess.CompletedProcess]:
    """Run a program as `fork` does, and return its exit code and its output."""

    def run(*arguments: object, **options: Any) -> subprocess.CompletedProcess:
        with tempfile.TemporaryFile("w+") as out, tempfile.TemporaryFile("w+") as err:
            code = fork(arguments, out, err, **options).wait()
            out.seek(0)
            err.seek(0)
            return subprocess.CompletedProcess([*map(str, arguments)], code, out.read(), err.read())

    return run


@pytest.fixture(scope="session")
def run_net(call) -> Callable[..., subprocess.CompletedProcess]:
    """Run tools/run_net.py in a new process, and check that it exits with code 0.

    `ranks` is a number of processes, as torchrun or Slurm start them; `options` are those of tests/warm.py.
    """

    def run(
        config: Path, *overrides: object, ranks: int = 0, options: Sequence[str] = ()
    ) -> subprocess.CompletedProcess:
        done = call("tools/run_net.py", "--cfg", config, *overrides, ranks=ranks, options=options)
        assert done.returncode == 0, done.stdout + done.stderr
        assert "is not complete" not in done.stderr  # a fault of the pictures is only a warning
        return done

    return run
