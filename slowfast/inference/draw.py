"""Draw predictions: over a video, over the time of a video, and over the frames that the network saw."""

from __future__ import annotations

import colorsys
import os
from collections.abc import Callable, Generator, Iterator, Sequence
from contextlib import contextmanager
from fractions import Fraction
from functools import lru_cache
from typing import Any

import av
import numpy as np
import torch
from fvcore.common.config import CfgNode
from PIL import Image, ImageDraw, ImageFont
from torch import Tensor

from slowfast.datasets.build import Split, channel_order
from slowfast.datasets.container import address, open_video, video_stream
from slowfast.datasets.decode import stream_video
from slowfast.inference.results import Class
from slowfast.inference.windows import Timeline, rate_and_seconds
from slowfast.utils.io import atomic_path, atomic_write, drawable

SHORT_SIDE = 360  # pixels; smaller videos are enlarged, so that text is legible
STRIP = 0.12  # height of the time line, as a share of the short side
PANEL, TEXT, MUTED = (16, 18, 24), (244, 246, 250), (150, 158, 172)
BACK_OFF = 200  # opacity of a panel, 0 to 255


@lru_cache
def font(size: int, text: str = "") -> Any:
    """Return a font of a size in pixels that has the letters of a text, if there is one.

    It is DejaVu, or a font of the system if DejaVu lacks letters, for example Chinese ones. Without DejaVu, it is the
    font of Pillow, which has ASCII only.
    """
    import matplotlib  # slow to import

    path = os.path.join(matplotlib.get_data_path(), "fonts/ttf/DejaVuSans.ttf")
    if not os.path.isfile(path):  # some distributions leave it out
        return ImageFont.load_default(size)
    if not _has_letters(path, text):
        path = next((other for other in _plain_fonts() if _has_letters(other, text)), path)
    return ImageFont.truetype(path, size)


def _plain_fonts() -> Iterator[str]:
    """Yield the files of the fonts on this machine that are upright and not bold."""
    from matplotlib.font_manager import fontManager

    for entry in fontManager.ttflist:
        # matplotlib's Last Resort has a box for every letter
        if entry.style == "normal" and entry.weight in (400, "normal", "regular") and "Last Resort" not in entry.name:
            yield entry.fname


def _has_letters(path: str, text: str) -> bool:
    from matplotlib.ft2font import FT2Font

    return {ord(letter) for letter in text} <= FT2Font(path).get_charmap().keys()


def color(index: int) -> tuple[int, int, int]:
    """Return the colour of a class; classes with near numbers differ most."""
    red, green, blue = colorsys.hls_to_rgb((0.56 + index * 0.61803399) % 1, 0.60, 0.72)
    return round(255 * red), round(255 * green), round(255 * blue)


def shortened(text: str, size: int, width: float) -> str:
    """Return a text that fits a width in pixels, with dots for the rest."""
    letters = font(size, text)
    if letters.getlength(text) <= width:
        return text
    while text and letters.getlength(text + "...") > width:
        text = text[:-1]
    return text + "..."


