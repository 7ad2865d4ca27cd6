"""Measure forward pass and training step of a network: python benchmarks/model.py uniformer_s16x4_k400 --batch 8.

The reference computes the same network as the official modules do: with contiguous tensors, and with attention weights
written to memory. Both get the same weights and clips, and their logits are compared first. Rounds are interleaved, so
that a change of the machine's speed affects all of them equally; medians are printed.
"""

from __future__ import annotations

import argparse
import copy
import statistics
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from slowfast.config import load_config
from slowfast.engine.setup import place
from slowfast.models.build import build_model, input_shape
from slowfast.models.layers import Attention
from slowfast.optim.build import build_loss, build_optimizer
from slowfast.utils.io import to_json
from slowfast.utils.profiling import count_flops

DTYPES = {"float32": None, "bfloat16": torch.bfloat16, "float16": torch.float16}


class WrittenOutAttention(Attention):
    """Attention whose weights (B, heads, L, L) are in memory."""

    def attend(self, q: Tensor, k: Tensor, v: Tensor) -> Tensor:
        weights = (q @ k.transpose(-2, -1) * self.scale).softmax(-1)
        return self.drop(self.proj((weights @ v).transpose(1, 2).flatten(2)))


def as_official(model: nn.Module) -> nn.Module:
    """Return a copy that computes as the official modules do."""
    model = copy.deepcopy(model)
    for module in model.modules():
        if type(module) is Attention:
            module.__class__ = WrittenOutAttention
    for parameter in model.parameters():
        parameter.data = parameter.data.contiguous()
    return model


def synchronize(device: torch.device) -> None:
    """Wait until the device has finished."""
    if device.type == "cuda":
        torch.cuda.synchronize(device)


def timed(work: Callable[[], Any], device: torch.device) -> tuple[float, float, float]:
    """Return wall seconds, CPU seconds and peak GiB of the GPU (0 on the CPU) of one call."""
    synchronize(device)
    if device.type == "cuda":
        torch.cuda.reset_peak_memory_stats(device)
    wall, cpu = time.perf_counter(), time.process_time()
    work()
    synchronize(device)
    memory = torch.cuda.max_memory_allocated(device) / 2**30 if device.type == "cuda" else 0.0
    return time.perf_counter() - wall, time.process_time() - cpu, memory


def matrix_rate(device: torch.device, dtype: torch.dtype | None) -> float:
    """Return the FLOP/s of a large matrix product, where a multiply-add is two."""
    side = 8192 if device.type == "cuda" else 1024
    a, b = (torch.randn(side, side, device=device, dtype=dtype or torch.float32) for _ in range(2))
    seconds = [timed(lambda: a @ b, device)[0] for _ in range(10)]
    return 2 * side**3 / statistics.median(seconds[3:])


class Subject:
    """A network with the inputs of its training step and its forward pass."""

    def __init__(self, model: nn.Module, cfg: Any, clips: Tensor, dtype: torch.dtype | None, compiled: bool) -> None:
        self.model, self.cfg, self.clips, self.dtype = model, cfg, clips, dtype
        self.network = torch.compile(model) if compiled else model
        self.optimizer = build_optimizer(model, cfg)
        self.loss = build_loss(cfg)
        target = torch.rand(len(clips), cfg.MODEL.NUM_CLASSES, device=clips.device)
        self.target = target / target.sum(1, keepdim=True)

    def autocast(self) -> torch.autocast:
        return torch.autocast(self.clips.device.type, dtype=self.dtype, enabled=self.dtype is not None)

    def forward(self) -> Tensor:
        """Compute logits as a test does."""
        self.model.eval()
        with torch.inference_mode(), self.autocast():
            return self.network(self.clips)

    def train(self) -> None:
        """Take one optimizer step."""
        self.model.train()
        with self.autocast():
            outputs = self.network(self.clips)
            outputs = outputs if isinstance(outputs, tuple) else (outputs,)
            loss = torch.stack([self.loss(logits, self.target) for logits in outputs]).mean()
        loss.backward()
        nn.utils.clip_grad_norm_(self.model.parameters(), 20.0)
        self.optimizer.step()
        self.optimizer.zero_grad(set_to_none=True)


def profile(work: Callable[[], Any], device: torch.device) -> str:
    """Return a table of the ten operations that take most of the time."""
    kinds = [torch.profiler.ProfilerActivity.CPU]
    kinds += [torch.profiler.ProfilerActivity.CUDA] if device.type == "cuda" else []
    with torch.profiler.profile(activities=kinds) as record:
        work()
        synchronize(device)
    key = "self_cuda_time_total" if device.type == "cuda" else "self_cpu_time_total"
    return record.key_averages().table(sort_by=key, row_limit=10, max_name_column_width=60)


