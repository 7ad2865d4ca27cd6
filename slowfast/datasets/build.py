"""From the configuration to data sets and loaders; the only module of this folder that reads `cfg`."""

import logging
import os
from collections.abc import Iterator
from contextlib import contextmanager
from functools import cache
from multiprocessing import get_all_start_methods
from pathlib import Path
from typing import Literal

import cv2
import torch
from fvcore.common.config import CfgNode
from torch.utils.data import DataLoader, Sampler

from slowfast.datasets.backends import check_backend
from slowfast.datasets.catalog import CATALOG, DatasetSpec
from slowfast.datasets.image import ImageDataset, ImageTransform, load_image_folder
from slowfast.datasets.list_checks import check_files, check_frame_counts
from slowfast.datasets.lists import ListError, VideoList, read_list, read_something_something
from slowfast.datasets.rand_augment import RandAugment
from slowfast.datasets.transforms import RandomErasing, TrainTransform
from slowfast.datasets.video import VideoDataset, collate
from slowfast.datasets.workers import VideoLoader
from slowfast.utils.memory import keep_memory
from slowfast.utils.rng import rng_for

logger = logging.getLogger(__name__)

# Argument that an error of a list names -> its keys.
LIST_KEYS = {
    "data set": "TRAIN.DATASET and TEST.DATASET",
    "num_classes": "MODEL.NUM_CLASSES",
    "prefix": "DATA.PATH_PREFIX",
    "separator": "DATA.PATH_LABEL_SEPARATOR",
}

Split = Literal["train", "val", "test"]


