"""List the keys and values of the official YAML files that differ from those of this package."""

from __future__ import annotations

from fnmatch import fnmatchcase

# Official keys (patterns) of networks, tasks and tools that this package does not have.
ABSENT = (
    "MODEL.DETACH_FINAL_FC", "AUG.*MASK*", "DATA.PATH_TO_PRELOAD_IMDB", "DATA.SSL_*", "DATA.TIME_DIFF_PROB",
    "DATA.TRAIN_CROP_NUM_*", "DATA.TRAIN_JITTER_MOTION_SHIFT", "DATA.IN_VAL_CROP_RATIO", "DATA.IN22*",
    "DATA.LOADER_CHUNK_*", "DATA.SKIP_ROWS", "DATA.DUMMY_LOAD", "AVA.*", "BENCHMARK.*", "CONTRASTIVE.*", "DEMO.*",
    "DETECTION.*", "EGO4D.*", "MASK.*", "MULTIGRID.*", "MVIT.*", "NONLOCAL.*", "RESNET.*", "SLOWFAST.*", "TASK",
    "TIMESFORMER.*", "VIP.*", "VIS_MASK.*", "VIT.*", "X3D.*",
)  # fmt: skip
# Official keys of UNIFORMER that only unreleased networks read.
UNRELEASED = ("ADD_MLP", "DPE", "KS", "MBCONV", "RATIO", "TAU")
# Official keys (patterns) that are accepted and ignored -> the reason and the replacement; the first match counts.
IGNORED: dict[str, str] = {
    "MODEL.ACT_CHECKPOINT": "use MODEL.USE_CHECKPOINT and MODEL.CHECKPOINT_NUM",
    "MODEL.DROPOUT_RATE": "use UNIFORMER.DROPOUT_RATE, UNIFORMER.HEAD_DROPOUT_RATE or UNIFORMERV2.CLS_DROPOUT",
    "MODEL.DROPCONNECT_RATE": "use UNIFORMER.DROP_DEPTH_RATE or UNIFORMERV2.DROP_PATH_RATE",
    "MODEL.HEAD_ACT": "networks return logits; see TEST.ADD_SOFTMAX",
    "MODEL.FC_INIT_STD": "each network has its own initial values",
    "MODEL.*PATHWAY_ARCH": "every network here has one pathway",
    "MODEL.NUM_CLASSES_LIST": "a network has one classifier; see MODEL.NUM_CLASSES",
    "MODEL.EMA_*": "use EMA.ENABLE and EMA.DECAY",
    "MODEL.FP16_ALLREDUCE": "gradients are averaged in float32",
    "UNIFORMER.STAGE_TYPE": "stages 1 and 2 are local, 3 and 4 global",
    "UNIFORMER.NUM_HEADS": "use UNIFORMER.HEAD_DIM",
    **{f"UNIFORMER.{name}": "no released network changes it" for name in UNRELEASED},
    "TRAIN.SAVE_LATEST": "use TRAIN.CHECKPOINT_PERIOD and TRAIN.KEEP_CHECKPOINTS",
    "TRAIN.CHECKPOINT_TYPE": "only PyTorch checkpoints are read",
    "TRAIN.CHECKPOINT_CLEAR_NAME_PATTERN": "known prefixes of weight names are removed automatically",
    "TRAIN.CHECKPOINT_EPOCH_RESET": "only weights are read from TRAIN.CHECKPOINT_FILE_PATH; see TRAIN.AUTO_RESUME",
    "TRAIN.CHECKPOINT_INFLATE": "2D kernels are recognized and inflated automatically",
    "TRAIN.FINETUNE": "use MODEL.RESET_HEAD",
    "TRAIN.CHECKPOINT_IN_INIT": "use TRAIN.CHECKPOINT_FILE_PATH",
    "TRAIN.KILL_LOSS_EXPLOSION_FACTOR": "use TRAIN.MAX_NONFINITE",
    # of earlier versions
    "TRAIN.NONFINITE": "use TRAIN.MAX_NONFINITE, which stops at once if it is 1",
    "TRAIN.KEEP_EVERY": "use TRAIN.KEEP_CHECKPOINTS; 0 keeps all",
    "TRAIN.ON_SAVE_ERROR": "a run continues if a checkpoint cannot be written, and fails if the last one cannot",
    "TEST.SAVE_RESULTS_PATH": "results are always written to OUTPUT_DIR/test",
    "TEST.CHECKPOINT_TYPE": "only PyTorch checkpoints are read",
    "TEST.INTERVAL": "a test has no steps; see TRAIN.EVAL_PERIOD",
    "TEST.NUM_TEMPORAL_CLIPS": "run one test per value of TEST.NUM_ENSEMBLE_VIEWS",
    "SOLVER.SPECIAL_*": "use SOLVER.BACKBONE_LR_RATIO",
    "SOLVER.CLIP_GRAD_L2NORM": "use SOLVER.CLIP_GRADIENT",
    "SOLVER.CLIP_GRAD_VAL": "use SOLVER.CLIP_GRADIENT",
    "SOLVER.BETAS": "adamw always uses 0.9 and 0.999",
    "SOLVER.GAMMA": "steps are given by SOLVER.STEPS and SOLVER.LRS",
    "SOLVER.STEP_SIZE": "steps are given by SOLVER.STEPS and SOLVER.LRS",
    "SOLVER.WARMUP_FACTOR": "use SOLVER.WARMUP_START_LR",
    "SOLVER.LARS_ON": "use SOLVER.OPTIMIZING_METHOD adamw or sgd",
    "BN.MOMENTUM": "BatchNorm always uses 0.1",
    "BN.NUM_SPLITS": "there is no split BatchNorm",
    "BN.NUM_SYNC_DEVICES": "BN.NORM_TYPE sync_batchnorm spans all processes",
    "BN.GLOBAL_SYNC": "BN.NORM_TYPE sync_batchnorm spans all processes",
    "AUG.COLOR_JITTER": "the official video recipes never applied it; see AUG.AA_TYPE",
    "AUG.RE_SPLIT": "never had an effect",
    "DATA.MC": "there is no Petrel storage; use DATA.PATH_PREFIX",
    "DATA.EXTRA_PATH_TO_DATA_DIR": "there is one folder of lists; see DATA.PATH_TO_DATA_DIR",
    "DATA.PATH_*_LIST": "there is one folder of lists and one of videos; see DATA.PATH_PREFIX",
    "DATA.DECODING_SHORT_SIZE": "frames are decoded in their own size",
    "DATA.TARGET_FPS": "the frames of a video are used at its own rate; see DATA.SAMPLING_RATE",
    "DATA.TRAIN_JITTER_FPS": "the frames of a video are used at its own rate; see DATA.SAMPLING_RATE",
    "DATA.INV_UNIFORM_SAMPLE": "use DATA.TRAIN_JITTER_SCALES_RELATIVE",
    "DATA.TRAIN_PCA_*": "use AUG.AA_TYPE",
    "DATA.*COLOR*": "use AUG.AA_TYPE",
    "DATA_LOADER.ENABLE_MULTI_THREAD_DECODE": "use DATA_LOADER.NUM_WORKERS",
    "TENSORBOARD.*": "only curves are written",
    "LOG_MODEL_INFO*": "parameters and memory are always logged",
    **dict.fromkeys(ABSENT, "this package has no such network, task or tool"),
}

