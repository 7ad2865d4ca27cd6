"""Every configuration key: its meaning and unit above it, its default beside it; below, the old official keys.

Names, meanings and defaults are those of SlowFast and UniFormer, so their YAML files load. A key's type is that of its
default unless `TYPES` says otherwise: whole numbers are welcome where the default is a float (and 8.0 where it is an
int), tuples where it is a list, and one value where it is a list of one.
"""

from __future__ import annotations

from typing import Any

from fvcore.common.config import CfgNode

_C = CfgNode()

# GPUs on this node; 0 runs on the CPU.
_C.NUM_GPUS = 1
# Processes on this node; 0 = one per GPU, or one when NUM_GPUS is 0.
_C.NUM_PROCESSES = 0
# Nodes of the whole run.
_C.NUM_SHARDS = 1
# Which node this is, 0 .. NUM_SHARDS - 1.
_C.SHARD_ID = 0
# Backend of torch.distributed between GPU processes: nccl | gloo (processes on the CPU always use gloo).
_C.DIST_BACKEND = "nccl"
# Minutes that a process may make no progress (one step, one batch of a test) before the whole job is ended.
_C.DIST_TIMEOUT = 30.0
# Folder of checkpoints, logs and results; one run, one folder.
_C.OUTPUT_DIR = "output"
# Seed of every random draw.
_C.RNG_SEED = 1
# Optimizer steps between two log lines.
_C.LOG_PERIOD = 10

# ---- Training -------------------------------------------------------------------------------------------------------
_C.TRAIN = CfgNode()
# Train; False goes straight to the test.
_C.TRAIN.ENABLE = True
# Row of slowfast/datasets/catalog.py: how lists and videos of the training and validation set are read.
_C.TRAIN.DATASET = "kinetics"
# Videos per node and micro-batch, split evenly over its processes; each gives AUG.NUM_SAMPLE clips.
_C.TRAIN.BATCH_SIZE = 64
# Epochs between two validations (the last epoch is always validated).
_C.TRAIN.EVAL_PERIOD = 10
# Epochs between two checkpoints (the last epoch, and every validated one, always leaves one).
_C.TRAIN.CHECKPOINT_PERIOD = 10
# Minutes between two checkpoints within epochs; 0 = none.
_C.TRAIN.CHECKPOINT_MINUTES = 30.0
# Newest checkpoints kept besides the best one; 0 = all.
_C.TRAIN.KEEP_CHECKPOINTS = 2
# Also keep those of every so many epochs; 0 = none.
_C.TRAIN.KEEP_EVERY = 0
# When a checkpoint cannot be written (disk full, folder gone): continue | stop; the last one is always an error.
_C.TRAIN.ON_SAVE_ERROR = "continue"
# When loss or gradient is not a finite number, the batch is written to OUTPUT_DIR/nonfinite; then: skip (the step
# changes nothing) | stop.
_C.TRAIN.NONFINITE = "skip"
# Stop after so many such steps in a row.
_C.TRAIN.MAX_NONFINITE = 20
# Go on from the newest checkpoint in OUTPUT_DIR; False refuses a folder that holds one.
_C.TRAIN.AUTO_RESUME = True
# Weights (path or address) to start from when OUTPUT_DIR holds no checkpoint; "" = none.
_C.TRAIN.CHECKPOINT_FILE_PATH = ""
# Automatic mixed precision in training (evaluation is float32).
_C.TRAIN.MIXED_PRECISION = True
# Its number format: auto (bfloat16 where the GPU has it, else float16) | bfloat16 | float16; a CPU never uses it.
_C.TRAIN.AMP_DTYPE = "auto"
# Stop, with a checkpoint, after this many optimizer steps in total; the schedule does not change; 0 = off.
_C.TRAIN.MAX_STEPS = 0

