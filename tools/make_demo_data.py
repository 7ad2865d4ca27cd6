"""Make a small set of H.264 videos whose eight classes differ only in motion, or of images that differ only in shape.

    python tools/make_demo_data.py --out data/motion [--train 1000 --test 200 --seed 0 --workers N]
    python tools/make_demo_data.py --out data/shapes --images

A shape of two colours moves over a textured background. Four factors describe it: position x, position y, angle and
size. A class names one factor and its direction: this factor changes steadily from one end of a range to the other. The
other three factors change to one end of their range, to the other end, and back to where they began. It follows that:

* A random frame of a video has the same distribution under each class: every factor is uniform over its range.
* A reversed video is an equally likely video of the opposite class. So the frames without their order contain no
  information about the class, and neither do the ranges that the factors cover.
* A frame with its position in time does contain information, as in any steady motion: a shape at the right edge at the
  end probably moved right. Therefore the control is a test with shuffled frames, whose accuracy must be near 1 / 8.

Shape, texture, colours, background, clutter, noise, speed, length, frame rate and resolution vary from video to video,
independently of the class. A file is a function of (seed, split, index).

With --images, a shape at a random place, angle and size over the same backgrounds is a still image, and its outline is
the class: train/<class>/*.jpg and val/<class>/*.jpg. Its colours and its area do not depend on the class.
"""

from __future__ import annotations

import argparse
import json
import sys
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import av
import cv2
import numpy as np
from tqdm import tqdm

from slowfast.utils.io import Parser, guarded, write_text
from slowfast.utils.processes import usable_cores
from slowfast.utils.rng import rng_for

CLASS_NAMES = (
    "move_left",
    "move_right",
    "move_up",
    "move_down",
    "turn_counterclockwise",
    "turn_clockwise",
    "shrink",
    "grow",
)
IMAGE_CLASS_NAMES = ("triangle", "square", "hexagon", "star", "arrow", "ell", "cross", "bar")
VERSION = 1  # in demo.json: increase it when the same arguments give other files
ARC = (0.6, 1.0)  # share of a factor's limits that one video covers
FRAMES = (24, 48)
FRAME_RATES = (12, 15, 24, 30)
SHORT_SIDES = (64, 80, 96)  # decord misreads some other widths below 96, such as 72
ASPECTS = (1.0, 1.25, 1.5)
TRAVEL = 0.25  # limits of x and of y, in units of the short side
TURN = np.pi  # limits of the angle, in radians: the warm half never points straight down
RADII = (0.14, 0.38)  # limits of the size, in units of the short side
SPRITE = 96  # pixels; the side of the square in which a shape is drawn before it is turned and scaled
SHAPES = (
    [(np.cos(a), np.sin(a)) for a in np.arange(3) * 2 * np.pi / 3],
    [(np.cos(a), np.sin(a)) for a in np.arange(4) * 2 * np.pi / 4],
    [(np.cos(a), np.sin(a)) for a in np.arange(6) * 2 * np.pi / 6],
    [(r * np.cos(a), r * np.sin(a)) for r, a in zip([1, 0.5] * 5, np.arange(10) * 2 * np.pi / 10, strict=True)],
    [(-0.9, -0.35), (0.1, -0.35), (0.1, -0.9), (0.95, 0), (0.1, 0.9), (0.1, 0.35), (-0.9, 0.35)],  # arrow
    [(-0.7, -0.7), (0, -0.7), (0, 0), (0.7, 0), (0.7, 0.7), (-0.7, 0.7)],  # L
)  # outlines inside the unit circle
CROSS = [(-1, -3), (1, -3), (1, -1), (3, -1), (3, 1), (1, 1), (1, 3), (-1, 3), (-1, 1), (-3, 1), (-3, -1), (-1, -1)]
IMAGE_SHAPES = (
    *SHAPES,
    [({1: 0.3, 3: 0.95}[abs(x)] * np.sign(x), {1: 0.3, 3: 0.95}[abs(y)] * np.sign(y)) for x, y in CROSS],
    [(-0.95, -0.3), (0.95, -0.3), (0.95, 0.3), (-0.95, 0.3)],  # bar
)  # in the order of IMAGE_CLASS_NAMES
COVERED = (0.1, 0.25)  # area of a shape in an image, in squares of the short side


