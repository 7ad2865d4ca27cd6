"""Accuracies and the ensemble of views match the official meters, whose faults are mended."""

from __future__ import annotations

import hashlib
import json
import os
import re
import signal
import time
import tracemalloc
from pathlib import Path

import numpy as np
import pytest
import torch
from cluster import free_ports

from slowfast.engine import evaluate as module
from slowfast.engine.evaluate import Evaluation, ViewEnsemble, evaluate
from slowfast.engine.meters import METRICS, TrainMeter, in_top, merge_mixed, metrics_text
from slowfast.run import interrupt
from slowfast.run.rendezvous import join_group
from slowfast.run.watchdog import watching
from slowfast.utils import distributed

CPU = torch.device("cpu")

CASES = json.loads((Path(__file__).parents[1] / "golden" / "schedule.json").read_text())["targets_metrics"]


def drawn(rule: str) -> np.ndarray:
    """Return the array of a rule such as 'RandomState(800).standard_normal((12,6)).astype(float32)*2'."""
    seed, rows, columns = (int(n) for n in re.findall(r"\d+", rule)[:3])
    factor = 2 if "*2" in rule else 1
    return np.random.RandomState(seed).standard_normal((rows, columns)).astype(np.float32) * factor


@pytest.mark.parametrize("case", CASES["topk"])
def test_topk_matches_the_official_meter(case):
    scores, labels = torch.from_numpy(drawn(case["preds"])), torch.tensor(case["labels"])
    assert [int(in_top(scores, labels, k).sum()) for k in case["ks"]] == case["topks_correct"]


def test_topk_with_fewer_classes_than_k():
    scores = torch.tensor([[0.1, 0.9], [0.8, 0.2]])
    assert [int(in_top(scores, torch.tensor([0, 0]), k).sum()) for k in (1, 5)] == [1, 2]
    assert metrics_text({"top1": 50.0, "top5": 100.0}, num_classes=2) == "top1 50.00  top2 100.00"


def test_of_equal_scores_the_first_class_is_the_highest():
    scores, labels = torch.zeros(3, 8), torch.tensor([0, 4, 5])
    assert in_top(scores, labels, 1).tolist() == [True, False, False]
    assert in_top(scores, labels, 5).tolist() == [True, True, False]


def test_a_new_metric_is_a_row(monkeypatch):
    monkeypatch.setitem(
        METRICS, "true_class", lambda scores, labels: scores.softmax(1).gather(1, labels.view(-1, 1))[:, 0]
    )
    scores, labels = torch.zeros(3, 4), torch.tensor([0, 1, 2])
    meter = TrainMeter(CPU)
    old = {"sums": torch.ones(2, len(METRICS) + 1)}  # of a checkpoint without it
    meter.load_state_dict(old)
    meter.update(torch.tensor(1.0), scores, labels, waited=0.0)
    assert meter.epoch_values()["true_class"] == pytest.approx(25.0)
    values = Evaluation(np.arange(3), labels.numpy(), scores.numpy()).metrics()
    assert values["true_class"] == pytest.approx(25.0) and "true_class 25.00" in metrics_text(values, 4)


def test_training_accuracy_of_mixed_samples():
    case = CASES["mixup_training_accuracy"]
    labels, classes = torch.tensor(case["labels"]), 8
    hot = torch.nn.functional.one_hot(labels, classes) * (1 - case["smoothing"]) + case["smoothing"] / classes
    target = case["lam"] * hot + (1 - case["lam"]) * hot.flip(0)
    scores, labels = merge_mixed(torch.from_numpy(drawn(case["preds"])), target)
    assert [int(in_top(scores, labels, k).sum()) for k in (1, 5)] == case["topks_correct_1_5"]


@pytest.mark.parametrize("case", CASES["test_meter"])
def test_ensemble_of_views_matches_the_official_meter(case):
    ensemble = ViewEnsemble(case["method"], case["softmax_before_ensemble"])
    logits, views = torch.from_numpy(drawn(case["preds"])), case["num_clips"]
    for clips in torch.tensor(case["update_order"]).split(case["batch"]):
        video = clips // views
        ensemble.update(ensemble.values(logits[clips]), torch.tensor(case["labels"])[video], video, clips % views)
    index = sorted(ensemble.views)
    scores = ensemble.scores[index]
    # the official maximum starts from zeros, which hides negative logits; ours is a maximum
    shown = np.maximum(scores, 0) if case["method"] == "max" else scores
    assert shown == pytest.approx(np.array(case["video_preds"]), abs=1e-5)
    assert scores.argmax(1).tolist() == case["argmax"]
    metrics = Evaluation(np.array(index), np.array(case["labels"]), scores).metrics()
    assert f"{metrics['top1']:.2f}" == case["stats"]["top1_acc"]
    assert f"{metrics['top5']:.2f}" == case["stats"]["top5_acc"]


