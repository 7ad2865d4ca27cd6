"""Lists of videos from what data sets come with: a folder per class, or official annotations and a folder of videos."""

from __future__ import annotations

import hashlib
import os
import re
import stat
from collections import Counter, defaultdict
from collections.abc import Iterable, Iterator, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path

import yaml
from tqdm import tqdm

from slowfast.datasets.catalog import CATALOG, Dataset
from slowfast.datasets.rows import UNKNOWN, VIDEO_SUFFIXES
from slowfast.prepare.clean import original_of
from slowfast.prepare.reencode import RECORDS, WITHOUT_COPY, without_copy
from slowfast.utils.class_names import format_class_names
from slowfast.utils.io import write_text
from slowfast.utils.rng import rng_for

IMAGE_SUFFIXES = frozenset((".jpg", ".jpeg", ".png"))
SPLIT_NAMES = {
    "train": "train", "training": "train", "val": "val", "valid": "val", "validate": "val", "validation": "val",
    "test": "test", "testing": "test",
}  # fmt: skip
UNUSUAL = {
    "blanks": re.compile(r"\s"),
    "commas": re.compile(","),
    "quotes": re.compile("[\"']"),
    "letters beyond ASCII": re.compile(r"[^\x00-\x7f]"),
    "a leading dash": re.compile("(^|/)-"),
}

LINE_BREAK = re.compile(r"[\r\n]")
UNLISTABLE = "with a line break in the name, which no list can hold, left out"

# What was seen and the reader should know: a sentence -> the files or classes it is about.
Notes = dict[str, list[str]]
# Split -> (name of a video, name of its class), in the order of the annotations.
Annotations = dict[str, list[tuple[str, str]]]


@dataclass(frozen=True)
class Found:
    """The media below a folder.

    Args:
        sizes: path below the folder, with "/" -> bytes of a video file; None for a folder of images.
        unusable: files with the name of a video that are empty, dead links, pipes and the like.
        notes: what else lies there.
    """

    sizes: dict[str, int | None]
    unusable: list[str]
    notes: Notes


@dataclass(frozen=True)
class Lists:
    """What is to be written.

    Args:
        splits: train, val, test and perhaps others -> (path, label), sorted by path.
        class_names: in the order of the labels.
        notes: what was left out, and what is unusual.
    """

    splits: dict[str, list[tuple[str, int]]]
    class_names: list[str]
    notes: Notes


def find_media(videos: str | Path) -> Found:
    """Look for video files and for folders of images, links included.

    Raises:
        ValueError: there is no such folder, or no video in it.
    """
    root = Path(videos)
    if not root.is_dir():
        raise ValueError(f"no folder {root}: name the one that holds the videos")
    sizes: dict[str, int | None] = {}
    unusable: list[str] = []
    notes: Notes = defaultdict(list)
    seen = set()
    bar = tqdm(desc="look for videos", unit="folder", disable=None)
    for folder, folders, files in os.walk(root, followlinks=True):
        bar.update()
        where = Path(folder).relative_to(root).as_posix()
        real = os.path.realpath(folder)
        if real in seen:
            notes["folders that were there already, left out"].append(where)
            folders.clear()
            continue
        seen.add(real)
        prefix = "" if where == "." else f"{where}/"
        notes["hidden, left out"] += [f"{prefix}{name}" for name in (*folders, *files) if name.startswith(".")]
        folders[:] = sorted(name for name in folders if not name.startswith("."))
        by_suffix: dict[bool | None, list[str]] = {True: [], False: [], None: []}  # videos, images, others
        for name in sorted(files):
            suffix = os.path.splitext(name)[1].lower()
            if not name.startswith(".") and name not in RECORDS:
                kind = True if suffix in VIDEO_SUFFIXES else False if suffix in IMAGE_SUFFIXES else None
                by_suffix[kind].append(name)
        notes["of an unknown type, left out"] += [f"{prefix}{name}" for name in by_suffix[None]]
        if by_suffix[False] and not by_suffix[True] and prefix:
            if LINE_BREAK.search(where):
                notes[UNLISTABLE].append(where)
            else:
                sizes[where] = None
            continue
        notes["images beside videos, left out"] += [f"{prefix}{name}" for name in by_suffix[False]]
        for path in (f"{prefix}{name}" for name in by_suffix[True]):
            fault, size = _look_at(root / path)
            if LINE_BREAK.search(path):
                notes[UNLISTABLE].append(path)
            elif fault:
                notes[f"{fault}, left out"].append(path)
                unusable.append(path)
            else:
                sizes[path] = size
    bar.close()
    notes[f"originals without a copy here (see {WITHOUT_COPY}), left out"] += without_copy(root)
    if not sizes:
        reason = "; ".join(describe(notes)) or "it is empty"
        raise ValueError(
            f"no video below {root} ({reason}): a video is a file that ends in one of "
            f"{', '.join(sorted(VIDEO_SUFFIXES))}, or a folder of .jpg or .png images"
        )
    for what, pattern in UNUSUAL.items():
        notes[f"with {what} in the name, kept"] += [path for path in sizes if pattern.search(path)]
    return Found(dict(sorted(sizes.items())), unusable, notes)


