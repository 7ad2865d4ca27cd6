"""Weights, as pure functions from dict to dict: layouts of checkpoint files, image to video inflation, heads.

Loading ends in one report of what was loaded, inflated, dropped, missing and unexpected. Anything unexplained is an
error: a checkpoint never loads silently wrong.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor, nn

StateDict = dict[str, Tensor]


@dataclass
class LoadReport:
    """What became of every tensor; names are the model's, except in `unexpected`."""

    loaded: list[str] = field(default_factory=list)
    inflated: list[str] = field(default_factory=list)
    dropped: list[str] = field(default_factory=list)
    missing: list[str] = field(default_factory=list)
    unexpected: list[str] = field(default_factory=list)
    reshaped: list[str] = field(default_factory=list)

    def __str__(self) -> str:
        return ", ".join(
            f"{kind} {len(names)}" + (f" ({', '.join(names[:4])}{', ...' if len(names) > 4 else ''})" if show else "")
            for kind, names, show in (
                ("loaded", self.loaded, False),
                ("inflated", self.inflated, bool(self.inflated)),
                ("dropped", self.dropped, bool(self.dropped)),
                ("missing", self.missing, bool(self.missing)),
                ("unexpected", self.unexpected, bool(self.unexpected)),
                ("reshaped", self.reshaped, bool(self.reshaped)),
            )
        )


def extract_state_dict(checkpoint: Mapping[str, Any]) -> StateDict:
    """The tensors of a checkpoint in any of the released layouts: under `model_state`, under `model`, or bare.

    A `module.` prefix left by a wrapper is taken off.

    Raises:
        ValueError: no tensors where they should be.
    """
    if not isinstance(checkpoint, Mapping):
        raise ValueError(f"the checkpoint is a {type(checkpoint).__name__}, not a dictionary of tensors")
    for key in ("model_state", "model", "state_dict"):
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


def inflate(kernel: Tensor, shape: torch.Size) -> Tensor:
    """A 2D kernel (O, I, h, w) as the 3D kernel `shape` (O, I, t, h, w): repeated over time, divided by t.

    A video of one repeated frame gets the response of the image (Carreira & Zisserman, 2017, section 2.4).
    """
    return (kernel.unsqueeze(2) / shape[2]).expand(shape).clone()


def fit(
    source: StateDict,
    target: Mapping[str, Tensor],
    heads: tuple[str, ...] = ("head",),
    reset_head: bool = False,
    may_be_missing: tuple[str, ...] = (),
) -> tuple[StateDict, LoadReport]:
    """Make `source` fit the model whose state_dict is `target`.

    Args:
        heads: prefixes of the classifiers.
        reset_head: leave a classifier of another class count at its initial value.
        may_be_missing: parts of names whose initial value is meant to stand in for a missing tensor.

    Returns:
        The tensors to load, with the report.

    Raises:
        ValueError: something is missing, unexpected or of another shape, and nobody asked for it.
    """
    report = LoadReport()
    fitted: StateDict = {}
    prefixes = tuple(f"{head}." for head in heads)
    faults = []
    for name, value in target.items():
        if name not in source:
            # num_batches_tracked is absent from checkpoints of very old PyTorch and does not matter with a momentum
            if (
                name.endswith("num_batches_tracked")
                or any(part in name for part in may_be_missing)
                or (reset_head and name.startswith(prefixes))
            ):
                report.dropped.append(name)
            else:
                report.missing.append(name)
        elif source[name].shape == value.shape:
            fitted[name] = source[name]
            report.loaded.append(name)
        elif source[name].ndim == 4 and value.ndim == 5 and source[name].shape == value.shape[:2] + value.shape[3:]:
            fitted[name] = inflate(source[name], value.shape)
            report.inflated.append(name)
        elif name.startswith(prefixes) and reset_head:
            report.dropped.append(name)
        else:
            report.reshaped.append(f"{name} {tuple(source[name].shape)} -> {tuple(value.shape)}")
            if name.startswith(prefixes) and value.ndim == 2:
                faults.append(
                    f"the checkpoint has {source[name].shape[0]} classes and the model {value.shape[0]}: "
                    f"set MODEL.NUM_CLASSES {source[name].shape[0]} to use it as it is, "
                    "or MODEL.RESET_HEAD True to start a new classifier from its features"
                )
    report.unexpected = [name for name in source if name not in target]
    if report.missing or report.unexpected or (report.reshaped and not faults):
        faults.append(
            "the checkpoint is of another model: compare MODEL.MODEL_NAME and the widths, depths and options of its "
            "section with the configuration the checkpoint was trained with"
        )
    if faults:
        raise ValueError(f"weights do not fit: {report}\n  " + "\n  ".join(faults))
    return fitted, report


def load_weights(
    model: nn.Module, checkpoint: Mapping[str, Any], reset_head: bool = False, to_train: bool = False
) -> LoadReport:
    """Fill `model` from a loaded checkpoint of any released layout; see `fit` for the rules and errors.

    Args:
        reset_head: leave a classifier of another class count at its initial value.
        to_train: parts that start as the identity may be missing; a test needs them.
    """
    fitted, report = fit(
        extract_state_dict(checkpoint),
        model.state_dict(),
        heads=getattr(model, "head_names", ("head",)),
        reset_head=reset_head,
        may_be_missing=getattr(model, "identity_at_start", ()) if to_train else (),
    )
    model.load_state_dict(fitted, strict=False)  # `fit` has accounted for every name
    return report