def test_accuracy_is_over_the_videos_whose_class_is_known():
    scores = np.array([[0.1, 0.9, 0.0], [0.8, 0.1, 0.1], [0.0, 0.0, 1.0]])
    metrics = Evaluation(np.arange(3), np.array([1, -1, 0]), scores).metrics()
    assert (metrics["top1"], metrics["num_labelled"], metrics["num_videos"]) == (50.0, 2, 3)
    unlabelled = Evaluation(np.arange(3), np.full(3, -1), scores).metrics()
    assert unlabelled["top1"] is unlabelled["top5"] is unlabelled["loss"] is None and unlabelled["num_labelled"] == 0
    assert unlabelled.keys() == metrics.keys() and unlabelled["mean_class"] is None


def test_in_the_mean_over_classes_every_class_counts_the_same(monkeypatch):
    generator = np.random.default_rng(0)
    labels = np.repeat([0, 1, 3], [60, 9, 3])  # no video of class 2
    scores = generator.random((72, 4)).astype(np.float32)
    scores[:50, 0] += 1
    expected = [np.mean(scores[labels == k].argmax(1) == k) for k in (0, 1, 3)]
    for chunk in (1 << 20, 40):  # bytes: all videos at once, and two
        monkeypatch.setattr(module, "CHUNK", chunk)
        metrics = Evaluation(np.arange(72), labels, scores).metrics()
        assert metrics["mean_class"] == pytest.approx(100 * np.mean(expected))
        assert metrics["top1"] == pytest.approx(100 * np.mean(scores.argmax(1) == labels))
    assert metrics["top1"] > metrics["mean_class"] + 10


def test_the_loss_is_the_cross_entropy_of_the_mean_over_views():
    logits, labels = torch.randn(4, 3, 6), torch.tensor([0, 5, 2, 3])  # videos, views, classes
    cross_entropy = torch.nn.functional.cross_entropy
    expected = {
        ("sum", False): cross_entropy(logits.mean(1), labels),
        ("sum", True): torch.nn.functional.nll_loss(logits.softmax(2).mean(1).log(), labels),
        ("max", False): cross_entropy(logits.amax(1), labels),
    }
    batch = {"video": logits.flatten(0, 1), "label": labels.repeat_interleave(3), "bad": []}
    batch |= {"index": torch.arange(4).repeat_interleave(3), "view": torch.arange(3).repeat(4)}
    for (method, softmax), loss in expected.items():
        ensemble = ViewEnsemble(method, softmax)
        result = evaluate(torch.nn.Identity(), [batch], lambda v: v, CPU, ensemble, max_clips=12, description="")
        assert result.metrics()["loss"] == pytest.approx(float(loss), rel=1e-6)


def test_a_probability_that_is_too_small_gives_a_finite_loss():
    scores = np.array([[1.0, 0.0]], np.float32)
    assert 80 < Evaluation(np.arange(1), np.array([1]), scores, probabilities=True).metrics()["loss"] < 90


def test_repeated_views_count_once():
    logits = torch.randn(4, 3)
    once, twice = ViewEnsemble("sum", False), ViewEnsemble("sum", False)
    label, index, view = torch.tensor([1, 1, 2, 2]), torch.tensor([0, 0, 1, 1]), torch.tensor([0, 1, 0, 1])
    once.update(logits, label, index, view)
    for _ in range(2):
        twice.update(logits, label, index, view)
    assert all(np.array_equal(once.scores[i], twice.scores[i]) for i in (0, 1))


def test_evaluate_splits_batches_and_restores_the_mode():
    torch.manual_seed(0)
    model = torch.nn.Sequential(torch.nn.Flatten(), torch.nn.Linear(3 * 2 * 4 * 4, 3)).train()
    clips = torch.randn(6, 3, 2, 4, 4)
    batch = {
        "video": clips,
        "label": torch.tensor([0, 0, 1, 1, 2, 2]),
        "index": torch.tensor([4, 4, 2, 2, 7, 7]),
        "view": torch.tensor([0, 1, 0, 1, 0, 1]),
        "bad": [("x.mp4", "torn")],
    }
    result = evaluate(model, [batch], lambda v: v, CPU, ViewEnsemble("sum", False), max_clips=4, description="")
    expected = model(clips).detach().view(3, 2, 3).sum(1)[[1, 0, 2]].numpy()
    assert result.scores == pytest.approx(expected, abs=1e-6)
    assert result.index.tolist() == [2, 4, 7] and result.label.tolist() == [1, 0, 2]
    assert result.metrics()["num_skipped"] == 1 and result.metrics()["top5_k"] == 3
    assert model.training
    assert result.bad == [("x.mp4", "torn")]
    broken = [{**batch, "video": clips * torch.nan}]
    with pytest.raises(ValueError, match="not finite"):
        evaluate(model, broken, lambda v: v, CPU, ViewEnsemble("sum", False), 4, "")


