"""Continue a run from a checkpoint of the official programs: weights, optimizer and epoch.

They write `epoch` (of the last complete one, from 0), `model_state`, `optimizer_state`, `scaler` and `cfg`. An
optimizer numbers its parameters without naming them: its state is loaded only if the numbers can be shown to mean the
same parameters.
"""

from __future__ import annotations

import logging
from collections.abc import Mapping, Sequence
from typing import Any

import torch
from fvcore.common.config import CfgNode
from torch import nn

from slowfast.config import changed_keys, recorded_config
from slowfast.engine.state import TrainState
from slowfast.optim.groups import parameter_groups
from slowfast.optim.sharded import ShardedOptimizer
from slowfast.weights.heads import HeadPolicy
from slowfast.weights.load import load_weights

logger = logging.getLogger(__name__)


def adopt(checkpoint: Mapping[str, Any], state: TrainState, cfg: CfgNode, class_names: Sequence[str] | None) -> None:
    """Fill the state of a new run from an official checkpoint; `class_names` are those of the training list.

    Raises:
        ValueError: its weights are not those of this model.
    """
    epochs = int(checkpoint["epoch"]) + 1
    logger.info(
        "epoch %d of an official checkpoint: %s",
        epochs,
        load_weights(state.model, checkpoint, HeadPolicy(class_names=class_names, as_trained=True)),
    )
    _warn_of_changes(checkpoint.get("cfg"), cfg)
    entries = state.state_dict()
    entries |= {"step": epochs * state.steps_per_epoch, "epochs_closed": epochs}
    entries["scaler_state"] = checkpoint.get("scaler") or checkpoint.get("scaler_state")
    if state.ema:
        entries["ema_state"] = state.model.state_dict()
    try:
        entries["optimizer_state"] = _optimizer_state(checkpoint, state.model, state.optimizer, cfg)
        logger.info("loaded the optimizer state of %d parameters", len(entries["optimizer_state"]["state"]))
    except (ValueError, TypeError, LookupError, AttributeError) as reason:
        logger.warning("the optimizer state does not fit (%s), so the optimizer starts without a state", reason)
    state.load_state_dict(entries)


def _optimizer_state(
    checkpoint: Mapping[str, Any], model: nn.Module, optimizer: torch.optim.Optimizer | ShardedOptimizer, cfg: CfgNode
) -> dict[str, Any]:
    """Return the state of an official optimizer in the order of this one.

    The official programs make the same groups (BatchNorm, decayed, not decayed) over the modules in the order in which
    they appear in `model_state`.

    Raises:
        ValueError, TypeError, LookupError, AttributeError: the numbers cannot be shown to mean the same parameters.
    """
    groups = parameter_groups(model, 1.0, zero_wd_1d=cfg.SOLVER.ZERO_WD_1D_PARAM)
    names = [name for group in groups for name in group["names"]]
    saved = checkpoint["optimizer_state"]
    if not {"param_groups", "state"} <= saved.keys():
        raise ValueError("the file contains none")
    if [len(group["params"]) for group in saved["param_groups"]] != [len(group["names"]) for group in groups]:
        raise ValueError("its groups of parameters differ")
    numbers = [number for group in saved["param_groups"] for number in group["params"]]
    parameters, weights = dict(model.named_parameters()), checkpoint["model_state"]
    if [name for name in weights if name in parameters] != list(parameters):
        raise ValueError("its parameters have other names, or another order")
    by_name = {}
    if cfg.SOLVER.OPTIMIZING_METHOD.startswith("timm/"):
        raise ValueError(f"it is not one of {cfg.SOLVER.OPTIMIZING_METHOD}")
    wanted = {"momentum_buffer"} if cfg.SOLVER.OPTIMIZING_METHOD == "sgd" else {"step", "exp_avg", "exp_avg_sq"}
    for number, name in zip(numbers, names, strict=True):
        shape = parameters[name].shape
        if not torch.equal(parameters[name].detach().cpu(), weights[name]):
            raise ValueError(f"{name} was changed when it was loaded")
        if number not in saved["state"]:  # it never had a gradient
            continue
        values = {key: torch.as_tensor(value, dtype=torch.float32) for key, value in saved["state"][number].items()}
        if values.keys() != wanted or any(value.shape != shape for key, value in values.items() if key != "step"):
            raise ValueError(f"{name} has {', '.join(f'{key} {list(value.shape)}' for key, value in values.items())}")
        by_name[name] = values
    own = [name for group in optimizer.param_groups for name in group["names"]]
    return optimizer.state_dict() | {"state": {i: by_name[name] for i, name in enumerate(own) if name in by_name}}


def _warn_of_changes(text: Any, cfg: CfgNode) -> None:
    """Warn about values of the recipe that differ from the configuration of the official run."""
    if not isinstance(text, str):
        return
    before, known = recorded_config(text)
    changed = {key: values for key, values in changed_keys(before, cfg).items() if key in known}
    if changed:
        differences = ", ".join(f"{key} {there!r} there, {here!r} here" for key, (there, here) in changed.items())
        logger.warning("the configuration differs from that of the official checkpoint: %s", differences)
