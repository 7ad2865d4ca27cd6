"""Test RandAugment against timm: operations, arguments, draws, and fused steps."""

import platform
import random
from collections import Counter, defaultdict

import cv2
import numpy as np
import pytest
from PIL import Image, ImageEnhance
from timm.data import auto_augment as timm_ops

from slowfast.datasets.crops import ResizedCrop
from slowfast.datasets.rand_augment import GREY, OPERATIONS, Op, RandAugment, augmented_crop

GEOMETRIC_OPS = [name for name, operation in OPERATIONS.items() if operation.kind == "geometric"]
WITHOUT_ARGUMENT = ("AutoContrast", "Equalize", "Invert")
RECIPE = "rand-m7-n4-mstd0.5-inc1"


@pytest.fixture(scope="module")
def clips() -> dict[str, np.ndarray]:
    """Return clips of 3 frames, higher than wide: noise, smooth colours (few and all grey levels), one colour."""
    rng = np.random.default_rng(0)
    noise = rng.integers(0, 256, (3, 97, 81, 3)).astype(np.uint8)
    smooth = np.stack([cv2.GaussianBlur(frame, (0, 0), 4) for frame in noise]).astype(float)
    smooth = (smooth - smooth.min()) / np.ptp(smooth)
    few, all_levels = (90 + 50 * smooth).astype(np.uint8), (255 * smooth).astype(np.uint8)
    flat = np.full((3, 97, 81, 3), (20, 120, 250), np.uint8)
    return {"noise": noise, "dim": few, "bright": all_levels, "flat": flat}


def op_argument(name: str, level: float, sign: int, increasing: bool) -> float:
    return OPERATIONS[name].argument(level / 10, sign, increasing)


def apply(frames: np.ndarray, name: str, argument: float) -> np.ndarray:
    return augmented_crop(frames, [(name, argument)], None)


def by_timm(frames: np.ndarray, name: str, argument: float, interpolation: str = "bicubic") -> np.ndarray:
    arguments = () if name in WITHOUT_ARGUMENT else (argument,)
    options = {"fillcolor": (128, 128, 128), "resample": Image.Resampling[interpolation.upper()]}
    op = timm_ops.NAME_TO_OP[name]
    return np.stack([np.asarray(op(Image.fromarray(frame), *arguments, **options)) for frame in frames])


@pytest.mark.parametrize("name", sorted(set(OPERATIONS) - set(GEOMETRIC_OPS)))
def test_pixel_operations_match_timm_within_one_grey_level(clips, name):
    exact = name not in ("Color", "Sharpness")  # the others are look-up tables
    if name == "Contrast" and platform.machine() == "aarch64":
        exact = False  # the reference blends with fused multiply-adds there
    for increasing in (False, True):
        for level, sign in ((2.5, 1), (2.5, -1), (7, 1), (9.7, -1), (9.7, 1)):
            argument = op_argument(name, level, sign, increasing)
            if name == "Posterize" and argument == 0:
                continue  # newer versions of Pillow refuse to keep no bits at all
            for frames in clips.values():
                difference = np.abs(apply(frames, name, argument).astype(int) - by_timm(frames, name, argument))
                assert difference.max() <= (0 if exact else 1), (argument, difference.max())


def test_posterize_to_no_bits_is_black(clips):
    assert not apply(clips["noise"], "Posterize", 0).any()


@pytest.mark.parametrize("name", sorted(GEOMETRIC_OPS))
@pytest.mark.parametrize("level", [1.3, 7.0, 10.0])
@pytest.mark.parametrize("sign", [1, -1])
def test_geometric_operations_match_timm_up_to_the_bicubic_kernel(clips, name, level, sign):
    argument = op_argument(name, level, sign, True)
    ours, theirs = (function(clips["bright"], name, argument).astype(int) for function in (apply, by_timm))
    grey = (theirs == 128).all(-1).all(0)
    grey_core = cv2.erode(grey.astype(np.uint8), np.ones((5, 5), np.uint8)).astype(bool)
    inside = cv2.erode((~grey).astype(np.uint8), np.ones((5, 5), np.uint8), borderValue=0).astype(bool)
    assert (ours[:, grey_core] == 128).all()
    assert np.abs(ours - theirs)[:, inside].mean() < 0.7
    assert np.abs(ours - theirs)[:, inside].max() <= 4
    # Half a pixel in the wrong direction would be seen: the same bounds fail for a shifted image.
    assert np.abs(np.roll(ours, 1, axis=2) - theirs)[:, inside].mean() > 2


def test_frames_are_new_and_computed_independently(clips):
    frames = clips["dim"]
    before = frames.copy()
    for name in OPERATIONS:
        argument = op_argument(name, 7, 1, True)
        together = apply(frames, name, argument)
        apart = np.concatenate([apply(frames[t : t + 1], name, argument) for t in range(3)])
        assert together.dtype == np.uint8 and np.array_equal(together, apart), name
        assert np.array_equal(frames, before), name


