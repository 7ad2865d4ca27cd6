"""Test normalization, training crops, flips and erasing of clips against the official numbers."""

import cv2
import numpy as np
import pytest
import torch

from slowfast.datasets.crops import ResizedCrop, resized_crop_box, short_side_size
from slowfast.datasets.rand_augment import RandAugment, augmented_crop
from slowfast.datasets.transforms import RandomErasing, TrainTransform, normalize

AREA, ASPECT = (0.08, 1.0), (0.75, 1.3333)


def noise(*shape: int, seed: int = 0) -> np.ndarray:
    return np.random.RandomState(seed).randint(0, 256, shape).astype(np.uint8)


def test_normalize_takes_bytes_and_floats_and_leaves_them_alone():
    mean, std = [0.4, 0.5, 0.6], [0.1, 0.2, 0.3]
    video = torch.from_numpy(noise(2, 3, 2, 4, 5))
    floats = video.float()
    result = normalize(video, mean, std)
    expected = torch.stack([(video[:, c] / 255.0 - mean[c]) / std[c] for c in range(3)], 1)
    torch.testing.assert_close(result, expected, atol=1e-6, rtol=1e-6)
    assert torch.equal(normalize(floats, mean, std), result) and torch.equal(floats, video.float())


def test_random_resized_crops_have_the_drawn_area_and_aspect_and_lie_anywhere():
    rng = np.random.default_rng(0)
    boxes = np.array([resized_crop_box(256, 340, AREA, ASPECT, rng) for _ in range(4000)])
    y, x, h, w = boxes.T
    area, aspect = h * w / (256 * 340), w / h
    assert (y >= 0).all() and (x >= 0).all() and (y + h <= 256).all() and (x + w <= 340).all()
    assert (y == 0).any() and (y + h == 256).any() and (x == 0).any() and (x + w == 340).any()
    assert 0.075 < area.min() < 0.1 and area.max() > 0.95
    assert 0.74 < aspect.min() < 0.76 and 1.31 < aspect.max() < 1.35
    small = area < 0.5  # nothing is rejected there, so the draws are uniform
    assert np.histogram(area[small], 6, (0.08, 0.5))[0].min() / small.sum() > 0.13
    assert abs(np.log(aspect[small]).mean()) < 0.02


def test_random_resized_crop_falls_back_to_the_largest_legal_box():
    rng = np.random.default_rng(0)
    assert resized_crop_box(100, 1000, (0.99, 1.0), ASPECT, rng) == (0, 433, 100, 133)
    assert resized_crop_box(1000, 100, (0.99, 1.0), ASPECT, rng) == (433, 0, 133, 100)
    assert resized_crop_box(100, 100, (1.5, 1.6), ASPECT, rng) == (0, 0, 100, 100)


def test_training_crop_is_a_bilinear_resize_of_a_box_within_one_grey_level():
    frames = noise(2, 40, 60, 3)
    out = TrainTransform(24, (32, 32), AREA, ASPECT, flip=False)(frames, np.random.default_rng(3))
    y, x, h, w = resized_crop_box(40, 60, AREA, ASPECT, np.random.default_rng(3))
    box = torch.from_numpy(frames[:, y : y + h, x : x + w]).permute(0, 3, 1, 2).float()
    expected = torch.nn.functional.interpolate(box, size=(24, 24), mode="bilinear").permute(0, 2, 3, 1).numpy()
    assert out.dtype == np.uint8 and out.shape == (2, 24, 24, 3)
    assert np.abs(out - expected).max() <= 1.0


@pytest.mark.parametrize("ranges", [(AREA, ASPECT), (None,)])
def test_an_augmented_clip_draws_operations_then_the_crop_then_the_flip(ranges):
    frames, augment = noise(2, 40, 60, 3), RandAugment.parse("rand-m7-n4-mstd0.5-inc1")
    transform = TrainTransform(24, (24, 36), *ranges, rand_augment=augment)
    for seed in range(20):
        rng = np.random.default_rng(seed)
        ops = augment.draw(rng)
        if ranges[0] is None:
            height, width = short_side_size(40, 60, round(rng.uniform(24, 36)))
            corner = int(rng.integers(height - 23)), int(rng.integers(width - 23))
            crop = ResizedCrop((0, 0, 40, 60), (height, width), corner, 24, rng.random() < 0.5)
        else:
            box = resized_crop_box(40, 60, AREA, ASPECT, rng)
            crop = ResizedCrop(box, (24, 24), (0, 0), 24, rng.random() < 0.5)
        expected = augmented_crop(frames, ops, crop)
        assert np.array_equal(transform(frames, np.random.default_rng(seed)), expected)


@pytest.mark.parametrize("flip", [False, True])
def test_places_of_a_crop_are_where_its_resize_samples(flip):
    frames = noise(1, 40, 60, 3)
    for crop in (
        ResizedCrop((3, 5, 30, 40), (24, 24), (0, 0), 24, flip),
        ResizedCrop((0, 0, 40, 60), (50, 75), (26, 51), 24, flip),
        ResizedCrop((0, 0, 40, 60), (40, 60), (1, 2), 24, flip),
    ):
        y, x, height, width = crop.box
        rows, columns = (places.astype(np.float32) for places in crop.places())
        sampled = cv2.remap(frames[0].astype(np.float32), *np.meshgrid(columns, rows), cv2.INTER_LINEAR)
        difference = np.abs(sampled - crop(frames[:, y : y + height, x : x + width])[0])
        assert difference.max() < 8 and difference.mean() < 2  # OpenCV samples at 1/32 of a pixel


