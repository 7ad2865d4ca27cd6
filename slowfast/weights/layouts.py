"""Convert weights of other programs to the names of this package, by pure functions from dictionary to dictionary.

Each known layout is a row of `LAYOUTS`, which is recognised by a tensor name that only it has. Tensors that a row does
not mention keep their names, so that `load.fit` reports them.
"""

from __future__ import annotations

import math
import re
from collections.abc import Callable, Container, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, cast

import torch
from torch import Tensor

StateDict = dict[str, Tensor]
Names = Sequence[tuple[str, str]]  # theirs and ours
# Averaged weights come first, because they were validated; "module" is that of DeepSpeed.
ENTRIES = ("ema_state", "model_state", "model", "state_dict", "module")
WRAPPERS = ("module.", "_orig_mod.", "model.")  # of DistributedDataParallel, torch.compile, and modules of Lightning


def extract_state_dict(checkpoint: object, names: Container[str] = ()) -> StateDict:
    """Return the tensors of a checkpoint, in one of its `ENTRIES` or at its top level.

    Prefixes of wrappers, and the counter of `torch.optim.swa_utils.AveragedModel`, are removed.

    Args:
        checkpoint: the result of `load_tensors`.
        names: those in the network, which may itself consist of a part that has the name of a wrapper.

    Raises:
        ValueError: there are no tensors.
    """
    if not isinstance(checkpoint, Mapping):
        raise ValueError(f"the checkpoint is a {type(checkpoint).__name__}, not a dictionary of tensors")
    content = cast("Mapping[str, Any]", checkpoint)
    for key in ENTRIES:
        if isinstance(content.get(key), Mapping) and any(map(torch.is_tensor, content[key].values())):
            content = content[key]
            break
    state = {
        name: value
        for name, value in content.items()
        if torch.is_tensor(value) and (name != "n_averaged" or name in names)
    }
    if not state:
        raise ValueError(
            f"the checkpoint holds no tensors, but {sorted(map(str, content))[:8]}: give a file with 'model_state', "
            "'model', 'state_dict', or a bare state_dict"
        )
    while not any(name in names for name in state):
        prefix = next((prefix for prefix in WRAPPERS if all(name.startswith(prefix) for name in state)), "")
        if not prefix:
            break
        state = {name.removeprefix(prefix): value for name, value in state.items()}
    return state


# ---- kernels of images as kernels of videos -------------------------------------------------------------------------


def inflate(kernel: Tensor, shape: torch.Size) -> Tensor:
    """Return a 2D kernel (O, I, h, w) as the 3D kernel `shape` (O, I, t, h, w): repeated over time, divided by t.

    A video of one repeated frame gets the response of the image (I3D, arXiv:1705.07750, section 2.4).
    """
    return (kernel.unsqueeze(2) / shape[2]).expand(shape).clone()


