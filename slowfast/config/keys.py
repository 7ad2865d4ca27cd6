"""Define the table of configuration keys: name, default, accepted values and meaning of each.

Names, meanings and defaults are those of SlowFast and UniFormer, so that their YAML files load. A key with `may_differ`
does not change what is learned, so a resumed run may have another value. docs/CONFIG.md is made from this table.
"""

from __future__ import annotations

import re
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from slowfast.config.values import FLAG, NONE, POSITIVE, RATE, SHARE, TEXT, Kind, integer, number, one_of, several
from slowfast.datasets.catalog import CATALOG


@dataclass(frozen=True)
class Key:
    """A row of the table."""

    name: str  # with its section, such as TRAIN.BATCH_SIZE
    default: Any
    kind: Kind  # the accepted values
    help: str  # meaning and unit
    may_differ: bool = False  # whether a resumed run may have another value


NAME = re.compile(r"\b[A-Z][A-Z0-9_]+(?:\.[A-Z0-9_]+)?")  # what may be a key in a text
KEYS: dict[str, Key] = {}
SECTIONS: dict[str, str] = {}  # name -> title
NUMBERS = several(number(0))


def key(name: str, default: Any, kind: Kind, help: str, *, may_differ: bool = False) -> None:
    """Add a row to the table."""
    KEYS[name] = Key(name, default, kind, help, may_differ)


# fmt: off
SECTIONS[""] = "The run"
key("NUM_GPUS", 1, integer(0),
    "GPUs per node; 0 runs on the CPU.", may_differ=True)
key("NUM_PROCESSES", 0, integer(0),
    "Processes per node; 0 starts one per GPU, or one if NUM_GPUS is 0.", may_differ=True)
key("NUM_SHARDS", 1, integer(1),
    "Nodes of the run.")
key("SHARD_ID", 0, integer(0),
    "Number of this node, from 0 to NUM_SHARDS - 1.", may_differ=True)
key("DIST_BACKEND", "nccl", one_of("nccl", "gloo"),
    "Backend of torch.distributed between GPU processes; processes on the CPU always use gloo.", may_differ=True)
key("DIST_TIMEOUT", 30.0, number(above=0, most=10**6),
    "Minutes without progress (one step, or one batch of a test) after which the job fails.", may_differ=True)
key("OUTPUT_DIR", "output", TEXT,
    "Folder of checkpoints, logs and results, one per run.", may_differ=True)
key("RNG_SEED", 1, number(0, below=2**64, whole=True),
    "Seed of all random numbers.")
key("LOG_PERIOD", 10, integer(1),
    "Optimizer steps between two log lines.", may_differ=True)
key("TRACKERS", [], several(one_of("tensorboard", "wandb", "mlflow", "trackio")),
    "Programs to which curves and test metrics are sent; see docs/REPORT.md.", may_differ=True)

SECTIONS["TRAIN"] = "Training"
key("TRAIN.ENABLE", True, FLAG,
    "Train; if False, only the test runs.", may_differ=True)
key("TRAIN.DATASET", "kinetics", one_of(*CATALOG),
    "How lists and videos of the training and validation set are read: a row of slowfast/datasets/catalog.py.")
key("TRAIN.BATCH_SIZE", 64, integer(1),
    "Videos per node and micro-batch, divided evenly over the node's processes; each gives AUG.NUM_SAMPLE clips.")
key("TRAIN.EVAL_PERIOD", 10, integer(1),
    "Epochs between two validations; the last epoch is always validated.", may_differ=True)
key("TRAIN.PATIENCE", 0, integer(0),
    "End training after this many validations in a row without a better top-1 or mAP; 0 is off. A "
    "larger number, or 0, continues an ended run.", may_differ=True)
key("TRAIN.CHECKPOINT_PERIOD", 10, integer(1),
    "Epochs between two checkpoints; the last epoch and each validated epoch always write one.", may_differ=True)
key("TRAIN.CHECKPOINT_MINUTES", 30.0, number(0),
    "Minutes between two checkpoints within an epoch; 0 writes none.", may_differ=True)
key("TRAIN.KEEP_CHECKPOINTS", 2, integer(0),
    "Number of newest checkpoints to keep, in addition to the best one; 0 keeps all.", may_differ=True)
