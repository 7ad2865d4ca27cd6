"""What a valid value is: types, bounds, choices, known keys, combinations; every fault names the value and the cure."""

from __future__ import annotations

import difflib
import re
import types
from ast import literal_eval
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from fnmatch import fnmatchcase
from typing import Any, get_args, get_origin

from fvcore.common.config import CfgNode

from slowfast.config.keys import DEFAULTS, OBSOLETE, TYPES
from slowfast.datasets.catalog import CATALOG

# The only values some keys take, and patterns of them.
CHOICES: dict[str, tuple[Any, ...]] = {
    "AUG.INTERPOLATION": ("bilinear", "bicubic"),
    "AUG.RE_MODE": ("pixel", "rand", "const"),
    "BN.NORM_TYPE": ("batchnorm", "sync_batchnorm"),
    "DATA.DECODING_BACKEND": ("pyav", "decord", "torchcodec"),
    "DATA.ENSEMBLE_METHOD": ("sum", "max"),
    "DIST_BACKEND": ("nccl", "gloo"),
    "MODEL.LOSS_FUNC": ("cross_entropy", "soft_cross_entropy", "bce", "bce_logit"),
    "SOLVER.LR_POLICY": ("cosine", "steps_with_relative_lrs"),
    "SOLVER.OPTIMIZING_METHOD": ("sgd", "adam", "adamw", "timm/*"),
    "TEST.NUM_SPATIAL_CROPS": (1, 3),
    "TRAIN.AMP_DTYPE": ("auto", "bfloat16", "float16"),
    "TRAIN.NONFINITE": ("skip", "stop"),
    "TRAIN.ON_SAVE_ERROR": ("continue", "stop"),
}

