"""Export a trained network: slowfast-export SOURCE --format onnx|torch-export|safetensors --out FILE."""

from __future__ import annotations

import argparse
import copy
import importlib.util
import json
import logging
import math
import os
import statistics
import time
import warnings
from collections.abc import Callable, Generator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import load_file, save_file
from torch import Tensor, nn

from slowfast.datasets.sampling import DenseSampler
from slowfast.engine.setup import compile_blocks
from slowfast.inference.command import add_configuration, load_network
from slowfast.inference.network import Network
from slowfast.models.build import input_shape, sums_softmax
from slowfast.utils.io import Parser, atomic_path, check_output
from slowfast.weights.class_order import AS_LISTED

ENDINGS = {"onnx": ".onnx", "torch-export": ".pt2", "safetensors": ".safetensors"}
PACKAGES = ("onnx", "onnxruntime", "onnxscript")  # that ONNX needs
TRACED, CHECKED = 2, (1, 3)  # clips in the traced batch, and in those that are compared
LIMIT = 1e-4  # of the largest difference of logits, as a share of the largest logit
ONNX_BYTES = 2**31  # more parameters do not fit into one ONNX file
ROUNDS = 9  # of the measured latency
INPUT, OUTPUT, METADATA = "clips", "logits", "metadata.json"

Runner = Callable[[Tensor], Tensor]  # clips (B, C, T, H, W) -> logits (B, K)


def metadata(net: Network) -> dict[str, Any]:
    """Return what a program needs besides the tensors: class names, and how clips are made."""
    data, test, softmax = net.cfg.DATA, net.cfg.TEST, sums_softmax(net.cfg)
    by_class = data.MULTI_LABEL or (net.cfg.MODEL.LOSS_FUNC.startswith("bce") and not softmax)
    values: dict[str, Any] = {
        "class_names": net.class_names,
        "class_order": getattr(net.model, "class_order", AS_LISTED[0]),
        "network": net.cfg.MODEL.MODEL_NAME,
        "shape": input_shape(net.cfg),
        "mean": data.MEAN,
        "std": data.STD,
        "channel_order": net.channel_order,
        "activation": "sigmoid" if by_class else "softmax",
    }
    if not net.is_image:
        dense = isinstance(net.views_of_video.reader.sampler, DenseSampler)
        values |= {"sampling": "dense", "sampling_rate": data.SAMPLING_RATE} if dense else {"sampling": "sparse"}
        values |= {"views": test.NUM_ENSEMBLE_VIEWS, "crops": test.NUM_SPATIAL_CROPS}
        values |= {"ensemble": "probabilities" if data.MULTI_LABEL or softmax else "logits"}
        values |= {"ensemble_method": "mean" if data.ENSEMBLE_METHOD == "sum" else "max"}
    return values


def export_model(
    model: nn.Module, shape: Sequence[int], about: Mapping[str, Any], kind: str, path: str | os.PathLike[str]
) -> tuple[Runner, float]:
    """Write a network into a file, and compare the file with the network.

    The file takes any number of normalized clips. It appears complete and compared, or not at all.

    Args:
        model: the network on the CPU, in evaluation mode.
        shape: (C, T, H, W) of a clip, or (C, H, W) of an image.
        about: metadata, of values that JSON has.
        kind: a key of `ENDINGS`.
        path: of the file; the ending is that of the kind.

    Returns:
        The network of the file, and the largest difference of logits as a share of the largest logit.

    Raises:
        ValueError: a package is missing, or the file differs from the network by more than `LIMIT`.
    """
    write, read = {
        "onnx": (_write_onnx, _read_onnx),
        "torch-export": (_write_program, _read_program),
        "safetensors": (lambda model, _, about, part: write_tensors(model, about, part), _read_tensors),
    }[kind]
    with atomic_path(path) as part, torch.no_grad():
        write(model, torch.randn(TRACED, *shape), about, part)
        runner = read(model, part)
        errors = [_difference(model, runner, torch.randn(count, *shape)) for count in CHECKED]
        error = torch.tensor(errors, dtype=torch.float64).max().item()  # not a number if one of them is not
        if not error <= LIMIT:
            raise ValueError(
                f"the logits of the {kind} file differ from those of the network by a share of {error:.1e}, above "
                f"{LIMIT}, so nothing was written: choose another --format"
            )
    return runner, error


def _difference(model: nn.Module, runner: Runner, clips: Tensor) -> float:
    expected = model(clips)
    return ((runner(clips) - expected).abs().max() / expected.abs().max().clamp_min(1e-9)).item()


def write_tensors(model: nn.Module, about: Mapping[str, Any], path: Path) -> None:
    """Write the tensors of a network as safetensors with metadata, which `slowfast.load` reads."""
    tensors = {name: value.detach().cpu().contiguous() for name, value in model.state_dict().items()}
    save_file(tensors, path, {"format": "pt", **_as_json(about)})


def _as_json(about: Mapping[str, Any]) -> dict[str, str]:
    return {name: json.dumps(value) for name, value in about.items()}


def _read_tensors(model: nn.Module, path: Path) -> Runner:
    copied = copy.deepcopy(model)
    copied.load_state_dict(load_file(path))
    return copied


