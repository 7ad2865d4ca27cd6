"""How fast a recipe loads its videos: python benchmarks/loading.py --cfg exp/NAME/config.yaml [KEY VALUE ...].

Three ways to load the same clips take turns, and medians over the rounds are printed, for training and for the test of
the recipe, with one worker process and with several:

* decode: decord, which the official code reads with, opens a video and gives the frames that the clips need, no more.
* ours: what training and testing really use, from the list to collated batches in shared memory.
* plain: the usual way, which the official code takes. Training applies timm's RandAugment to each frame as a PIL image,
  and normalizes, crops, flips and erases in float32. A test opens, decodes and resizes a video again for every view.
  It draws the same frames, operations and boxes as ours.

Workers of ours keep the memory that they free, as those of a training do; the others start as they would without us.
A single worker is held to one core, with the threads and processes that decode for it.

What ours leaves to the device, to cut out the views of a test and to normalize, is timed on this CPU in one thread and
printed beside it; a GPU does it in passing.

CPU time is that of the workers and of the processes that decode for them; it depends less than wall time on what else
runs on the machine. It is read from /proc, which Linux has.

    python benchmarks/loading.py --cfg exp/uniformer_s16x4_k400/config.yaml --make 24 \\
        TEST.NUM_ENSEMBLE_VIEWS 4 TEST.NUM_SPATIAL_CROPS 3
"""

from __future__ import annotations

import argparse
import os
import platform
import shutil
import sys
import tempfile
import time
from collections.abc import Callable, Sequence
from functools import partial
from pathlib import Path
from statistics import median
from typing import Any

import av
import cv2
import decord
import numpy as np
import PIL
import timm
import torch
from fvcore.common.config import CfgNode
from PIL import Image
from timm.data.auto_augment import NAME_TO_OP
from torch import Tensor
from torch.nn.functional import interpolate
from torch.utils.data import DataLoader, Dataset, default_collate
from torchvision.transforms.functional import to_pil_image, to_tensor
from tqdm import tqdm

from slowfast.config import load_config
from slowfast.datasets.build import build_dataset, start_worker, usable_cores, use_one_thread
from slowfast.datasets.catalog import CATALOG
from slowfast.datasets.crops import resized_crop_box, short_side_size
from slowfast.datasets.dataset import ImageEvalDataset, Key, TrainDataset, VideoEvalDataset, VideoReader, as_made
from slowfast.datasets.lists import ListError
from slowfast.datasets.rand_augment import GREY
from slowfast.datasets.reader import read_frames
from slowfast.datasets.transforms import TrainTransform, Views, normalize
from slowfast.prepare.reencode import Settings
from slowfast.utils.io import to_json
from slowfast.utils.rng import rng_for

VideoDataset = TrainDataset | VideoEvalDataset


def reader_of(dataset: VideoDataset) -> VideoReader:
    """Return the reader of a data set of videos."""
    assert isinstance(dataset.reader, VideoReader)
    return dataset.reader


def frame_indices(dataset: VideoDataset, epoch: int, index: int, length: int, view: int) -> list[int]:
    """Return the frames of temporal view `view` of a video (of a training clip, for any `view`)."""
    if isinstance(dataset, TrainDataset):
        rng = rng_for(dataset.seed, epoch, index, "temporal")
        return reader_of(dataset).clip_indices(length, dataset.samples[index], rng)
    return dataset.reader.sampler(length, view, None)


def read_plainly(dataset: VideoDataset, index: int, choose: Callable[[int], list[int]]) -> np.ndarray:
    """The frames that `choose` names, (T, H, W, 3), as the official code reads them: by decord, in this process."""
    sample = dataset.samples[index]
    if os.path.isdir(sample.path):
        options = {"num_frames": sample.num_frames, "image_template": reader_of(dataset).image_template}
        return read_frames(sample.path, choose, **options)
    video = decord.VideoReader(sample.path, num_threads=1)
    return video.get_batch(choose(len(video))).asnumpy()