def test_an_evaluation_of_no_videos_is_an_error():
    with pytest.raises(ValueError, match="no video could be evaluated"):
        evaluate(torch.nn.Identity(), [], lambda v: v, CPU, ViewEnsemble("sum", False), 1, "")


def batches(count: int):
    for n in range(count):
        yield {"video": torch.randn(1, 3), "label": torch.tensor([0]), "index": torch.tensor([n]),
               "view": torch.tensor([0]), "bad": []}  # fmt: skip


def test_a_request_to_stop_ends_an_evaluation(monkeypatch):
    monkeypatch.setattr(interrupt, "_received", [])
    ensemble, model = ViewEnsemble("sum", False), torch.nn.Identity().train()

    def ask(video: torch.Tensor) -> torch.Tensor:
        interrupt._received.append(signal.SIGUSR2)
        return video

    with pytest.raises(interrupt.Interruption, match="SIGUSR2 during a test"):
        evaluate(model, batches(5), ask, CPU, ensemble, 1, "a test")
    assert len(ensemble.views) == 1 and model.training


class Counted(torch.nn.Module):
    """Count the calls, and keep a GPU busy for some 30 ms in each."""

    def __init__(self) -> None:
        super().__init__()
        self.calls, self.was_busy = 0, list[bool]()

    def forward(self, clips: torch.Tensor) -> torch.Tensor:
        self.calls += 1
        if clips.is_cuda:
            self.was_busy.append(not torch.cuda.current_stream().query())
            torch.cuda._sleep(50_000_000)
        return clips.clone()


def test_the_copy_of_scores_begins_before_the_next_clips_are_computed(monkeypatch):
    model, copied, read = Counted(), list[int](), list[int]()
    ensemble, copy = ViewEnsemble("sum", False), module.copy_to_cpu
    update = ensemble.update
    monkeypatch.setattr(module, "copy_to_cpu", lambda values: copied.append(model.calls) or copy(values))
    monkeypatch.setattr(ensemble, "update", lambda *clips: read.append(model.calls) or update(*clips))
    assert len(evaluate(model, batches(4), lambda v: v, CPU, ensemble, 1, "").index) == 4
    assert copied == [1, 2, 3, 4] and read == [2, 3, 4, 4]


@pytest.mark.gpu
def test_a_gpu_computes_the_next_clips_while_scores_are_read():
    for _ in range(2):  # the first time, kernels are loaded, which may wait for others
        model = Counted()
        evaluate(model, batches(6), lambda v: v.cuda(), torch.device("cuda", 0), ViewEnsemble("sum", True), 1, "")
    assert model.calls == 6 and all(model.was_busy[1:])


def made(rank: int, world: int, videos: int, classes: int):
    """Batches of this process; every seventh video is broken."""
    rows = [i for i in range(rank, videos, world) if i % 7]
    for part in (rows[i : i + 64] for i in range(0, len(rows), 64)):
        index = torch.tensor(part).repeat_interleave(2)
        video = torch.cat([torch.rand(2, classes, generator=torch.Generator().manual_seed(i)) for i in part])
        yield {"video": video, "label": index % classes, "index": index, "view": torch.arange(2).repeat(len(part)),
               "bad": [(f"{part[0]}.mp4", "torn")]}  # fmt: skip


def evaluate_made(local_rank: int, world: int, videos: int, classes: int, folder: Path, port: int) -> None:
    """Save the result of each process, and its peak of memory for arrays over that of the scores."""
    torch.set_num_threads(1)  # the threads of the process that forked this one are not here
    if world > 1:
        os.environ.update(RANK=str(local_rank), WORLD_SIZE=str(world), MASTER_ADDR="127.0.0.1", MASTER_PORT=str(port))
        join_group("gloo", CPU, timeout=60, check=lambda: None)
    batches, ensemble = made(local_rank, world, videos, classes), ViewEnsemble("sum", softmax=True, videos=videos)
    tracemalloc.start()
    result = evaluate(torch.nn.Identity(), batches, lambda v: v, CPU, ensemble, 64, "")
    metrics = result.metrics()
    peak = tracemalloc.get_traced_memory()[1] / result.scores.nbytes
    tracemalloc.stop()
    assert result.scores.dtype == np.float32 and metrics["num_videos"] == len(result.index)
    content = (result.index, result.label, result.scores, np.array(result.bad), np.array([metrics["top1"]]))
    digest = [hashlib.sha256(np.ascontiguousarray(part).tobytes()).hexdigest() for part in content[:3]]
    (folder / f"{world}_{local_rank}.json").write_text(json.dumps([digest, metrics, peak]))
    distributed.destroy_process_group()


