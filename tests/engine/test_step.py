"""One optimizer step of a small network, against the same numbers computed by hand."""

from __future__ import annotations

import contextlib
import math
import signal
from collections.abc import Callable, Iterator
from typing import Any

import pytest
import torch
from small_networks import configuration
from torch import Tensor, distributed, nn
from torch.nn.parallel import DistributedDataParallel
from torch.utils._python_dispatch import TorchDispatchMode

from slowfast.config import get_cfg
from slowfast.engine.ema import ModelEma
from slowfast.engine.meters import TrainMeter
from slowfast.engine.setup import clip_mover
from slowfast.engine.start import arrange_buckets, prepare_run
from slowfast.engine.state import TrainState
from slowfast.engine.step import Run, StepOutcome, agree, settle, train_step, unmixed_target
from slowfast.engine.train import save, train_epoch
from slowfast.optim.build import build_optimizer
from slowfast.optim.losses import LOSSES
from slowfast.run import interrupt
from slowfast.run.checkpoint import list_checkpoints
from slowfast.utils.distributed import SharedError
from slowfast.weights.tensors import load_tensors

CPU = torch.device("cpu")
CLASSES = 3


@pytest.fixture
def make(tmp_path) -> Callable[..., tuple[TrainState, Run]]:
    """Return a function of configuration options, which makes a linear model with SGD, and its run."""

    def make_run(network: nn.Module | None = None, **options: Any) -> tuple[TrainState, Run]:
        torch.manual_seed(0)
        defaults = {"OUTPUT_DIR": str(tmp_path), "NUM_GPUS": 0, "MODEL.NUM_CLASSES": CLASSES, "MIXUP.ENABLE": False}
        defaults |= {"MODEL.LOSS_FUNC": "cross_entropy", "SOLVER.CLIP_GRADIENT": None}
        cfg = configuration(defaults, {name.replace("__", "."): value for name, value in options.items()})
        model = network or nn.Sequential(nn.Flatten(), nn.Linear(12, CLASSES))
        scaler = torch.amp.GradScaler("cpu", enabled=False)  # pyright: ignore[reportPrivateImportUsage]
        state = TrainState(model, torch.optim.SGD(model.parameters(), lr=0.5), scaler, TrainMeter(CPU), 10)
        run = prepare_run(cfg, state, 24, {}, CPU)
        run.to_device = lambda video: video
        return state, run

    return make_run


def take_step(state: TrainState, run: Run, batches: Iterator[dict[str, Any]]) -> StepOutcome:
    train_step(state, run, batches)
    return settle(state, run)


def batches(count: int, clips: int = 2) -> list[dict[str, Any]]:
    generator = torch.Generator().manual_seed(1)
    videos = torch.randn(count, clips, 3, 1, 2, 2, generator=generator)
    labels = torch.randint(CLASSES, (count, clips), generator=generator)
    return [{"video": video, "label": label, "bad": []} for video, label in zip(videos, labels, strict=True)]


def parameters(model: nn.Module) -> Tensor:
    return torch.cat([parameter.detach().flatten() for parameter in model.parameters()])


@pytest.mark.filterwarnings("ignore:It is highly recommended to have 'opt_einsum'")
def test_every_process_takes_the_same_step_with_an_optimizer_that_draws_numbers(make, monkeypatch):
    def weights_after_two_steps(rank: int) -> Tensor:
        monkeypatch.setattr("slowfast.utils.distributed.rank", lambda: rank)
        state, run = make(SOLVER__OPTIMIZING_METHOD="timm/kron")
        state.optimizer = build_optimizer(state.model, run.cfg)
        for part in batches(2):
            take_step(state, run, iter([part]))
            state.step += 1
        return parameters(state.model)

    assert torch.equal(weights_after_two_steps(0), weights_after_two_steps(1))