def timm_name(name: str, increasing: bool) -> str:
    varies = ("Posterize", "Solarize", "Color", "Contrast", "Brightness", "Sharpness")
    return name + "Increasing" * (increasing and name in varies)


@pytest.mark.parametrize("increasing", [False, True])
def test_arguments_match_timm(increasing):
    table = timm_ops._RAND_INCREASING_TRANSFORMS if increasing else timm_ops._RAND_TRANSFORMS
    assert {timm_name(name, increasing) for name in OPERATIONS} == set(table)
    for name in set(OPERATIONS) - set(WITHOUT_ARGUMENT):
        to_argument = timm_ops.LEVEL_TO_ARG[timm_name(name, increasing)]
        assert to_argument is not None
        for level in np.linspace(0, 10, 41):
            theirs = {round(to_argument(level, {})[0], 9) for _ in range(40)}  # both signs show up
            ours = {round(op_argument(name, level, sign, increasing), 9) for sign in (1, -1)}
            assert ours == theirs, (name, level)


def timm_draws(text: str, count: int) -> list[list[tuple[str, float]]]:
    """Return `count` draws of timm, each a list of the operations that it would apply."""
    drawn: list[list[tuple[str, float]]] = []
    augment = timm_ops.rand_augment_transform(text, {"img_mean": (128, 128, 128)})
    for op in augment.ops:
        op.aug_fn = lambda image, *args, name=op.name, **_: drawn[-1].append((name, *args)) or image
    for _ in range(count):
        drawn.append([])
        augment(None)
    return drawn


@pytest.mark.parametrize("text", [RECIPE, "rand-m5-n2-mstd0.25", "rand", "rand-m9-mstd101"])
def test_draws_are_distributed_like_timms(text):
    random.seed(0)
    np.random.seed(0)
    count = 6000
    augment, rng = RandAugment.parse(text), np.random.default_rng(0)
    ours = [augment.draw(rng) for _ in range(count)]
    theirs = timm_draws(text, count)
    lengths = [np.bincount([len(ops) for ops in draws], minlength=augment.num_ops + 1) for draws in (ours, theirs)]
    assert np.abs(lengths[0] - lengths[1]).max() < 5 * np.sqrt(count / 2)
    arguments = [defaultdict(list), defaultdict(list)]
    for values, draws in zip(arguments, (ours, theirs), strict=True):
        for name, *argument in (op for ops in draws for op in ops):
            values[name.removesuffix("Increasing")].append(argument[0] if argument else 0.0)
    assert arguments[0].keys() == arguments[1].keys() == set(OPERATIONS)
    for name in OPERATIONS:
        a, b = (np.array(values[name]) for values in arguments)
        assert abs(len(a) - len(b)) < 5 * np.sqrt(len(a) + len(b)), name
        spread = max(b.std(), 1e-9)
        assert abs(a.mean() - b.mean()) < 5 * spread * np.sqrt(2 / len(b)) + 1e-9, name
        assert a.std() == pytest.approx(b.std(), rel=0.15, abs=1e-9), name


def test_a_new_row_is_drawn(monkeypatch):
    monkeypatch.setitem(OPERATIONS, "Own", OPERATIONS["Invert"])
    augment, rng = RandAugment.parse("rand-m9"), np.random.default_rng(0)
    drawn = {name for _ in range(200) for name, _ in augment.draw(rng)}
    assert drawn == set(OPERATIONS)


def test_one_draw_serves_the_whole_clip_and_repeats_with_its_generator(clips):
    still = np.repeat(clips["noise"][:1], 5, axis=0)
    augment = RandAugment.parse(RECIPE)
    changed = 0
    for seed in range(40):
        out = augment(still, np.random.default_rng(seed))
        assert (out == out[0]).all()
        assert np.array_equal(out, augment(still, np.random.default_rng(seed)))
        changed += not np.array_equal(out, still)
    assert changed > 30


def test_strings_are_read_like_timms():
    assert RandAugment.parse("rand") == RandAugment(10, 2, 0, False)
    assert RandAugment.parse(RECIPE) == RandAugment(7, 4, 0.5, True)
    assert RandAugment.parse("rand-m9-mstd0.5-inc0") == RandAugment(9, 2, 0.5, False)
    assert Counter(name for name, _ in RandAugment(10, 5000).draw(np.random.default_rng(0))).keys() == set(OPERATIONS)


@pytest.mark.parametrize(
    "text", ["augmix-m3", "rand-m", "rand-x3", "rand-m7n4", "rand-m11", "rand-n0", "rand-n1.5", "rand-inc2", "RAND", ""]
)
def test_other_strings_are_refused_with_an_example(text):
    with pytest.raises(ValueError, match=f"{text!r}.*{RECIPE}"):
        RandAugment.parse(text)


