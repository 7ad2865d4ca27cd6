"""Rules: values and combinations of keys that a run cannot have."""

import re

import pytest

from slowfast.config import ConfigError, load_config, num_local_processes
from slowfast.config.rules import rate_of_image_vit, rate_of_other_steps


@pytest.mark.parametrize(
    ("overrides", "named"),
    [
        # values
        ("SOLVER.LR_POLICY linear", "steps_with_relative_lrs"),
        ("TEST.NUM_SPATIAL_CROPS 2", "1, 3"),
        ("MODEL.NUM_CLASSES 0", ">= 1"),
        ("MODEL.NUM_CLASSES True", "integer"),
        ("SOLVER.BASE_LR nan", "number"),
        ("SOLVER.BASE_LR 1e999", "number"),
        pytest.param("SOLVER.BASE_LR " + "-" * 5_000 + "1", "number", id="thousands of signs"),
        pytest.param("SOLVER.BASE_LR " + "-" * 50_000 + "1", "number", id="more signs"),
        ("TRAIN.ENABLE 1", "False"),
        ("TEST.ADD_SOFTMAX maybe", "None"),
        ("UNIFORMER.PRUNE_RATIO [[1,x],[],[],[]]", "list"),
        ("UNIFORMER.MLP_RATIO [4,4]", "length 4"),
        ("DATA.STD [0.2,0,0.2]", "> 0"),
        ("UNIFORMER.DROP_DEPTH_RATE 1", "< 1"),
        ("UNIFORMERV2.MLP_DROPOUT [0.5,0.5,0.5,1.5]", "<= 1"),
        ("MODEL.CHECKPOINT_NUM [1,2]", "1 or 4"),
        ("_BASE_ x.yaml", "unknown"),
        # combinations
        ("TRAIN.BATCH_SIZE 10 NUM_GPUS 4", "NUM_PROCESSES"),
        ("TRAIN.BATCH_SIZE 10 NUM_GPUS 0 NUM_PROCESSES 3", ""),
        ("NUM_GPUS 4 NUM_PROCESSES 2", ""),
        ("MIXUP.ENABLE True MODEL.LOSS_FUNC bce", "soft_cross_entropy"),
        (
            "MIXUP.ALPHA 0 MIXUP.CUTMIX_ALPHA 0 MIXUP.ENABLE True MODEL.LOSS_FUNC soft_cross_entropy",
            "MIXUP.CUTMIX_ALPHA",
        ),
        ("MODEL.CLASS_WEIGHTS balanced DATA.BALANCE True", "DATA.BALANCE"),
        ("MODEL.CLASS_WEIGHTS balanced MODEL.LOSS_FUNC bce", "soft_cross_entropy"),
        ("DATA.MULTI_LABEL True", "MODEL.LOSS_FUNC"),
        ("DATA.MULTI_LABEL True MODEL.LOSS_FUNC soft_cross_entropy MIXUP.ENABLE True", "set MODEL.LOSS_FUNC bce"),
        ("DATA.MULTI_LABEL True MODEL.LOSS_FUNC bce DATA.BALANCE True", "DATA.BALANCE False"),
        ("DATA.MULTI_LABEL True MODEL.LOSS_FUNC bce MODEL.CLASS_WEIGHTS balanced", "MODEL.CLASS_WEIGHTS none"),
        ("DATA.MULTI_LABEL True MODEL.LOSS_FUNC bce TEST.ADD_SOFTMAX True", "TEST.ADD_SOFTMAX None"),
        (
            "DATA.MULTI_LABEL True MODEL.LOSS_FUNC bce TRAIN.DATASET sth DATA.LABEL_PATH_TEMPLATE {}.json",
            "MULTI_LABEL F",
        ),
        ("DDP.SHARDING zero1 SOLVER.OPTIMIZING_METHOD timm/lamb", "adamw"),
        ("MODEL.COMPILE True MODEL.USE_CHECKPOINT True MODEL.CHECKPOINT_KEEP products", "CHECKPOINT_KEEP nothing"),
        ("SOLVER.LR_POLICY steps_with_relative_lrs", "SOLVER.STEPS"),
        ("SOLVER.LR_POLICY steps_with_relative_lrs SOLVER.STEPS [0,9] SOLVER.LRS [1]", ""),
        ("SOLVER.MAX_EPOCH 5 SOLVER.WARMUP_EPOCHS 5", ""),
        ("SOLVER.WARMUP_EPOCHS 5 SOLVER.BASE_LR 1e-3", "SOLVER.WARMUP_START_LR"),
        ("SOLVER.COSINE_END_LR 1e-6 SOLVER.BASE_LR 1e-7", "SOLVER.BASE_LR"),
        ("DATA.MEAN [0.5]", "DATA.INPUT_CHANNEL_NUM"),
        ("DATA.TRAIN_JITTER_SCALES [320,256]", "first"),
        ("DATA.TRAIN_JITTER_SCALES_RELATIVE [0.1,1.0]", "DATA.TRAIN_JITTER_ASPECT_RELATIVE"),
        ("DATA.IMAGE_TEMPLATE frame.jpg", "{"),
        ("DATA.IMAGE_TEMPLATE {}_{:06d}.jpg", "{:05d}"),
        ("DATA.IMAGE_TEMPLATE img_{:05.jpg", "{:05d}"),
        ("DATA.LABEL_PATH_TEMPLATE train.txt TEST.DATASET sth", "{}"),
        ("DATA.LABEL_PATH_TEMPLATE {}_{}.txt TEST.DATASET sth TRAIN.ENABLE False", "{}"),
        ("NUM_SHARDS 2 SHARD_ID 2", ""),
        ("UNIFORMER.HEAD_DIM 48", "64"),
        ("MODEL.CHECKPOINT_NUM [2] MODEL.USE_CHECKPOINT True", "4 numbers"),
        ("UNIFORMERV2.N_HEAD 7 MODEL.MODEL_NAME Uniformerv2", "UNIFORMERV2.N_DIM"),
        ("UNIFORMERV2.BACKBONE uniformerv2_l14 MODEL.MODEL_NAME Uniformerv2", "DATA.TEST_CROP_SIZE"),
        ("DATA.TRAIN_CROP_SIZE 225 MODEL.MODEL_NAME Uniformerv2", "16"),
        ("DATA.TEST_CROP_SIZE 225 TEST.ENABLE False MODEL.MODEL_NAME Uniformerv2", "16"),  # a training validates
        (
            "UNIFORMERV2.BACKBONE custom UNIFORMERV2.TOWER [768,12,12,24,48] DATA.TRAIN_CROP_SIZE 48 "
            "MODEL.MODEL_NAME Uniformerv2",
            "DATA.TEST_CROP_SIZE = 256",
        ),
        ("DATA.TRAIN_CROP_SIZE 31", "32"),
        ("DATA.TEST_CROP_SIZE 31 MODEL.MODEL_NAME Uniformer_light", "32"),
        ("MODEL.NUM_CLASSES 1", "DATA.MULTI_LABEL True"),
        ("MODEL.HEAD_ROWS names", "UNIFORMER.PRETRAIN_NAME"),
        ("MODEL.HEAD_ROWS names MODEL.RESET_HEAD True TRAIN.CHECKPOINT_FILE_PATH x.pth", ""),
    ],
)
def test_impossible_values_and_combinations(overrides, named):
    with pytest.raises(ConfigError) as error:
        load_config(None, overrides.split())
    (message,) = error.value.faults
    assert overrides.split()[0] in message and named in message


