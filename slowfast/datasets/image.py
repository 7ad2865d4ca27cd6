"""Still images in one folder a class: the same samples and the same items as videos, without a time axis."""

import os
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from PIL import Image
from torch.utils.data import Dataset

from slowfast.datasets.crops import resized_crop_box
from slowfast.datasets.lists import CLASS_FILES, SHOWN, ListError, VideoList
from slowfast.datasets.rand_augment import RandAugment
from slowfast.datasets.reader import MediaError
from slowfast.datasets.transforms import RandomErasing
from slowfast.datasets.video import MAX_TRIES
from slowfast.utils.rng import rng_for

SPLITS = ("train", "val")
SUFFIXES = (".jpg", ".jpeg", ".png", ".webp", ".bmp", ".ppm", ".pgm", ".tif", ".tiff")
NAME_FILES = (*CLASS_FILES, "LOC_synset_mapping.txt")


def load_image_folder(root: str | Path, split: str, *, num_classes: int | None = None, threads: int = 16) -> VideoList:
    """List the images `root/split/<class>/*`; a label is the place of its folder in the sorted names.

    Classes are called after their folders, unless a file `class_names.txt`, `classes.txt` or ImageNet's own
    `LOC_synset_mapping.txt` in `root` gives each folder a name, a row `<folder> <name>` each.

    Args:
        root: DATA.PATH_TO_DATA_DIR.
        split: "train" or "val".
        num_classes: number of folders there has to be (MODEL.NUM_CLASSES); None does not check.
        threads: that list folders side by side, which helps where the disk is far away.

    Raises:
        ListError: a folder is missing or empty, classes are not as many as they should be, or not the same for
            training and validation, or their names are not complete.
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
            f"{folder} has {len(classes)} class folders ({_first(classes)}), but MODEL.NUM_CLASSES is {num_classes}: "
            f"set MODEL.NUM_CLASSES {len(classes)}, or complete the folders"
        )
    with ThreadPoolExecutor(threads) as pool:
        listings = list(pool.map(_images, (folder / name for name in classes)))
    if empty := [name for name, files in zip(classes, listings, strict=True) if not files]:
        raise ListError(
            f"{len(empty)} of {len(classes)} class folders in {folder} hold no images ({_first(empty)}); images are "
            f"files that end in {', '.join(SUFFIXES)}"
        )
    counts = [files.count("/") + 1 for files in listings]
    return VideoList(
        (f"{name}/{file}" for name, files in zip(classes, listings, strict=True) for file in files.split("/")),
        np.repeat(np.arange(len(classes)), counts),
        prefix=str(folder),
        source=str(folder),
        class_names=_class_names(root, classes),
    )


def _class_folders(folder: Path) -> list[str]:
    try:
        with os.scandir(folder) as entries:
            names = sorted(entry.name for entry in entries if entry.is_dir() and not entry.name.startswith("."))
    except OSError as error:
        raise ListError(
            f"no folder {folder} ({error.strerror}): set DATA.PATH_TO_DATA_DIR to the folder that holds train/ and val/"
        ) from None
    if not names:
        raise ListError(f"{folder} holds no images: it needs a folder of images for every class")
    return names


def _images(folder: Path) -> str:
    """Sorted names of the images, joined by slashes: one object instead of one a row."""
    files = (name for name in os.listdir(folder) if name.lower().endswith(SUFFIXES) and not name.startswith("."))
    return "/".join(sorted(files))


def _class_names(root: Path, classes: Sequence[str]) -> list[str]:
    path = next((root / name for name in NAME_FILES if (root / name).is_file()), None)
    if path is None:
        return list(classes)
    rows = [line.split(maxsplit=1) for line in path.read_text(encoding="utf-8-sig").splitlines() if line.strip()]
    names = {row[0]: row[-1] for row in rows}
    if lost := [name for name in classes if name not in names]:
        raise ListError(
            f"{path} names {len(classes) - len(lost)} of {len(classes)} class folders, not {_first(lost)}: write one "
            "'<folder> <name>' per line, or move the file away"
        )
    return [names[name] for name in classes]


def _first(names: Sequence[str]) -> str:
    return ", ".join(names[:SHOWN]) + (", ..." if len(names) > SHOWN else "")


def read_image(path: str) -> np.ndarray:
    """Decode an image into (H, W, 3) uint8 RGB, exactly as `PIL.Image.open(path).convert("RGB")` does.

    So released accuracies hold: grey, CMYK, palettes and alpha become RGB by Pillow's rules, 16-bit grey is cut off at
    255, and an orientation in the EXIF data is not applied.

    Raises:
        MediaError: the file is missing, damaged, cut short or not an image.
    """
    try:
        with Image.open(path) as image:
            return np.asarray(image.convert("RGB"))
    except Exception as error:  # of any type: the parsers of damaged files raise what they happen to meet
        raise MediaError(path, f"not a readable image ({error})") from None


def resize(image: np.ndarray, height: int, width: int) -> np.ndarray:
    """Resize an (H, W, 3) uint8 image with Pillow's bicubic filter, which averages where it makes smaller."""
    if image.shape[:2] == (height, width):
        return image.copy()
    return np.array(Image.fromarray(image).resize((width, height), Image.Resampling.BICUBIC))


