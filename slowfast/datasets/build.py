"""Build data sets and loaders from the configuration; the only module of this package that reads `cfg`."""

from pathlib import Path
from typing import Any, Literal

import cv2
from fvcore.common.config import CfgNode

from slowfast.datasets.backends import check_backend
from slowfast.datasets.batches import EpochBatchSampler
from slowfast.datasets.catalog import CATALOG, DatasetSpec
from slowfast.datasets.dataset import ImageEvalDataset, ImageReader, TrainDataset, VideoEvalDataset, VideoReader
from slowfast.datasets.image import ImageTransform
from slowfast.datasets.image_folder import load_image_folder
from slowfast.datasets.list_checks import check_files, check_frame_counts, check_image_names
from slowfast.datasets.lists import ListError, VideoList, read_list, read_something_something
from slowfast.datasets.rand_augment import RandAugment
from slowfast.datasets.sampling import SAMPLERS
from slowfast.datasets.transforms import RandomErasing, TrainTransform
from slowfast.datasets.workers import VideoLoader, warn_of_few_cores
from slowfast.utils.tables import keys_of_arguments, row_of

Split = Literal["train", "val", "test"]

# Argument named in an error message of another module -> configuration keys that set it.
KEYS = {
    "batch_size": "TRAIN.BATCH_SIZE",
    "data folder": "DATA.PATH_TO_DATA_DIR",
    "data set": "TRAIN.DATASET and TEST.DATASET",
    "image_template": "DATA.IMAGE_TEMPLATE",
    "jitter_scales": "DATA.TRAIN_JITTER_SCALES",
    "multi_label": "DATA.MULTI_LABEL",
    "num_classes": "MODEL.NUM_CLASSES",
    "prefix": "DATA.PATH_PREFIX",
    "RandAugment": "AUG.AA_TYPE",
    "separator": "DATA.PATH_LABEL_SEPARATOR",
}


