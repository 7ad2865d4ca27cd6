"""slowfast-export: files of every format equal the network, for any number of clips."""

from __future__ import annotations

import json
import time
from dataclasses import replace
from functools import partial

import numpy as np
import onnxruntime
import pytest
import torch
from run_fixtures import run_command
from safetensors import safe_open
from small_networks import SHALLOW_V2, TOWER, small
from torch import nn

import slowfast
from slowfast.inference.draw import pictures
from slowfast.inference.export import METADATA, export_model, latency, metadata
from slowfast.models.linear import is_exporting

NETWORKS = {  # and the trained UniFormer, with its metadata
    **{name: {"depth": (1, 0, 1, 0)} for name in ("uniformer_split", "light")},
    "v2": {"backbone": replace(TOWER, layers=2), "return_list": (0, 1)},
    "v2_global_only": SHALLOW_V2,
}
SHAPE = (3, 4, 64, 64)
export = partial(run_command, "export")


@pytest.mark.slow
@pytest.mark.parametrize("name", NETWORKS)
def test_onnx_gives_the_logits_of_the_network_for_any_number_of_clips(name, tmp_path):
    model, clips = small(name, **NETWORKS[name]), torch.randn(5, *SHAPE)
    runner, error = export_model(model, SHAPE, {}, "onnx", tmp_path / "a.file")
    assert error < 1e-4
    with torch.no_grad():
        expected = model(clips)
    assert expected.std() > 0.01
    assert (runner(clips) - expected).abs().max() < 1e-4 * expected.abs().max()
    assert [path.name for path in tmp_path.iterdir()] == ["a.file"]


class WrongForThree(nn.Module):
    """A network whose exported program gives NaN for three clips."""

    def __init__(self) -> None:
        super().__init__()
        self.layer = nn.Linear(3, 5)

    def forward(self, clips: torch.Tensor) -> torch.Tensor:
        logits = self.layer(clips.flatten(2).mean(2))
        count = torch.ones_like(logits[:, :1]).sum()
        return logits + (2.5 - count).clamp(max=0).sqrt() if is_exporting() else logits


class Unstable(nn.Module):
    """A network that gives other logits in each call outside of an export."""

    def __init__(self) -> None:
        super().__init__()
        self.layer, self.calls = nn.Linear(3, 5), 0

    def forward(self, clips: torch.Tensor) -> torch.Tensor:
        self.calls += 1
        return self.layer(clips.flatten(2).mean(2)) * self.calls


@pytest.mark.parametrize("network", [Unstable, WrongForThree])
def test_a_file_that_differs_is_not_written(network, tmp_path):
    (tmp_path / "a.pt2").write_text("before")
    with pytest.raises(ValueError, match="share"):
        export_model(network(), SHAPE, {}, "torch-export", tmp_path / "a.pt2")
    assert [path.read_text() for path in tmp_path.iterdir()] == ["before"]


@pytest.mark.slow
def test_onnx_contains_class_names_and_normalization_and_gives_the_logits(net, trained, tmp_path, capsys):
    path = tmp_path / "new" / "demo.onnx"
    assert export(trained, "--format", "onnx", "--out", path) == 0
    session = onnxruntime.InferenceSession(path, providers=["CPUExecutionProvider"])
    about = {name: json.loads(value) for name, value in session.get_modelmeta().custom_metadata_map.items()}
    assert about["class_names"] == net.class_names
    assert about["mean"] == net.cfg.DATA.MEAN and about["std"] == net.cfg.DATA.STD
    assert about["shape"] == [3, 4, 32, 32] and about["channel_order"] == "RGB" and about["views"] == 2
    clips = torch.randn(4, *about["shape"])
    (logits,) = session.run(["logits"], {"clips": clips.numpy()})
    with torch.no_grad():
        expected = net.model(clips).numpy()
    assert np.abs(np.asarray(logits) - expected).max() < 1e-5 < 1e-3 < expected.std(0).max()
    assert {"eager", "onnx"} <= {*capsys.readouterr().out.split()}