class EpochBatchSampler(Sampler[list[tuple[int, int]]]):
    """Batches of (epoch, index) for one process; the whole state is the position.

    Training: batch g of an epoch, over all processes, is the g-th stretch of a permutation that depends on the seed and
    the epoch only; a process takes its contiguous part, and the incomplete last batch is dropped. Evaluation: process
    r of W takes rows r, r + W, r + 2W, ...; none is repeated, so processes may differ by one in length.

    Args:
        num_videos: rows of the list.
        batch_size: videos per batch and process.
        train: shuffle and drop the incomplete batch.
        seed: of the permutation.
        rank: of this process.
        world_size: number of processes.

    Raises:
        ValueError: a training list is shorter than one batch.
    """

    def __init__(
        self, num_videos: int, batch_size: int, *, train: bool, seed: int = 0, rank: int = 0, world_size: int = 1
    ) -> None:
        if train and num_videos < batch_size * world_size:
            raise ValueError(
                f"the training list has {num_videos} videos, fewer than one batch of {batch_size} x {world_size} "
                "processes: lower TRAIN.BATCH_SIZE"
            )
        self.num_videos = num_videos
        self.batch_size = batch_size
        self.train = train
        self.seed = seed
        self.rank = rank
        self.world_size = world_size
        self.set_position(0)

    def set_position(self, epoch: int, batch: int = 0) -> None:
        """Let the next iteration begin at `batch` of `epoch`."""
        self.epoch = epoch
        self.batch = batch

    def __len__(self) -> int:
        """Batches of a whole epoch in this process, wherever the position is."""
        if self.train:
            return self.num_videos // (self.batch_size * self.world_size)
        return -(-len(range(self.rank, self.num_videos, self.world_size)) // self.batch_size)

    def __iter__(self) -> Iterator[list[tuple[int, int]]]:
        if self.train:
            order = rng_for(self.seed, self.epoch, "order").permutation(self.num_videos).tolist()
            first, step = self.rank * self.batch_size, self.batch_size * self.world_size
        else:
            order = range(self.rank, self.num_videos, self.world_size)
            first, step = 0, self.batch_size
        epoch = self.epoch
        for batch in range(self.batch, len(self)):
            start = first + batch * step
            yield [(epoch, index) for index in order[start : start + self.batch_size]]


def build_dataset(cfg: CfgNode, split: Split) -> VideoDataset | ImageDataset:
    """Read the list of a split and describe its clips.

    Training and validation use TRAIN.DATASET, a test TEST.DATASET. Validation is the test with one view and one crop.

    Raises:
        ValueError: a name, a list or a value that cannot be used, with the cure.
    """
    name = cfg.TEST.DATASET if split == "test" else cfg.TRAIN.DATASET
    if name not in CATALOG:
        key = "TEST.DATASET" if split == "test" else "TRAIN.DATASET"
        raise ValueError(f"{key} {name!r} is unknown: use one of {', '.join(CATALOG)}")
    spec = CATALOG[name]
    if spec.images:
        return _build_image_dataset(cfg, spec, split)
    check_backend(cfg.DATA.DECODING_BACKEND)  # before the workers start
    common = {
        "sampling": spec.sampling,
        "num_frames": cfg.DATA.NUM_FRAMES,
        "sampling_rate": cfg.DATA.SAMPLING_RATE,
        "use_offset": cfg.DATA.USE_OFFSET_SAMPLING,
        "seed": cfg.RNG_SEED,
        "image_template": cfg.DATA.IMAGE_TEMPLATE,
        "colors": spec.colors,
        "reverse_channels": cfg.DATA.REVERSE_INPUT_CHANNEL,
        "backend": cfg.DATA.DECODING_BACKEND,
        "decode_timeout": cfg.DATA_LOADER.DECODE_TIMEOUT,
    }
    with _keys_of_arguments():
        samples = _build_list(cfg, spec, split)
    if split == "train":
        copies = cfg.AUG.NUM_SAMPLE if cfg.AUG.ENABLE else 1
        return VideoDataset(samples, **common, transform=_build_train_transform(cfg), num_copies=copies)
    views, crops = _num_views_and_crops(cfg, split)
    crop = cfg.DATA.TEST_CROP_SIZE
    wide = spec.wide_single_crop and crops == 1 and cfg.MODEL.ARCH != "uniformerv2"
    return VideoDataset(
        samples,
        **common,
        num_views=views,
        num_crops=crops,
        scale=max(cfg.DATA.TRAIN_JITTER_SCALES[0], crop) if wide else crop,
        crop=crop,
        shuffle_frames=split == "test" and cfg.TEST.SHUFFLE_FRAMES,
    )


def build_loader(
    cfg: CfgNode,
    split: Split,
    *,
    rank: int = 0,
    world_size: int = 1,
    local_world_size: int = 1,
    pin_memory: bool = False,
) -> DataLoader:
    """Build the loader of a split for one process; its `batch_sampler` is an `EpochBatchSampler`.

    TRAIN.BATCH_SIZE counts the videos of a node, for training (per micro-batch) and validation; TEST.BATCH_SIZE counts
    the clips of a node, and a batch holds at least one video with all its views.

    Args:
        cfg: the configuration.
        split: train, val or test.
        rank: of this process among all; rank 0 looks for missing files (DATA.CHECK_FILES).
        world_size: processes on all nodes.
        local_world_size: processes on this node.
        pin_memory: copy batches to page-locked memory.

    Raises:
        ValueError: as `build_dataset`, or a batch that cannot be divided over the processes.
    """
    cv2.setNumThreads(0)  # no pool of threads here, which `use_one_thread` tells about
    dataset = build_dataset(cfg, split)
    if cfg.DATA.CHECK_FILES and rank == 0 and isinstance(dataset, VideoDataset):  # images were just listed
        with _keys_of_arguments():
            check_files(dataset.samples)
        check_frame_counts(dataset.samples, cfg.DATA.IMAGE_TEMPLATE)
    if split == "test":
        views, crops = _num_views_and_crops(cfg, split)
        batch_size = max(1, cfg.TEST.BATCH_SIZE // local_world_size // (views * crops))
    else:
        batch_size, rest = divmod(cfg.TRAIN.BATCH_SIZE, local_world_size)
        if rest or not batch_size:
            raise ValueError(
                f"TRAIN.BATCH_SIZE {cfg.TRAIN.BATCH_SIZE} cannot be divided over the {local_world_size} processes of "
                "a node: make it a multiple of them"
            )
    sampler = EpochBatchSampler(
        len(dataset), batch_size, train=split == "train", seed=cfg.RNG_SEED, rank=rank, world_size=world_size
    )
    workers = cfg.DATA_LOADER.NUM_WORKERS
    if rank == 0:
        _compare_with_cores(workers, local_world_size)
    return VideoLoader(
        dataset,
        batch_sampler=sampler,
        collate_fn=collate,
        num_workers=workers,
        persistent_workers=workers > 0,
        # in a spawned process the default is to spawn workers too, each of which would import everything anew
        multiprocessing_context="fork" if workers and "fork" in get_all_start_methods() else None,
        worker_init_fn=start_worker,
        pin_memory=pin_memory,
        generator=torch.Generator(),  # the loader draws a seed for its workers: not from the model's stream
    )


def usable_cores() -> int:
    """Cores that this process may use; a job or a container often has fewer than the machine."""
    return len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1


@cache
def _compare_with_cores(workers: int, processes: int) -> None:
    """Tell, once, if a node has fewer cores than it is to have workers."""
    cores = usable_cores()
    if workers * processes > cores:
        logger.warning(
            "DATA_LOADER.NUM_WORKERS %d for each of %d process%s is more than the %d cores that may be used here: "
            "%d would load as fast, and take less memory",
            workers,
            processes,
            "es" * (processes > 1),
            cores,
            max(1, cores // processes),
        )


def start_worker(_: int) -> None:
    """Make a process a worker of a loader: one thread, and memory that it keeps for the next clip."""
    use_one_thread()
    keep_memory()


def use_one_thread(_: int = 0) -> None:
    """Keep a worker to its own core, and off the thread pools of the process it was forked from.

    OpenCV's pool can be forked while one of its locks is held, about once in 3,000 times; whoever uses it then waits
    for ever.
    """
    torch.set_num_threads(1)
    cv2.setNumThreads(0)


def _num_views_and_crops(cfg: CfgNode, split: Split) -> tuple[int, int]:
    return (cfg.TEST.NUM_ENSEMBLE_VIEWS, cfg.TEST.NUM_SPATIAL_CROPS) if split == "test" else (1, 1)


def _build_list(cfg: CfgNode, spec: DatasetSpec, split: Split) -> VideoList:
    folder = Path(cfg.DATA.PATH_TO_DATA_DIR)
    template = spec.list_file or cfg.DATA.LABEL_PATH_TEMPLATE
    name = spec.test_split if split == "test" else split
    prefix, num_classes = cfg.DATA.PATH_PREFIX, cfg.MODEL.NUM_CLASSES
    if template.endswith(".json"):  # the official test.json has no labels
        path = _find_list(folder, template, "train" if split == "train" else "val", configured=True)
        labels_path = folder / template.format("labels")
        return read_something_something(path, labels_path, prefix=prefix, num_classes=num_classes)
    return read_list(
        _find_list(folder, template, name, configured=spec.list_file is None),
        spec.columns,
        separator=cfg.DATA.PATH_LABEL_SEPARATOR,
        prefix=prefix,
        num_classes=num_classes,
        unknown=split == "test",
    )


@contextmanager
def _keys_of_arguments() -> Iterator[None]:
    """Add the configuration keys of the arguments that the last line of an error of a list, its cure, names."""
    try:
        yield
    except ListError as error:
        cure = str(error).rpartition("\n")[2]
        keys = ", ".join(f"{argument} is {key}" for argument, key in LIST_KEYS.items() if argument in cure)
        raise ListError(f"{error} ({keys})" if keys else str(error)) from None


def _find_list(folder: Path, template: str, split: str, *, configured: bool) -> Path:
    """Return the list of a split; official files also use "validation" for "val".

    Args:
        folder: DATA.PATH_TO_DATA_DIR.
        template: name of the list with {} for the split.
        split: train, val or test.
        configured: DATA.LABEL_PATH_TEMPLATE is the template; otherwise the data set has its own.

    Raises:
        ListError: there is no such list.
    """
    names = [split, "validation"] if split == "val" else [split]
    paths = [folder / template.format(name) for name in names]
    if found := next((path for path in paths if path.is_file()), None):
        return found
    if not folder.is_dir():
        raise ListError(
            f"no list {paths[0]}, and its folder does not exist: set DATA.PATH_TO_DATA_DIR to the folder of the lists"
        )
    there = sorted(path.name for path in folder.iterdir() if path.is_file())
    others = {file.replace(name, "{}") for file in there for name in reversed(names) if file.count(name) == 1}
    if configured and others:
        cure = f"set DATA.LABEL_PATH_TEMPLATE {sorted(others, key=len)[0]!r}"
    elif split == "test" and (folder / template.format("val")).is_file():
        cure = f"to test on the validation videos, copy {template.format('val')} to {paths[0].name}"
    elif lists := [file for file in there if file.endswith((".csv", ".txt")) and any(name in file for name in names)]:
        cure = f"if {min(lists, key=len)} is that list, copy it to {paths[0].name}"
    else:
        cure = "set DATA.PATH_TO_DATA_DIR to the folder of the lists"
    raise ListError(f"no list {paths[0]} (the folder contains {', '.join(there[:10]) or 'no file'}): {cure}")


def _build_train_transform(cfg: CfgNode) -> TrainTransform:
    data = cfg.DATA
    shortest = data.TRAIN_JITTER_SCALES[0]
    if not data.TRAIN_JITTER_SCALES_RELATIVE and shortest < data.TRAIN_CROP_SIZE:
        raise ValueError(
            f"DATA.TRAIN_CROP_SIZE {data.TRAIN_CROP_SIZE} does not fit a short side of {shortest}, the first of "
            "DATA.TRAIN_JITTER_SCALES; lower the crop or raise the scales"
        )
    rand_augment, erase = _build_augmentations(cfg)
    return TrainTransform(
        crop=data.TRAIN_CROP_SIZE,
        jitter_scales=tuple(data.TRAIN_JITTER_SCALES),
        area_range=tuple(data.TRAIN_JITTER_SCALES_RELATIVE) or None,
        aspect_range=tuple(data.TRAIN_JITTER_ASPECT_RELATIVE) or None,
        flip=data.RANDOM_FLIP,
        rand_augment=rand_augment,
        erase=erase,
    )


def _build_augmentations(cfg: CfgNode) -> tuple[RandAugment | None, RandomErasing | None]:
    data, aug = cfg.DATA, cfg.AUG
    rand_augment = erase = None
    if aug.ENABLE and aug.AA_TYPE:
        try:
            rand_augment = RandAugment.parse(aug.AA_TYPE, aug.INTERPOLATION)
        except ValueError as error:
            raise ValueError(f"AUG.AA_TYPE {error}; '' turns it off") from None
    if aug.ENABLE and aug.RE_PROB > 0:
        erase = RandomErasing(aug.RE_PROB, aug.RE_MODE, aug.RE_COUNT, tuple(data.MEAN), tuple(data.STD))
    return rand_augment, erase


def _build_image_dataset(cfg: CfgNode, spec: DatasetSpec, split: Split) -> ImageDataset:
    data = cfg.DATA
    assert spec.list_file
    folder = spec.list_file.format(spec.test_split if split == "test" else split)
    samples = load_image_folder(data.PATH_TO_DATA_DIR, folder, num_classes=cfg.MODEL.NUM_CLASSES)
    common = {"seed": cfg.RNG_SEED, "reverse_channels": data.REVERSE_INPUT_CHANNEL}
    if split != "train":
        crop = data.TEST_CROP_SIZE
        return ImageDataset(samples, **common, scale=int(256 / 224 * crop), crop=crop)
    if not data.TRAIN_JITTER_SCALES_RELATIVE:
        raise ValueError(
            "images are trained on random resized crops: set DATA.TRAIN_JITTER_SCALES_RELATIVE, such as [0.08, 1.0], "
            "and DATA.TRAIN_JITTER_ASPECT_RELATIVE, such as [0.75, 1.3333]"
        )
    rand_augment, erase = _build_augmentations(cfg)
    transform = ImageTransform(
        crop=data.TRAIN_CROP_SIZE,
        area_range=tuple(data.TRAIN_JITTER_SCALES_RELATIVE),
        aspect_range=tuple(data.TRAIN_JITTER_ASPECT_RELATIVE),
        flip=data.RANDOM_FLIP,
        rand_augment=rand_augment,
        erase=erase,
    )
    copies = cfg.AUG.NUM_SAMPLE if cfg.AUG.ENABLE else 1
    return ImageDataset(samples, **common, transform=transform, num_copies=copies)
