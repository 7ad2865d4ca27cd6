"""Rules between keys: each is a function from a configuration to a fault with its cure, or None."""

from __future__ import annotations

import re
from collections.abc import Callable, Collection, Iterator, Sequence

from fvcore.common.config import CfgNode

from slowfast.config.keys import KEYS, NAME, leaves
from slowfast.datasets.catalog import CATALOG

Rule = Callable[[CfgNode], str | None]


class ConfigError(ValueError):
    """All faults of a configuration at once.

    Attributes:
        faults: one sentence each: where, what, and the cure.
    """

    def __init__(self, faults: Sequence[str]) -> None:
        self.faults = list(dict.fromkeys(faults))  # a file that is the base of two others is read twice
        super().__init__(self.faults)

    def __str__(self) -> str:
        count = len(self.faults)
        if count == 1:
            return self.faults[0]
        more = f"\n  and {count - 50} more" if count > 50 else ""
        return f"{count} faults in the configuration:" + "".join(f"\n  {fault}" for fault in self.faults[:50]) + more


def broken_rules(cfg: CfgNode, unusable: Collection[str] = ()) -> Iterator[tuple[list[str], str]]:
    """Yield the keys and the fault of each rule that a configuration breaks.

    Args:
        cfg: the configuration.
        unusable: keys whose value could not be read; faults that name one of them are left out.
    """
    for rule in RULES + TRAINING_RULES * cfg.TRAIN.ENABLE:
        if fault := rule(cfg):
            named = [name for name in NAME.findall(fault) if name in KEYS]
            if not set(named).intersection(unusable):
                yield named, fault


def num_local_processes(cfg: CfgNode) -> int:
    """Return the processes on each node: NUM_PROCESSES, or one per GPU, or one on the CPU."""
    return cfg.NUM_PROCESSES or max(cfg.NUM_GPUS, 1)


def check_hardware(cfg: CfgNode) -> None:
    """Refuse a configuration that this machine cannot run; `load_config` works on any machine.

    Raises:
        ConfigError: NUM_GPUS is larger than the number of GPUs.
    """
    import torch  # takes seconds, which reading and showing a configuration need not

    available = torch.cuda.device_count()
    if available < cfg.NUM_GPUS:
        cure = f"set NUM_GPUS {available}" if available else "NUM_GPUS 0 runs on the CPU"
        raise ConfigError([f"NUM_GPUS = {cfg.NUM_GPUS}, but this machine has {available}: {cure}"])


def _output_folder_has_a_name(cfg: CfgNode) -> str | None:
    if cfg.OUTPUT_DIR.strip() in ("", "None"):
        return f"OUTPUT_DIR = {cfg.OUTPUT_DIR!r}: name a folder for this run, or . for the current folder"


def _names_fit_a_file_system(cfg: CfgNode) -> str | None:
    for name, value in leaves(cfg).items():
        if isinstance(value, str) and (len(value) > 4000 or max(map(len, value.encode().split(b"/"))) > 255):
            return f"{name} = {value[:80]!r}... is longer than 255 bytes per name or 4000 per path: shorten it"


def _one_process_per_gpu(cfg: CfgNode) -> str | None:
    if cfg.NUM_GPUS not in (0, num_local_processes(cfg)):
        return (
            f"NUM_PROCESSES = {cfg.NUM_PROCESSES} for NUM_GPUS = {cfg.NUM_GPUS}: set NUM_PROCESSES 0, which starts one "
            "process per GPU"
        )


def _nodes_are_numbered_from_0(cfg: CfgNode) -> str | None:
    if cfg.SHARD_ID >= cfg.NUM_SHARDS:
        return f"SHARD_ID = {cfg.SHARD_ID} must be below NUM_SHARDS = {cfg.NUM_SHARDS}: number the nodes from 0"


def _mean_and_std_per_channel(cfg: CfgNode) -> str | None:
    mean, std, channels = cfg.DATA.MEAN, cfg.DATA.STD, cfg.DATA.INPUT_CHANNEL_NUM
    if not len(mean) == len(std) == channels[0]:
        return (
            f"DATA.MEAN = {mean} and DATA.STD = {std}: give one number per channel, DATA.INPUT_CHANNEL_NUM {channels}"
        )


