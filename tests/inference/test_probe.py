"""slowfast-probe: accuracies against scikit-learn, cached features, and wrong inputs."""

from __future__ import annotations

import argparse
import json
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from run_fixtures import run_command
from sklearn.linear_model import LogisticRegression
from sklearn.neighbors import KNeighborsClassifier
from sklearn.preprocessing import StandardScaler
from torch import nn

from slowfast.inference.probe import run_probes
from slowfast.inference.probe_heads import (
    TEMPERATURE,
    AttentiveHead,
    LinearHead,
    Samples,
    bank_logits,
    bank_scores,
    knn_scores,
    load_head,
    statistics,
    train_bank,
)

probe, write = partial(run_command, "probe"), partial(run_command, "extract")
CPU = torch.device("cpu")
CLASSES = 6


def blobs(count: int, seed: int, channels: int = 16) -> Samples:
    """Return one token per sample; classes overlap, and channels have different scales."""
    centres = torch.randn(CLASSES, channels, generator=torch.Generator().manual_seed(0))
    rng = torch.Generator().manual_seed(seed)
    labels = torch.randint(CLASSES, (count,), generator=rng)
    noise = torch.randn(count, channels, generator=rng)
    values = (centres[labels] + 1.3 * noise) * torch.logspace(-2, 2, channels)
    return Samples([*values[:, None]], labels)


def needles(count: int, seed: int, channels: int = 16) -> Samples:
    """Return bags of tokens of which one, with a mark, has the class; all others have another class."""
    directions = torch.linalg.qr(torch.randn(channels, channels, generator=torch.Generator().manual_seed(0)))[0]
    rng = torch.Generator().manual_seed(seed)
    labels = torch.randint(CLASSES, (count,), generator=rng)
    bags = []
    for label in labels:
        others = torch.randint(CLASSES, (int(torch.randint(6, 12, (), generator=rng)),), generator=rng)
        bag = directions[torch.cat([label[None], others])] * 3
        bag[0] += 3 * directions[-1]
        bags.append(bag[torch.randperm(len(bag), generator=rng)])
    return Samples(bags, labels)


def accuracy(scores: torch.Tensor, labels: torch.Tensor) -> float:
    return (scores.argmax(-1) == labels).double().mean().item()


def test_a_linear_probe_is_as_accurate_as_logistic_regression():
    train, val = blobs(900, 1), blobs(2000, 2)
    grid = [(lr, decay) for lr in (1e-1, 1e-2, 1e-3) for decay in (0.01, 0.4)]
    bank = train_bank(
        lambda: LinearHead(*statistics(train), CLASSES), train, grid, epochs=20, batch=64, seed=0, device=CPU
    )
    found = max(accuracy(scores, val.labels) for scores in bank_scores(bank, val, 256, CPU))
    x, y = (samples.vectors().numpy() for samples in (train, val))
    scaler = StandardScaler().fit(x)
    regression = LogisticRegression(max_iter=2000).fit(scaler.transform(x), train.labels.numpy())
    expected = regression.score(scaler.transform(y), val.labels.numpy())
    assert 0.5 < expected < 0.95 and abs(found - expected) < 0.01


@pytest.mark.parametrize("k", [1, 10, 20, 5000])
def test_neighbours_are_those_of_scikit_learn(k):
    train, val = blobs(300, 1), blobs(500, 2)
    x, y = (samples.vectors().numpy() for samples in (train, val))
    weights: Any = lambda distance: np.exp((1 - distance.astype(np.float64)) / TEMPERATURE)  # noqa: E731
    model = KNeighborsClassifier(min(k, 300), metric="cosine", weights=weights).fit(x, train.labels.numpy())
    votes = knn_scores(train, val, k, CLASSES, batch=128)
    assert np.allclose((votes / votes.sum(1, keepdim=True)).numpy(), model.predict_proba(y), atol=1e-4)
    assert accuracy(votes, val.labels) == pytest.approx(model.score(y, val.labels.numpy()), abs=2e-3)


def test_an_attentive_head_is_ordinary_attention_with_one_query():
    torch.manual_seed(0)
    head, tokens = AttentiveHead(16, CLASSES), torch.randn(3, 7, 16)
    mask = torch.arange(7) < torch.tensor([7, 4, 1])[:, None]
    attention = nn.MultiheadAttention(16, head.heads, batch_first=True)
    x = nn.functional.layer_norm(tokens, (16,))
    with torch.no_grad():
        attention.in_proj_weight.copy_(torch.cat([torch.eye(16), head.key.weight, head.value.weight]))
        attention.in_proj_bias.copy_(torch.cat([torch.zeros(32), head.value.bias]))
        attention.out_proj.load_state_dict(head.projection.state_dict())
        query = head.query.flatten().expand(3, 1, 16)
        expected = head.classifier(head.norm(attention(query, x, x, key_padding_mask=~mask)[0][:, 0]))
        assert torch.allclose(head(tokens, mask), expected, atol=1e-5)


