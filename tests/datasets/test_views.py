"""Test the resizes and crops of an evaluation against the official numbers."""

import resource
from concurrent.futures import ProcessPoolExecutor
from multiprocessing import get_context

import numpy as np
import pytest
import torch
from torch import Tensor
from torch.nn.functional import interpolate

from slowfast.datasets.crops import short_side_size
from slowfast.datasets.transforms import normalize
from slowfast.datasets.views import Views, resize_short_side, shrink

# Releases of PyTorch before 2.11 place the samples of a resize in another way, with a difference of 1.3e-5.
TOLERANCE = 1e-5 if tuple(map(int, torch.__version__.split(".")[:2])) >= (2, 11) else 2e-5
ROUNDING = 4 * 2.0**-16  # four units in the last place of a pixel of 255
MEAN, STD = torch.tensor([0.4, 0.5, 0.6]), torch.tensor([0.1, 0.2, 0.3])


def noise(*shape: int, seed: int = 0) -> np.ndarray:
    return np.random.RandomState(seed).randint(0, 256, shape).astype(np.uint8)


def views(*videos: np.ndarray | Tensor, scale: int = 32, crop: int = 32, temporal: int = 1) -> Views:
    """Return the views of videos (V * T, H, W, C), with three crops."""
    order = [np.arange(len(video)).reshape(temporal, -1) for video in videos]
    return Views([torch.as_tensor(video) for video in videos], order, scale, crop, (0, 1, 2))


def plainly(frames: np.ndarray, scale: int, crop: int) -> Tensor:
    """Return the three crops (3, C, T, crop, crop) of a clip, made of contiguous planes."""
    planes = torch.from_numpy(frames).permute(3, 0, 1, 2).contiguous()
    height, width = frames.shape[1:3]
    if min(height, width) != scale:
        height, width = short_side_size(height, width, scale)
        planes = interpolate(planes.float(), size=(height, width), mode="bilinear", align_corners=False)
    y, x = (height - crop + 1) // 2, (width - crop + 1) // 2
    ys, xs = ((0, y, height - crop), (x,) * 3) if height > width else ((y,) * 3, (0, x, width - crop))
    return torch.stack([planes[:, :, y : y + crop, x : x + crop] for y, x in zip(ys, xs, strict=True)])


def test_resized_normalized_crops_match_the_official_numbers(golden):
    table, arrays = golden("transforms.json"), golden("transforms.npz")
    statistics = torch.tensor(table["mean"]), torch.tensor(table["std"])
    for case in table["cases"]:
        frames = noise(*case["clip_shape"], seed=case["seed"])
        clips = views(frames, scale=case["scale"], crop=case["crop"]).cut(normalization=statistics)
        np.testing.assert_allclose(
            clips[case["spatial_idx"], :, :, 3::7, 2::7],
            arrays[case["array"]],
            atol=TOLERANCE,
            rtol=0,
            err_msg=str(case),
        )
        height, width = frames.shape[1:3]
        if min(height, width) != case["scale"]:
            assert [*short_side_size(height, width, case["scale"])] == case["resized_hw"]


@pytest.mark.parametrize("size", [(20, 30), (40, 60), (60, 40), (90, 120), (37, 37), (32, 50), (32, 32), (50, 32)])
def test_clips_equal_those_of_planes(size):
    frames = noise(4, *size, 3)
    expected = torch.cat([plainly(part, 32, 28) for part in (frames[:2], frames[2:])])
    cut = views(frames, crop=28, temporal=2).cut()
    torch.testing.assert_close(cut, expected.float(), atol=0 if 32 in size else ROUNDING, rtol=0)
    normalized = views(frames, crop=28, temporal=2).cut(normalization=(MEAN, STD))
    torch.testing.assert_close(normalized, normalize(expected, MEAN, STD), atol=4e-6, rtol=0)


def test_crops_are_the_start_the_centre_and_the_end():
    frames = noise(2, 32, 50, 3)
    start, centre, end = views(frames, crop=24).cut()
    expected = torch.from_numpy(frames).permute(3, 0, 1, 2).float()
    assert torch.equal(start, expected[:, :, 4:28, :24])
    assert torch.equal(centre, expected[:, :, 4:28, 13:37])
    assert torch.equal(end, expected[:, :, 4:28, 26:])


def test_views_share_the_frames_that_several_contain():
    frames = noise(5, 40, 60, 3)
    order = np.array([[0, 1, 2], [2, 4, 4]])
    shared = Views([torch.from_numpy(frames)], [order], 32, 32, (0, 2)).cut()
    apart = views(frames[order.ravel()], temporal=2).cut()[[0, 2, 3, 5]]
    assert torch.equal(shared, apart)