key("TRAIN.MAX_NONFINITE", 20, integer(1),
    "Stop after this number of steps in a row whose loss or gradient is not finite. Such steps are skipped, and the "
    "batches of the first ones are written to OUTPUT_DIR/nonfinite.", may_differ=True)
key("TRAIN.AUTO_RESUME", True, FLAG,
    "Resume from the checkpoint in OUTPUT_DIR with the most epochs; if False, a checkpoint there is an error.",
    may_differ=True)
key("TRAIN.CHECKPOINT_FILE_PATH", "", TEXT,
    "Weights (path or address) to start from if OUTPUT_DIR has no checkpoint; empty for none.")
key("TRAIN.MIXED_PRECISION", True, FLAG,
    "Use automatic mixed precision in training; validation is in float32.", may_differ=True)
key("TRAIN.AMP_DTYPE", "auto", one_of("auto", "bfloat16", "float16"),
    "Type of mixed precision; auto: bfloat16 if all GPUs have it, else float16; float32 on the CPU.", may_differ=True)
key("TRAIN.MAX_STEPS", 0, integer(0),
    "Stop with a checkpoint after this number of optimizer steps, on the same schedule; 0 is off.", may_differ=True)

SECTIONS["TEST"] = "Test"
key("TEST.ENABLE", True, FLAG,
    "Test after the training, or only test if TRAIN.ENABLE is False.", may_differ=True)
key("TEST.DATASET", "kinetics", one_of(*CATALOG),
    "How lists and videos of the test set are read: a row of slowfast/datasets/catalog.py.", may_differ=True)
key("TEST.BATCH_SIZE", 8, integer(1),
    "Clips per node and step, divided over the node's processes; at least one video per process.", may_differ=True)
key("TEST.CHECKPOINT_FILE_PATH", "", TEXT,
    "Weights (path or address) to test; empty: a checkpoint in OUTPUT_DIR or, if there is none, the weights of "
    "TRAIN.CHECKPOINT_FILE_PATH.", may_differ=True)
key("TEST.TEST_BEST", False, FLAG,
    "Test the best validated checkpoint of OUTPUT_DIR instead of the last one.", may_differ=True)
key("TEST.NUM_ENSEMBLE_VIEWS", 10, integer(1),
    "Clips per video, along time.", may_differ=True)
key("TEST.NUM_SPATIAL_CROPS", 3, one_of(1, 3),
    "Crops per clip: the centre, or start, centre and end of the longer side.", may_differ=True)
key("TEST.ADD_SOFTMAX", None, FLAG | NONE,
    "Add up softmax scores (True) or logits (False) over the views; None as published: logits for UniFormer, softmax "
    "for UniFormerV2. DATA.MULTI_LABEL True adds up sigmoids and requires None.", may_differ=True)
key("TEST.SKIP_BAD", False, FLAG,
    "Leave out videos that cannot be decoded; if False, the test fails and names them.", may_differ=True)
key("TEST.SHUFFLE_FRAMES", False, FLAG,
    "Control experiment: put the frames of each test clip in random order.", may_differ=True)
key("TEST.AMP_DTYPE", "float32", one_of("float32", "bfloat16", "float16"),
    "Number format of the network in a test; float16 needs a GPU, bfloat16 hardware that has it.", may_differ=True)

SECTIONS["DATA"] = "Data"
key("DATA.PATH_TO_DATA_DIR", "", TEXT,
    "Folder of the lists: train.csv, val.csv and test.csv, or those of DATA.LABEL_PATH_TEMPLATE.", may_differ=True)
key("DATA.PATH_PREFIX", "", TEXT,
    "Folder before each path in a list; empty uses the paths unchanged.", may_differ=True)
key("DATA.PATH_LABEL_SEPARATOR", " ", TEXT,
    "Text between the columns of a list; a blank also means several blanks or tabs.")
key("DATA.MULTI_LABEL", False, FLAG,
    "A row may have any number of classes (path 3,17); MODEL.LOSS_FUNC must be bce; the metric is mAP, not top-1.")
