"""The reference networks compute what ours compute: same names, logits, gradients and statistics."""

from __future__ import annotations

import pytest
import torch
from reference import REFERENCES, reference
from small_networks import SMALL, small, video_for

NAMES = [name for name, (network, _) in SMALL.items() if network in REFERENCES]


@pytest.mark.parametrize("name", NAMES)
@pytest.mark.parametrize("training", [True, False])
def test_logits_and_gradients_are_those_of_the_reference(name, training):
    ours = small(name).train(training)
    theirs, results = reference(ours), []
    for model in (ours, theirs):
        torch.manual_seed(1)  # of dropout
        logits = model(video_for(name))
        logits = torch.cat(logits) if isinstance(logits, tuple) else logits
        logits.square().sum().backward()
        gradients = {key: value.grad for key, value in model.named_parameters() if value.grad is not None}
        results.append({"logits": logits, **gradients, **dict(model.named_buffers())})
    assert results[0].keys() == results[1].keys()
    for key, value in results[0].items():
        torch.testing.assert_close(results[1][key], value, rtol=1e-3, atol=1e-4, msg=lambda text, key=key: key + text)


def test_the_reference_drops_as_many_samples():
    ours = small("uniformer", drop_depth_rate=0.4).train()
    networks = {"rate": ours, "drop_prob": reference(ours)}
    found = [[getattr(part, name, 0) for part in model.modules()] for name, model in networks.items()]
    mine, theirs = ([rate for rate in rates if rate] for rates in found)
    assert mine == theirs and max(mine) == pytest.approx(0.4)