def _ranges_of_the_random_crop_come_together(cfg: CfgNode) -> str | None:
    area, aspect = cfg.DATA.TRAIN_JITTER_SCALES_RELATIVE, cfg.DATA.TRAIN_JITTER_ASPECT_RELATIVE
    if len(area) != len(aspect) or area != sorted(area) or aspect != sorted(aspect):
        return (
            f"DATA.TRAIN_JITTER_SCALES_RELATIVE = {area} and DATA.TRAIN_JITTER_ASPECT_RELATIVE = {aspect}: give the "
            "smallest and the largest value of both, or [] and []"
        )


def _jitter_scales_rise(cfg: CfgNode) -> str | None:
    if sorted(cfg.DATA.TRAIN_JITTER_SCALES) != cfg.DATA.TRAIN_JITTER_SCALES:
        return f"DATA.TRAIN_JITTER_SCALES = {cfg.DATA.TRAIN_JITTER_SCALES}: give the smallest short side first"


def _frames_have_different_names(cfg: CfgNode) -> str | None:
    if "{" not in cfg.DATA.IMAGE_TEMPLATE:
        return f"DATA.IMAGE_TEMPLATE = {cfg.DATA.IMAGE_TEMPLATE!r} has no place for the number: add {{:05d}}"


def _networks_of_images_read_images(cfg: CfgNode) -> str | None:
    name = cfg.MODEL.MODEL_NAME
    for part in ("TRAIN", "TEST"):
        if cfg[part].ENABLE and CATALOG[cfg[part].DATASET].images != name.endswith("_image"):
            return (
                f"{part}.DATASET = {cfg[part].DATASET} for MODEL.MODEL_NAME = {name}: use imagenet for networks whose "
                "name ends in _image, and a data set of videos for the others"
            )


def _an_image_has_one_view(cfg: CfgNode) -> str | None:
    test = cfg.TEST
    views = (test.NUM_ENSEMBLE_VIEWS, test.NUM_SPATIAL_CROPS, test.SHUFFLE_FRAMES)
    if test.ENABLE and CATALOG[test.DATASET].images and views != (1, 1, False):
        return (
            f"TEST.DATASET = {test.DATASET} has one view per image: set TEST.NUM_ENSEMBLE_VIEWS 1, "
            "TEST.NUM_SPATIAL_CROPS 1 and TEST.SHUFFLE_FRAMES False"
        )


def patch_size(backbone: str, tower: Sequence[int]) -> int | None:
    """Return the patch size in pixels of an image ViT, whose name has it: l14, patch16; None if it is not known."""
    if backbone == "custom":
        return tower[3]
    named = re.search(r"(?:_[bl]|patch)(\d+)", backbone)
    return int(named[1]) if named else None


def _crops_consist_of_whole_patches(cfg: CfgNode) -> str | None:
    patch = patch_size(cfg.UNIFORMERV2.BACKBONE, cfg.UNIFORMERV2.TOWER)
    if cfg.MODEL.ARCH != "uniformerv2" or not patch:
        return None
    sizes = {"DATA.TRAIN_CROP_SIZE": cfg.DATA.TRAIN_CROP_SIZE} if cfg.TRAIN.ENABLE else {}
    if cfg.TRAIN.ENABLE or cfg.TEST.ENABLE:  # a training validates
        sizes["DATA.TEST_CROP_SIZE"] = cfg.DATA.TEST_CROP_SIZE
    for name, size in sizes.items():
        if size % patch:
            return (
                f"{name} = {size} must be a multiple of the patch size {patch} of UNIFORMERV2.BACKBONE = "
                f"{cfg.UNIFORMERV2.BACKBONE}, for example {max(1, 224 // patch) * patch}"
            )


def _one_way_to_begin_a_classifier(cfg: CfgNode) -> str | None:
    if cfg.MODEL.RESET_HEAD and cfg.MODEL.HEAD_ROWS:
        return (
            f"MODEL.RESET_HEAD = True starts a new classifier, MODEL.HEAD_ROWS = {cfg.MODEL.HEAD_ROWS!r} keeps rows of "
            "the old one: remove one of them"
        )


