"""Test that a new backbone needs one class and one row, and which networks and options are accepted."""

from __future__ import annotations

from contextlib import nullcontext
from functools import partial
from typing import Any

import pytest
import torch
from small_networks import SMALL, configuration, small
from torch import Tensor, nn

from slowfast.config import dump_config
from slowfast.config.load import ConfigNode
from slowfast.models import build
from slowfast.models.backbone import Backbone
from slowfast.models.layers import single_input
from slowfast.models.uniformer import BlockOptions, FourStages, GlobalBlock, UniFormer
from slowfast.optim.build import build_loss, build_optimizer, set_learning_rate
from slowfast.weights.load import load_weights


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


class PoolBlock(GlobalBlock):
    """A global block that mixes tokens by their mean."""

    def __init__(self, options: BlockOptions, share: float) -> None:
        super().__init__(options)
        self.share = share

    def forward(self, x: Tensor) -> Tensor:
        return x + self.share * self.pos_embed(x).mean((2, 3, 4), keepdim=True)


class PoolFormer(UniFormer):
    """A UniFormer with another mixer in stages 3 and 4."""

    def __init__(self, share: float = 0.5, **options: Any) -> None:
        self.global_block = partial(PoolBlock, share=share)
        super().__init__(**options)


class OwnStages(FourStages):
    """Stages of a UniFormer whose arguments are its own."""

    def __init__(self, num_classes: int = 400, in_channels: int = 3, width: int = 8) -> None:
        super().__init__(num_classes, [1] * 4, [width] * 4, width, 3)
        self.add_embeddings(in_channels, 0.0)
        self.head = nn.Linear(width, num_classes)


@pytest.fixture(autouse=True)
def new_rows(monkeypatch):
    monkeypatch.setitem(build.MODELS, "MeanPool", build.Row(MeanPool))
    monkeypatch.setitem(build.MODELS, "Uniformer_pool", build.Row(PoolFormer, build.UNIFORMER))
    monkeypatch.setitem(build.MODELS, "OwnStages", build.Row(OwnStages))


def config(**options: Any) -> ConfigNode:
    values = {"MODEL__MODEL_NAME": "MeanPool", "MODEL__NUM_CLASSES": 5, **options}
    return configuration({key.replace("__", "."): value for key, value in values.items()})


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


def test_a_uniformer_with_another_mixer_has_the_keys_of_a_uniformer_and_its_own_options():
    options = {"UNIFORMER__DEPTH": [1, 1, 2, 1], "UNIFORMER__EMBED_DIM": [8, 8, 16, 16], "UNIFORMER__HEAD_DIM": 8}
    cfg = config(MODEL__MODEL_NAME="Uniformer_pool", MODEL__OPTIONS=["share=0.25"], **options)
    model = build.build_model(cfg)
    assert isinstance(model, PoolFormer) and model.widths == [8, 8, 16, 16] and model.options["head_dim"] == 8
    shares = {name: block.share for name, block in model.named_modules() if isinstance(block, PoolBlock)}
    assert shares == {"blocks3.0": 0.25, "blocks3.1": 0.25, "blocks4.0": 0.25}
    assert model(torch.randn(2, 3, 4, 32, 32)).shape == (2, 5)


