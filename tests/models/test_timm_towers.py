"""Test image ViTs of timm in UniFormerV2: which of them fit, and that they compute the same features."""

from __future__ import annotations

import logging
from typing import Any

import pytest
import timm
import torch
from safetensors.torch import save_file
from small_networks import randomized, tokens_of_frames
from torch import nn

from slowfast import create_model
from slowfast.config import get_cfg
from slowfast.config.rules import _cut_patch
from slowfast.models import build_model
from slowfast.models.build import initialize
from slowfast.models.timm_tower import VisionTower, timm_tower, tower_of
from slowfast.models.uniformerv2 import UniFormerV2
from slowfast.weights.layouts import convert
from slowfast.weights.load import load_weights

# width, layers, heads, patch, resolution, and the other facts that are not CLIP's
PLAIN: dict[str, Any] = {"activation": "gelu", "eps": 1e-6, "pre_norm": False}
FIT = {
    "vit_tiny_patch16_224": VisionTower(192, 12, 3, 16, 224, 768, **PLAIN),
    "vit_small_patch16_384": VisionTower(384, 12, 6, 16, 384, 1536, **PLAIN),
    "vit_small_patch8_224.dino": VisionTower(384, 12, 6, 8, 224, 1536, **PLAIN),
    "vit_base_patch16_224.augreg_in21k": VisionTower(768, 12, 12, 16, 224, 3072, **PLAIN),
    "vit_base_patch16_224.dino": VisionTower(768, 12, 12, 16, 224, 3072, **PLAIN),
    "vit_base_patch16_224.mae": VisionTower(768, 12, 12, 16, 224, 3072, **PLAIN),
    "vit_large_patch16_224.mae": VisionTower(1024, 24, 16, 16, 224, 4096, **PLAIN),
    "vit_giant_patch14_224": VisionTower(1408, 40, 16, 14, 224, 6144, **PLAIN),
    "deit_base_patch16_224": VisionTower(768, 12, 12, 16, 224, 3072, **PLAIN),
    "deit3_small_patch16_224": VisionTower(384, 12, 6, 16, 224, 1536, **PLAIN, layer_scale=1e-6),
    "vit_small_patch14_dinov2": VisionTower(384, 12, 6, 14, 518, 1536, **PLAIN, layer_scale=1e-5),
    "vit_base_patch16_clip_224": VisionTower(768, 12, 12, 16, 224, 3072, "gelu"),
    "vit_base_patch16_clip_quickgelu_224": VisionTower(768, 12, 12, 16, 224, 3072),
}
SMALL: dict[str, Any] = {"depth": 2, "embed_dim": 64, "num_heads": 4, "img_size": 32, "num_classes": 0}


def armed(tower: VisionTower | str, **options) -> UniFormerV2:
    """Make a UniFormerV2 without temporal parts in its image ViT, which processes every frame separately."""
    options = {"num_classes": 5, "return_list": (0, 1), "n_head": 2, "frozen": True, **options}
    return UniFormerV2(backbone=tower, no_lmhra=True, temporal_downsample=False, **options).eval()


def assert_same_features(ours: UniFormerV2, theirs: nn.Module) -> None:
    size = ours.tower.resolution
    video = torch.randn(1, 3, 2, size, size, generator=torch.Generator().manual_seed(2))
    with torch.no_grad():
        expected = theirs.forward_features(video[0].transpose(0, 1))  # pyright: ignore
        features = theirs.get_submodule("norm")(tokens_of_frames(ours, video))
    assert (features - expected).abs().max() <= 1e-5 * expected.abs().max()


@pytest.mark.parametrize("name", FIT)
def test_a_plain_vit_of_timm_is_accepted(name):
    """The architecture equals that of timm, and every tensor of timm's network has a counterpart."""
    tower = timm_tower(name)
    assert tower == FIT[name]
    cfg = get_cfg()
    cfg.merge_from_list(["MODEL.MODEL_NAME", "Uniformerv2", "UNIFORMERV2.BACKBONE", f"timm/{name}"])
    assert _cut_patch(cfg, tower.patch + 1) == tower.patch  # the rule of the configuration reads the name
    with torch.device("meta"):
        theirs = timm.create_model(name)
        ours = UniFormerV2(backbone=f"timm/{name}", return_list=(0,), n_head=tower.heads, no_lmhra=True)
    converted = convert(theirs.state_dict(), ours.state_dict()).state
    image = {n: v for n, v in ours.state_dict().items() if not any(part in n for part in ours.identity_at_start)}
    assert {n: v.numel() for n, v in converted.items() if n != "backbone.conv1.weight"} == {
        n: v.numel() for n, v in image.items() if n != "backbone.conv1.weight"
    }