def _kept_rows_have_a_classifier(cfg: CfgNode) -> str | None:
    v2 = cfg.MODEL.ARCH == "uniformerv2"
    start = cfg.UNIFORMERV2.PRETRAIN if v2 else cfg.UNIFORMER.PRETRAIN_NAME
    if cfg.MODEL.HEAD_ROWS and not (cfg.TRAIN.CHECKPOINT_FILE_PATH or start):
        return (
            f"MODEL.HEAD_ROWS = {cfg.MODEL.HEAD_ROWS!r} without weights to take the rows from: name them in "
            f"{'UNIFORMERV2.PRETRAIN' if v2 else 'UNIFORMER.PRETRAIN_NAME'} or TRAIN.CHECKPOINT_FILE_PATH"
        )


def _processes_share_a_batch_evenly(cfg: CfgNode) -> str | None:
    processes = num_local_processes(cfg)
    if cfg.TRAIN.BATCH_SIZE % processes:
        return (
            f"TRAIN.BATCH_SIZE = {cfg.TRAIN.BATCH_SIZE} must be a multiple of the {processes} processes of a node "
            f"(NUM_PROCESSES = {cfg.NUM_PROCESSES}, NUM_GPUS = {cfg.NUM_GPUS})"
        )


def _warm_up_ends_before_the_training(cfg: CfgNode) -> str | None:
    if cfg.SOLVER.WARMUP_EPOCHS >= cfg.SOLVER.MAX_EPOCH:
        return (
            f"SOLVER.WARMUP_EPOCHS = {cfg.SOLVER.WARMUP_EPOCHS} must be below SOLVER.MAX_EPOCH = "
            f"{cfg.SOLVER.MAX_EPOCH}: shorten the warm-up or lengthen the training"
        )


def _warm_up_rises(cfg: CfgNode) -> str | None:
    start, base = cfg.SOLVER.WARMUP_START_LR, cfg.SOLVER.BASE_LR
    if cfg.SOLVER.WARMUP_EPOCHS and start > base:
        return (
            f"SOLVER.WARMUP_START_LR = {start} must not be above SOLVER.BASE_LR = {base} if SOLVER.WARMUP_EPOCHS is "
            "above 0: lower it, for example to 1e-6 as in the recipes"
        )


def _steps_and_factors_agree(cfg: CfgNode) -> str | None:
    steps, factors = cfg.SOLVER.STEPS, cfg.SOLVER.LRS
    rising = steps[:1] == [0] and steps == sorted(set(steps))
    if cfg.SOLVER.LR_POLICY == "steps_with_relative_lrs" and not (rising and len(steps) == len(factors)):
        return (
            f"SOLVER.STEPS = {steps}, SOLVER.LRS = {factors}, SOLVER.LR_POLICY = steps_with_relative_lrs: give rising "
            "epochs that begin with 0, and one factor per epoch"
        )


def _mixed_labels_need_a_soft_loss(cfg: CfgNode) -> str | None:
    if cfg.MIXUP.ENABLE and cfg.MODEL.LOSS_FUNC != "soft_cross_entropy":
        return (
            f"MIXUP.ENABLE = True, MODEL.LOSS_FUNC = {cfg.MODEL.LOSS_FUNC}: set MODEL.LOSS_FUNC "
            "soft_cross_entropy, or MIXUP.ENABLE False"
        )


def _mixup_has_something_to_mix(cfg: CfgNode) -> str | None:
    if cfg.MIXUP.ENABLE and not (cfg.MIXUP.ALPHA or cfg.MIXUP.CUTMIX_ALPHA):
        return "MIXUP.ALPHA = 0 and MIXUP.CUTMIX_ALPHA = 0: raise one of them, or set MIXUP.ENABLE False"


RULES: tuple[Rule, ...] = (
    _output_folder_has_a_name,
    _names_fit_a_file_system,
    _one_process_per_gpu,
    _nodes_are_numbered_from_0,
    _mean_and_std_per_channel,
    _ranges_of_the_random_crop_come_together,
    _jitter_scales_rise,
    _frames_have_different_names,
    _networks_of_images_read_images,
    _an_image_has_one_view,
    _crops_consist_of_whole_patches,
    _one_way_to_begin_a_classifier,
)
# Rules that a test alone need not follow.
TRAINING_RULES: tuple[Rule, ...] = (
    _kept_rows_have_a_classifier,
    _processes_share_a_batch_evenly,
    _warm_up_ends_before_the_training,
    _warm_up_rises,
    _steps_and_factors_agree,
    _mixed_labels_need_a_soft_loss,
    _mixup_has_something_to_mix,
)