CROP = ResizedCrop((9, 6, 70, 61), (48, 48), (0, 0), 48)


def draws(count: int, *, seed: int = 0) -> list[list[Op]]:
    augment, rng = RandAugment(7, 6, 0.5, True), np.random.default_rng(seed)
    return [augment.draw(rng) for _ in range(count)]


def step_by_step(frames: np.ndarray, ops: list[Op]) -> np.ndarray:
    for op in ops:
        frames = augmented_crop(frames, [op], None)
    return frames


def cut(frames: np.ndarray, crop: ResizedCrop) -> np.ndarray:
    y, x, height, width = crop.box
    return crop(frames[:, y : y + height, x : x + width])


def test_pixel_operations_in_a_row_are_those_of_single_steps(clips):
    pixel_ops = [[op for op in ops if op[0] not in GEOMETRIC_OPS] for ops in draws(60)]
    assert max(map(len, pixel_ops)) > 3
    for ops in pixel_ops:
        for frames in clips.values():
            assert np.array_equal(augmented_crop(frames, ops, None), step_by_step(frames, ops)), ops


def test_tables_in_a_row_match_timm_exactly(clips):
    for ops in draws(80):
        tables = [op for op in ops if op[0] not in (*GEOMETRIC_OPS, "Color", "Sharpness")]
        theirs = clips["bright"]
        for name, argument in tables:
            theirs = by_timm(theirs, name, argument)
        assert np.array_equal(augmented_crop(clips["bright"], tables, None), theirs), tables


def test_a_crop_equals_the_same_part_of_the_whole_frame(clips):
    """Only a part of the frame is computed, but statistics are those of the whole frame."""
    corners = [
        ResizedCrop((0, 0, 40, 81), (48, 48), (0, 0), 48),
        ResizedCrop((60, 50, 37, 31), (48, 48), (0, 0), 48, flip=True),
        ResizedCrop((0, 0, 97, 81), (60, 50), (7, 2), 48),
    ]
    seen = Counter()
    for number, ops in enumerate(draws(120)):
        crop = (CROP, *corners)[number % 4]
        while ops and ops[-1][0] in GEOMETRIC_OPS:
            ops = ops[:-1]
        frames = clips["bright" if number % 2 else "noise"]
        one_warp = [name in GEOMETRIC_OPS for name, _ in ops]
        whole = augmented_crop(frames, ops, None)
        assert np.array_equal(augmented_crop(frames, ops, crop), cut(whole, crop)), ops
        seen[any(one_warp)] += 1
    assert min(seen.values()) > 20


def test_a_mirrored_crop_is_the_crop_mirrored(clips):
    flipped = ResizedCrop(CROP.box, CROP.size, CROP.corner, CROP.side, flip=True)
    for ops in draws(30):
        straight = augmented_crop(clips["bright"], ops, CROP)
        assert np.array_equal(augmented_crop(clips["bright"], ops, flipped), straight[:, :, ::-1]), ops


def geometric_draws(count: int) -> list[list[Op]]:
    """Return draws of one to four consecutive geometric operations."""
    rng = np.random.default_rng(0)
    drawn = []
    for number in range(count):
        names = rng.choice(sorted(GEOMETRIC_OPS), 1 + number % 4)
        levels, signs = rng.normal(7, 0.5, len(names)), rng.choice([1, -1], len(names))
        drawn.append([(n, op_argument(n, lv, int(sg), True)) for n, lv, sg in zip(names, levels, signs, strict=True)])
    return drawn


def test_operations_fused_with_the_crop_match_single_steps_of_timm(clips):
    differences, sharpness = [], []
    for ops in geometric_draws(60):
        theirs = clips["bright"]
        for name, argument in ops:
            theirs = by_timm(theirs, name, argument)
        ours = augmented_crop(clips["bright"], ops, CROP).astype(float)
        theirs = cut(theirs, CROP) + 0.5 * len(ops)  # Pillow cuts the fraction in every step
        # away from edges of the grey, which are half a pixel wide
        edges = cv2.dilate((np.abs(theirs - 128).max(-1) < 4).any(0).astype(np.uint8), np.ones((5, 5)))
        inside = edges == 0
        if inside.mean() > 0.3:
            differences.append(np.abs(ours - theirs)[:, inside].mean())
            sharpness.append([np.abs(np.diff(x, axis=2))[:, inside[:, 1:]].mean() for x in (ours, theirs)])
            wrong = np.abs(np.roll(ours, 1, axis=2) - theirs)[:, inside].mean()
            assert wrong > 1.5 * differences[-1], ops  # a pixel off would be seen
    assert len(differences) > 30
    assert np.mean(differences) < 1 and max(differences) < 1.5
    ours, theirs = np.mean(sharpness, axis=0)
    assert ours == pytest.approx(theirs, rel=0.02)