class Centred(nn.Module):
    """A classifier of centred features; each forward pass replaces the centre and updates the count in place."""

    def __init__(self) -> None:
        super().__init__()
        self.linear = nn.Linear(3, CLASSES)
        self.register_buffer("centre", torch.zeros(3))
        self.register_buffer("count", torch.zeros(()))

    def forward(self, video: Tensor) -> Tensor:
        features = video.float().mean((2, 3, 4))
        self.centre = 0.9 * self.centre + 0.1 * features.mean(0)
        self.count += 1
        return self.linear(features - self.centre)


def test_gradients_before_the_first_step_leave_no_trace(make, monkeypatch):
    monkeypatch.setattr("slowfast.utils.distributed.world_size", lambda: 3)
    monkeypatch.setattr("slowfast.engine.start.DistributedDataParallel", lambda network, **_: network)
    state, run = make(Centred(), TRAIN__BATCH_SIZE=2)
    before = {name: value.clone() for name, value in state.model.state_dict().items()}
    arrange_buckets(state, run)
    for name, value in state.model.state_dict().items():
        assert torch.equal(value, before[name]), name
    assert all(parameter.grad is None for parameter in state.model.parameters())


def test_micro_batches_make_the_step_of_one_large_batch(make):
    parts = batches(3)
    whole = {name: torch.cat([part[name] for part in parts]) for name in ("video", "label")} | {"bad": []}
    one, one_run = make()
    outcome = take_step(one, one_run, iter([whole]))
    three, three_run = make(SOLVER__ACCUMULATION_STEPS=3)
    assert take_step(three, three_run, iter(parts)).grad_norm == pytest.approx(outcome.grad_norm, rel=1e-5)
    torch.testing.assert_close(parameters(three.model), parameters(one.model))
    torch.testing.assert_close(three.meter.sums, one.meter.sums)
    assert all(parameter.grad is None for parameter in three.model.parameters())  # nothing is left for the next step


@pytest.mark.parametrize("limit", [None, 0.01, 100.0])
def test_the_gradient_is_clipped_and_its_norm_is_that_before(make, limit):
    state, run = make(SOLVER__CLIP_GRADIENT=limit)
    (batch,) = batches(1)
    before = parameters(state.model)
    nn.functional.cross_entropy(state.model(batch["video"]), batch["label"]).backward()
    norm = torch.stack([parameter.grad.norm() for parameter in state.model.parameters()]).norm().item()
    state.optimizer.zero_grad()
    assert take_step(state, run, iter([batch])).grad_norm == pytest.approx(norm, rel=1e-5)
    moved = (parameters(state.model) - before).norm().item()
    assert moved == pytest.approx(0.5 * min(norm, limit or math.inf), rel=1e-3)


def test_the_average_follows_the_weights_after_each_step(make):
    state, run = make()
    state.ema = ModelEma(state.model, 0.75)
    expected = parameters(state.model)
    for batch in batches(2):
        take_step(state, run, iter([batch]))
        expected = 0.75 * expected + 0.25 * parameters(state.model)
    torch.testing.assert_close(parameters(state.ema.module), expected)


