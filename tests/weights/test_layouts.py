"""Test checkpoints of other programs: names and tensors are converted, and the networks compute the same."""

from __future__ import annotations

from dataclasses import replace
from importlib import import_module
from typing import Any

import numpy as np
import pytest
import timm
import torch
from small_networks import configuration, randomized, tokens_of_frames
from torch import nn

from slowfast.models import UniFormer, UniFormerLight, build_model
from slowfast.models.timm_tower import VisionTower
from slowfast.models.uniformerv2 import UniFormerV2
from slowfast.weights.layouts import convert, inflate, inflate_centre, to_mmaction2
from slowfast.weights.load import load_weights
from slowfast.weights.tensors import load_tensors

TOWER = VisionTower(width=64, layers=2, heads=2, patch=16, resolution=32)


def small(**options) -> UniFormerV2:
    torch.manual_seed(0)
    return UniFormerV2(
        **{
            "num_classes": 5,
            "backbone": TOWER,
            "return_list": (0, 1),
            "n_head": 2,
            "no_lmhra": True,
            "temporal_downsample": False,
            **options,
        }
    ).eval()


def small_v1() -> UniFormer:
    return UniFormer(num_classes=5, depth=(1, 1, 1, 1), embed_dim=(8, 16, 32, 32), head_dim=16)


# ---- CLIP, golden ---------------------------------------------------------------------------------------------------


K400, SSV2 = "uniformerv2_b16_8x224_k400_from_clip", "uniformerv2_b16_16x224_ssv2_from_clip"


def configured(case: dict[str, Any]) -> nn.Module:
    return build_model(configuration(case["video_config"])).eval()


@pytest.mark.parametrize("name", [K400, SSV2])
def test_every_clip_tensor_finds_its_place(name, golden):
    facts = golden("clip.json")
    case = facts["cases"][name]
    with torch.device("meta"):
        report = load_weights(
            configured(case), {key: torch.empty(shape) for key, shape in facts["visual"]}, to_train=True
        )
    assert len(report.loaded) == case["counts"]["copied"]
    assert report.inflated == ["backbone.conv1.weight"]
    assert len(report.dropped) == case["counts"]["not in source"]
    assert sorted(report.left_out) == sorted(case["left_out"])