# ---- Test -----------------------------------------------------------------------------------------------------------
_C.TEST = CfgNode()
# Test after training, or alone with TRAIN.ENABLE False.
_C.TEST.ENABLE = True
# Row of slowfast/datasets/catalog.py for the test set.
_C.TEST.DATASET = "kinetics"
# Clips per node and step, split over its processes (at least one video each, whose views are computed together).
_C.TEST.BATCH_SIZE = 8
# Weights (path or address) to test; "" = those of OUTPUT_DIR, or else TRAIN.CHECKPOINT_FILE_PATH.
_C.TEST.CHECKPOINT_FILE_PATH = ""
# Test the best validated checkpoint of OUTPUT_DIR instead of the last one.
_C.TEST.TEST_BEST = False
# Clips of a video along time.
_C.TEST.NUM_ENSEMBLE_VIEWS = 10
# Crops of a clip: 1 (centre) | 3 (start, centre and end of the longer side).
_C.TEST.NUM_SPATIAL_CROPS = 3
# Sum softmax scores (True) or logits (False) over views; None = as MODEL.ARCH was published: uniformer logits,
# uniformerv2 softmax.
_C.TEST.ADD_SOFTMAX = None
# Accept a test that had to leave out undecodable videos; False ends it with an error that names them.
_C.TEST.SKIP_BAD = False
# Control experiment: the frames of every test clip in random order.
_C.TEST.SHUFFLE_FRAMES = False

# ---- Data -----------------------------------------------------------------------------------------------------------
_C.DATA = CfgNode()
# Folder of the lists: train.csv, val.csv and test.csv, or those of DATA.LABEL_PATH_TEMPLATE.
_C.DATA.PATH_TO_DATA_DIR = ""
# Folder in front of every path in a list; "" = paths are used unchanged.
_C.DATA.PATH_PREFIX = ""
# Text between the columns of a list.
_C.DATA.PATH_LABEL_SEPARATOR = " "
# List file of data sets made of frame folders; {} becomes the split; {}.json reads Something-Something's own lists.
_C.DATA.LABEL_PATH_TEMPLATE = "somesomev1_rgb_{}_split.txt"
# File name of a frame; {} becomes its number.
_C.DATA.IMAGE_TEMPLATE = "{:05d}.jpg"
# Decoder of video files, with the same frames from each: pyav (fastest) | decord | torchcodec.
_C.DATA.DECODING_BACKEND = "pyav"
# Count missing files over the whole list before starting.
_C.DATA.CHECK_FILES = True
# Training stops when more than this share (0 .. 1) of the videos, and more than one, cannot be decoded.
_C.DATA.MAX_BAD_SHARE = 0.01
# Frames of a clip.
_C.DATA.NUM_FRAMES = 8
# Dense sampling: frames of the video per frame of the clip.
_C.DATA.SAMPLING_RATE = 8
# Dense sampling in a test: first frames on whole numbers, the last view ending at the video's end.
_C.DATA.USE_OFFSET_SAMPLING = False
# Channels of the input; a list for the official pathways, of which there is one.
_C.DATA.INPUT_CHANNEL_NUM = [3]
# Mean of every channel, in the order the network sees them, on a scale of 0 .. 1.
_C.DATA.MEAN = [0.45, 0.45, 0.45]
# Standard deviation of every channel, in the same order, on a scale of 0 .. 1.
_C.DATA.STD = [0.225, 0.225, 0.225]
# Turn round the channel order of the data set (catalog.py: RGB, but BGR for sth and hmdb, as released weights expect).
_C.DATA.REVERSE_INPUT_CHANNEL = False
# Side of a training crop, pixels.
_C.DATA.TRAIN_CROP_SIZE = 224
# Smallest and largest short side before a training crop, pixels, unused when the two relative ranges are given; the
# first is also the short side of a kinetics test of a UniFormer with one crop.
_C.DATA.TRAIN_JITTER_SCALES = [256, 320]
# Random resized crop: smallest and largest share of the area; [] = off.
_C.DATA.TRAIN_JITTER_SCALES_RELATIVE = []
# Random resized crop: smallest and largest width / height; [] = off.
_C.DATA.TRAIN_JITTER_ASPECT_RELATIVE = []
# Flip half of the training clips horizontally; False where left and right matter.
_C.DATA.RANDOM_FLIP = True
# Side of a validation or test crop, pixels.
_C.DATA.TEST_CROP_SIZE = 256
# Views of a video become one score by: sum | max.
_C.DATA.ENSEMBLE_METHOD = "sum"

_C.DATA_LOADER = CfgNode()
# Loader processes per process; 0 decodes in the process itself.
_C.DATA_LOADER.NUM_WORKERS = 8
# Seconds until a video that is still not decoded counts as broken; 0 = no limit, the worker itself decodes.
_C.DATA_LOADER.DECODE_TIMEOUT = 60.0
# Copy batches into page-locked memory (faster transfer to a GPU).
_C.DATA_LOADER.PIN_MEMORY = True

