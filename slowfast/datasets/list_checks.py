"""Compare lists with the files that they name, and their labels with the classes."""

from __future__ import annotations

import logging
import os
import re
import shlex
from collections.abc import Iterator, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import suppress
from fnmatch import fnmatch
from itertools import chain
from pathlib import Path

import numpy as np

from slowfast.datasets.catalog import DATASETS
from slowfast.datasets.lists import SHOWN, ListError, VideoList
from slowfast.datasets.reader import MediaError, count_images, of_folder
from slowfast.datasets.rows import SEPARATORS, VIDEO_SUFFIXES, find_suffix

logger = logging.getLogger(__name__)

THREADS = 16  # folders that are listed at the same time, which helps with a network drive
SAMPLE = 50  # videos checked as a sample of all
FEW = 0.2  # largest share of missing videos that `prepare_data.py check --clean` removes from a list by default
MANY = 1000  # folders in one folder
NUMBERED = re.compile(r"^[0-9]+[,;|\s]+")
FULL = 0.95  # share of the images of a folder that a list must name


def check_files(samples: VideoList) -> None:
    """Check that every video of a list exists, folder by folder: a request per file would take several times as long.

    Raises:
        ListError: videos are missing; the message contains their number, the first three paths, and a checked cure.
    """

    def entries(folder: str) -> frozenset[str]:
        try:
            with os.scandir(os.path.join(samples.prefix, folder) or ".") as found:
                return frozenset(entry.name for entry in found if not entry.is_symlink())  # its target may not exist
        except OSError:
            return frozenset()

    def lost_of(rows: list[int]) -> list[int]:
        return [row for row in rows if not os.path.exists(samples.path(row))]

    folders = sorted({path[: path.rfind("/") + 1] for path in samples.listed})
    with ThreadPoolExecutor(THREADS) as pool:
        there = dict(zip(folders, pool.map(entries, folders), strict=True))
        cuts = ((path, path.rfind("/") + 1) for path in samples.listed)
        unseen = [row for row, (path, cut) in enumerate(cuts) if path[cut:] + samples.suffix not in there[path[:cut]]]
        parts = [unseen[first::THREADS] for first in range(THREADS)]  # for example, of a folder of links
        lost = sorted(chain.from_iterable(pool.map(lost_of, parts)))
    if lost:
        names = "".join(f"\n  {samples.path(row)}" for row in lost[:SHOWN])
        raise ListError(
            f"{len(lost)} of {len(samples)} videos of {samples.source} do not exist, first of them:{names}\n"
            + _cure(samples, lost)
        )


def _cure(samples: VideoList, lost: Sequence[int]) -> str:
    """Return a cure for missing files; another place is named only if most of them exist there."""
    missing = [samples.listed[lost[place]] for place in _spread(len(lost))]
    for places, cure in _other_places(missing, samples.prefix, samples.suffix, samples.source):
        if 2 * sum(map(os.path.exists, places)) > len(places):
            return cure
    if len(lost) <= FEW * len(samples):
        source = Path(samples.source)
        folder = shlex.quote(str(source.parent))
        frames = ((key, row.frame_list_file) for key, row in DATASETS.items() if row.frame_list_file)
        dataset = next((f" --dataset {key}" for key, name in frames if fnmatch(source.name, name.format("*"))), "")
        return (
            f"Write the list without them: python tools/prepare_data.py check {shlex.quote(samples.prefix or '.')} "
            f"--lists {folder}{dataset} --clean {folder}"
        )
    return f"Set prefix, which is {samples.prefix!r}, to the folder that the listed paths start from."


def _other_places(paths: Sequence[str], prefix: str, suffix: str, source: str) -> Iterator[tuple[Sequence[str], str]]:
    """Yield other paths at which the files may be, and the cure if most of them exist."""
    for separator in SEPARATORS:
        heads = [path.split(separator, 1)[0] for path in paths]
        surplus, found = paths[0][len(heads[0]) :], find_suffix(prefix, heads)
        yield (
            [os.path.join(prefix, head + found) for head in heads],
            f"The rows have surplus columns: {heads[0]} exists without {surplus!r}: keep one path and one label per "
            "row, or use a data set whose rows have these columns.",
        )
    numberless = [NUMBERED.sub("", path) for path in paths]
    yield (
        [os.path.join(prefix, path + suffix) for path in numberless],
        f"The rows begin with their number ({paths[0]!r}): remove this column; in pandas, write the list with "
        "index=False.",
    )
    stems = [os.path.splitext(os.path.join(prefix, path)) for path in paths]
    slashes = [os.path.join(prefix, path.replace("\\", "/") + suffix) for path in paths]
    yield slashes, "The files exist with / in place of \\ in the paths: replace it in the list."
    for other in (*VIDEO_SUFFIXES, *map(str.upper, VIDEO_SUFFIXES)):
        cure = f"The files exist with the suffix {other}, not {stems[0][1] or 'none'}: change it in the list."
        yield [stem + other for stem, _ in stems], cure
    names: list[str] = []
    with suppress(OSError):
        names = sorted(os.listdir(prefix or "."))
    below = [Path(prefix) / name for name in names[:MANY] if not name.endswith(VIDEO_SUFFIXES)]
    for folder in (*list(Path(prefix).absolute().parents)[:3], Path(source).parent, *below):
        yield [os.path.join(folder, path + suffix) for path in paths], f"They are below {folder}: set prefix to it."
    for depth in range(4):  # 0: without a leading slash
        shorter = [path.strip("/").split("/", depth)[-1] for path in paths]
        first = paths[0][: len(paths[0]) - len(shorter[0])]
        cure = f"They are below {prefix} without {first!r} in front: remove it from the list."
        yield [os.path.join(prefix, path + suffix) for path in shorter], cure


