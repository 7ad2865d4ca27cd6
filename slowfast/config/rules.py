"""Check rules between keys: each rule is a row with its keys, a condition and the cure."""

from __future__ import annotations

import math
import re
from collections.abc import Callable, Collection, Iterator, Sequence
from fractions import Fraction
from functools import partial
from typing import Any, NamedTuple

from fvcore.common.config import CfgNode

from slowfast.config.keys import leaves
from slowfast.datasets.catalog import CATALOG, DatasetSpec
from slowfast.utils.tables import row_of

UNIFORMER_STRIDE = 32  # pixels per position of the last feature map of a UniFormer
UNMIXED = ("cross_entropy", "bce", "bce_logit")  # losses that are not trained with mixup
VIT_RATE = 1e-4  # the authors train the image ViT of a UniFormerV2 with 1.5e-6 to 4e-5
RATES = ("SOLVER.BASE_LR", "SOLVER.COSINE_END_LR", "SOLVER.WARMUP_START_LR")


class ConfigError(ValueError):
    """All faults of a configuration at once.

    Attributes:
        faults: one sentence each: where, what, and the cure.
        cfg: the configuration, if some of its values contradict each other; else None.
    """

    def __init__(self, faults: Sequence[str], cfg: CfgNode | None = None) -> None:
        self.faults = list(dict.fromkeys(faults))  # a file that is the base of two others is read twice
        self.cfg = cfg
        super().__init__(self.faults)

    def __str__(self) -> str:
        count = len(self.faults)
        if count == 1:
            return self.faults[0]
        more = f"\n  and {count - 50} more" if count > 50 else ""
        return f"{count} faults in the configuration:" + "".join(f"\n  {fault}" for fault in self.faults[:50]) + more


class Rule(NamedTuple):
    """Keys whose values must fit together."""

    keys: str  # separated by blanks; the fault shows their values
    broken: Callable[[CfgNode], Any]  # whether a configuration breaks the rule
    cure: str  # for the fault; {} in it is the value that `broken` returned
    training: bool = False  # whether the rule holds only if TRAIN.ENABLE is True


def broken_rules(
    cfg: CfgNode, unusable: Collection[str] = (), *, training: bool = True
) -> Iterator[tuple[list[str], str]]:
    """Yield the keys and the fault of each rule that a configuration breaks.

    Rules about `unusable` keys, whose value could not be read, are left out, and without `training` those about it.
    """
    values = leaves(cfg)
    if not training:
        cfg = cfg.clone()
        cfg.defrost()
        cfg.TRAIN.ENABLE = False
    for rule in RULES:
        keys = rule.keys.split()
        applies = (cfg.TRAIN.ENABLE or not rule.training) and not set(keys).intersection(unusable)
        if applies and (found := rule.broken(cfg)):
            yield keys, f"{', '.join(f'{key} = {values[key]}' for key in keys)}: {rule.cure.format(found)}"


def num_local_processes(cfg: CfgNode) -> int:
    """Return the processes on each node: NUM_PROCESSES, or one per GPU, or one on the CPU."""
    return cfg.NUM_PROCESSES or max(cfg.NUM_GPUS, 1)


def _step(cfg: CfgNode) -> tuple[int, int]:
    """Return the videos of an optimizer step over all nodes, and the factor by which nodes scale the learning rates."""
    videos = cfg.NUM_SHARDS * cfg.TRAIN.BATCH_SIZE * cfg.SOLVER.ACCUMULATION_STEPS
    return videos, cfg.NUM_SHARDS if cfg.SOLVER.BASE_LR_SCALE_NUM_SHARDS else 1


def step_and_rates(cfg: CfgNode) -> tuple[float, ...]:
    """Return the videos of an optimizer step over all nodes, and the learning rates of `RATES` that result."""
    videos, factor = _step(cfg)
    return videos, *(factor * cfg.SOLVER[key.removeprefix("SOLVER.")] for key in RATES)


