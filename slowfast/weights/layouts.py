"""Weights of other programs, as pure functions from dict to dict that end in the names of this package.

Every known layout is a row of `LAYOUTS`, recognised by a name that only it has. Tensors that a row does not know keep
their names, so that `weights.fit` reports them.
"""

from __future__ import annotations

import math
import re
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor, nn

from slowfast.models.uniformerv2 import vision_tower

StateDict = dict[str, Tensor]
Inflation = Callable[[Tensor, torch.Size], Tensor]


def inflate(kernel: Tensor, shape: torch.Size) -> Tensor:
    """A 2D kernel (O, I, h, w) as the 3D kernel `shape` (O, I, t, h, w): repeated over time, divided by t.

    A video of one repeated frame gets the response of the image (Carreira & Zisserman, 2017, section 2.4).
    """
    return (kernel.unsqueeze(2) / shape[2]).expand(shape).clone()


def inflate_centre(kernel: Tensor, shape: torch.Size) -> Tensor:
    """A 2D kernel (O, I, h, w) as the middle slice of the 3D kernel `shape` (O, I, t, h, w), zeros around it.

    Every frame gets the response it had as an image (UniFormerV2's first convolution).
    """
    video = kernel.new_zeros(shape)
    video[:, :, shape[2] // 2] = kernel
    return video


# MMAction2's prefixes and ours; for names from here the first fitting pair counts, so the last ones are read only.
MMACTION2_UNIFORMER = (("cls_head.fc_cls.", "head."), ("backbone.", ""), ("cls_head.norm.", "norm."))
MMACTION2_UNIFORMERV2 = (
    ("cls_head.fc_cls.", "backbone.transformer.proj.2."),
    ("backbone.transformer.norm.", "backbone.transformer.proj.0."),
    ("cls_head.norm.", "backbone.transformer.proj.0."),
)
MMACTION2_LEFT_OUT = r"data_preprocessor\..*"  # mean and standard deviation of pixels
Prefixes = Sequence[tuple[str, str]]


def replace_prefixes(state: Mapping[str, Tensor], prefixes: Prefixes) -> StateDict:
    """Replace the first prefix (old, new) that fits a name; a name that none fits stays."""

    def renamed(name: str) -> str:
        for old, new in prefixes:
            if name.startswith(old):
                return new + name.removeprefix(old)
        return name

    return {renamed(name): value for name, value in state.items()}


def extract_state_dict(checkpoint: Mapping[str, Any]) -> StateDict:
    """The tensors of a checkpoint in any of the released layouts: under `model_state`, under `model`, or bare.

    Averaged weights (`ema_state`), where there are any, are what was validated, so they come first. A `module.` prefix
    left by a wrapper is taken off.

    Raises:
        ValueError: no tensors where they should be.
    """
    if not isinstance(checkpoint, Mapping):
        raise ValueError(f"the checkpoint is a {type(checkpoint).__name__}, not a dictionary of tensors")
    for key in ("ema_state", "model_state", "model", "state_dict"):
        if key in checkpoint and isinstance(checkpoint[key], Mapping):
            checkpoint = checkpoint[key]
            break
    state = {name: value for name, value in checkpoint.items() if torch.is_tensor(value)}
    if not state:
        raise ValueError(
            f"the checkpoint holds no tensors; its entries are {sorted(map(str, checkpoint))[:8]}, "
            "expected 'model_state', 'model', or a bare state_dict"
        )
    if all(name.startswith("module.") for name in state):
        state = {name.removeprefix("module."): value for name, value in state.items()}
    return state


# Parts that no network of MMAction2 has: pattern of a tensor's name -> words for it.
NOT_IN_MMACTION2 = {
    r"aux_head\..*": "a second classifier of every position",
    r".*\.(gamma_[12]|ls_[12])": "layer scale",
    r".*\.t_attn\..*": "divided attention",
    r"cls_token": "pruning of tokens",
}


def to_mmaction2(checkpoint: Mapping[str, Any]) -> StateDict:
    """The tensors of a checkpoint of UniFormer or UniFormerV2 by the names that MMAction2 1.x gives them.

    Args:
        checkpoint: one written here, or a state_dict; the second does not tell the activation of an image ViT, which
            has to be CLIP's own.

    Raises:
        ValueError: another network than the two, or parts that MMAction2's do not have.
    """
    state = extract_state_dict(checkpoint)
    lacking = {words for part, words in NOT_IN_MMACTION2.items() if any(re.fullmatch(part, name) for name in state)}
    if "backbone.transformer.proj.0.weight" in state:
        prefixes = MMACTION2_UNIFORMERV2
        name = re.search(r"^  BACKBONE: (timm/\S+)$", str(checkpoint.get("cfg")), re.MULTILINE)
        if name and (activation := vision_tower(name[1]).activation) != "quick_gelu":
            lacking.add(f"the activation {activation} of {name[1]}")
        if "backbone.ln_pre.weight" not in state:
            lacking.add("an image ViT without a norm in front of its blocks")
    elif "patch_embed1.proj.weight" in state:
        prefixes = MMACTION2_UNIFORMER
        if state["patch_embed1.proj.weight"].ndim != 5:
            lacking.add("images instead of videos")
    elif "patch_embed1.proj.0.weight" in state:
        prefixes = MMACTION2_UNIFORMER
        lacking.add("an overlapped stem")
    else:
        raise ValueError(
            f"tensors named {list(state)[:3]} are neither of UniFormer nor of UniFormerV2, and MMAction2 has only those"
        )
    if lacking:
        raise ValueError(
            f"MMAction2's networks do not have {', '.join(sorted(lacking))}; use this checkpoint here alone"
        )
    return replace_prefixes(state, [(new, old) for old, new in prefixes])


def _replaced(state: Mapping[str, Tensor], names: Sequence[tuple[str, str]]) -> StateDict:
    converted = {}
    for name, value in state.items():
        for old, new in names:
            name = name.replace(old, new)
        converted[name] = value
    return converted


def _to_backbone(state: Mapping[str, Tensor]) -> StateDict:
    return {f"backbone.{name}": value for name, value in state.items()}


HUGGING_FACE = (
    ("vision_model.", ""),
    ("embeddings.class_embedding", "class_embedding"),
    ("embeddings.patch_embedding.", "conv1."),
    ("embeddings.position_embedding.weight", "positional_embedding"),
    ("pre_layrnorm.", "ln_pre."),
    ("encoder.layers.", "transformer.resblocks."),
    ("layer_norm", "ln_"),
    ("self_attn.", "attn."),
    ("mlp.fc1.", "mlp.c_fc."),
    ("mlp.fc2.", "mlp.c_proj."),
)


def from_hugging_face(state: StateDict, target: Mapping[str, Tensor]) -> StateDict:
    """Hugging Face's CLIP vision model: the projections of query, key and value become one."""
    state = _replaced(state, HUGGING_FACE)
    for query in [name for name in state if ".attn.q_proj." in name]:
        parts = [state.pop(query.replace("q_proj", f"{part}_proj")) for part in "qkv"]
        state[query.replace("q_proj.", "in_proj_")] = torch.cat(parts)
    return _to_backbone(state)


TIMM = (
    ("patch_embed.proj.", "conv1."),
    ("cls_token", "class_embedding"),
    ("pos_embed", "positional_embedding"),
    ("norm_pre.", "ln_pre."),
    ("blocks.", "transformer.resblocks."),
    ("norm1.", "ln_1."),
    ("norm2.", "ln_2."),
    ("attn.qkv.", "attn.in_proj_"),
    ("attn.proj.", "attn.out_proj."),
    ("mlp.fc1.", "mlp.c_fc."),
    ("mlp.fc2.", "mlp.c_proj."),
)


def from_timm(state: StateDict, target: Mapping[str, Tensor]) -> StateDict:
    """timm's VisionTransformer. What the network here has no tensor for is folded into its neighbours, exactly.

    Layer scale, if `target` has none, goes into the projection before it; the bias of the patch embedding likewise into
    the position embedding of the patches, which is added right after. A class token without a position, and queries,
    keys and values without a bias, get zeros.
    """
    state = _replaced(state, TIMM)
    for name in ("class_embedding", "positional_embedding"):
        if name in state:
            state[name] = state[name].flatten(0, -2).squeeze(0)  # (1, L, C) -> (L, C); the class token (C,)
    positions = state.get("positional_embedding")
    if positions is not None:
        if math.isqrt(len(positions)) ** 2 == len(positions):
            positions = torch.cat([positions.new_zeros(1, positions.shape[1]), positions])
        if "conv1.bias" in state and "backbone.conv1.bias" not in target:
            positions = torch.cat([positions[:1], positions[1:] + state.pop("conv1.bias")])
        state["positional_embedding"] = positions
    for scale in [name for name in state if name.endswith((".ls1.gamma", ".ls2.gamma", ".gamma_1", ".gamma_2"))]:
        gamma = state.pop(scale)
        block = re.sub(r"(ls\d\.gamma|gamma_\d)$", "", scale)
        first = "1" in scale.removeprefix(block)
        own = f"{block}ls_1" if first else f"{block}ls_2"
        if f"backbone.{own}" in target:
            state[own] = gamma
            continue
        layer = block + ("attn.out_proj" if first else "mlp.c_proj")
        state[f"{layer}.weight"] = state[f"{layer}.weight"] * gamma[:, None]
        state[f"{layer}.bias"] = state[f"{layer}.bias"] * gamma
    for weight in [name for name in state if name.endswith("attn.in_proj_weight")]:
        state.setdefault(weight.replace("in_proj_weight", "in_proj_bias"), state[weight].new_zeros(len(state[weight])))
    return _to_backbone(state)


@dataclass(frozen=True)
class Layout:
    """Names of one program.

    Args:
        signature: pattern of a name that only this layout has.
        convert: (state, tensors of the model) -> state by the names of this package.
        left_out: pattern of names that have no counterpart, and need none.
        inflation: how its 2D kernels become 3D.
    """

    name: str
    signature: str
    convert: Callable[[StateDict, Mapping[str, Tensor]], StateDict]
    left_out: str = r"(?!)"
    inflation: Inflation = inflate


def _prefixes(prefixes: Prefixes) -> Callable[[StateDict, Mapping[str, Tensor]], StateDict]:
    return lambda state, target: replace_prefixes(state, prefixes)


OWN = Layout("own", "", lambda state, target: state)
MMACTION2 = (
    Layout(
        "MMAction2 UniFormer",
        r"backbone\.patch_embed1\..*",
        _prefixes(MMACTION2_UNIFORMER),
        left_out=MMACTION2_LEFT_OUT,
    ),
    Layout(
        "MMAction2 UniFormerV2",
        r"(backbone\.transformer\.norm|cls_head\.fc_cls)\.weight",
        _prefixes(MMACTION2_UNIFORMERV2),
        left_out=MMACTION2_LEFT_OUT,
    ),
)
IMAGE_TOWERS = (
    Layout(
        "CLIP of OpenAI or open_clip",
        r"visual\.conv1\.weight",
        _prefixes((("visual.", "backbone."),)),
        left_out=r"(?!visual\.).*|visual\.(proj|ln_post\..*)",
        inflation=inflate_centre,
    ),
    Layout(
        "visual tower of CLIP",
        r"class_embedding",
        lambda state, target: _to_backbone(state),
        left_out=r"proj|ln_post\..*",
        inflation=inflate_centre,
    ),
    Layout(
        "Hugging Face CLIP",
        r"(vision_model\.)?embeddings\.patch_embedding\.weight",
        from_hugging_face,
        left_out=r"(text_model|text_projection|visual_projection|logit_scale).*|.*(post_layernorm\..*|position_ids)",
        inflation=inflate_centre,
    ),
    Layout(
        "timm ViT in open_clip",
        r"visual\.trunk\.patch_embed\.proj\.weight",
        lambda state, target: from_timm(replace_prefixes(state, (("visual.trunk.", ""),)), target),
        left_out=r"(?!visual\.).*|visual\.head\..*|visual\.trunk\.(norm|fc_norm|head|attn_pool)\..*",
        inflation=inflate_centre,
    ),
    Layout(
        "timm ViT",
        r"patch_embed\.proj\.weight",
        from_timm,
        left_out=r"(norm|fc_norm|head|attn_pool)\..*|decoder_.*|mask_token",
        inflation=inflate_centre,
    ),
)
LAYOUTS = (*MMACTION2, OWN, *IMAGE_TOWERS)


@dataclass
class Converted:
    """Tensors by the names of this package, the layout they came in, and the names that were left out of it."""

    state: StateDict
    layout: Layout
    left_out: list[str] = field(default_factory=list)


def convert(state: Mapping[str, Tensor], model: nn.Module) -> Converted:
    """Recognise the layout of `state` by its names and give its tensors the names of `model`.

    A state that shares names with the model is the model's own; one of no known layout passes as it is.
    """
    target = model.state_dict()
    for layout in LAYOUTS:
        if layout is OWN:
            if any(name in target for name in state):
                break
        elif any(re.fullmatch(layout.signature, name) for name in state):
            break
    else:
        return Converted(dict(state), OWN)
    left_out = [name for name in state if re.fullmatch(layout.left_out, name)]
    kept = {name: value for name, value in state.items() if name not in set(left_out)}
    return Converted(layout.convert(kept, target), layout, left_out)


def trained_activation(state: Mapping[str, Tensor]) -> str:
    """The activation of an image ViT as far as the names of its file tell: "quick_gelu", "gelu", or "" for unknown."""
    if "input_resolution" in state:  # only in OpenAI's own archives
        return "quick_gelu"
    if any(name.endswith("patch_embed.proj.weight") for name in state) and not any("norm_pre." in n for n in state):
        return "gelu"  # timm's, and not of CLIP
    return ""


def class_rows(trained: Sequence[str], wanted: Sequence[str], partly: bool = False) -> list[int | None]:
    """Return the row of each of the `wanted` classes in a checkpoint; case, quotes,
    brackets and underscores are ignored.

    Args:
        partly: a class that is not there becomes None, as long as any is.

    Raises:
        ValueError: a class is there more than once, or not at all.
    """

    def plain(name: str) -> str:
        return " ".join(re.sub(r"[\[\]\"]", "", name.replace("_", " ")).casefold().split())

    found: dict[str, list[int]] = {}
    for row, name in enumerate(trained):
        found.setdefault(plain(name), []).append(row)
    rows = [found.get(plain(name), []) for name in wanted]
    enough = (0, 1) if partly and any(rows) else (1,)
    wrong = [name for name, places in zip(wanted, rows, strict=True) if len(places) not in enough]
    if wrong:
        raise ValueError(
            f"{len(wrong)} of {len(wanted)} classes have no single counterpart among the {len(trained)} of the "
            f"checkpoint: {wrong[:5]}; correct the names, give the rows as numbers, or set MODEL.HEAD_ROWS '' and "
            "MODEL.RESET_HEAD True to start a new classifier"
        )
    return [places[0] if places else None for places in rows]


def classifiers(state: Mapping[str, Tensor], heads: Sequence[str]) -> list[str]:
    """Prefixes of the linear layers in the modules `heads`: what goes in front of `weight` and `bias`."""
    return [
        name.removesuffix("weight")
        for name, value in state.items()
        if value.ndim == 2 and name.startswith(tuple(f"{head}." for head in heads))
    ]


def select_classes(
    state: Mapping[str, Tensor],
    heads: Sequence[str],
    rows: Sequence[int | None],
    initial: Mapping[str, Tensor] | None = None,
) -> StateDict:
    """Keep the `rows` of the classifiers, in that order: a Kinetics-710 head becomes one of 400, 600 or 700 classes.

    Args:
        heads: names of the classifiers, or of modules around them; their matrices are the linear layers.
        rows: None stands for a class that the checkpoint does not have.
        initial: tensors of the model, whose rows such classes keep.

    Raises:
        ValueError: no classifier there, or a row beyond its classes.
    """
    layers = classifiers(state, heads)
    if not layers:
        raise ValueError("the checkpoint has no classifier to take classes from; set MODEL.RESET_HEAD True instead")
    selected = dict(state)
    known = [row for row in rows if row is not None]
    fresh = [i for i, row in enumerate(rows) if row is None]
    for layer in layers:
        classes = len(state[f"{layer}weight"])
        if not all(0 <= row < classes for row in known):
            raise ValueError(
                f"class rows reach from {min(known)} to {max(known)}, but {layer}weight has {classes} classes; "
                "the rows are those of another checkpoint"
            )
        for name in (f"{layer}weight", f"{layer}bias"):
            selected[name] = state[name][[row or 0 for row in rows]]
            # a classifier of another shape is for `weights.fit` to refuse
            if fresh and initial is not None and name in initial and initial[name].shape == selected[name].shape:
                selected[name][fresh] = initial[name][fresh].to(selected[name].dtype)
    return selected