# ---- Augmentation of training clips ---------------------------------------------------------------------------------
_C.AUG = CfgNode()
# RandAugment, random erasing and several copies of a clip; False leaves crop and flip.
_C.AUG.ENABLE = False
# Augmented copies of each training clip; the batch that reaches the network is this many times larger.
_C.AUG.NUM_SAMPLE = 1
# RandAugment: rand-m<magnitude 0..10>-n<operations>-mstd<noise>-inc<0|1: stronger variants>; "" = off.
_C.AUG.AA_TYPE = "rand-m9-mstd0.5-inc1"
# Resampling of RandAugment: bilinear | bicubic.
_C.AUG.INTERPOLATION = "bicubic"
# Probability of random erasing.
_C.AUG.RE_PROB = 0.25
# Filling of an erased box: pixel (noise) | rand (one colour) | const (mean colour).
_C.AUG.RE_MODE = "pixel"
# Erased boxes per clip.
_C.AUG.RE_COUNT = 1

# Mixed clips and soft labels; needs MODEL.LOSS_FUNC soft_cross_entropy.
_C.MIXUP = CfgNode()
# Mix.
_C.MIXUP.ENABLE = False
# Beta distribution of the mixup weight; 0 = no mixup.
_C.MIXUP.ALPHA = 0.8
# Beta distribution of the CutMix area; 0 = no CutMix.
_C.MIXUP.CUTMIX_ALPHA = 1.0
# Probability that a batch is mixed.
_C.MIXUP.PROB = 1.0
# Probability of CutMix in a mixed batch when both are on.
_C.MIXUP.SWITCH_PROB = 0.5
# Label smoothing: share of the target spread over all classes.
_C.MIXUP.LABEL_SMOOTH_VALUE = 0.1

# ---- Optimisation ---------------------------------------------------------------------------------------------------
_C.SOLVER = CfgNode()
# Optimizer: sgd | adam | adamw | timm/<name of an optimizer of timm>, such as timm/lamb.
_C.SOLVER.OPTIMIZING_METHOD = "sgd"
# Learning rate after the warm-up.
_C.SOLVER.BASE_LR = 0.1
# Multiply BASE_LR, COSINE_END_LR and WARMUP_START_LR by NUM_SHARDS.
_C.SOLVER.BASE_LR_SCALE_NUM_SHARDS = False
# Factor of the learning rate for everything but the head.
_C.SOLVER.BACKBONE_LR_RATIO = 1.0
# Learning rate over time: cosine | steps_with_relative_lrs.
_C.SOLVER.LR_POLICY = "cosine"
# Learning rate at the end of the cosine.
_C.SOLVER.COSINE_END_LR = 0.0
# Let the cosine begin when the warm-up ends instead of at epoch 0.
_C.SOLVER.COSINE_AFTER_WARMUP = False
# steps_with_relative_lrs: epochs at which the learning rate changes; the first is 0.
_C.SOLVER.STEPS = []
# steps_with_relative_lrs: factors of BASE_LR from each of those epochs on.
_C.SOLVER.LRS = []
# Length of the training, epochs.
_C.SOLVER.MAX_EPOCH = 300
# Length of the linear warm-up, epochs.
_C.SOLVER.WARMUP_EPOCHS = 0.0
# Learning rate at its start.
_C.SOLVER.WARMUP_START_LR = 0.01
# Micro-batches (of TRAIN.BATCH_SIZE) whose gradients are averaged into one optimizer step.
_C.SOLVER.ACCUMULATION_STEPS = 1
# Largest L2 norm of the gradient; larger ones are scaled down; 0 or None = off.
_C.SOLVER.CLIP_GRADIENT = 20.0
# Weight decay (L2; decoupled in adamw).
_C.SOLVER.WEIGHT_DECAY = 1e-4
# No weight decay for one-dimensional parameters (biases, normalization).
_C.SOLVER.ZERO_WD_1D_PARAM = False
# sgd: momentum.
_C.SOLVER.MOMENTUM = 0.9
# sgd: dampening of the momentum.
_C.SOLVER.DAMPENING = 0.0
# sgd: Nesterov momentum.
_C.SOLVER.NESTEROV = True

