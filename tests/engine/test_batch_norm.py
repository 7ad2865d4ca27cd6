"""Statistics of BatchNorm: frozen, recomputed at the end of an epoch, and the weights' moving average."""

from __future__ import annotations

import signal
from types import SimpleNamespace
from typing import Any

import pytest
import torch
from small_networks import configuration, small
from torch import nn

from slowfast.engine.batch_norm import clips_until_stopped, train_mode, update_statistics
from slowfast.engine.ema import ModelEma
from slowfast.engine.setup import place
from slowfast.run import interrupt

CPU = torch.device("cpu")


class Loader(list):
    """Batches; it keeps the position that its sampler was set to."""

    def __init__(self, count: int) -> None:
        generator = torch.Generator().manual_seed(0)
        super().__init__({"video": 2 * torch.randn(8, 3, generator=generator) + n} for n in range(count))
        self.positions: list[tuple[int, int]] = []
        self.batch_sampler = SimpleNamespace(set_position=lambda *where: self.positions.append(where))


def setting(**options: Any) -> tuple[Any, Any]:
    cfg = configuration({name.replace("__", "."): value for name, value in options.items()})
    model = nn.Sequential(nn.BatchNorm1d(3), nn.Linear(3, 2))
    state: Any = SimpleNamespace(models=[model, ModelEma(model, 0.9).module], epoch=4)
    run: Any = SimpleNamespace(cfg=cfg, device=CPU, to_device=lambda video: 10 * video)
    return state, run


@pytest.mark.parametrize(("most", "used"), [(2, 2), (200, 3)])
def test_precise_statistics_are_those_of_the_batches(most, used):
    state, run = setting(BN__USE_PRECISE_STATS=True, BN__NUM_BATCHES_PRECISE=most)
    loader: Any = Loader(3)
    update_statistics(state, run, loader)
    clips = torch.stack([10 * batch["video"] for batch in loader[:used]])
    for model in state.models:
        torch.testing.assert_close(model[0].running_mean, clips.mean((0, 1)), rtol=1e-4, atol=1e-4)
        assert not torch.equal(model[0].running_var, torch.ones(3))
    assert loader.positions == [(4, 0)] * 2


@pytest.mark.parametrize("options", [{}, {"BN__USE_PRECISE_STATS": True, "MODEL__FROZEN_BN": True}])
def test_statistics_stay_if_they_are_frozen_or_not_to_be_precise(options):
    state, run = setting(**options)
    update_statistics(state, run, Loader(3))  # pyright: ignore[reportArgumentType]
    assert all(torch.equal(model[0].running_mean, torch.zeros(3)) for model in state.models)


def test_drops_of_precise_statistics_depend_on_seed_and_epoch():
    def mean(**changes: Any) -> torch.Tensor:
        state, run = setting(BN__USE_PRECISE_STATS=True)
        state.models = [nn.Sequential(nn.Dropout(0.5), nn.BatchNorm1d(3))]
        state.epoch = changes.pop("epoch", state.epoch)
        run.cfg.RNG_SEED = changes.pop("seed", 0)
        update_statistics(state, run, Loader(2))  # pyright: ignore[reportArgumentType]
        return state.models[0].get_buffer("1.running_mean")

    assert torch.equal(mean(), mean())
    assert not torch.equal(mean(), mean(epoch=5)) and not torch.equal(mean(), mean(seed=1))


def test_every_process_gets_the_statistics_of_rank_0(monkeypatch):
    sent: list[torch.Tensor] = []
    monkeypatch.setattr("slowfast.utils.distributed.broadcast_tensor", sent.append)
    state, run = setting()
    update_statistics(state, run, Loader(1))  # pyright: ignore[reportArgumentType]
    buffers = [buffer for model in state.models for buffer in model.buffers()]
    assert [id(buffer) for buffer in sent] == [id(buffer) for buffer in buffers]


def test_frozen_statistics_stay_while_the_rest_trains():
    model = nn.Sequential(nn.BatchNorm1d(3), nn.Dropout(0.5)).eval()
    train_mode(model, frozen=True)
    model(torch.randn(8, 3) + 5)
    assert torch.equal(model.get_buffer("0.running_mean"), torch.zeros(3))
    assert [module.training for module in model] == [False, True]


def test_a_request_to_stop_ends_the_statistics_before_the_next_batch(monkeypatch):
    monkeypatch.setattr(interrupt, "_received", [])
    _, run = setting()
    clips = clips_until_stopped(run, Loader(3))  # pyright: ignore[reportArgumentType]
    next(clips)
    interrupt._received.append(signal.SIGTERM)
    with pytest.raises(interrupt.Interruption):
        next(clips)


def test_an_average_of_weights_moves_by_its_share_and_copies_buffers():
    model = nn.Sequential(nn.BatchNorm1d(2), nn.Dropout(0.5)).train()
    ema = ModelEma(model, 0.25)
    assert not ema.module.training and model.training
    with torch.no_grad():
        model.get_parameter("0.weight").fill_(5.0)
    model(torch.randn(4, 2) + 3)
    ema.update(model, torch.tensor(True))
    assert ema.module.get_parameter("0.weight").tolist() == [4.0, 4.0]  # 0.25 * 1 + 0.75 * 5
    assert not any(parameter.requires_grad for parameter in ema.module.parameters())
    for name in ("0.running_mean", "0.num_batches_tracked"):
        assert torch.equal(ema.module.get_buffer(name), model.get_buffer(name))


@pytest.mark.parametrize("name", ["uniformer", "v2"])
def test_an_average_is_the_same_weighted_mean_for_every_layout_of_weights(name):
    model = small(name)
    place(model, torch.device("cpu"))  # with channels last, whose strides are others
    ema = ModelEma(model, 0.9)
    expected = [parameter.detach().clone() for parameter in model.parameters()]
    with torch.no_grad():
        for parameter in model.parameters():
            parameter += torch.randn(parameter.shape)
    weights = [parameter.detach().clone() for parameter in model.parameters()]
    ema.update(model, torch.tensor(False))
    assert all(map(torch.equal, ema.module.parameters(), expected))
    ema.update(model, torch.tensor(True))
    torch.testing.assert_close(
        list(ema.module.parameters()), [a.lerp(w, 0.1) for a, w in zip(expected, weights, strict=True)]
    )
    assert all(map(torch.equal, model.parameters(), weights))