key("DATA.LABEL_PATH_TEMPLATE", "somesomev1_rgb_{}_split.txt", TEXT,
    "List of a data set of frame folders; {} is the split. {}.json reads the lists of Something-Something.")
key("DATA.IMAGE_TEMPLATE", "{:05d}.jpg", TEXT,
    "File name of a frame; {} is its number, {folder} the name of its folder.")
key("DATA.DECODING_BACKEND", "pyav", one_of("pyav", "decord", "torchcodec"),
    "Decoder of video files; all give the same frames, pyav is the fastest.", may_differ=True)
key("DATA.CHECK_FILES", True, FLAG,
    "Check before the start that all files of the list exist.", may_differ=True)
key("DATA.MAX_BAD_SHARE", 0.01, SHARE,
    "Stop if more than one video, and more than this share of the list, cannot be decoded.", may_differ=True)
key("DATA.BALANCE", False, FLAG,
    "Draw all classes equally often. An epoch keeps its length, so the videos of rare classes are repeated.")
key("DATA.NUM_FRAMES", 8, integer(1),
    "Frames per clip.")
key("DATA.SAMPLING_RATE", 8, integer(1),
    "Dense sampling: frames of the video per frame of the clip.")
key("DATA.USE_OFFSET_SAMPLING", False, FLAG,
    "Dense sampling in a validation or test: clips begin at whole frames, the last one ends with the video, and a "
    "single one is in the middle; if False, a single one is at the beginning.", may_differ=True)
key("DATA.INPUT_CHANNEL_NUM", [3], several(integer(1), 1),
    "Channels of the input; a list with one number, as in SlowFast, which has one per pathway.")
key("DATA.MEAN", [0.45, 0.45, 0.45], several(number()),
    "Mean of each channel on a scale from 0 to 1, in the order of the network's input.")
key("DATA.STD", [0.225, 0.225, 0.225], several(POSITIVE),
    "Standard deviation of each channel on the same scale.")
key("DATA.REVERSE_INPUT_CHANNEL", False, FLAG,
    "Reverse the channel order; if False, it is that of the released weights: BGR for sth and hmdb, else RGB.")
key("DATA.TRAIN_CROP_SIZE", 224, integer(1),
    "Side of a training crop, pixels.")
key("DATA.TRAIN_JITTER_SCALES", [256, 320], several(integer(1), 2, rising=True),
    "Smallest and largest short side before a training crop, pixels; unused if the relative ranges are given. The "
    "first is also the short side of the frames if a UniFormer is validated, or tested with one crop, on kinetics.")
key("DATA.TRAIN_JITTER_SCALES_RELATIVE", [], several(SHARE, 0, 2, rising=True),
    "Random resized crop: smallest and largest share of the area; [] turns it off.")
key("DATA.TRAIN_JITTER_ASPECT_RELATIVE", [], several(POSITIVE, 0, 2, rising=True),
    "Random resized crop: smallest and largest width / height; [] turns it off.")
key("DATA.RANDOM_FLIP", True, FLAG,
    "Flip half of the training clips horizontally; False if left and right are different classes.")
key("DATA.TEST_CROP_SIZE", 256, integer(1),
    "Side of a validation or test crop, pixels.", may_differ=True)
key("DATA.ENSEMBLE_METHOD", "sum", one_of("sum", "max"),
    "How the scores of the views become the score of a video.", may_differ=True)

SECTIONS["DATA_LOADER"] = "Loading"
key("DATA_LOADER.NUM_WORKERS", 8, integer(0),
    "Workers per process; 0 decodes in the process itself.", may_differ=True)
key("DATA_LOADER.DECODE_TIMEOUT", 60.0, number(0),
    "Seconds to decode a video, after which it counts as broken; 0: no limit and no decoder process. Below 30, the "
    "reason does not name a file system that fails.", may_differ=True)
key("DATA_LOADER.PIN_MEMORY", True, FLAG,
    "Copy batches to page-locked memory, for a faster transfer to a GPU.", may_differ=True)

SECTIONS["AUG"] = "Augmentation of training clips"
key("AUG.ENABLE", False, FLAG,
    "Apply RandAugment, random erasing and repeated augmentation in addition to crop and flip.")
