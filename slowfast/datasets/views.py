"""Cut the views of an evaluation out of the frames of videos, on the device.

Frames are resized in float32 as in the official code, because the published accuracies depend on it.
"""

import math
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace

import cv2
import numpy as np
import torch
from torch import Tensor
from torch.nn.functional import interpolate

from slowfast.datasets.crops import short_side_size


def resize_short_side(frames: Tensor, scale: int) -> Tensor:
    """Resize (N, H, W, C) frames to a short side of `scale` pixels, on their device.

    The resize is bilinear without antialiasing, with align_corners False, in float32 as in the official code. Frames
    whose short side is already `scale` are returned unchanged.
    """
    height, width = frames.shape[1:3]
    if min(height, width) == scale:
        return frames
    # OpenCV's float resize computes sample positions in double precision; its result differs from the official numbers
    # by 1e-4. Interleaved channels are resized almost twice as fast as planes, to the same bits.
    size = short_side_size(height, width, scale)
    resized = interpolate(frames.float().permute(0, 3, 1, 2), size=size, mode="bilinear", align_corners=False)
    return resized.permute(0, 2, 3, 1).contiguous()


class FrameResize:
    """Resize frames one by one on a CPU as `resize_short_side` does, up to rounding, in half of the time.

    PyTorch resizes pixel by pixel, and three channels are too few for its vector code. Here columns are resized first,
    and then rows, as the pixels of images one pixel wide whose channels are whole columns or rows. Frames are
    transposed as matrices of values, not of pixels, because OpenCV has vector code for these; a column then consists of
    one line per channel. All steps use the same memory for each frame, which fits into a cache.

    `shape` (H, W, C) and `dtype` are those of the frames, `size` is (height, width) after the resize.
    """

    def __init__(self, shape: Sequence[int], size: tuple[int, int], dtype: torch.dtype) -> None:
        height, width, channels = shape
        self.shape = *size, channels
        self.frame = torch.empty(height, width * channels, dtype=dtype)
        self.turned = torch.empty(width * channels, height, dtype=dtype)
        self.columns, self.all_columns = _memory(width, channels * height)
        self.kept, self.kept_columns = _memory(size[1], channels * height)
        self.rows, self.all_rows = _memory(height, size[1] * channels)
        self.result, self.kept_rows = _memory(size[0], size[1] * channels)

    def __call__(self, frame: Tensor) -> Tensor:
        """Return a frame (H, W, C) resized to (height, width, C), in memory that the next call overwrites."""
        self.frame.copy_(frame.flatten(1))  # read in order: a transposition would wait for the memory
        cv2.transpose(self.frame.numpy(), dst=self.turned.numpy())
        self.columns.copy_(self.turned.view_as(self.columns))
        _resize_into(self.kept_columns, self.all_columns)
        cv2.transpose(self.kept.view(-1, len(self.frame)).numpy(), dst=self.rows.numpy())
        _resize_into(self.kept_rows, self.all_rows)
        return self.result.view(self.shape)


def _memory(rows: int, values: int) -> tuple[Tensor, Tensor]:
    """Return a tensor (rows, values), and a view of it as an image (1, values, rows, 1) with channels last."""
    image = torch.empty(1, values, rows, 1, memory_format=torch.channels_last)
    return image[0, :, :, 0].t(), image


def _resize_into(out: Tensor, image: Tensor) -> None:
    """Resize an image; unlike `interpolate`, do not allocate memory, whose pages the system would have to clear."""
    torch.ops.aten.upsample_bilinear2d.out(image, out.shape[2:], False, None, None, out=out)


def shrink(frames: np.ndarray, scale: int) -> Tensor:
    """Return `(N, H, W, C)` uint8 frames as a tensor, with the short side resized to `scale` if that takes fewer bytes.

    Large frames are resized one by one: 64 frames of 4K at once would take 8 GB.
    """
    num_frames, height, width, channels = frames.shape
    size = short_side_size(height, width, scale)
    if height * width <= 4 * math.prod(size):  # four bytes for a float
        return torch.from_numpy(np.require(frames, requirements=("O", "W")))  # a decoder process overwrites `frames`
    small, floats = torch.empty(num_frames, *size, channels), torch.empty(1, height, width, channels)
    for target, frame in zip(small, frames, strict=True):
        floats.copy_(torch.from_numpy(np.require(frame, requirements=("W",))))
        target.copy_(resize_short_side(floats, scale)[0])
    return small


def corner(height: int, width: int, crop: int, position: int) -> tuple[int, int]:
    """Return (y, x) of a square crop along the long side: 0 is the start (left or top), 1 the centre, 2 the end."""
    y, x = math.ceil((height - crop) / 2), math.ceil((width - crop) / 2)
    if height > width:
        return (0, y, height - crop)[position], x
    return y, (0, x, width - crop)[position]


