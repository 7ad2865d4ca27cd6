"""Merge the predictions of the windows of a video into segments of one class each."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Any

import numpy as np

from slowfast.engine.test import view_ensemble
from slowfast.inference.network import Network
from slowfast.inference.results import Class, top_classes
from slowfast.inference.windows import WindowCutter, run_windows

TOP = 5  # classes that are kept per window


@dataclass(frozen=True)
class Segment:
    """A part of a video with one class.

    Attributes:
        begin: time in seconds.
        end: time in seconds.
        found: the class, with its mean probability over the windows.
    """

    begin: float
    end: float
    found: Class

    def as_dict(self) -> dict[str, Any]:
        """Return plain values, for JSON."""
        return {"begin": round(self.begin, 3), "end": round(self.end, 3), **vars(self.found)}


@dataclass
class Timeline:
    """The predictions over the time of a video.

    Attributes:
        path: of the video.
        begin: time in seconds from which each window decides: the middle between its centre and that of the one before.
        tops: most probable classes of each window.
        seconds: end of the video.
        error: why the video cannot be decoded.
    """

    path: str
    begin: list[float] = field(default_factory=list)
    tops: list[tuple[Class, ...]] = field(default_factory=list)
    seconds: float = 0.0
    error: str = ""

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


def predict_windows(net: Network, path: str, window: int, stride: int, batch: int, progress: Any = None) -> Timeline:
    """Return the classes of the windows of a video over its time.

    Args:
        net: the network.
        path: of the video.
        window: frames of a window.
        stride: frames from a window to the next one.
        batch: windows that are computed together.
        progress: called with the time in seconds that is reached.

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
