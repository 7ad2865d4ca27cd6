"""Write the tables of DATASET.md from the rows of the catalog: python docs/make_tables.py [--check]."""

from __future__ import annotations

import sys
from collections.abc import Iterable
from html import escape
from pathlib import Path

from slowfast.datasets.catalog import CATALOG, DATASETS, Dataset, DatasetSpec

PAGE = Path(__file__).parents[1] / "DATASET.md"
MARK = "<!-- Written by docs/make_tables.py, up to the next mark. -->"
END = "<!-- End of what docs/make_tables.py wrote. -->"
FRAMES = {"dense": "a window: `NUM_FRAMES` x `SAMPLING_RATE`", "sparse": "one of each of `NUM_FRAMES` segments"}
SEPARATORS = {",": "comma", " ": "blank"}


def update_tables(page: str) -> str:
    """Return the page with the tables between its two marks replaced."""
    head, rest = page.split(MARK)
    tail = rest.split(END)[1]
    kinds = _table(
        ("`TRAIN.DATASET`, `TEST.DATASET`", "for", "a row of the list", "frames of a clip"),
        (_kind_row(kind, spec) for kind, spec in CATALOG.items()),
    )
    columns = ("data set", "classes", "read as", "between columns", "flip", "class names from", "below `$DATA_ROOT`")
    datasets = _table((*columns, "licence"), (_dataset_row(key, dataset) for key, dataset in DATASETS.items()))
    return f"{head}{MARK}\n\n{kinds}\n\n{datasets}\n\n{END}{tail}"


def _table(header: tuple[str, ...], rows: Iterable[tuple[str, ...]]) -> str:
    head, *body = [f"| {' | '.join(row)} |" for row in (header, *rows)]
    return "\n".join([head, "|" + "---|" * len(header), *body])


def _kind_row(kind: str, spec: DatasetSpec) -> tuple[str, ...]:
    row = "no list: images in `train/<class>/`, `val/<class>/`" if spec.images else f"`{' '.join(spec.columns)}`"
    return f"`{kind}`", escape(spec.about), row, "one image" if spec.images else FRAMES[spec.sampling]


def _dataset_row(key: str, dataset: Dataset) -> tuple[str, ...]:
    lists = f", lists in `{key}/{dataset.lists_in}`" if dataset.lists_in else ""
    return (
        f"[{dataset.name}]({dataset.page})" if dataset.page else dataset.name,
        str(dataset.num_classes or "any"),
        ", ".join(f"`{kind}`" for kind in dataset.kinds),
        "-" if CATALOG[dataset.kinds[0]].images else SEPARATORS[dataset.separator],
        "yes" if dataset.flip else "**no**",
        dataset.class_names,
        "anywhere" if key == "own" else f"`{key}`{lists}",
        dataset.licence,
    )


def main() -> int:
    """Write the tables; with --check, return 1 if they are not up to date."""
    old = PAGE.read_text(encoding="utf-8")
    new = update_tables(old)
    if "--check" not in sys.argv:
        PAGE.write_text(new, encoding="utf-8")
        return 0
    return int(new != old)


if __name__ == "__main__":
    sys.exit(main())