@pytest.mark.parametrize(
    ("name", "options"),
    [
        ("vit_base_patch16_224", {}),
        ("vit_base_patch16_224.mae", {"mlp_ratio": 3}),
        ("vit_base_patch16_224.dino", {"qkv_bias": False}),
        ("vit_base_patch8_224", {}),
        ("deit3_base_patch16_224", {}),
        ("vit_base_patch14_dinov2", {"img_size": 42}),
        ("vit_base_patch16_clip_224", {}),
        ("vit_base_patch16_clip_quickgelu_224", {}),
    ],
)
def test_features_are_those_of_timm(name, options):
    theirs = randomized(timm.create_model(name, **{**SMALL, **options}))
    ours = armed(tower_of(theirs))
    report = load_weights(ours, theirs.state_dict(), to_train=True)
    assert report.layout == "timm ViT" and not report.interpolated
    assert_same_features(ours, theirs)
    # the comparison is fine enough to distinguish the two activations
    other = "gelu" if "quickgelu" in name else "quick_gelu"
    wrong = armed(VisionTower(**{**vars(ours.tower), "activation": other}))
    wrong.load_state_dict(ours.state_dict())
    with pytest.raises(AssertionError):
        assert_same_features(wrong, theirs)


def test_features_of_a_whole_vit_are_those_of_timm():
    name = "vit_tiny_patch16_224"
    theirs = timm.create_model(name).eval()
    ours = armed(f"timm/{name}", return_list=(11,))
    load_weights(ours, theirs.state_dict(), to_train=True)
    assert_same_features(ours, theirs)


@pytest.mark.parametrize(
    ("name", "reason"),
    [
        ("beit_base_patch16_224", "the network is Beit"),
        ("vit_base_patch16_siglip_224", "it has attn_pool"),
        ("vit_small_patch14_reg4_dinov2", "it has reg_token"),
        ("vit_giant_patch14_dinov2", "mlp is GluMlp, not Mlp"),
        ("vit_small_patch16_rope_224", "the network is Eva"),
        ("eva02_tiny_patch14_224", "the network is Eva"),
        ("deit_tiny_distilled_patch16_224", "the network is VisionTransformerDistilled"),
        ("vit_tiny_r_s16_p8_224", "patch_embed is HybridEmbed"),
        ("vit_small_patch16_18x2_224", "blocks.0 is ParallelThingsBlock"),
        ("cait_xxs24_224", "the network is Cait"),
        ("resnet18", "the network is ResNet"),
        ("efficientvit_m0", "the network is EfficientVitMsra"),  # its patch size is one number
    ],
)
def test_other_networks_of_timm_are_refused_with_the_reason(name, reason):
    with pytest.raises(ValueError, match=rf"timm/{name} .*{reason}.*deit3_\*"):
        timm_tower(name)


def test_wrong_names_and_sizes_are_refused():
    with pytest.raises(ValueError, match=r"no such model \(meant 'timm/vit_base_patch16_224'\?\)"):
        armed("timm/vit_base_patch_16_224")
    with pytest.raises(ValueError, match="no such model"):
        armed("timm/hf-hub:some/where")
    with pytest.raises(ValueError, match="does not fit"):
        armed("timm/vit_base_patch16_224.unknown")
    for sizes in ({"img_size": (32, 64)}, {"patch_size": (16, 8)}):
        with torch.device("meta"), pytest.raises(ValueError, match="not squares"):
            tower_of(timm.create_model("vit_tiny_patch16_224", **{**SMALL, **sizes}))


def test_the_activation_has_to_match(caplog):
    caplog.set_level(logging.INFO)
    plain, clip = (
        timm.create_model(name, **SMALL).state_dict() for name in ("vit_base_patch16_224", "vit_base_patch16_clip_224")
    )
    with pytest.raises(ValueError, match=r"\bgelu\b.* quick_gelu.*timm/"):
        load_weights(armed(VisionTower(64, 2, 4, 16, 32)), plain, to_train=True)
    exact = VisionTower(64, 2, 4, 16, 32, activation="gelu")
    openai = {f"visual.{name}": value for name, value in armed(exact).backbone.state_dict().items()}
    openai["input_resolution"] = torch.tensor(32)
    with pytest.raises(ValueError, match=r" quick_gelu.* gelu\b.*uniformerv2_b16"):
        load_weights(armed(exact), openai, to_train=True)
    # CLIP's ViTs with timm's names have either activation; the name of the backbone shows which one
    assert not load_weights(armed(exact), clip, to_train=True).notes
    report = load_weights(armed(VisionTower(64, 2, 4, 16, 32)), clip, to_train=True)
    assert "does not show its activation" in str(report)


