"""Check the installation and the machine, and print one block for a bug report: slowfast-doctor."""

from __future__ import annotations

import copy
import os
import platform
import re
import shutil
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterator
from datetime import timedelta
from functools import partial
from pathlib import Path
from typing import NamedTuple

import av
import cv2
import numpy as np
import torch
import torch.distributed as dist
from torch import nn

from slowfast.config.extensions import FAULTS
from slowfast.datasets.backends import BACKENDS, check_backend
from slowfast.datasets.reader import read_frames
from slowfast.engine.setup import layout
from slowfast.models.depthwise import depthwise_conv
from slowfast.utils.environment import environment, package_version
from slowfast.utils.io import Parser, guarded

OK, NOTE, BROKEN = "ok", "note", "BROKEN"
LIMIT = 90.0  # seconds for the processes of a check
SMALL = {"/dev/shm": 1 << 28, ".": 5 << 30}  # folder -> free bytes below which its finding is a note
WRONG = 3e-2  # relative error of a bfloat16 convolution that is a fault, not rounding


class Finding(NamedTuple):
    """The result of a check."""

    state: str
    text: str


def versions() -> Iterator[Finding]:
    """Yield the versions of programs and packages, and whether the pairs fit."""
    for name, value in environment().items():
        yield Finding(OK, f"{name}: {value}")
    try:
        import torchvision

        torchvision.ops.nms(torch.zeros(1, 4), torch.zeros(1), 0.5)
    except (ImportError, RuntimeError, AttributeError) as error:
        line = str(error).partition("\n")[0]
        yield Finding(BROKEN, describe_pair(package_version("torch"), package_version("torchvision"), line))


def own_modules() -> Iterator[Finding]:
    """Yield the modules in SLOWFAST_IMPORT that cannot be imported."""
    yield from (Finding(BROKEN, fault) for fault in FAULTS)


def describe_pair(torch_version: str, torchvision_version: str, reason: str) -> str:
    """Return why torch and torchvision do not work together, and the cure."""
    build = torch_version.partition("+")[2]
    numbers = [re.match(r"(\d+)\.(\d+)", text) for text in (torch_version, torchvision_version)]
    (torch_major, torch_minor), (major, minor) = [tuple(map(int, n.groups())) if n else (0, 0) for n in numbers]
    matches = (torch_major, major, minor) == (2, 0, torch_minor + 15)  # 2.8 with 0.23, 2.14 with 0.29
    fault = "have matching versions, but builds that do not fit" if matches else "are not a matching pair"
    index = f" --index-url https://download.pytorch.org/whl/{build}" * bool(re.fullmatch(r"cpu|cu\d+", build))
    cure = f"pip install --force-reinstall torch torchvision{index}"
    return f"torch {torch_version} and torchvision {torchvision_version} {fault} ({reason}): {cure}"


def devices() -> Iterator[Finding]:
    """Yield each GPU, and whether bfloat16 convolutions are right; some releases of cuDNN and oneDNN are wrong."""
    if not torch.cuda.is_available():
        driver = shutil.which("nvidia-smi")
        built = "this PyTorch is built without CUDA" if torch.version.cuda is None else "PyTorch finds no GPU"
        yield Finding(BROKEN if driver and torch.version.cuda else NOTE, f"{built}: NUM_GPUS 0 runs on the CPU")
    for number in range(torch.cuda.device_count()):
        free, total = torch.cuda.mem_get_info(number)
        name = torch.cuda.get_device_name(number)
        yield Finding(OK, f"GPU {number}: {name}, {free / 2**30:.1f} of {total / 2**30:.1f} GiB are free")
    device = torch.device("cuda" if torch.cuda.is_available() else "cpu")
    layers = {"convolutions": nn.Conv3d(64, 64, 3, padding=1), "depthwise convolutions": depthwise_conv(64, 5, ndim=3)}
    for words, layer in layers.items():
        error = rounding_error(layer, device, torch.bfloat16)
        cure = "float16" if device.type == "cuda" else "auto, which is float32 on the CPU"
        wrong = f", which is wrong: train with TRAIN.AMP_DTYPE {cure}" * (not error <= WRONG)
        text = f"3D {words} in bfloat16 on the {device.type}: relative error {error:.1g}{wrong}"
        yield Finding(NOTE if wrong else OK, text)


def rounding_error(layer: nn.Module, device: torch.device, low: torch.dtype) -> float:
    """Return the largest error of a layer and of the gradient of its kernel, relative to their largest value.

    In PyTorch 2.14, the gradient of a 5x5x5 kernel is wrong in bfloat16 on CPUs, in channels last. The networks have
    only depthwise convolutions of this size, which compute their gradients in another way: give the layer of a network.
    """
    results: list[list[torch.Tensor]] = []
    clips = torch.randn(2, 64, 4, 14, 14, generator=torch.Generator().manual_seed(0))
    for dtype in (torch.float32, low):
        used = copy.deepcopy(layer).to(device, dtype).to(memory_format=layout(ndim=5))  # pyright: ignore[reportCallIssue]
        out = used(clips.to(device, dtype).contiguous(memory_format=layout(ndim=5)))
        out.float().square().sum().backward()
        results.append([out.detach().float(), *(p.grad.float() for p in used.parameters() if p.grad is not None)])
    pairs = zip(*results, strict=True)
    return max(float((half - exact).abs().max() / exact.abs().max()) for exact, half in pairs)