# Bounds of numbers (of every entry, in a list).
ABOVE_0 = ("above 0", lambda value: value > 0)
FROM_0 = ("at least 0", lambda value: value >= 0)
SHARE = ("between 0 and 1", lambda value: 0 <= value <= 1)
BELOW_1 = ("from 0 to below 1", lambda value: 0 <= value < 1)  # at 1 drop path divides by 0
BOUNDS: dict[str, tuple[str, Callable[[float], bool]]] = {
    "AUG.NUM_SAMPLE": ABOVE_0,
    "AUG.RE_COUNT": ABOVE_0,
    "AUG.RE_PROB": SHARE,
    "BN.NUM_BATCHES_PRECISE": ABOVE_0,
    "BN.WEIGHT_DECAY": FROM_0,
    "DATA.INPUT_CHANNEL_NUM": ABOVE_0,
    "DATA.MAX_BAD_SHARE": SHARE,
    "DATA.NUM_FRAMES": ABOVE_0,
    "DATA.SAMPLING_RATE": ABOVE_0,
    "DATA.STD": ABOVE_0,
    "DATA.TEST_CROP_SIZE": ABOVE_0,
    "DATA.TRAIN_CROP_SIZE": ABOVE_0,
    "DATA.TRAIN_JITTER_ASPECT_RELATIVE": ABOVE_0,
    "DATA.TRAIN_JITTER_SCALES": ABOVE_0,
    "DATA.TRAIN_JITTER_SCALES_RELATIVE": SHARE,
    "DATA_LOADER.DECODE_TIMEOUT": FROM_0,
    "DATA_LOADER.NUM_WORKERS": FROM_0,
    "DIST_TIMEOUT": ABOVE_0,
    "EMA.DECAY": SHARE,
    "LOG_PERIOD": ABOVE_0,
    "MIXUP.ALPHA": FROM_0,
    "MIXUP.CUTMIX_ALPHA": FROM_0,
    "MIXUP.LABEL_SMOOTH_VALUE": SHARE,
    "MIXUP.PROB": SHARE,
    "MIXUP.SWITCH_PROB": SHARE,
    "MODEL.CHECKPOINT_NUM": FROM_0,
    "MODEL.NUM_CLASSES": ABOVE_0,
    "NUM_GPUS": FROM_0,
    "NUM_PROCESSES": FROM_0,
    "NUM_SHARDS": ABOVE_0,
    "RNG_SEED": FROM_0,
    "SHARD_ID": FROM_0,
    "SOLVER.ACCUMULATION_STEPS": ABOVE_0,
    "SOLVER.BACKBONE_LR_RATIO": FROM_0,
    "SOLVER.BASE_LR": FROM_0,
    "SOLVER.CLIP_GRADIENT": FROM_0,
    "SOLVER.COSINE_END_LR": FROM_0,
    "SOLVER.LRS": FROM_0,
    "SOLVER.MAX_EPOCH": ABOVE_0,
    "SOLVER.STEPS": FROM_0,
    "SOLVER.WARMUP_EPOCHS": FROM_0,
    "SOLVER.WARMUP_START_LR": FROM_0,
    "SOLVER.WEIGHT_DECAY": FROM_0,
    "TEST.BATCH_SIZE": ABOVE_0,
    "TEST.NUM_ENSEMBLE_VIEWS": ABOVE_0,
    "TRAIN.BATCH_SIZE": ABOVE_0,
    "TRAIN.CHECKPOINT_PERIOD": ABOVE_0,
    "TRAIN.EVAL_PERIOD": ABOVE_0,
    "TRAIN.CHECKPOINT_MINUTES": FROM_0,
    "TRAIN.KEEP_CHECKPOINTS": FROM_0,
    "TRAIN.KEEP_EVERY": FROM_0,
    "TRAIN.MAX_NONFINITE": ABOVE_0,
    "TRAIN.MAX_STEPS": FROM_0,
    "UNIFORMER.ATTENTION_DROPOUT_RATE": SHARE,
    "UNIFORMER.DEPTH": ABOVE_0,
    "UNIFORMER.DROPOUT_RATE": SHARE,
    "UNIFORMER.DROP_DEPTH_RATE": BELOW_1,
    "UNIFORMER.EMBED_DIM": ABOVE_0,
    "UNIFORMER.HEAD_DIM": ABOVE_0,
    "UNIFORMER.HEAD_DROPOUT_RATE": SHARE,
    "UNIFORMER.INIT_VALUE": ABOVE_0,
    "UNIFORMER.LAYER_SCALE": FROM_0,
    "UNIFORMER.MLP_RATIO": ABOVE_0,
    "UNIFORMERV2.BACKBONE_DROP_PATH_RATE": BELOW_1,
    "UNIFORMERV2.CLS_DROPOUT": SHARE,
    "UNIFORMERV2.DROP_PATH_RATE": BELOW_1,
    "UNIFORMERV2.DW_REDUCTION": ABOVE_0,
    "UNIFORMERV2.MLP_DROPOUT": SHARE,
    "UNIFORMERV2.MLP_FACTOR": ABOVE_0,
    "UNIFORMERV2.N_DIM": ABOVE_0,
    "UNIFORMERV2.N_HEAD": ABOVE_0,
    "UNIFORMERV2.N_LAYERS": ABOVE_0,
    "UNIFORMERV2.RETURN_LIST": FROM_0,
    "UNIFORMERV2.TOWER": ABOVE_0,
}

# How many entries a list has.
LENGTHS: dict[str, tuple[int, ...]] = {
    "DATA.INPUT_CHANNEL_NUM": (1,),
    "DATA.TRAIN_JITTER_ASPECT_RELATIVE": (0, 2),
    "DATA.TRAIN_JITTER_SCALES": (2,),
    "DATA.TRAIN_JITTER_SCALES_RELATIVE": (0, 2),
    "MODEL.CHECKPOINT_NUM": (1, 4),
    "UNIFORMER.DEPTH": (4,),
    "UNIFORMER.EMBED_DIM": (4,),
    "UNIFORMER.LAYER_SCALE": (0, 4),
    "UNIFORMER.MLP_RATIO": (4,),
    "UNIFORMER.PRUNE_RATIO": (4,),
    "UNIFORMER.TRADE_OFF": (4,),
    "UNIFORMERV2.TOWER": (5,),
}


def _processes(num_processes: int, num_gpus: int) -> int:
    return num_processes or max(num_gpus, 1)


def _takes_images(dataset: str, name: str) -> bool:
    return CATALOG[dataset].images == name.endswith("_image")