def test_an_attentive_probe_finds_what_the_mean_hides():
    train, val = needles(400, 1), needles(300, 2)
    heads = {"attentive": lambda: AttentiveHead(16, CLASSES), "linear": lambda: LinearHead(*statistics(train), CLASSES)}
    found = {
        name: accuracy(
            bank_scores(train_bank(make, train, [(1e-2, 0.01)], epochs=20, batch=32, seed=0, device=CPU), val, 64, CPU)[
                0
            ],
            val.labels,
        )
        for name, make in heads.items()
    }
    assert found["attentive"] > 0.95 and found["linear"] < 0.8


def test_heads_of_a_bank_train_as_alone_and_depend_on_the_seed_only():
    train, grid = needles(60, 1), [(1e-2, 0.01), (1e-3, 0.4), (3e-3, 0.1)]

    def run(grid: list[tuple[float, float]], seed: int = 0) -> list[nn.Module]:
        torch.rand(1)
        return train_bank(lambda: AttentiveHead(16, CLASSES), train, grid, epochs=2, batch=16, seed=seed, device=CPU)

    bank, again, other = run(grid), run(grid), run(grid, seed=1)
    tokens, mask, _ = next(train.batches(range(60), 60, CPU))
    together = bank_logits(bank, tokens, mask)
    assert torch.equal(together, bank_logits(again, tokens, mask))
    assert not torch.allclose(together, bank_logits(other, tokens, mask), atol=1e-3)
    for row, pair in enumerate(grid):
        assert torch.allclose(run([pair])[0](tokens, mask), together[row], atol=1e-4)


@pytest.fixture(scope="module")
def lists(videos, tmp_path_factory) -> tuple[Path, Path]:
    """Return two lists whose paths are relative to no folder that is searched."""
    folder = tmp_path_factory.mktemp("lists")
    for name, rows in (("train", 8), ("val", 5)):
        lines = (videos / f"{name}.csv").read_text().splitlines()[:rows]
        separator = " " if name == "train" else ","
        rows = [separator.join([str(videos / path), label]) for path, label in map(str.split, lines)]
        (folder / f"{name}.csv").write_text("\n".join(rows) + "\n")
    return folder / "train.csv", folder / "val.csv"


def test_cached_features_and_those_on_the_fly_give_equal_results(trained, lists, tmp_path, capsys):
    train, val = lists
    options = ["--val", val, "--epochs", 2, "--lr", 1e-2, 1e-3, "--weight-decay", 0.01, "--k", 3]
    assert probe(train, *options, "--weights", trained, "--layer", "norm", "--out", tmp_path / "fly") == 0
    shown = capsys.readouterr().out
    cache = ["--layer", "norm", "--per-video", "--tokens", "--out", tmp_path / "cache"]
    assert write(train, val, "--weights", trained, *cache) == 0
    assert probe(train, *options, "--features", tmp_path / "cache", "--out", tmp_path / "cached") == 0
    fly, cached = (json.loads((tmp_path / name / "probe.json").read_text()) for name in ("fly", "cached"))
    assert fly["results"] == cached["results"] and fly["classes"] == 8
    assert [row["probe"] for row in fly["results"]] == ["knn", "linear", "linear", "attentive", "attentive"]
    assert sum(row["best"] for row in fly["results"]) == 3 == shown.count("best")
    for name in ("linear", "attentive"):
        one, two = (load_head(tmp_path / folder / f"{name}.pt").state_dict() for folder in ("fly", "cached"))
        assert all((one[key] - two[key]).abs().max() < 1e-4 for key in one)


def test_paths_of_lists_start_from_the_prefix_beside_them(trained, videos, tmp_path, capsys):
    for name, rows in (("train", 8), ("val", 3)):
        lines = (videos / f"{name}.csv").read_text().splitlines(keepends=True)[:rows]
        (tmp_path / f"{name}.csv").write_text("lost, 1.mp4 0\n" * (name == "train") + "".join(lines))
    (tmp_path / "data.yaml").write_text(f"DATA: {{PATH_PREFIX: {videos}}}\n")
    command = [tmp_path / "train.csv", "--val", tmp_path / "val.csv", "--weights", trained, "--probe", "knn", "--k", 3]
    views = ["--opts", "TEST.NUM_ENSEMBLE_VIEWS", 1, "TEST.NUM_SPATIAL_CROPS", 1]
    assert probe(*command, "--out", tmp_path / "probes", *views) == 1
    assert str(videos / "lost, 1.mp4") in capsys.readouterr().err
    found = json.loads((tmp_path / "probes/probe.json").read_text())
    assert (found["train_videos"], found["val_videos"]) == (8, 3)


