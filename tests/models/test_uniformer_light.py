"""Test the pruning of UniFormer-light, its outputs, and its options."""

from __future__ import annotations

from typing import Any

import pytest
import torch

from slowfast.models.uniformer import BlockOptions
from slowfast.models.uniformer_light import PruningBlock, UniFormerLight


def small(**options: Any) -> UniFormerLight:
    torch.manual_seed(0)
    halves = ((), (), (1.0, 0.5, 0.5), (0.5,))
    options = {"prune_ratio": halves, "trade_off": halves, **options}
    return UniFormerLight(num_classes=5, depth=(1, 1, 3, 1), embed_dim=(16, 32, 64, 64), head_dim=32, **options)


def test_every_clip_chooses_its_own_tokens_and_models_share_nothing():
    one, other = small().eval(), small(ndim=2).eval()
    video = torch.randn(3, 3, 4, 64, 96)
    with torch.no_grad():
        apart = torch.cat([one(clip) for clip in video.split(1)])
        expected = one(video)
        other(video[:, :, 0])
        assert torch.equal(one(video), expected)
    assert torch.allclose(apart, expected, atol=1e-6)


@pytest.mark.parametrize(("keep", "left_out"), [(1.0, 0), (0.5, 12), (0.3, 17), (0.01, 24)])
def test_tokens_left_out_share_one_update(keep, left_out):
    torch.manual_seed(0)
    block = PruningBlock(BlockOptions(16, 2.0, head_dim=8), keep, 0.5).eval()
    for parameter in block.pos_embed.parameters():
        torch.nn.init.zeros_(parameter)
    x, scores = torch.randn(2, 16, 2, 3, 4), torch.rand(2, 24)
    out, cls_token, new = block(x, torch.randn(2, 1, 16), scores)
    assert out.shape == x.shape and cls_token.shape == (2, 1, 16) and new.shape == scores.shape
    for b in range(2):
        lowest = scores[b].argsort()
        update = (out - x).flatten(2)[b][:, lowest]
        assert torch.allclose(update[:, :left_out], update[:, :1], atol=1e-5) or not left_out
        assert not torch.isclose(update[:, left_out:].T, update[:, :1].T, atol=1e-3).all(1)[not left_out :].any()
        unchanged = (new[b] == scores[b])[lowest]
        assert unchanged[:left_out].all() and not unchanged[left_out:].any()


def test_scores_keep_their_sum_in_every_clip_when_the_map_shrinks():
    model, seen = small().eval(), {}
    model.get_submodule("blocks3.2").register_forward_hook(lambda _m, _i, out: seen.update(before=out[2]))
    model.get_submodule("blocks4.0").register_forward_pre_hook(lambda _m, inputs: seen.update(after=inputs[2]))
    with torch.no_grad():
        model(torch.randn(2, 3, 4, 80, 64))
    assert seen["before"].shape == (2, 2 * 5 * 4) and seen["after"].shape == (2, 2 * 2 * 2)
    assert torch.allclose(seen["after"].sum(1), seen["before"].sum(1))
    grid = seen["before"].view(2, 2, 5, 4)[:, :, :4].unflatten(2, (2, 2)).unflatten(4, (2, 2)).mean((3, 5)).flatten(1)
    assert torch.allclose(seen["after"] / seen["after"][:, :1], grid / grid[:, :1])


def test_training_gives_two_logits_and_a_test_one():
    model, video = small(), torch.randn(2, 3, 4, 64, 64)
    logits, logits_cls = model.train()(video)
    assert logits.shape == logits_cls.shape == (2, 5)
    (logits.sum() + logits_cls.sum()).backward()
    assert all(parameter.grad is not None for parameter in model.parameters())
    assert torch.is_tensor(model.eval()(video))
    assert model.forward_features(video).shape == (2, 64, 2, 2, 2)
    assert torch.equal(model.forward_head(model.forward_features(video)), model(video))


def test_bfloat16_gives_finite_gradients_and_float32_scores():
    # oneDNN reads uninitialised memory for the bfloat16 gradient of a depthwise kernel that is longer than the clip
    model, video = small(init_value=0.1), torch.randn(2, 3, 10, 64, 64)
    with torch.autocast("cpu", dtype=torch.bfloat16):
        loss = torch.stack(model.train()(video)).float().logsumexp(2).sum()
    loss.backward()
    assert all(parameter.grad.isfinite().all() for parameter in model.parameters())
    scores = {}
    model.get_submodule("blocks3.0.attn").register_forward_hook(lambda _m, _i, out: scores.update(dtype=out[1].dtype))
    with torch.autocast("cpu", dtype=torch.bfloat16), torch.no_grad():
        model.eval()(video)
    assert scores["dtype"] is torch.float32


def test_reset_classifier_changes_both_output_widths():
    model = small()
    model.reset_classifier(9)
    assert [tuple(logits.shape) for logits in model.train()(torch.randn(2, 3, 4, 64, 64))] == [(2, 9), (2, 9)]
    model.reset_classifier(0)
    assert model.eval()(torch.randn(1, 3, 4, 32, 32)).shape == (1, 64)


def test_wrong_pruning_is_refused():
    with pytest.raises(ValueError, match=r"trade_off \[1.0, 0.5\] .*\b3\b"):
        small(trade_off=((), (), (1.0, 0.5), (0.5,)))
    with pytest.raises(ValueError, match=r"prune_ratio \[1.0, 2.0, 0.5\] .*\b3\b"):
        small(prune_ratio=((), (), (1.0, 2.0, 0.5), (0.5,)))
    with pytest.raises(ValueError, match=r"prune_ratio of stage 3 starts with 0\.5"):
        small(prune_ratio=((), (), (0.5, 0.5, 0.5), (0.5,)))
    with pytest.raises(ValueError, match=r"trade_off with 0\.0"):  # the output would be NaN
        small(trade_off=((), (), (0.0, 0.5, 0.5), (0.5,)))
    with pytest.raises(ValueError, match="head_dim 48 does not divide"):
        UniFormerLight(head_dim=48)
