"""Write docs/PERFORMANCE.md from recorded figures: python benchmarks/report.py > docs/PERFORMANCE.md.

A record is what model.py, loading.py, views.py or training.py writes with --json; those of a GPU come from gpu.sh. With
--check, nothing is printed, and the exit code is 1 if the page is not that of the records.
"""

from __future__ import annotations

import argparse
import json
import sys
from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import Any

ROOT = Path(__file__).parents[1]
PAGE = ROOT / "docs" / "PERFORMANCE.md"
NOT_MEASURED = "Not measured yet."
Record = dict[str, Any]

HEAD = """\
# Performance

Measured figures, and the commands that measure them on your machine. `benchmarks/report.py` writes this page from the
records in `benchmarks/results/`.

The reference (`benchmarks/reference.py`) computes the same network as the official modules do, with the same weights.
"1.50 times" means that the reference takes 1.5 times as long: in CPU time on a CPU, in wall time on a GPU. Memory is
the peak during a training step, without what the network and the optimizer hold before it. All figures are medians of
interleaved rounds.
"""
NETWORKS = """
## Training step and inference on a CPU

Processor: {cpu}. "Clips/s" are clips per second of CPU time.

```bash
source .venv/bin/activate
python benchmarks/model.py uniformer_s --frames 8 --batch 2 --threads 1
```

{table}
"""
LOADING = """
## Loading

Milliseconds of CPU per video. "Ours" is the loader of this program, from the list to batches in shared memory. "Plain"
loads the same clips as the official programs do. "Decode" only opens a video with decord and decodes the frames of its
clips.

```bash
source .venv/bin/activate
python benchmarks/loading.py --cfg exp/uniformer_s16x4_k400/config.yaml --make 24 TEST.NUM_SPATIAL_CROPS 3
```

{table}

"All on the CPU" is "ours" and the work that a GPU does if there is one: cutting out views, and normalization. "Plain"
includes this work, so the last column compares equal work.
"""
VIEWS = """
## Views of a test

Milliseconds of CPU per video in one thread: 4 x 3 clips of 16 frames are resized, normalized and cut out. "Worker" is
the time of a loader worker, which resizes the frames of large videos, so that fewer bytes are sent; "cut" is the time
of the rest.

```bash
source .venv/bin/activate
python benchmarks/views.py
```

{table}
"""
START = """
## Start

`run_net.py --show`, which reads a configuration and prints it, takes {start} seconds of CPU.
"""
GPU = """
## On a GPU

One command runs all checks and benchmarks that need a GPU in under 9 minutes, without an internet connection:

```bash
bash benchmarks/gpu.sh results
```

{table}
"""


def table(columns: Sequence[str], rows: Iterable[Sequence[str]]) -> str:
    """Return a table in Markdown, or a note that there are no rows."""
    lines = ["| " + " | ".join(row) + " |" for row in rows]
    if not lines:
        return NOT_MEASURED
    return "\n".join(["| " + " | ".join(columns) + " |", "|" + "---|" * len(columns), *lines])


def on_cpu(record: Record) -> bool:
    """Return whether a record is of a CPU."""
    return record["device"].startswith("CPU")


def network_rows(records: Iterable[Record]) -> list[Sequence[str]]:
    """Return the rows of networks: clips per second, times the reference, memory, share of the matrix rate."""
    rows = []
    for record in records:
        figures = {name: kinds for name, kinds in record["figures"].items() if name != "reference"}
        for name, kinds in figures.items():
            cells = [record["network"] + (" (compiled)" if name == "compiled" else "")]
            shape = record["input_shape"]
            cells += ["x".join(map(str, (record["batch"], *shape[1:]))), record["dtype"]]
            cells += [str(record["threads"])] if on_cpu(record) else []
            for kind in ("train", "forward"):
                values, first = kinds[kind], record["figures"]["reference"][kind]
                seconds = "cpu_s" if on_cpu(record) else "wall_s"  # wall time of a CPU includes other jobs
                speed, times = record["batch"] / values[seconds], first[seconds] / values[seconds]
                cells.append(f"{speed:.2f}, {times:.2f} times")
                if kind == "train":
                    cells.append(f"{values['peak_gib']:.2f} / {first['peak_gib']:.2f}")
            cells += [] if on_cpu(record) else [f"{100 * kinds['train']['share_of_matrix_rate']:.0f} %"]
            rows.append(cells)
    return sorted(rows)