def test_videos_are_the_same_behind_a_linked_folder(trained, videos, lists, tmp_path):
    (tmp_path / "link").symlink_to(videos)
    listed = [line.split()[0] for line in lists[0].read_text().splitlines()]
    linked = [tmp_path / "link" / Path(path).relative_to(videos) for path in listed]
    command = ["--weights", trained, "--per-video", "--out", tmp_path / "cache", "--opts", "TEST.NUM_SPATIAL_CROPS", 1]
    assert write(*linked, *command) == write(*listed, *command) == 0
    options = ["--features", tmp_path / "cache", "--probe", "knn", "--k", 3, "--out", tmp_path / "probes"]
    assert probe(lists[0], "--val", lists[0], *options) == 0


@pytest.mark.parametrize(("classes", "k"), [(4, 4), (8, 5)])
def test_top5_is_called_by_the_number_of_classes(classes, k, tmp_path, capsys):
    rows = [f"{label}.mp4 {label}" for label in range(classes)]
    (tmp_path / "list.csv").write_text("\n".join(rows) + "\n")
    videos = {str(label): {"path": str(tmp_path / f"{label}.mp4")} for label in range(classes)}
    (tmp_path / "features.json").write_text(json.dumps({"videos": videos}))
    for label in range(classes):
        np.save(tmp_path / f"{label}.npy", np.eye(classes, dtype=np.float32)[None, label])
    command = [
        tmp_path / "list.csv",
        "--val",
        tmp_path / "list.csv",
        "--features",
        tmp_path,
        "--probe",
        "knn",
        "--k",
        1,
    ]
    assert probe(*command, "--out", tmp_path / "out") == 0
    assert capsys.readouterr().out.split()[:4] == ["probe", "setting", "top1", f"top{k}"]
    assert json.loads((tmp_path / "out/probe.json").read_text())["top5_k"] == k


@pytest.mark.parametrize("row", ["b.mp4 1,2", 'b.mp4,"1,2"', "b.mp4 -1", "b.mp4;1", "b.mp4"])
def test_a_wrong_row_is_an_error_that_names_no_key_or_argument(row, tmp_path, capsys):
    listed = tmp_path / "list.txt"
    listed.write_text(f"{'a.mp4,0' if ',' in row[:6] else 'a.mp4 0'}\n{row}\n")
    assert probe(listed, "--val", listed, "--features", tmp_path, "--out", tmp_path / "out") == 2
    error = capsys.readouterr().err
    assert f"{listed}:2" in error
    assert not any(name in error for name in ("MULTI_LABEL", "multi_label", "num_classes", "set separator"))


def test_an_attentive_probe_of_one_vector_per_video_is_refused():
    samples = Samples([torch.ones(1, 4)] * 2, torch.tensor([0, 1]))
    with pytest.raises(ValueError, match="attentive"):
        run_probes(argparse.Namespace(probe=["attentive"]), samples, samples, 2)


def test_wrong_inputs_have_exit_code_2_and_missing_features_1(trained, lists, tmp_path, capsys):
    train, val = lists
    assert write(train, "--weights", trained, "--window", 8, "--out", tmp_path / "f") == 0
    ready = ["--features", tmp_path / "f", "--out", tmp_path / "out", "--epochs", 1]
    short = tmp_path / "short.csv"
    short.write_text(train.read_text() + val.read_text().replace(",", " ").splitlines()[0] + "\n")
    assert probe(train, "--val", short, *ready, "--probe", "knn") == 1
    capsys.readouterr()
    wrong = [
        (train, "--val", val, *ready),
        (train, "--val", tmp_path / "none.csv", *ready),
        (train, "--val", train, "--features", tmp_path, "--out", tmp_path / "out"),
        (train, "--val", train, "--features", tmp_path / "f", "--out", short),
        (train, "--val", train, "--weights", trained, "--out", tmp_path / "new", "--probe", "attentive"),
        (train, "--val", train, "--weights", trained, "--out", tmp_path / "new", "--layer", "nrom"),
    ]
    for command in wrong:
        assert probe(*command) == 2
        error = capsys.readouterr().err
        assert error.startswith("error: ") and error.count("\n") == 1
    of_network = (["--layer", "norm"], ["--processes", "2"], ["--opts", "TEST.NUM_ENSEMBLE_VIEWS", "1"])
    ignored = [["--features", "f", *options] for options in (["--weights", "w"], *of_network)]
    for command in ([], *ignored):
        with pytest.raises(SystemExit) as end:
            probe(train, "--val", val, "--out", tmp_path, *command)
        assert end.value.code == 2