def test_two_classifiers_have_the_same_weight_and_the_first_one_gives_the_scores(make):
    class Two(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.first, self.second = nn.Linear(12, CLASSES), nn.Linear(12, CLASSES)

        def forward(self, video: Tensor) -> tuple[Tensor, Tensor]:
            return self.first(video.flatten(1)), self.second(video.flatten(1))

    state, run = make(Two())
    (batch,) = batches(1, clips=6)
    first, second = state.model(batch["video"])
    losses = [nn.functional.cross_entropy(logits, batch["label"]).item() for logits in (first, second)]
    take_step(state, run, iter([batch]))
    values = state.meter.epoch_values()
    assert values["loss"] == pytest.approx(sum(losses) / 2, rel=1e-6)
    assert values["top1"] == pytest.approx(100 * (first.argmax(1) == batch["label"]).double().mean().item())


def test_a_network_may_compute_its_loss_from_outputs_that_are_no_logits(make):
    class Regularized(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.head = nn.Linear(12, CLASSES)

        def forward(self, video: Tensor) -> tuple[Tensor, Tensor]:
            logits = self.head(video.flatten(1))
            return logits, logits.square().mean()

        def training_loss(self, outputs: tuple[Tensor, ...], target: Tensor, loss: Callable[..., Tensor]) -> Tensor:
            return loss(outputs[0], target) + 3 * outputs[1]

    state, run = make(Regularized())
    (batch,) = batches(1, clips=6)
    logits, penalty = state.model(batch["video"])
    expected = nn.functional.cross_entropy(logits, batch["label"]) + 3 * penalty
    (gradient,) = torch.autograd.grad(expected, [state.model.head.bias])
    before = state.model.head.bias.detach().clone()
    take_step(state, run, iter([batch]))
    assert state.meter.epoch_values()["loss"] == pytest.approx(expected.item(), rel=1e-6)
    torch.testing.assert_close(state.model.head.bias.detach(), before - 0.5 * gradient)


@pytest.mark.parametrize(
    ("change", "found"),
    [(lambda loss: loss.view(1), r"\(1,\)"), (lambda loss: loss.expand(6), r"\(6,\)"), (Tensor.tolist, "float")],
)
def test_a_loss_of_a_network_must_be_one_number(make, change, found):
    class Wrong(nn.Linear):
        def forward(self, video: Tensor) -> Tensor:
            return super().forward(video.flatten(1))

        def training_loss(self, outputs: tuple[Tensor, ...], target: Tensor, loss: Callable[..., Tensor]) -> Any:
            return change(loss(outputs[0], target))

    state, run = make(Wrong(12, CLASSES))
    with pytest.raises(ValueError, match=f"training_loss .*{found}"):
        take_step(state, run, iter(batches(1, clips=6)))


@pytest.mark.parametrize(("change", "found"), [(lambda x: [x, x], "list"), (lambda x: x[:, :2], r"\(6, 2\).*\(6, 3\)")])
def test_the_logits_of_a_network_must_have_a_column_per_class(make, change, found):
    class Wrong(nn.Linear):
        def forward(self, video: Tensor) -> Any:
            return change(super().forward(video.flatten(1)))

    state, run = make(Wrong(12, CLASSES))
    with pytest.raises(ValueError, match=found):
        take_step(state, run, iter(batches(1, clips=6)))


def test_random_draws_depend_on_the_seed_the_step_the_rank_and_the_micro_batch(make, monkeypatch):
    def draws(step: int = 0, rank: int = 0, **options: Any) -> list[tuple[int, float]]:
        state, run = make(SOLVER__ACCUMULATION_STEPS=2, **options)
        made = []

        def mix(video: Tensor, label: Tensor, rng: Any) -> tuple[Tensor, Tensor]:
            made.append((torch.initial_seed(), rng.rand()))
            return video, nn.functional.one_hot(label, CLASSES).float()

        run.mixup, state.step = mix, step  # pyright: ignore[reportAttributeAccessIssue]
        monkeypatch.setattr("slowfast.utils.distributed.rank", lambda: rank)
        take_step(state, run, iter(batches(2)))
        return made

    first = draws()
    assert first == draws()
    others = [draws(step=1), draws(rank=1), draws(RNG_SEED=7)]
    assert len({seed for seed, _ in first}) == 1
    assert len({seed for made in (first, *others) for seed, _ in made}) == 4
    assert len({share for made in (first, *others) for _, share in made}) == 8


def test_the_loss_decides_what_unmixed_logits_are_compared_with():
    cfg = get_cfg()
    cfg.MODEL.NUM_CLASSES, cfg.MIXUP.LABEL_SMOOTH_VALUE = 4, 0.2
    label = torch.tensor([1, 3])
    hot = torch.eye(4)[label]
    for cfg.MODEL.LOSS_FUNC in LOSSES:
        expected = {"cross_entropy": label, "soft_cross_entropy": 0.8 * hot + 0.05}.get(cfg.MODEL.LOSS_FUNC, hot)
        torch.testing.assert_close(unmixed_target(cfg, label), expected)


@pytest.mark.parametrize(
    ("minutes", "passed", "main", "save"),
    [(0.0, 1e6, True, False), (2.0, 119.9, True, False), (2.0, 120.0, True, True), (2.0, 1e6, False, False)],
)
def test_a_checkpoint_is_due_after_the_minutes_of_the_main_process(make, monkeypatch, minutes, passed, main, save):
    _, run = make(TRAIN__CHECKPOINT_MINUTES=minutes)
    monkeypatch.setattr(run.writer, "seconds_since_save", lambda: passed)
    monkeypatch.setattr("slowfast.utils.distributed.is_main", lambda: main)
    assert agree(torch.ones(2), run).tolist() == [0, 0, save]
    assert agree(torch.tensor([1.0, math.inf]), run).tolist() == [1, 0, save]


@pytest.fixture
def group() -> Iterator[None]:
    """Make a group of this process alone."""
    distributed.init_process_group("gloo", store=distributed.HashStore(), rank=0, world_size=1)
    yield
    distributed.destroy_process_group()


def test_processes_exchange_gradients_in_the_last_micro_batch_only(make, group, monkeypatch):
    state, run = make(SOLVER__ACCUMULATION_STEPS=3)
    run.network = DistributedDataParallel(state.model)
    calls = []

    @contextlib.contextmanager
    def no_sync() -> Iterator[None]:
        calls.append(None)
        yield

    monkeypatch.setattr(run.network, "no_sync", no_sync)
    take_step(state, run, iter(batches(3)))
    assert len(calls) == 2


@pytest.mark.parametrize("fault", ["loss", "gradient"])
def test_a_step_that_is_not_finite_leaves_weights_average_statistics_and_sums(make, fault):
    model = nn.Sequential(nn.Flatten(), nn.BatchNorm1d(12), nn.Linear(12, CLASSES))
    state, run = make(model)
    state.ema = ModelEma(model, 0.5)
    loss = run.loss

    def broken(logits: Tensor, target: Tensor) -> Tensor:
        # the gradient of an added constant is finite, and that of a root at 0 is not
        wrong = math.inf if fault == "loss" else 0 * torch.sqrt(logits.sum() - logits.sum().detach())
        return loss(logits, target) + wrong

    run.loss = broken
    before = {name: value.clone() for name, value in model.state_dict().items()}
    outcome = take_step(state, run, iter(batches(1)))
    assert math.isfinite(outcome.grad_norm) == (fault == "loss")
    for after in (model.state_dict(), state.ema.module.state_dict()):
        assert all(torch.equal(value, before[name]) for name, value in after.items())
    assert state.nonfinite == 1 and not state.meter.sums.any()
    run.loss = loss
    take_step(state, run, iter(batches(1)))
    assert state.nonfinite == 0 and not torch.equal(model.state_dict()["2.weight"], before["2.weight"])


def test_the_time_until_a_batch_arrives_is_counted(make, monkeypatch):
    now = 2.0
    monkeypatch.setattr("time.perf_counter", lambda: now)
    state, run = make(SOLVER__ACCUMULATION_STEPS=2)

    def slow() -> Iterator[dict[str, Any]]:
        nonlocal now
        for batch in batches(2):
            now += 3.0
            yield batch

    take_step(state, run, slow())
    assert state.meter.waited == 6.0


READS = ("item", "tolist", "__bool__", "__int__", "__float__", "__index__")


class Reads(TorchDispatchMode):
    """Count the values of tensors that become Python numbers."""

    def __init__(self) -> None:
        super().__init__()
        self.count = 0

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        self.count += func in (torch.ops.aten._local_scalar_dense.default, torch.ops.aten.nonzero.default)
        return func(*args, **(kwargs or {}))


def count_reads(monkeypatch: pytest.MonkeyPatch, work: Callable[[], object]) -> int:
    calls = []
    with monkeypatch.context() as patch, Reads() as reads:
        for name in READS:
            method = getattr(Tensor, name)
            patch.setattr(Tensor, name, lambda self, method=method: calls.append(1) or method(self))
        work()
    return reads.count + len(calls)


@pytest.mark.parametrize("scaling", [False, True])
@pytest.mark.parametrize("method", ["adamw", "adam", "sgd"])
def test_a_step_reads_no_value_from_the_device(make, monkeypatch, method, scaling):
    model = nn.Sequential(nn.Flatten(), nn.BatchNorm1d(12), nn.Linear(12, CLASSES))
    options = {"MIXUP.ENABLE": True, "MODEL.LOSS_FUNC": "soft_cross_entropy", "SOLVER.CLIP_GRADIENT": 1.0}
    state, run = make(model, SOLVER__OPTIMIZING_METHOD=method, SOLVER__ACCUMULATION_STEPS=2, **options)
    state.optimizer, state.ema = build_optimizer(model, run.cfg), ModelEma(model, 0.5)
    state.scaler = torch.amp.GradScaler("cpu", enabled=scaling)  # pyright: ignore[reportPrivateImportUsage]
    made = iter(batches(8))
    assert count_reads(monkeypatch, lambda: [float(torch.ones(())), bool(torch.ones(()))]) >= 2  # it does count

    def steps() -> None:
        for state.step in range(3):
            train_step(state, run, iter([next(made), next(made)]))
            settle(state, run, leave=1)

    assert count_reads(monkeypatch, steps) == 0
    assert len(run.pending) == 1


@pytest.mark.gpu
@pytest.mark.parametrize("method", ["adamw", "sgd"])
def test_a_step_does_not_wait_for_the_gpu(make, method):
    gpu = torch.device("cuda", 0)
    model = nn.Sequential(nn.Flatten(), nn.BatchNorm1d(12), nn.Linear(12, CLASSES)).to(gpu)
    options = {"MIXUP.ENABLE": True, "MODEL.LOSS_FUNC": "soft_cross_entropy", "SOLVER.CLIP_GRADIENT": 1.0}
    state, run = make(model, SOLVER__OPTIMIZING_METHOD=method, **options)
    state.optimizer, state.ema, state.meter = build_optimizer(model, run.cfg), ModelEma(model, 0.5), TrainMeter(gpu)
    state.scaler, run.device, run.amp = torch.amp.GradScaler("cuda"), gpu, torch.float16  # pyright: ignore[reportPrivateImportUsage]
    run.to_device = clip_mover(run.cfg, gpu)
    made = [{name: value.pin_memory() if torch.is_tensor(value) else value for name, value in batch.items()}
            for batch in batches(8)]  # fmt: skip
    train_step(state, run, iter(made[:1]))  # which makes the state of the optimizer and compiles kernels
    torch.cuda.set_sync_debug_mode("error")
    try:
        for state.step, batch in enumerate(made[1:], 1):
            train_step(state, run, iter([batch]))
            settle(state, run, leave=1)
    finally:
        torch.cuda.set_sync_debug_mode("default")
    assert math.isfinite(settle(state, run).grad_norm) and state.nonfinite == 0


@pytest.mark.parametrize("method", ["adamw", "sgd", "timm/lamb"])
def test_a_first_step_that_is_dropped_leaves_no_trace(make, method):
    results = []
    for first in (math.nan, None):
        state, run = make(SOLVER__OPTIMIZING_METHOD=method)
        state.optimizer = build_optimizer(state.model, run.cfg)
        given = batches(3)
        if first is not None:
            take_step(state, run, iter([{**given[0], "video": given[0]["video"] * first}]))
        for batch in given[1:]:
            take_step(state, run, iter([batch]))
        results.append(parameters(state.model))
    assert torch.equal(*results) and results[0].isfinite().all()


def test_facts_of_a_step_are_settled_while_the_next_one_runs(make, tmp_path):
    state, run = make(TRAIN__MAX_NONFINITE=2)
    first, second, third = batches(3)
    for batch in ({**first, "video": first["video"] * math.nan}, second):
        train_step(state, run, iter([batch]))
        state.step += 1
    outcome = settle(state, run, leave=1)
    assert math.isnan(outcome.grad_norm) and state.nonfinite == 1
    assert [path.name for path in (tmp_path / "nonfinite").iterdir()] == ["step_000000_rank_0.pth"]
    assert math.isfinite(settle(state, run).grad_norm) and state.nonfinite == 0
    for _ in range(2):
        train_step(state, run, iter([{**third, "video": third["video"] * math.nan}]))
    with pytest.raises(SharedError):
        settle(state, run)


def test_a_run_without_a_finite_step_fails(make):
    state, run = make(TRAIN__MAX_NONFINITE=20)
    run.last_step = 2
    broken = [{**batch, "video": batch["video"] * math.nan} for batch in batches(2)]
    take_step(state, run, iter(broken[:1]))
    with pytest.raises(SharedError):
        take_step(state, run, iter(broken[1:]))


class Asking(list):
    """Batches, between which this process is asked to stop."""

    class batch_sampler:
        @staticmethod
        def set_position(*_: int) -> None: ...

    def __init__(self, made: list[dict[str, Any]], before: int, received: list[Any]) -> None:
        super().__init__(made)
        self.before, self.received = before, received

    def __iter__(self) -> Iterator[dict[str, Any]]:
        for number, batch in enumerate(list.__iter__(self)):
            self.received += [signal.SIGTERM] * (number == self.before)
            yield batch


def test_a_request_to_stop_between_two_log_lines_ends_the_epoch_one_step_later(make, monkeypatch):
    received: list[Any] = []
    monkeypatch.setattr(interrupt, "_received", received)
    model = nn.Sequential(nn.Flatten(), nn.Linear(12, CLASSES))
    state, run = make(model, LOG_PERIOD=100)
    state.optimizer = build_optimizer(model, run.cfg)
    made: Any = Asking(batches(8), 3, received)
    made[4]["video"] = made[4]["video"] * math.nan  # the step whose facts are not yet read
    assert train_epoch(state, run, made)
    assert state.step == 5 and state.nonfinite == 0
    assert save(state, run, failing=True) and state.nonfinite == 1
    run.writer.wait()
    assert load_tensors(list_checkpoints(run.cfg.OUTPUT_DIR)[0])["nonfinite"] == 1


class Small(nn.Module):
    """A network with statistics and dropout."""

    def __init__(self) -> None:
        super().__init__()
        self.norm, self.drop, self.head = nn.BatchNorm1d(12), nn.Dropout(0.5), nn.Linear(12, CLASSES)

    def forward(self, video: Tensor) -> Tensor:
        return self.head(self.drop(self.norm(video.flatten(1))))


def trained(make: Callable[..., tuple[TrainState, Run]], compiled: bool) -> dict[str, Any]:
    torch.manual_seed(0)
    state, run = make(Small(), MODEL__COMPILE=compiled, SOLVER__ACCUMULATION_STEPS=2)
    state.ema = ModelEma(state.model, 0.5)
    made = iter(batches(8))
    for state.step in range(4):
        take_step(state, run, iter([next(made), next(made)]))
    return state.state_dict()


def test_a_compiled_network_trains_as_one_graph_to_the_same_state(make, graphs):
    expected, found = trained(make, False), trained(make, True)
    assert len(graphs) == 1
    for part in ("model_state", "ema_state"):
        assert found[part].keys() == expected[part].keys()  # a checkpoint is the same with and without
        for name, value in expected[part].items():
            torch.testing.assert_close(found[part][name], value, msg=name)


@pytest.mark.slow
def test_the_real_compiler_gives_the_same_gradients():
    model, (batch,), gradients = Small().eval(), batches(1), []  # without dropout, whose draws are others
    for network in (model, torch.compile(model, dynamic=False)):
        model.zero_grad()
        nn.functional.cross_entropy(network(batch["video"]), batch["label"]).backward()
        gradients.append(torch.cat([p.grad.flatten() for p in model.parameters() if p.grad is not None]))
    torch._dynamo.reset()
    torch.testing.assert_close(*gradients)
