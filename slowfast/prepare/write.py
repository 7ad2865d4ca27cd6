"""Write lists, class names, and an experiment for own videos; replace existing files only with `overwrite`."""

from __future__ import annotations

import os
from collections import Counter
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import TypeVar

import yaml
from tqdm import tqdm

from slowfast.datasets.catalog import CATALOG, Dataset
from slowfast.datasets.rows import UNKNOWN
from slowfast.prepare.clean import original_of
from slowfast.prepare.scan import LINE_BREAK, Notes, describe, image_template, images_of
from slowfast.utils.class_names import format_class_names
from slowfast.utils.io import counted, write_text

SPLIT_NAMES = {
    "train": "train", "training": "train", "val": "val", "valid": "val", "validate": "val", "validation": "val",
    "test": "test", "testing": "test",
}  # fmt: skip


T = TypeVar("T")

Segment = tuple[float, float, float]  # duration of a video, begin and end of an action in it, in seconds


@dataclass(frozen=True)
class Lists:
    """The lists to write.

    Args:
        splits: train, val, test and others, if any -> (path, label), sorted by path.
        class_names: class names in the order of the labels.
        notes: messages about videos that were left out, and about unusual ones.
        segments: path of an untrimmed video -> its annotated segments.
    """

    splits: dict[str, list[tuple[str, int]]]
    class_names: list[str]
    notes: Notes
    segments: Mapping[str, Sequence[Segment]] = field(default_factory=dict)


def complete(lists: Lists, tested_on: str, cure: str) -> Lists:
    """Sort the lists; if the validation or the test list is missing, use the other one for both.

    `tested_on` is the split of the published accuracies. If it is "val", the validation videos become the test list.

    Raises:
        ValueError: a list would have no videos; the message ends in `cure`.
    """
    splits = {split: sorted(rows) for split, rows in lists.splits.items() if rows}
    if tested_on == "val" and "val" in splits and "test" in splits:
        splits |= {"test": splits["val"], "official_test": splits["test"]}
        lists.notes["published accuracies are of the validation videos, so test is the same list as val"].append("")
    elif ("val" in splits) != ("test" in splits):
        there = "val" if "val" in splits else "test"
        splits |= {"val": splits[there], "test": splits[there]}
        other = "test" if there == "val" else "val"
        lists.notes[f"there are no {other} videos, so val and test are both the {there} videos"].append("")
    if missing := [split for split in ("train", "val", "test") if split not in splits]:
        there = ", ".join(f"{len(rows)} for {split}" for split, rows in splits.items()) or "none at all"
        notes = "".join(f"; {note}" for note in describe(lists.notes))
        raise ValueError(f"no videos for {' and '.join(missing)} ({there}{notes}): {cure}")
    return replace(lists, splits=splits)


def count_rows(lists: Lists) -> Iterator[str]:
    """Yield one line per list: the number of rows, in all and of the smallest and the largest class."""
    for split, rows in lists.splits.items():
        counts = Counter(label for _, label in rows)
        sizes = [counts[label] for label in range(len(lists.class_names))]
        yield f"{split}: {counted(len(rows), 'video')}, {min(sizes)} to {max(sizes)} per class"


def write_lists(
    lists: Lists,
    out: str | Path,
    videos: str | Path,
    dataset: Dataset,
    *,
    recipe: Path | None = None,
    overwrite: bool = False,
) -> list[Path]:
    """Write the lists and class_names.txt; for own videos, also write an experiment.

    If the recipe of the data set reads frame folders, their lists have rows "path num_frames label" and the file names
    of the recipe. All other lists are train.csv, val.csv and test.csv with rows "path label". Untrimmed videos have
    rows "path total begin end label": in train.csv one per segment, in the other lists one per video. With `recipe`,
    data.yaml contains the keys that describe the videos, and config.yaml, which is never replaced, is an experiment on
    them. A list that `check --clean` has cleaned is kept if its original (.orig) has the content to be written.

    Returns:
        The files that were written; files that already have the same content are not written.

    Raises:
        ValueError: different lists exist, files and frame folders are mixed, the image names of folders have different
            templates, or a class name contains a line break.
    """
    out, videos = Path(out), Path(videos)
    if name := next(filter(LINE_BREAK.search, lists.class_names), ""):
        raise ValueError(f"the class name {name!r} has a line break, which no list can hold: rename the class")
    paths = sorted({path for rows in lists.splits.values() for path, _ in rows})
    folders = [path for path in paths if (videos / path).is_dir()]
    texts = {}
    if folders and dataset.frame_list_file:
        if len(folders) < len(paths):
            mixed = f"{len(folders)} frame folders and {len(paths) - len(folders)} video files"
            raise ValueError(f"{videos} has {mixed}, and one list cannot hold both: move one kind away")
        counts = _of_each(lambda folder: len(images_of(folder)), videos, folders, "count frames")
        columns, template = CATALOG[dataset.kinds[0]].columns, dataset.frame_list_file
    else:
        columns = CATALOG["anet"].columns if any(lists.segments.values()) else ("path", "label")
        counts, template = {}, "{}.csv"
    for split, rows in lists.splits.items():
        parts = None if split == "train" else 1  # an evaluation samples the whole video
        fields = [
            {"path": _quoted(path), "num_frames": counts.get(path), "label": label, **_times(segment)}
            for path, label in rows
            for segment in (lists.segments.get(path) or [None])[:parts]
        ]
        texts[template.format(split)] = _list_text(fields, columns, dataset.separator)
    texts["class_names.txt"] = format_class_names(lists.class_names)
    if recipe is not None:
        data = {
            "PATH_TO_DATA_DIR": str(out.resolve()),
            "PATH_PREFIX": str(videos.resolve()),
            "PATH_LABEL_SEPARATOR": dataset.separator,
            **({"IMAGE_TEMPLATE": _common_template(videos, folders)} if folders else {}),
        }
        content = {"DATA": data, "MODEL": {"NUM_CLASSES": len(lists.class_names)}}
        head = "# Written by tools/prepare_data.py lists; values of your own go into config.yaml.\n"
        texts["data.yaml"] = head + _yaml(content)
    written = _write(out, texts, overwrite, lists.notes)
    if recipe is not None and not (out / "config.yaml").exists():
        write_text(out / "config.yaml", _experiment(out, recipe))
        written.append(out / "config.yaml")
    return written