def _program(model: nn.Module, clips: Tensor) -> torch.export.ExportedProgram:
    program = torch.export.export(model, (clips,), dynamic_shapes=({0: torch.export.Dim("batch", min=1)},))
    for node in program.graph.nodes:
        node.meta.pop("stack_trace", None)  # it contains paths of this machine
    return program


def _write_program(model: nn.Module, clips: Tensor, about: Mapping[str, Any], path: Path) -> None:
    with _quiet():
        torch.export.save(_program(model, clips), path, extra_files={METADATA: json.dumps(about)})


def _read_program(model: nn.Module, path: Path) -> Runner:
    return torch.export.load(path).module()


def _write_onnx(model: nn.Module, clips: Tensor, about: Mapping[str, Any], path: Path) -> None:
    if missing := [name for name in PACKAGES if importlib.util.find_spec(name) is None]:
        raise ValueError(
            f"ONNX needs {', '.join(PACKAGES)}, and {missing[0]} is missing: pip install {' '.join(missing)}"
        )
    if (size := sum(value.numel() * value.element_size() for value in model.state_dict().values())) > ONNX_BYTES:
        raise ValueError(
            f"the {size / 2**30:.1f} GiB of parameters exceed 2 GiB, the limit of ONNX: use --format torch-export"
        )
    names: dict[str, Any] = {"input_names": [INPUT], "output_names": [OUTPUT], "dynamic_shapes": ({0: "batch"},)}
    with _quiet():
        program: Any = torch.onnx.export(_program(model, clips), (clips,), dynamo=True, verbose=False, **names)
    program.model.metadata_props.update(_as_json(about))
    program.save(path, external_data=False)


@contextmanager
def _quiet() -> Generator[None]:
    """Hide what the exporter reports about its own work."""
    logger = logging.getLogger("onnxscript")
    level = logger.level
    try:
        logger.setLevel(logging.ERROR)
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            yield
    finally:
        logger.setLevel(level)


def _read_onnx(model: nn.Module, path: Path) -> Runner:
    import onnxruntime  # optional, and slow to import

    options = onnxruntime.SessionOptions()
    options.intra_op_num_threads = torch.get_num_threads()
    session = onnxruntime.InferenceSession(path, options, providers=["CPUExecutionProvider"])
    return lambda clips: torch.from_numpy(session.run(None, {INPUT: clips.numpy()})[0])


@torch.no_grad()
def latency(runners: Mapping[str, Runner], clips: Tensor) -> dict[str, float]:
    """Return the median milliseconds that each network takes for clips; their rounds are interleaved."""
    seconds: dict[str, list[float]] = {name: [] for name in runners}
    for number in range(1 + ROUNDS):
        for name, runner in runners.items():
            begin = time.perf_counter()
            runner(clips)
            if number:  # the first round compiles, or allocates memory
                seconds[name].append(time.perf_counter() - begin)
    return {name: 1000 * statistics.median(values) for name, values in seconds.items()}


def parse_args(argv: Sequence[str] | None = None) -> argparse.Namespace:
    """Parse the command line."""
    parser = Parser(prog="slowfast-export", description=__doc__, allow_abbrev=False)
    parser.add_argument("weights", metavar="SOURCE", help="network: OUTPUT_DIR, checkpoint, name, folder or hf://")
    parser.add_argument("--format", required=True, choices=ENDINGS, help="format of the file")
    parser.add_argument("--out", required=True, metavar="FILE", help="file to write")
    parser.add_argument("--compile", action="store_true", help="also measure the network compiled")
    parser.set_defaults(device="cpu")
    add_configuration(parser)
    return parser.parse_args(argv)


def execute(args: argparse.Namespace) -> int:
    """Export what a command line says; return the exit code."""
    if not args.out.endswith(ENDINGS[args.format]):
        raise ValueError(f"--out {args.out} must end in {ENDINGS[args.format]} for --format {args.format}")
    check_output(args.out, "--out")
    net = load_network(args)
    runner, error = export_model(net.model, input_shape(net.cfg), metadata(net), args.format, args.out)
    shape = ", ".join(["batch", *map(str, input_shape(net.cfg))])
    named = "with" if net.class_names else "without"
    size = math.ceil(os.path.getsize(args.out) / 1e5) / 10
    print(f"{args.out}: {size} MB, {INPUT} ({shape}), {named} class names")
    clips = " and ".join(map(str, CHECKED))
    print(f"its logits for {clips} clips differ from those of the network by a share of {error:.1e} (limit {LIMIT})")
    runners: dict[str, Runner] = {"eager": net.model}
    if args.compile:
        runners["compiled"] = copy.deepcopy(net.model)
        compile_blocks(runners["compiled"])
    if args.format != "safetensors":  # which contains no program
        runners[args.format] = runner
    times = latency(runners, torch.randn(1, *input_shape(net.cfg)))
    print(
        f"milliseconds for a clip with {torch.get_num_threads()} threads: "
        + ", ".join(f"{name} {value:.1f}" for name, value in times.items())
    )
    return 0
