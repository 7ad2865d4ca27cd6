"""Demo videos: reproducible, resumable, and with classes that differ by motion only."""

from pathlib import Path

import cv2
import make_demo_data as program
import numpy as np
import pytest
from make_demo_data import (
    CLASS_NAMES,
    FRAMES,
    IMAGE_CLASS_NAMES,
    draw_factors,
    make_demo_data,
    render,
    render_image,
    rng_for,
)
from PIL import Image

from slowfast.datasets.reader import read_frames

CLASSES = range(len(CLASS_NAMES))


def contents(folder: Path) -> dict[str, bytes]:
    return {str(path.relative_to(folder)): path.read_bytes() for path in folder.rglob("*") if path.is_file()}


def ks_distance(a: np.ndarray, b: np.ndarray) -> float:
    """Largest distance between two empirical distribution functions (Kolmogorov-Smirnov)."""
    values = np.sort(np.concatenate([a, b]))
    return np.abs(np.searchsorted(np.sort(a), values) / len(a) - np.searchsorted(np.sort(b), values) / len(b)).max()


@pytest.fixture(scope="module")
def demo(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return make_demo_data(tmp_path_factory.mktemp("demo") / "data", train=16, test=8, seed=3, workers=2)


def test_the_same_seed_gives_the_same_bytes_with_any_number_of_workers(demo: Path, tmp_path: Path) -> None:
    again = contents(make_demo_data(tmp_path / "again", train=16, test=8, seed=3, workers=1))
    other = contents(make_demo_data(tmp_path / "other", train=16, test=8, seed=4, workers=2))
    assert again == contents(demo)
    assert not any(other[name] == again[name] for name in again if name.endswith(".mp4"))


def test_lists_hold_every_class_equally_often_and_videos_decode(demo: Path) -> None:
    assert (demo / "class_names.txt").read_text().splitlines() == list(CLASS_NAMES)
    assert (demo / "val.csv").read_bytes() == (demo / "test.csv").read_bytes()
    sizes = set()
    for split, count in (("train", 16), ("test", 8)):
        rows = [line.split(" ") for line in (demo / f"{split}.csv").read_text().splitlines()]
        assert np.bincount([int(label) for _, label in rows], minlength=8).tolist() == [count // 8] * 8
        for index, (name, label) in enumerate(rows):
            frames = read_frames(str(demo / name), range)
            drawn = render(rng_for(3, "demo", split, index), int(label))
            assert FRAMES[0] <= len(frames) <= FRAMES[1]
            assert frames.shape == drawn.shape
            assert np.abs(frames.astype(float) - drawn).mean() < 12  # H.264 loses colour resolution
            sizes.add(frames.shape[1:3])
    assert len(sizes) > 3


@pytest.mark.parametrize("label", CLASSES)
def test_only_the_factor_of_the_class_drifts(label: int) -> None:
    for seed in range(50):
        factors = draw_factors(np.random.default_rng(seed), label, 24 + seed % 25)
        drift = factors[:, -1] - factors[:, 0]
        steps = np.diff(factors[label // 2]) * (1 if label % 2 else -1)
        assert (steps > 0).all()
        assert abs(drift[label // 2]) >= 0.6
        assert np.allclose(np.delete(drift, label // 2), 0)
        assert (np.ptp(factors, axis=1) > 0.5).all()  # the others cover as much
        assert factors.min() >= 0
        assert factors.max() <= 1


def test_a_frame_does_not_show_the_class() -> None:
    drawn = np.array([[draw_factors(np.random.default_rng([seed, c]), c, 36) for seed in range(1500)] for c in CLASSES])
    frames = drawn.transpose(0, 2, 1, 3).reshape(8, 4, -1)  # class, factor, every frame of every video
    for factor in range(4):
        for label in range(1, 8):
            assert ks_distance(frames[0, factor], frames[label, factor]) < 0.03
        # one monotone class shifts it when frames are compared at one moment: the distance can see a difference
        last = drawn[:, :, factor, -1]
        assert ks_distance(last[2 * factor], last[2 * factor + 1]) > 0.5
    correlations = [np.corrcoef(of_class)[np.triu_indices(4, 1)] for of_class in frames]
    assert np.abs(correlations).max() < 0.05


def test_a_reversed_video_is_one_of_the_opposite_class() -> None:
    for label in range(0, 8, 2):
        one = draw_factors(np.random.default_rng(1), label, 30)[label // 2]
        opposite = draw_factors(np.random.default_rng(1), label + 1, 30)[label // 2]
        assert np.allclose(one[::-1], opposite)


@pytest.mark.parametrize(("label", "sign"), [(0, -1), (1, 1), (2, -1), (3, 1)], ids=lambda value: str(value))
def test_positions_follow_the_class_name(label: int, sign: int) -> None:
    axis = 2 if label < 2 else 1  # of (T, H, W): left is a smaller column, up a smaller row
    for seed in range(8):
        video = render(np.random.default_rng(seed), label).max(axis=-1).astype(float)
        shape = video > 150
        center = [np.argwhere(shape[t]).mean(0)[axis - 1] for t in (0, -1)]
        assert (center[1] - center[0]) * sign > 4


def test_sizes_follow_the_class_name() -> None:
    for seed in range(8):
        areas = [(render(np.random.default_rng(seed), label).max(-1) > 150).sum((1, 2)) for label in (6, 7)]
        assert areas[0][0] > 1.5 * areas[0][-1]
        assert areas[1][-1] > 1.5 * areas[1][0]


def test_turns_follow_the_class_name() -> None:
    for seed in range(8):
        for label, sign in ((4, -1), (5, 1)):
            video = render(np.random.default_rng(seed), label).astype(float)
            shape, warmth = video.max(-1) > 150, video[..., 0] - video[..., 2]
            red, blue = shape & (warmth > 60), shape & (warmth < -60)
            up = [np.argwhere(red[t]).mean(0) - np.argwhere(blue[t]).mean(0) for t in range(len(video))]
            turn = np.unwrap([np.arctan2(row, column) for row, column in up])  # rows point down: clockwise grows
            assert (turn[-1] - turn[0]) * sign > np.pi / 3


def test_an_interrupted_call_goes_on_and_a_finished_one_returns(demo: Path, tmp_path: Path) -> None:
    whole = contents(demo)
    folder = make_demo_data(tmp_path / "data", train=16, test=8, seed=3)
    kept = folder / "videos" / "train_00002.mp4"
    before = kept.stat().st_mtime_ns
    make_demo_data(folder, train=16, test=8, seed=3)
    assert kept.stat().st_mtime_ns == before

    record = folder / "demo.json"
    record.write_text(record.read_text().replace("true", "false"))
    for name in ("test.csv", "videos/train_00005.mp4", "videos/test_00001.mp4"):
        (folder / name).unlink()
    (folder / "videos" / "train_00005.part").write_bytes(b"torn")
    make_demo_data(folder, train=16, test=8, seed=3)
    assert contents(folder) == whole
    assert kept.stat().st_mtime_ns == before


def test_other_arguments_for_a_folder_in_use_are_refused(demo: Path, tmp_path: Path) -> None:
    with pytest.raises(ValueError, match="choose another folder"):
        make_demo_data(demo, train=16, test=8, seed=4)
    with pytest.raises(ValueError, match="at least 1"):
        make_demo_data(tmp_path / "none", train=0)


def test_the_command_makes_the_same_videos(demo: Path, tmp_path: Path, run_here) -> None:
    run_here(program, "--out", tmp_path / "cli", "--train", 16, "--test", 8, "--seed", 3)
    assert contents(tmp_path / "cli") == contents(demo)


def test_a_folder_that_cannot_be_made_is_an_error(tmp_path: Path, run_here) -> None:
    (tmp_path / "file").touch()
    assert run_here(program, "--out", tmp_path / "file/data").returncode == 2


@pytest.fixture(scope="module")
def stills(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return make_demo_data(tmp_path_factory.mktemp("stills") / "data", train=32, test=16, seed=3, workers=2, images=True)


def test_images_lie_in_the_folders_of_their_classes(stills: Path) -> None:
    for split, name, count in (("train", "train", 4), ("test", "val", 2)):
        assert {path.name for path in (stills / name).iterdir()} == set(IMAGE_CLASS_NAMES)
        for label, folder in enumerate(IMAGE_CLASS_NAMES):
            files = sorted((stills / name / folder).iterdir())
            assert [path.name for path in files] == [f"{label + 8 * i:05d}.jpg" for i in range(count)]
            drawn = render_image(rng_for(3, "demo image", split, label), label)
            decoded = np.asarray(Image.open(files[0]))
            assert decoded.shape == drawn.shape and np.abs(decoded.astype(float) - drawn).mean() < 12


def test_images_are_reproducible_and_an_interrupted_call_goes_on(stills: Path, tmp_path: Path) -> None:
    options = {"train": 32, "test": 16, "workers": 1, "images": True}
    again = make_demo_data(tmp_path / "again", seed=3, **options)
    assert contents(again) == contents(stills)
    other = contents(make_demo_data(tmp_path / "other", seed=4, **options))
    assert not any(other[name] == content for name, content in contents(stills).items())

    record = again / "demo.json"
    record.write_text(record.read_text().replace("true}", "false}"))
    (again / "train/bar/00007.jpg").unlink()
    make_demo_data(again, seed=3, **options)
    assert contents(again) == contents(stills)
    with pytest.raises(ValueError, match="choose another folder"):
        make_demo_data(stills, train=32, test=16, seed=3)


def covered(image: np.ndarray) -> np.ndarray:
    """Where the bright shape is."""
    return image.max(-1) > 150


def test_the_outline_shows_the_class_of_an_image_and_colour_and_area_do_not() -> None:
    def features(image: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
        mask = covered(cv2.GaussianBlur(image, (3, 3), 0)).astype(np.uint8)
        contours = cv2.findContours(mask, cv2.RETR_EXTERNAL, cv2.CHAIN_APPROX_NONE)[0]
        largest = max(contours, key=cv2.contourArea)
        area, hull = cv2.contourArea(largest), cv2.contourArea(cv2.convexHull(largest))
        box = cv2.minAreaRect(largest)[1]
        outline = [area / hull, min(box) / max(box), area / (box[0] * box[1])]
        return np.array([*image.mean((0, 1)), mask.sum() / min(mask.shape) ** 2]), np.array(outline)

    labels = np.arange(480) % 8
    drawn = [features(render_image(rng_for(seed), int(label))) for seed, label in enumerate(labels)]
    for kind, low, high in ((0, 0.0, 0.25), (1, 0.45, 1.0)):
        values = np.array([pair[kind] for pair in drawn])
        values = (values - values.mean(0)) / values.std(0)
        distance = np.linalg.norm(values[:, None] - values[None], axis=2)
        np.fill_diagonal(distance, np.inf)
        nearest = labels[np.argsort(distance, axis=1)[:, :9]]
        guesses = [np.bincount(row, minlength=8).argmax() for row in nearest]
        assert low <= np.mean(guesses == labels) <= high


def test_the_command_makes_the_same_images(stills: Path, tmp_path: Path, run_here) -> None:
    run_here(program, "--images", "--out", tmp_path / "cli", "--train", 32, "--test", 16, "--seed", 3)
    assert contents(tmp_path / "cli") == contents(stills)