def _whole_patches(size: int, arch: str, backbone: str, tower: Sequence[int]) -> bool:
    """Return whether crops of `size` pixels fit the image ViT, whose name has its patch size: l14, patch16."""
    named = re.search(r"(?:_[bl]|patch)(\d+)", backbone)
    if arch != "uniformerv2" or not (backbone == "custom" or named):
        return True
    return size % (int(named[1]) if named else tower[3]) == 0


# What has to hold between valid values: the keys, a test of their values, and what to do when it fails.
Rule = tuple[tuple[str, ...], Callable[..., bool], str]
TOWER_KEYS = ("MODEL.ARCH", "UNIFORMERV2.BACKBONE", "UNIFORMERV2.TOWER")
WHOLE_PATCHES = "crops must be made of whole patches: multiples of 16 pixels for a B/16, of 14 for an L/14, such as 224"
COMBINATIONS: tuple[Rule, ...] = (
    (
        ("OUTPUT_DIR",),
        lambda folder: folder.strip() not in ("", "None"),
        "a run needs its own folder; set one, or . for the current folder",
    ),
    (
        ("NUM_PROCESSES", "NUM_GPUS"),
        lambda processes, gpus: gpus in (0, _processes(processes, gpus)),
        "every process on GPUs has its own; NUM_PROCESSES 0 starts one per GPU",
    ),
    (
        ("SHARD_ID", "NUM_SHARDS"),
        lambda shard, shards: shard < shards,
        "nodes are numbered from 0 to NUM_SHARDS - 1",
    ),
    (
        ("DATA.MEAN", "DATA.STD", "DATA.INPUT_CHANNEL_NUM"),
        lambda mean, std, channels: len(mean) == len(std) == channels[0],
        "give one mean and one standard deviation per channel",
    ),
    (
        ("DATA.TRAIN_JITTER_SCALES_RELATIVE", "DATA.TRAIN_JITTER_ASPECT_RELATIVE"),
        lambda area, aspect: len(area) == len(aspect) and area == sorted(area) and aspect == sorted(aspect),
        "a random resized crop needs a smallest and a largest value of both; [] and [] turn it off",
    ),
    (
        ("DATA.TRAIN_JITTER_SCALES",),
        lambda scales: scales == sorted(scales),
        "the smallest comes first",
    ),
    (
        ("DATA.IMAGE_TEMPLATE",),
        lambda template: "{" in template,
        "every frame would be the same file; write the place of its number as {:05d}",
    ),
    (
        ("MODEL.MODEL_NAME", "MODEL.ARCH"),
        lambda name, arch: name.lower().startswith("uniformerv2") == (arch == "uniformerv2"),
        "the network is not of that family; MODEL.ARCH is uniformerv2 for Uniformerv2 and uniformer for the others",
    ),
    (
        ("TEST.ENABLE", "TEST.DATASET", "MODEL.MODEL_NAME"),
        lambda test, dataset, name: not test or _takes_images(dataset, name),
        "networks whose name ends in _image need a data set of images (imagenet), the others one of videos",
    ),
    (
        ("TEST.ENABLE", "TEST.DATASET", "TEST.NUM_ENSEMBLE_VIEWS", "TEST.NUM_SPATIAL_CROPS", "TEST.SHUFFLE_FRAMES"),
        lambda test, dataset, *views: not test or not CATALOG[dataset].images or views == (1, 1, False),
        "an image has one view, its centre; set both numbers to 1 and TEST.SHUFFLE_FRAMES False",
    ),
    (
        ("UNIFORMER.EMBED_DIM", "UNIFORMER.HEAD_DIM"),
        lambda widths, head: not any(width % head for width in widths[2:]),
        "the widths of stages 3 and 4 have to be multiples of HEAD_DIM",
    ),
    (
        ("MODEL.USE_CHECKPOINT", "MODEL.CHECKPOINT_NUM", "MODEL.ARCH"),
        lambda use, blocks, arch: not use or arch == "uniformerv2" or len(blocks) == 4,
        "a UniFormer has four stages; give MODEL.CHECKPOINT_NUM one number for each",
    ),
    (
        ("UNIFORMERV2.N_DIM", "UNIFORMERV2.N_HEAD"),
        lambda width, heads: width % heads == 0,
        "the heads have to divide the width",
    ),
    (
        ("UNIFORMERV2.N_DIM", "UNIFORMERV2.DW_REDUCTION"),
        lambda width, reduction: width // reduction >= 1,
        "the local blocks would have no channel inside; lower DW_REDUCTION",
    ),
    (
        ("UNIFORMERV2.BACKBONE", "UNIFORMERV2.TOWER"),
        lambda backbone, tower: backbone != "custom" or (tower[0] % tower[2] == 0 and tower[4] % tower[3] == 0),
        "the heads (third) have to divide the width (first), the patch (fourth) the resolution (last)",
    ),
    (
        ("DATA.TEST_CROP_SIZE", *TOWER_KEYS, "TRAIN.ENABLE", "TEST.ENABLE"),
        lambda size, arch, backbone, tower, train, test: (
            not (train or test) or _whole_patches(size, arch, backbone, tower)  # a training validates
        ),
        WHOLE_PATCHES,
    ),
    (
        ("MODEL.RESET_HEAD", "MODEL.HEAD_ROWS"),
        lambda reset, rows: not (reset and rows),
        "the first starts the classifier anew, the second takes over rows of the old one; leave one of them",
    ),
)
TRAINING_COMBINATIONS: tuple[Rule, ...] = (
    (
        (
            *("MODEL.HEAD_ROWS", "MODEL.ARCH", "TRAIN.CHECKPOINT_FILE_PATH"),
            *("UNIFORMER.PRETRAIN_NAME", "UNIFORMERV2.PRETRAIN"),
        ),
        lambda rows, arch, path, v1, v2: not rows or path or (v2 if arch == "uniformerv2" else v1),
        "no weights have a classifier to take rows from; name them in one of the last three, or set MODEL.HEAD_ROWS ''",
    ),
    (
        ("DATA.TRAIN_CROP_SIZE", *TOWER_KEYS),
        _whole_patches,
        WHOLE_PATCHES,
    ),
    (
        ("TRAIN.DATASET", "MODEL.MODEL_NAME"),
        lambda dataset, name: _takes_images(dataset, name),
        "networks whose name ends in _image need a data set of images (imagenet), the others one of videos",
    ),
    (
        ("TRAIN.BATCH_SIZE", "NUM_PROCESSES", "NUM_GPUS"),
        lambda batch, processes, gpus: batch % _processes(processes, gpus) == 0,
        "every process takes an equal part; make the batch a multiple of the processes (of the GPUs, by default)",
    ),
    (
        ("SOLVER.MAX_EPOCH", "SOLVER.WARMUP_EPOCHS"),
        lambda epochs, warmup: epochs > warmup,
        "the warm-up has to end before the training; raise the first or lower the second",
    ),
    (
        ("SOLVER.WARMUP_EPOCHS", "SOLVER.WARMUP_START_LR", "SOLVER.BASE_LR"),
        lambda warmup, start, base: warmup == 0 or start <= base,
        "a warm-up rises; lower SOLVER.WARMUP_START_LR (the recipes take 1e-6)",
    ),
    (
        ("SOLVER.OPTIMIZING_METHOD", "SOLVER.NESTEROV", "SOLVER.MOMENTUM", "SOLVER.DAMPENING"),
        lambda method, nesterov, momentum, dampening: (
            method != "sgd" or not nesterov or (momentum > 0 and dampening == 0)
        ),
        "Nesterov's momentum needs a momentum and no dampening; set SOLVER.NESTEROV False",
    ),
    (
        ("EMA.ENABLE", "EMA.DECAY"),
        lambda enable, decay: not enable or decay < 1,
        "the average would never move; take a decay below 1, such as 0.9999",
    ),
    (
        ("MIXUP.ENABLE", "MODEL.LOSS_FUNC"),
        lambda mix, loss: not mix or loss == "soft_cross_entropy",
        "mixed labels need MODEL.LOSS_FUNC soft_cross_entropy; set it, or MIXUP.ENABLE False",
    ),
    (
        ("MIXUP.ENABLE", "MIXUP.ALPHA", "MIXUP.CUTMIX_ALPHA"),
        lambda mix, alpha, cutmix_alpha: not mix or alpha + cutmix_alpha > 0,
        "nothing to mix with; raise one of the two, or set MIXUP.ENABLE False",
    ),
    (
        ("SOLVER.LR_POLICY", "SOLVER.STEPS", "SOLVER.LRS"),
        lambda policy, steps, lrs: (
            policy == "cosine" or (len(steps) == len(lrs) and steps[:1] == [0] and steps == sorted(set(steps)))
        ),
        "give increasing epochs, from 0 on, and one factor for each",
    ),
)