def centre_view(image: np.ndarray, scale: int, crop: int) -> np.ndarray:
    """Resize the short side to `scale` and cut the centre: torchvision's Resize and CenterCrop of a Pillow image.

    Args:
        image: (H, W, 3) uint8.
        scale: short side in pixels.
        crop: side of the result in pixels, at most `scale`.

    Returns:
        (crop, crop, 3) uint8.
    """
    assert crop <= scale, (crop, scale)
    short, long = sorted(image.shape[:2])
    long = int(scale * long / short)
    height, width = (scale, long) if image.shape[0] <= image.shape[1] else (long, scale)
    y, x = round((height - crop) / 2), round((width - crop) / 2)
    return resize(image, height, width)[y : y + crop, x : x + crop]


@dataclass(frozen=True)
class ImageTransform:
    """One augmented copy of an image: random resized crop, flip, RandAugment, random erasing, in timm's order.

    Args:
        crop: side of the square result in pixels (DATA.TRAIN_CROP_SIZE).
        area_range: smallest and largest share of the area (DATA.TRAIN_JITTER_SCALES_RELATIVE).
        aspect_range: smallest and largest width / height (DATA.TRAIN_JITTER_ASPECT_RELATIVE).
        flip: mirror half of the images (DATA.RANDOM_FLIP).
        rand_augment: None for none.
        erase: None for none.
    """

    crop: int
    area_range: tuple[float, float]
    aspect_range: tuple[float, float]
    flip: bool = True
    rand_augment: RandAugment | None = None
    erase: RandomErasing | None = None

    def __call__(self, image: np.ndarray, rng: np.random.Generator) -> np.ndarray:
        """Augment an (H, W, 3) uint8 image into a new (crop, crop, 3) one."""
        height, width = image.shape[:2]
        y, x, h, w = resized_crop_box(height, width, self.area_range, self.aspect_range, rng)
        image = resize(image[y : y + h, x : x + w], self.crop, self.crop)
        if self.flip and rng.random() < 0.5:
            image = np.ascontiguousarray(image[:, ::-1])
        frames = image[None]
        if self.rand_augment is not None:
            frames = self.rand_augment(frames, rng)
        return (frames if self.erase is None else self.erase(frames, rng))[0]


class ImageDataset(Dataset[dict[str, Any]]):
    """Images of a folder, for training (with `transform`) or for validation and test (without).

    `dataset[(epoch, index)]` is a dict as `VideoDataset` gives it, for the same loop: "video" is V uint8 images
    (C, H, W), augmented copies of one decoded image in training and the one centre view in an evaluation; "label",
    "index" and "view" are (V,), "bad" lists (path, reason). Training replaces an undecodable image by another one,
    drawn by the same coordinates; an evaluation gives an item without views, named in "bad".

    Args:
        samples: the images.
        seed: first coordinate of every draw.
        transform: augmentation; None makes this an evaluation.
        num_copies: V of training.
        scale: short side that an evaluation resizes to, in pixels.
        crop: side of the centre crop of an evaluation, in pixels.
        reverse_channels: BGR instead of RGB.
    """

    def __init__(
        self,
        samples: VideoList,
        *,
        seed: int = 0,
        transform: ImageTransform | None = None,
        num_copies: int = 1,
        scale: int = 256,
        crop: int = 224,
        reverse_channels: bool = False,
    ) -> None:
        self.samples = samples
        self.seed = seed
        self.transform = transform
        self.num_copies = num_copies
        self.scale = scale
        self.crop = crop
        self.reverse_channels = reverse_channels

    def __len__(self) -> int:
        return len(self.samples)

    def __getitem__(self, key: tuple[int, int]) -> dict[str, Any]:
        epoch, index = key
        if self.transform is None:
            try:
                return self._item([centre_view(read_image(self.samples.path(index)), self.scale, self.crop)], index)
            except MediaError as error:
                return self._item([], index, [(error.path, error.reason)])
        row, bad = index, []
        for attempt in range(MAX_TRIES):
            try:
                image = read_image(self.samples.path(row))
            except MediaError as error:
                bad.append((error.path, error.reason))
                step = rng_for(self.seed, epoch, index, "substitute", attempt).integers(max(len(self) - 1, 1))
                row = (index + 1 + int(step)) % len(self)
            else:
                copies = [self.transform(image, rng_for(self.seed, epoch, index, c)) for c in range(self.num_copies)]
                return self._item(copies, row, bad)
        listed = "".join(f"\n  {path}: {reason}" for path, reason in bad)
        raise MediaError(f"{MAX_TRIES} images in a row cannot be decoded:{listed}")

    def _item(self, views: list[np.ndarray], row: int, bad: Sequence[tuple[str, str]] = ()) -> dict[str, Any]:
        count = len(views)
        images = [torch.from_numpy(view).movedim(-1, 0) for view in views]
        return {
            "video": [image.flip(0) for image in images] if self.reverse_channels else images,
            "label": torch.full((count,), int(self.samples.labels[row])),
            "index": torch.full((count,), row),
            "view": torch.arange(count),
            "bad": list(bad),
        }
