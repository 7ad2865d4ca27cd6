"""Measure forward pass and training step of a network: python benchmarks/model.py uniformer_s --batch 4 --threads 1.

The network is a name for `create_model` or a folder in exp/. The reference computes it as the official modules do, see
benchmarks/reference.py. Both get the same weights and clips; logits, and gradients without random layers, are compared
first. Rounds are interleaved, so that a change of the machine's speed affects all networks equally; medians are
printed. On a CPU, "products" is the time of the matrix products of our network alone, one by one: an estimate of how
fast a program that computes the same products can be. CPU seconds are those of all threads. Memory is the peak during a
step, above what the networks and their optimizers hold before it: allocated bytes on a GPU, resident memory of the
process on a CPU (Linux only).
"""

from __future__ import annotations

import argparse
import copy
import ctypes
import statistics
import time
from collections import Counter
from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Any

import torch
from fvcore.common.config import CfgNode
from reference import reference
from torch import Tensor, nn
from torch.utils._python_dispatch import TorchDispatchMode

from slowfast.config import get_cfg, load_config
from slowfast.engine.setup import compile_blocks, place
from slowfast.models.build import build_model, input_shape
from slowfast.models.zoo import create_model, list_models
from slowfast.optim.build import build_optimizer
from slowfast.optim.losses import soft_cross_entropy
from slowfast.utils.environment import processor
from slowfast.utils.io import write_json
from slowfast.utils.profiling import count_flops, peak_memory

DTYPES = {"float32": None, "bfloat16": torch.bfloat16, "float16": torch.float16}
COPIES = ("copy_", "clone", "contiguous", "cat", "index", "Memcpy", "reorder", "elementwise_kernel<copy")


def make_network(name: str, frames: int, overrides: list[str]) -> tuple[nn.Module, tuple[int, ...], CfgNode]:
    """Return a network, the shape of its input, and the configuration of its optimizer."""
    torch.manual_seed(0)
    if name in list_models():
        if overrides:
            raise SystemExit(f"{overrides} are for an experiment, and {name} is a name of create_model: leave them out")
        model = create_model(name, num_frames=frames)
        return model, model.input_shape, get_cfg()
    cfg = load_config(f"exp/{name}/config.yaml", overrides)
    return build_model(cfg), input_shape(cfg), cfg


def synchronize(device: torch.device) -> None:
    """Wait until the device has finished."""
    if device.type == "cuda":
        torch.cuda.synchronize(device)


def peak_of_call(work: Callable[[], Any], device: torch.device) -> float:
    """Return the peak of additional GiB of one call, see `peak_memory`."""
    if device.type == "cuda":
        torch.cuda.reset_peak_memory_stats(device)
    elif (clear := Path("/proc/self/clear_refs")).exists():
        ctypes.CDLL(None).malloc_trim(0)  # pages that are free but not returned would hide what the step allocates
        clear.write_text("5")
    before = peak_memory(device)
    work()
    synchronize(device)
    return (peak_memory(device) - before) / 2**30


def timed(work: Callable[[], Any], device: torch.device) -> tuple[float, float]:
    """Return wall seconds and CPU seconds of one call."""
    if device.type == "cuda":  # release the memory of the previous network, and allocate that of this one
        torch.cuda.empty_cache()
        work()
    synchronize(device)
    wall, cpu = time.perf_counter(), time.process_time()
    work()
    synchronize(device)
    return time.perf_counter() - wall, time.process_time() - cpu


def matrix_rate(device: torch.device, dtype: torch.dtype | None) -> float:
    """Return the FLOP/s of a large matrix product, where a multiply-add is two."""
    side = 8192 if device.type == "cuda" else 1024
    a, b = (torch.randn(side, side, device=device, dtype=dtype or torch.float32) for _ in range(2))
    seconds = [timed(lambda: a @ b, device)[0] for _ in range(10)]
    return 2 * side**3 / statistics.median(seconds[3:])


