"""Write the tables of DATASET.md from the rows of the catalog."""

from __future__ import annotations

from collections.abc import Iterable
from html import escape

from slowfast.datasets.catalog import CATALOG, DATASETS, Dataset, DatasetSpec

MARK = "<!-- Written by tools/prepare_data.py docs, up to the next mark. -->"
END = "<!-- End of what tools/prepare_data.py wrote. -->"
FRAMES = {"dense": "a window: `NUM_FRAMES` x `SAMPLING_RATE`", "sparse": "one of each of `NUM_FRAMES` segments"}
SEPARATORS = {",": "comma", " ": "blank"}


def update_tables(page: str) -> str:
    """Return the page with the tables between its two marks replaced.

    Raises:
        ValueError: a mark is missing.
    """
    head, mark, rest = page.partition(MARK)
    _, end, tail = rest.partition(END)
    if not mark or not end:
        raise ValueError(f"the page lacks the line {END if mark else MARK}: add it")
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