def _spread(count: int) -> list[int]:
    return np.linspace(0, count - 1, min(count, SAMPLE)).astype(int).tolist()


def check_frame_counts(samples: VideoList, template: str) -> None:
    """Compare the numbers of images that a list names with the folders.

    If a list names fewer images, only the first part of each video would be used; if it names more, reads fail. Both
    happen if the images were extracted at another rate than those of the list. At most SAMPLE folders are checked.
    Image k, counted from 1, has the name `template.format(k)`.

    Raises:
        ListError: every checked folder lacks images that the list names; if only some do, a warning says so.
    """
    counts: list[tuple[str, int, int]] = []
    for sample in (samples[row] for row in _spread(len(samples))):
        with suppress(MediaError, OSError):  # a video file, or a folder that cannot be listed
            if sample.num_frames:
                counts.append((sample.path, sample.num_frames, count_images(sample.path, template)))
    wrong = {
        "fewer": [found for found in counts if found[1] < FULL * found[2]],
        "more": [found for found in counts if found[2] < FULL * found[1]],
    }
    effects = {"fewer": "only the first part of each video is used", "more": "these videos cannot be read"}
    for what, folders in wrong.items():
        if not folders:
            continue
        path, listed, held = folders[0]
        text = (
            f"{samples.source} names {what} images than exist in {len(folders)} of {len(counts)} checked folders "
            f"({path}: the list names {listed}, and {held} exist): {effects[what]}; write the number of images that "
            "exist into the column num_frames"
        )
        if what == "more" and len(folders) == len(counts):
            raise ListError(f"{text}. A list of another extraction, for example at another rate, does not fit")
        logger.warning("%s", text)


def check_image_names(samples: VideoList, image_template: str) -> None:
    """Check that folders of images contain image 1, as `read_frames` names it; at most SAMPLE folders are read.

    Raises:
        ListError: none of these folders does.
    """
    first: tuple[str, str] | None = None
    for path in (samples[row].path for row in _spread(len(samples))):
        with suppress(OSError):  # a video file, or a folder that cannot be listed
            names = os.listdir(path)
            if of_folder(image_template, path).format(1) in names:
                return
            first = first or ((path, min(names)) if names else None)
    if first:
        path, name = first
        raise ListError(
            f"no checked folder of {samples.source} contains image 1, such as "
            f"{os.path.join(path, of_folder(image_template, path).format(1))}; there is {name}: correct image_template "
            f"{image_template}{_example(path, name)}"
        )


def _example(folder: str, name: str) -> str:
    """Return a template of the name of an image, as the end of a sentence; empty for a name without a number."""
    match = re.fullmatch(r"([^{}]*?)(\d+)(\.\w+)", name)
    if not match:
        return ""
    start, own = match[1], os.path.basename(os.path.normpath(folder))
    start = "{folder}" + start[len(own) :] if start.startswith(own) else start
    return f", for example to {start}{{:0{len(match[2])}d}}{match[3]}"


def log_labels(lists: Mapping[str, VideoList], num_classes: int) -> None:
    """Log which classes occur in the lists; log a warning instead if labels look wrong.

    Labels look wrong if the training list has one class or less than half of the classes, if a label occurs in another
    list only, or if all labels except 0 occur, as they do when classes are counted from 1. They also look wrong if all
    labels of another list are 0, as in official lists of videos whose classes were never published. The keys of
    `lists` are names of splits.
    """
    present = {split: np.unique(samples.labels[samples.labels >= 0]) for split, samples in lists.items()}
    names = {split: os.path.basename(samples.source) for split, samples in lists.items()}
    parts = [
        f"{len(labels)} of {num_classes} classes occur in {names[split]}" if len(labels) else f"{names[split]} has none"
        for split, labels in present.items()
    ]
    train = present.get("train")
    wrong = train is not None and (2 * len(train) < num_classes or len(train) == 1 < num_classes)
    every = np.unique(np.concatenate(list(present.values())))
    if num_classes > 1 and every.tolist() == list(range(1, num_classes)):
        wrong = True
        parts.append("label 0 never occurs: do the labels count from 1?")
    for split, labels in present.items():
        alone = np.setdiff1d(labels, labels if train is None else train)
        if len(alone):
            wrong = True
            some = ", ".join(map(str, alone[:SHOWN])) + (", ..." if len(alone) > SHOWN else "")
            parts.append(f"label{'s' * (len(alone) > 1)} {some} occur{'s' * (len(alone) == 1)} in {names[split]} only")
        if split != "train" and num_classes > 1 and labels.tolist() == [0] and len(lists[split]) > 1:
            wrong = True
            cure = "-1 marks an unknown class" if split == "test" else "it needs videos of all classes"
            parts.append(
                f"all labels of {names[split]} are 0, so its accuracy says nothing about other classes: {cure}"
            )
    logger.log(logging.WARNING if wrong else logging.INFO, "labels: %s", "; ".join(parts))
