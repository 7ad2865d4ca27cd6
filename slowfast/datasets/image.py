"""Decode, resize and augment still images as Pillow does, because the published accuracies depend on it."""

from dataclasses import dataclass

import numpy as np
from PIL import Image

from slowfast.datasets.container import MediaError, despite_faults
from slowfast.datasets.crops import resized_crop_box
from slowfast.datasets.rand_augment import RandAugment
from slowfast.datasets.transforms import RandomErasing


def read_image(path: str) -> np.ndarray:
    """Decode an image into (H, W, 3) uint8 RGB, exactly as `PIL.Image.open(path).convert("RGB")` does.

    Grey, CMYK, palettes and alpha are converted to RGB by Pillow's rules, 16-bit grey is clipped at 255, and the
    orientation in the EXIF data is not applied.

    Raises:
        MediaError: the file is missing, damaged, cut short or not an image.
    """

    def read() -> np.ndarray:
        try:
            with Image.open(path) as image:
                return np.asarray(image.convert("RGB"))
        except Exception as error:  # any type: for damaged files the parsers raise exceptions of many types
            raise MediaError(path, f"not a readable image ({error})") from error

    return despite_faults(read)


def resize(image: np.ndarray, height: int, width: int) -> np.ndarray:
    """Resize an (H, W, 3) uint8 image with Pillow's bicubic filter, which antialiases when it reduces the size."""
    return np.array(Image.fromarray(image).resize((width, height), Image.Resampling.BICUBIC))


def centre_view(image: np.ndarray, scale: int, crop: int) -> np.ndarray:
    """Resize the short side of an image (H, W, 3) uint8 to `scale`, and return the centre (crop, crop, 3).

    The result is that of torchvision's Resize and CenterCrop of Pillow images.
    """
    assert crop <= scale, (crop, scale)
    short, long = sorted(image.shape[:2])
    long = int(scale * long / short)
    height, width = (scale, long) if image.shape[0] <= image.shape[1] else (long, scale)
    y, x = round((height - crop) / 2), round((width - crop) / 2)
    return resize(image, height, width)[y : y + crop, x : x + crop]


@dataclass(frozen=True)
class ImageTransform:
    """Augment a copy of an image in timm's order: random resized crop, flip, RandAugment, random erasing.

    The arguments are those of `TrainTransform`.
    """

    crop: int
    area_range: tuple[float, float]
    aspect_range: tuple[float, float]
    flip: bool = True
    rand_augment: RandAugment | None = None
    erase: RandomErasing | None = None

    def __call__(self, image: np.ndarray, rng: np.random.Generator, out: np.ndarray | None = None) -> np.ndarray:
        """Augment an (H, W, 3) uint8 image into a (crop, crop, 3) one, `out` or a new one."""
        height, width = image.shape[:2]
        y, x, h, w = resized_crop_box(height, width, self.area_range, self.aspect_range, rng)
        image = resize(image[y : y + h, x : x + w], self.crop, self.crop)
        if self.flip and rng.random() < 0.5:
            image = np.ascontiguousarray(image[:, ::-1])
        frames = image[None]
        if self.rand_augment is not None:
            frames = self.rand_augment(frames, rng)
        if self.erase is not None:
            frames = self.erase(frames, rng)
        if out is None:
            return frames[0]
        out[...] = frames[0]
        return out