@pytest.mark.slow
def test_logits_of_clip_weights_match_the_official_network(golden, golden_state, golden_input, fill_rest):
    facts = golden("clip.json")
    case = facts["cases"][K400]
    with torch.device("meta"):
        model = configured(case)
    model.to_empty(device="cpu")
    visual = golden_state({key: torch.empty(shape, device="meta") for key, shape in facts["visual"]})
    fill_rest(model, load_weights(model, visual, to_train=True))
    conv1 = model.state_dict()["backbone.conv1.weight"]
    assert conv1.double().sum().item() == pytest.approx(case["conv1"]["sum"], rel=1e-5)
    assert conv1[:, :, conv1.shape[2] // 2].flatten()[:4].tolist() == pytest.approx(case["conv1"]["first"])
    with torch.no_grad():
        logits = model(golden_input(case["input_seed"], case["input_shape"]))[0].numpy()
    expected = golden("clip_logits.npz")[K400]
    assert np.abs(logits - expected).max() <= 1e-5 * np.abs(expected).max()


def test_an_inflated_kernel_sees_a_repeated_frame_as_the_image():
    kernel = torch.randn(4, 3, 2, 5)
    video = inflate(kernel, torch.Size((4, 3, 3, 2, 5)))
    torch.testing.assert_close(video, torch.stack([kernel / 3] * 3, 2))


def test_a_centred_kernel_sees_every_frame_as_an_image():
    kernel, image = torch.randn(4, 3, 2, 2), torch.randn(1, 3, 6, 6)
    video = inflate_centre(kernel, torch.Size((4, 3, 3, 2, 2)))
    assert not video[:, :, 0].any() and not video[:, :, 2].any()
    response = nn.functional.conv3d(torch.stack([image, image * 2, image * 3], 2), video, padding=(1, 0, 0))
    torch.testing.assert_close(response[:, :, 1], nn.functional.conv2d(image * 2, kernel))
    torch.testing.assert_close(inflate_centre(kernel, torch.Size((4, 3, 1, 2, 2)))[:, :, 0], kernel)


# ---- image ViTs compute the same ------------------------------------------------------------------------------------


@pytest.mark.parametrize("activation", ["quick_gelu", "gelu"])
def test_open_clip_weights_load(activation):
    import open_clip  # here, because it imports for a second

    vision: Any = {"layers": 2, "width": 64, "head_width": 32, "patch_size": 16, "image_size": 32}
    text: Any = {"context_length": 8, "vocab_size": 50, "width": 32, "heads": 2, "layers": 1}
    quick = activation == "quick_gelu"
    theirs = randomized(open_clip.CLIP(embed_dim=16, vision_cfg=vision, text_cfg=text, quick_gelu=quick))
    expected = []
    theirs.visual.transformer.register_forward_hook(lambda m, i, output: expected.append(output))
    image = torch.randn(2, 3, 32, 32)
    with torch.no_grad():
        theirs.encode_image(image)
    for state in (theirs.state_dict(), theirs.visual.state_dict()):
        ours = small(backbone=replace(TOWER, activation=activation))
        report = load_weights(ours, state, to_train=True)
        assert len(report.loaded) + len(report.inflated) == 5 + 2 * 12
        assert bool(report.notes) == quick  # the file does not show its activation
        torch.testing.assert_close(tokens_of_frames(ours, image.unsqueeze(2)), expected[0], atol=1e-5, rtol=0)
    assert "transformer.resblocks.0.ln_1.weight" in load_weights(small(), theirs.state_dict(), to_train=True).left_out


@pytest.mark.parametrize("kind", ["CLIPVisionModel", "CLIPVisionModelWithProjection", "CLIPModel"])
def test_hugging_face_weights_load(kind, tmp_path):
    transformers = import_module("transformers")  # Pyright reads an import of its 2,000 modules for 20 seconds

    sizes: dict[str, Any] = {
        "hidden_size": 64,
        "intermediate_size": 256,
        "num_hidden_layers": 2,
        "num_attention_heads": 2,
    }
    config = transformers.CLIPVisionConfig(**sizes, image_size=32, patch_size=16, projection_dim=16)
    if kind == "CLIPModel":
        text = {**sizes, "vocab_size": 50, "bos_token_id": 0, "eos_token_id": 1}
        config = transformers.CLIPConfig(vision_config=config.to_dict(), text_config=text)
    theirs = randomized(getattr(transformers, kind)(config))
    theirs.save_pretrained(tmp_path)
    vision = theirs.vision_model if hasattr(theirs, "vision_model") else theirs
    image = torch.randn(2, 3, 32, 32)
    with torch.no_grad():
        expected = vision(image).last_hidden_state
    for state in (theirs.state_dict(), load_tensors(tmp_path / "model.safetensors")):
        ours = small()
        report = load_weights(ours, state, to_train=True)
        assert report.layout == "Hugging Face CLIP"
        torch.testing.assert_close(tokens_of_frames(ours, image.unsqueeze(2)), expected, atol=1e-5, rtol=0)
    # an adapter that was not merged is of queries and values only
    query = next(name for name in state if name.endswith("q_proj.weight") and "text" not in name)
    adapter = {query.replace("weight", "lora_A.weight"): torch.zeros(2, 64)}
    with pytest.raises(ValueError, match="lora_A"):
        load_weights(small(), {**state, **adapter}, to_train=True)


@pytest.mark.parametrize("trunk", ["", "visual.trunk."])
def test_timm_clip_weights_load(trunk):
    theirs = timm.create_model(
        "vit_base_patch16_clip_quickgelu_224", pretrained=False, depth=2, embed_dim=64, num_heads=2, img_size=32
    )
    randomized(theirs).norm = nn.Identity()
    image = torch.randn(2, 3, 32, 32)
    with torch.no_grad():
        expected = theirs.forward_features(image)  # pyright: ignore[reportCallIssue]
    state = {trunk + name: value for name, value in theirs.state_dict().items()}
    if trunk:
        state |= {"visual.head.proj.weight": torch.zeros(2, 2), "text.token_embedding.weight": torch.zeros(2, 2)}
    ours = small()
    report = load_weights(ours, state, to_train=True)
    assert report.layout == ("timm ViT in open_clip" if trunk else "timm ViT")
    torch.testing.assert_close(tokens_of_frames(ours, image.unsqueeze(2)), expected, atol=1e-5, rtol=0)


def test_timm_parts_without_a_counterpart_are_folded_in():
    theirs = randomized(timm.create_model("vit_small_patch14_dinov2", pretrained=False, depth=1, img_size=28)).double()
    state, C = convert(theirs.state_dict(), {}).state, theirs.embed_dim
    image = torch.randn(1, 3, 28, 28, dtype=torch.float64)
    kernel, positions = state["backbone.conv1.weight"], state["backbone.positional_embedding"]
    patches = nn.functional.conv2d(image, kernel, stride=14).flatten(2).transpose(1, 2)
    tokens = torch.cat([state["backbone.class_embedding"].expand(1, 1, C), patches], 1) + positions
    block, here = theirs.blocks[0], "backbone.transformer.resblocks.0."
    with torch.no_grad():
        torch.testing.assert_close(tokens, theirs._pos_embed(theirs.patch_embed(image)))
        hidden = torch.randn(3, 4 * C, dtype=torch.float64)
        torch.testing.assert_close(
            nn.functional.linear(hidden, state[f"{here}mlp.c_proj.weight"], state[f"{here}mlp.c_proj.bias"]),
            block.ls2(block.mlp.fc2(hidden)),
        )
        hidden = hidden[:, :C]
        torch.testing.assert_close(
            nn.functional.linear(hidden, state[f"{here}attn.out_proj.weight"], state[f"{here}attn.out_proj.bias"]),
            block.ls1(block.attn.proj(hidden)),
        )
    assert not [name for name in state if "gamma" in name or name.endswith("conv1.bias")]
    kept = convert(theirs.state_dict(), {"backbone.conv1.bias": torch.empty(C)}).state
    assert "backbone.conv1.bias" in kept


def test_a_timm_class_token_without_position_gets_zeros():
    theirs = timm.create_model("vit_tiny_patch16_224", pretrained=False, depth=1, img_size=32, no_embed_class=True)
    positions = convert(theirs.state_dict(), {}).state["backbone.positional_embedding"]
    assert positions.shape == (5, 192) and not positions[0].any()


def test_a_vit_with_other_parts_is_refused_by_their_names():
    options = {"pretrained": False, "depth": 2, "embed_dim": 64, "num_heads": 2, "img_size": 32}
    theirs = timm.create_model("vit_base_patch16_clip_quickgelu_224", reg_tokens=4, **options)
    with pytest.raises(ValueError, match=r"layout timm ViT.*unexpected 1 \(backbone.reg_token\)"):
        load_weights(small(), theirs.state_dict(), to_train=True)


def test_an_image_vit_starts_a_training_but_not_a_test():
    tower = {name.removeprefix("backbone."): value for name, value in small().state_dict().items()}
    tower = {name: value for name, value in tower.items() if "resblocks" in name or "transformer" not in name}
    tower["conv1.weight"] = tower["conv1.weight"].squeeze(2)
    model = small(no_lmhra=False, temporal_downsample=True)
    report = load_weights(model, tower, to_train=True)
    assert report.layout == "visual tower of CLIP" and report.inflated == ["backbone.conv1.weight"]
    assert any("lmhra" in name for name in report.dropped) and "backbone.transformer.proj.2.weight" in report.dropped
    with pytest.raises(ValueError, match="can start a training"):
        load_weights(model, tower)


def test_a_video_checkpoint_with_fewer_global_blocks_is_not_an_image_vit():
    with pytest.raises(ValueError, match="of another model"):
        load_weights(small(), small(return_list=(1,)).state_dict(), to_train=True)


def test_position_embeddings_follow_the_resolution():
    larger = small(backbone=VisionTower(width=64, layers=2, heads=2, patch=16, resolution=64))
    source = small().state_dict()
    report = load_weights(larger, source)
    assert report.interpolated == ["backbone.positional_embedding"]
    position = larger.state_dict()["backbone.positional_embedding"]
    assert torch.equal(position[0], source["backbone.positional_embedding"][0])
    image = torch.randn(1, 3, 1, 64, 64)
    ours = small()
    load_weights(ours, source)
    with torch.no_grad():  # the same as interpolation on the way through the network
        torch.testing.assert_close(larger(image), ours(image))
    for shape in ((), (0, 64), (5,)):
        with pytest.raises(ValueError, match="of another model"):
            load_weights(ours, source | {"backbone.positional_embedding": torch.zeros(shape)})


# ---- TorchScript archives -------------------------------------------------------------------------------------------


class ScriptedBlock(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.attn = nn.MultiheadAttention(64, 2)
        self.ln_1, self.ln_2 = nn.LayerNorm(64), nn.LayerNorm(64)
        self.mlp = nn.ModuleDict({"c_fc": nn.Linear(64, 256), "c_proj": nn.Linear(256, 64)})

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return self.attn(x, x, x)[0]


class ScriptedTower(nn.Module):
    """The parameters of CLIP's image ViT, and the code that TorchScript needs."""

    def __init__(self) -> None:
        super().__init__()
        self.input_resolution, self.sizes = 32, [16, 32]
        self.class_embedding = nn.Parameter(torch.randn(64))
        self.positional_embedding = nn.Parameter(torch.randn(5, 64))
        self.proj = nn.Parameter(torch.randn(64, 16))
        self.conv1 = nn.Conv2d(3, 64, 16, 16, bias=False)
        self.ln_pre, self.ln_post = nn.LayerNorm(64), nn.LayerNorm(64)
        self.transformer = nn.ModuleDict({"resblocks": nn.Sequential(ScriptedBlock(), ScriptedBlock())})

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return self.ln_pre(x)


class ScriptedClip(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.visual, self.token_embedding = ScriptedTower(), nn.Embedding(50, 32)
        self.register_buffer("context_length", torch.tensor(77))

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return self.visual(x)


@pytest.mark.filterwarnings("ignore:.*torch.jit.*")
def test_openai_archives_load(tmp_path, monkeypatch):
    clip = ScriptedClip().half()
    torch.jit.script(clip).save(str(tmp_path / "clip.pt"))
    monkeypatch.setattr(torch.jit, "load", None)
    state = load_tensors(tmp_path / "clip.pt")
    expected = clip.state_dict()
    assert state.keys() == expected.keys()
    assert all(torch.equal(state[name], expected[name]) and state[name].dtype == expected[name].dtype for name in state)
    model = small()
    report = load_weights(model, state, to_train=True)
    assert report.layout == "CLIP of OpenAI or open_clip" and "context_length" in report.left_out
    assert model.state_dict()["backbone.conv1.weight"].dtype == torch.float32
    assert torch.equal(
        model.state_dict()["backbone.transformer.resblocks.1.mlp.c_fc.weight"],
        expected["visual.transformer.resblocks.1.mlp.c_fc.weight"].float(),
    )


@pytest.mark.filterwarnings("ignore:.*torch.jit.*")
def test_archives_with_newer_operations_load(tmp_path):
    layer = nn.Linear(2, 3)
    torch.jit.script(nn.Sequential(layer, nn.GELU())).save(str(tmp_path / "a.pt"))  # version in another record
    state = load_tensors(tmp_path / "a.pt")
    assert list(state) == ["0.weight", "0.bias"] and torch.equal(state["0.weight"], layer.weight)


# ---- MMAction2 ------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("make", "names"),
    [
        (small_v1, {"backbone.patch_embed1.proj.weight", "backbone.norm.weight", "cls_head.fc_cls.bias"}),
        (
            small,
            {
                "backbone.conv1.weight",
                "backbone.transformer.balance",
                "backbone.transformer.norm.weight",
                "cls_head.fc_cls.bias",
            },
        ),
    ],
)
def test_mmaction2_names_convert_in_both_directions(make, names):
    model = randomized(make())
    state = model.state_dict()
    theirs = to_mmaction2(state)
    assert names <= set(theirs) and not any("proj.2" in name or name.startswith("head") for name in theirs)
    back = convert(theirs, state)
    assert back.layout.name == f"MMAction2 {type(model).__name__}"
    assert back.state.keys() == state.keys() and all(torch.equal(back.state[name], state[name]) for name in state)

    fresh = make()
    pixels = {f"data_preprocessor.{name}": torch.zeros(3, 1, 1, 1) for name in ("mean", "std")}
    checkpoint = {"state_dict": {**pixels, **theirs}, "meta": {"epoch": 100}}
    report = load_weights(fresh, checkpoint)
    assert len(report.loaded) == len(state) and report.left_out == list(pixels)

    # a norm that was moved into the head is the same norm
    moved = {n.replace("backbone.transformer.norm.", "cls_head.norm."): v for n, v in theirs.items()}
    moved = {n.replace("backbone.norm.", "cls_head.norm."): v for n, v in moved.items()}
    assert moved.keys() != theirs.keys() and len(load_weights(make(), moved).loaded) == len(state)


def test_mmaction2_export_takes_averaged_weights():
    """The averaged weights are those that were validated."""
    model, average = randomized(small_v1()), small_v1().state_dict()
    checkpoint = {
        "model_state": model.state_dict(),
        "ema_state": None,
        "cfg": "UNIFORMER:\n  HEAD_DIM: 16\n",
        "step": 3,
    }
    assert torch.equal(to_mmaction2(checkpoint)["cls_head.fc_cls.bias"], model.head.bias)
    theirs = to_mmaction2({**checkpoint, "ema_state": average})
    assert torch.equal(theirs["cls_head.fc_cls.weight"], average["head.weight"])


V1 = {"num_classes": 5, "depth": (1, 1, 1, 1), "embed_dim": (8, 16, 32, 32), "head_dim": 16}


@pytest.mark.parametrize(
    ("make", "reason"),
    [
        (lambda: UniFormer(**V1, ndim=2), "images instead of videos"),
        (lambda: UniFormer(**V1, aux_head=True), "a second classifier"),
        (lambda: UniFormer(**V1, layer_scale=(0, 0, 0.1, 0.1)), "layer scale"),
        (lambda: UniFormer(**V1, split=True), "divided attention"),
        (lambda: UniFormer(**V1, overlapped_stem=True), "an overlapped stem"),
        (UniFormerLight, "pruning of tokens"),
        (lambda: small(backbone=replace(TOWER, pre_norm=False)), "without a norm in front"),
        (lambda: small(backbone=replace(TOWER, layer_scale=0.1)), "layer scale"),
    ],
)
def test_networks_that_mmaction2_lacks_are_refused(make, reason):
    with pytest.raises(ValueError, match=f"MMAction2's networks do not have .*{reason}"):
        to_mmaction2(make().state_dict())


def test_mmaction2_weights_of_another_network_are_refused():
    with pytest.raises(ValueError, match="neither"):
        to_mmaction2({"conv.weight": torch.zeros(1)})
    exact, quick = (f"UNIFORMERV2:\n  BACKBONE: timm/vit_base_patch16_clip_{name}224\n" for name in ("", "quickgelu_"))
    with pytest.raises(ValueError, match=r"the activation gelu of timm/vit_base_patch16_clip_224"):
        to_mmaction2({"model_state": small().state_dict(), "cfg": exact})
    to_mmaction2({"model_state": small().state_dict(), "cfg": quick})