def build_loader(
    cfg: CfgNode,
    split: Split,
    *,
    rank: int = 0,
    world_size: int = 1,
    local_world_size: int = 1,
    pin_memory: bool = False,
    samples: VideoList | None = None,
) -> VideoLoader:
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
        samples: to load instead of the list of the split.

    Raises:
        ValueError: see `build_dataset`; also, a batch cannot be divided over the processes, or exceeds the list.
    """
    cv2.setNumThreads(0)  # a worker would inherit the thread pool, see `use_one_thread`
    dataset = build_dataset(cfg, split, samples)
    if cfg.DATA.CHECK_FILES and rank == 0 and not _spec(cfg, split).images:  # images were just listed
        with keys_of_arguments(KEYS):
            check_files(dataset.samples)
            check_image_names(dataset.samples, cfg.DATA.IMAGE_TEMPLATE)
        check_frame_counts(dataset.samples, cfg.DATA.IMAGE_TEMPLATE)
    size, ranks = _batch_size(cfg, split, local_world_size), {"rank": rank, "world_size": world_size}
    with keys_of_arguments(KEYS):
        balanced = dataset.samples.labels if cfg.DATA.BALANCE and split == "train" else None
        sampler = EpochBatchSampler(
            len(dataset), size, train=split == "train", seed=cfg.RNG_SEED, balanced=balanced, **ranks
        )
    workers = cfg.DATA_LOADER.NUM_WORKERS
    if rank == 0:
        warn_of_few_cores(workers, local_world_size, "DATA_LOADER.NUM_WORKERS")
    return VideoLoader(dataset, sampler, workers, pin_memory=pin_memory)


def build_dataset(
    cfg: CfgNode, split: Split, samples: VideoList | None = None
) -> TrainDataset | VideoEvalDataset | ImageEvalDataset:
    """Build the data set of a split: read its list, and set how its clips are made.

    Training and validation use TRAIN.DATASET, a test TEST.DATASET. Validation is the test with one view and one crop.
    If `samples` is given, it is used instead of the list of the split.

    Raises:
        ValueError: a list or a value cannot be used.
    """
    spec, data = _spec(cfg, split), cfg.DATA
    options = {"seed": cfg.RNG_SEED, "reverse_channels": data.REVERSE_INPUT_CHANNEL}
    views, crops = _views_and_crops(cfg, split)
    if spec.images:
        reader = ImageReader()
    else:
        check_backend(data.DECODING_BACKEND)  # before the workers start
        origin = f"data set {_kind(cfg, split)}: sampling"
        sampler = row_of(SAMPLERS, "SAMPLERS in slowfast.datasets.sampling", spec.sampling, origin)
        reader = VideoReader(
            sampler(data.NUM_FRAMES, views, data.SAMPLING_RATE, data.USE_OFFSET_SAMPLING),
            image_template=data.IMAGE_TEMPLATE,
            colors=spec.colors,
            backend=data.DECODING_BACKEND,
            decode_timeout=cfg.DATA_LOADER.DECODE_TIMEOUT,
        )
    with keys_of_arguments(KEYS):
        samples = _read_list(cfg, spec, split) if samples is None else samples
        transform = _build_transform(cfg, spec.images) if split == "train" else None
    if transform is not None:
        copies = cfg.AUG.NUM_SAMPLE if cfg.AUG.ENABLE else 1
        return TrainDataset(samples, reader, transform, num_copies=copies, **options)
    crop = data.TEST_CROP_SIZE
    if isinstance(reader, ImageReader):
        return ImageEvalDataset(samples, scale=int(256 / 224 * crop), crop=crop, **options)
    wide = spec.wide_single_crop and crops == 1 and cfg.MODEL.ARCH != "uniformerv2"
    return VideoEvalDataset(
        samples,
        reader,
        num_crops=crops,
        scale=max(data.TRAIN_JITTER_SCALES[0], crop) if wide else crop,
        crop=crop,
        shuffle_frames=split == "test" and cfg.TEST.SHUFFLE_FRAMES,
        **options,
    )


def _kind(cfg: CfgNode, split: Split) -> str:
    return cfg.TEST.DATASET if split == "test" else cfg.TRAIN.DATASET


def _spec(cfg: CfgNode, split: Split) -> DatasetSpec:
    return CATALOG[_kind(cfg, split)]  # a configuration names only rows that exist


def _views_and_crops(cfg: CfgNode, split: Split) -> tuple[int, int]:
    return (cfg.TEST.NUM_ENSEMBLE_VIEWS, cfg.TEST.NUM_SPATIAL_CROPS) if split == "test" else (1, 1)


def _batch_size(cfg: CfgNode, split: Split, local_world_size: int) -> int:
    """Return the number of videos in a batch of one process."""
    if split == "test":
        views, crops = _views_and_crops(cfg, split)
        return max(1, cfg.TEST.BATCH_SIZE // local_world_size // (views * crops))
    batch_size, rest = divmod(cfg.TRAIN.BATCH_SIZE, local_world_size)
    if rest or not batch_size:
        raise ValueError(
            f"TRAIN.BATCH_SIZE {cfg.TRAIN.BATCH_SIZE} cannot be divided over the {local_world_size} processes of a "
            f"node: make it a multiple of {local_world_size}"
        )
    return batch_size


def _read_list(cfg: CfgNode, spec: DatasetSpec, split: Split) -> VideoList:
    folder = Path(cfg.DATA.PATH_TO_DATA_DIR)
    template = spec.list_file or cfg.DATA.LABEL_PATH_TEMPLATE
    name = spec.test_split if split == "test" else split
    prefix, num_classes = cfg.DATA.PATH_PREFIX, cfg.MODEL.NUM_CLASSES
    if spec.images:
        return load_image_folder(folder, template.format(name), num_classes=num_classes)
    if template.endswith(".json"):  # the official test.json has no labels
        path = _find_list(folder, template, "train" if split == "train" else "val", configured=True)
        labels_path = folder / template.format("labels")
        return read_something_something(path, labels_path, prefix=prefix, num_classes=num_classes)
    untested = ", or set TEST.ENABLE False to train without a test" * (name == "test" and cfg.TRAIN.ENABLE)
    return read_list(
        _find_list(folder, template, name, configured=spec.list_file is None, cure=untested),
        spec.columns,
        separator=cfg.DATA.PATH_LABEL_SEPARATOR,
        prefix=prefix,
        num_classes=num_classes,
        unknown=split == "test",
        multi_label=cfg.DATA.MULTI_LABEL,
    )


def channel_order(cfg: CfgNode, split: Split) -> str:
    """Return the order of the channels of the clips of a split, "RGB" or "BGR"."""
    colors = _spec(cfg, split).colors
    return colors[::-1] if cfg.DATA.REVERSE_INPUT_CHANNEL else colors


def _find_list(folder: Path, template: str, split: str, *, configured: bool, cure: str = "") -> Path:
    """Return the list of a split; `configured`: the template is DATA.LABEL_PATH_TEMPLATE; `cure`: one more cure."""
    names = [split, "validation"] if split == "val" else [split]
    paths = [folder / template.format(name) for name in names]
    if found := next((path for path in paths if path.is_file()), None):
        return found
    state = "does not exist"
    if folder.is_dir():
        files = sorted(path.name for path in folder.iterdir() if path.is_file())
        state = f"contains {', '.join(files[:10]) or 'no file'}"
    keys = "DATA.PATH_TO_DATA_DIR" + " or DATA.LABEL_PATH_TEMPLATE" * configured
    raise ListError(
        f"no list {paths[0]} (the folder {state}): copy the list of the {split} split to this path, or change "
        f"{keys}{cure}"
    )


def _build_transform(cfg: CfgNode, images: bool) -> TrainTransform | ImageTransform:
    data, aug = cfg.DATA, cfg.AUG
    rand_augment = erase = None
    if aug.ENABLE and aug.AA_TYPE:
        rand_augment = RandAugment.parse(aug.AA_TYPE, aug.INTERPOLATION)
    if aug.ENABLE and aug.RE_PROB > 0:
        erase = RandomErasing(aug.RE_PROB, aug.RE_MODE, aug.RE_COUNT, tuple(data.MEAN), tuple(data.STD))
    area, aspect = tuple(data.TRAIN_JITTER_SCALES_RELATIVE), tuple(data.TRAIN_JITTER_ASPECT_RELATIVE)
    rest: dict[str, Any] = {"flip": data.RANDOM_FLIP, "rand_augment": rand_augment, "erase": erase}
    if not images:
        scales = tuple(data.TRAIN_JITTER_SCALES)
        return TrainTransform(data.TRAIN_CROP_SIZE, scales, area or None, aspect, **rest)
    if not area:
        raise ValueError(
            "images are trained on random resized crops: set DATA.TRAIN_JITTER_SCALES_RELATIVE, for example "
            "[0.08, 1.0], and DATA.TRAIN_JITTER_ASPECT_RELATIVE, for example [0.75, 1.3333]"
        )
    return ImageTransform(data.TRAIN_CROP_SIZE, area, aspect, **rest)
