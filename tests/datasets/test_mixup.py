"""Test mixup and CutMix against the official implementation."""

import json
from pathlib import Path

import numpy as np
import pytest
import torch

from slowfast.datasets.mixup import MixUp, mixup_target, one_hot

GOLDEN = json.loads((Path(__file__).parents[1] / "golden" / "mixup.json").read_text())


def test_targets_of_several_labels_are_smoothed_and_mixed_like_those_of_one():
    labels = torch.tensor([2, 0, 1])
    hot = torch.nn.functional.one_hot(labels, 3).to(torch.int8)
    torch.testing.assert_close(one_hot(hot, 3, 0.1), one_hot(labels, 3, 0.1))
    torch.testing.assert_close(mixup_target(hot, 3, 0.7, 0.1), mixup_target(labels, 3, 0.7, 0.1))
    several = torch.tensor([[1, 1, 0], [0, 0, 0]], dtype=torch.int8)
    expected = torch.tensor([[0.75, 0.75, 0.0], [0.25, 0.25, 0.0]])
    torch.testing.assert_close(mixup_target(several, 3, 0.75), expected)


def test_one_hot_matches_the_official_numbers():
    case = GOLDEN["convert_to_one_hot"]
    smoothing = case["off_value"] * case["num_classes"]
    targets = one_hot(torch.tensor(case["labels"]), case["num_classes"], smoothing)
    torch.testing.assert_close(targets, torch.tensor(case["out"]), atol=1e-6, rtol=0)


@pytest.mark.parametrize("case", GOLDEN["mixup_target"])
def test_targets_match_the_official_numbers(case):
    target = mixup_target(torch.tensor(case["labels"]), case["num_classes"], case["lam"], case["smoothing"])
    torch.testing.assert_close(target, torch.tensor(case["out"]), atol=1e-6, rtol=0)


@pytest.mark.parametrize("row", GOLDEN["mixup_call"]["rows"], ids=lambda row: f"seed{row['np_seed']}")
def test_calls_match_the_official_numbers(row):
    case = GOLDEN["mixup_call"]
    names = ("alpha", "cutmix_alpha", "prob", "switch_prob", "smoothing", "num_classes")
    video = torch.from_numpy(np.random.RandomState(400).standard_normal((4, 3, 2, 24, 32)).astype(np.float32))
    before = video.clone()
    mix = MixUp(*(case[name] for name in names))
    mixed, target = mix(video, torch.tensor(case["labels"]), np.random.RandomState(row["np_seed"]))

    assert torch.equal(video, before)
    torch.testing.assert_close(target[0], torch.tensor(row["target_row0"]), atol=1e-6, rtol=0)
    torch.testing.assert_close(mixed.flatten()[:4], torch.tensor(row["out_first4"]), atol=1e-6, rtol=0)
    assert mixed.double().mean().item() == pytest.approx(row["out_mean"], abs=1e-6)
    assert mixed.double().std(correction=0).item() == pytest.approx(row["out_std"], abs=1e-6)
    changed = (mixed != before).any(0).any(0).any(0)
    rows, columns = changed.any(1).nonzero().flatten(), changed.any(0).nonzero().flatten()
    box = [rows.min().item(), rows.max().item() + 1, columns.min().item(), columns.max().item() + 1]
    assert box == row["changed_box_y0_y1_x0_x1"]


def test_probability_zero_leaves_the_batch_alone():
    video, labels = torch.rand(3, 3, 2, 4, 4), torch.tensor([0, 1, 2])
    mixed, target = MixUp(0.8, 1.0, 0.0, 0.5, 0.1, 3)(video, labels, np.random.RandomState(0))
    assert torch.equal(mixed, video)
    torch.testing.assert_close(target, one_hot(labels, 3, 0.1))


def test_one_alpha_alone_always_applies_its_method_to_the_batch_and_its_reverse():
    video, labels = torch.rand(2, 3, 2, 16, 16), torch.tensor([0, 1])
    for seed in range(20):
        blended, target = MixUp(0.8, 0.0, 1.0, 1.0, 0.0, 2)(video, labels, np.random.RandomState(seed))
        share = target[0, 0]
        torch.testing.assert_close(blended, share * video + (1 - share) * video.flip(0))
        cut, target = MixUp(0.0, 1.0, 1.0, 0.0, 0.0, 2)(video, labels, np.random.RandomState(seed))
        kept = cut == video
        assert torch.equal(cut[~kept], video.flip(0)[~kept])
        assert kept.double().mean().item() == pytest.approx(target[0, 0].item())
