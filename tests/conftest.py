"""Threads, order of the tests, golden numbers (tests/golden/README.md) and the weights they were measured with."""

from __future__ import annotations

import fcntl
import gzip
import json
import logging
import os
import shutil
import signal
import subprocess
import sys
import zlib
from collections.abc import Callable, Iterator, Mapping
from functools import partial
from pathlib import Path
from typing import Any

import cv2
import numpy as np
import pytest
import torch
from torch import Tensor, nn

from slowfast.run import interrupt
from slowfast.weights.load import LoadReport

# Tests fork, and a fork of a process with a pool of threads may hang; test processes also share the cores.
torch.set_num_threads(1)
cv2.setNumThreads(0)
os.environ.setdefault("OMP_NUM_THREADS", "1")  # of child processes
os.environ["PYTHON_COLORS"] = "0"  # if FORCE_COLOR is set, Python 3.13 colours tracebacks, 3.14 also --help
# Tests start several hundred interpreters; without files of bytecode, each would compile the package.
os.environ.pop("PYTHONDONTWRITEBYTECODE", None)
sys.dont_write_bytecode = False

GOLDEN = Path(__file__).parent / "golden"
WORKER = "PYTEST_XDIST_WORKER" in os.environ
SERVER: list[subprocess.Popen] = []  # that of `warm`, if this process has started it
pytest_plugins = ["media_fixtures", "run_fixtures"]


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    items[:] = slow_first(items, int(os.environ.get("PYTEST_XDIST_WORKER_COUNT", 1)))
    if not torch.cuda.is_available():
        for item in items:
            if item.get_closest_marker("gpu"):
                item.add_marker(pytest.mark.skip(reason="needs a CUDA device"))


def slow_first(items: list[pytest.Item], processes: int) -> list[pytest.Item]:
    """Order tests so that each process of pytest begins with slow files, and ends with quick tests.

    A process starts with its equal part of the list, and takes tests from the end of those of another one when it has
    none left. In any other order, the last to finish is alone with slow tests.
    """
    files: dict[Path, list[pytest.Item]] = {}
    for item in items:
        if item.get_closest_marker("slow"):
            files.setdefault(item.path, []).append(item)
    quick = [item for item in items if not item.get_closest_marker("slow")]
    parts: list[list[pytest.Item]] = [[] for _ in range(processes)]
    for path in sorted(files, key=lambda path: ("slurm" not in path.parts, -len(files[path]))):
        min(parts, key=len).extend(files[path])
    ordered: list[pytest.Item] = []
    for number, part in enumerate(parts):
        size = (len(items) - len(ordered)) // (processes - number)
        ordered += [*part, *quick[: max(size - len(part), 0)]]
        del quick[: max(size - len(part), 0)]
    return ordered + quick


@pytest.fixture(autouse=True)
def signal_handlers() -> Iterator[None]:
    """Restore the signal handlers after the test, because a job in this process ignores signals when it is complete."""
    before = {number: signal.getsignal(number) for number in interrupt.SIGNALS}
    yield
    for number, handler in before.items():
        signal.signal(number, handler)


@pytest.fixture(autouse=True)
def package_logger() -> Iterator[logging.Logger]:
    """Restore the package's logger after the test, because a run in this process changes it."""
    logger = logging.getLogger("slowfast")
    handlers, level = logger.handlers[:], logger.level
    logger.propagate = True  # a fixture of the module may have run a program before
    yield logger
    for handler in logger.handlers:
        if handler not in handlers:
            handler.close()
    logger.handlers[:], logger.propagate, logger.level = handlers, True, level


@pytest.fixture(scope="session")
def golden() -> Callable[[str], Any]:
    """Read tests/golden/<name>, a JSON (plain or compressed) or NPZ file."""

    def read(name: str) -> Any:
        if name.endswith(".npz"):
            return dict(np.load(GOLDEN / name))
        if name.endswith(".gz"):
            return json.loads(gzip.decompress((GOLDEN / name).read_bytes()))
        return json.loads((GOLDEN / name).read_text(encoding="utf-8"))

    return read


@pytest.fixture
def graphs(monkeypatch: pytest.MonkeyPatch) -> Iterator[list[Any]]:
    """Let torch.compile make graphs, which are listed, and run them without the slow compiler."""
    made: list[Any] = []
    backend = partial(torch.compile, backend=lambda graph, _: made.append(graph) or graph.forward)
    monkeypatch.setattr(torch, "compile", backend)
    yield made
    torch._dynamo.reset()


def golden_tensor(key: str, shape: tuple[int, ...]) -> Tensor:
    """Return the value of the state_dict entry `key`: one seed per name, scaled by the kind of parameter."""
    z = np.asarray(np.random.RandomState(zlib.crc32(key.encode()) & 0xFFFFFFFF).standard_normal(shape))
    if key.endswith("num_batches_tracked"):
        value = np.zeros(shape)
    elif key.endswith("running_mean"):
        value = 0.1 * z
    elif key.endswith("running_var"):
        value = 1 + 0.2 * np.abs(z)
    elif key.endswith(("gamma_1", "gamma_2")):
        value = 0.5 + 0.1 * z
    elif len(shape) <= 1:
        value = 1 + 0.1 * z if key.endswith("weight") else 0.05 * z
    elif key.endswith(("positional_embedding", "temporal_cls_token")):
        value = 0.05 * z
    else:
        value = (1.0 if len(shape) == 2 else 0.5) * z / np.sqrt(np.prod(shape[1:]))
    return torch.from_numpy(np.asarray(value, dtype=np.float32))


