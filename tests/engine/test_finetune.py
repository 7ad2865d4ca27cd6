"""A trained checkpoint becomes the start of a run with other classes, in one command (docs/FINETUNING.md)."""

from __future__ import annotations

import pytest
import torch
from make_demo_data import CLASS_NAMES

from slowfast.config import load_config
from slowfast.models import build_model
from slowfast.run.checkpoint import last_checkpoint
from slowfast.weights.tensors import load_tensors

pytestmark = pytest.mark.slow

# three of the eight classes in another order, and one that the checkpoint does not have
TAKEN = (5, 2, 0)
NEW_NAMES = [CLASS_NAMES[5].replace("_", " ").title(), "zigzag", CLASS_NAMES[2], CLASS_NAMES[0]]
# a training that changes nothing, so that what it saves is what it started from
STILL = (
    *("SOLVER.BASE_LR", 0, "SOLVER.WARMUP_START_LR", 0, "SOLVER.COSINE_END_LR", 0, "MODEL.FROZEN_BN", True),
    *("TRAIN.MAX_STEPS", 1, "TEST.ENABLE", False),
)


def test_finetuning_replaces_the_classifier_of_other_classes(experiment, run_net, videos, tmp_path):
    run_net(experiment, "SOLVER.MAX_EPOCH", 1, "SOLVER.WARMUP_EPOCHS", 0, "TEST.ENABLE", False)
    trained_path = last_checkpoint(str(tmp_path / "out"))
    assert trained_path
    before = load_tensors(trained_path)
    trained = before["model_state"]
    assert before["class_names"] == list(CLASS_NAMES)

    lists = tmp_path / "lists"
    lists.mkdir()
    labels = {5: 0, 7: 1, 2: 2, 0: 3}
    for split, count in (("train", 24), ("val", 7)):
        rows = [f"{split}_{i}.mp4 {labels[i % 8]}\n" for i in range(count) if i % 8 in labels]
        (lists / f"{split}.csv").write_text("".join(rows))
    (lists / "class_names.txt").write_text("\n".join(NEW_NAMES) + "\n")
    data = ("DATA.PATH_TO_DATA_DIR", lists, "DATA.PATH_PREFIX", videos, "MODEL.NUM_CLASSES", 4)

    for key, value in (("MODEL.RESET_HEAD", True), ("MODEL.HEAD_ROWS", "names")):
        out, by_names = tmp_path / key, value == "names"
        start_from = ("TRAIN.CHECKPOINT_FILE_PATH", trained_path, key, value, "OUTPUT_DIR", out)
        done = run_net(experiment, *data, *start_from, *STILL)
        saved = last_checkpoint(str(out))
        assert saved
        after = load_tensors(saved)
        start, cfg = after["model_state"], load_config(str(out / "resolved_config.yaml"))
        torch.manual_seed(cfg.RNG_SEED)
        fresh = build_model(cfg).state_dict()
        assert after["class_names"] == NEW_NAMES and start.keys() == trained.keys()
        for name, tensor in start.items():
            if not name.startswith("head."):
                assert torch.equal(tensor, trained[name]), name
            elif by_names:
                assert torch.equal(tensor[[0, 2, 3]], trained[name][list(TAKEN)])
                assert torch.equal(tensor[1], fresh[name][1])
            else:
                assert torch.equal(tensor, fresh[name])
        assert not torch.equal(fresh["norm.weight"], trained["norm.weight"])  # it was a training
        loaded = len(start) - 2 * (not by_names)
        assert f"{trained_path}: layout own, loaded {loaded}" in done.stdout
        assert ("new rows: zigzag" in done.stdout) == by_names