def test_as_much_is_grey_as_after_single_steps_of_timm():
    """Pixels that one operation moves out of the frame and another one moves back are grey too."""
    frames = np.full((1, 97, 81, 3), (10, 220, 60), np.uint8)
    more: list[float] = []
    back_and_forth: list[Op] = [("TranslateXRel", 0.3), ("TranslateXRel", -0.3)]
    for ops in (back_and_forth, *geometric_draws(150)):
        theirs = frames
        for name, argument in ops:
            theirs = by_timm(theirs, name, argument)
        ours, theirs = ((clip[..., 0] > 69).mean() for clip in (augmented_crop(frames, ops, CROP), cut(theirs, CROP)))
        more.append(ours - theirs)
    assert max(map(abs, more)) < 0.05  # a row of 48 for each of two edges: theirs lie between pixels
    assert abs(np.mean(more)) < 0.003
    assert (augmented_crop(frames, [("TranslateXRel", 0.3)] * 4, CROP) == GREY).all()


@pytest.mark.parametrize("interpolation", ["bicubic", "bilinear"])
@pytest.mark.parametrize("name", ["ShearX", "ShearY", "TranslateXRel", "TranslateYRel"])
@pytest.mark.parametrize("argument", [-0.45, -0.123, -0.004, 0.0, 0.01, 0.3, 1.2])
def test_slides_are_pillows_up_to_rounding(name, argument, interpolation):
    """Slides reach the border and beyond, and a part of the frame equals that part of the whole frame."""
    noise = np.random.default_rng(0).integers(0, 256, (2, 60, 85, 3)).astype(np.uint8)
    frames = np.stack([cv2.GaussianBlur(frame, (5, 5), 1) for frame in noise])
    ours = augmented_crop(frames, [(name, argument)], None, interpolation)
    theirs = by_timm(frames, name, argument, interpolation)
    assert np.abs(ours.astype(int) - theirs).max() <= 1
    for y, x, h, w in ((0, 0, 60, 85), (10, 20, 30, 40), (0, 60, 20, 25), (59, 84, 1, 1)):
        crop = ResizedCrop((y, x, h, w), (h, w), (0, 0), min(h, w))
        part = augmented_crop(frames, [(name, argument), ("Color", 1.0)], crop, interpolation)
        assert np.abs(part.astype(int) - ours[:, y : y + min(h, w), x : x + min(h, w)]).max() <= 1


def test_unknown_interpolation_is_refused():
    with pytest.raises(ValueError, match="lanczos"):
        RandAugment.parse("rand", "lanczos")


def test_augmented_pixels_are_distributed_like_timms():
    """Compare levels, contrast and detail of complete draws of the recipe, after the crop."""
    rng = np.random.default_rng(1)
    noise = rng.standard_normal((1, 128, 170, 3)).astype(np.float32)
    scene = np.sum([cv2.GaussianBlur(noise[0], (0, 0), s) * s for s in (1.0, 3.0, 9.0, 27.0)], axis=0)
    frames = (255 * (scene - scene.min()) / np.ptp(scene)).astype(np.uint8)[None]
    crop = ResizedCrop((16, 20, 96, 100), (112, 112), (0, 0), 112)
    augment = RandAugment.parse(RECIPE)
    measures = [[], []]
    for _ in range(400):
        ops = augment.draw(rng)
        theirs = frames
        for name, argument in ops:
            theirs = by_timm(theirs, name, argument)
        for values, clip in zip(measures, (augmented_crop(frames, ops, crop), cut(theirs, crop)), strict=True):
            steps = np.abs(np.diff(clip.astype(float), axis=2))
            values.append([clip.mean(), clip.std(), steps.mean(), (clip == 128).all(-1).mean()])
    ours, theirs = (np.array(values) for values in measures)
    limits = 0.02 * theirs.mean(0)
    limits[3] = 0.002  # of grey: theirs is blended with the picture at its edge, where crop and operation are two steps
    assert (np.abs(ours.mean(0) - theirs.mean(0)) < limits).all()


@pytest.mark.parametrize("name", ["Color", "Sharpness"])
def test_filters_are_neither_brighter_nor_darker_than_pillows(name):
    frame = np.random.RandomState(0).randint(0, 256, (64, 64, 3)).astype(np.uint8)
    for factor in (0.3, 0.7):  # a blend, so that no value is clipped
        theirs = np.asarray(getattr(ImageEnhance, name)(Image.fromarray(frame)).enhance(factor)).astype(float)
        ours = augmented_crop(frame[None], [(name, factor)], None)[0].astype(float)
        assert abs((ours - theirs).mean()) < 0.2