def test_jitter_uses_every_short_side_and_every_position():
    ramp = np.broadcast_to(np.arange(32, dtype=np.uint8)[None, :, None, None], (1, 32, 32, 3))
    rng = np.random.default_rng(0)
    whole = TrainTransform(30, (32, 32), flip=False)
    starts = {int(whole(ramp, rng)[0, 0, 0, 0]) for _ in range(60)}
    assert starts == {0, 1, 2}
    jitter = TrainTransform(32, (32, 64), flip=False)
    spans = {int(np.ptp(jitter(ramp, rng)[0, :, 0, 0])) for _ in range(200)}  # how much of the frame is seen
    assert min(spans) <= 16 and max(spans) == 31


def test_half_of_the_clips_are_mirrored_as_a_whole():
    frames = noise(3, 16, 16, 3)
    transform = TrainTransform(16, (16, 16))
    outs = [transform(frames, np.random.default_rng(seed)) for seed in range(200)]
    mirrored = sum(np.array_equal(out, frames[:, :, ::-1]) for out in outs)
    assert mirrored + sum(np.array_equal(out, frames) for out in outs) == 200
    assert 70 < mirrored < 130


def test_the_source_frames_are_never_changed():
    frames = noise(2, 16, 16, 3)
    before = frames.copy()
    transform = TrainTransform(16, (16, 16), flip=False, erase=RandomErasing(1.0))
    assert not np.array_equal(transform(frames, np.random.default_rng(0)), before)
    assert np.array_equal(frames, before)


def erased(frames: np.ndarray, eraser: RandomErasing, seed: int) -> tuple[np.ndarray, np.ndarray]:
    out = eraser(frames.copy(), np.random.default_rng(seed))
    return out, (out != frames).any(axis=3)


def test_erasing_is_one_box_for_all_frames_with_the_area_and_aspect_of_the_paper():
    frames = np.full((4, 112, 112, 3), 255, np.uint8)
    areas, aspects = [], []
    for seed in range(300):
        _, changed = erased(frames, RandomErasing(1.0, mean=(0.2, 0.2, 0.2), std=(0.1, 0.1, 0.1)), seed)
        assert (changed == changed[0]).all()
        rows, columns = changed[0].any(1).nonzero()[0], changed[0].any(0).nonzero()[0]
        h, w = np.ptp(rows) + 1, np.ptp(columns) + 1
        assert changed[0].sum() == h * w
        areas.append(h * w / 112**2)
        aspects.append(h / w)
    assert 0.015 < min(areas) < 0.04 and 0.3 < max(areas) < 0.34
    assert 0.28 < min(aspects) < 0.4 and 2.5 < max(aspects) < 3.5


def test_erasing_noise_is_a_clipped_standard_normal_of_the_normalized_space():
    out, changed = erased(np.full((8, 112, 112, 3), 3, np.uint8), RandomErasing(1.0), 1)
    assert (out[:, changed[0]].min(), out[:, changed[0]].max()) == (0, 255)
    noise = (out[:, changed[0]] / 255 - 0.45) / 0.225  # (T, pixels, C)
    clipped = np.random.default_rng(0).standard_normal(10**6).clip(-2, 0.55 / 0.225)
    assert noise.mean() == pytest.approx(clipped.mean(), abs=0.02)
    assert noise.std() == pytest.approx(clipped.std(), abs=0.02)
    assert abs(np.corrcoef(noise[0].ravel(), noise[1].ravel())[0, 1]) < 0.1  # frames are drawn apart


def test_erasing_modes_probability_and_count():
    frames = noise(2, 64, 64, 3)
    const, changed = erased(frames, RandomErasing(1.0, "const", mean=(0.2, 0.4, 0.6)), 0)
    assert (const[changed] == [51, 102, 153]).all()
    rand, changed = erased(frames, RandomErasing(1.0, "rand"), 0)
    assert len(np.unique(rand[changed], axis=0)) == 1
    assert 50 < sum(erased(frames, RandomErasing(0.25), seed)[1].any() for seed in range(300)) < 100
    assert not any(erased(frames, RandomErasing(0.0), seed)[1].any() for seed in range(50))
    shares = [erased(frames, RandomErasing(1.0, count=3), seed)[1].mean() for seed in range(300)]
    assert max(shares) <= 0.35
    for seed in range(20):  # some of these boxes are empty
        assert erased(frames, RandomErasing(1.0, count=200), seed)[1].any()
    with pytest.raises(ValueError, match="mean"):
        RandomErasing(1.0, "mean")  # pyright: ignore[reportArgumentType]


def test_impossible_training_crops_are_refused():
    with pytest.raises(ValueError, match=r"224.*128"):
        TrainTransform(224, (128, 320))


def test_a_box_of_the_whole_width_lies_anywhere():
    boxes = [resized_crop_box(200, 100, (0.5, 0.5), (1.0, 1.0), np.random.default_rng(seed)) for seed in range(20)]
    assert {(x, h, w) for _, x, h, w in boxes} == {(0, 100, 100)} and len({y for y, *_ in boxes}) > 10


def test_erased_boxes_reach_every_border():
    frames = np.full((1, 12, 12, 3), 255, np.uint8)
    changed = np.any([erased(frames, RandomErasing(1.0, "const"), seed)[1][0] for seed in range(300)], axis=0)
    assert changed[0].any() and changed[-1].any() and changed[:, 0].any() and changed[:, -1].any()