_C.BN = CfgNode()
# Normalization layers: batchnorm | sync_batchnorm (statistics over all processes).
_C.BN.NORM_TYPE = "batchnorm"
# Weight decay of BatchNorm parameters.
_C.BN.WEIGHT_DECAY = 0.0
# Recompute the BatchNorm statistics on training data after every epoch.
_C.BN.USE_PRECISE_STATS = False
# Batches for that.
_C.BN.NUM_BATCHES_PRECISE = 200

# Exponential moving average of the weights: validated and tested in their place, saved beside them.
_C.EMA = CfgNode()
# Keep one.
_C.EMA.ENABLE = False
# Share of the old average kept at each step.
_C.EMA.DECAY = 0.9999

# ---- Networks -------------------------------------------------------------------------------------------------------
_C.MODEL = CfgNode()
# Network; slowfast/models/build.py lists them.
_C.MODEL.MODEL_NAME = "Uniformer"
# Its family: uniformer | uniformerv2.
_C.MODEL.ARCH = "uniformer"
# Keyword arguments of a network without a section of its own, each NAME=VALUE, such as [width=64, pool=max].
_C.MODEL.OPTIONS = []
# Classes of the head.
_C.MODEL.NUM_CLASSES = 400
# Loss: cross_entropy | soft_cross_entropy (labels smoothed by MIXUP.LABEL_SMOOTH_VALUE, with or without mixup) | bce or
# bce_logit (one sigmoid per class).
_C.MODEL.LOSS_FUNC = "cross_entropy"
# Recompute activations in the backward pass, to save memory, in the blocks that MODEL.CHECKPOINT_NUM counts.
_C.MODEL.USE_CHECKPOINT = False
# Blocks to recompute: one number per stage (UniFormer), or one for the whole backbone (UniFormerV2).
_C.MODEL.CHECKPOINT_NUM = [0, 0, 0, 0]
# Start a new classifier instead of the loaded one, whatever its classes are.
_C.MODEL.RESET_HEAD = False
# Rows of a trained classifier to keep: "" | names (by the class names in the checkpoint; in training, other classes get
# new rows) | a file with the class names of a checkpoint that contains none, one per line | a file with one row number
# per class.
_C.MODEL.HEAD_ROWS = ""
# Order of the rows of a loaded classifier, which are put into the order of the list's class names: auto (known for
# released weights, else by network, number of classes and data set) | sorted (by class name) | released (the authors'
# order) | a file with the class name of each row.
_C.MODEL.CLASS_ORDER = "auto"
# BatchNorm keeps its running statistics in training.
_C.MODEL.FROZEN_BN = False

_C.UNIFORMER = CfgNode()
# Blocks of each of the four stages.
_C.UNIFORMER.DEPTH = [3, 4, 8, 3]
# Channels of each stage.
_C.UNIFORMER.EMBED_DIM = [64, 128, 320, 512]
# Channels of one attention head (stages 3 and 4).
_C.UNIFORMER.HEAD_DIM = 64
# Hidden over input channels of the feed-forward layers; one number, or one per stage.
_C.UNIFORMER.MLP_RATIO = 4.0
# Bias of the query, key and value projections.
_C.UNIFORMER.QKV_BIAS = True
# Factor of the attention logits; None = HEAD_DIM ** -0.5.
_C.UNIFORMER.QKV_SCALE = None
# Width of a layer between features and head; None = no such layer.
_C.UNIFORMER.REPRESENTATION_SIZE = None
# Attend over time, then over space, in stages 3 and 4.
_C.UNIFORMER.SPLIT = False
# Patch embeddings of stages 2 to 4 that also see neighbouring frames.
_C.UNIFORMER.STD = False
# Patch embeddings of overlapping convolutions with BatchNorm (the image models "plus").
_C.UNIFORMER.OVERLAPPED_STEM = False
# Layer scale: its initial value in each stage, 0 = none there; [] = none at all.
_C.UNIFORMER.LAYER_SCALE = []
# A second classifier, of every position, whose maximum counts half (image models of token labelling).
_C.UNIFORMER.AUX_HEAD = False
# Dropout rate of projections and feed-forward layers.
_C.UNIFORMER.DROPOUT_RATE = 0.0
# Dropout rate of attention weights.
_C.UNIFORMER.ATTENTION_DROPOUT_RATE = 0.0
# Drop-path rate of the last block; grows linearly from 0 at the first.
_C.UNIFORMER.DROP_DEPTH_RATE = 0.1
# Dropout rate before the head.
_C.UNIFORMER.HEAD_DROPOUT_RATE = 0.0
# Weights to start from: pretrained/<name>.pth, or a path; "" = none. A classifier of other classes is left out.
_C.UNIFORMER.PRETRAIN_NAME = ""
# Light networks: share of tokens kept by each block of each stage ([] = stage without pruning).
_C.UNIFORMER.PRUNE_RATIO = [[], [], [1.0, 0.5, 0.5, 0.5, 0.5, 0.5, 0.5, 0.5], [0.5, 0.5, 0.5]]
# Light networks: weight of a block's own token scores in the running average, same layout.
_C.UNIFORMER.TRADE_OFF = [[], [], [1.0, 0.5, 0.5, 0.5, 0.5, 0.5, 0.5, 0.5], [0.5, 0.5, 0.5]]
# Light networks with layer scale: its initial value.
_C.UNIFORMER.INIT_VALUE = 0.1