# Misspelt or obsolete values, (key, value) -> the value that is used.
REPLACED_VALUES = {
    ("TRAIN.DATASET", "ant"): "anet",
    ("TEST.DATASET", "ant"): "anet",
    ("DATA.DECODING_BACKEND", "torchvision"): "pyav",
}
ADDED = "modules in SLOWFAST_IMPORT can add others (add_choice)"
# Cures of values that official files or runs with extensions may have; for other keys it is their default.
CURES = {
    "MODEL.ARCH": "remove it, and set MODEL.MODEL_NAME, from which MODEL.ARCH follows",
    **dict.fromkeys(
        ("TRAIN.DATASET", "TEST.DATASET"),
        f"other data sets are read as kinetics or kinetics_sparse (videos), or as sth (folders of frames); {ADDED}",
    ),
    **dict.fromkeys(("MODEL.LOSS_FUNC", "SOLVER.OPTIMIZING_METHOD", "SOLVER.LR_POLICY"), ADDED),
}


def reason_to_ignore(key: str) -> str | None:
    """Return why an official key or section is ignored, None if it is not one of those."""
    reasons = (reason for pattern, reason in IGNORED.items() if fnmatchcase(key, pattern) or pattern == f"{key}.*")
    return next(reasons, None)


def family_of(model_name: str) -> str:
    """Return MODEL.ARCH of a network."""
    return "uniformerv2" if model_name.lower().startswith("uniformerv2") else "uniformer"