def draw_bars(image: Image.Image, top: Sequence[Class], box: tuple[int, int, int], size: int) -> None:
    """Draw names with bars of their probabilities into an RGB image.

    `box` is left, top and width, `size` the size of the text, all in pixels.
    """
    left, y, width = box
    pen, row, number = ImageDraw.Draw(image, "RGBA"), round(1.75 * size), round(4.6 * size)
    for rank, found in enumerate(top):
        bright = TEXT if not rank else MUTED
        name = shortened(found.name.replace("_", " "), size, width - number)
        pen.text((left, y), name, fill=bright, font=font(size, name))
        percent = f"{100 * found.probability:.1f} %"
        pen.text((left + width - font(size).getlength(percent), y), percent, fill=bright, font=font(size))
        base, thick = y + round(1.25 * size), max(2, size // 5)
        pen.rectangle((left, base, left + width, base + thick), fill=(*TEXT, 40))
        pen.rectangle((left, base, left + round(width * found.probability), base + thick), fill=color(found.index))
        y += row


def enlarged(frame: np.ndarray) -> tuple[int, int]:
    """Return the width and height, which are even, in which a frame (H, W, 3) is drawn."""
    height, width = frame.shape[:2]
    scale = max(1.0, SHORT_SIDE / min(height, width))
    return round(width * scale / 2) * 2, round(height * scale / 2) * 2


def resized(frame: np.ndarray, size: tuple[int, int]) -> Image.Image:
    """Return a frame (H, W, 3) RGB as a picture of this width and height."""
    return Image.fromarray(frame).resize(size, Image.Resampling.BICUBIC)


def draw_frame(frame: np.ndarray, timeline: Timeline, time: float, strip: Image.Image) -> np.ndarray:
    """Return an enlarged frame (H, W, 3) RGB with the classes of its time in seconds over it, and the time line below.

    `strip` is the result of `draw_strip`, as wide as the enlarged frame.
    """
    width, height = enlarged(frame)
    image = Image.new("RGB", (width, height + strip.height), PANEL)
    image.paste(resized(frame, (width, height)))
    top = timeline.at(time)[:3]
    size = max(12, min(width, height) // 22)
    margin = size
    wide = min(width - 2 * margin, 17 * size)
    high = round(1.75 * size) * len(top) + round(0.9 * size)
    pen = ImageDraw.Draw(image, "RGBA")
    corner = (margin // 2, margin // 2, margin // 2 + wide + size, margin // 2 + high)
    pen.rounded_rectangle(corner, size // 2, fill=(*PANEL, BACK_OFF))
    draw_bars(image, top, (margin, margin, wide), size)
    image.paste(strip, (0, height))
    share = min(1.0, time / timeline.seconds) if timeline.seconds else 0.0
    x = round(share * (width - 1))
    pen.rectangle((max(0, x - 1), height, x + 1, height + strip.height), fill=(255, 255, 255))
    return np.asarray(image)


def draw_strip(timeline: Timeline, width: int, height: int) -> Image.Image:
    """Return the time line of a video: one coloured part per segment, with its name where there is space."""
    image = Image.new("RGB", (width, height), PANEL)
    pen, size = ImageDraw.Draw(image), max(10, round(0.36 * height))
    for segment in timeline.segments():
        left, right = (round(time / (timeline.seconds or 1) * width) for time in (segment.begin, segment.end))
        hue = color(segment.found.index)
        pen.rectangle((left, round(0.1 * height), max(left, right - 2), round(0.9 * height)), fill=hue)
        name = segment.found.name.replace("_", " ")
        if font(size, name).getlength(name) < right - left - size:
            middle = ((left + right) / 2, height / 2)
            pen.text(middle, name, fill=PANEL, font=font(size, name), anchor="mm")
    return image


@contextmanager
def new_video(path: str, rate: Fraction | None = None) -> Generator[tuple[Any, Callable[[np.ndarray, float], None]]]:
    """Write an H.264 video, which appears complete or not at all.

    The suffix of the path selects the container; the rate in frames per second is None if it is not known.

    Yields:
        The container, and a function that adds a frame (H, W, 3) RGB, of even sides, at a time in seconds.
    """
    with atomic_path(path) as part, av.open(address(str(part)), "w") as target:
        stream: Any = target.add_stream("libx264", rate=rate, options={"crf": "20", "preset": "veryfast"})
        stream.pix_fmt = "yuv420p"
        stream.time_base = stream.codec_context.time_base = Fraction(1, 90000)
        last = -1

        def add(pixels: np.ndarray, begin: float) -> None:
            nonlocal last
            if not stream.codec_context.is_open:
                stream.height, stream.width = pixels.shape[:2]
            frame = av.VideoFrame.from_ndarray(pixels, format="rgb24")
            last = max(round(begin * 90000), last + 1)  # frames of some videos have the same time
            frame.pts, frame.time_base = last, stream.time_base
            target.mux(stream.encode(frame))

        yield target, add
        target.mux(stream.encode(None))


def write_video(timeline: Timeline, path: str) -> str:
    """Write a copy of a video with its predictions over it; return why its sound is left out, "" if it is kept.

    Raises:
        MediaError: the video cannot be decoded.
    """
    if os.path.isdir(timeline.path):
        raise ValueError(f"{timeline.path} is a folder of frames: --video needs a video file")
    strip, silent, sound = None, "", None
    rate, _ = rate_and_seconds(timeline.path)
    with open_video(timeline.path) as source, new_video(path, rate) as (target, add):
        tracks = source.streams.audio
        if tracks:
            try:
                sound = target.add_stream_from_template(tracks[0])
            except (ValueError, av.FFmpegError) as error:
                silent = f"its sound cannot be copied ({error})"
        for begin, _, pixels in stream_video(timeline.path, lambda number: True):
            assert pixels is not None
            if strip is None:
                width, height = enlarged(pixels)
                strip = draw_strip(timeline, width, round(STRIP * min(width, height) / 2) * 2)
            add(draw_frame(pixels, timeline, begin, strip), begin)
        if sound is not None:
            _copy_sound(tracks[0], video_stream(timeline.path, source), target, sound)
    return silent


def _copy_sound(track: Any, video: Any, target: Any, sound: Any) -> None:
    """Copy a track to the stream `sound` of `target`, where times count from the first frame of `video`."""
    first = round((video.start_time or 0) * video.time_base / track.time_base)
    for packet in track.container.demux(track):
        if packet.dts is not None and not packet.dts < first > 0:
            packet.pts = packet.dts = packet.dts - first  # sound is stored in the order of its times
            packet.stream = sound
            target.mux(packet)


def write_timeline(timeline: Timeline, path: str) -> None:
    """Draw which class is predicted when: a row for each of the most frequent classes, and the probability above."""
    from matplotlib import rc_context  # slow to import

    with rc_context({"text.parse_math": False}):  # names may contain $
        figure = _draw_timeline(timeline)
        with atomic_write(path) as file:
            figure.savefig(file, dpi=110, format="png")


def _draw_timeline(timeline: Timeline) -> Any:
    from matplotlib.figure import Figure

    segments = timeline.segments()
    lasting: dict[int, float] = {}
    for segment in segments:
        lasting[segment.found.index] = lasting.get(segment.found.index, 0.0) + segment.end - segment.begin
    order = sorted(lasting, key=lambda index: -lasting[index])[:12]
    figure = Figure(figsize=(12, 1.9 + 0.34 * len(order)), layout="constrained")
    above, rows = figure.subplots(2, 1, sharex=True, height_ratios=[1.0, 0.34 * len(order) + 0.2])
    unit, name = (60, "minutes") if timeline.seconds > 180 else (1, "seconds")
    times = [time / unit for time in [*timeline.begin, timeline.seconds]]
    best = [100 * top[0].probability for top in timeline.tops]
    above.stairs(best, times, color="#5b6475", fill=True, alpha=0.25)
    above.stairs(best, times, color="#3b4252", linewidth=1.1, baseline=None)
    above.set(ylim=(0, 100), ylabel="probability (%)", title=drawable(os.path.basename(timeline.path)))
    for place, index in enumerate(order):
        spans = [(s.begin / unit, (s.end - s.begin) / unit) for s in segments if s.found.index == index]
        rows.broken_barh(spans, (place - 0.38, 0.76), color=[channel / 255 for channel in color(index)])
    names = {segment.found.index: drawable(segment.found.name).replace("_", " ") for segment in segments}
    rows.set(xlim=(0, times[-1] or 1), xlabel=f"time ({name})", ylim=(len(order) - 0.4, -0.6))
    rows.set_yticks(range(len(order)), [names[index] for index in order])
    for axes in (above, rows):
        axes.grid(axis="x", alpha=0.25)
        axes.spines[["top", "right"]].set_visible(False)
    return figure


def pictures(cfg: CfgNode, clips: Tensor, split: Split = "test") -> np.ndarray:
    """Return normalized clips (B, C, T, H, W) or images (B, C, H, W) as RGB pictures (B, T, H, W, 3) uint8.

    `split` is that of the clips, which decides the order of their channels.
    """
    videos = clips.cpu() if clips.ndim == 5 else clips.cpu().unsqueeze(2)
    mean, std = (torch.tensor(values).view(3, 1, 1, 1) for values in (cfg.DATA.MEAN, cfg.DATA.STD))
    pixels = ((videos * std + mean) * 255).round().clamp(0, 255).byte().permute(0, 2, 3, 4, 1)
    return (pixels.flip(-1) if channel_order(cfg, split) == "BGR" else pixels).numpy()


def write_sheet(clips: np.ndarray, labels: Sequence[tuple[str, Sequence[Class]]], title: str, path: str) -> None:
    """Draw clips (B, T, H, W, 3) RGB uint8: one row of frames per clip, with its name and classes on the left."""
    time, height, width = clips.shape[1:4]
    gap, head, side, size = 6, 48, 300, 15
    tile = max(48, min(150, 1500 // time))
    high = round(tile * height / width)
    row_height = gap + max(high, *(34 + round(1.75 * size) * len(classes) for _, classes in labels))
    left = side + 32
    shape = max(left + time * (tile + gap), 720), head + len(clips) * row_height + gap
    image = Image.new("RGB", shape, PANEL)
    pen = ImageDraw.Draw(image)
    title = shortened(title, 20, image.width - 32)
    pen.text((16, head / 2), title, fill=TEXT, font=font(20, title), anchor="lm")
    for row, (clip, (name, classes)) in enumerate(zip(clips, labels, strict=True)):
        y = head + row * row_height
        name = shortened(name, 13, side)
        pen.text((16, y + 6), name, fill=MUTED, font=font(13, name))
        draw_bars(image, classes, (16, y + 34, side), size)
        for column, frame in enumerate(clip):
            image.paste(resized(frame, (tile, high)), (left + column * (tile + gap), y))
    write_png(image, path)


def write_png(image: Image.Image, path: str) -> None:
    """Write a picture as a PNG, which appears complete or not at all."""
    with atomic_write(path) as file:
        image.save(file, "PNG")