key("AUG.NUM_SAMPLE", 1, integer(1),
    "Augmented clips per training video; the batch of the network is larger by this factor.")
key("AUG.AA_TYPE", "rand-m9-mstd0.5-inc1", TEXT,
    "RandAugment as rand-mM-nN-mstdS-incI: magnitude M (0 to 10), N operations (2), noise S of the magnitude (0), "
    "stronger variants (I is 0 or 1); empty turns it off.")
key("AUG.INTERPOLATION", "bicubic", one_of("bilinear", "bicubic"),
    "Interpolation of RandAugment.")
key("AUG.RE_PROB", 0.25, SHARE,
    "Probability of random erasing.")
key("AUG.RE_MODE", "pixel", one_of("pixel", "rand", "const"),
    "Content of an erased box: noise, one random colour, or the mean colour.")
key("AUG.RE_COUNT", 1, integer(1),
    "Largest number of erased boxes per clip.")

SECTIONS["MIXUP"] = "Mixup and CutMix"
key("MIXUP.ENABLE", False, FLAG,
    "Mix the clips of a batch; it needs MODEL.LOSS_FUNC soft_cross_entropy, or DATA.MULTI_LABEL True.")
key("MIXUP.ALPHA", 0.8, number(0),
    "Parameter of the beta distribution of the mixup weight; 0 turns mixup off.")
key("MIXUP.CUTMIX_ALPHA", 1.0, number(0),
    "Parameter of the beta distribution of the CutMix area; 0 turns CutMix off.")
key("MIXUP.PROB", 1.0, SHARE,
    "Probability that a batch is mixed.")
key("MIXUP.SWITCH_PROB", 0.5, SHARE,
    "Probability of CutMix in a mixed batch if both are on.")
key("MIXUP.LABEL_SMOOTH_VALUE", 0.1, SHARE,
    "Label smoothing: share of the target that is spread over all classes.")

SECTIONS["SOLVER"] = "Optimization"
key("SOLVER.OPTIMIZING_METHOD", "sgd", one_of("sgd", "adam", "adamw", "timm/*"),
    "Optimizer; timm/NAME is one of timm, for example timm/lamb.")
key("SOLVER.BASE_LR", 0.1, number(0),
    "Learning rate after the warm-up.")
key("SOLVER.BASE_LR_SCALE_NUM_SHARDS", False, FLAG,
    "Multiply BASE_LR, COSINE_END_LR and WARMUP_START_LR by NUM_SHARDS.")
key("SOLVER.BACKBONE_LR_RATIO", 1.0, number(0),
    "Factor of the learning rate for all weights but those of the classifier.")
key("SOLVER.LAYER_DECAY", 1.0, number(above=0, most=1),
    "Factor of the learning rate from each block to the one before it; 1 gives all blocks the same.")
key("SOLVER.LR_POLICY", "cosine", one_of("cosine", "steps_with_relative_lrs"),
    "Learning rate over time.")
key("SOLVER.COSINE_END_LR", 0.0, number(0),
    "Learning rate at the end of the cosine.")
key("SOLVER.COSINE_AFTER_WARMUP", False, FLAG,
    "Begin the cosine at the end of the warm-up; if False, at epoch 0.")
key("SOLVER.STEPS", [], NUMBERS,
    "steps_with_relative_lrs: epochs at which the learning rate changes; the first is 0.")
key("SOLVER.LRS", [], NUMBERS,
    "steps_with_relative_lrs: factor of BASE_LR from each of these epochs on.")
key("SOLVER.MAX_EPOCH", 300, integer(1),
    "Length of the training, epochs.")
key("SOLVER.WARMUP_EPOCHS", 0.0, number(0),
    "Length of the linear warm-up, epochs.")
key("SOLVER.WARMUP_START_LR", 0.01, number(0),
    "Learning rate at the start of the warm-up.")
key("SOLVER.ACCUMULATION_STEPS", 1, integer(1),
    "Micro-batches of TRAIN.BATCH_SIZE whose gradients are averaged for one optimizer step.")
key("SOLVER.CLIP_GRADIENT", 20.0, number(0) | NONE,
    "Largest L2 norm of the gradient, which is scaled down to it; 0 or None turns it off.")
