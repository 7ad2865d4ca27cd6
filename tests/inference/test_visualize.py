"""slowfast-visualize: pictures and videos of maps, clips of a training, exit codes."""

from __future__ import annotations

from functools import partial
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import av
import numpy as np
import pytest
import torch
from PIL import Image
from run_fixtures import EXPERIMENT, run_command

from slowfast.config import load_config
from slowfast.engine.setup import clip_mover, make_loader
from slowfast.engine.start import build_mixup
from slowfast.engine.step import forward_backward
from slowfast.inference.overlay import Heat, draw_heat, video_heat
from slowfast.inference.visualize import mixed

visualize = partial(run_command, "visualize")


def test_values_change_linearly_between_the_frames_that_the_network_saw():
    maps = np.array([1.0, 2.0, 5.0])[:, None, None] * np.ones((3, 2, 2))
    heat = Heat(np.array([2, 4, 10]), maps, 1.0, 1.0, 5.0, 12)
    found = [heat.at(number)[0, 0] for number in (0, 2, 3, 4, 7, 10, 11)]
    assert found == pytest.approx([0, 0, 0.125, 0.25, 0.625, 1, 1])


def test_frames_of_several_views_get_the_mean(one_crop, videos):
    values = iter([1.0, 3.0])
    heat = video_heat(
        one_crop, str(videos / "val_0.mp4"), lambda clip: torch.full((2, 3, 3), next(values)), from_zero=True
    )
    views = np.array(one_crop.frame_indices(heat.length)).reshape(2, -1)
    expected = {n: np.mean([v for v, view in zip((1, 3), views, strict=True) if n in view]) for n in heat.numbers}
    assert set(heat.numbers) == set(views.flat) and heat.maps[:, 0, 0].tolist() == [*expected.values()]
    assert (heat.low, heat.high) == (0, max(expected.values()))
    heat = video_heat(one_crop, str(videos / "val_0.mp4"), lambda clip: torch.full((2, 3, 3), 2.0), from_zero=False)
    assert heat.low == heat.high == 2


def test_a_map_covers_the_centre_and_the_rest_is_dark():
    frame = np.full((40, 80, 3), 100, np.uint8)
    drawn = draw_heat(frame, np.array([[0.0, 1.0]]), 1.0).astype(int)
    assert (drawn[:, :20] == 35).all() and (drawn[:, 60:] == 35).all()
    assert drawn[20, 22, 2] < 100 < drawn[20, 57, 0] and drawn[20, 57, 2] < 50


@pytest.mark.slow
@pytest.mark.parametrize(
    ("command", "options"),
    [
        ("cam", []),
        ("cam", ["--layer", "blocks2", "--class", "grow"]),
        ("attention", []),
        ("attention", ["--layer", "blocks3.0"]),
    ],
)
def test_pictures_and_videos_open(trained, videos, tmp_path, command, options):
    for name in ("map.png", "map.mp4"):
        arguments = [command, videos / "val_1.mp4", "--weights", trained, "--device", "cpu", "--out", tmp_path / name]
        assert visualize(*arguments, *options) == 0
    with Image.open(tmp_path / "map.png") as picture:
        assert picture.width > 600 and np.asarray(picture).std() > 10
    with av.open(str(tmp_path / "map.mp4")) as made, av.open(str(videos / "val_1.mp4")) as given:
        frames, originals = [[*file.decode(video=0)] for file in (made, given)]
    assert len(frames) == len(originals)
    assert [float(f.time or 0) for f in frames] == pytest.approx([float(f.time or 0) for f in originals], abs=1e-3)
    pixels = frames[0].to_ndarray(format="rgb24").astype(int)
    half = frames[0].width // 2
    assert min(frames[0].height, half) >= 360 and np.abs(pixels[:360, :half] - pixels[:360, half:]).mean() > 5


def test_the_same_command_writes_the_same_picture(trained, videos, tmp_path):
    for name in ("a.png", "b.png"):
        assert visualize("cam", videos / "val_2.mp4", "--weights", trained, "--out", tmp_path / name) == 0
    assert (tmp_path / "a.png").read_bytes() == (tmp_path / "b.png").read_bytes()


MIXED = ["MIXUP.ENABLE", "True", "MIXUP.CUTMIX_ALPHA", "1.0", "AUG.ENABLE", "True", "AUG.NUM_SAMPLE", "2"]


@pytest.fixture(scope="module")
def recipe(videos, tmp_path_factory) -> Path:
    path = tmp_path_factory.mktemp("recipe") / "config.yaml"
    path.write_text(EXPERIMENT.format(data=videos, out=path.parent / "out"))
    return path


@pytest.mark.parametrize("overrides", [[], MIXED])
def test_the_clips_are_those_that_a_training_step_passes_to_the_network(recipe, overrides):
    cfg = load_config(recipe, overrides)
    seen: dict[str, Any] = {}

    class Recorder(torch.nn.Linear):
        def forward(self, input: torch.Tensor) -> torch.Tensor:
            seen["video"] = input
            return super().forward(input.mean((2, 3, 4)))

    def loss(logits: torch.Tensor, target: torch.Tensor) -> torch.Tensor:
        seen["target"] = target
        return logits.mean()

    cpu = torch.device("cpu")
    batch = next(iter(make_loader(cfg, "train", cpu)))
    network = Recorder(3, 8)
    state: Any = SimpleNamespace(step=3, model=network, scaler=torch.amp.GradScaler("cpu", enabled=False))
    run: Any = SimpleNamespace(
        cfg=cfg, device=cpu, network=network, to_device=clip_mover(cfg, cpu), loss=loss,
        mixup=build_mixup(cfg) if cfg.MIXUP.ENABLE else None,
    )  # fmt: skip
    forward_backward(state, run, batch, 0)
    video, target = mixed(cfg, batch, 3)
    assert torch.equal(video, seen["video"]) and torch.equal(target, seen["target"])
    assert len(video) == (8 if overrides else 4)


def test_clips_of_a_recipe_are_a_picture_and_no_video(recipe, tmp_path):
    assert visualize("inputs", "--cfg", recipe, "--out", tmp_path / "a.mp4") == 2
    assert not any(tmp_path.iterdir())


def test_the_sheet_has_a_row_per_clip(recipe, tmp_path):
    for count in (1, 3):
        arguments = ["inputs", "--cfg", recipe, "--clips", count, "--step", 2, "--out", tmp_path / f"{count}.png"]
        assert visualize(*arguments, "--opts", *MIXED) == 0
    with Image.open(tmp_path / "1.png") as one, Image.open(tmp_path / "3.png") as three:
        assert three.height - one.height == 2 * 156 and one.width == three.width
    assert visualize("inputs", "--cfg", recipe, "--step", 10**6, "--out", tmp_path / "late.png") == 2
    assert visualize("inputs", "--cfg", "demi", "--out", tmp_path / "unknown.png") == 2