def test_a_checkpoint_of_another_backbone_is_refused():
    """A checkpoint of one image ViT is refused by another one with the same shapes."""
    exact, quick = (f"timm/vit_base_patch16_clip_{name}224" for name in ("", "quickgelu_"))
    with torch.device("meta"):
        model = armed(exact, return_list=(11,))
        checkpoint = {"model_state": model.state_dict(), "cfg": f"UNIFORMERV2:\n  BACKBONE: {exact}\n  FROZEN: true\n"}
        load_weights(model, checkpoint)
        with pytest.raises(ValueError, match=rf"trained with backbone {exact}.*set it"):
            load_weights(armed(quick, return_list=(11,)), checkpoint)
        with pytest.raises(ValueError, match=r"trained with backbone"):
            load_weights(armed("uniformerv2_b16", return_list=(11,)), checkpoint)
        load_weights(
            armed("uniformerv2_b16", return_list=(11,)), {**checkpoint, "cfg": checkpoint["cfg"].replace(exact, quick)}
        )


def test_a_checkpoint_of_another_custom_image_vit_is_refused():
    """Tensor shapes do not show the number of heads."""
    model = armed(VisionTower(64, 2, 4, 16, 32))
    checkpoint = {
        "model_state": model.state_dict(),
        "cfg": "UNIFORMERV2:\n  BACKBONE: custom\n  TOWER: [64, 2, 4, 16, 32]\n",
    }
    load_weights(model, checkpoint)
    load_weights(armed(VisionTower(64, 2, 4, 16, 48)), checkpoint)
    with pytest.raises(ValueError, match=r"tower \[64, 2, 4, 16, 32\].*heads=2"):
        load_weights(armed(VisionTower(64, 2, 2, 16, 32)), checkpoint)


def test_layer_scale_stays_a_parameter():
    theirs = randomized(timm.create_model("deit3_base_patch16_224", **SMALL))
    ours = armed(tower_of(theirs), frozen=False)
    load_weights(ours, theirs.state_dict(), to_train=True)
    scale = ours.get_parameter("backbone.transformer.resblocks.1.ls_2")
    assert torch.equal(scale, theirs.get_parameter("blocks.1.ls2.gamma")) and scale.requires_grad


def test_create_model_starts_from_a_vit_of_timm(tmp_path):
    theirs = timm.create_model("vit_tiny_patch16_384")
    save_file(theirs.state_dict(), tmp_path / "model.safetensors")
    model = create_model(
        "uniformerv2_b16",
        8,
        5,
        weights=tmp_path / "model.safetensors",
        to_train=True,
        backbone="timm/vit_tiny_patch16_384",
        frozen=True,
    ).eval()
    assert isinstance(model, UniFormerV2) and model.input_shape == (3, 8, 384, 384)
    assert model.load_report.layout == "timm ViT"  # pyright: ignore
    assert not model.backbone.conv1.weight.requires_grad
    assert torch.equal(model.backbone.conv1.weight[:, :, 0], theirs.get_parameter("patch_embed.proj.weight"))


def test_a_configured_vit_of_timm_needs_its_width_and_weights(tmp_path):
    cfg = get_cfg()
    values = ["MODEL.MODEL_NAME", "Uniformerv2", "MODEL.ARCH", "uniformerv2", "UNIFORMERV2.FROZEN", True]
    cfg.merge_from_list([*values, "UNIFORMERV2.BACKBONE", "timm/vit_tiny_patch16_224"])
    with pytest.raises(ValueError, match=r"N_DIM 768 .* 192"):
        build_model(cfg)
    cfg.merge_from_list(["UNIFORMERV2.N_DIM", 192])
    model = build_model(cfg)
    with pytest.raises(ValueError, match=r"FROZEN True .* timm/vit_tiny_patch16_224"):
        initialize(model, cfg)
    theirs = timm.create_model("vit_tiny_patch16_224")
    torch.save(theirs.state_dict(), tmp_path / "tiny.pth")
    cfg.merge_from_list(["UNIFORMERV2.PRETRAIN", str(tmp_path / "tiny.pth")])
    initialize(model, cfg)
    state = model.state_dict()
    assert torch.equal(
        state["backbone.transformer.resblocks.3.mlp.c_fc.weight"],
        theirs.blocks[3].mlp.fc1.weight,  # pyright: ignore
    )
    assert state["backbone.transformer.proj.2.weight"].shape == (400, 192)
