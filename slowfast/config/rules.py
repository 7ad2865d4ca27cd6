"""Check rules between keys: each rule is a function from a configuration to its faults, with their cures."""

from __future__ import annotations

import math
import re
from collections.abc import Callable, Collection, Iterator, Sequence
from itertools import chain

from fvcore.common.config import CfgNode

from slowfast.config.keys import KEYS, NAME, leaves
from slowfast.datasets.catalog import CATALOG

Rule = Callable[[CfgNode], Iterator[str]]


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
    for fault in chain.from_iterable(rule(cfg) for rule in RULES + TRAINING_RULES * cfg.TRAIN.ENABLE):
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


def _output_folder(cfg: CfgNode) -> Iterator[str]:
    if cfg.OUTPUT_DIR.strip() in ("", "None"):
        yield f"OUTPUT_DIR = {cfg.OUTPUT_DIR!r}: name a folder for this run, or . for the current folder"


def _processes(cfg: CfgNode) -> Iterator[str]:
    if cfg.NUM_GPUS not in (0, num_local_processes(cfg)):
        yield (
            f"NUM_PROCESSES = {cfg.NUM_PROCESSES} for NUM_GPUS = {cfg.NUM_GPUS}: set NUM_PROCESSES 0, which starts one "
            "process per GPU"
        )
    if cfg.SHARD_ID >= cfg.NUM_SHARDS:
        yield f"SHARD_ID = {cfg.SHARD_ID} must be below NUM_SHARDS = {cfg.NUM_SHARDS}: number the nodes from 0"


def _frames(cfg: CfgNode) -> Iterator[str]:
    data = cfg.DATA
    if not len(data.MEAN) == len(data.STD) == data.INPUT_CHANNEL_NUM[0]:
        yield (
            f"DATA.MEAN = {data.MEAN} and DATA.STD = {data.STD}: give one number per channel, DATA.INPUT_CHANNEL_NUM "
            f"{data.INPUT_CHANNEL_NUM}"
        )
    area, aspect = data.TRAIN_JITTER_SCALES_RELATIVE, data.TRAIN_JITTER_ASPECT_RELATIVE
    if len(area) != len(aspect):
        yield (
            f"DATA.TRAIN_JITTER_SCALES_RELATIVE = {area} and DATA.TRAIN_JITTER_ASPECT_RELATIVE = {aspect}: give both, "
            "or [] and []"
        )
    if "{" not in data.IMAGE_TEMPLATE:
        yield f"DATA.IMAGE_TEMPLATE = {data.IMAGE_TEMPLATE!r} has no place for the number: add {{:05d}}"


def _images(cfg: CfgNode) -> Iterator[str]:
    name, test = cfg.MODEL.MODEL_NAME, cfg.TEST
    for part in ("TRAIN", "TEST"):
        if cfg[part].ENABLE and CATALOG[cfg[part].DATASET].images != name.endswith("_image"):
            yield (
                f"{part}.DATASET = {cfg[part].DATASET} for MODEL.MODEL_NAME = {name}: use imagenet for networks whose "
                "name ends in _image, and a data set of videos for the others"
            )
    views = (test.NUM_ENSEMBLE_VIEWS, test.NUM_SPATIAL_CROPS, test.SHUFFLE_FRAMES)
    if test.ENABLE and CATALOG[test.DATASET].images and views != (1, 1, False):
        yield (
            f"TEST.DATASET = {test.DATASET} has one view per image: set TEST.NUM_ENSEMBLE_VIEWS 1, "
            "TEST.NUM_SPATIAL_CROPS 1 and TEST.SHUFFLE_FRAMES False"
        )


def patch_size(backbone: str, tower: Sequence[int]) -> int | None:
    """Return the patch size in pixels of an image ViT, whose name has it: l14, patch16; None if it is not known."""
    if backbone == "custom":
        return tower[3]
    named = re.search(r"(?:_[bl]|patch)(\d+)", backbone)
    return int(named[1]) if named else None


def _patches(cfg: CfgNode) -> Iterator[str]:
    patch = patch_size(cfg.UNIFORMERV2.BACKBONE, cfg.UNIFORMERV2.TOWER)
    if cfg.MODEL.ARCH != "uniformerv2" or not patch:
        return
    used = {"TRAIN_CROP_SIZE": cfg.TRAIN.ENABLE, "TEST_CROP_SIZE": cfg.TRAIN.ENABLE or cfg.TEST.ENABLE}
    for name in used:
        if used[name] and cfg.DATA[name] % patch:
            yield (
                f"DATA.{name} = {cfg.DATA[name]} must be a multiple of the patch size {patch} of UNIFORMERV2.BACKBONE "
                f"= {cfg.UNIFORMERV2.BACKBONE}, for example {max(1, 224 // patch) * patch}"
            )