def test_parts_are_cut_as_the_whole():
    video = views(noise(6, 40, 60, 3), noise(6, 32, 50, 3, seed=1), temporal=2)
    whole = video.cut(normalization=(MEAN, STD))
    assert len(video) == len(whole) == 12 and video.shape == whole.shape
    for size in (1, 4, 5, 12, 20):
        parts = video.split(size)
        assert [len(part) for part in parts] == [len(part) for part in whole.split(size)]
        assert torch.equal(torch.cat([part.cut(normalization=(MEAN, STD)) for part in parts]), whole)
    assert torch.equal(video.split(8)[1].split(2)[1].cut(normalization=(MEAN, STD)), whole[10:])


def test_clips_are_written_to_given_memory():
    video = views(noise(3, 40, 60, 3))
    before = video.frames[0].clone()
    out = torch.empty(video.shape, memory_format=torch.channels_last_3d)
    assert video.cut(normalization=(MEAN, STD), out=out) is out
    assert torch.equal(out, video.cut(normalization=(MEAN, STD)))
    floats = views(video.frames[0].float())
    assert torch.equal(out, floats.cut(normalization=(MEAN, STD)))
    assert torch.equal(before, video.frames[0]) and torch.equal(before.float(), floats.frames[0])


@pytest.mark.parametrize("size", [(40, 60), (60, 40), (90, 120), (32, 50)])
def test_views_are_the_same_whether_the_worker_resizes_or_the_device(size):
    frames = noise(6, *size, 3)
    small = shrink(frames, 32)
    torch.testing.assert_close(views(small).cut(), views(frames).cut(), atol=ROUNDING, rtol=0)
    assert (small.nbytes < frames.nbytes) == (size == (90, 120))  # bytes of large frames are more than floats


def test_prepared_frames_are_a_copy_of_memory_that_is_used_again():
    memory = bytearray(noise(2, 32, 50, 3).tobytes())
    frames = np.frombuffer(memory, np.uint8).reshape(2, 32, 50, 3)
    small, before = shrink(frames, 32), frames.copy()
    memory[:] = bytes(len(memory))
    assert np.array_equal(small, before)


def growth_of_peak_memory(frames: np.ndarray) -> int:
    before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    shrink(frames, 64)
    return 1024 * (resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before)


def test_large_frames_are_resized_in_little_memory():
    frames = np.zeros((8, 1080, 1920, 3), np.uint8)  # 50 MB, and 250 MB with their floats
    with ProcessPoolExecutor(1, mp_context=get_context("fork")) as pool:
        assert pool.submit(growth_of_peak_memory, frames).result() < 80e6


def test_a_crop_larger_than_the_frame_is_refused():
    with pytest.raises(ValueError, match=r"crop of 40 .* 32"):
        views(noise(1, 32, 32, 3), crop=40)


def test_a_resize_keeps_frames_of_the_wanted_size():
    frames = torch.from_numpy(noise(2, 32, 50, 3))
    assert resize_short_side(frames, 32) is frames
    resized = resize_short_side(frames, 24)
    assert resized.shape == (2, 24, 37, 3) and resized.is_contiguous()


@pytest.mark.parametrize("normalization", [None, (MEAN, STD)])
@pytest.mark.parametrize("size", [(40, 60), (32, 50)])
@pytest.mark.parametrize("rows", [[0, 1, 2], [0, 2, 4], [3, 4, 4], [1, 1, 1], [4, 2, 0], [0, 1, 4], [2]], ids=str)
def test_a_gpu_cuts_whole_clips_at_once(rows, size, normalization, monkeypatch):
    order = np.array([rows, [(row + 1) % 5 for row in rows]])
    video = Views([torch.from_numpy(noise(5, *size, 3))], [order], 32, 28, (0, 2), range(1, 4))
    out = torch.empty(video.shape, memory_format=torch.channels_last_3d)
    expected = video.cut(normalization=normalization)
    monkeypatch.setattr(Views, "_crops_of_frames", lambda self: self._crops_of_clips(torch.device("cpu")))
    for clips in (video.cut(normalization), video.cut(normalization, out)):
        torch.testing.assert_close(clips, expected, atol=1e-4 if 40 in size else 0, rtol=0)


@pytest.mark.gpu
def test_a_gpu_cuts_the_same_clips():
    for size in ((40, 60), (32, 50), (90, 60)):
        video = views(noise(6, *size, 3), noise(6, *size, 3, seed=1), temporal=2)
        expected = video.cut(normalization=(MEAN, STD))
        for part, wanted in zip(video.pin_memory().split(5), expected.split(5), strict=True):
            out = torch.empty(part.shape, device="cuda", memory_format=torch.channels_last_3d)
            clips = part.cut((MEAN.cuda(), STD.cuda()), out)
            torch.testing.assert_close(clips.cpu(), wanted, atol=1e-4, rtol=0)
