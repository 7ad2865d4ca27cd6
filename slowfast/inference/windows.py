"""Run a network on the sliding windows of a video, which is decoded once, with memory for one window.

The predictions of neighbouring windows of the same class are merged into segments.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field, replace
from fractions import Fraction
from itertools import islice
from typing import Any

import numpy as np
import torch
from torch import Tensor

from slowfast.datasets.container import open_video, seconds_of, video_stream
from slowfast.datasets.dataset import Prepared
from slowfast.datasets.decode import frame_rate
from slowfast.datasets.lists import Sample
from slowfast.datasets.reader import stream_frames
from slowfast.datasets.rows import UNKNOWN
from slowfast.engine.test import view_ensemble
from slowfast.inference.network import Network
from slowfast.inference.results import Class, top_classes

AHEAD = 2  # batches that are decoded ahead
TOP = 5  # classes that are kept per window


@dataclass(frozen=True)
class Window:
    """A window of a video."""

    first: int  # number of its first frame
    begin: float  # time of its first frame in seconds
    end: float  # time at which its last frame ends
    numbers: list[int]  # T numbers of the frames that the network gets
    frames: list[Tensor]  # these frames, each (1, H, W, C)


class WindowCutter:
    """Cut a video into windows in one decode; the windows begin at frame 0, stride, 2 * stride, ...

    The T frames of a window are chosen as in a test of a video that consists of the window: evenly spread if the
    network was trained on dense clips, else from equal parts. A video that is shorter than a window has one window.

    Args:
        net: the network.
        path: video file or folder of frames.
        window: frames of a window.
        stride: frames from a window to the next one.

    Attributes:
        length: frames of the video that are decoded so far.
        seconds: time at which the last of them ends.
    """

    def __init__(self, net: Network, path: str, window: int, stride: int) -> None:
        self.dataset, self.path, self.window, self.stride = net.views_of_video, path, window, stride
        self.length, self.seconds = 0, 0.0
        self.offsets = self._choose(window)
        self.earliest: dict[int, int] = {}  # remainder of a frame number by the stride -> its first needed frame
        for offset in sorted(self.offsets, reverse=True):
            self.earliest[offset % stride] = offset

    def _choose(self, length: int) -> list[int]:
        """Return the frames of a window of `length` frames."""
        sampler = self.dataset.reader.sampler
        spread = length / sampler.num_frames
        return replace(sampler, num_views=1, sampling_rate=spread)(length, 0, None)  # pyright: ignore[reportArgumentType]

    def is_needed(self, number: int) -> bool:
        """Return whether the network gets this frame in a window."""
        return number >= self.earliest.get(number % self.stride, number + 1)

    def __iter__(self) -> Iterator[Window]:
        """Yield the windows.

        Raises:
            MediaError: the video cannot be decoded.
        """
        reader, first = self.dataset.reader, 0
        kept: dict[int, Tensor] = {}
        times: deque[float] = deque(maxlen=self.window)
        frames = stream_frames(self.path, self.is_needed, image_template=reader.image_template, colors=reader.colors)
        for number, begin, end, pixels in frames:
            self.length, self.seconds = number + 1, end
            times.append(begin)
            if pixels is not None:
                kept[number] = self._prepare(pixels)
            if number == first + self.window - 1:
                numbers = [first + offset for offset in self.offsets]
                yield Window(first, times[0], end, numbers, [kept[place] for place in numbers])
                first += self.stride
                kept = {place: frame for place, frame in kept.items() if place >= first}
        if not first:
            yield self._whole(times[0])

    def _whole(self, begin: float) -> Window:
        """Return the only window of a short video, which is decoded again."""
        frames = self.dataset.reader.read(Sample(self.path, UNKNOWN), self._choose)
        numbers = self._choose(self.length)
        return Window(0, begin, self.seconds, numbers, [self._prepare(frame) for frame in frames])

    def _prepare(self, frame: np.ndarray) -> Tensor:
        """Return a frame (1, H, W, C) as `VideoEvalDataset.prepare` keeps it; the order of frames is set later."""
        return self.dataset.prepare(frame[None], [0] * self.dataset.reader.sampler.num_frames)[0]


def join(windows: Sequence[Window]) -> Prepared:
    """Return windows as the temporal views of one video, so that a frame of several windows is resized once."""
    frames = {number: frame for window in windows for number, frame in zip(window.numbers, window.frames, strict=True)}
    places = {number: place for place, number in enumerate(sorted(frames))}
    order = np.array([[places[number] for number in window.numbers] for window in windows])
    return torch.cat([frames[number] for number in places]), order


@torch.no_grad()
def run_windows(
    net: Network, cutter: WindowCutter, function: Callable[[Tensor], Tensor], batch: int
) -> Iterator[tuple[Window, np.ndarray]]:
    """Yield each window without its frames, and the output of a function for its crops, (crops, D).

    The function maps clips (B, C, T, H, W) to (B, D); it gets those of `batch` windows at once.
    """
    crops = net.views_of_video.num_crops
    windows = ahead(iter(cutter), AHEAD * batch)
    while together := [*islice(windows, batch)]:
        clips = net.transform_prepared([join(together)])
        outputs = function(clips).float().unflatten(0, (-1, crops)).cpu().numpy()
        for window, output in zip(together, outputs, strict=True):
            yield replace(window, frames=[]), output


def ahead(items: Iterator[Window], count: int) -> Iterator[Window]:
    """Yield the items of an iterator that runs in a thread, at most `count` items ahead."""
    pool = ThreadPoolExecutor(1, "decode")
    try:
        pending = deque(pool.submit(next, items, None) for _ in range(count))
        while (item := pending.popleft().result()) is not None:
            pending.append(pool.submit(next, items, None))
            yield item
    finally:
        pool.shutdown(cancel_futures=True)


@dataclass(frozen=True)
class Segment:
    """A part of a video with one class."""

    begin: float  # time in seconds
    end: float  # time in seconds
    found: Class  # the class, with its mean probability over the windows

    def as_dict(self) -> dict[str, Any]:
        """Return plain values, for JSON."""
        return {"begin": round(self.begin, 3), "end": round(self.end, 3), **vars(self.found)}


@dataclass
class Timeline:
    """The predictions over the time of a video."""

    path: str  # of the video
    # time in seconds from which each window decides: the middle between its centre and that of the one before
    begin: list[float] = field(default_factory=list)
    tops: list[tuple[Class, ...]] = field(default_factory=list)  # most probable classes of each window
    seconds: float = 0.0  # end of the video

    def at(self, time: float) -> tuple[Class, ...]:
        """Return the classes at a time in seconds."""
        return self.tops[max(0, int(np.searchsorted(self.begin, time, side="right")) - 1)]

    def segments(self) -> list[Segment]:
        """Return the segments of equal class, without gaps, from 0 to the end of the video."""
        firsts = [i for i, top in enumerate(self.tops) if not i or top[0].index != self.tops[i - 1][0].index]
        found = []
        for first, end in zip(firsts, [*firsts[1:], len(self.tops)], strict=True):
            best = [top[0] for top in self.tops[first:end]]
            mean = Class(best[0].name, best[0].index, float(np.mean([one.probability for one in best])))
            found.append(Segment(self.begin[first], [*self.begin, self.seconds][end], mean))
        return found


def rate_and_seconds(path: str) -> tuple[Fraction, float]:
    """Return the frames per second of a video file, and its length in seconds; 0.0 if the file does not contain it.

    Raises:
        MediaError: the file cannot be opened.
    """
    with open_video(path) as container:
        stream = video_stream(path, container)
        return frame_rate(stream), seconds_of(container, stream)


def predict_windows(net: Network, path: str, window: int, stride: int, batch: int, progress: Any = None) -> Timeline:
    """Return the classes of the windows of a video over its time; see `WindowCutter` and `run_windows`.

    `progress` is called with the time in seconds that is reached.

    Raises:
        MediaError: the video cannot be decoded.
    """
    cutter, timeline, before = WindowCutter(net, path, window, stride), Timeline(path), 0.0
    ensemble, model = view_ensemble(net.cfg), net.as_tested(net.model)
    for span, scores in run_windows(net, cutter, lambda clips: ensemble.values(model(clips)), batch):
        together = scores.sum(0) if ensemble.method == "sum" else scores.max(0)
        probabilities = net.probabilities(together, len(scores))
        centre = (span.begin + span.end) / 2
        timeline.begin.append((before + centre) / 2 if timeline.tops else 0.0)
        timeline.tops.append(top_classes(probabilities, net.class_names, TOP))
        before = centre
        if progress:
            progress(span.end)
    timeline.seconds = cutter.seconds
    return timeline