def _look_at(path: Path) -> tuple[str, int]:
    """What is wrong with a file from outside, and its size in bytes."""
    try:
        status = path.stat()
    except OSError:
        return "broken links", 0
    if not stat.S_ISREG(status.st_mode):
        return "no regular files", 0
    return "" if status.st_size else "empty files", status.st_size


def lists_from_folders(
    videos: str | Path,
    *,
    class_names: Sequence[str] | None = None,
    val_share: float = 0.15,
    test_share: float = 0.15,
    seed: int = 0,
    group: str = "",
) -> Lists:
    """Lists of a folder that has a folder of videos for each class, or such folders below train, val and test.

    Without folders for the splits a video's place is a function of its path and the seed, so other videos may come and
    go. Every class has at least one video in each list as long as it has three; to this end, and only to this end, a
    video may change its place when the first others of its class arrive.

    Args:
        videos: the folder.
        class_names: the classes in the order of their labels; None sorts the folders.
        val_share: share of the videos (0 .. 1) to validate on; 0 validates on the test videos.
        test_share: share of the videos to test on; 0 tests on the validation videos.
        seed: other seeds, other splits.
        group: regular expression; videos for which its first group (or the whole match) is the same stay together.

    Raises:
        ValueError: an argument out of range, or fewer than two classes.
    """
    if not (val_share >= 0 and test_share >= 0 and 0 < val_share + test_share < 1):
        raise ValueError(
            f"--val-share {val_share} and --test-share {test_share} have to be 0 or more, with a sum in (0, 1)"
        )
    try:
        pattern = re.compile(group)
    except re.error as error:
        raise ValueError(f"--group {group} is no regular expression ({error})") from None
    found = find_media(videos)
    notes, sizes = found.notes, found.sizes
    tops = {path.split("/")[0] for path in sizes if "/" in path}
    given = {top: SPLIT_NAMES[top.lower()] for top in tops if top.lower() in SPLIT_NAMES}
    if len(given) < len(tops) or "train" not in given.values():
        given = {}  # classes that happen to be called so
    rows: dict[str, tuple[str | None, str]] = {}  # path -> split, class
    for path in sizes:
        parts = path.split("/")
        if len(parts) < (3 if given else 2):
            notes["outside of a class folder, left out"].append(path)
        else:
            rows[path] = (given[parts[0]], parts[1]) if given else (None, parts[0])

    level = [Path(videos) / top for top in given] or [Path(videos)]
    folders = {p.name for top in level for p in top.iterdir() if p.is_dir() and not p.name.startswith(".")}
    names = sorted({of_class for _, of_class in rows.values()}) if class_names is None else list(class_names)
    notes["classes without a video" + (", left out" if class_names is None else "")] += sorted(
        (folders | set(names)) - {of_class for _, of_class in rows.values()}
    )
    if unknown := sorted({of_class for _, of_class in rows.values()} - set(names)):
        raise ValueError(f"{len(unknown)} folders are not among the class names given, such as {unknown[0]!r}")
    if len(names) < 2:
        raise ValueError(
            f"{videos} has {len(names)} class folders with videos ({', '.join(names)}), but at least two are needed: "
            "put the videos of each class into a folder of its own"
        )
    keys = _drop_duplicates(Path(videos), rows, sizes, notes)
    if group:
        matches = {path: pattern.search(path) for path in rows}
        notes["that --group does not match, each on its own"] += [path for path, match in matches.items() if not match]
        keys |= {path: f"group {match[match.re.groups and 1]}" for path, match in matches.items() if match}
    splits: Annotations = {split: [] for split in ("train", "val", "test")}
    drawn = _draw_splits(
        {path: (keys[path], of_class) for path, (split, of_class) in rows.items() if split in (None, "train")},
        {} if {"val", "test"} & set(given.values()) else {"test": test_share, "val": val_share},
        seed,
    )
    for path, (split, of_class) in rows.items():
        splits[drawn.get(path, split) or "train"].append((path, of_class))
    for split in ("val", "test"):
        with_videos = {of_class for _, of_class in splits[split]}
        notes[f"classes without a {split} video"] += sorted(set(names) - with_videos) if with_videos else []
    labels = {name: label for label, name in enumerate(names)}
    labelled = {split: [(path, labels[of_class]) for path, of_class in pairs] for split, pairs in splits.items()}
    return complete(Lists(labelled, names, notes), "test", "each class needs at least two videos")


