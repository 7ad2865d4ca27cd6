"""Configuration files that the authors' programs accept, and that do not describe a released experiment."""

from __future__ import annotations

import pytest

from slowfast.config import ConfigError, changed_keys, get_cfg, load_config
from slowfast.config.official import reason_to_ignore

# A file in the form of PySlowFast: the networks of this package are not there.
SLOWFAST = """\
TRAIN:
  ENABLE: True
  DATASET: Kinetics
  BATCH_SIZE: 16
DATA:
  NUM_FRAMES: 32
  DECODING_SHORT_SIZE: 256
  INPUT_CHANNEL_NUM: [3, 3]
SLOWFAST:
  ALPHA: 4
  BETA_INV: 8
RESNET:
  DEPTH: 50
  NUM_BLOCK_TEMP_KERNEL: [[3, 3], [4, 4], [6, 6], [3, 3]]
BN:
  MOMENTUM: 0.1
SOLVER:
  BASE_LR: 0.1
  WEIGHT_DECAY: 1e-4
  BETAS: (0.9, 0.95)
MODEL:
  ARCH: slowfast
  MODEL_NAME: SlowFast
  FP16_ALLREDUCE: False
"""
# Keys of the defaults of UniFormerV2 and PySlowFast that no released configuration file contains.
UNUSED = (
    "DATA.EXTRA_PATH_TO_DATA_DIR DATA.PATH_TO_DATA_DIR_LIST DATA.PATH_PREFIX_LIST MODEL.EMA_DECAY MODEL.EMA_EPOCH "
    "MODEL.NUM_CLASSES_LIST TEST.INTERVAL UNIFORMER.ADD_MLP UNIFORMER.DPE UNIFORMER.KS UNIFORMER.MBCONV "
    "UNIFORMER.NUM_HEADS UNIFORMER.RATIO UNIFORMER.TAU VIP.LAYERS BN.GLOBAL_SYNC DATA.IN22k_VAL_IN1K TASK"
)


def test_a_file_of_another_network_names_what_to_change(tmp_path):
    path = tmp_path / "slowfast.yaml"
    path.write_text(SLOWFAST)
    with pytest.warns(UserWarning) as caught, pytest.raises(ConfigError) as error:
        load_config(str(path))
    assert [fault.split()[1] for fault in error.value.faults] == ["DATA.INPUT_CHANNEL_NUM", "MODEL.ARCH"]
    assert "MODEL.MODEL_NAME" in error.value.faults[1]
    (message,) = [str(found.message) for found in caught]
    assert f"SLOWFAST ({path}:10, 2 keys), RESNET ({path}:13, 2 keys): " in message and len(message.splitlines()) == 6

    changes = ["DATA.INPUT_CHANNEL_NUM", "[3]", "MODEL.ARCH", "uniformer", "MODEL.MODEL_NAME", "Uniformer"]
    with pytest.warns(UserWarning):
        cfg = load_config(str(path), changes)
    assert changed_keys(cfg, get_cfg(), ignore=()) == {"TRAIN.BATCH_SIZE": (16, 64), "DATA.NUM_FRAMES": (32, 8)}


@pytest.mark.parametrize("key", UNUSED.split())
def test_every_key_of_the_official_defaults_is_explained(key):
    with pytest.warns(UserWarning, match=key) as caught:
        assert load_config(None, [key, "1"]) == get_cfg()
    reason = reason_to_ignore(key)
    assert reason and reason in str(caught[0].message)