@pytest.fixture(scope="session")
def golden_state() -> Callable[[Mapping[str, Tensor]], dict[str, Tensor]]:
    """Deterministic values for every entry of a state_dict."""
    return lambda state: {key: golden_tensor(key, tuple(value.shape)).to(value.dtype) for key, value in state.items()}


@pytest.fixture(scope="session")
def fill_rest(golden_state) -> Callable[[nn.Module, LoadReport], None]:
    """Set the tensors of a network that a load did not set, to the values of `golden_state`."""

    def fill(model: nn.Module, report: LoadReport) -> None:
        copied = {*report.loaded, *report.inflated, *report.interpolated}
        rest = {key: value for key, value in model.state_dict().items() if key not in copied}
        model.load_state_dict(golden_state(rest), strict=False)

    return fill


@pytest.fixture(scope="session")
def golden_input() -> Callable[..., Tensor]:
    """Draw standard normal input from a seed and a shape."""
    return lambda seed, shape: torch.from_numpy(np.random.RandomState(seed).standard_normal(shape).astype(np.float32))


@pytest.fixture(scope="session")
def assert_golden(golden_state, golden_input) -> Callable[..., None]:
    """Compare the model that `build` makes, with deterministic weights: logits, and the stages that the variant names.

    `official_layout` takes the name of a stage and its output, and returns the output as the official module does.

    The model is built on the meta device, because drawing initial values takes longer than the forward pass.
    """

    def check(
        build: Callable[[], nn.Module],
        variant: Mapping[str, Any],
        expected: np.ndarray,
        official_layout: Callable[[str, Any], Any] = lambda _stage, out: out,
    ) -> None:
        with torch.device("meta"):
            model = build().eval()
        model.load_state_dict(golden_state(model.state_dict()), assign=True)
        outputs: dict[str, Any] = {}
        for stage in variant.get("stages", {}):
            module = model.get_submodule(stage.split(":")[0])
            module.register_forward_hook(lambda _m, _i, out, s=stage: outputs.__setitem__(s, out))
        with torch.no_grad():
            logits = model(golden_input(variant["input_seed"], variant["input_shape"]))[0].numpy()
        assert np.abs(logits - expected).max() <= 1e-5 * np.abs(expected).max()
        for stage, reference in variant.get("stages", {}).items():
            out, tolerance = official_layout(stage, outputs[stage]), 1e-4 * reference["std"]
            if isinstance(out, tuple):  # the blocks of light networks: (map, class token, scores)
                out = out[1] if stage.endswith(":cls_token") else out[0]
            assert list(out.shape) == reference["shape"], stage
            assert out.mean().item() == pytest.approx(reference["mean"], abs=tolerance), stage
            assert out.std(correction=0).item() == pytest.approx(reference["std"], abs=tolerance), stage
            assert out.flatten()[:8].tolist() == pytest.approx(reference["first8"], abs=tolerance), stage

    return check


@pytest.fixture(scope="session")
def made_once(tmp_path_factory) -> Callable[[str, Callable[[Path], object]], Path]:
    """Make a folder once for all processes of pytest; tests must not change it.

    `made_once(name, make)` calls `make(folder)` in the first process that needs the folder, and returns its path.
    """
    base = tmp_path_factory.getbasetemp()
    base = base.parent if WORKER else base

    def get(name: str, make: Callable[[Path], object]) -> Path:
        folder, made = base / name, base / f"{name}.made"
        with open(base / f"{name}.lock", "w") as lock:
            fcntl.flock(lock, fcntl.LOCK_EX)
            if not made.exists():
                shutil.rmtree(folder, ignore_errors=True)
                folder.mkdir()
                make(folder)
                made.touch()
        return folder

    return get


@pytest.fixture(scope="session")
def warm(made_once) -> str:
    """Address of a server that forks processes with all imports done (tests/warm.py), one for all processes of pytest.

    It ends with pytest.
    """

    def start(folder: Path) -> None:
        root = Path(__file__).parents[1]
        environment = {**os.environ, "OMP_NUM_THREADS": "1", "PYTHONPATH": str(root)}
        owner = os.getppid() if WORKER else os.getpid()
        command = [sys.executable, str(root / "tests" / "warm.py"), str(folder / "socket"), str(owner)]
        SERVER.append(subprocess.Popen(command, cwd=root, env=environment, stdout=subprocess.PIPE, text=True))
        stdout = SERVER[0].stdout
        assert stdout and stdout.readline() == "ready\n"

    return str(made_once("warm", start) / "socket")
