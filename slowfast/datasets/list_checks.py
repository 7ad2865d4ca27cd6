"""Compare lists with the files that they name, and their labels with the classes."""

from __future__ import annotations

import logging
import os
import shlex
from collections.abc import Callable, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from fnmatch import fnmatch
from pathlib import Path

import numpy as np

from slowfast.datasets.catalog import DATASETS
from slowfast.datasets.lists import SHOWN, ListError, VideoList
from slowfast.datasets.rows import SEPARATORS, VIDEO_SUFFIXES, readers_of

logger = logging.getLogger(__name__)

SAMPLE = 50  # videos checked as a sample of all
MANY = 1000  # folders in one folder
FEW = 0.2  # share of missing videos that `prepare_data.py check --clean` removes from a list by default
FULL = 0.95  # share of the images of a folder that a list must name


def check_files(samples: VideoList, threads: int = 16) -> None:
    """Look for every video of a list, one folder at a time: one request per file takes several times as long.

    Raises:
        ListError: videos are missing; with their number, the first three paths, and a cure that was checked.
    """

    def entries(folder: str) -> frozenset[str]:
        try:
            with os.scandir(os.path.join(samples.prefix, folder) or ".") as found:
                return frozenset(entry.name for entry in found if not entry.is_symlink())  # it may lead nowhere
        except OSError:
            return frozenset()

    folders = sorted({path[: path.rfind("/") + 1] for path in samples.listed})
    with ThreadPoolExecutor(threads) as pool:
        there = dict(zip(folders, pool.map(entries, folders), strict=True))
    cuts = ((path, path.rfind("/") + 1) for path in samples.listed)
    suffix = samples.suffix
    unseen = [index for index, (path, cut) in enumerate(cuts) if path[cut:] + suffix not in there[path[:cut]]]
    lost = [index for index in unseen if not os.path.exists(samples.path(index))]
    if lost:
        names = "".join(f"\n  {samples.path(index)}" for index in lost[:SHOWN])
        raise ListError(
            f"{len(lost)} of {len(samples)} videos of {samples.source} do not exist, first of them:{names}\n"
            + _cure(samples, lost)
        )


def _cure(samples: VideoList, lost: Sequence[int]) -> str:
    sample = [samples.listed[lost[place]] for place in _spread(len(lost))]
    for cure in (_surplus_columns, _other_suffix, _other_folder):
        if found := cure(samples, sample):
            return found
    if len(lost) <= FEW * len(samples):
        source = Path(samples.source)
        folder = shlex.quote(str(source.parent))
        frames = ((key, row.frame_list_file) for key, row in DATASETS.items() if row.frame_list_file)
        dataset = next((f" --dataset {key}" for key, name in frames if fnmatch(source.name, name.format("*"))), "")
        return (
            f"The list without them: python tools/prepare_data.py check {shlex.quote(samples.prefix or '.')} "
            f"--lists {folder}{dataset} --clean {folder}"
        )
    if all(map(os.path.isabs, sample)):
        return "The listed paths are absolute, so DATA.PATH_PREFIX has no effect: make them relative to it."
    there = _names(samples.prefix or ".")
    held = "is not a folder that can be read" if there is None else f"holds {', '.join(there[:SHOWN]) or 'nothing'}"
    return f"DATA.PATH_PREFIX {samples.prefix!r} {held}: set it to the folder that the listed paths start from."


def _names(folder: str | Path) -> list[str] | None:
    try:
        return sorted(os.listdir(folder))
    except OSError:
        return None


def _spread(count: int) -> list[int]:
    return np.linspace(0, count - 1, min(count, SAMPLE)).astype(int).tolist()


def _most(sample: Sequence[str], is_there: Callable[[str], bool]) -> bool:
    return 2 * sum(map(is_there, sample)) > len(sample)


def _surplus_columns(samples: VideoList, sample: Sequence[str]) -> str:
    """Name the columns that were read as a part of the paths, if the paths are right without them."""
    for separator in SEPARATORS:
        for surplus in range(1, 5):
            parts = [path.rsplit(separator.strip() or None, surplus) for path in sample]
            if not all(len(fields) > surplus for fields in parts):
                break
            whole = [os.path.join(samples.prefix, fields[0]) for fields in parts]
            for suffix in ("", *VIDEO_SUFFIXES):
                if _most(whole, lambda path, suffix=suffix: os.path.exists(path + suffix)):
                    first, others = whole[0] + suffix, parts[0][1:]
                    columns = _columns(others, bool(suffix) or os.path.isdir(first))
                    cure = (
                        f"they hold {' '.join(columns)}, so set TRAIN.DATASET and TEST.DATASET to {readers_of(columns)}"
                    )
                    return (
                        f"The rows have {surplus} surplus column{'s' * (surplus > 1)}: "
                        f"{first} exists, and {' '.join(others)!r} does not belong to the path: "
                        f"{cure if columns else 'keep one path and one label per row'}."
                    )
    return ""


