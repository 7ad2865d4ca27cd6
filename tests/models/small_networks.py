"""Make small networks of every family, and their configurations, for tests that need no released shape."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import torch
from torch import Tensor, nn

from slowfast.config import get_cfg
from slowfast.config.load import ConfigNode
from slowfast.models import UniFormer, UniFormerLight, UniFormerV2, build_model
from slowfast.models.build import initialize
from slowfast.models.timm_tower import VisionTower

STAGES: dict[str, Any] = {"num_classes": 5, "depth": (1, 1, 2, 1), "embed_dim": (16, 32, 64, 64), "head_dim": 32}
SHARES = ((), (), (1.0, 0.5), (0.3,))
LIGHT: dict[str, Any] = {**STAGES, "prune_ratio": SHARES, "trade_off": SHARES}
TOWER = VisionTower(width=32, layers=3, heads=4, patch=8, resolution=32)
V2: dict[str, Any] = {"num_classes": 5, "backbone": TOWER, "return_list": (1, 2), "n_head": 4}

# name -> class, options; those whose name ends in _image take (B, C, H, W)
SMALL: dict[str, tuple[type[nn.Module], dict[str, Any]]] = {
    "uniformer": (UniFormer, STAGES),
    "uniformer_split": (UniFormer, {**STAGES, "split": True}),
    "uniformer_std": (UniFormer, {**STAGES, "std": True}),
    "uniformer_image": (UniFormer, {**STAGES, "ndim": 2, "layer_scale": 0.1}),
    "uniformer_plus_aux_image": (UniFormer, {**STAGES, "ndim": 2, "overlapped_stem": True, "aux_head": True}),
    "light": (UniFormerLight, {**LIGHT, "init_value": 0.1}),
    "light_image": (UniFormerLight, {**LIGHT, "ndim": 2}),
    "v2": (UniFormerV2, V2),
    "v2_global_only": (UniFormerV2, {**V2, "no_lmhra": True, "temporal_downsample": False}),
    "v2_frozen": (UniFormerV2, {**V2, "no_lmhra": True, "temporal_downsample": False, "frozen": True}),
}

# options of tests that take seconds per block
SHALLOW_V2: dict[str, Any] = {
    "backbone": replace(TOWER, layers=1), "return_list": (0,), "mlp_dropout": 0.0, "cls_dropout": 0.0
}  # fmt: skip
SHALLOW = {name: SHALLOW_V2 if name.startswith("v2") else {"depth": (1, 1, 1, 1)} for name in SMALL}


def initial(name: str, **options: Any) -> Any:
    """Make a network of `SMALL` with its initial values."""
    network, given = SMALL[name]
    torch.manual_seed(0)
    return network(**{**given, **options})


def small(name: str, **options: Any) -> Any:
    """Make a network of `SMALL` in evaluation mode, with random values, because initial zeros would hide faults."""
    model = initial(name, **options).eval()
    with torch.no_grad():
        for parameter in model.parameters():
            parameter += 0.05 * torch.randn(parameter.shape)
    return model


def randomized(model: Any) -> Any:
    """Set random values that initial ones would hide: biases and layer scales are not 0, norms not 1."""
    generator = torch.Generator().manual_seed(1)
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.add_(torch.randn(parameter.shape, generator=generator) * 0.05)
    return model.eval()


def tokens_of_frames(model: UniFormerV2, video: torch.Tensor) -> torch.Tensor:
    """Return tokens (B*T, 1 + H*W, C) after the last block of the image ViT, for a video (B, 3, T, H, W)."""
    tokens = []
    hook = model.backbone.transformer.resblocks[-1].register_forward_hook(lambda m, i, output: tokens.append(output))
    with torch.no_grad():
        model(video)
    hook.remove()
    return tokens[0].flatten(0, 1)


def video_for(name: str, batch: int = 2, frames: int = 4, height: int = 64, width: int = 64) -> Tensor:
    """Return a random input of a network of `SMALL`, the same for the same arguments."""
    shape = (height, width) if name.endswith("_image") else (frames, height, width)
    return torch.randn(batch, 3, *shape, generator=torch.Generator().manual_seed(batch))


UNIFORMER_KEYS: dict[str, Any] = {
    "MODEL.NUM_CLASSES": 5, "UNIFORMER.DEPTH": [1] * 4, "UNIFORMER.EMBED_DIM": [8, 16, 32, 32],
    "UNIFORMER.HEAD_DIM": 16,
}  # fmt: skip
LIGHT_KEYS: dict[str, Any] = {**UNIFORMER_KEYS, "MODEL.MODEL_NAME": "Uniformer_light"}
UNIFORMERV2_KEYS: dict[str, Any] = {
    "MODEL.MODEL_NAME": "Uniformerv2", "MODEL.ARCH": "uniformerv2", "DATA.TEST_CROP_SIZE": 32,
    "DATA.TRAIN_CROP_SIZE": 32, "UNIFORMERV2.BACKBONE": "custom", "UNIFORMERV2.TOWER": [32, 2, 4, 16, 32],
    "UNIFORMERV2.N_DIM": 32, "UNIFORMERV2.N_LAYERS": 1, "UNIFORMERV2.RETURN_LIST": [1], "UNIFORMERV2.N_HEAD": 4,
    "UNIFORMERV2.MLP_DROPOUT": [0.5],
}  # fmt: skip


def configuration(*parts: dict[str, Any]) -> ConfigNode:
    """Return the default configuration with the values of some keys."""
    cfg = get_cfg()
    cfg.merge_from_list([item for part in parts for pair in part.items() for item in pair])
    return cfg


def initialized(cfg: ConfigNode, class_names: list[str] | None = None) -> Any:
    """Return the network of a configuration as a training on a list of these classes starts it."""
    model = build_model(cfg)
    initialize(model, cfg, class_names)
    return model
