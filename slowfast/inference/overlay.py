"""Draw maps of the positions that a network uses over the frames of a video."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import dataclass

import cv2
import numpy as np
import torch
from PIL import Image, ImageDraw
from torch import Tensor

from slowfast.datasets.lists import Sample
from slowfast.datasets.reader import stream_frames
from slowfast.datasets.rows import UNKNOWN
from slowfast.inference.draw import (
    MUTED,
    PANEL,
    SHORT_SIDE,
    TEXT,
    enlarged,
    font,
    new_video,
    resized,
    shortened,
    write_png,
)
from slowfast.inference.network import Network

COLUMNS = 8  # frames of a picture
WIDTH = 1600  # of a picture in pixels, about
UNSEEN = 0.35  # brightness of the parts of a frame that no clip contains
OPACITY = (0.15, 0.75)  # of the colours at the lowest and at the highest value


@dataclass(frozen=True)
class Heat:
    """Values over the frames of a video."""

    numbers: np.ndarray  # (N,) frames that the network saw, rising
    maps: np.ndarray  # (N, H', W') their values
    covered: float  # height and width of the central part of a frame that clips show, as shares of the short side
    low: float  # value of the first colour
    high: float  # value of the last colour
    length: int  # frames of the video

    def at(self, number: int) -> np.ndarray:
        """Return the values (H', W') of a frame, from 0 (low) to 1 (high); between seen frames they change linearly."""
        after = int(np.searchsorted(self.numbers, number))
        last = len(self.numbers) - 1
        left, right = max(0, min(after - 1, last)), min(after, last)
        distance = self.numbers[right] - self.numbers[left]
        share = (number - self.numbers[left]) / distance if distance else 0.0
        value = (1 - share) * self.maps[left] + share * self.maps[right]
        return ((value - self.low) / max(self.high - self.low, 1e-12)).clip(0, 1)


def video_heat(net: Network, path: str, compute: Callable[[Tensor], Tensor], from_zero: bool) -> Heat:
    """Compute the values of all temporal views of a video; frames of several views get the mean.

    Args:
        net: the network, with one crop per view.
        path: of the video.
        compute: clip (1, C, T, H, W) -> map (T', H', W').
        from_zero: the lowest colour is for 0, else for the lowest value.

    Raises:
        MediaError: the video cannot be decoded.
    """
    dataset, chosen, lengths = net.views_of_video, list[int](), list[int]()

    def choose(length: int) -> list[int]:
        lengths.append(length)
        chosen[:] = dataset.frame_indices(length, 0)
        return list(chosen)

    frames = dataset.reader.read(Sample(path, UNKNOWN), choose)
    time, found = net.cfg.DATA.NUM_FRAMES, list[Tensor]()
    for clip in net.transform(frames).split(1):
        values = compute(clip).float()[None, None]
        size = (time, *values.shape[3:])
        found.append(torch.nn.functional.interpolate(values, size=size, mode="trilinear", align_corners=False)[0, 0])
    numbers, place = np.unique(chosen, return_inverse=True)
    values = torch.cat(found).cpu().numpy()
    maps = np.stack([values[place == row].mean(0) for row in range(len(numbers))])
    low = 0.0 if from_zero else float(maps.min())
    return Heat(numbers, maps, dataset.crop / dataset.scale, low, float(maps.max()), lengths[-1])


def colored(values: np.ndarray) -> np.ndarray:
    """Return the colours (H, W, 3) RGB of values (H, W) from 0 to 1."""
    return cv2.applyColorMap((255 * values).round().astype(np.uint8), cv2.COLORMAP_TURBO)[..., ::-1]


def draw_heat(frame: np.ndarray, values: np.ndarray, covered: float) -> np.ndarray:
    """Return a frame (H, W, 3) RGB with the colours of values (H', W') over its central square."""
    height, width = frame.shape[:2]
    side = round(min(height, width) * covered)
    top, left = (height - side) // 2, (width - side) // 2
    part = np.s_[top : top + side, left : left + side]
    smooth = cv2.resize(values.astype(np.float32), (side, side), interpolation=cv2.INTER_CUBIC).clip(0, 1)
    opacity = (OPACITY[0] + (OPACITY[1] - OPACITY[0]) * smooth)[..., None]
    drawn = frame * UNSEEN
    drawn[part] = (1 - opacity) * frame[part] + opacity * colored(smooth)
    return drawn.round().astype(np.uint8)


def draw_legend(width: int, height: int, title: str, ends: tuple[str, str]) -> Image.Image:
    """Return a strip with a title on the left, and on the right the colours between their lowest and highest value."""
    image = Image.new("RGB", (width, height), PANEL)
    pen, size = ImageDraw.Draw(image), max(11, round(0.4 * height))
    bar, thick, gap, y = round(0.16 * width), round(0.34 * height), size // 2, height / 2
    right = width - gap
    pen.text((right, y), ends[1], fill=MUTED, font=font(size), anchor="rm")
    right -= round(font(size).getlength(ends[1])) + gap
    colors = np.repeat(colored(np.linspace(0, 1, bar)[None]), thick, 0)
    image.paste(Image.fromarray(colors), (right - bar, round(y - thick / 2)))
    right -= bar + gap
    pen.text((right, y), ends[0], fill=MUTED, font=font(size), anchor="rm")
    right -= round(font(size).getlength(ends[0])) + 2 * gap
    title = shortened(title, size, right - gap)
    pen.text((gap, y), title, fill=TEXT, font=font(size, title), anchor="lm")
    return image


def _frames(net: Network, path: str, wanted: Callable[[int], bool]) -> Iterator[tuple[int, float, np.ndarray]]:
    """Yield number, time and RGB pixels of the wanted frames."""
    for number, begin, _, pixels in stream_frames(path, wanted, image_template=net.cfg.DATA.IMAGE_TEMPLATE):
        if pixels is not None:
            yield number, begin, pixels


def write_picture(net: Network, path: str, heat: Heat, title: str, ends: tuple[str, str], out: str) -> None:
    """Write evenly spaced frames of a video, and below each of them the frame with its values, as a PNG."""
    count = min(COLUMNS, heat.length)
    chosen = {round((place + 0.5) * heat.length / count - 0.5) for place in range(count)}
    frames = [*_frames(net, path, chosen.__contains__)]
    gap, head, foot = 6, 48, 26
    height, width = frames[0][2].shape[:2]
    wide = (WIDTH - gap) // count - gap
    scale = min(wide / width, SHORT_SIDE / min(height, width))
    tile = round(width * scale), round(height * scale)
    size = max(680, gap + count * (tile[0] + gap)), head + 2 * (tile[1] + gap) + foot
    image = Image.new("RGB", size, PANEL)
    image.paste(draw_legend(size[0], head, title, ends))
    pen = ImageDraw.Draw(image)
    for column, (number, begin, pixels) in enumerate(frames):
        x = gap + column * (tile[0] + gap)
        frame = np.asarray(resized(pixels, tile))
        image.paste(Image.fromarray(frame), (x, head))
        image.paste(Image.fromarray(draw_heat(frame, heat.at(number), heat.covered)), (x, head + tile[1] + gap))
        place = (x + tile[0] / 2, size[1] - foot / 2 - 2)
        pen.text(place, f"{begin:.2f} s", fill=MUTED, font=font(14), anchor="mm")
    write_png(image, out)


def write_overlay(net: Network, path: str, heat: Heat, title: str, ends: tuple[str, str], out: str) -> None:
    """Write a video without sound: each frame, beside it the frame with its values, and the legend below."""
    legend: np.ndarray | None = None
    with new_video(out) as (_, add):
        for number, begin, pixels in _frames(net, path, lambda number: True):
            width, height = enlarged(pixels)
            if legend is None:
                legend = np.asarray(draw_legend(2 * width, round(0.06 * height) * 2, title, ends))
            large = np.asarray(resized(pixels, (width, height)))
            add(np.vstack([np.hstack([large, draw_heat(large, heat.at(number), heat.covered)]), legend]), begin)