key("SOLVER.WEIGHT_DECAY", 1e-4, number(0),
    "Weight decay (L2; decoupled for adamw).")
key("SOLVER.ZERO_WD_1D_PARAM", False, FLAG,
    "Apply no weight decay to one-dimensional parameters (biases, normalization).")
key("SOLVER.MOMENTUM", 0.9, number(),
    "sgd: momentum.")
key("SOLVER.DAMPENING", 0.0, number(),
    "sgd: dampening of the momentum.")
key("SOLVER.NESTEROV", True, FLAG,
    "sgd: Nesterov momentum.")

SECTIONS["DDP"] = "Distributed training"
key("DDP.SHARDING", "none", one_of("none", "zero1"),
    "zero1 divides the state of sgd, adam and adamw among the processes; checkpoints are the same.", may_differ=True)

SECTIONS["BN"] = "Batch normalization"
key("BN.NORM_TYPE", "batchnorm", one_of("batchnorm", "sync_batchnorm"),
    "sync_batchnorm computes the statistics over all processes.")
key("BN.WEIGHT_DECAY", 0.0, number(0),
    "Weight decay of the parameters of BatchNorm.")
key("BN.USE_PRECISE_STATS", False, FLAG,
    "Recompute the statistics on training data after each epoch.")
key("BN.NUM_BATCHES_PRECISE", 200, integer(1),
    "Batches for BN.USE_PRECISE_STATS.")

SECTIONS["EMA"] = "Moving average of the weights"
key("EMA.ENABLE", False, FLAG,
    "Keep an exponential moving average of the weights; both are saved, only the average is validated and tested.")
key("EMA.DECAY", 0.9999, RATE,
    "Share of the old average that is kept at each step.")

SECTIONS["MODEL"] = "Network"
key("MODEL.MODEL_NAME", "Uniformer", TEXT,
    "Network: Uniformer, Uniformer_image, Uniformer_light, Uniformer_light_image, Uniformer_light_fp32, "
    "Uniformer_light_ls_fp32 or Uniformerv2; see MODELS in slowfast/models/build.py.")
key("MODEL.ARCH", "uniformer", one_of("uniformer", "uniformerv2"),
    "Family of the network. It follows from MODEL.MODEL_NAME; another value is ignored with a warning.")
key("MODEL.OPTIONS", [], several(TEXT),
    "Keyword arguments of a network that have no key, each NAME=VALUE, for example [width=64, pool=max].")
key("MODEL.NUM_CLASSES", 400, integer(1),
    "Classes.")
key("MODEL.LOSS_FUNC", "cross_entropy", one_of("cross_entropy", "soft_cross_entropy", "bce", "bce_logit"),
    "Loss. soft_cross_entropy smooths the labels by MIXUP.LABEL_SMOOTH_VALUE, with or without mixup; bce and "
    "bce_logit use one sigmoid per class.")
key("MODEL.CLASS_WEIGHTS", "none", one_of("none", "balanced"),
    "Factors of the loss; balanced: mean number of training videos of a class / number of videos of this class.")
key("MODEL.COMPILE", False, FLAG,
    "Compile the blocks of the network: the first step takes half a minute, later steps are faster.", may_differ=True)
key("MODEL.USE_CHECKPOINT", False, FLAG,
    "Save memory: recompute activations of the blocks of MODEL.CHECKPOINT_NUM in the backward pass.", may_differ=True)
key("MODEL.CHECKPOINT_NUM", [0, 0, 0, 0], several(integer(0), 1, 4),
    "Blocks to recompute: one number per stage (UniFormer), or one for the image ViT (UniFormerV2).", may_differ=True)
key("MODEL.CHECKPOINT_KEEP", "nothing", one_of("nothing", "products"),
    "Results that recomputed blocks keep; products: those of matrix products and attention, which saves time.",
    may_differ=True)
key("MODEL.RESET_HEAD", False, FLAG,
    "Start with a new classifier instead of the loaded one.")
key("MODEL.HEAD_ROWS", "", TEXT,
    "Rows of a trained classifier to keep. names: by the class names in the checkpoint; in training, other classes get "
    "new rows. Otherwise a file with the class names of the checkpoint, one per line, or with one row number per "
    "class.")