def _blocks(cfg: CfgNode) -> Iterator[str]:
    model, v1, v2 = cfg.MODEL, cfg.UNIFORMER, cfg.UNIFORMERV2
    if model.ARCH == "uniformerv2":
        if v2.N_DIM % v2.N_HEAD:
            heads = next(heads for heads in range(v2.N_HEAD, 0, -1) if not v2.N_DIM % heads)
            yield f"UNIFORMERV2.N_HEAD = {v2.N_HEAD} must divide UNIFORMERV2.N_DIM = {v2.N_DIM}: set it to {heads}"
    elif model.MODEL_NAME.startswith("Uniformer"):
        if any(dim % v1.HEAD_DIM for dim in v1.EMBED_DIM[2:]):
            yield (
                f"UNIFORMER.HEAD_DIM = {v1.HEAD_DIM} must divide the last two numbers of UNIFORMER.EMBED_DIM = "
                f"{v1.EMBED_DIM}: set it to {math.gcd(*v1.EMBED_DIM[2:], 64)}"
            )
        if model.USE_CHECKPOINT and len(model.CHECKPOINT_NUM) != 4:
            yield f"MODEL.CHECKPOINT_NUM = {model.CHECKPOINT_NUM}: {model.MODEL_NAME} has 4 stages, give 4 numbers"


def _classifier(cfg: CfgNode) -> Iterator[str]:
    rows = cfg.MODEL.HEAD_ROWS
    if rows and cfg.MODEL.RESET_HEAD:
        yield (
            f"MODEL.RESET_HEAD = True starts a new classifier, MODEL.HEAD_ROWS = {rows!r} keeps rows of the old one: "
            "remove one of them"
        )
    key = "UNIFORMERV2.PRETRAIN" if cfg.MODEL.ARCH == "uniformerv2" else "UNIFORMER.PRETRAIN_NAME"
    if rows and cfg.TRAIN.ENABLE and not (cfg.TRAIN.CHECKPOINT_FILE_PATH or leaves(cfg)[key]):
        yield (
            f"MODEL.HEAD_ROWS = {rows!r} without weights to take the rows from: name them in {key} or "
            "TRAIN.CHECKPOINT_FILE_PATH"
        )


def _schedule(cfg: CfgNode) -> Iterator[str]:
    solver = cfg.SOLVER
    if solver.WARMUP_EPOCHS >= solver.MAX_EPOCH:
        yield (
            f"SOLVER.WARMUP_EPOCHS = {solver.WARMUP_EPOCHS} must be below SOLVER.MAX_EPOCH = {solver.MAX_EPOCH}: "
            "shorten the warm-up or lengthen the training"
        )
    if solver.WARMUP_EPOCHS and solver.WARMUP_START_LR > solver.BASE_LR:
        yield (
            f"SOLVER.WARMUP_START_LR = {solver.WARMUP_START_LR} must not be above SOLVER.BASE_LR = {solver.BASE_LR} if "
            "SOLVER.WARMUP_EPOCHS is above 0: lower it, for example to 1e-6 as in the recipes"
        )
    steps, factors = solver.STEPS, solver.LRS
    rising = steps[:1] == [0] and steps == sorted(set(steps))
    if solver.LR_POLICY == "steps_with_relative_lrs" and not (rising and len(steps) == len(factors)):
        yield (
            f"SOLVER.STEPS = {steps}, SOLVER.LRS = {factors}, SOLVER.LR_POLICY = steps_with_relative_lrs: give rising "
            "epochs that begin with 0, and one factor per epoch"
        )


def _batch(cfg: CfgNode) -> Iterator[str]:
    processes = num_local_processes(cfg)
    if cfg.TRAIN.BATCH_SIZE % processes:
        yield (
            f"TRAIN.BATCH_SIZE = {cfg.TRAIN.BATCH_SIZE} must be a multiple of the {processes} processes of a node "
            f"(NUM_PROCESSES = {cfg.NUM_PROCESSES}, NUM_GPUS = {cfg.NUM_GPUS})"
        )
    if cfg.MIXUP.ENABLE and cfg.MODEL.LOSS_FUNC != "soft_cross_entropy" and not cfg.DATA.MULTI_LABEL:
        yield (
            f"MIXUP.ENABLE = True, MODEL.LOSS_FUNC = {cfg.MODEL.LOSS_FUNC}: set MODEL.LOSS_FUNC soft_cross_entropy, or "
            "MIXUP.ENABLE False"
        )
    if cfg.MIXUP.ENABLE and not (cfg.MIXUP.ALPHA or cfg.MIXUP.CUTMIX_ALPHA):
        yield "MIXUP.ALPHA = 0 and MIXUP.CUTMIX_ALPHA = 0: raise one of them, or set MIXUP.ENABLE False"