class Subject:
    """A network with the inputs of its training step and its forward pass."""

    def __init__(self, model: nn.Module, cfg: CfgNode, clips: Tensor, dtype: torch.dtype | None) -> None:
        self.model, self.clips, self.dtype = model, clips, dtype
        self.network: Callable[[Tensor], Any] = model
        self.optimizer = build_optimizer(model, cfg)
        generator = torch.Generator().manual_seed(0)
        self.targets = torch.rand(len(clips), 2000, generator=generator).to(clips.device)

    def autocast(self) -> torch.autocast:
        return torch.autocast(self.clips.device.type, dtype=self.dtype, enabled=self.dtype is not None)

    def forward(self, mode: Callable[[], Any] = torch.inference_mode) -> Tensor:
        """Compute logits as a test does."""
        self.model.eval()
        with mode(), self.autocast():
            return self.network(self.clips)

    def backward(self) -> None:
        """Compute the gradients of a training step."""
        with self.autocast():
            outputs = self.network(self.clips)
            outputs = outputs if isinstance(outputs, tuple) else (outputs,)
            target = self.targets[:, : outputs[0].shape[1]]
            target = target / target.sum(1, keepdim=True)
            loss = torch.stack([soft_cross_entropy(logits, target) for logits in outputs]).mean()
        loss.backward()

    def train(self) -> None:
        """Take one optimizer step."""
        self.model.train()
        self.backward()
        nn.utils.clip_grad_norm_(self.model.parameters(), 20.0)
        self.optimizer.step()
        self.optimizer.zero_grad(set_to_none=True)

    def results(self) -> dict[str, Tensor]:
        """Return the logits of a test, and the gradient of a training step without random layers."""
        results = {"logits": self.forward().double()}
        self.model.train()
        for module in self.model.modules():
            if "Drop" in type(module).__name__:
                module.eval()
        statistics = {name: buffer.clone() for name, buffer in self.model.named_buffers()}
        self.backward()
        gradients = [p.grad.double().flatten() for _, p in sorted(self.model.named_parameters()) if p.grad is not None]
        results["gradient"] = torch.cat(gradients)
        self.model.zero_grad()
        for name, buffer in self.model.named_buffers():
            buffer.copy_(statistics[name])
        return results


class Products(TorchDispatchMode):
    """Count the matrix products that are computed, by shape: (batch, M, K, N) is `batch` products of M x K and K x N.

    A convolution without groups is one product, and so is each of its gradients; attention is two products in the
    forward pass, and four in the backward pass.
    """

    def __init__(self) -> None:
        super().__init__()
        self.shapes: Counter[tuple[int, int, int, int]] = Counter()

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        result = func(*args, **(kwargs or {}))
        name = func.overloadpacket.__name__.rstrip("_")  # addmm_ is addmm in place
        if name in ("mm", "bmm", "addmm", "baddbmm"):
            a, b = args[-2:]
            self.shapes[a.shape[0] if a.ndim == 3 else 1, a.shape[-2], a.shape[-1], b.shape[-1]] += 1
        elif name == "_linear_pointwise":
            self.shapes[1, args[0].shape[:-1].numel(), args[0].shape[-1], args[1].shape[0]] += 1
        elif name == "convolution" and args[8] == 1:
            self.shapes[self.convolution(result, args[1])] += 1
        elif name == "convolution_backward" and args[9] == 1:
            self.shapes[self.convolution(args[0], args[2])] += sum(args[10][:2])
        elif name.startswith("_scaled_dot_product"):
            q, k, v = args[1:4] if "backward" in name else args[:3]
            batch, (L, C), S, D = q.shape[:-2].numel(), q.shape[-2:], k.shape[-2], v.shape[-1]
            self.shapes[batch, L, C, S] += 2 if "backward" in name else 1
            self.shapes[batch, L, S, D] += 2 if "backward" in name else 1
        return result

    @staticmethod
    def convolution(outputs: Tensor, weight: Tensor) -> tuple[int, int, int, int]:
        """Return the shape of the product that computes a convolution; those of its gradients are as large."""
        return 1, outputs.numel() // outputs.shape[1], weight[0].numel(), outputs.shape[1]