def _drop_duplicates(
    videos: Path, rows: dict[str, tuple[str | None, str]], sizes: Mapping[str, int | None], notes: Notes
) -> dict[str, str]:
    """Drop files of equal content from the rows of a class; returns a key per path, equal for equal content."""
    of_size: dict[int | None, list[str]] = defaultdict(list)
    for path in rows:
        of_size[sizes[path]].append(path)
    keys = {path: path for path in rows}
    first: dict[bytes, str] = {}
    suspects = [path for size, paths in of_size.items() if size is not None and len(paths) > 1 for path in paths]
    for path in tqdm(suspects, "compare files of equal size", disable=None):
        digest = hashlib.blake2b()
        with open(videos / path, "rb") as file:
            while chunk := file.read(1 << 20):
                digest.update(chunk)
        same = first.setdefault(digest.digest(), path)
        keys[path] = same
        if same == path:
            continue
        if rows[same] == rows[path]:
            notes["copies of another file, left out"].append(f"{path} = {same}")
            del rows[path]
        else:
            notes["of the same content as a file of another class or split, kept"].append(f"{path} = {same}")
    return keys


def _draw_splits(media: Mapping[str, tuple[str, str]], shares: Mapping[str, float], seed: int) -> dict[str, str]:
    """Path -> split, for media of (key, class): what has the same key stays together, whatever its class.

    A number in [0, 1) that depends on key and seed only says which. Then a class that a split lacks gives it the key
    that came nearest to it: training before all others, and test before validation.
    """
    keys: dict[str, set[str]] = defaultdict(set)  # class -> its keys
    classes: dict[str, set[str]] = defaultdict(set)
    for key, of_class in media.values():
        keys[of_class].add(key)
        classes[key].add(of_class)
    numbers = {key: rng_for(seed, "split", key).random() for key in classes}
    split_of: dict[str, str] = {}
    for key, number in numbers.items():
        split_of[key] = "train"
        for split, share in shares.items():
            if 0 <= number < share:
                split_of[key] = split
            number -= share

    def count(of_class: str, split: str) -> int:
        return sum(split_of[key] == split for key in keys[of_class])

    order = ["train", *(split for split, share in shares.items() if share)]  # the most needed first
    for rank, split in enumerate(order):
        for of_class in sorted(keys):
            if count(of_class, split):
                continue
            for key in sorted(keys[of_class], key=lambda key: (numbers[key], key), reverse=split == "train"):
                of_more_need = order.index(split_of[key]) < rank
                if not of_more_need or all(count(other, split_of[key]) > 1 for other in classes[key]):
                    split_of[key] = split
                    break
    return {path: split_of[key] for path, (key, _) in media.items()}


def complete(lists: Lists, tested_on: str, cure: str) -> Lists:
    """Sort the lists, and use validation and test for each other if one of them is missing.

    Args:
        lists: the videos that were found.
        tested_on: the split that published accuracies are of.
        cure: how to get videos for a missing list.

    Raises:
        ValueError: a list would have no videos.
    """
    splits = {split: sorted(rows) for split, rows in lists.splits.items() if rows}
    if tested_on == "val" and "val" in splits and "test" in splits:
        splits["official_test"] = splits.pop("test")
        lists.notes["published accuracies are of the validation videos, so test is the same list as val"].append("")
    elif ("val" in splits) != ("test" in splits):
        there = "val" if "val" in splits else "test"
        lists.notes[f"there are no others, so val and test are both the {there} videos"].append("")
    for split, other in (("val", "test"), ("test", "val")):
        if split not in splits and other in splits:
            splits[split] = splits[other]
    if missing := [split for split in ("train", "val", "test") if split not in splits]:
        there = ", ".join(f"{len(rows)} for {split}" for split, rows in splits.items()) or "none at all"
        notes = "".join(f"; {note}" for note in describe(lists.notes))
        raise ValueError(f"no videos for {' and '.join(missing)} ({there}{notes}): {cure}")
    return Lists(splits, lists.class_names, lists.notes)