def measure(subjects: dict[str, Subject], rounds: int, device: torch.device) -> dict[str, dict[str, Any]]:
    """Return the figures of each subject: medians over `rounds`, the first of which warms up."""
    figures: dict[str, dict[str, Any]] = {}
    for kind in ("forward", "train"):
        runs: dict[str, list[tuple[float, float, float]]] = {name: [] for name in subjects}
        for _ in range(rounds + 1):
            for name, subject in subjects.items():
                runs[name].append(timed(getattr(subject, kind), device))
        for name, values in runs.items():
            wall, cpu, memory = (statistics.median(column) for column in zip(*values[1:], strict=True))
            figures.setdefault(name, {})[kind] = {
                "clips_per_s": len(subjects[name].clips) / wall, "wall_s": wall, "cpu_s": cpu,
                "peak_gib": memory, "first_s": values[0][0],
            }  # fmt: skip
    return figures


def main() -> None:
    """Measure, print a table, and write JSON."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("experiment", help="folder in exp/, such as uniformer_s16x4_k400")
    parser.add_argument("overrides", nargs="*", metavar="KEY VALUE", help="change configuration values")
    parser.add_argument("--batch", type=int, default=8, help="clips per step (default: 8)")
    parser.add_argument("--device", default="cuda" if torch.cuda.is_available() else "cpu")
    parser.add_argument("--dtype", choices=DTYPES, default="float32", help="type of autocast (default: float32)")
    parser.add_argument("--compile", action="store_true", help="also measure the compiled network")
    parser.add_argument("--rounds", type=int, default=7, help="counted rounds (default: 7)")
    parser.add_argument("--profile", action="store_true", help="print the operations that take most of a training step")
    parser.add_argument("--json", type=Path, metavar="FILE", help="write the figures to a file")
    args = parser.parse_intermixed_args()

    device, dtype = torch.device(args.device), DTYPES[args.dtype]
    cfg = load_config(f"exp/{args.experiment}/config.yaml", [*args.overrides, "MODEL.LOSS_FUNC", "soft_cross_entropy"])
    torch.manual_seed(0)
    model = build_model(cfg)
    flops = 2 * count_flops(model, 1, *input_shape(cfg))
    reference = as_official(model).to(device)
    place(model, device)
    clips = torch.randn(args.batch, *input_shape(cfg), device=device)
    subjects = {
        "reference": Subject(reference, cfg, clips, dtype, False),
        "ours": Subject(model, cfg, clips, dtype, False),
    }
    if args.compile:
        subjects["compiled"] = Subject(copy.deepcopy(model), cfg, clips, dtype, True)
    expected = subjects["reference"].forward().float()
    errors = {
        name: float((subject.forward().float() - expected).norm() / expected.norm())
        for name, subject in subjects.items()
    }
    limit = 1e-4 if dtype is None else 3e-2
    if not all(error <= limit for error in errors.values()):
        raise SystemExit(f"the networks differ: {errors}, more than {limit}")

    rate = matrix_rate(device, dtype)
    figures = measure(subjects, args.rounds, device)
    card = torch.cuda.get_device_name(device) if device.type == "cuda" else f"CPU, {torch.get_num_threads()} threads"
    print(f"{args.experiment}, {args.batch} clips, {args.dtype}, {card}, torch {torch.__version__}")
    for name, kinds in figures.items():
        for kind, values in kinds.items():
            values["flop_per_s"] = values["clips_per_s"] * flops * (3 if kind == "train" else 1)
            values["share_of_matrix_rate"] = values["flop_per_s"] / rate
            values["times_reference"] = values["clips_per_s"] / figures["reference"][kind]["clips_per_s"]
            print(
                f"  {name:<10}{kind:<8}{values['clips_per_s']:9.2f} clips/s {values['times_reference']:6.2f} x "
                f"{values['cpu_s']:8.3f} CPU s {values['peak_gib']:7.2f} GiB "
                f"{100 * values['share_of_matrix_rate']:6.1f} % of the matrix rate"
            )
    if args.profile:
        print(profile(subjects["ours"].train, device))
    if args.json:
        record = {
            "experiment": args.experiment, "batch": args.batch, "dtype": args.dtype, "device": card,
            "torch": torch.__version__, "matrix_flop_per_s": rate, "errors": errors, "figures": figures,
        }  # fmt: skip
        args.json.write_text(to_json(record, indent=2) + "\n")


if __name__ == "__main__":
    main()