key("MODEL.CLASS_ORDER", "auto", TEXT,
    "Order of the rows of a loaded classifier, which are brought into the order of the list's class names: auto (known "
    "for released weights, else by network, number of classes and data set), sorted (by class name), released (that "
    "of the authors), or a file with the class name of each row.")
key("MODEL.FROZEN_BN", False, FLAG,
    "Keep the running statistics of BatchNorm in training.")

SECTIONS["UNIFORMER"] = "UniFormer"
key("UNIFORMER.DEPTH", [3, 4, 8, 3], several(integer(1), 4),
    "Blocks of each stage.")
key("UNIFORMER.EMBED_DIM", [64, 128, 320, 512], several(integer(1), 4),
    "Channels of each stage.")
key("UNIFORMER.HEAD_DIM", 64, integer(1),
    "Channels of an attention head (stages 3 and 4).")
key("UNIFORMER.MLP_RATIO", 4.0, POSITIVE | several(POSITIVE, 4),
    "Ratio of hidden to input channels in the feed-forward layers; one number, or one per stage.")
key("UNIFORMER.QKV_BIAS", True, FLAG,
    "Add a bias to the projections to queries, keys and values.")
key("UNIFORMER.QKV_SCALE", None, number() | NONE,
    "Factor of the attention logits; None for HEAD_DIM ** -0.5.")
key("UNIFORMER.REPRESENTATION_SIZE", None, integer() | NONE,
    "Width of a layer before the classifier; no released model has one, so it must be None.")
key("UNIFORMER.SPLIT", False, FLAG,
    "Attend over time, then over space, in stages 3 and 4.")
key("UNIFORMER.STD", False, FLAG,
    "Let the patch embeddings of stages 2 to 4 overlap in time.")
key("UNIFORMER.OVERLAPPED_STEM", False, FLAG,
    "Use overlapping convolutions with BatchNorm as patch embeddings (the image models plus).")
key("UNIFORMER.LAYER_SCALE", [], several(number(0), 0, 4),
    "Initial value of layer scale in each stage, 0 for none; [] for none at all.")
key("UNIFORMER.AUX_HEAD", False, FLAG,
    "Add a classifier of each position, whose maximum counts half (image models of token labelling).")
key("UNIFORMER.DROPOUT_RATE", 0.0, SHARE,
    "Dropout rate of projections and feed-forward layers.")
key("UNIFORMER.ATTENTION_DROPOUT_RATE", 0.0, SHARE,
    "Dropout rate of attention weights.")
key("UNIFORMER.DROP_DEPTH_RATE", 0.1, RATE,
    "Drop-path rate of the last block; it grows linearly from 0 at the first block.")
key("UNIFORMER.HEAD_DROPOUT_RATE", 0.0, SHARE,
    "Dropout rate before the classifier.")
key("UNIFORMER.PRETRAIN_NAME", "", TEXT,
    "Weights to start from: a name of released weights, a path or an address; empty for none. A classifier with "
    "another number of classes is left out.")
key("UNIFORMER.PRUNE_RATIO", [[], [], [1.0, *[0.5] * 7], [0.5] * 3], several(NUMBERS, 4),
    "Light networks: share of tokens that each block of each stage keeps; [] for a stage without pruning.")
key("UNIFORMER.TRADE_OFF", [[], [], [1.0, *[0.5] * 7], [0.5] * 3], several(NUMBERS, 4),
    "Light networks: weight of a block's own token scores in the running average, in the layout of PRUNE_RATIO.")
key("UNIFORMER.INIT_VALUE", 0.1, POSITIVE,
    "Light networks with layer scale: its initial value.")

SECTIONS["UNIFORMERV2"] = "UniFormerV2"
key("UNIFORMERV2.BACKBONE", "uniformerv2_b16", TEXT,
    "Image ViT: uniformerv2_b16, uniformerv2_l14, uniformerv2_l14_336 (those of CLIP), timm/NAME (a plain ViT of timm, "
    "for example timm/vit_base_patch16_224.dino, started from UNIFORMERV2.PRETRAIN) or custom (UNIFORMERV2.TOWER).")