_C.UNIFORMERV2 = CfgNode()
# Image ViT: uniformerv2_b16 | uniformerv2_l14 | uniformerv2_l14_336 (CLIP's towers) | timm/<name> (a plain ViT of timm,
# such as timm/vit_base_patch16_224.dino, that starts from UNIFORMERV2.PRETRAIN) | custom (of UNIFORMERV2.TOWER).
_C.UNIFORMERV2.BACKBONE = "uniformerv2_b16"
# Width, layers, heads, patch size and resolution (pixels) of a custom image ViT.
_C.UNIFORMERV2.TOWER = [768, 12, 12, 16, 224]
# Global blocks on top of it.
_C.UNIFORMERV2.N_LAYERS = 4
# Channels of the global blocks.
_C.UNIFORMERV2.N_DIM = 768
# Attention heads of the global blocks.
_C.UNIFORMERV2.N_HEAD = 12
# Hidden over input channels of their feed-forward layers.
_C.UNIFORMERV2.MLP_FACTOR = 4.0
# Drop-path rate of the last backbone block; grows linearly from 0.
_C.UNIFORMERV2.BACKBONE_DROP_PATH_RATE = 0.0
# Drop-path rate of the last global block; grows linearly from 0.
_C.UNIFORMERV2.DROP_PATH_RATE = 0.0
# Dropout rate in the feed-forward layers of the global blocks; one number, or one per block.
_C.UNIFORMERV2.MLP_DROPOUT = [0.5, 0.5, 0.5, 0.5]
# Dropout rate before the head.
_C.UNIFORMERV2.CLS_DROPOUT = 0.5
# Backbone blocks (from 0) whose output feeds a global block.
_C.UNIFORMERV2.RETURN_LIST = [8, 9, 10, 11]
# Halve the number of frames in the stem.
_C.UNIFORMERV2.TEMPORAL_DOWNSAMPLE = True
# Input over inner channels of the local blocks.
_C.UNIFORMERV2.DW_REDUCTION = 1.5
# Leave the local blocks out.
_C.UNIFORMERV2.NO_LMHRA = False
# Local blocks before both the attention and the feed-forward layer; False = only before the attention.
_C.UNIFORMERV2.DOUBLE_LMHRA = True
# Weights to start from: a name or path; "" = those of CLIP, and none for timm/<name> or a custom tower.
_C.UNIFORMERV2.PRETRAIN = ""
# Drop the classifier of those weights when its number of classes differs; False selects the rows of Kinetics-400, 600
# and 700 from Kinetics-710, and requires MODEL.HEAD_ROWS otherwise.
_C.UNIFORMERV2.DELETE_SPECIAL_HEAD = False
# Train only the global blocks and the classifier.
_C.UNIFORMERV2.FROZEN = False

# ---- TensorBoard ----------------------------------------------------------------------------------------------------
_C.TENSORBOARD = CfgNode()
# Write training and validation curves for TensorBoard.
_C.TENSORBOARD.ENABLE = False
# Folder of its files, relative to OUTPUT_DIR; "" = tensorboard.
_C.TENSORBOARD.LOG_DIR = ""

DEFAULTS = _C