def draw_factors(rng: np.random.Generator, label: int, length: int) -> np.ndarray:
    """Draw the course of x, y, angle and size in one video of class `label`.

    Returns:
        (4, length) positions between the two limits of each factor, in [0, 1].
    """
    time = np.linspace(0, 1, length)
    factors = np.empty((4, length))
    for factor in range(4):
        arc, start, phase = rng.uniform(*ARC), rng.random(), rng.random()
        steady = time if label % 2 else 1 - time
        there_and_back = np.abs(2 * ((time + phase) % 1) - 1)
        path = steady if factor == label // 2 else there_and_back
        factors[factor] = (1 - arc) * start + arc * path
    return factors


def _noise(rng: np.random.Generator, shape: tuple[int, int], cells: int, strength: float) -> np.ndarray:
    """Return smooth colour noise (H, W, 3) around 0 with `cells` blobs per side."""
    coarse = rng.normal(0, strength, (cells, cells, 3)).astype(np.float32)
    return cv2.resize(coarse, shape[::-1], interpolation=cv2.INTER_CUBIC)


def _draw_sprite(rng: np.random.Generator, shape: np.ndarray) -> np.ndarray:
    """Draw a shape (SPRITE, SPRITE, 4), colours and opacity; a warm and a cool half make every rotation visible."""
    center, radius = (SPRITE - 1) / 2, SPRITE / 2 - 2
    outline = center + radius * shape
    mask = np.zeros((SPRITE, SPRITE), np.uint8)
    cv2.fillPoly(mask, [outline.round().astype(np.int32)], 255, cv2.LINE_AA)
    paint = _noise(rng, (SPRITE, SPRITE), 6, 15)
    paint[: SPRITE // 2] += (rng.uniform(180, 255), rng.uniform(80, 255), rng.uniform(0, 60))  # warm
    paint[SPRITE // 2 :] += (rng.uniform(0, 60), rng.uniform(80, 255), rng.uniform(180, 255))  # cool
    dot = np.array([center + 0.3 * radius, center - 0.25 * radius]).round().astype(int).tolist()
    cv2.circle(paint, dot, round(0.17 * radius), rng.uniform(0, 255, 3).tolist(), -1, cv2.LINE_AA)
    return np.dstack([paint.clip(0, 255).astype(np.uint8), mask])


def _draw_background(rng: np.random.Generator, height: int, width: int, level: float) -> np.ndarray:
    """Draw colour noise of two sizes and up to four still blocks: (H, W, 3) uint8 of mean brightness `level`."""
    background = level + _noise(rng, (height, width), 4, 15) + _noise(rng, (height, width), 16, 6)
    for _ in range(rng.integers(5)):
        corner = rng.uniform(0, (width, height))
        size = rng.uniform(0.05, 0.2, 2) * min(height, width)
        color = (level + rng.normal(0, 20, 3)).tolist()
        cv2.rectangle(background, corner.astype(int).tolist(), (corner + size).astype(int).tolist(), color, -1)
    return background.clip(0, 255).astype(np.uint8)


def _draw_size(rng: np.random.Generator) -> tuple[int, int]:
    """Draw height and width in pixels."""
    short = int(rng.choice(SHORT_SIDES))
    long = round(short * rng.choice(ASPECTS) / 2) * 2  # H.264 halves the colour planes, so sides must be even
    return (short, long) if rng.random() < 0.5 else (long, short)


def _lay_over(background: np.ndarray, sprite: np.ndarray, x: float, y: float, angle: float, scale: float) -> np.ndarray:
    """Return `sprite` over `background`, centred at (x, y), rotated by `angle` (radians, clockwise) and scaled."""
    cos, sin = scale * np.cos(angle), scale * np.sin(angle)
    center = (SPRITE - 1) / 2
    # y points down, so a larger angle rotates clockwise
    matrix = np.array([[cos, -sin, x - center * (cos - sin)], [sin, cos, y - center * (sin + cos)]])
    layer = cv2.warpAffine(sprite, matrix, background.shape[1::-1], flags=cv2.INTER_AREA)
    opacity = layer[..., 3:].astype(np.int32)
    return (layer[..., :3] * opacity + background * (255 - opacity)) // 255


def render(rng: np.random.Generator, label: int) -> np.ndarray:
    """Draw one video of class `label`: (T, H, W, 3), uint8 RGB."""
    length = int(rng.integers(FRAMES[0], FRAMES[1] + 1))
    height, width = _draw_size(rng)
    short = min(height, width)
    factors = draw_factors(rng, label, length)

    background = _draw_background(rng, height, width, level=rng.uniform(30, 80))
    sprite = _draw_sprite(rng, np.array(SHAPES[rng.integers(len(SHAPES))]))
    grain = rng.normal(0, rng.uniform(0, 6), (2 * height, 2 * width, 1)).astype(np.int16)
    offsets = rng.integers(0, (height, width), (length, 2))

    x = width / 2 + TRAVEL * short * (factors[0] - 0.5)
    y = height / 2 + TRAVEL * short * (factors[1] - 0.5)
    angle = TURN * (factors[2] - 0.5)
    scale = 2 * short / SPRITE * RADII[0] * (RADII[1] / RADII[0]) ** factors[3]
    video = np.empty((length, height, width, 3), np.uint8)
    for t in range(length):
        frame = _lay_over(background, sprite, x[t], y[t], angle[t], scale[t])
        i, j = offsets[t]
        video[t] = (frame + grain[i : i + height, j : j + width]).clip(0, 255)
    return video


def render_image(rng: np.random.Generator, label: int) -> np.ndarray:
    """Draw one image of class `label`: (H, W, 3), uint8 RGB."""
    height, width = _draw_size(rng)
    short = min(height, width)
    background = _draw_background(rng, height, width, level=rng.uniform(30, 80))
    shape = np.array(IMAGE_SHAPES[label])
    area = cv2.contourArea(shape.astype(np.float32))  # in squares of its radius, which is nearly half a sprite
    scale = short * np.sqrt(rng.uniform(*COVERED) / area) / (SPRITE / 2 - 2)
    x, y = np.array([width, height]) / 2 + TRAVEL * short * rng.uniform(-0.5, 0.5, 2)
    turn, angle = rng.uniform(0, 2 * np.pi, 2)  # of the outline under its colours, and of both
    cos, sin = np.cos(turn), np.sin(turn)
    sprite = _draw_sprite(rng, shape @ np.array([[cos, sin], [-sin, cos]]))
    frame = _lay_over(background, sprite, x, y, angle, scale)
    return (frame + rng.normal(0, rng.uniform(0, 6), (height, width, 1))).clip(0, 255).astype(np.uint8)


def write_image(path: Path, seed: int, split: str, index: int) -> None:
    """Render and encode image `index` of a split, of class `index` modulo 8; write the complete file or none."""
    rng = rng_for(seed, "demo image", split, index)
    image = render_image(rng, index % len(IMAGE_CLASS_NAMES))
    quality = int(rng.integers(80, 96))
    part = path.with_suffix(".part")
    part.write_bytes(cv2.imencode(".jpg", image[..., ::-1], [cv2.IMWRITE_JPEG_QUALITY, quality])[1].tobytes())
    part.replace(path)


def write_video(path: Path, seed: int, split: str, index: int) -> None:
    """Render and encode video `index` of a split, of class `index` modulo 8; write the complete file or none."""
    rng = rng_for(seed, "demo", split, index)
    video = render(rng, index % len(CLASS_NAMES))
    part = path.with_suffix(".part")
    with av.open(str(part), "w", format="mp4") as container:
        stream = container.add_stream("libx264", rate=int(rng.choice(FRAME_RATES)))
        assert isinstance(stream, av.VideoStream)
        stream.height, stream.width = video.shape[1:3]
        stream.pix_fmt = "yuv420p"
        # More threads may change the bytes that libx264 writes; close key frames make seeking cheap.
        stream.options = {"preset": "ultrafast", "crf": "20", "g": "12", "threads": "1"}
        for image in video:
            container.mux(stream.encode(av.VideoFrame.from_ndarray(image, format="rgb24")))
        container.mux(stream.encode())
    part.replace(path)


def make_demo_data(
    out: str | Path,
    train: int = 1000,
    test: int = 200,
    seed: int = 0,
    workers: int | None = None,
    images: bool = False,
) -> Path:
    """Write videos/, train.csv, val.csv, test.csv (the same rows as val.csv) and class_names.txt, once.

    With `images`, write train/<class>/*.jpg and val/<class>/*.jpg instead.

    A complete folder is not changed; after an interruption, only missing files are written. Classes alternate, so each
    has the same number of files when the counts are multiples of 8.

    Args:
        out: the folder; DATA.PATH_TO_DATA_DIR and DATA.PATH_PREFIX of a configuration.
        train: training videos or images.
        test: test videos or images.
        seed: of every draw.
        workers: threads, by default one per usable core. The files do not depend on it.
        images: make still images of eight shapes instead of videos of eight motions.

    Returns:
        The folder.

    Raises:
        ValueError: a count below 1, or the folder holds other demo data.
    """
    if min(train, test) < 1:
        raise ValueError(f"train {train} and test {test} must be at least 1: increase them")
    out = Path(out)
    wanted = {"version": VERSION, "seed": seed, "train": train, "test": test, **({"images": True} if images else {})}
    record = out / "demo.json"
    found = json.loads(record.read_text()) if record.exists() else {**wanted, "complete": False}
    if {**found, "complete": False} != {**wanted, "complete": False}:
        raise ValueError(
            f"{out} contains demo data made with {found}, not {wanted}: choose another folder, or remove it"
        )
    if found["complete"]:
        return out

    write_text(record, json.dumps({**wanted, "complete": False}))
    write = write_image if images else write_video
    names = {
        (split, index): _image_name(split, index) if images else f"videos/{split}_{index:05d}.mp4"
        for split, count in (("train", train), ("test", test))
        for index in range(count)
    }
    for folder in {(out / name).parent for name in names.values()}:
        folder.mkdir(parents=True, exist_ok=True)
    missing = [key for key, name in names.items() if not (out / name).exists()]
    with ThreadPoolExecutor(workers or usable_cores()) as pool:
        written = pool.map(lambda key: write(out / names[key], seed, *key), missing)
        # disable=None: a bar on a terminal only
        for _ in tqdm(written, "make demo data", len(names), initial=len(names) - len(missing), disable=None):
            pass
    if not images:
        _write_lists(out, names)
    write_text(record, json.dumps({**wanted, "complete": True}))
    return out


def _image_name(split: str, index: int) -> str:
    folder = "train" if split == "train" else "val"
    return f"{folder}/{IMAGE_CLASS_NAMES[index % len(IMAGE_CLASS_NAMES)]}/{index:05d}.jpg"


def _write_lists(out: Path, names: dict[tuple[str, int], str]) -> None:
    for file, split in (("train.csv", "train"), ("val.csv", "test"), ("test.csv", "test")):
        rows = [f"{name} {index % len(CLASS_NAMES)}\n" for (of, index), name in names.items() if of == split]
        write_text(out / file, "".join(rows))
    write_text(out / "class_names.txt", "\n".join(CLASS_NAMES) + "\n")


def execute(args: argparse.Namespace) -> int:
    """Make the data that the command line asks for; return 0."""
    out = make_demo_data(**vars(args))
    kind, classes = ("images", IMAGE_CLASS_NAMES) if args.images else ("videos", CLASS_NAMES)
    print(f"{out}: {args.train} training and {args.test} test {kind} of {len(classes)} classes")
    return 0


def main() -> int:
    """Run the command line; return 0, or a code of `guarded`."""
    parser = Parser(description="Make small videos of eight classes that differ only in motion.")
    parser.add_argument("--out", required=True, help="folder of the lists and videos, or of the images")
    parser.add_argument(
        "--images", action="store_true", help="make still images of eight classes that differ only in shape"
    )
    parser.add_argument("--train", type=int, default=1000, help="training videos or images (default: %(default)s)")
    parser.add_argument("--test", type=int, default=200, help="test videos or images (default: %(default)s)")
    parser.add_argument("--seed", type=int, default=0, help="seed of all draws (default: %(default)s)")
    parser.add_argument("--workers", type=int, help="threads (default: one per usable core)")
    args = parser.parse_args()
    return guarded(lambda: execute(args))


if __name__ == "__main__":
    sys.exit(main())
