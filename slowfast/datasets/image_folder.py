"""List the images in a folder that contains one folder per class."""

import os
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import numpy as np

from slowfast.datasets.lists import CLASS_FILES, SHOWN, ListError, VideoList

SPLITS = ("train", "val")
SUFFIXES = (".jpg", ".jpeg", ".png", ".webp", ".bmp", ".ppm", ".pgm", ".tif", ".tiff")
NAME_FILES = (*CLASS_FILES, "LOC_synset_mapping.txt")


def load_image_folder(root: str | Path, split: str, *, num_classes: int | None = None) -> VideoList:
    """List the images `root/split/<class>/*`; the label is the index of the class folder among the sorted folder names.

    The class names are the names of the folders, unless a file `class_names.txt`, `classes.txt` or ImageNet's
    `LOC_synset_mapping.txt` in `root` contains other names, with a row `<folder> <name>` per class. If `num_classes` is
    given, it is the required number of class folders.

    Raises:
        ListError: a folder is missing or empty, the number of classes is wrong, training and validation differ in their
            classes, or names are missing.
    """
    root = Path(root)
    folder = root / split
    classes = _class_folders(folder)
    for other in SPLITS:
        if other == split or not (root / other).is_dir():
            continue
        if alone := set(classes).symmetric_difference(_class_folders(root / other)):
            raise ListError(
                f"{folder} and {root / other} differ in {len(alone)} class folders ({_first(sorted(alone))}): labels "
                "count the sorted folders, so both need the same ones"
            )
    if num_classes not in (None, len(classes)):
        raise ListError(
            f"{folder} has {len(classes)} class folders ({_first(classes)}), not {num_classes}: num_classes must be "
            f"{len(classes)}, or the folders are incomplete"
        )
    with ThreadPoolExecutor(16) as pool:  # many folders at once, for a network drive
        listings = list(pool.map(_images, (folder / name for name in classes)))
    if empty := [name for name, files in zip(classes, listings, strict=True) if not files]:
        raise ListError(
            f"{len(empty)} of {len(classes)} class folders in {folder} hold no images ({_first(empty)}): remove them, "
            f"or add files that end in {', '.join(SUFFIXES)}"
        )
    return VideoList(
        (f"{name}/{file}" for name, files in zip(classes, listings, strict=True) for file in files.split("/")),
        np.repeat(np.arange(len(classes)), [files.count("/") + 1 for files in listings]),
        prefix=str(folder),
        source=str(folder),
        class_names=_class_names(root, classes),
    )


def _class_folders(folder: Path) -> list[str]:
    try:
        with os.scandir(folder) as entries:
            names = sorted(entry.name for entry in entries if entry.is_dir() and not entry.name.startswith("."))
    except OSError as error:
        raise ListError(f"no folder {folder} ({error.strerror}): the data folder must hold train/ and val/") from None
    if not names:
        raise ListError(f"{folder} holds no images: it needs a folder of images for every class")
    return names


def _images(folder: Path) -> str:
    """Return the sorted names of the images, joined by slashes: one object instead of one per image."""
    files = (name for name in os.listdir(folder) if name.lower().endswith(SUFFIXES) and not name.startswith("."))
    return "/".join(sorted(files))


def _class_names(root: Path, classes: Sequence[str]) -> list[str]:
    path = next((root / name for name in NAME_FILES if (root / name).is_file()), None)
    if path is None:
        return list(classes)
    lines = path.read_text("utf-8-sig", "surrogateescape").splitlines()
    rows = [line.split(maxsplit=1) for line in lines if line.strip()]
    names = {row[0]: row[-1] for row in rows}
    if lost := [name for name in classes if name not in names]:
        raise ListError(
            f"{path} names {len(classes) - len(lost)} of {len(classes)} class folders, not {_first(lost)}: write one "
            "'<folder> <name>' per line, or move the file away"
        )
    return [names[name] for name in classes]


def _first(names: Sequence[str]) -> str:
    return ", ".join(names[:SHOWN]) + (", ..." if len(names) > SHOWN else "")
