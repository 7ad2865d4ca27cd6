"""Find the media below a folder: video files, and folders of numbered images."""

from __future__ import annotations

import os
import re
import stat
from collections import defaultdict
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path

from tqdm import tqdm

from slowfast.datasets.rows import VIDEO_SUFFIXES
from slowfast.prepare.reencode import RECORDS, WITHOUT_COPY, without_copy

IMAGE_SUFFIXES = (".jpg", ".jpeg", ".png")
UNUSUAL = re.compile(r"""[\s,"']|[^\x00-\x7f]|(^|/)-""")
LINE_BREAK = re.compile(r"[\r\n]")
LEFT_OUT = {"hidden": re.compile(r"^\."), "with a line break in the name, which no list can hold": LINE_BREAK}

# Messages for the user: text -> the files or classes that it concerns.
Notes = dict[str, list[str]]


@dataclass(frozen=True)
class Found:
    """The media below a folder.

    Args:
        sizes: path below the folder, with "/" -> bytes of a video file; None for a folder of images.
        unusable: files with the name of a video that are empty, broken links, pipes and the like.
        notes: messages about other files.
    """

    sizes: dict[str, int | None] = field(default_factory=dict)
    unusable: list[str] = field(default_factory=list)
    notes: Notes = field(default_factory=lambda: defaultdict(list))


def find_media(videos: str | Path) -> Found:
    """Find video files and folders of images, links included.

    Raises:
        ValueError: the folder does not exist, or contains no video.
    """
    root = Path(videos)
    if not root.is_dir():
        raise ValueError(f"no folder {root}: name the one that contains the videos")
    found = Found()
    for prefix, files in tqdm(_walk(root, found.notes), desc="look for videos", unit="folder", disable=None):
        _add_files(found, root, prefix, files)
    found.notes[f"originals without a copy here (see {WITHOUT_COPY}), left out"] += without_copy(root)
    if not found.sizes:
        reason = "; ".join(describe(found.notes)) or "it is empty"
        raise ValueError(
            f"no video below {root} ({reason}): a video is a file that ends in one of "
            f"{', '.join(sorted(VIDEO_SUFFIXES))}, or a folder of .jpg or .png images"
        )
    unusual = "with blanks, commas, quotes, letters beyond ASCII or a leading dash in the name, kept"
    found.notes[unusual] += filter(UNUSUAL.search, found.sizes)
    return Found(dict(sorted(found.sizes.items())), found.unusable, found.notes)


def _walk(root: Path, notes: Notes) -> Iterator[tuple[str, list[str]]]:
    """Yield every folder once: the prefix of its paths ("" or "a/b/"), and the files in it that may be media."""
    seen: set[str] = set()
    for folder, folders, files in os.walk(root, followlinks=True):
        where = Path(folder).relative_to(root).as_posix()
        prefix = "" if where == "." else f"{where}/"
        real = os.path.realpath(folder)
        if real in seen:
            notes["folders that were there already, left out"].append(where)
            folders.clear()
            continue
        seen.add(real)
        kept = {*folders, *files} - set(RECORDS)
        for what, pattern in LEFT_OUT.items():
            left_out = sorted(name for name in kept if pattern.search(name))
            notes[f"{what}, left out"] += [f"{prefix}{name}" for name in left_out]
            kept.difference_update(left_out)
        folders[:] = sorted(kept.intersection(folders))
        yield prefix, sorted(kept.intersection(files))


def _add_files(found: Found, root: Path, prefix: str, files: list[str]) -> None:
    """Add the videos of one folder, or the folder itself if it has images and no videos."""
    videos = [f"{prefix}{name}" for name in files if name.lower().endswith(VIDEO_SUFFIXES)]
    images = [f"{prefix}{name}" for name in files if name.lower().endswith(IMAGE_SUFFIXES)]
    known = {*videos, *images}
    found.notes["of an unknown type, left out"] += [path for name in files if (path := f"{prefix}{name}") not in known]
    if images and not videos and prefix:
        found.sizes[prefix.rstrip("/")] = None
        return
    found.notes["images beside videos, left out"] += images
    for path in videos:
        fault, size = _look_at(root / path)
        if fault:
            found.notes[f"{fault}, left out"].append(path)
            found.unusable.append(path)
        else:
            found.sizes[path] = size


def _look_at(path: Path) -> tuple[str, int]:
    """Return the fault of a file, found without reading it ("" for none), and its size in bytes."""
    try:
        status = path.stat()
    except OSError:
        return "broken links", 0
    if not stat.S_ISREG(status.st_mode):
        return "no regular files", 0
    return "" if status.st_size else "empty", status.st_size


def describe(notes: Notes) -> Iterator[str]:
    """Yield one line per note: the number of files or classes, the text, and the first of them."""
    for what, names in notes.items():
        if names == [""]:
            yield what
        elif names:
            shown = [repr(name) if LINE_BREAK.search(name) else name for name in names[:3]]
            yield f"{len(names)} {what}: {', '.join(shown)}{', ...' * (len(names) > 3)}"


def images_of(folder: Path) -> list[str]:
    """Return the sorted names of the images in a folder."""
    return sorted(name for name in os.listdir(folder) if name.lower().endswith(IMAGE_SUFFIXES))


def image_template(folder: Path) -> str:
    """Return the template of the image names: img_00001.jpg is number 1 of "img_{:05d}.jpg".

    Raises:
        ValueError: there are no images, or they are not numbered from 1.
    """
    names = images_of(folder)
    if names and (match := re.fullmatch(r"([^{}]*?)(\d+)(\.\w+)", names[0])):
        template = f"{match[1]}{{:0{len(match[2])}d}}{match[3]}"
        if all(template.format(number) in names for number in (1, len(names))):
            return template
    first = f"{names[0]} and so on" if names else "there are none"
    fault = "are not numbered from 1 without gaps, or have braces in their names"
    raise ValueError(f"the images of {folder} ({first}) {fault}: rename them")