def decoders() -> Iterator[Finding]:
    """Yield the time per clip of each decoder on a video that is made here."""
    with tempfile.TemporaryDirectory(prefix="slowfast_doctor_") as folder:
        path = Path(folder) / "video.mp4"
        write_video(path)
        reference = read_frames(str(path), spread)
        for backend in BACKENDS:
            try:
                check_backend(backend)
                frames = read_frames(str(path), spread, backend=backend)
                seconds = min(
                    timed(lambda backend=backend: read_frames(str(path), spread, backend=backend)) for _ in "123"
                )
            except ValueError as error:
                yield Finding(BROKEN if backend == "pyav" else NOTE, str(error))
            else:
                equal = np.array_equal(frames, reference)
                text = f"decoder {backend}: {1000 * seconds:.0f} ms per clip of 8 frames of 10 s, 340x256"
                yield Finding(OK if equal else BROKEN, text + ", other frames than pyav" * (not equal))
    yield Finding(OK, f"OpenCV: {cv2.getNumThreads()} threads here; the package uses one per process")


def spread(length: int) -> list[int]:
    """Return 8 evenly spaced frames."""
    return [(2 * k + 1) * length // 16 for k in range(8)]


def timed(call: Callable[[], object]) -> float:
    """Return the seconds that a call takes."""
    start = time.perf_counter()
    call()
    return time.perf_counter() - start


def write_video(path: Path) -> None:
    """Write 10 seconds of moving noise, H.264 with a key frame per second."""
    still = np.random.default_rng(0).integers(0, 255, (16, 22, 3), np.uint8)
    still = cv2.resize(still, (680, 512), interpolation=cv2.INTER_CUBIC).astype(np.uint8)
    with av.open(str(path), "w") as container:
        stream = container.add_stream("libx264", rate=30)
        assert isinstance(stream, av.VideoStream)
        stream.width, stream.height, stream.pix_fmt = 340, 256, "yuv420p"
        stream.options = {"preset": "veryfast", "g": "30", "threads": "1"}
        for number in range(300):
            image = np.ascontiguousarray(still[number % 250 :][:256, number : number + 340])
            container.mux(stream.encode(av.VideoFrame.from_ndarray(image, format="rgb24")))
        container.mux(stream.encode())


def collectives() -> Iterator[Finding]:
    """Yield whether processes of this machine can add tensors: by gloo, and by NCCL with up to two GPUs."""
    wanted = {"gloo": 2} | ({"nccl": min(2, torch.cuda.device_count())} if torch.cuda.is_available() else {})
    for backend, processes in wanted.items():
        with tempfile.TemporaryDirectory(prefix="slowfast_doctor_") as folder:
            try:
                seconds = timed(partial(torch.multiprocessing.spawn, add, (backend, processes, folder), processes))
            except Exception as error:  # of any layer: the network, the driver, the other process
                line = str(error).strip().rpartition("\n")[2]
                yield Finding(BROKEN, f"all-reduce by {backend}, {processes} processes: {line}")
            else:
                yield Finding(OK, f"all-reduce by {backend}, {processes} processes: {seconds:.1f} s with their start")


def add(rank: int, backend: str, processes: int, folder: str) -> None:
    """Check the sum over all processes, in one of them."""
    store = dist.FileStore(str(Path(folder) / "store"), processes)
    dist.init_process_group(backend, store=store, rank=rank, world_size=processes, timeout=timedelta(seconds=LIMIT))
    device = torch.device("cuda", rank) if backend == "nccl" else torch.device("cpu")
    value = torch.full((1 << 20,), rank + 1.0, device=device)
    dist.all_reduce(value)
    expected = processes * (processes + 1) / 2
    if not bool((value == expected).all()):
        raise RuntimeError(f"the sum is {value[0].item()}, not {expected}")
    dist.destroy_process_group()


def machine() -> Iterator[Finding]:
    """Yield free space, the limit of open files, and Slurm."""
    for folder, least in SMALL.items():
        if not Path(folder).is_dir():
            continue
        free = shutil.disk_usage(folder).free
        name = Path(folder).resolve()
        if not os.access(folder, os.W_OK):
            yield Finding(BROKEN, f"{name} cannot be written")
        yield Finding(OK if free >= least else NOTE, f"{name}: {free / 2**30:.1f} GiB free")
    if platform.system() != "Windows":
        import resource

        files = resource.getrlimit(resource.RLIMIT_NOFILE)[0]
        cure = ": raise it with ulimit -n 4096" * (files < 1024)
        yield Finding(NOTE if cure else OK, f"open files: at most {files} per process{cure}")
    yield slurm()


def slurm() -> Finding:
    """Return the version of Slurm; it is broken if it fails within a job."""
    program, job = shutil.which("sinfo"), os.environ.get("SLURM_JOB_ID")
    if not program:
        return Finding(OK, "Slurm: not installed")
    done = subprocess.run([program, "--version"], capture_output=True, text=True, timeout=LIMIT)
    text = f"Slurm: {(done.stdout or done.stderr).strip().rpartition(chr(10))[2]}{f', in job {job}' if job else ''}"
    return Finding(OK if done.returncode == 0 else BROKEN if job else NOTE, text)


CHECKS = (versions, own_modules, devices, decoders, collectives, machine)


def execute() -> int:
    """Print all findings; return 0, or 1 if something is broken."""
    broken = 0
    print("```")
    for check in CHECKS:
        try:
            for state, text in check():
                broken += state == BROKEN
                print(f"{state:<7} {text}", flush=True)
        except Exception as error:  # the other checks are needed most when one fails
            broken += 1
            print(f"{BROKEN:<7} {check.__name__}: {type(error).__name__}: {error}", flush=True)
    print(f"{broken} broken\n```")
    return int(broken > 0)


def main() -> int:
    """Run the command line; return the code of `execute` or of `guarded`."""
    parser = Parser(description=__doc__, allow_abbrev=False)
    parser.parse_args()
    return guarded(execute)


if __name__ == "__main__":
    sys.exit(main())