def _columns(surplus: Sequence[str], may_be_frames: bool) -> tuple[str, ...]:
    """Return the columns of lists that have these fields between the path and the label; () for none."""
    if not all(field.replace(".", "", 1).isdigit() for field in surplus):
        return ()
    if len(surplus) == 1 and may_be_frames:
        return ("path", "num_frames", "label")
    if len(surplus) == 3 and float(surplus[1]) <= float(surplus[2]):
        return ("path", "total", "begin", "end", "label")
    return ()


def _other_suffix(samples: VideoList, sample: Sequence[str]) -> str:
    stems = [os.path.splitext(os.path.join(samples.prefix, path)) for path in sample]
    for suffix in VIDEO_SUFFIXES:
        if _most([stem for stem, _ in stems], lambda stem, suffix=suffix: os.path.exists(stem + suffix)):
            return f"The files exist with the suffix {suffix}, not {stems[0][1] or 'none'}: change it in the list."
    return ""


def _other_folder(samples: VideoList, sample: Sequence[str]) -> str:
    """Name the folder that the paths start from, if it is one above or below the prefix, or that of the list."""
    suffix, prefix = samples.suffix, Path(samples.prefix)
    below = [prefix / name for name in _names(prefix) or () if os.path.splitext(name)[1] not in VIDEO_SUFFIXES][:MANY]
    for folder in (*list(prefix.absolute().parents)[:3], Path(samples.source).parent, *below):
        if _most(sample, lambda path, folder=folder: os.path.exists(folder / (path + suffix))):
            return f"They are below {folder}: set DATA.PATH_PREFIX to it."
    for depth in range(1, 4):
        shorter = [path.strip("/").split("/", depth)[-1] for path in sample]
        if _most(shorter, lambda path: os.path.exists(prefix / (path + suffix))):
            first = sample[0][: len(sample[0]) - len(shorter[0])]
            return f"They are below {prefix} without {first!r} in front: remove it from the list."
    places = [next((f for f in below if os.path.exists(f / (path + suffix))), None) for path in sample[:SHOWN]]
    if place := next(filter(None, places), None):
        return f"They are in several folders below {prefix}, such as {place}: add the folders to the listed paths."
    return ""


def check_frame_counts(samples: VideoList, template: str) -> None:
    """Warn where a list names fewer images than the folders hold: only the first part of each video would be used.

    Args:
        samples: a list of frame folders; SAMPLE of them are checked.
        template: template of the names of the images, counted from 1 (DATA.IMAGE_TEMPLATE).
    """
    short: list[tuple[str, int, int]] = []
    rows = _spread(len(samples))
    for sample in (samples[row] for row in rows if samples[row].num_frames):
        names, listed = set(_names(sample.path) or ()), sample.num_frames or 0
        held = listed + sum(template.format(number) in names for number in range(listed + 1, len(names) + 1))
        if listed < FULL * held:
            short.append((sample.path, listed, held))
    if short:
        path, listed, held = short[0]
        logger.warning(
            "%s names fewer images than exist in %d of %d checked folders (%s: %d of %d): only the first part of "
            "each video is used; correct the column num_frames",
            samples.source, len(short), len(rows), path, listed, held,
        )  # fmt: skip


def log_labels(lists: Mapping[str, VideoList], num_classes: int) -> None:
    """Log which classes occur in the lists, as a warning if labels look wrong.

    Labels look wrong if the training list has less than half of the classes, if a label occurs in another list only, or
    if all labels occur, but not 0, as when classes are counted from 1.

    Args:
        lists: train and val, or test -> the list.
        num_classes: of the network.
    """
    present = {split: np.unique(samples.labels[samples.labels >= 0]) for split, samples in lists.items()}
    names = {split: os.path.basename(samples.source) for split, samples in lists.items()}
    facts = [f"{len(labels)} of {num_classes} classes occur in {names[split]}" for split, labels in present.items()]
    every = np.unique(np.concatenate(list(present.values())))
    wrong = 2 * len(present.get("train", range(num_classes))) < num_classes
    if num_classes > 1 and every.tolist() == list(range(1, num_classes)):
        wrong = True
        facts.append("label 0 never occurs: do the labels count from 1?")
    for split, labels in present.items() if "train" in present else ():
        if len(alone := np.setdiff1d(labels, present["train"])):
            wrong = True
            some = ", ".join(map(str, alone[:SHOWN])) + (", ..." if len(alone) > SHOWN else "")
            facts.append(f"label{'s' * (len(alone) > 1)} {some} occur{'s' * (len(alone) == 1)} in {names[split]} only")
    logger.log(logging.WARNING if wrong else logging.INFO, "labels: %s", "; ".join(facts))