def write_unlabelled(out: str | Path, paths: Iterable[str], notes: Notes, *, overwrite: bool = False) -> Path:
    """Write test.csv of videos whose classes are unknown, for predictions.

    Raises:
        ValueError: a different test.csv exists.
    """
    text = _list_text(({"path": _quoted(path), "label": UNKNOWN} for path in paths), ("path", "label"), " ")
    _write(Path(out), {"test.csv": text}, overwrite, notes)
    return Path(out) / "test.csv"


def _write(out: Path, texts: Mapping[str, str], overwrite: bool, notes: Notes) -> list[Path]:
    """Write the files, except those that have the same content, now or before bad files were removed."""
    contents = {name: text.encode("utf-8", "surrogateescape") for name, text in texts.items()}
    changed = [name for name, content in contents.items() if _content(out / name) != content]
    cleaned = [name for name in changed if _content(original_of(out / name)) == contents[name]]
    differ = [name for name in changed if (out / name).exists() and name not in cleaned]
    if differ and not overwrite:
        raise ValueError(f"{out} contains other lists ({', '.join(differ)}): replace them with --overwrite")
    if not overwrite:
        changed = [name for name in changed if name not in cleaned]
        notes["without their bad files, left as they are (--overwrite writes the bad files, too)"] += cleaned
    for name in changed:
        write_text(out / name, texts[name])
        if (original := original_of(out / name)).exists():
            original.unlink()
            notes["rewritten with their bad files: run check --clean again"].append(name)
    return [out / name for name in changed]


def _content(path: Path) -> bytes | None:
    return path.read_bytes() if path.exists() else None


def _list_text(rows: Iterable[Mapping[str, object]], columns: Sequence[str], separator: str) -> str:
    return "".join(separator.join(str(row[column]) for column in columns) + "\n" for row in rows)


def _times(segment: Segment | None) -> dict[str, str]:
    return dict(zip(("total", "begin", "end"), map("{:.12g}".format, segment), strict=True)) if segment else {}


def _quoted(path: str) -> str:
    """Return a path as a field of a list: in quotes if blanks or quotes at its ends would be lost."""
    strange = path != path.strip() or path.startswith("\ufeff") or (path[0] == path[-1] == '"')
    return '"' + path.replace('"', '""') + '"' if strange else path


def _of_each(function: Callable[[Path], T], videos: Path, folders: Sequence[str], title: str) -> dict[str, T]:
    with ThreadPoolExecutor() as pool:
        results = pool.map(lambda path: function(videos / path), folders)
        return dict(zip(folders, tqdm(results, title, len(folders), disable=None), strict=True))


def _common_template(videos: Path, folders: Sequence[str]) -> str:
    """Return the template of all folders; `{folder}` in it is the name of the folder.

    Raises:
        ValueError: two folders have different templates, or a folder has none.
    """
    templates = _of_each(image_template, videos, folders, "look at names")
    if len(set(templates.values())) > 1:
        ends = {text.removeprefix(os.path.basename(path)) for path, text in templates.items()}
        if len(ends) == 1:
            return "{folder}" + ends.pop()
    here = folders[0]
    if there := next((path for path in folders if templates[path] != templates[here]), ""):
        raise ValueError(
            f"images are named {templates[here]!r} in {here}, but {templates[there]!r} in {there}: rename them, or "
            "make lists of each kind"
        )
    return templates[here]


def _experiment(out: Path, recipe: Path) -> str:
    inside = out.resolve().is_relative_to(recipe.parents[2])
    base = os.path.relpath(recipe, out.resolve()) if inside else str(recipe)
    return (
        f"# Train and test: python tools/run_net.py --cfg {os.path.join(out, 'config.yaml')}\n"
        "# This file is yours: values given here come after those of the recipe and of data.yaml.\n"
    ) + _yaml({"_BASE_": [base, "data.yaml"], "OUTPUT_DIR": f"output/{out.resolve().name}"})


def _yaml(content: Mapping[str, object]) -> str:
    return yaml.safe_dump(dict(content), allow_unicode=True, sort_keys=False)