def loading_rows(records: Iterable[Record]) -> Iterable[Sequence[str]]:
    """Return the rows of loading, per job and number of workers."""
    for record in records:
        for job in ("train", "test"):
            for result in record.get(job, {}).get("results", ()):
                cpu = result["cpu"]
                yield (
                    f"{Path(record['cfg']).parent.name}, {job}", str(record[job]["clips"]), str(result["workers"]),
                    *(f"{cpu[name]:.0f}" for name in ("decode", "ours", "plain")), f"{cpu['plain_to_ours']:.1f}",
                    f"{result['complete']:.0f}", f"{result['plain_to_complete']:.1f}",
                )  # fmt: skip


def page(records: Sequence[Record]) -> str:
    """Return the page of records."""
    networks = [record for record in records if "figures" in record]
    loading = [record for record in records if "machine" in record]
    views = [record for record in records if "views" in record]
    trainings = [record for record in records if "training" in record and not on_cpu(record)]
    columns = [
        "network",
        "clips",
        "type",
        "threads",
        "training: clips/s",
        "GiB / GiB of the reference",
        "inference: clips/s",
        "FLOP/s of training / of a matrix product",
    ]
    cards = sorted({record["device"] for record in networks if not on_cpu(record)})
    gpu = "\n\n".join(
        f"{card}:\n\n" + table(columns[:3] + columns[4:], network_rows(r for r in networks if r["device"] == card))
        for card in cards
    )
    for record in trainings:
        overhead, busy = 100 * record["overhead"], 100 * record["busy"]
        gpu += (
            f"\n\nTraining {record['training']} on {record['device']}: the loop adds {overhead:.1f} % to the bare "
            f"step; {record['workers']} workers keep the device {busy:.0f} % busy."
        )
    cpus = sorted({record["machine"]["processor"] + f", {record['machine']['cores']} cores" for record in loading})
    sizes = [
        (case["size"], str(case["short_side"]), f"{case['worker_ms']:.0f}", f"{case['cut_ms']:.0f}")
        for record in views
        for case in record["views"]
    ]
    header = ["recipe", "clips", "workers", "decode", "ours", "plain", "plain / ours", "all on the CPU", "plain / this"]
    parts = [
        HEAD,
        NETWORKS.format(
            cpu="; ".join(cpus) or "unknown", table=table(columns[:-1], network_rows(filter(on_cpu, networks)))
        ),
        LOADING.format(table=table(header, loading_rows(loading))),
        VIEWS.format(table=table(["frames", "short side", "worker", "cut"], sizes)),
        START.format(start=f"{views[0]['start_s']:.1f}") if views else "",
        GPU.format(table=gpu or NOT_MEASURED),
    ]
    return "".join(parts)


def main(argv: list[str] | None = None) -> int:
    """Print or check the page; return 1 if it differs."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("records", nargs="*", type=Path, help="JSON files (default: benchmarks/results/*.json)")
    parser.add_argument("--check", action="store_true", help="compare with docs/PERFORMANCE.md")
    args = parser.parse_args(argv)
    paths = args.records or (ROOT / "benchmarks" / "results").glob("*.json")
    text = page([json.loads(path.read_text(encoding="utf-8")) for path in sorted(paths)])
    if args.check:
        return int(text != PAGE.read_text(encoding="utf-8"))
    sys.stdout.write(text)
    return 0


if __name__ == "__main__":
    sys.exit(main())