def write_lists(
    lists: Lists,
    out: str | Path,
    videos: str | Path,
    dataset: Dataset,
    *,
    recipe: Path | None = None,
    overwrite: bool = False,
) -> list[Path]:
    """Write the lists and class_names.txt; for videos of one's own an experiment too.

    A list that `check --clean` has taken bad files out of stays so while the list that it was (.orig) is the same.

    Frame folders of a data set whose recipe reads such get "path num_frames label" rows under the recipe's file names,
    everything else gets "path label" rows in train.csv, val.csv and test.csv. With `recipe`, data.yaml has what a
    configuration has to know of them, and config.yaml, which is written once and never again, makes them an experiment.

    Args:
        lists: what to write.
        out: folder to write to.
        videos: folder that the paths start from.
        dataset: row of `catalog.DATASETS`.
        recipe: experiment that config.yaml rests on.
        overwrite: replace lists that differ.

    Returns:
        The files that were written; those that were there already with the same content are left alone.

    Raises:
        ValueError: lists that differ are there, files and frame folders are mixed, images of folders are named in
            different ways, or a class name has a line break.
    """
    out, videos = Path(out), Path(videos)
    if name := next(filter(LINE_BREAK.search, lists.class_names), ""):
        raise ValueError(f"the class name {name!r} has a line break, which no list can hold: rename the class")
    paths = sorted({path for rows in lists.splits.values() for path, _ in rows})
    folders = [path for path in paths if (videos / path).is_dir()]
    template, columns, counts = "{}.csv", ("path", "label"), {}
    if folders and dataset.frame_list_file:
        if len(folders) < len(paths):
            raise ValueError(f"{videos} has {len(folders)} frame folders and {len(paths) - len(folders)} video files; "
                             "one list cannot hold both: move one kind away")  # fmt: skip
        template, columns = dataset.frame_list_file, CATALOG[dataset.kinds[0]].columns
        with ThreadPoolExecutor() as pool:
            numbers = pool.map(lambda path: len(_images(videos / path)), folders)
            counts = dict(zip(folders, tqdm(numbers, "count frames", len(folders), disable=None), strict=True))
    texts = {}
    for split, rows in lists.splits.items():
        lines = []
        for path, label in rows:
            fields = {"path": _quoted(path), "num_frames": str(counts.get(path, "")), "label": str(label)}
            lines.append(dataset.separator.join(fields[column] for column in columns) + "\n")
        texts[template.format(split)] = "".join(lines)
    texts["class_names.txt"] = format_class_names(lists.class_names)
    if recipe is not None:
        data = {"PATH_TO_DATA_DIR": str(out.resolve()), "PATH_PREFIX": str(videos.resolve())}
        data["PATH_LABEL_SEPARATOR"] = dataset.separator
        if folders:
            data["IMAGE_TEMPLATE"] = _common_template(videos, folders)
        content = {"DATA": data, "MODEL": {"NUM_CLASSES": len(lists.class_names)}}
        head = "# Written by tools/prepare_data.py lists; values of your own go into config.yaml.\n"
        texts["data.yaml"] = head + yaml.safe_dump(content, allow_unicode=True, sort_keys=False)
    differ = [name for name, text in texts.items() if (out / name).exists() and not _holds(out / name, text)]
    if differ and not overwrite:
        raise ValueError(
            f"{out} holds other lists ({', '.join(differ)} would change): choose another folder, or replace them with "
            "--overwrite"
        )
    if recipe is not None and not (out / "config.yaml").exists():
        texts["config.yaml"] = _experiment(out, recipe)
    same = {name for name, text in texts.items() if _content(out / name) == _bytes(text)}
    changed = [name for name, text in texts.items() if name not in same and (overwrite or not _holds(out / name, text))]
    lists.notes["that bad files were taken out of, left as they are (--overwrite writes them anew)"] += [
        name for name in texts if name not in same and name not in changed
    ]
    for name in changed:
        write_text(out / name, texts[name])
        if (original := original_of(out / name)).exists():
            original.unlink()
            lists.notes["that bad files were taken out of, written anew with them: run check --clean again"].append(
                name
            )
    return [out / name for name in changed]