class ConfigError(ValueError):
    """All faults of a configuration at once.

    Attributes:
        faults: one sentence each: where, what, and the cure.
    """

    def __init__(self, faults: Sequence[str]) -> None:
        self.faults = list(dict.fromkeys(faults))  # a file reached through two bases is read twice
        super().__init__(self.faults)

    def __str__(self) -> str:
        count = len(self.faults)
        if count == 1:
            return self.faults[0]
        more = f"\n  and {count - 50} more" if count > 50 else ""
        lines = "".join(f"\n  {fault}" for fault in self.faults[:50])
        return f"{count} faults in the configuration:{lines}{more}"


def leaves(node: Mapping[str, Any], prefix: str = "") -> dict[str, Any]:
    """Full dotted key -> value of every value below `node`."""
    flat: dict[str, Any] = {}
    for name, value in node.items():
        flat.update(leaves(value, f"{prefix}{name}.") if isinstance(value, Mapping) else {f"{prefix}{name}": value})
    return flat


DEFAULT_VALUES = leaves(DEFAULTS)


def type_of(key: str) -> Any:
    """Type of the values of `key`: int, float, bool, str, list[...] or a union of them."""
    default = DEFAULT_VALUES[key]
    if key in TYPES:
        return TYPES[key]
    return list[type(default[0])] if isinstance(default, list) else type(default)