@pytest.mark.parametrize(
    "overrides",
    [
        "DATA.TRAIN_CROP_SIZE 31",
        "MODEL.MODEL_NAME Uniformerv2 DATA.TRAIN_CROP_SIZE 225",
        "TRAIN.BATCH_SIZE 10 NUM_GPUS 4",
        "TEST.DATASET sth DATA.LABEL_PATH_TEMPLATE test.txt",
        "MODEL.NUM_CLASSES 1",
        "MODEL.HEAD_ROWS names",
        "SOLVER.MAX_EPOCH 5 SOLVER.WARMUP_EPOCHS 5",
        "SOLVER.WARMUP_EPOCHS 5 SOLVER.BASE_LR 1e-3",
        "SOLVER.COSINE_END_LR 1e-6 SOLVER.BASE_LR 1e-7",
        "SOLVER.LR_POLICY steps_with_relative_lrs",
        "MIXUP.ENABLE True MODEL.LOSS_FUNC bce",
        "MIXUP.ALPHA 0 MIXUP.CUTMIX_ALPHA 0 MIXUP.ENABLE True MODEL.LOSS_FUNC soft_cross_entropy",
        "MODEL.CLASS_WEIGHTS balanced DATA.BALANCE True",
        "MODEL.CLASS_WEIGHTS balanced MODEL.LOSS_FUNC bce",
        "DATA.MULTI_LABEL True",
        "DATA.MULTI_LABEL True MODEL.LOSS_FUNC bce DATA.BALANCE True",
        "MODEL.COMPILE True MODEL.USE_CHECKPOINT True MODEL.CHECKPOINT_KEEP products",
        "DDP.SHARDING zero1 SOLVER.OPTIMIZING_METHOD timm/lamb",
    ],
)
def test_a_rule_of_the_training_does_not_stop_a_test(overrides):
    load_config(None, [*overrides.split(), "TRAIN.ENABLE", "False"])