def product_times(work: Callable[[], Any], dtype: torch.dtype | None) -> dict[str, float]:
    """Return wall seconds and CPU seconds of the matrix products of one call on a CPU, computed one by one."""
    with Products() as products:
        work()
    wall = cpu = 0.0
    for (batch, m, k, n), times in products.shapes.items():
        a = torch.randn(batch, m, k, dtype=dtype)
        b = torch.randn(batch, k, n, dtype=dtype)
        a, b = (a[0], b[0]) if batch == 1 else (a, b)
        runs = [timed(lambda a=a, b=b: a @ b, a.device) for _ in range(6)]
        wall += times * statistics.median(seconds for seconds, _ in runs[1:])
        cpu += times * statistics.median(seconds for _, seconds in runs[1:])
    return {"wall_s": wall, "cpu_s": cpu}


def differences(subjects: dict[str, Subject], limit: float) -> dict[str, dict[str, float]]:
    """Return the relative differences of logits and gradients to those of the first network; exit above the limit."""
    first, *others = subjects
    expected, errors = subjects[first].results(), {}
    for name in others:
        results = subjects[name].results()
        errors[name] = {key: float((results[key] - value).norm() / value.norm()) for key, value in expected.items()}
    if not all(error <= limit for found in errors.values() for error in found.values()):
        raise SystemExit(f"the networks differ: {errors}, more than {limit}")
    return errors


def profile(work: Callable[[], Any], device: torch.device) -> str:
    """Return a table of the operations that take most of the time, and the share of copies."""
    kinds = [torch.profiler.ProfilerActivity.CPU]
    kinds += [torch.profiler.ProfilerActivity.CUDA] if device.type == "cuda" else []
    with torch.profiler.profile(activities=kinds) as record:
        work()
        synchronize(device)
    key = "self_device_time_total" if device.type == "cuda" else "self_cpu_time_total"
    events = record.key_averages()
    total = sum(getattr(event, key) for event in events)
    copies = sum(getattr(event, key) for event in events if any(kind in event.key for kind in COPIES))
    table = events.table(sort_by=key, row_limit=15, max_name_column_width=60)
    return f"{table}\nshare of copies: {100 * copies / total:.1f} %"


def measure(subjects: dict[str, Subject], rounds: int, device: torch.device) -> dict[str, dict[str, Any]]:
    """Return the figures of each subject: medians over `rounds`, after a call that warms up, and one for the memory.

    The memory is not measured in a call whose time is taken: the pages that are returned before it must be cleared and
    mapped again, which does not happen in a training.
    """
    figures: dict[str, dict[str, Any]] = {}
    for kind in ("forward", "train"):
        works = {name: getattr(subject, kind) for name, subject in subjects.items()}
        first = {name: timed(work, device)[0] for name, work in works.items()}
        memory = {name: peak_of_call(work, device) for name, work in works.items()}
        runs: dict[str, list[tuple[float, float]]] = {name: [] for name in subjects}
        for _ in range(rounds + 1):  # the first one takes the memory again
            for name, work in works.items():
                runs[name].append(timed(work, device))
        for name, values in runs.items():
            wall, cpu = (statistics.median(column) for column in zip(*values[1:], strict=True))
            figures.setdefault(name, {})[kind] = {
                "clips_per_s": len(subjects[name].clips) / wall, "wall_s": wall, "cpu_s": cpu,
                "peak_gib": memory[name], "first_s": first[name],
            }  # fmt: skip
    return figures


