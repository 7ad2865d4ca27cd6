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

import jinja2

ROOT = Path(__file__).parents[1]
PAGE = ROOT / "docs" / "PERFORMANCE.md"
NOT_MEASURED = "Not measured yet."
Record = dict[str, Any]


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
        first, products = record["figures"]["reference"], record.get("products")
        figures = {name: kinds for name, kinds in record["figures"].items() if name != "reference"}
        for name, kinds in figures.items():
            cells = [record["network"] + (" (compiled)" if name == "compiled" else "")]
            shape = record["input_shape"]
            cells += ["x".join(map(str, (record["batch"], *shape[1:]))), record["dtype"]]
            cells += [str(record["threads"])] if on_cpu(record) else []
            for kind in ("train", "forward"):
                seconds = "cpu_s" if on_cpu(record) else "wall_s"  # wall time of a CPU includes other jobs
                taken, official = kinds[kind][seconds], first[kind][seconds]
                limit = f" of {official / products[kind][seconds]:.2f}" if products else ""
                cells.append(f"{record['batch'] / taken:.2f}, {official / taken:.2f}{limit} times")
                if kind == "train":
                    cells.append(f"{kinds[kind]['peak_gib']:.2f} / {first[kind]['peak_gib']:.2f}")
            cells += [] if on_cpu(record) else [f"{100 * kinds['train']['share_of_matrix_rate']:.0f} %"]
            rows.append(cells)
    return sorted(rows)


def network_tables(records: Iterable[Record], columns: Sequence[str]) -> str:
    """Return a table of networks per device, under its name."""
    devices: dict[str, list[Record]] = {}
    for record in records:
        devices.setdefault(record["device"].removeprefix("CPU: "), []).append(record)
    tables = (f"{name}:\n\n{table(columns, network_rows(devices[name]))}" for name in sorted(devices))
    return "\n\n".join(tables) or NOT_MEASURED


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
    gpu = network_tables((record for record in networks if not on_cpu(record)), columns[:3] + columns[4:])
    for record in trainings:
        overhead, busy = 100 * record["overhead"], 100 * record["busy"]
        gpu += (
            f"\n\nTraining {record['training']} on {record['device']}: the loop adds {overhead:.1f} % to the bare "
            f"step; {record['workers']} workers keep the device {busy:.0f} % busy."
        )
    sizes = [
        (case["size"], str(case["short_side"]), f"{case['worker_ms']:.0f}", f"{case['cut_ms']:.0f}")
        for record in views
        for case in record["views"]
    ]
    header = ["recipe", "clips", "workers", "decode", "ours", "plain", "plain / ours", "all on the CPU", "plain / this"]
    loader = jinja2.FileSystemLoader(Path(__file__).parent)
    environment = jinja2.Environment(
        loader=loader, undefined=jinja2.StrictUndefined, trim_blocks=True, keep_trailing_newline=True
    )
    return environment.get_template("performance.jinja").render(
        networks=network_tables(filter(on_cpu, networks), columns[:-1]),
        loading_on=", ".join(sorted({record["machine"]["CPU"] for record in loading})),
        loading=table(header, loading_rows(loading)),
        views=table(["frames", "short side", "worker", "cut"], sizes),
        views_on=", ".join(record["device"].removeprefix("CPU: ") for record in views),
        start=f"{views[0]['start_s']:.1f}" if views else "",
        gpu=gpu,
    )


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
