"""Test that a new backbone needs one class and one row, and which networks and options are accepted."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from small_networks import SMALL, small
from torch import Tensor, nn

from slowfast.config import dump_config, get_cfg
from slowfast.config.load import ConfigNode
from slowfast.models import build
from slowfast.models.backbone import Backbone
from slowfast.models.layers import single_input
from slowfast.optim.build import build_loss, build_optimizer, set_learning_rate


class MeanPool(nn.Module):
    """The smallest backbone: patches, their mean, and a linear classifier."""

    head_names = ("head",)

    def __init__(self, num_classes: int = 400, in_channels: int = 3, width: int = 8, pool: str = "avg") -> None:
        super().__init__()
        if pool not in ("avg", "max"):
            raise ValueError(f"pool {pool!r} is not known: choose avg or max")
        self.pool = pool
        self.stem = nn.Conv3d(in_channels, width, (1, 8, 8), (1, 8, 8))
        self.head = nn.Linear(width, num_classes)

    def forward(self, video: Tensor | list[Tensor]) -> Tensor:
        features = self.stem(single_input(video)).flatten(2)
        return self.head(features.mean(2) if self.pool == "avg" else features.amax(2))


@pytest.fixture(autouse=True)
def mean_pool(monkeypatch):
    monkeypatch.setitem(build.MODELS, "MeanPool", build.Row(MeanPool))


def config(**options: Any) -> ConfigNode:
    cfg = get_cfg()
    values = {"MODEL__MODEL_NAME": "MeanPool", "MODEL__NUM_CLASSES": 5, **options}
    cfg.merge_from_list([item for key, value in values.items() for item in (key.replace("__", "."), value)])
    return cfg


def test_a_new_backbone_trains_and_starts_from_its_checkpoint(tmp_path):
    torch.manual_seed(0)
    cfg = config(MODEL__OPTIONS=["width=16", "pool=max"], SOLVER__BACKBONE_LR_RATIO=0.1)
    model = build.build_model(cfg)
    assert isinstance(model, MeanPool) and model.head.in_features == 16 and model.pool == "max"
    assert build.input_shape(cfg) == (3, 8, 256, 256) and not build.sums_softmax(cfg)

    optimizer, loss = build_optimizer(model, cfg), build_loss(cfg)
    set_learning_rate(optimizer, 0.1)
    assert {group["lr_scale"] for group in optimizer.param_groups} == {0.1, 1.0}
    video, labels, losses = torch.randn(4, 3, 2, 16, 16), torch.arange(4), []
    for _ in range(5):
        losses.append(loss(model(video), labels))
        optimizer.zero_grad()
        losses[-1].backward()
        optimizer.step()
    assert losses[-1] < losses[0]

    torch.save({"model_state": model.state_dict(), "cfg": dump_config(cfg)}, tmp_path / "w.pyth")
    cfg.merge_from_list(["TRAIN.CHECKPOINT_FILE_PATH", str(tmp_path / "w.pyth")])
    again = build.build_model(cfg)
    build.initialize(again, cfg)
    assert torch.equal(again(video), model(video))


def test_a_backbone_without_a_choice_of_what_to_keep_recomputes_everything(monkeypatch):
    class Checkpointed(MeanPool):
        def set_grad_checkpointing(self, blocks: list[int]) -> None:
            self.blocks = blocks

    monkeypatch.setitem(build.MODELS, "MeanPool", build.Row(Checkpointed))
    options = {"MODEL__USE_CHECKPOINT": True, "MODEL__CHECKPOINT_NUM": [2]}
    assert build.build_model(config(**options)).blocks == [2]  # pyright: ignore
    with pytest.raises(ValueError, match=r"MODEL\.CHECKPOINT_KEEP products"):
        build.build_model(config(**options, MODEL__CHECKPOINT_KEEP="products"))


def test_without_weights_a_new_backbone_keeps_its_initial_values():
    model = build.build_model(config())
    before = {name: value.clone() for name, value in model.state_dict().items()}
    build.initialize(model, config())
    assert all(torch.equal(before[name], value) for name, value in model.state_dict().items())


@pytest.mark.parametrize(
    ("options", "named"),
    [
        ({"MODEL__OPTIONS": ["widht=16"]}, "MODEL.OPTIONS.*'widht' .*'width'"),
        ({"MODEL__OPTIONS": ["width=wide"]}, "MODEL.OPTIONS.*width 'wide' .*int"),
        ({"MODEL__OPTIONS": ["pool=min"]}, "pool 'min' .*MODEL.OPTIONS"),
        ({"MODEL__USE_CHECKPOINT": True}, "MODEL.USE_CHECKPOINT"),
        ({"MODEL__MODEL_NAME": "Uniformer", "MODEL__OPTIONS": ["split=True"]}, "MODEL.OPTIONS .*UNIFORMER"),
        (
            {"MODEL__MODEL_NAME": "Uniformer", "UNIFORMER__REPRESENTATION_SIZE": 512},
            "UNIFORMER.REPRESENTATION_SIZE 512",
        ),
        ({"MODEL__MODEL_NAME": "Uniformer_light", "UNIFORMER__SPLIT": True}, "UNIFORMER.SPLIT True"),
        ({"MODEL__MODEL_NAME": "Uniformer_light", "UNIFORMER__LAYER_SCALE": [0.1] * 4}, "UNIFORMER.LAYER_SCALE"),
        ({"MODEL__MODEL_NAME": "Uniformer_image", "UNIFORMER__STD": True}, "std .*UNIFORMER"),
        ({"MODEL__MODEL_NAME": "Uniformerv2", "UNIFORMERV2__N_LAYERS": 3}, "UNIFORMERV2.N_LAYERS 3 .* 4"),
    ],
)
def test_unknown_options_of_a_network_are_named(options, named):
    with pytest.raises(ValueError, match=named):
        build.build_model(config(**options))


@pytest.mark.parametrize("name", SMALL)
def test_every_network_is_a_backbone(name):
    model = small(name)
    names = [parameter for parameter, _ in model.named_parameters()]
    assert isinstance(model, Backbone)
    assert all(any(name.startswith(f"{head}.") for name in names) for head in model.head_names)