def read_arguments() -> argparse.Namespace:
    """Return the arguments of the command line."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("network", help="name for create_model, such as uniformer_s, or folder in exp/")
    parser.add_argument("overrides", nargs="*", metavar="KEY VALUE", help="change values of the experiment")
    parser.add_argument("--batch", type=int, default=8, help="clips per step (default: 8)")
    parser.add_argument("--frames", type=int, default=8, help="frames per clip, for a name (default: 8)")
    parser.add_argument("--device", default="cuda" if torch.cuda.is_available() else "cpu")
    parser.add_argument("--dtype", choices=DTYPES, default="float32", help="type of autocast (default: float32)")
    parser.add_argument("--threads", type=int, default=torch.get_num_threads(), help="threads of a CPU (default: all)")
    parser.add_argument("--compile", action="store_true", help="also measure the compiled network")
    parser.add_argument("--rounds", type=int, default=7, help="counted rounds (default: 7)")
    parser.add_argument("--profile", action="store_true", help="print the operations that take most of the time")
    parser.add_argument("--json", type=Path, metavar="FILE", help="write the figures to a file")
    return parser.parse_intermixed_args()


def add_rates(figures: dict[str, dict[str, Any]], flops: float, rate: float) -> None:
    """Add what follows from the times: FLOP/s, its share of the matrix rate, and how many times the reference."""
    for kinds in figures.values():
        for kind, values in kinds.items():
            first = figures["reference"][kind]
            values["flop_per_s"] = values["clips_per_s"] * flops * (3 if kind == "train" else 1)
            values["share_of_matrix_rate"] = values["flop_per_s"] / rate
            values["times_reference"] = first["wall_s"] / values["wall_s"]
            values["times_reference_cpu"] = first["cpu_s"] / values["cpu_s"]


def main() -> None:
    """Measure, print a table, and write JSON."""
    args = read_arguments()
    device, dtype = torch.device(args.device), DTYPES[args.dtype]
    torch.set_num_threads(args.threads)
    model, shape, cfg = make_network(args.network, args.frames, args.overrides)
    flops = 2 * count_flops(model, 1, *shape)
    official = reference(model).to(device)
    place(model, device)
    clips = torch.randn(args.batch, *shape, generator=torch.Generator().manual_seed(0)).to(device)
    subjects = {"reference": Subject(official, cfg, clips, dtype), "ours": Subject(model, cfg, clips, dtype)}
    if args.compile:
        subjects["compiled"] = Subject(copy.deepcopy(model), cfg, clips, dtype)
        compile_blocks(subjects["compiled"].model)
    errors = differences(subjects, 1e-3 if dtype is None else 1e-1)

    rate = matrix_rate(device, dtype)
    figures = measure(subjects, args.rounds, device)
    add_rates(figures, flops, rate)
    products = {}
    if device.type == "cpu":  # on a GPU, the start of a single product takes longer than many products
        # in inference mode, operations such as `linear` would not be divided into products
        works = {"forward": partial(subjects["ours"].forward, torch.no_grad), "train": subjects["ours"].train}
        products = {kind: product_times(work, dtype) for kind, work in works.items()}
    card = torch.cuda.get_device_name(device) if device.type == "cuda" else f"CPU: {processor()}"
    print(f"{card}, {args.threads} threads, torch {torch.__version__}")
    print(f"{args.network}, {args.batch} x {shape}, {args.dtype}")
    for name, kinds in figures.items():
        for kind, values in kinds.items():
            print(
                f"  {name:<10}{kind:<8}{values['clips_per_s']:9.2f} clips/s {values['times_reference']:6.2f} x "
                f"{values['cpu_s']:8.3f} CPU s {values['times_reference_cpu']:6.2f} x {values['peak_gib']:7.2f} GiB "
                f"{100 * values['share_of_matrix_rate']:6.1f} % of the matrix rate"
            )
    for kind, values in products.items():
        times = figures["reference"][kind]["wall_s"] / values["wall_s"]
        print(f"  {'products':<10}{kind:<8}{'':18}{times:6.2f} x {values['cpu_s']:8.3f} CPU s")
    if args.json:
        record = {
            "network": args.network, "batch": args.batch, "input_shape": shape, "dtype": args.dtype, "device": card,
            "threads": args.threads, "torch": torch.__version__, "matrix_flop_per_s": rate, "errors": errors,
            "figures": figures, "products": products,
        }  # fmt: skip
        write_json(args.json, record)
    if args.profile:  # after the figures, which a profile that fails or takes too long must not lose
        for name in list(subjects)[1:]:
            print(f"{name}, training step\n{profile(subjects[name].train, device)}")
            print(f"{name}, forward pass\n{profile(subjects[name].forward, device)}")


if __name__ == "__main__":
    main()