@pytest.mark.parametrize("dataset", ["kinetics", "sth"])
@pytest.mark.parametrize("reverse", ["True", "False"])
def test_the_stated_order_of_the_channels_is_that_of_the_clips(trained, write_video, tmp_path, dataset, reverse):
    options = ["TEST.DATASET", dataset, "DATA.REVERSE_INPUT_CHANNEL", reverse]
    net = slowfast.load(trained, device="cpu", overrides=options)
    clips = net.clips(write_video(tmp_path / "reddish.mp4"))
    order = metadata(net)["channel_order"]
    assert clips.mean((0, 2, 3, 4)).argmax() == order.index("R")
    red, green, blue = pictures(net.cfg, clips).mean((0, 1, 2, 3))
    assert red > green + 30 and red > blue + 30


def test_a_program_contains_class_names_and_gives_the_logits_for_any_number_of_clips(net, trained, tmp_path):
    path = tmp_path / "demo.pt2"
    assert export(trained, "--format", "torch-export", "--out", path) == 0
    files = {METADATA: ""}
    program = torch.export.load(path, extra_files=files).module()
    about = json.loads(files[METADATA])
    assert about["class_names"] == net.class_names
    clips = torch.randn(5, *about["shape"])
    with torch.no_grad():
        expected = net.model(clips)
        assert (program(clips) - expected).abs().max() < 1e-5 < 1e-3 < expected.std(0).max()


def test_tensors_are_those_of_the_network(net, trained, tmp_path):
    path = tmp_path / "demo.safetensors"
    assert export(trained, "--format", "safetensors", "--out", path) == 0
    with safe_open(path, "pt") as file:
        tensors = {name: file.get_tensor(name) for name in file.keys()}  # noqa: SIM118
        assert json.loads(file.metadata()["class_names"]) == net.class_names
    assert tensors.keys() == net.model.state_dict().keys()
    assert all(torch.equal(value, tensors[name]) for name, value in net.model.state_dict().items())


def test_the_latency_is_in_milliseconds():
    def slow(clips: torch.Tensor) -> torch.Tensor:
        time.sleep(0.01)
        return clips

    assert 10 <= latency({"slow": slow}, torch.empty(0))["slow"] < 100


@pytest.mark.parametrize(
    ("dataset", "expected"),
    [("kinetics", {"sampling": "dense", "sampling_rate": 7}), ("kinetics_sparse", {"sampling": "sparse"})],
)
def test_the_metadata_say_which_frames_are_read(dataset, expected, trained):
    net = slowfast.load(trained, device="cpu", overrides=["TEST.DATASET", dataset, "DATA.SAMPLING_RATE", "7"])
    assert {key: value for key, value in metadata(net).items() if key.startswith("sampling")} == expected


@pytest.mark.parametrize("loss", ["cross_entropy", "bce"])
@pytest.mark.parametrize("method", ["sum", "max"])
@pytest.mark.parametrize(("several", "softmax"), [("True", "None"), ("False", "True"), ("False", "False")])
def test_the_metadata_say_how_the_clips_of_a_video_become_its_probabilities(
    several, method, softmax, loss, trained, videos
):
    rule = ("TEST.ADD_SOFTMAX", softmax, "DATA.ENSEMBLE_METHOD", method, "DATA.MULTI_LABEL", several)
    rule = (*rule, "MODEL.LOSS_FUNC", loss)
    net = slowfast.load(trained, device="cpu", overrides=rule)
    with torch.no_grad():  # so that the clips of a video differ
        for parameter in net.model.parameters():
            parameter *= 3
    about, path = metadata(net), next(videos.rglob("*.mp4"))
    with torch.no_grad():
        views = net.model(net.clips(path)).double()
    activation = {"softmax": partial(torch.softmax, dim=-1), "sigmoid": torch.sigmoid}[about["activation"]]
    first = about["ensemble"] == "probabilities"
    views = activation(views) if first else views
    combined = views.mean(0) if about["ensemble_method"] == "mean" else views.amax(0)
    found = combined if first else activation(combined)
    if first and about["activation"] == "softmax":
        found /= found.sum()
    names = net.class_names or []
    expected = {one.name: one.probability for one in net.predict(path, top=len(names)).top}
    assert [expected[name] for name in names] == pytest.approx(found.tolist(), abs=1e-6)
    assert len(views) > 1