def describe(kind: Any) -> str:
    """A type in words."""
    if isinstance(kind, types.UnionType):
        return " or ".join(describe(option) for option in get_args(kind))
    return {
        bool: "True or False",
        int: "a whole number",
        float: "a number",
        str: "a text (in quotes if it looks like a number)",
        types.NoneType: "None",
        list[int]: "a list of whole numbers",
        list[float]: "a list of numbers",
        list[str]: "a list of texts",
        list[list[float]]: "a list of lists of numbers",
    }[kind]


def convert(value: Any, kind: Any) -> Any:
    """Read `value` as `kind`; texts such as "1e-4" (which YAML takes for text), "None" or "[1, 2]" are evaluated.

    A single value stands for a list of one, None for an empty text.

    Raises:
        TypeError: it cannot be read so.
    """
    if isinstance(kind, types.UnionType):
        for option in get_args(kind):
            try:
                return convert(value, option)
            except TypeError:
                continue
        raise TypeError
    if kind is str and value is None:
        return ""
    if isinstance(value, str) and kind is not str:
        value = literal(value)
    if get_origin(kind) is list:
        items = value if isinstance(value, (list, tuple)) else [value]
        return [convert(item, get_args(kind)[0]) for item in items]
    if kind in (int, float):
        # neither infinite, nor not a number, nor an integer beyond any float
        number = isinstance(value, (int, float)) and not isinstance(value, bool) and abs(value) < 1 << 1023
        if number and (kind is float or value == int(value)):
            return kind(value)
    elif isinstance(value, kind):
        return value
    raise TypeError


def literal(text: str) -> Any:
    """The Python value (or YAML's true, false, null) that `text` spells, or `text` itself."""
    try:
        return literal_eval(text)
    except (ValueError, SyntaxError, TypeError, MemoryError, RecursionError):
        return {"true": True, "false": False, "null": None}.get(text.lower(), text)


def obsolete(key: str) -> str | None:
    """Why the official `key` (or section) is ignored, or None when it is not obsolete."""
    fits = (reason for pattern, reason in OBSOLETE.items() if fnmatchcase(key, pattern) or pattern == f"{key}.*")
    return next(fits, None)


def is_key(token: Any) -> bool:
    """Return whether a token of a command line is a key of this package or of the official ones."""
    known = isinstance(token, str) and (token in DEFAULT_VALUES or ("." in token and obsolete(token) is not None))
    return known and token == token.upper()


