"""Read frames with the optional decoders decord and torchcodec; for files that they cannot read, `decode` uses PyAV."""

from __future__ import annotations

import platform
from collections.abc import Callable
from importlib import import_module
from typing import Any

from slowfast.datasets.container import first_line
from slowfast.datasets.frame_list import FrameList

DECORD_MACHINES = ("x86_64", "AMD64")  # processors for which the package index has decord


class Unsure(Exception):
    """A decoder cannot read the file, or cannot read it in this way; another decoder may be able to."""


def check_backend(name: str) -> None:
    """Import the backend `name` (see `BACKENDS`), without reading a file.

    Raises:
        ValueError: it is unknown or cannot be imported; the message contains the command that installs it, if it exists
            for this processor.
    """
    if name not in BACKENDS:
        raise ValueError(f"unknown decoding backend {name!r}: use one of {', '.join(BACKENDS)}")
    module = {"pyav": "av", "torchcodec": "torchcodec.decoders"}.get(name, name)
    try:
        import_module(module)
    except (ImportError, OSError, RuntimeError) as error:
        cure = f"pip install {module.partition('.')[0]}"
        if name == "torchcodec":
            cure += (
                " in the release made for this PyTorch (its README has the table), and FFmpeg's shared libraries by "
                "apt-get install ffmpeg or conda install -c conda-forge ffmpeg"
            )
        cure += "; or use pyav"
        if name == "decord" and platform.machine() not in DECORD_MACHINES:
            cure = f"it has no release for {platform.machine()}; use pyav or torchcodec"
        message = f"decoding backend {name} cannot be loaded ({first_line(error)}): {cure}"
        raise ValueError(message) from None


def _decord(path: str, listed: FrameList, stream: Any, needed: list[int]) -> list[Any]:
    import decord

    decord.logging.set_level(decord.logging.QUIET)
    reason, frames, video = "", None, None
    try:
        # One thread: the workers already fill the cores. `fault_tol`: a frame that cannot be decoded is an error.
        video = decord.VideoReader(path, num_threads=1, fault_tol=1e-9)  # pyright: ignore[reportArgumentType]
        if len(video) == len(listed.times):
            frames = video.get_batch(needed).asnumpy()
        else:
            reason = f"it counts {len(video)} frames instead of {len(listed.times)}"
    except (decord.DECORDError, decord.DECORDLimitReachedError, RuntimeError, AssertionError, UnicodeError) as error:
        reason = first_line(error).replace(path, "...")
    # Delete the reader here: the traceback of an exception would keep it alive. A reader that is destroyed in a fork of
    # this process blocks, because it waits for threads that the fork does not have.
    del video
    if frames is None:
        raise Unsure(reason)
    if len(frames) != len(needed) or frames.shape[-1] != 3:
        raise Unsure(f"its frames have the shape {frames.shape[1:]}")  # of some narrow pictures in decord
    return list(frames)


def _torchcodec(path: str, listed: FrameList, stream: Any, needed: list[int]) -> list[Any]:
    from torchcodec.decoders import VideoDecoder  # pyright: ignore[reportMissingImports]

    try:
        video = VideoDecoder(path, stream_index=stream.index, dimension_order="NHWC", num_ffmpeg_threads=1)
        if len(video) != len(listed.times):
            raise Unsure(f"it counts {len(video)} frames instead of {len(listed.times)}")
        frames = video.get_frames_at(needed)
    except (RuntimeError, ValueError, IndexError) as error:
        raise Unsure(first_line(error).replace(path, "...")) from None
    times = [round(seconds / stream.time_base) for seconds in frames.pts_seconds.tolist()]
    if times != [listed.times[number] for number in needed]:
        raise Unsure("its frames have other times")
    return list(frames.data.numpy())


# Name -> function of (path, frame list, stream, sorted frame numbers) that returns one (H, W, 3) array per number.
LIBRARIES: dict[str, Callable[[str, FrameList, Any, list[int]], list[Any]]] = {
    "decord": _decord,
    "torchcodec": _torchcodec,
}
BACKENDS = ("pyav", *LIBRARIES)
