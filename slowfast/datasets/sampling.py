"""Choose the frames of a clip, as 0-based indices of the frames of a video.

A sampler is an argument of the data set and is called as `sampler(length, view, rng)`. To add a rule, write a class and
a row of `SAMPLERS`; a row of the catalog can then name it.
"""

from abc import ABC, abstractmethod
from collections.abc import Sequence
from dataclasses import dataclass
from operator import index

import numpy as np


@dataclass(frozen=True)
class FrameSampler(ABC):
    """Choose the frames of a clip.

    Args:
        num_frames: T, frames of a clip.
        num_views: temporal views per video in an evaluation.
        sampling_rate: frames of the video per frame of the clip; used by dense sampling only.
        use_offset: start evaluation clips at whole frames; used by dense sampling only.
    """

    num_frames: int
    num_views: int = 1
    sampling_rate: int = 1
    use_offset: bool = True

    @abstractmethod
    def __call__(self, length: int, view: int | None, rng: np.random.Generator | None) -> list[int]:
        """Return `num_frames` indices.

        Args:
            length: frames in the video (>= 1).
            view: 0..num_views-1, or None for a random clip.
            rng: source of the draw; needed only if `view` is None.
        """


class DenseSampler(FrameSampler):
    """Take a window of `num_frames * sampling_rate` frames (SlowFast; Kinetics, UCF101 and HMDB51 of UniFormer).

    A random window has a real-valued start; the windows of views are spread evenly over the video, and a single one is
    in the middle, or at the beginning without `use_offset`. A short video repeats its last frame.
    """

    def __call__(self, length: int, view: int | None, rng: np.random.Generator | None) -> list[int]:
        """Return non-decreasing indices in [0, length)."""
        span = self.num_frames * self.sampling_rate
        slack = max(length - span, 0)
        if view is None:
            assert rng is not None
            start = rng.uniform(0, slack)
        elif not self.use_offset:
            start = slack * view / self.num_views
        elif self.num_views == 1:
            start = slack // 2
        else:
            start = view * (slack // (self.num_views - 1))
        # Both ends of the window are sampled, so the step is slightly larger than sampling_rate. float32 is part of the
        # rule: its rounding decides to which integer a value is cut.
        ticks = np.linspace(start, start + span - 1, self.num_frames, dtype=np.float32)
        return ticks.clip(0, length - 1).astype(np.int64).tolist()


class SparseSampler(FrameSampler):
    """Take one frame from each of equal segments; see `sparse_indices`."""

    def __call__(self, length: int, view: int | None, rng: np.random.Generator | None) -> list[int]:
        """Return one frame per segment."""
        return sparse_indices(length, self.num_frames, view, self.num_views, rng)


def clip_indices(sampler: FrameSampler, length: int, view: int | None, rng: np.random.Generator | None) -> list[int]:
    """Return the indices of a sampler, which may be that of a user.

    Raises:
        ValueError: it does not return `num_frames` frames of the video.
    """
    clip = sampler(length, view, rng)
    try:
        frames = [index(frame) for frame in clip]
    except TypeError:  # None, or numbers that are not integers
        frames = []
    if len(frames) != sampler.num_frames or not 0 <= min(frames) <= max(frames) < length:
        raise ValueError(
            f"{type(sampler).__name__} returns the frames {clip} of a video of {length}: return {sampler.num_frames} "
            f"integers from 0 to {length - 1}"
        )
    return frames


SAMPLERS: dict[str, type[FrameSampler]] = {"dense": DenseSampler, "sparse": SparseSampler}


def sparse_indices(
    length: float,
    num_frames: int,
    view: int | None,
    num_views: int,
    rng: np.random.Generator | None,
    *,
    first: int = 0,
    last: int | None = None,
) -> list[int]:
    """Take one frame from each of `num_frames` equal segments (TSN, arXiv:1608.00859; UniFormerV2, arXiv:2211.09552).

    Neighbouring segments share their border frame, so a draw can repeat a frame. The files of Something-Something are
    numbered from 1: a file number is an index + 1.

    Args:
        length: frames to spread over (>= 1 for a whole video; an annotated segment may have any real length).
        num_frames: segments, and frames of the clip.
        view: None draws inside each segment; 0..num_views-1 takes a fixed offset, the middle if there is one view.
        num_views: temporal views per video.
        rng: source of the draw; needed only if `view` is None.
        first: frame at which the segments begin.
        last: highest frame that exists; None for `length - 1`.

    Returns:
        `num_frames` non-decreasing indices from `first` on; those beyond `last` become `last`.
    """
    last = int(length) - 1 if last is None else last
    segment = max((length - 1) / num_frames, 0)
    borders = np.round(segment * np.arange(num_frames + 1)).astype(np.int64)  # halves go to the even frame
    if view is None:
        assert rng is not None
        frames = rng.integers(borders[:-1], borders[1:], endpoint=True)
    else:
        frames = borders[:-1] + int(segment / (num_views + 1) * (view + 1))
    return np.minimum(frames + first, last).tolist()


def annotated_indices(
    length: int, num_frames: int, segment: Sequence[float], rng: np.random.Generator | None
) -> list[int]:
    """Draw one frame from each of `num_frames` equal parts of the annotated segment of an untrimmed video.

    Training on ActivityNet and HACS uses this rule. A segment is (total, begin, end) in seconds: duration of the video,
    begin and end of the action.

    Returns:
        `num_frames` indices in [0, length).
    """
    total, begin, end = segment
    fps = length / total
    return sparse_indices(fps * (end - begin), num_frames, None, 1, rng, first=int(fps * begin), last=length - 1)