@pytest.mark.parametrize(
    "overrides",
    [
        "DATA.LABEL_PATH_TEMPLATE unused",
        "DATA.IMAGE_TEMPLATE {folder}_{:06d}.jpg",
        "MODEL.MODEL_NAME Uniformerv2 UNIFORMER.HEAD_DIM 48",  # of another network
        "MODEL.NUM_CLASSES 1 DATA.MULTI_LABEL True MODEL.LOSS_FUNC bce",
        "MIXUP.ENABLE True MIXUP.ALPHA 0 MODEL.LOSS_FUNC soft_cross_entropy",
        "UNIFORMER.PRETRAIN_NAME x MODEL.HEAD_ROWS names",
    ],
)
def test_a_rule_does_not_stop_what_fits_together(overrides):
    load_config(None, overrides.split())


def test_each_gpu_has_a_process():
    assert num_local_processes(load_config(None, ["NUM_GPUS", "4"])) == 4


# NUM_SHARDS, TRAIN.BATCH_SIZE and SOLVER.ACCUMULATION_STEPS of a recipe and of a run; the accumulation that keeps the
# videos of a step (0: there is none) and the factor of the rates
@pytest.mark.parametrize(
    ("recipe", "run", "scaled", "cure"),
    [
        ((1, 64, 1), (1, 64, 1), False, None),
        ((1, 64, 1), (1, 16, 4), False, None),
        ((4, 64, 1), (1, 64, 4), False, None),
        ((1, 64, 1), (1, 16, 1), False, (4, 0.25)),
        ((1, 64, 2), (1, 32, 1), False, (4, 0.25)),
        ((1, 64, 1), (1, 48, 1), False, (0, 0.75)),
        ((1, 64, 1), (1, 128, 1), False, (0, 2.0)),
        ((4, 64, 1), (1, 64, 1), False, (4, 0.25)),
        ((4, 64, 1), (1, 64, 1), True, None),  # the rates change with the nodes
        ((3, 64, 1), (7, 64, 1), True, None),  # 3 * 0.1 * 7 and 7 * 0.1 * 3 differ in the last bit
        ((4, 64, 1), (2, 32, 1), True, (2, 0.5)),
    ],
)
def test_a_rate_belongs_to_the_videos_of_a_step(recipe, run, scaled, cure):
    keys = ("NUM_SHARDS", "TRAIN.BATCH_SIZE", "SOLVER.ACCUMULATION_STEPS")
    before, now = (
        load_config(None, [f"{key}={value}" for key, value in zip(keys, values, strict=True)]
                    + [f"SOLVER.BASE_LR_SCALE_NUM_SHARDS={scaled}"])
        for values in (recipe, run)
    )  # fmt: skip
    text = rate_of_other_steps(before, now)
    found = re.search(r"(?:ACCUMULATION_STEPS (\d+), or )?multiply .* by ([\d.]+)$", text)
    assert (found and (int(found[1] or 0), float(found[2]))) == cure and (text == "") == (cure is None)
    changed = load_config(None, [f"{key}={value}" for key, value in zip(keys, run, strict=True)] + ["SOLVER.BASE_LR=1"])
    assert rate_of_other_steps(before, changed) == ""


# as in the official configuration files, without the values of their scripts
OFFICIAL_V2 = (
    "MODEL.ARCH=uniformerv2", "MODEL.MODEL_NAME=Uniformerv2", "SOLVER.OPTIMIZING_METHOD=adamw", "SOLVER.BASE_LR=4e-4"
)  # fmt: skip


@pytest.mark.parametrize(
    ("changed", "warns"),
    [
        ("", True),
        ("UNIFORMERV2.BACKBONE=uniformerv2_l14 UNIFORMERV2.PRETRAIN=k400.pyth DATA.TEST_CROP_SIZE=224", True),
        ("UNIFORMERV2.BACKBONE=custom TRAIN.CHECKPOINT_FILE_PATH=a.pyth", True),
        ("SOLVER.BASE_LR=5e-5 NUM_SHARDS=4 SOLVER.BASE_LR_SCALE_NUM_SHARDS=True", True),
        ("SOLVER.BASE_LR=5e-5 NUM_SHARDS=4 SOLVER.BASE_LR_SCALE_NUM_SHARDS=False", False),
        ("UNIFORMERV2.FROZEN=True", False),
        ("UNIFORMERV2.BACKBONE=custom", False),  # from random weights
        ("SOLVER.BACKBONE_LR_RATIO=0.1", False),
        ("SOLVER.LAYER_DECAY=0.75", False),
        ("SOLVER.OPTIMIZING_METHOD=sgd", False),
        ("MODEL.ARCH=uniformer MODEL.MODEL_NAME=Uniformer", False),
    ],
)
def test_a_rate_that_is_too_high_for_the_image_vit_is_noted(changed, warns):
    cfg = load_config(None, [*OFFICIAL_V2, *changed.split()])
    assert bool(rate_of_image_vit(cfg)) == warns == ("1e-5" in cfg.rate_note)