def test_a_network_with_stages_of_a_uniformer_and_other_arguments_loads_its_checkpoint():
    cfg = config(MODEL__MODEL_NAME="OwnStages", MODEL__OPTIONS=["width=16"])
    model, again = build.build_model(cfg), build.build_model(cfg)
    load_weights(again, {"model_state": model.state_dict(), "cfg": dump_config(cfg)})
    assert all(torch.equal(value, again.state_dict()[name]) for name, value in model.state_dict().items())


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
        ({"MODEL__OPTIONS": ["in_channels=4"]}, "MODEL.OPTIONS in_channels .*DATA.INPUT_CHANNEL_NUM"),
        (
            {"MODEL__MODEL_NAME": "Uniformer_pool", "MODEL__OPTIONS": ["depth=1"]},
            "MODEL.OPTIONS depth .*UNIFORMER.DEPTH",
        ),
        ({"MODEL__MODEL_NAME": "Uniformer_pool", "MODEL__OPTIONS": ["shar=1"]}, "'shar' .*'share'"),
        ({"MODEL__MODEL_NAME": "Uniformer_pool", "MODEL__OPTIONS": ["share=x"]}, "share 'x' .*float"),
        ({"MODEL__USE_CHECKPOINT": True}, "MODEL.USE_CHECKPOINT"),
        ({"MODEL__MODEL_NAME": "Uniformer", "MODEL__OPTIONS": ["split=True"]}, "MODEL.OPTIONS .*UNIFORMER"),
        (
            {"MODEL__MODEL_NAME": "Uniformer", "UNIFORMER__REPRESENTATION_SIZE": 512},
            "UNIFORMER.REPRESENTATION_SIZE 512",
        ),
        ({"MODEL__MODEL_NAME": "Uniformer_light", "UNIFORMER__SPLIT": True}, "UNIFORMER.SPLIT True"),
        ({"MODEL__MODEL_NAME": "Uniformer_light", "UNIFORMER__LAYER_SCALE": [0.1] * 4}, "UNIFORMER.LAYER_SCALE"),
        ({"MODEL__MODEL_NAME": "Uniformer_image", "UNIFORMER__STD": True}, "std .*UNIFORMER"),
        ({"MODEL__MODEL_NAME": "Uniformer_image", "MODEL__OPTIONS": ["ndim=3"]}, "MODEL.OPTIONS ndim=3.* 2 "),
        ({"MODEL__MODEL_NAME": "Uniformerv2", "UNIFORMERV2__N_LAYERS": 3}, "UNIFORMERV2.N_LAYERS 3 .* 4"),
    ],
)
def test_unknown_options_of_a_network_are_named(options, named):
    with pytest.raises(ValueError, match=named):
        build.build_model(config(**options))


@pytest.mark.parametrize(
    ("network", "named"),
    [
        (lambda num_classes: nn.Identity(), "MeanPool .*'in_channels'"),
        (lambda num_classes, in_channels, width: nn.Identity(), "MeanPool .*'width'.* MODEL.OPTIONS"),
    ],
)
def test_a_network_that_cannot_be_called_names_the_argument(monkeypatch, network, named):
    monkeypatch.setitem(build.MODELS, "MeanPool", build.Row(network))
    with pytest.raises(ValueError, match=named):
        build.build_model(config())


@pytest.mark.parametrize(
    ("heads", "options", "refused"),
    [
        ("head", {}, True),  # a tuple of one name needs a comma
        (("classifier",), {}, True),
        (None, {}, False),
        (None, {"MODEL__RESET_HEAD": True}, True),
        (None, {"SOLVER__BACKBONE_LR_RATIO": 0.1}, True),
        (("body",), {"MODEL__RESET_HEAD": True}, False),
    ],
)
def test_a_classifier_that_would_not_be_found_is_an_error(monkeypatch, heads, options, refused):
    """Otherwise, MODEL.RESET_HEAD would keep it, and SOLVER.BACKBONE_LR_RATIO 0 would train nothing."""

    class Other(nn.Module):
        def __init__(self, num_classes: int = 400, in_channels: int = 3) -> None:
            super().__init__()
            self.body = nn.Linear(in_channels, num_classes)
            if heads is not None:
                self.head_names = heads

    monkeypatch.setitem(build.MODELS, "MeanPool", build.Row(Other))
    with pytest.raises(ValueError, match="head_names") if refused else nullcontext():
        build.build_model(config(**options))


def test_a_row_needs_the_class_of_the_network(monkeypatch):
    with pytest.raises(TypeError, match=r"Row\(MeanPool\)"):
        build.Row(MeanPool())
    monkeypatch.setitem(build.MODELS, "MeanPool", MeanPool)
    with pytest.raises(ValueError, match=r"MODELS\['MeanPool'\] = Row\(MeanPool\)"):
        build.build_model(config())


@pytest.mark.parametrize("name", SMALL)
def test_every_network_is_a_backbone(name):
    model = small(name)
    names = [parameter for parameter, _ in model.named_parameters()]
    assert isinstance(model, Backbone)
    assert all(any(name.startswith(f"{head}.") for name in names) for head in model.head_names)
