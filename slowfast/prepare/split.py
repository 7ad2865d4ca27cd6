"""Make lists of a folder that contains one folder of videos per class: draw training, validation and test videos."""

from __future__ import annotations

import re
from collections import defaultdict
from collections.abc import Mapping, Sequence
from pathlib import Path

from tqdm import tqdm

from slowfast.prepare.scan import Notes, find_media
from slowfast.prepare.write import SPLIT_NAMES, Lists, complete
from slowfast.utils.io import sha256
from slowfast.utils.rng import rng_for

Rows = dict[str, tuple[str, str]]  # path -> split, class


def lists_from_folders(
    videos: str | Path,
    *,
    class_names: Sequence[str] | None = None,
    val_share: float = 0.15,
    test_share: float = 0.15,
    seed: int = 0,
    group: str = "",
) -> Lists:
    """Make lists of a folder with one folder of videos per class, or with such folders below train, val and test.

    Without folders for the splits, the split of a video is a function of its path and the seed, so other videos do not
    move when videos are added or removed. Small classes are an exception: each list contains a video of every class
    that has at least three, so a video of a class with few videos may move to another list when the class gets more.

    Args:
        videos: the folder.
        class_names: the classes in the order of their labels; None sorts the folders.
        val_share: share of the videos (0 .. 1) for validation; if 0, the test videos are used for it.
        test_share: share of the videos (0 .. 1) for the test; if 0, the validation videos are used for it.
        seed: seed of the draw.
        group: regular expression; videos with the same first group (or whole match) are in the same split.

    Raises:
        ValueError: an argument is out of range, or there are fewer than two classes.
    """
    if not (val_share >= 0 and test_share >= 0 and 0 < val_share + test_share < 1):
        raise ValueError(
            f"--val-share {val_share} and --test-share {test_share} must be 0 or more, with a sum in (0, 1)"
        )
    try:
        pattern = re.compile(group)
    except re.error as error:
        raise ValueError(f"--group {group} is no regular expression ({error})") from None
    found = find_media(videos)
    notes, given = found.notes, _given_splits(found.sizes)
    rows = _rows(found.sizes, given, notes)
    names = _class_names(Path(videos), rows, given, class_names, notes)
    keys = _drop_duplicates(Path(videos), rows, found.sizes, notes)
    if group:
        matches = {path: pattern.search(path) for path in rows}
        notes["that --group does not match, each on its own"] += [path for path, match in matches.items() if not match]
        keys |= {path: f"group {match[match.re.groups and 1]}" for path, match in matches.items() if match}
    if not {"val", "test"} & set(given.values()):
        media = {path: (keys[path], of_class) for path, (_, of_class) in rows.items()}
        drawn = draw_splits(media, {"test": test_share, "val": val_share}, seed)
        rows = {path: (drawn[path], of_class) for path, (_, of_class) in rows.items()}
    labels = {name: label for label, name in enumerate(names)}
    splits = {
        split: [(path, labels[of_class]) for path, (of_split, of_class) in rows.items() if of_split == split]
        for split in ("train", "val", "test")
    }
    for split in ("val", "test"):
        present = {names[label] for _, label in splits[split]}
        notes[f"classes without a {split} video"] += sorted(set(names) - present) if present else []
    return complete(Lists(splits, names, notes), "test", "each class needs at least two videos")


def _given_splits(paths: Mapping[str, object]) -> dict[str, str]:
    """Return folder -> split if all top folders have names of splits, and one is the training split; else nothing."""
    tops = {path.split("/")[0] for path in paths if "/" in path}
    given = {top: SPLIT_NAMES[top.lower()] for top in tops if top.lower() in SPLIT_NAMES}
    return given if len(given) == len(tops) and "train" in given.values() else {}


def _rows(paths: Mapping[str, object], given: Mapping[str, str], notes: Notes) -> Rows:
    rows: Rows = {}
    for path in paths:
        *folders, _ = path.split("/")
        split = given[folders.pop(0)] if given and folders else "train"
        if folders:
            rows[path] = (split, folders[0])
        else:
            notes["outside of a class folder, left out"].append(path)
    return rows