# Types of the keys whose default does not show them.
TYPES: dict[str, Any] = {
    "DATA.TRAIN_JITTER_ASPECT_RELATIVE": list[float],
    "DATA.TRAIN_JITTER_SCALES_RELATIVE": list[float],
    "MODEL.OPTIONS": list[str],
    "SOLVER.CLIP_GRADIENT": float | None,
    "SOLVER.LRS": list[float],
    "SOLVER.STEPS": list[float],
    "TEST.ADD_SOFTMAX": bool | None,
    "UNIFORMER.LAYER_SCALE": list[float],
    "UNIFORMER.MLP_RATIO": float | list[float],
    "UNIFORMER.PRUNE_RATIO": list[list[float]],
    "UNIFORMER.QKV_SCALE": float | None,
    "UNIFORMER.REPRESENTATION_SIZE": int | None,
    "UNIFORMER.TRADE_OFF": list[list[float]],
    "UNIFORMERV2.MLP_DROPOUT": float | list[float],
}

# Official keys (patterns) that are accepted and ignored, with what replaces them; the first fitting pattern counts.
NOT_HERE = "no such network, task or tool in this package"
OBSOLETE: dict[str, str] = {
    "MODEL.ACT_CHECKPOINT": "use MODEL.USE_CHECKPOINT and MODEL.CHECKPOINT_NUM",
    "MODEL.DROPOUT_RATE": "use UNIFORMER.DROPOUT_RATE, UNIFORMER.HEAD_DROPOUT_RATE or UNIFORMERV2.CLS_DROPOUT",
    "MODEL.DROPCONNECT_RATE": "use UNIFORMER.DROP_DEPTH_RATE or UNIFORMERV2.DROP_PATH_RATE",
    "MODEL.HEAD_ACT": "networks return logits; see TEST.ADD_SOFTMAX",
    "MODEL.FC_INIT_STD": "each network has its own initial values",
    "MODEL.*PATHWAY_ARCH": "every network here has one pathway",
    "MODEL.DETACH_FINAL_FC": NOT_HERE,
    "UNIFORMER.STAGE_TYPE": "stages 1 and 2 are local, 3 and 4 global",
    "TRAIN.SAVE_LATEST": "use TRAIN.CHECKPOINT_PERIOD and TRAIN.KEEP_CHECKPOINTS",
    "TRAIN.CHECKPOINT_TYPE": "only PyTorch checkpoints are read",
    "TRAIN.CHECKPOINT_CLEAR_NAME_PATTERN": "known prefixes of weight names are removed by themselves",
    "TRAIN.CHECKPOINT_EPOCH_RESET": "TRAIN.CHECKPOINT_FILE_PATH gives weights only; see TRAIN.AUTO_RESUME",
    "TRAIN.CHECKPOINT_INFLATE": "2D kernels are recognized and inflated by themselves",
    "TRAIN.CHECKPOINT_IN_INIT": "use TRAIN.CHECKPOINT_FILE_PATH",
    "TRAIN.KILL_LOSS_EXPLOSION_FACTOR": "use TRAIN.NONFINITE and TRAIN.MAX_NONFINITE",
    "TEST.SAVE_RESULTS_PATH": "results are always written to OUTPUT_DIR/test",
    "TEST.CHECKPOINT_TYPE": "only PyTorch checkpoints are read",
    "TEST.NUM_TEMPORAL_CLIPS": "run one test per TEST.NUM_ENSEMBLE_VIEWS",
    "SOLVER.SPECIAL_*": "use SOLVER.BACKBONE_LR_RATIO",
    "SOLVER.CLIP_GRAD_L2NORM": "use SOLVER.CLIP_GRADIENT",
    "SOLVER.CLIP_GRAD_VAL": "use SOLVER.CLIP_GRADIENT",
    "SOLVER.BETAS": "adamw always runs with 0.9 and 0.999",
    "SOLVER.GAMMA": "steps are given by SOLVER.STEPS and SOLVER.LRS",
    "SOLVER.STEP_SIZE": "steps are given by SOLVER.STEPS and SOLVER.LRS",
    "SOLVER.WARMUP_FACTOR": "use SOLVER.WARMUP_START_LR",
    "SOLVER.LAYER_DECAY": "no layer-wise learning rates; see SOLVER.BACKBONE_LR_RATIO",
    "SOLVER.LARS_ON": "use SOLVER.OPTIMIZING_METHOD adamw or sgd",
    "BN.NUM_SPLITS": "no split BatchNorm; BN.NORM_TYPE sync_batchnorm goes the other way",
    "BN.NUM_SYNC_DEVICES": "BN.NORM_TYPE sync_batchnorm spans all processes",
    "BN.GLOBAL_SYNC": "BN.NORM_TYPE sync_batchnorm spans all processes",
    "AUG.COLOR_JITTER": "official video recipes never applied it; see AUG.AA_TYPE",
    "AUG.RE_SPLIT": "never had an effect",
    "AUG.*MASK*": NOT_HERE,
    "DATA.MC": "reading through Petrel storage; use DATA.PATH_PREFIX",
    "DATA.TARGET_FPS": "decord reads frames as they are; see DATA.SAMPLING_RATE",
    "DATA.TRAIN_JITTER_FPS": "decord reads frames as they are; see DATA.SAMPLING_RATE",
    "DATA.INV_UNIFORM_SAMPLE": "use DATA.TRAIN_JITTER_SCALES_RELATIVE",
    "DATA.TRAIN_PCA_*": "use AUG.AA_TYPE",
    "DATA.MULTI_LABEL": "lists hold one class per video",
    "DATA.PATH_TO_PRELOAD_IMDB": NOT_HERE,
    "DATA.*COLOR*": "use AUG.AA_TYPE",
    "DATA.SSL_*": NOT_HERE,
    "DATA.TIME_DIFF_PROB": NOT_HERE,
    "DATA.TRAIN_CROP_NUM_*": NOT_HERE,
    "DATA.TRAIN_JITTER_MOTION_SHIFT": NOT_HERE,
    "DATA.IN_VAL_CROP_RATIO": NOT_HERE,
    "DATA.IN22*": NOT_HERE,
    "DATA.LOADER_CHUNK_*": NOT_HERE,
    "DATA.SKIP_ROWS": NOT_HERE,
    "DATA.DUMMY_LOAD": NOT_HERE,
    "DATA_LOADER.ENABLE_MULTI_THREAD_DECODE": "use DATA_LOADER.NUM_WORKERS",
    "TENSORBOARD.*": "curves are all that is written",
    "LOG_MODEL_INFO*": "parameters and memory are always logged",
    "AVA.*": NOT_HERE,
    "BENCHMARK.*": NOT_HERE,
    "CONTRASTIVE.*": NOT_HERE,
    "DEMO.*": NOT_HERE,
    "DETECTION.*": NOT_HERE,
    "EGO4D.*": NOT_HERE,
    "MASK.*": NOT_HERE,
    "MULTIGRID.*": NOT_HERE,
    "MVIT.*": NOT_HERE,
    "NONLOCAL.*": NOT_HERE,
    "RESNET.*": NOT_HERE,
    "SLOWFAST.*": NOT_HERE,
    "TASK": NOT_HERE,
    "TIMESFORMER.*": NOT_HERE,
    "VIS_MASK.*": NOT_HERE,
    "VIT.*": NOT_HERE,
    "X3D.*": NOT_HERE,
}