@pytest.mark.slow
def test_scores_are_gathered_in_little_memory_and_bit_for_bit(tmp_path, monkeypatch):
    monkeypatch.setattr(module, "CHUNK", 1 << 18)
    sizes = (4000, 1000)  # 14 MB
    for world in (1, 2, 3):
        torch.multiprocessing.start_processes(
            evaluate_made, (world, *sizes, tmp_path, free_ports(1)[0]), nprocs=world, start_method="fork"
        )
    results = [json.loads(path.read_text()) for path in sorted(tmp_path.iterdir())]
    assert len(results) == 6
    for digest, metrics, peak in results:
        assert digest == results[0][0] and metrics["top1"] == results[0][1]["top1"]
        assert peak < 1.5


def evaluate_until_asked(local_rank: int, reason: str, folder: Path, port: int) -> None:
    """Evaluate in two processes, of which the second one alone is asked to stop, or gets scores that are not finite."""
    torch.set_num_threads(1)
    os.environ.update(RANK=str(local_rank), WORLD_SIZE="2", MASTER_ADDR="127.0.0.1", MASTER_PORT=str(port))
    join_group("gloo", CPU, timeout=60, check=lambda: None)
    if local_rank and reason == "signal":
        interrupt.listen()
        os.kill(os.getpid(), signal.SIGUSR1)
    value, count = float("nan") if local_rank and reason == "nan" else 1.0, 0

    def batches():
        nonlocal count
        for count in range(1, 101):
            time.sleep(0.1)
            clip, one = torch.full((1, 3), value), torch.tensor([count])
            yield {"video": clip, "label": one, "index": one, "view": one * 0, "bad": []}

    try:
        evaluate(torch.nn.Identity(), batches(), lambda clips: clips, CPU, ViewEnsemble("sum", False), 1, "a test")
    except (interrupt.Interruption, distributed.SharedError) as end:
        (folder / str(local_rank)).write_text(f"{type(end).__name__} {count < 50} {interrupt.received()!r}")
    distributed.destroy_process_group()


@pytest.mark.parametrize(
    ("reason", "end"),
    [("signal", f"Interruption True {signal.SIGUSR1!r}"), ("nan", "SharedError True None")],
)
def test_an_evaluation_that_one_process_ends_is_not_completed_by_the_others(tmp_path, reason, end):
    torch.multiprocessing.start_processes(
        evaluate_until_asked, (reason, tmp_path, free_ports(1)[0]), nprocs=2, start_method="fork"
    )
    assert [(tmp_path / rank).read_text() for rank in "01"] == [end] * 2


def evaluate_slowly(local_rank: int, folder: Path, port: int) -> None:
    """Evaluate in two processes; the second one needs longer than the watchdog allows without progress."""
    torch.set_num_threads(1)
    os.environ.update(RANK=str(local_rank), WORLD_SIZE="2", MASTER_ADDR="127.0.0.1", MASTER_PORT=str(port))
    join_group("gloo", CPU, timeout=60, check=lambda: None)

    def batches():
        for row in range(local_rank, 12 if local_rank else 1, 2):
            time.sleep(0.5 * local_rank)
            one = torch.tensor([row])
            yield {"video": torch.ones(1, 3), "label": one % 3, "index": one, "view": one * 0, "bad": []}

    with watching(1.5, folder / "hang.txt"):
        result = evaluate(torch.nn.Identity(), batches(), lambda v: v, CPU, ViewEnsemble("sum", False), 1, "a test")
    (folder / str(local_rank)).write_text(str(result.index.tolist()))
    distributed.destroy_process_group()


def test_a_process_may_finish_its_part_of_an_evaluation_long_before_another(tmp_path):
    torch.multiprocessing.start_processes(evaluate_slowly, (tmp_path, free_ports(1)[0]), nprocs=2, start_method="fork")
    assert [(tmp_path / rank).read_text() for rank in "01"] == [str([0, 1, 3, 5, 7, 9, 11])] * 2


def test_train_meter_restores_its_means():
    meter = TrainMeter(torch.device("cpu"))
    scores = torch.arange(6.0).flip(0).expand(2, 6)  # class 0 first, class 5 last
    meter.update(torch.tensor(2.0), scores, torch.tensor([0, 4]), waited=0.0)
    meter.update(torch.tensor(5.0), scores[:1], torch.tensor([1]), waited=0.0)
    other = TrainMeter(torch.device("cpu"))
    other.load_state_dict(meter.state_dict())
    values = other.log_values()
    assert (values["loss"], values["top1"], values["top5"]) == pytest.approx((3.0, 100 / 3, 100.0))
    other.update(torch.tensor(1.0), scores[:1], torch.tensor([0]), waited=0.0)
    assert other.log_values()["loss"] == 1.0  # a new period
    assert other.epoch_values()["loss"] == pytest.approx(10 / 4)