def unknown(key: str) -> str:
    """What is wrong with a `key` that does not exist, and which one was probably meant."""
    if key in DEFAULTS:
        return f"{key} is a section; write its keys indented below it, or {key}.<KEY> on the command line"
    by_name = {full.upper(): full for full in DEFAULT_VALUES}
    name = key.upper().rpartition(".")[2]
    elsewhere = [full for full in by_name if full.rpartition(".")[2] == name]
    near = elsewhere or difflib.get_close_matches(key.upper(), by_name, n=3, cutoff=0.7)
    near = near or [full for full in by_name if difflib.get_close_matches(name, [full.rpartition(".")[2]], cutoff=0.8)]
    near.sort(key=lambda full: -difflib.SequenceMatcher(None, key.upper(), full).ratio())
    cure = f"did you mean {' or '.join(by_name[full] for full in near[:2])}?" if near else "no key has a similar name"
    return f"unknown key {key}; {cure} (slowfast/config/keys.py lists all)"


def shown(value: Any) -> str:
    """Return the `repr` of a value, shortened for a message."""
    try:
        text = repr(value)
    except ValueError:  # Python converts no integer of more than 4300 digits
        return "a number of thousands of digits"
    return text if len(text) <= 200 else f"{text[:80]} ... {text[-20:]}"


def num_local_processes(cfg: CfgNode) -> int:
    """Processes on each node: NUM_PROCESSES, or one per GPU, or one on the CPU."""
    return _processes(cfg.NUM_PROCESSES, cfg.NUM_GPUS)


def faults_of(cfg: CfgNode, skip: Iterable[str] = ()) -> Iterator[tuple[tuple[str, ...], str]]:
    """Yield (keys, fault and cure) for values outside their bounds and for combinations of others that cannot work.

    Args:
        skip: keys that are known to be faulty.
    """
    values = leaves(cfg)
    faulty = set(skip)

    def single() -> Iterator[tuple[str, str]]:
        for key, choices in {**CHOICES, "TRAIN.DATASET": CATALOG, "TEST.DATASET": CATALOG}.items():
            if not any(fnmatchcase(str(values[key]), str(choice)) for choice in choices):
                yield key, f"has to be one of {', '.join(map(str, choices))}"
        for key, (words, holds) in BOUNDS.items():
            entries = values[key] if isinstance(values[key], list) else [values[key]]
            if not all(entry is None or holds(entry) for entry in entries):
                yield key, f"has to be {words}; the default is {DEFAULT_VALUES[key]!r}"
        for key, lengths in LENGTHS.items():
            if isinstance(values[key], list) and len(values[key]) not in lengths:
                wanted = " or ".join(map(str, lengths))
                yield key, f"has to have {wanted} entries; the default is {DEFAULT_VALUES[key]!r}"
        for key, value in values.items():
            if isinstance(value, str) and (max(map(len, value.encode().split(b"/"))) > 255 or len(value) > 4000):
                yield key, "is longer than a file system allows (255 bytes per name, 4000 per path); shorten it"

    for key, message in single():
        if key not in faulty:
            faulty.add(key)
            yield (key,), f"{key} = {shown(values[key])} {message}"
    for keys, holds, cure in COMBINATIONS + TRAINING_COMBINATIONS * cfg.TRAIN.ENABLE:
        if not faulty.intersection(keys) and not holds(*(values[key] for key in keys)):
            yield keys, f"{', '.join(f'{key} = {shown(values[key])}' for key in keys)}: {cure}"


def check_hardware(cfg: CfgNode) -> None:
    """Refuse a configuration that this machine cannot run; `load_config` works on any machine.

    Raises:
        ConfigError: more GPUs asked for than there are.
    """
    import torch  # takes seconds, which reading and showing a configuration need not

    available = torch.cuda.device_count()
    if available < cfg.NUM_GPUS:
        fewer = f", NUM_GPUS {available} on what there is" if available else ""
        cure = f"NUM_GPUS 0 runs on the CPU{fewer}"
        raise ConfigError([f"NUM_GPUS = {cfg.NUM_GPUS}, but this machine has {available}; {cure}"])