# Misspelt values of official files, read as what they mean.
MISSPELT: dict[str, dict[str, str]] = {
    "TRAIN.DATASET": {"ant": "anet"},
    "TEST.DATASET": {"ant": "anet"},
    "DATA.DECODING_BACKEND": {"torchvision": "pyav"},
}

# Keys (patterns) that may differ between runs that share an OUTPUT_DIR: none of them changes the recipe.
MAY_DIFFER: tuple[str, ...] = (
    *("NUM_GPUS", "NUM_PROCESSES", "SHARD_ID", "DIST_*", "OUTPUT_DIR", "LOG_PERIOD", "TEST.*", "TENSORBOARD.*"),
    *("TRAIN.ENABLE", "TRAIN.MAX_STEPS", "TRAIN.AUTO_RESUME", "TRAIN.EVAL_PERIOD", "TRAIN.CHECKPOINT_PERIOD"),
    *(
        "TRAIN.CHECKPOINT_MINUTES",
        "TRAIN.KEEP_*",
        "TRAIN.ON_SAVE_ERROR",
        "TRAIN.*NONFINITE",
        "TRAIN.MIXED_PRECISION",
        "TRAIN.AMP_DTYPE",
        "DATA.MAX_BAD_SHARE",
        "DATA.DECODING_BACKEND",
        "MODEL.USE_CHECKPOINT",
        "MODEL.CHECKPOINT_NUM",
        "DATA_LOADER.*",
        "DATA.CHECK_FILES",
    ),
    *("DATA.PATH_TO_DATA_DIR", "DATA.PATH_PREFIX", "DATA.TEST_CROP_SIZE", "DATA.USE_OFFSET_SAMPLING"),
    "DATA.ENSEMBLE_METHOD",
)