@dataclass(frozen=True)
class Views:
    """Views of videos that are not cut out yet: a worker sends whole frames, and clips are made on the device.

    The clips of a video are numbered view by view, crop by crop.

    Args:
        frames: (N, H, W, C) per video, each frame once; uint8, or float in 0..255.
        order: (V, T) per video, the frames of each temporal view.
        scale: short side of the resized frames in pixels.
        crop: side of the crops in pixels, at most `scale`.
        positions: positions of the crops in each temporal view, see `corner`.
        chosen: numbers of the clips; None for all.

    Raises:
        ValueError: the crop is larger than the resized frame.
    """

    frames: Sequence[Tensor]
    order: Sequence[np.ndarray]
    scale: int
    crop: int
    positions: tuple[int, ...]
    chosen: range | None = None

    def __post_init__(self) -> None:
        if self.crop > self.scale:
            raise ValueError(f"a crop of {self.crop} pixels does not fit a short side of {self.scale}: lower the crop")

    def __len__(self) -> int:
        return len(self._numbers())

    @property
    def shape(self) -> tuple[int, ...]:
        """The shape of the clips, (B, C, T, crop, crop); C and T are 0 without any video."""
        channels, time = (self.frames[0].shape[-1], self.order[0].shape[1]) if self.frames else (0, 0)
        return len(self), channels, time, self.crop, self.crop

    def split(self, size: int) -> "list[Views]":
        """Return parts of `size` clips, and a shorter one at the end, as `Tensor.split` does."""
        numbers = self._numbers()
        return [replace(self, chosen=numbers[i : i + size]) for i in range(0, max(len(numbers), 1), size)]

    def pin_memory(self) -> "Views":
        """Copy the frames to page-locked memory; the loader calls this."""
        return replace(self, frames=[video.pin_memory() for video in self.frames])

    def cut(self, normalization: tuple[Tensor, Tensor] | None = None, out: Tensor | None = None) -> Tensor:
        """Return the clips (B, C, T, crop, crop), float32; every frame is resized once for all of them.

        Args:
            normalization: mean and standard deviation (C,) on the device of the clips, see `transforms.normalize`; None
                for pixels 0..255.
            out: tensor of that shape with channels last, to write the clips to; frames are resized on its device. None
                for a new one on the CPU.
        """
        if out is None:
            out = torch.empty(self.shape, memory_format=torch.channels_last_3d)
        clips, channels, time = out.shape[:3]
        # whole rows of a frame, because three channels are too few for a fast loop
        rows_of = out.movedim(1, -1).view(clips, time, self.crop, self.crop * channels)
        affine = None
        if normalization is not None:  # (pixel / 255 - mean) / std in one pass
            mean, std = normalization
            affine = (-mean / std).repeat(self.crop), (1 / (255 * std)).repeat(self.crop)
        for place, piece in self._crops_of_frames() if out.device.type == "cpu" else self._crops_of_clips(out.device):
            if affine is None:
                rows_of[place].copy_(piece)
            else:
                torch.addcmul(affine[0], piece, affine[1], out=rows_of[place])
        return out

    def _numbers(self) -> range:
        if self.chosen is not None:
            return self.chosen
        return range(sum(len(views) for views in self.order) * len(self.positions))

    def _clips(self) -> dict[int, list[tuple[int, np.ndarray, int]]]:
        """Return the clips of each video: number in the batch, frames (T,), and position of the crop."""
        clips: dict[int, list[tuple[int, np.ndarray, int]]] = {}
        for clip, number in enumerate(self._numbers()):
            view, position = divmod(number, len(self.positions))
            video, view = divmod(view, len(self.order[0]))
            clips.setdefault(video, []).append((clip, self.order[video][view], self.positions[position]))
        return clips

    def _size(self, video: int) -> tuple[int, int]:
        """Return the height and width of the resized frames of a video."""
        height, width = self.frames[video].shape[1:3]
        return (height, width) if min(height, width) == self.scale else short_side_size(height, width, self.scale)

    def _box(self, video: int, position: int) -> tuple[slice, slice]:
        """Return the rows and columns of a crop in the pictures of a video."""
        y, x = corner(*self._size(video), self.crop, position)
        channels = self.frames[video].shape[-1]
        return slice(y, y + self.crop), slice(channels * x, channels * (x + self.crop))

    def _crops_of_frames(self) -> Iterator[tuple[tuple[int, int], Tensor]]:
        """Yield the place (clip, t) and the crop (h, w * C) of every frame on a CPU, each valid until the next one.

        Each frame is resized once, and its crops are cut while a cache contains it.
        """
        for video, clips in self._clips().items():
            uses: dict[int, list[tuple[int, int, int]]] = {}
            for clip, rows, position in clips:
                for t, row in enumerate(rows.tolist()):
                    uses.setdefault(row, []).append((clip, t, position))
            frames, size = self.frames[video], self._size(video)
            change = FrameResize(frames.shape[1:], size, frames.dtype) if frames.shape[1:3] != size else None
            memory = torch.empty(frames.shape[1:])
            boxes = {position: self._box(video, position) for position in self.positions}
            for row in sorted(uses):
                picture = (memory.copy_(frames[row]) if change is None else change(frames[row])).flatten(1)
                for clip, t, position in uses[row]:
                    yield (clip, t), picture[boxes[position]]

    def _crops_of_clips(self, device: torch.device) -> Iterator[tuple[int, Tensor]]:
        """Yield the place and the crop (T, h, w * C) of every clip, on a device.

        All frames of a video are resized at once. The frames of a clip with a constant step are one slice of them,
        because a GPU needs long to start many small operations.
        """
        for video, clips in self._clips().items():
            first = min(int(rows.min()) for _, rows, _ in clips)
            last = max(int(rows.max()) for _, rows, _ in clips)
            chunk = self.frames[video][first : last + 1].to(device, non_blocking=True).float()
            pictures = resize_short_side(chunk, self.scale).flatten(2)
            for clip, rows, position in clips:
                start, *others = (rows - first).tolist()
                steps = {*np.diff(rows).tolist()} or {1}
                step = min(steps) if len(steps) == 1 else 0
                if step > 0:
                    frames = pictures[start : start + step * len(rows) : step]
                else:
                    frames = torch.stack([pictures[row] for row in (start, *others)])
                y, x = self._box(video, position)
                yield clip, frames[:, y, x]