def rate_of_other_steps(recipe: CfgNode, cfg: CfgNode) -> str:
    """Return the warning that steps take other videos than those of `recipe`, with its learning rate; "" if not."""
    (before, factor_before), (now, factor), rate = _step(recipe), _step(cfg), cfg.SOLVER.BASE_LR
    fits = Fraction(before * factor, factor_before)
    if fits == now or not rate or rate != recipe.SOLVER.BASE_LR:
        return ""
    steps = fits / (now // cfg.SOLVER.ACCUMULATION_STEPS)
    accumulate = f"set SOLVER.ACCUMULATION_STEPS {steps}, or " if steps.denominator == 1 else ""
    return (
        f"a step takes {now} videos, but SOLVER.BASE_LR {rate:g} was set for {float(fits):g}: {accumulate}"
        f"multiply {', '.join(RATES)} by {float(now / fits):.3g}"
    )


def rate_of_image_vit(cfg: CfgNode) -> str:
    """Return the warning that the learning rate is too high for the trained image ViT of a UniFormerV2; "" if not.

    The official configuration files contain such a rate, which every official script replaces.
    """
    v2, solver = cfg.UNIFORMERV2, cfg.SOLVER
    trained = cfg.MODEL.ARCH == "uniformerv2" and not v2.FROZEN and solver.LAYER_DECAY == 1.0
    starts_from_weights = v2.BACKBONE != "custom" or v2.PRETRAIN or cfg.TRAIN.CHECKPOINT_FILE_PATH
    _, rate, *_ = step_and_rates(cfg)
    rate *= solver.BACKBONE_LR_RATIO
    if not (trained and starts_from_weights and "adam" in solver.OPTIMIZING_METHOD and rate > VIT_RATE):
        return ""
    return (
        f"a learning rate of {rate:g} is too high for the weights of the image ViT, which the authors train with "
        "1.5e-6 to 4e-5: set SOLVER.BASE_LR 1e-5, or for an official config.yaml add the KEY VALUE pairs of its run.sh"
    )


def check_hardware(cfg: CfgNode) -> None:
    """Refuse a configuration that this machine cannot run; `load_config` works on any machine.

    Raises:
        ConfigError: NUM_GPUS is larger than the number of GPUs.
    """
    import torch  # takes seconds, and is not needed to read and show a configuration

    available = torch.cuda.device_count()
    if available < cfg.NUM_GPUS:
        cure = f"set NUM_GPUS {available}" if available else "NUM_GPUS 0 runs on the CPU"
        raise ConfigError([f"NUM_GPUS = {cfg.NUM_GPUS}, but this machine has {available}: {cure}"])


def _spec(cfg: CfgNode, part: str) -> DatasetSpec:
    return row_of(CATALOG, "CATALOG in slowfast.datasets.catalog", cfg[part].DATASET, f"{part}.DATASET")


def _has_wrong_images(cfg: CfgNode, part: str) -> bool:
    return cfg[part].ENABLE and _spec(cfg, part).images != cfg.MODEL.MODEL_NAME.endswith("_image")


def _has_single_labels(cfg: CfgNode, part: str) -> bool:
    if not cfg[part].ENABLE:
        return False
    spec = _spec(cfg, part)
    return spec.images or (spec.list_file is None and cfg.DATA.LABEL_PATH_TEMPLATE.endswith(".json"))


def _needs_template(cfg: CfgNode) -> bool:
    """Return whether DATA.LABEL_PATH_TEMPLATE names the lists of a data set."""
    specs = (_spec(cfg, part) for part in ("TRAIN", "TEST") if cfg[part].ENABLE)
    return any(spec.list_file is None and not spec.images for spec in specs)


def _count_names(template: str, *values: Any) -> int:
    """Return how many names a template makes of values, 0 if it cannot take a single value."""
    try:
        return len({template.format(value) for value in values})
    except (AttributeError, LookupError, TypeError, ValueError):
        return 0


def _cut_patch(cfg: CfgNode, size: int) -> int | None:
    """Return the patch size in pixels of the image ViT, if crops of `size` are not whole patches."""
    v2 = cfg.UNIFORMERV2
    named = re.search(r"(?:_[bl]|patch)(\d+)", v2.BACKBONE)  # l14, patch16
    patch = v2.TOWER[3] if v2.BACKBONE == "custom" else int(named[1]) if named else 1
    return patch if cfg.MODEL.ARCH == "uniformerv2" and size % patch else None


def _is_uniformer(cfg: CfgNode) -> bool:
    return cfg.MODEL.ARCH == "uniformer" and cfg.MODEL.MODEL_NAME.startswith("Uniformer")


def _is_too_small(cfg: CfgNode, size: int) -> bool:
    """Return whether crops of `size` pixels can leave the last stage of a UniFormer without a position."""
    return _is_uniformer(cfg) and not cfg.UNIFORMER.OVERLAPPED_STEM and size < UNIFORMER_STRIDE


def _lacks_weights(cfg: CfgNode) -> str:
    """Return the key that must name weights, because MODEL.HEAD_ROWS keeps rows of them; "" if none is missing."""
    v2 = cfg.MODEL.ARCH == "uniformerv2"
    name = cfg.UNIFORMERV2.PRETRAIN if v2 else cfg.UNIFORMER.PRETRAIN_NAME
    key = "UNIFORMERV2.PRETRAIN" if v2 else "UNIFORMER.PRETRAIN_NAME"
    return key if cfg.MODEL.HEAD_ROWS and not (cfg.TRAIN.CHECKPOINT_FILE_PATH or name) else ""


def _has_wrong_steps(cfg: CfgNode) -> bool:
    steps = cfg.SOLVER.STEPS
    rising = steps[:1] == [0] and steps == sorted(set(steps))
    fits = rising and len(steps) == len(cfg.SOLVER.LRS)
    return cfg.SOLVER.LR_POLICY == "steps_with_relative_lrs" and not fits


RULES = (
    Rule("OUTPUT_DIR", lambda cfg: not cfg.OUTPUT_DIR.strip(),
         "name a folder for this run, or . for the current folder"),
    Rule("NUM_PROCESSES NUM_GPUS", lambda cfg: cfg.NUM_GPUS not in (0, num_local_processes(cfg)),
         "set NUM_PROCESSES 0, which starts one process per GPU"),
    Rule("SHARD_ID NUM_SHARDS", lambda cfg: cfg.SHARD_ID >= cfg.NUM_SHARDS,
         "number the nodes from 0 to NUM_SHARDS - 1"),
    Rule("DATA.MEAN DATA.STD DATA.INPUT_CHANNEL_NUM",
         lambda cfg: not len(cfg.DATA.MEAN) == len(cfg.DATA.STD) == cfg.DATA.INPUT_CHANNEL_NUM[0],
         "give one number per channel"),
    Rule("DATA.TRAIN_JITTER_SCALES_RELATIVE DATA.TRAIN_JITTER_ASPECT_RELATIVE",
         lambda cfg: len(cfg.DATA.TRAIN_JITTER_SCALES_RELATIVE) != len(cfg.DATA.TRAIN_JITTER_ASPECT_RELATIVE),
         "give both, or [] and []"),
    Rule("DATA.IMAGE_TEMPLATE", lambda cfg: _count_names(cfg.DATA.IMAGE_TEMPLATE.replace("{folder}", ""), 1, 2) < 2,
         "write one place for the number, such as {{:05d}}, and {{folder}} for the name of the folder"),
    Rule("DATA.LABEL_PATH_TEMPLATE", lambda cfg: _needs_template(cfg)
         and _count_names(cfg.DATA.LABEL_PATH_TEMPLATE, "train", "val") < 1 + cfg.TRAIN.ENABLE,
         "write one {{}}, for the split"),
    *(
        Rule(f"{part}.DATASET MODEL.MODEL_NAME", partial(_has_wrong_images, part=part),
             "use imagenet for networks whose name ends in _image, and a data set of videos for the others")
        for part in ("TRAIN", "TEST")
    ),
    Rule("TEST.DATASET TEST.NUM_ENSEMBLE_VIEWS TEST.NUM_SPATIAL_CROPS TEST.SHUFFLE_FRAMES",
         lambda cfg: cfg.TEST.ENABLE and _spec(cfg, "TEST").images
         and (cfg.TEST.NUM_ENSEMBLE_VIEWS, cfg.TEST.NUM_SPATIAL_CROPS, cfg.TEST.SHUFFLE_FRAMES) != (1, 1, False),
         "an image has one view: set the numbers to 1, and TEST.SHUFFLE_FRAMES False"),
    Rule("DATA.TRAIN_CROP_SIZE UNIFORMERV2.BACKBONE", lambda cfg: _cut_patch(cfg, cfg.DATA.TRAIN_CROP_SIZE),
         "choose a multiple of the patch size {}", training=True),
    Rule("DATA.TEST_CROP_SIZE UNIFORMERV2.BACKBONE",
         lambda cfg: (cfg.TRAIN.ENABLE or cfg.TEST.ENABLE) and _cut_patch(cfg, cfg.DATA.TEST_CROP_SIZE),
         "choose a multiple of the patch size {}"),
    Rule("DATA.TRAIN_CROP_SIZE", lambda cfg: _is_too_small(cfg, cfg.DATA.TRAIN_CROP_SIZE),
         f"the last stage has a position per {UNIFORMER_STRIDE} pixels: choose as many or more", training=True),
    Rule("DATA.TEST_CROP_SIZE",
         lambda cfg: (cfg.TRAIN.ENABLE or cfg.TEST.ENABLE) and _is_too_small(cfg, cfg.DATA.TEST_CROP_SIZE),
         f"the last stage has a position per {UNIFORMER_STRIDE} pixels: choose as many or more"),
    Rule("UNIFORMERV2.N_HEAD UNIFORMERV2.N_DIM",
         lambda cfg: cfg.MODEL.ARCH == "uniformerv2" and cfg.UNIFORMERV2.N_DIM % cfg.UNIFORMERV2.N_HEAD,
         "set UNIFORMERV2.N_HEAD to a divisor of UNIFORMERV2.N_DIM"),
    Rule("UNIFORMER.HEAD_DIM UNIFORMER.EMBED_DIM",
         lambda cfg: _is_uniformer(cfg) and any(dim % cfg.UNIFORMER.HEAD_DIM for dim in cfg.UNIFORMER.EMBED_DIM[2:])
         and math.gcd(*cfg.UNIFORMER.EMBED_DIM[2:], 64),
         "UNIFORMER.HEAD_DIM must divide the last two numbers of UNIFORMER.EMBED_DIM: set it to {}"),
    Rule("MODEL.CHECKPOINT_NUM MODEL.MODEL_NAME",
         lambda cfg: _is_uniformer(cfg) and cfg.MODEL.USE_CHECKPOINT and len(cfg.MODEL.CHECKPOINT_NUM) != 4,
         "give 4 numbers, one per stage"),
    Rule("MODEL.NUM_CLASSES DATA.MULTI_LABEL", lambda cfg: cfg.MODEL.NUM_CLASSES == 1 and not cfg.DATA.MULTI_LABEL,
         "all videos have the same class, so nothing is learned: add a class of other videos, or set "
         "DATA.MULTI_LABEL True and list other videos without a class", training=True),
    Rule("MODEL.HEAD_ROWS MODEL.RESET_HEAD", lambda cfg: cfg.MODEL.HEAD_ROWS and cfg.MODEL.RESET_HEAD,
         "one keeps rows of the old classifier, the other starts a new one: remove one of them"),
    Rule("MODEL.HEAD_ROWS", _lacks_weights,
         "name the weights from which the rows are taken in {} or TRAIN.CHECKPOINT_FILE_PATH", training=True),
    Rule("DATA.MULTI_LABEL TEST.ADD_SOFTMAX", lambda cfg: cfg.DATA.MULTI_LABEL and cfg.TEST.ADD_SOFTMAX is not None,
         "a sigmoid per class is added up: set TEST.ADD_SOFTMAX None"),
    *(
        Rule(f"DATA.MULTI_LABEL {part}.DATASET",
             lambda cfg, part=part: cfg.DATA.MULTI_LABEL and _has_single_labels(cfg, part),
             "the data set has one class per image or entry: set DATA.MULTI_LABEL False")
        for part in ("TRAIN", "TEST")
    ),
    Rule("SOLVER.WARMUP_EPOCHS SOLVER.MAX_EPOCH", lambda cfg: cfg.SOLVER.WARMUP_EPOCHS >= cfg.SOLVER.MAX_EPOCH,
         "the warm-up must be shorter than the training: shorten it, or lengthen the training", training=True),
    Rule("SOLVER.WARMUP_EPOCHS SOLVER.WARMUP_START_LR SOLVER.BASE_LR",
         lambda cfg: cfg.SOLVER.WARMUP_EPOCHS and cfg.SOLVER.WARMUP_START_LR > cfg.SOLVER.BASE_LR,
         "the warm-up must not start above SOLVER.BASE_LR: lower its start, for example to 1e-6 as in the recipes",
         training=True),
    Rule("SOLVER.LR_POLICY SOLVER.COSINE_END_LR SOLVER.BASE_LR",
         lambda cfg: cfg.SOLVER.LR_POLICY == "cosine" and cfg.SOLVER.COSINE_END_LR > cfg.SOLVER.BASE_LR,
         "the cosine must not end above SOLVER.BASE_LR: lower its end, for example to 0", training=True),
    Rule("SOLVER.LR_POLICY SOLVER.STEPS SOLVER.LRS", _has_wrong_steps,
         "give rising epochs that begin with 0, and one factor per epoch", training=True),
    Rule("TRAIN.BATCH_SIZE NUM_PROCESSES NUM_GPUS",
         lambda cfg: cfg.TRAIN.BATCH_SIZE % num_local_processes(cfg) and num_local_processes(cfg),
         "set TRAIN.BATCH_SIZE to a multiple of {}, the processes of a node", training=True),
    Rule("MIXUP.ENABLE MODEL.LOSS_FUNC",
         lambda cfg: cfg.MIXUP.ENABLE and cfg.MODEL.LOSS_FUNC in UNMIXED and not cfg.DATA.MULTI_LABEL,
         "set MODEL.LOSS_FUNC soft_cross_entropy, or MIXUP.ENABLE False", training=True),
    Rule("MIXUP.ALPHA MIXUP.CUTMIX_ALPHA",
         lambda cfg: cfg.MIXUP.ENABLE and not (cfg.MIXUP.ALPHA or cfg.MIXUP.CUTMIX_ALPHA),
         "raise one of them, or set MIXUP.ENABLE False", training=True),
    Rule("DATA.MULTI_LABEL DATA.BALANCE MODEL.CLASS_WEIGHTS",
         lambda cfg: cfg.DATA.MULTI_LABEL and (cfg.DATA.BALANCE or cfg.MODEL.CLASS_WEIGHTS != "none"),
         "classes that share videos cannot be balanced: set DATA.BALANCE False and "
         "MODEL.CLASS_WEIGHTS none", training=True),
    Rule("DATA.BALANCE MODEL.CLASS_WEIGHTS",
         lambda cfg: cfg.DATA.BALANCE and cfg.MODEL.CLASS_WEIGHTS != "none" and not cfg.DATA.MULTI_LABEL,
         "both raise the share of rare classes: set MODEL.CLASS_WEIGHTS none, or DATA.BALANCE False", training=True),
    Rule("MODEL.CLASS_WEIGHTS MODEL.LOSS_FUNC",
         lambda cfg: cfg.MODEL.CLASS_WEIGHTS != "none" and not cfg.MODEL.LOSS_FUNC.endswith("cross_entropy")
         and not cfg.DATA.MULTI_LABEL,
         "set MODEL.LOSS_FUNC cross_entropy or soft_cross_entropy, or MODEL.CLASS_WEIGHTS none", training=True),
    Rule("DATA.MULTI_LABEL MODEL.LOSS_FUNC",
         lambda cfg: cfg.DATA.MULTI_LABEL and not cfg.MODEL.LOSS_FUNC.startswith("bce"),
         "several classes per video need a sigmoid per class: set MODEL.LOSS_FUNC bce", training=True),
    Rule("MODEL.CHECKPOINT_KEEP MODEL.COMPILE",
         lambda cfg: cfg.MODEL.COMPILE and cfg.MODEL.USE_CHECKPOINT and cfg.MODEL.CHECKPOINT_KEEP == "products",
         "the products of compiled blocks cannot be kept: set MODEL.CHECKPOINT_KEEP nothing, or MODEL.COMPILE False",
         training=True),
    Rule("DDP.SHARDING SOLVER.OPTIMIZING_METHOD",
         lambda cfg: cfg.DDP.SHARDING != "none" and cfg.SOLVER.OPTIMIZING_METHOD.startswith("timm/"),
         "optimizers of timm may need the gradients of all parameters: choose sgd, adam or adamw, or DDP.SHARDING none",
         training=True),
)  # fmt: skip