key("UNIFORMERV2.TOWER", [768, 12, 12, 16, 224], several(integer(1), 5),
    "Width, layers, heads, patch size and resolution (pixels) of a custom image ViT.")
key("UNIFORMERV2.N_LAYERS", 4, integer(1),
    "Global blocks.")
key("UNIFORMERV2.N_DIM", 768, integer(1),
    "Channels of the global blocks: those of the image ViT.")
key("UNIFORMERV2.N_HEAD", 12, integer(1),
    "Attention heads of the global blocks.")
key("UNIFORMERV2.MLP_FACTOR", 4.0, POSITIVE,
    "Ratio of hidden to input channels in the feed-forward layers of the global blocks.")
key("UNIFORMERV2.BACKBONE_DROP_PATH_RATE", 0.0, RATE,
    "Drop-path rate of the last block of the image ViT; it grows linearly from 0 at the first block.")
key("UNIFORMERV2.DROP_PATH_RATE", 0.0, RATE,
    "Drop-path rate of the last global block; it grows linearly from 0 at the first block.")
key("UNIFORMERV2.MLP_DROPOUT", [0.5, 0.5, 0.5, 0.5], SHARE | several(SHARE),
    "Dropout rate in the feed-forward layers of the global blocks; one number, or one per block.")
key("UNIFORMERV2.CLS_DROPOUT", 0.5, SHARE,
    "Dropout rate before the classifier.")
key("UNIFORMERV2.RETURN_LIST", [8, 9, 10, 11], several(integer(0)),
    "Blocks of the image ViT, from 0, whose output goes to a global block.")
key("UNIFORMERV2.TEMPORAL_DOWNSAMPLE", True, FLAG,
    "Halve the number of frames in the stem.")
key("UNIFORMERV2.DW_REDUCTION", 1.5, POSITIVE,
    "Ratio of input to inner channels in the local blocks.")
key("UNIFORMERV2.NO_LMHRA", False, FLAG,
    "Leave out the local blocks.")
key("UNIFORMERV2.DOUBLE_LMHRA", True, FLAG,
    "Add local blocks before both the attention and the feed-forward layer; if False, only before the attention.")
key("UNIFORMERV2.PRETRAIN", "", TEXT,
    "Weights to start from: a name of released weights, a path or an address; empty for those of CLIP, or none if "
    "BACKBONE is timm/NAME or custom.")
key("UNIFORMERV2.DELETE_SPECIAL_HEAD", False, FLAG,
    "Leave out the classifier of UNIFORMERV2.PRETRAIN if its number of classes differs; if False, the rows of "
    "Kinetics-400, 600 or 700 are selected from Kinetics-710, and other classes require MODEL.HEAD_ROWS.")
key("UNIFORMERV2.FROZEN", False, FLAG,
    "Train only the global blocks and the classifier.")

SECTIONS["TENSORBOARD"] = "TensorBoard"
key("TENSORBOARD.ENABLE", False, FLAG,
    "Official key; True is the same as tensorboard in TRACKERS.", may_differ=True)
key("TENSORBOARD.LOG_DIR", "", TEXT,
    "Folder of the files of TensorBoard, relative to OUTPUT_DIR; empty for tensorboard.", may_differ=True)
# fmt: on

DEFAULT_VALUES = {name: row.default for name, row in KEYS.items()}
# Keys and sections that do not change the scores of a trained network; their values may need a module of another user.
# Of MODEL.LOSS_FUNC, a prediction needs only whether it begins with bce: then probabilities are sigmoids of the scores.
ONLY_TRAINING = ("TRAIN", "SOLVER", "MIXUP", "AUG", "DDP", "EMA", "TRACKERS", "MODEL.LOSS_FUNC")
MAY_DIFFER = tuple(name for name, row in KEYS.items() if row.may_differ)


def leaves(node: Mapping[str, Any], prefix: str = "") -> dict[str, Any]:
    """Return full key -> value of all values below a node."""
    flat: dict[str, Any] = {}
    for name, value in node.items():
        flat.update(leaves(value, f"{prefix}{name}.") if isinstance(value, Mapping) else {f"{prefix}{name}": value})
    return flat