class Decode(Dataset[int]):
    """The frames of all clips of a video, read once; an item is their number."""

    def __init__(self, dataset: VideoDataset) -> None:
        self.dataset = dataset

    def __getitem__(self, key: Key) -> int:
        views = self.dataset.num_views if isinstance(self.dataset, VideoEvalDataset) else 1

        def choose(length: int) -> list[int]:
            return [i for view in range(views) for i in frame_indices(self.dataset, *key, length, view)]

        return len(read_plainly(self.dataset, key[1], choose))


class Plain(Dataset[dict[str, Any]]):
    """The same clips as those of `dataset`, made in the usual way: {"video": V float32 (C, T, H, W), "label": V}.

    Args:
        dataset: what to imitate; a video of a training gives its augmented copies, of a test all its views.
        mean: of the normalization, per channel.
        std: likewise.
    """

    def __init__(self, dataset: VideoDataset, mean: Sequence[float], std: Sequence[float]) -> None:
        self.dataset = dataset
        self.mean, self.std = torch.tensor(mean), torch.tensor(std)

    def __getitem__(self, key: Key) -> dict[str, list[Any]]:
        data = self.dataset
        if isinstance(data, TrainDataset):
            assert isinstance(data.transform, TrainTransform)
            frames = self._decode(key, 0)
            rngs = (rng_for(data.seed, *key, copy) for copy in range(data.num_copies))
            clips = [self._augment(frames, data.transform, rng) for rng in rngs]
        else:
            positions = (1,) if data.num_crops == 1 else range(data.num_crops)
            views = range(data.num_views)
            clips = [self._view(data, key, view, position) for view in views for position in positions]
        return {"video": clips, "label": [int(data.samples.labels[key[1]])] * len(clips)}

    def _decode(self, key: Key, view: int) -> np.ndarray:
        return read_plainly(self.dataset, key[1], lambda n: frame_indices(self.dataset, *key, n, view))

    def _normalize(self, frames: np.ndarray) -> Tensor:
        return self._normalize_floats(torch.from_numpy(frames).float() / 255)

    def _normalize_floats(self, frames: Tensor) -> Tensor:
        return ((frames - self.mean) / self.std).permute(3, 0, 1, 2)

    def _view(self, dataset: VideoEvalDataset, key: Key, view: int, position: int) -> Tensor:
        clip = self._normalize(self._decode(key, view))
        crop = dataset.crop
        height, width = clip.shape[2:]
        if min(height, width) != dataset.scale:
            height, width = short_side_size(height, width, dataset.scale)
            clip = interpolate(clip, size=(height, width), mode="bilinear", align_corners=False)
        y, x = -((crop - height) // 2), -((crop - width) // 2)
        if height > width:
            y = (0, y, height - crop)[position]
        else:
            x = (0, x, width - crop)[position]
        return clip[:, :, y : y + crop, x : x + crop]

    def _augment(self, frames: np.ndarray, transform: TrainTransform, rng: np.random.Generator) -> Tensor:
        if transform.rand_augment is not None:
            clip = self._normalize_floats(self._rand_augment(frames, transform, rng))
        else:
            clip = self._normalize(frames)
        side = transform.crop
        height, width = clip.shape[2:]
        if transform.area_range is not None and transform.aspect_range is not None:
            y, x, h, w = resized_crop_box(height, width, transform.area_range, transform.aspect_range, rng)
            clip = clip[:, :, y : y + h, x : x + w]
            clip = interpolate(clip, size=(side, side), mode="bilinear", align_corners=False)
        else:
            size = short_side_size(height, width, round(rng.uniform(*transform.jitter_scales)))
            clip = interpolate(clip, size=size, mode="bilinear", align_corners=False)
            y, x = (int(rng.integers(length - side + 1)) for length in size)
            clip = clip[:, :, y : y + side, x : x + side]
        if transform.flip and rng.random() < 0.5:
            clip = clip.flip(-1)
        if transform.erase is not None and rng.random() < transform.erase.prob:
            share, log_aspect = rng.uniform(0.02, 1 / 3), rng.uniform(np.log(0.3), -np.log(0.3))
            h, w = (round(np.sqrt(side * side * share * np.exp(sign * log_aspect))) for sign in (1, -1))
            if h < side and w < side:
                y, x = int(rng.integers(side - h + 1)), int(rng.integers(side - w + 1))
                clip[:, :, y : y + h, x : x + w] = torch.randn(*clip.shape[:2], h, w)
        return clip

    def _rand_augment(self, frames: np.ndarray, transform: TrainTransform, rng: np.random.Generator) -> Tensor:
        """(T, H, W, 3), from 0 to 1."""
        assert transform.rand_augment is not None
        resample = {"bilinear": Image.Resampling.BILINEAR, "bicubic": Image.Resampling.BICUBIC}
        options = {"fillcolor": GREY, "resample": resample[transform.rand_augment.interpolation]}
        images = [to_pil_image(frame) for frame in torch.from_numpy(frames).permute(0, 3, 1, 2)]
        for name, argument in transform.rand_augment.draw(rng):
            arguments = () if name in ("AutoContrast", "Equalize", "Invert") else (argument,)
            if name == "Posterize" and argument < 1:  # newer versions of Pillow refuse to keep no bits at all
                arguments = (1,)
            images = [NAME_TO_OP[name](image, *arguments, **options) for image in images]
        return torch.stack([to_tensor(image) for image in images]).permute(0, 2, 3, 1)


def plain_collate(items: Sequence[dict[str, list[Any]]]) -> dict[str, Tensor]:
    """Join the clips of several videos."""
    return {name: default_collate([entry for item in items for entry in item[name]]) for name in items[0]}


def cpu_seconds() -> float:
    """CPU time of all living processes below this one: the workers, and the processes beside them that decode."""
    below, total = [str(os.getpid())], 0.0
    while below:
        for children in Path(f"/proc/{below.pop()}/task").glob("*/children"):
            for child in children.read_text().split():
                below.append(child)
                user, system = Path(f"/proc/{child}/stat").read_text().rpartition(")")[2].split()[11:13]
                total += (int(user) + int(system)) / os.sysconf("SC_CLK_TCK")
    return total


def start_on_one_core(initialize: Callable[[int], None], worker: int) -> None:
    """Start the only worker."""
    if hasattr(os, "sched_setaffinity"):
        os.sched_setaffinity(0, {max(os.sched_getaffinity(0))})
    initialize(worker)


def time_loading(
    dataset: Dataset[Any],
    join: Callable[[Sequence[Any]], Any],
    batches: Sequence[Sequence[Key]],
    workers: int,
    initialize: Callable[[int], None],
    finish: Callable[[Any], object] | None = None,
) -> dict[str, float]:
    """Load `batches` through fresh worker processes: milliseconds a video, "cpu" of all workers and "wall".

    One batch for each worker goes before, so that neither counts what happens only once. `finish` is what a device does
    with a batch; its time, "device", is that of another pass over the last batch.
    """
    options = {"collate_fn": join, "num_workers": workers, "multiprocessing_context": "fork"}
    options["worker_init_fn"] = partial(start_on_one_core, initialize) if workers == 1 else initialize
    order = [*batches[:1]] * workers
    loader = DataLoader(dataset, batch_sampler=order, persistent_workers=True, **options)  # pyright: ignore
    for _ in loader:
        pass
    order[:] = batches
    before, start = cpu_seconds(), time.monotonic()
    last = None
    for batch in loader:
        last = batch
    end, after = time.monotonic(), cpu_seconds()
    videos = sum(map(len, batches)) / 1000
    spent = max(after - before, 1 / os.sysconf("SC_CLK_TCK"))  # a few small videos may take less than a tick
    times = {"cpu": spent / videos, "wall": (end - start) / videos}
    if finish:
        start = time.perf_counter()
        finish(last)
        times["device"] = 1000 * (time.perf_counter() - start) / len(batches[-1])
    return times


def finish_batch(batch: dict[str, Any], mean: Sequence[float], std: Sequence[float]) -> Tensor:
    """Normalized clips of a batch, as `engine.evaluate` and training make them on the device."""
    video = batch["video"]
    return normalize(torch.stack([*video.cut()]) if isinstance(video, Views) else video, mean, std)


def benchmark(
    dataset: VideoDataset,
    mean: Sequence[float],
    std: Sequence[float],
    *,
    batch_size: int,
    videos: int,
    rounds: int,
    workers: int,
) -> dict[str, Any]:
    """Let the three ways take turns.

    Args:
        dataset: of a training or a test.
        mean: of the normalization, per channel.
        std: likewise.
        batch_size: videos per batch.
        videos: per way and round.
        rounds: medians are taken over them; another epoch each, hence other draws.
        workers: processes.

    Returns:
        {"cpu": {"decode", "ours", "plain": milliseconds a video, "ours_to_decode", "plain_to_ours"}, "wall": likewise,
        "device": milliseconds a video}; the ratios are medians of the rounds' ratios.
    """
    ways: dict[str, tuple[Dataset[Any], Callable[[Sequence[Any]], Any], Callable[[int], None]]] = {
        "decode": (Decode(dataset), sum, use_one_thread),
        "ours": (dataset, as_made, start_worker),
        "plain": (Plain(dataset, mean, std), plain_collate, use_one_thread),
    }
    for index in range(min(len(dataset), videos)):
        _ = ways["decode"][0][(0, index)]  # so that no round pays for the disk
    times: dict[str, list[dict[str, float]]] = {name: [] for name in ways}
    for epoch in tqdm(range(rounds), "rounds", disable=None, leave=False):
        keys = [(epoch, index % len(dataset)) for index in range(videos)]
        batches = [keys[start : start + batch_size] for start in range(0, videos, batch_size)]
        for name, (loaded, join, initialize) in ways.items():
            finish = partial(finish_batch, mean=mean, std=std) if name == "ours" else None
            times[name].append(time_loading(loaded, join, batches, workers, initialize, finish))
    result: dict[str, Any] = {"workers": workers, "videos": videos, "rounds": rounds, "batch_size": batch_size}
    result["device"] = median(entry["device"] for entry in times["ours"])
    for clock in ("cpu", "wall"):
        taken = {name: [entry[clock] for entry in entries] for name, entries in times.items()}
        result[clock] = {name: median(values) for name, values in taken.items()} | {
            f"{slow}_to_{fast}": median(a / b for a, b in zip(taken[slow], taken[fast], strict=True))
            for slow, fast in (("ours", "decode"), ("plain", "ours"))
        }
    return result


def _texture(rng: np.random.Generator, height: int, width: int) -> np.ndarray:
    """Clouds with the spectrum of photographs: each octave has 0.72 of the contrast of the one before."""
    total = np.zeros((height, width, 3), np.float32)
    for octave in range(2, 9):
        coarse = rng.standard_normal((max(2, height >> (9 - octave)), max(2, width >> (9 - octave)), 3), np.float32)
        total += cv2.resize(coarse, (width, height), interpolation=cv2.INTER_CUBIC) * 0.72**octave
    total -= total.min()
    return (total * (255 / total.max())).astype(np.uint8)


def write_video(
    path: Path, seed: int, *, seconds: float = 10, height: int = 256, width: int = 340, key_frames: int
) -> None:
    """Write H.264 at 30 frames/s as x264 does by default (crf 23, medium), but for the distance of key frames.

    A camera moves over a landscape while three things cross it; the sensor is a little noisy.
    """
    rng = rng_for(seed, "benchmark")
    landscape = _texture(rng, 2 * height, 2 * width)
    h, w = height // 3, width // 3
    things = [_texture(rng, h, w) for _ in range(3)]
    phase, speed = rng.uniform(0, 2 * np.pi, 10), rng.uniform(0.2, 1.2, 10)
    with av.open(str(path), "w") as container:
        stream = container.add_stream("libx264", rate=30)
        assert isinstance(stream, av.VideoStream)
        stream.width, stream.height, stream.pix_fmt = width, height, "yuv420p"
        stream.options = {"preset": "medium", "crf": "23", "g": str(key_frames), "threads": "1"}
        for number in range(round(seconds * 30)):
            sway = np.sin(speed * number / 30 + phase)
            camera = cv2.getRotationMatrix2D((width, height), 8 * sway[0], 1.1 + 0.2 * sway[1])
            camera[:, 2] += width * (sway[2] / 4 - 0.5), height * (sway[3] / 4 - 0.5)
            image = cv2.warpAffine(landscape, camera, (width, height), borderMode=cv2.BORDER_REFLECT)
            for thing, y, x in zip(things, sway[4:7], sway[7:], strict=True):
                top, left = round((height - h) * (y + 1) / 2), round((width - w) * (x + 1) / 2)
                image[top : top + h, left : left + w] = thing
            image = (image + 2 * rng.standard_normal((height, width, 1), np.float32)).clip(0, 255).astype(np.uint8)
            container.mux(stream.encode(av.VideoFrame.from_ndarray(image, format="rgb24")))
        container.mux(stream.encode())


def make_videos(folder: Path, count: int, key_frames: int) -> Path:
    """Write `count` videos, those that are missing, and their list; returns the list."""
    folder = folder / f"key_frames_{key_frames}"
    folder.mkdir(parents=True, exist_ok=True)
    names = [f"{number:04d}.mp4" for number in range(count)]
    for number, name in enumerate(tqdm(names, "make videos", disable=None)):
        if not (folder / name).exists():
            write_video(folder / f".{name}", number, key_frames=key_frames)
            (folder / f".{name}").replace(folder / name)
    listed = folder / "list.csv"
    listed.write_text("".join(f"{(folder / name).resolve()},0\n" for name in names))
    return listed


def load_datasets(cfg: CfgNode, listed: Path | None, name: str) -> VideoDataset:
    """The training ("train") or test data set of a configuration, of the videos of `listed` if it is not None.

    Raises:
        ValueError: as `build_dataset`, or the recipe is one of images.
    """
    key = "TEST.DATASET" if name == "test" else "TRAIN.DATASET"
    kind = cfg.TEST.DATASET if name == "test" else cfg.TRAIN.DATASET
    if CATALOG[kind].images:
        raise ValueError(f"{key} {kind!r} is a data set of images: this benchmark is about videos")
    if listed is None:
        dataset = build_dataset(cfg, "test" if name == "test" else "train")
    else:
        spec = CATALOG[kind]
        with tempfile.TemporaryDirectory() as folder:
            template = spec.list_file or "{}.csv"
            copy = Path(folder) / template.format(spec.test_split if name == "test" else "train")
            shutil.copy(listed, copy)
            cfg = cfg.clone()
            cfg.defrost()
            cfg.DATA.PATH_TO_DATA_DIR, cfg.DATA.LABEL_PATH_TEMPLATE = folder, template
            try:
                dataset = build_dataset(cfg, "test" if name == "test" else "train")
            except ListError as error:
                raise ValueError(str(error).replace(str(copy), str(listed))) from None
    assert not isinstance(dataset, ImageEvalDataset)
    return dataset


def describe_machine() -> dict[str, str | int]:
    """Processor, cores and versions, to be noted beside every figure."""
    cpuinfo = Path("/proc/cpuinfo")
    lines = cpuinfo.read_text().splitlines() if cpuinfo.is_file() else []
    models = [line.split(":", 1)[1].strip() for line in lines if line.startswith("model name")]
    modules = (torch, cv2, decord, timm, PIL, np)
    return {
        "processor": models[0] if models else platform.processor(),
        "cores": usable_cores(),
        "python": platform.python_version(),
        **{module.__name__: module.__version__ for module in modules},
    }


def format_result(title: str, clips: int, result: dict[str, Any]) -> str:
    """The lines of a result: CPU and wall milliseconds a video, clips a second, ratios."""
    count = result["workers"]
    rounds = result["rounds"]
    lines = [f"{title}: {clips} clips a video, {count} worker{'s' * (count > 1)}, {rounds} round{'s' * (rounds > 1)}"]
    lines.append(f"  {'':8}{'cpu ms/video':>14}{'wall ms/video':>15}{'clips/s':>10}")
    for name in ("decode", "ours", "plain"):
        cpu, wall = result["cpu"][name], result["wall"][name]
        lines.append(f"  {name:8}{cpu:14.1f}{wall:15.1f}{1000 * clips / wall:10.1f}")
    for clock in ("cpu", "wall"):
        ratios = result[clock]
        to_decode, to_ours = ratios["ours_to_decode"], ratios["plain_to_ours"]
        lines.append(f"  {clock}: ours / decode {to_decode:.2f}, plain / ours {to_ours:.2f}")
    lines.append(f"  left to the device: {result['device']:.1f} ms/video, were it one core of this CPU")
    return "\n".join(lines)


def main(argv: list[str] | None = None) -> int:
    """Print the figures; a fault of the user's ends in one message and exit code 2."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter, allow_abbrev=False
    )
    parser.add_argument("--cfg", required=True, metavar="FILE", help="experiment")
    source = parser.add_mutually_exclusive_group()
    source.add_argument("--list", type=Path, metavar="FILE", help="videos, in the format of the recipe's lists")
    source.add_argument("--make", type=int, metavar="N", help="make N videos: 340x256, 10 s, H.264")
    parser.add_argument(
        "--key-frames",
        type=int,
        default=Settings().key_frames,
        metavar="N",
        help="of --make: distance of key frames (default: %(default)s, as of prepare_data.py reencode; of x264: 250)",
    )
    parser.add_argument("--folder", type=Path, default=Path("data/benchmark"), help="of --make (default: %(default)s)")
    parser.add_argument("--job", choices=("train", "test"), help="only this one (default: both)")
    parser.add_argument("--workers", type=int, default=os.cpu_count(), help="N of N workers (default: %(default)s)")
    parser.add_argument("--videos", type=int, default=48, help="per way and round (default: %(default)s)")
    parser.add_argument("--rounds", type=int, default=7, help="(default: %(default)s)")
    parser.add_argument("--batch", type=int, default=4, help="videos in a training batch (default: %(default)s)")
    parser.add_argument("--json", type=Path, metavar="FILE", help="write the figures there as well")
    parser.add_argument("overrides", nargs="*", metavar="KEY VALUE", help="change configuration values")
    args = parser.parse_intermixed_args(argv)
    try:
        if min(args.workers, args.videos, args.rounds, args.batch, args.key_frames, args.make or 1) < 1:
            raise ValueError("--make, --key-frames, --workers, --videos, --rounds and --batch have to be at least 1")
        listed = args.list
        if args.make:
            listed = make_videos(args.folder, args.make, args.key_frames)
            args.overrides += ["DATA.PATH_LABEL_SEPARATOR", ","]
        cfg = load_config(args.cfg, args.overrides)
        machine = describe_machine()
        print(", ".join(f"{name} {value}" for name, value in machine.items()))
        record: dict[str, Any] = {"machine": machine, "cfg": args.cfg, "overrides": args.overrides}
        use_one_thread()
        for job in (args.job,) if args.job else ("train", "test"):
            dataset = load_datasets(cfg, listed, job)
            train = isinstance(dataset, TrainDataset)
            clips = dataset.num_copies if train else dataset.num_views * dataset.num_crops
            record[job] = {"clips": clips, "results": []}
            for workers in sorted({1, args.workers}):
                # a batch for every worker at least
                batch = max(1, min(args.batch, args.videos // workers)) if train else 1
                sizes = {"batch_size": batch, "videos": args.videos, "rounds": args.rounds}
                result = benchmark(dataset, cfg.DATA.MEAN, cfg.DATA.STD, **sizes, workers=workers)
                record[job]["results"].append(result)
                print(format_result(job, clips, result), flush=True)
    except (ValueError, OSError) as error:
        print(f"error: {error}", file=sys.stderr)
        return 2
    if args.json:
        args.json.write_text(to_json(record, indent=2) + "\n")
    return 0


if __name__ == "__main__":
    sys.exit(main())