def _class_names(
    videos: Path, rows: Rows, given: Mapping[str, str], class_names: Sequence[str] | None, notes: Notes
) -> list[str]:
    """Return the classes in the order of their labels.

    Raises:
        ValueError: there are fewer than two classes, or folders that are not among the names.
    """
    present = {of_class for _, of_class in rows.values()}
    names = sorted(present) if class_names is None else list(class_names)
    level = [videos / top for top in given] or [videos]
    folders = {p.name for top in level for p in top.iterdir() if p.is_dir() and not p.name.startswith(".")}
    notes["classes without a video" + (", left out" if class_names is None else "")] += sorted(
        (folders | set(names)) - present
    )
    if unknown := sorted(present - set(names)):
        raise ValueError(f"{len(unknown)} folders are not among the class names, such as {unknown[0]!r}: add them")
    if len(names) < 2:
        raise ValueError(
            f"{videos} has {len(names)} class folders with videos ({', '.join(names)}), but at least two are needed: "
            "put the videos of each class into a folder of its own"
        )
    return names


def _drop_duplicates(videos: Path, rows: Rows, sizes: Mapping[str, int | None], notes: Notes) -> dict[str, str]:
    """Remove duplicate files of a class from its rows; return a key per path, equal for files of equal content."""
    of_size: dict[int | None, list[str]] = defaultdict(list)
    for path in rows:
        of_size[sizes[path]].append(path)
    keys = {path: path for path in rows}
    first: dict[str, str] = {}
    suspects = [path for size, paths in of_size.items() if size is not None and len(paths) > 1 for path in paths]
    for path in tqdm(suspects, "compare files of equal size", disable=None):
        same = first.setdefault(sha256(videos / path), path)
        keys[path] = same
        if same != path and rows[same] == rows[path]:
            notes["copies of another file, left out"].append(f"{path} = {same}")
            del rows[path]
        elif same != path:
            notes["of the same content as a file of another class or split, kept"].append(f"{path} = {same}")
    return keys


def draw_splits(media: Mapping[str, tuple[str, str]], shares: Mapping[str, float], seed: int) -> dict[str, str]:
    """Draw a split for each medium; media with the same key are in the same split, also across classes.

    The split follows from a number in [0, 1) that depends on key and seed only. If a class is then missing in a split,
    its key with the nearest number moves there; training is filled first, then test, then validation.

    Args:
        media: path -> key, class.
        shares: split -> share of the keys; the others are for training.
        seed: seed of the draw.

    Returns:
        path -> split.
    """
    keys: dict[str, set[str]] = defaultdict(set)  # class -> its keys
    classes: dict[str, set[str]] = defaultdict(set)
    for key, of_class in media.values():
        keys[of_class].add(key)
        classes[key].add(of_class)
    numbers = {key: rng_for(seed, "split", key).random() for key in classes}
    split_of = {key: _split_at(number, shares) for key, number in numbers.items()}
    order = ["train", *(split for split, share in shares.items() if share)]  # in this order, splits are filled

    def count(of_class: str, split: str) -> int:
        return sum(split_of[key] == split for key in keys[of_class])

    def may_leave(key: str, rank: int) -> bool:
        needed_more = order.index(split_of[key]) < rank
        return not needed_more or all(count(of_class, split_of[key]) > 1 for of_class in classes[key])

    for rank, split in enumerate(order):
        for of_class in sorted(keys):
            if not count(of_class, split):
                nearest = sorted(keys[of_class], key=lambda key: (numbers[key], key), reverse=split == "train")
                if key := next((key for key in nearest if may_leave(key, rank)), None):
                    split_of[key] = split
    return {path: split_of[key] for path, (key, _) in media.items()}


def _split_at(number: float, shares: Mapping[str, float]) -> str:
    for split, share in shares.items():
        if number < share:
            return split
        number -= share
    return "train"