def _balance(cfg: CfgNode) -> Iterator[str]:
    weights, loss = cfg.MODEL.CLASS_WEIGHTS, cfg.MODEL.LOSS_FUNC
    if cfg.DATA.MULTI_LABEL:  # a class cannot be drawn or weighted alone: its rows also have other classes
        if weights != "none" or cfg.DATA.BALANCE:
            yield (
                f"DATA.BALANCE = {cfg.DATA.BALANCE} and MODEL.CLASS_WEIGHTS = {weights} need one class per video, but "
                "DATA.MULTI_LABEL = True: set DATA.BALANCE False and MODEL.CLASS_WEIGHTS none"
            )
        return
    if weights != "none" and cfg.DATA.BALANCE:
        yield (
            f"DATA.BALANCE = True and MODEL.CLASS_WEIGHTS = {weights} both raise the share of rare classes: set "
            "MODEL.CLASS_WEIGHTS none, or DATA.BALANCE False"
        )
    if weights != "none" and not loss.endswith("cross_entropy"):
        yield (
            f"MODEL.CLASS_WEIGHTS = {weights} for MODEL.LOSS_FUNC = {loss}: set MODEL.LOSS_FUNC cross_entropy or "
            "soft_cross_entropy, or MODEL.CLASS_WEIGHTS none"
        )


def _multi_label_lists(cfg: CfgNode) -> Iterator[str]:
    if not cfg.DATA.MULTI_LABEL:
        return
    if cfg.TEST.ADD_SOFTMAX is not None:
        yield (
            f"TEST.ADD_SOFTMAX = {cfg.TEST.ADD_SOFTMAX}, but DATA.MULTI_LABEL = True adds up a sigmoid per "
            "class: set TEST.ADD_SOFTMAX None"
        )
    for part in ("TRAIN", "TEST"):
        spec, template = CATALOG[cfg[part].DATASET], cfg.DATA.LABEL_PATH_TEMPLATE
        if cfg[part].ENABLE and (spec.images or (spec.list_file is None and template.endswith(".json"))):
            yield (
                f"{part}.DATASET = {cfg[part].DATASET} has one class per image or entry, but DATA.MULTI_LABEL = True: "
                "set DATA.MULTI_LABEL False"
            )


def _multi_label_loss(cfg: CfgNode) -> Iterator[str]:
    if cfg.DATA.MULTI_LABEL and not cfg.MODEL.LOSS_FUNC.startswith("bce"):
        yield (
            f"MODEL.LOSS_FUNC = {cfg.MODEL.LOSS_FUNC} needs one class per video, but DATA.MULTI_LABEL = True: set "
            "MODEL.LOSS_FUNC bce"
        )


def _compiled(cfg: CfgNode) -> Iterator[str]:
    if cfg.MODEL.COMPILE and cfg.MODEL.USE_CHECKPOINT and cfg.MODEL.CHECKPOINT_KEEP == "products":
        yield (
            "MODEL.CHECKPOINT_KEEP = products cannot see the products of compiled blocks: set MODEL.CHECKPOINT_KEEP "
            "nothing, or MODEL.COMPILE False"
        )


def _sharding(cfg: CfgNode) -> Iterator[str]:
    if cfg.DDP.SHARDING != "none" and cfg.SOLVER.OPTIMIZING_METHOD.startswith("timm/"):
        yield (
            f"DDP.SHARDING = {cfg.DDP.SHARDING} for SOLVER.OPTIMIZING_METHOD = {cfg.SOLVER.OPTIMIZING_METHOD}, which "
            "may need the gradients of all parameters: choose sgd, adam or adamw, or DDP.SHARDING none"
        )


RULES: tuple[Rule, ...] = (
    _output_folder,
    _processes,
    _frames,
    _images,
    _patches,
    _blocks,
    _classifier,
    _multi_label_lists,
)
# those that a test alone need not follow
TRAINING_RULES: tuple[Rule, ...] = (_schedule, _batch, _balance, _multi_label_loss, _compiled, _sharding)