def write_unlabelled(out: str | Path, paths: Iterable[str], *, overwrite: bool = False) -> Path:
    """Write test.csv of videos whose classes nobody knows: a trained model predicts them.

    Raises:
        ValueError: another test.csv is there.
    """
    target, text = Path(out) / "test.csv", "".join(f"{_quoted(path)} {UNKNOWN}\n" for path in paths)
    if _holds(target, text) and not overwrite:
        return target
    if target.exists() and not overwrite:
        raise ValueError(f"{target} is another list: choose another folder, or replace it with --overwrite")
    write_text(target, text)
    original_of(target).unlink(missing_ok=True)
    return target


def image_template(folder: Path) -> str:
    """DATA.IMAGE_TEMPLATE of a frame folder: img_00001.jpg is number 1 of "img_{:05d}.jpg".

    Raises:
        ValueError: there are none, or they are not numbered from 1.
    """
    names = _images(folder)
    if names and (match := re.fullmatch(r"(.*?)(\d+)(\.\w+)", names[0])):
        template = f"{match[1]}{{:0{len(match[2])}d}}{match[3]}"
        if all(template.format(number) in names for number in (1, len(names))):
            return template
    first = f"{names[0]} and so on" if names else "there are none"
    raise ValueError(f"the images of {folder} ({first}) are not numbered from 1 without gaps: rename them")


def _common_template(videos: Path, folders: Sequence[str]) -> str:
    """The template of all folders.

    Raises:
        ValueError: two folders have different ones, or one has none.
    """
    first: dict[str, str] = {}  # template -> a folder
    with ThreadPoolExecutor() as pool:
        templates = pool.map(lambda path: image_template(videos / path), folders)
        for path, template in zip(folders, tqdm(templates, "look at names", len(folders), disable=None), strict=True):
            first.setdefault(template, path)
    if len(first) > 1:
        (one, here), (other, there) = list(first.items())[:2]
        raise ValueError(
            f"images are named {one!r} in {here}, but {other!r} in {there}, and DATA.IMAGE_TEMPLATE is one for all: "
            "rename them, or make lists of each kind"
        )
    return next(iter(first))


def describe(notes: Notes) -> Iterator[str]:
    """A line a note: how many, of what kind, and the first ones."""
    for what, names in notes.items():
        if names == [""]:
            yield what
        elif names:
            shown = ", ".join(repr(name) if LINE_BREAK.search(name) else name for name in names[:3]) + (
                ", ..." if len(names) > 3 else ""
            )
            yield f"{len(names)} {what}: {shown}"


def count_rows(lists: Lists) -> Iterator[str]:
    """A line a list: its rows, and those of its smallest and largest class."""
    for split, rows in lists.splits.items():
        counts = Counter(label for _, label in rows)
        sizes = [counts[label] for label in range(len(lists.class_names))]
        yield f"{split}: {len(rows)} videos, {min(sizes)} to {max(sizes)} a class"


def _images(folder: Path) -> list[str]:
    return sorted(name for name in os.listdir(folder) if os.path.splitext(name)[1].lower() in IMAGE_SUFFIXES)


def _experiment(out: Path, recipe: Path) -> str:
    root = recipe.parents[2]
    inside = out.resolve().is_relative_to(root)
    base = os.path.relpath(recipe, out.resolve()) if inside else str(recipe)
    content = {"_BASE_": [base, "data.yaml"], "OUTPUT_DIR": f"output/{out.resolve().name}"}
    return (
        f"# Train and test: python tools/run_net.py --cfg {os.path.join(out, 'config.yaml')}\n"
        "# This file is yours: values given here come after those of the recipe and of data.yaml.\n"
    ) + yaml.safe_dump(content, allow_unicode=True, sort_keys=False)


def _quoted(path: str) -> str:
    """A path as a list holds it: in quotes where blanks or quotes at its ends would be taken for something else."""
    strange = path != path.strip() or path.startswith("\ufeff") or (path[0] == path[-1] == '"')
    return '"' + path.replace('"', '""') + '"' if strange else path


def _content(path: Path) -> bytes | None:
    return path.read_bytes() if path.exists() else None


def _holds(path: Path, text: str) -> bool:
    """Whether a file has this content, or had it until bad files were taken out."""
    return path.exists() and _bytes(text) in (_content(path), _content(original_of(path)))


def _bytes(text: str) -> bytes:
    return text.encode("utf-8", "surrogateescape")
