"""Compare runs in a table: their results, and the configuration values that differ."""

from __future__ import annotations

from collections.abc import Sequence

from slowfast.config import changed_keys
from slowfast.utils.io import csv_text
from slowfast.visualization.runs import Run


def comparison_table(runs: Sequence[Run]) -> list[list[str]]:
    """Return a table with one column per run: a header, the results, and the configuration values that differ."""
    numbers = [run.numbers() for run in runs]
    names = [*dict.fromkeys(name for each in numbers for name in each)]
    parts = [name.partition(":")[0] for name in names]
    names.sort(key=lambda name: parts.index(name.partition(":")[0]))  # of the test, of the validation, ...
    rows = [[name, *(f"{each[name]:.5g}" if name in each else "" for each in numbers)] for name in names]
    settings = [run.settings for run in runs]
    changed = [changed_keys(settings[0], other, ignore=("OUTPUT_DIR",)) for other in settings[1:]]
    for key in dict.fromkeys(key for each in changed for key in each):
        first = next(each[key][0] for each in changed if key in each)
        rows.append([key, *(str(value) for value in (first, *(each.get(key, (0, first))[1] for each in changed)))])
    return [["", *(run.name for run in runs)], *rows]


def markdown(table: Sequence[Sequence[str]]) -> str:
    """Return a table as Markdown, with aligned columns."""
    table = [[cell.replace("|", "\\|") for cell in row] for row in table]
    widths = [max(3, *(len(cell) for cell in column)) for column in zip(*table, strict=True)]
    lines = [[cell.ljust(width) for cell, width in zip(row, widths, strict=True)] for row in table]
    lines.insert(1, ["-" * width for width in widths])
    return "".join(f"| {' | '.join(line)} |\n" for line in lines)


# Name of a format -> function of a table.
FORMATS = {"markdown": markdown, "csv": csv_text}