def inflate_centre(kernel: Tensor, shape: torch.Size) -> Tensor:
    """Return a 2D kernel (O, I, h, w) as the middle slice of the 3D kernel `shape` (O, I, t, h, w), zeros around it.

    Every frame gets the response that it has as an image (used for the first convolution of UniFormerV2).
    """
    video = kernel.new_zeros(shape)
    video[:, :, shape[2] // 2] = kernel
    return video


# ---- names ----------------------------------------------------------------------------------------------------------


def replace_prefixes(state: Mapping[str, Tensor], prefixes: Names) -> StateDict:
    """Replace the first prefix (old, new) that fits a name; names without a fitting prefix stay."""

    def renamed(name: str) -> str:
        old, new = next((pair for pair in prefixes if name.startswith(pair[0])), ("", ""))
        return new + name.removeprefix(old)

    return {renamed(name): value for name, value in state.items()}


# (name in MMAction2, name here). The last pair is used for reading only: for writing, an earlier pair fits first.
MMACTION2_UNIFORMER = (("cls_head.fc_cls.", "head."), ("backbone.", ""), ("cls_head.norm.", "norm."))
MMACTION2_UNIFORMERV2 = (
    ("cls_head.fc_cls.", "backbone.transformer.proj.2."),
    ("backbone.transformer.norm.", "backbone.transformer.proj.0."),
    ("cls_head.norm.", "backbone.transformer.proj.0."),
)
HUGGING_FACE = (
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
    (".ls1.gamma", ".ls_1"),
    (".ls2.gamma", ".ls_2"),
    (".gamma_1", ".ls_1"),
    (".gamma_2", ".ls_2"),
)


# ---- tensors that need more than another name -----------------------------------------------------------------------


def join_attention(state: StateDict, target: Mapping[str, Tensor]) -> StateDict:
    """Join the projections of query, key and value of Hugging Face's attention."""
    for query in [name for name in state if ".attn.q_proj." in name]:
        names = [query.replace("q_proj", f"{part}_proj") for part in "qkv"]
        if all(name in state for name in names):  # not for adapters of some of them
            state[query.replace("q_proj.", "in_proj_")] = torch.cat([state.pop(name) for name in names])
    return state


def fold_into_neighbours(state: StateDict, target: Mapping[str, Tensor]) -> StateDict:
    """Fold parts of timm's ViT for which the network has no tensors exactly into neighbouring tensors.

    If `target` has no layer scale, it is multiplied into the projection before it. The bias of the patch embedding is
    added to the position embedding of the patches, which comes directly after it. A class token without a position gets
    position zero, and queries, keys and values without a bias get biases of zero.
    """
    token, position, bias = (f"backbone.{name}" for name in ("class_embedding", "positional_embedding", "conv1.bias"))
    for name in {token, position} & state.keys():
        state[name] = state[name].flatten(0, -2).squeeze(0)  # (1, L, C) -> (L, C); the class token (C,)
    if position in state:
        places = state[position]
        if math.isqrt(len(places)) ** 2 == len(places):
            places = torch.cat([places.new_zeros(1, places.shape[1]), places])
        if bias in state and bias not in target:
            places = torch.cat([places[:1], places[1:] + state.pop(bias)])
        state[position] = places
    for name in [name for name in state if name.endswith((".ls_1", ".ls_2")) and name not in target]:
        scale, layer = state.pop(name), "attn.out_proj" if name.endswith("1") else "mlp.c_proj"
        weight, bias = (f"{name.removesuffix(name[-4:])}{layer}.{part}" for part in ("weight", "bias"))
        state[weight], state[bias] = state[weight] * scale[:, None], state[bias] * scale
    for weight in [name for name in state if name.endswith("attn.in_proj_weight")]:
        state.setdefault(weight.replace("in_proj_weight", "in_proj_bias"), state[weight].new_zeros(len(state[weight])))
    return state


# ---- layouts --------------------------------------------------------------------------------------------------------


@dataclass(frozen=True)
class Layout:
    """The names that one program gives its tensors.

    Attributes:
        name: name of the layout, for reports.
        signature: pattern of a tensor name that only this layout has.
        prefixes: pairs (prefix there, prefix here); the first that fits is replaced.
        parts: pairs (part there, part here), replaced after the prefixes, pair by pair.
        finish: last step: (renamed tensors, tensors of the network) -> tensors with the names of this package.
        left_out: pattern of the names of tensors that have no counterpart and are not needed.
    """

    name: str
    signature: str = ""
    prefixes: Names = ()
    parts: Names = ()
    finish: Callable[[StateDict, Mapping[str, Tensor]], StateDict] | None = None
    left_out: str = r"(?!)"

    @property
    def is_image_vit(self) -> bool:
        """Return whether the layout is of an image ViT."""
        return self in IMAGE_VITS

    def inflate(self, kernel: Tensor, shape: torch.Size) -> Tensor:
        """Return a 2D kernel as a 3D kernel; those of an image ViT become middle slices."""
        return (inflate_centre if self.is_image_vit else inflate)(kernel, shape)


OWN = Layout("own")
PIXELS = r"data_preprocessor\..*"  # mean and standard deviation
_V2_SIGNATURE = r"(backbone\.transformer\.norm|cls_head\.fc_cls)\.weight"
# MMAction2's released classifiers of Kinetics have the classes in the order of the sorted names.
MMACTION2 = (
    Layout("MMAction2 UniFormer", r"backbone\.patch_embed1\..*", MMACTION2_UNIFORMER, left_out=PIXELS),
    Layout("MMAction2 UniFormerV2", _V2_SIGNATURE, MMACTION2_UNIFORMERV2, left_out=PIXELS),
)
IMAGE_VITS = (
    Layout(
        "CLIP of OpenAI or open_clip",
        r"visual\.conv1\.weight",
        (("visual.", "backbone."),),
        left_out=r"(?!visual\.).*|visual\.(proj|ln_post\..*)",
    ),
    Layout("visual tower of CLIP", r"class_embedding", (("", "backbone."),), left_out=r"proj|ln_post\..*"),
    Layout(
        "Hugging Face CLIP",
        r"(vision_model\.)?embeddings\.patch_embedding\.weight",
        (("vision_model.", "backbone."), ("", "backbone.")),
        HUGGING_FACE,
        join_attention,
        left_out=r"(text_model|text_projection|visual_projection|logit_scale).*|.*(post_layernorm\..*|position_ids)",
    ),
    Layout(
        "timm ViT in open_clip",
        r"visual\.trunk\.patch_embed\.proj\.weight",
        (("visual.trunk.", "backbone."), ("", "backbone.")),
        TIMM,
        fold_into_neighbours,
        left_out=r"(?!visual\.).*|visual\.head\..*|visual\.trunk\.(norm|fc_norm|head|attn_pool)\..*",
    ),
    Layout(
        "timm ViT",
        r"patch_embed\.proj\.weight",
        (("", "backbone."),),
        TIMM,
        fold_into_neighbours,
        left_out=r"(norm|fc_norm|head|attn_pool)\..*|decoder_.*|mask_token",
    ),
)


@dataclass(frozen=True)
class Converted:
    """Tensors with the names of this package, their original layout, and the names that were left out."""

    state: StateDict
    layout: Layout
    left_out: Sequence[str] = ()


def convert(state: Mapping[str, Tensor], target: Mapping[str, Tensor]) -> Converted:
    """Rename the tensors of a known layout to the names of this package.

    `target` contains the tensors of the network, whose names show no other layout. A state that shares names with it,
    or fits no layout, is treated as one of this package.
    """
    layout = _recognise(state, target)
    left_out = [name for name in state if re.fullmatch(layout.left_out, name)]
    kept = {name: value for name, value in state.items() if name not in set(left_out)}
    renamed = replace_prefixes(kept, layout.prefixes)
    for old, new in layout.parts:
        renamed = {name.replace(old, new): value for name, value in renamed.items()}
    return Converted(layout.finish(renamed, target) if layout.finish else renamed, layout, left_out)


def _recognise(state: Mapping[str, Tensor], target: Mapping[str, Tensor]) -> Layout:
    def fits(layout: Layout) -> bool:
        return any(re.fullmatch(layout.signature, name) for name in state if name not in target)

    own = (OWN,) if state.keys() & target.keys() else ()
    return [*filter(fits, MMACTION2), *own, *filter(fits, IMAGE_VITS), OWN][0]


def trained_activation(state: Mapping[str, Tensor]) -> str:
    """Return the activation of an image ViT according to its tensor names: "quick_gelu", "gelu", or "" if unknown."""
    if "input_resolution" in state:  # only in the archives of OpenAI
        return "quick_gelu"
    if any(name.endswith("patch_embed.proj.weight") for name in state) and not any("norm_pre." in n for n in state):
        return "gelu"  # timm's, and not of CLIP
    return ""


# ---- to MMAction2 ---------------------------------------------------------------------------------------------------

# Parts that no network of MMAction2 has: pattern of a tensor's name -> description.
NOT_IN_MMACTION2 = {
    r"aux_head\..*": "a second classifier of every position",
    r".*\.(gamma_[12]|ls_[12])": "layer scale",
    r".*\.t_attn\..*": "divided attention",
    r"cls_token": "pruning of tokens",
    r"patch_embed1\.proj\.0\..*": "an overlapped stem",
}


def to_mmaction2(checkpoint: Mapping[str, Any]) -> StateDict:
    """Return the tensors of a UniFormer or UniFormerV2 with the names of MMAction2 1.x.

    Args:
        checkpoint: a checkpoint of this package, or a state_dict; as the latter does not show the activation of an
            image ViT, this must be that of CLIP.

    Raises:
        ValueError: it is another network, or has parts that the networks of MMAction2 do not have.
    """
    state = extract_state_dict(checkpoint)
    lacking = {words for part, words in NOT_IN_MMACTION2.items() if any(re.fullmatch(part, name) for name in state)}
    if "backbone.transformer.proj.0.weight" in state:
        prefixes = MMACTION2_UNIFORMERV2
        name = re.search(r"^  BACKBONE: (timm/\S+)$", str(checkpoint.get("cfg")), re.MULTILINE)
        if name and "quickgelu" not in name[1]:
            lacking.add(f"the activation gelu of {name[1]}")
        if "backbone.ln_pre.weight" not in state:
            lacking.add("an image ViT without a norm in front of its blocks")
    elif any(name.startswith("patch_embed1.proj.") for name in state):
        prefixes = MMACTION2_UNIFORMER
        if state.get("patch_embed1.proj.weight", torch.empty(5 * (1,))).ndim != 5:
            lacking.add("images instead of videos")
    else:
        raise ValueError(
            f"tensors named {list(state)[:3]} are neither of UniFormer nor of UniFormerV2, and MMAction2 has only those"
        )
    if lacking:
        raise ValueError(
            f"MMAction2's networks do not have {', '.join(sorted(lacking))}: use this checkpoint with this package only"
        )
    return replace_prefixes(state, [(new, old) for old, new in prefixes])
