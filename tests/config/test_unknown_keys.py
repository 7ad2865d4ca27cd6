"""The keys that an unknown key may mean."""

import re

import pytest

from slowfast.config import ConfigError, load_config


def fault(key: str) -> str:
    with pytest.raises(ConfigError) as error:
        load_config(None, [key, "1"])
    (only,) = error.value.faults
    return only


@pytest.mark.parametrize(
    ("key", "meant"),
    [
        ("TRAIN.BATCHSIZE", ["TRAIN.BATCH_SIZE"]),
        ("SOLVER.NUM_FRAMES", ["DATA.NUM_FRAMES"]),
        ("NUM_CLASSES", ["MODEL.NUM_CLASSES"]),
        ("TRIAN.MAX_STEPS", ["TRAIN.MAX_STEPS"]),
        ("solver.base_lr", ["SOLVER.BASE_LR"]),
        ("OPTIM.MOMENTUN", ["SOLVER.MOMENTUM"]),
        ("NUM_GPU", ["NUM_GPUS"]),
        ("FROZEN", ["UNIFORMERV2.FROZEN"]),
        ("CROP_SIZE", ["DATA.TEST_CROP_SIZE"]),
        ("mixup.enable", ["MIXUP.ENABLE"]),
        ("EMAA.ENABLE", ["EMA.ENABLE"]),
        ("WORKERS", ["DATA_LOADER.NUM_WORKERS"]),
        ("TEST.BATCHSIZE", ["TEST.BATCH_SIZE"]),
        ("LR", ["SOLVER.LRS", "SOLVER.BASE_LR"]),
        ("TRAIN.EPOCHS", ["SOLVER.WARMUP_EPOCHS", "SOLVER.MAX_EPOCH"]),
        ("BATCHSIZE", ["TEST.BATCH_SIZE", "TRAIN.BATCH_SIZE"]),
        ("UNIFORMER.DROP_PATH_RATE", ["UNIFORMERV2.DROP_PATH_RATE", "UNIFORMER.DROP_DEPTH_RATE"]),
        ("TEST.CHECKPOINT", ["TEST.CHECKPOINT_FILE_PATH", "MODEL.USE_CHECKPOINT"]),
        ("SOLVER.MAX_EPOCHS", ["SOLVER.MAX_EPOCH"]),
    ],
)
def test_an_unknown_key_names_the_nearest_ones(key, meant):
    found = re.findall(r"'([A-Z0-9_.]+)'", fault(key))
    assert found[: len(meant)] == meant and len(found) == len({*found}) <= 2


@pytest.mark.parametrize("key", ["UNIFORMER.CONTINUOUS_ATTN", "TRAIN.GRADIENT_ACCUMULATE", "DATA.AUTOAUGMENT"])
def test_a_key_of_another_program_is_not_taken_for_one_of_its_section(key):
    assert "meant" not in fault(key)
