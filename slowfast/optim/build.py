"""Build the optimizer and the loss of a configuration, and compute its learning rate."""

from __future__ import annotations

import math
from bisect import bisect_right
from collections.abc import Callable, Mapping
from functools import partial
from typing import Any

import numpy as np
import torch
from fvcore.common.config import CfgNode
from torch import Tensor, nn
from torch.optim import Optimizer

from slowfast.optim.groups import parameter_groups
from slowfast.optim.losses import LOSSES, balanced_weights
from slowfast.optim.sharded import ShardedOptimizer
from slowfast.utils.distributed import world_size
from slowfast.utils.tables import check_call, keys_of_arguments, row_of

Groups = list[dict[str, Any]]
IMPLEMENTATION = ("fused", "foreach", "capturable")  # options of an optimizer that do not change what it computes


# Fused optimizers update all parameters in one pass, and leave out a step without waiting for the device.
def _adam(kind: type[torch.optim.Adam], groups: Groups, solver: CfgNode) -> Optimizer:
    return kind(groups, lr=solver.BASE_LR, betas=(0.9, 0.999), eps=1e-8, fused=True)


def _sgd(groups: Groups, solver: CfgNode) -> Optimizer:
    options = {"momentum": solver.MOMENTUM, "dampening": solver.DAMPENING, "nesterov": solver.NESTEROV}
    # A fused step can be left out on the device. The first one, which has no dampening, is special; without dampening,
    # momentum buffers of zeros make it like all others.
    fused = solver.DAMPENING == 0
    optimizer = torch.optim.SGD(groups, lr=solver.BASE_LR, fused=fused, **options)
    if fused and solver.MOMENTUM:
        for parameter in (parameter for group in groups for parameter in group["params"]):
            optimizer.state[parameter]["momentum_buffer"] = torch.zeros_like(parameter)
    return optimizer


# SOLVER.OPTIMIZING_METHOD -> (parameter groups, SOLVER) -> optimizer
OPTIMIZERS: dict[str, Callable[..., Optimizer]] = {
    "adam": lambda groups, solver: _adam(torch.optim.Adam, groups, solver),
    "adamw": lambda groups, solver: _adam(torch.optim.AdamW, groups, solver),
    "sgd": _sgd,
}


def _timm_optimizer(name: str, groups: Groups, solver: CfgNode) -> Optimizer:
    """Return an optimizer of timm with SOLVER.BASE_LR, SOLVER.MOMENTUM if it has a momentum, and timm's defaults."""
    from timm.optim import create_optimizer_v2, list_optimizers  # slow to import, and most runs do not need it

    try:
        optimizer = create_optimizer_v2(groups, opt=name, lr=solver.BASE_LR, momentum=solver.MOMENTUM)
        if getattr(optimizer, "is_second_order", False):
            raise ValueError("it needs second derivatives, which a step does not compute")
        return optimizer
    except (ValueError, TypeError, ImportError, RuntimeError, AssertionError) as error:
        raise ValueError(
            f"SOLVER.OPTIMIZING_METHOD timm/{name} cannot be built ({error}): choose another of {list_optimizers()}"
        ) from error


def build_optimizer(model: nn.Module, cfg: CfgNode) -> Optimizer | ShardedOptimizer:
    """Return the optimizer of the configuration; its parameter groups have a weight decay and a learning-rate factor.

    Raises:
        ValueError: timm has no such optimizer, SOLVER.LAYER_DECAY does not fit the network, or DDP.SHARDING does not
            fit the optimizer.
    """
    with keys_of_arguments({"layer_decay": "SOLVER.LAYER_DECAY"}):
        groups = parameter_groups(
            model,
            weight_decay=cfg.SOLVER.WEIGHT_DECAY,
            bn_weight_decay=cfg.BN.WEIGHT_DECAY,
            zero_wd_1d=cfg.SOLVER.ZERO_WD_1D_PARAM,
            backbone_lr_ratio=cfg.SOLVER.BACKBONE_LR_RATIO,
            layer_decay=cfg.SOLVER.LAYER_DECAY,
        )
    name = cfg.SOLVER.OPTIMIZING_METHOD
    if name.startswith("timm/"):
        build = partial(_timm_optimizer, name.removeprefix("timm/"))
    else:
        build = row_of(OPTIMIZERS, "OPTIMIZERS in slowfast.optim.build", name, "SOLVER.OPTIMIZING_METHOD")
        cure = "an optimizer is a function of the parameter groups and of solver"
        check_call(build, f"SOLVER.OPTIMIZING_METHOD {name}", cure, groups, solver=cfg.SOLVER)
    if cfg.DDP.SHARDING == "zero1" and world_size() > 1:
        try:
            optimizer = ShardedOptimizer(partial(build, solver=cfg.SOLVER), groups)
        except ValueError as error:
            raise ValueError(f"SOLVER.OPTIMIZING_METHOD {name}: {error}: set DDP.SHARDING none") from error
    else:
        optimizer = build(groups, solver=cfg.SOLVER)
    if not all("lr_scale" in group for group in optimizer.param_groups):
        raise ValueError(
            f"SOLVER.OPTIMIZING_METHOD {name}: a parameter group has no lr_scale, the factor of its learning rate: "
            "keep the entries of the groups that the function gets"
        )
    return optimizer


def _cosine(epoch: float, base: float, end: float, solver: CfgNode) -> float:
    """Return the learning rate on half a cosine (arXiv:1608.03983, no restarts)."""
    begin = solver.WARMUP_EPOCHS if solver.COSINE_AFTER_WARMUP else 0.0
    progress = (epoch - begin) / (solver.MAX_EPOCH - begin)
    return end + (base - end) * (math.cos(math.pi * progress) + 1.0) * 0.5


def _steps(epoch: float, base: float, end: float, solver: CfgNode) -> float:
    """Return the learning rate with a factor for each part of the training."""
    return base * solver.LRS[bisect_right(solver.STEPS, epoch) - 1]


# SOLVER.LR_POLICY -> (fractional epoch, SOLVER.BASE_LR, SOLVER.COSINE_END_LR, SOLVER) -> learning rate; both rates are
# already scaled by the nodes
SCHEDULES: dict[str, Callable[[float, float, float, CfgNode], float]] = {
    "cosine": _cosine,
    "steps_with_relative_lrs": _steps,
}


def learning_rate(epoch: float, cfg: CfgNode) -> float:
    """Return the learning rate at a fractional epoch: linear warm-up, then the schedule; scaled by nodes if set."""
    solver = cfg.SOLVER
    shards = cfg.NUM_SHARDS if solver.BASE_LR_SCALE_NUM_SHARDS else 1
    base, end, first = (shards * lr for lr in (solver.BASE_LR, solver.COSINE_END_LR, solver.WARMUP_START_LR))

    schedule = row_of(SCHEDULES, "SCHEDULES in slowfast.optim.build", solver.LR_POLICY, "SOLVER.LR_POLICY")
    cure = "a schedule is a function of the epoch, SOLVER.BASE_LR, SOLVER.COSINE_END_LR and the section SOLVER"
    check_call(schedule, f"SOLVER.LR_POLICY {solver.LR_POLICY}", cure, epoch, base, end, solver)
    if epoch < solver.WARMUP_EPOCHS:
        after = schedule(solver.WARMUP_EPOCHS, base, end, solver)
        return first + (after - first) * epoch / solver.WARMUP_EPOCHS
    return schedule(epoch, base, end, solver)


def set_learning_rate(optimizer: Optimizer | ShardedOptimizer, lr: float) -> None:
    """Set the learning rate of every group to `lr` times its factor."""
    for group in optimizer.param_groups:
        group["lr"] = lr * group["lr_scale"]


@torch.no_grad()
def step_unless(skip: Tensor, optimizer: Optimizer | ShardedOptimizer) -> None:
    """Take a step of the optimizer, or none if `skip` () is True on the device.

    The fused optimizers of PyTorch read `skip` on the device; for other optimizers, this process waits for its value.
    """
    own: Any = optimizer.local if isinstance(optimizer, ShardedOptimizer) else optimizer
    if getattr(own, "_step_supports_amp_scaling", False):
        own.found_inf = skip.float()
        optimizer.step()
        del own.found_inf
    elif not skip:
        optimizer.step()


def load_optimizer_state(optimizer: Optimizer | ShardedOptimizer, state: Mapping[str, Any]) -> None:
    """Load a state that may come from another device, memory format or implementation of the same optimizer.

    Raises:
        ValueError, TypeError, LookupError, AttributeError: it does not fit.
    """
    if isinstance(optimizer, ShardedOptimizer):
        optimizer, state = optimizer.local, optimizer.part_of(state)
    groups = [
        group | {key: own[key] for key in IMPLEMENTATION if key in own}
        for group, own in zip(state["param_groups"], optimizer.param_groups, strict=True)
    ]
    optimizer.load_state_dict({**state, "param_groups": groups})
    for parameter, values in optimizer.state.items():
        for name, value in values.items():
            # fused optimizers do not look at strides
            if torch.is_tensor(value) and value.shape == parameter.shape and value.stride() != parameter.stride():
                values[name] = torch.empty_like(parameter, dtype=value.dtype).copy_(value)


def build_loss(
    cfg: CfgNode, labels: np.ndarray | None = None, device: torch.device | None = None
) -> Callable[[Tensor, Tensor], Tensor]:
    """Return the loss function MODEL.LOSS_FUNC of logits (B, K) and targets.

    MODEL.CLASS_WEIGHTS are computed from the labels (N,) of the training list.

    Raises:
        ValueError: there is no such row, or it is a class, such as those of `torch.nn`, whose objects are functions.
    """
    loss = row_of(LOSSES, "LOSSES in slowfast.optim.losses", cfg.MODEL.LOSS_FUNC, "MODEL.LOSS_FUNC")
    if isinstance(loss, type):
        raise ValueError(
            f"MODEL.LOSS_FUNC {cfg.MODEL.LOSS_FUNC!r} is the class {loss.__name__}, not a function of logits and "
            f"targets: write LOSSES[{cfg.MODEL.LOSS_FUNC!r}] = {loss.__name__}(), with its arguments"
        )
    weight = {}
    if cfg.MODEL.CLASS_WEIGHTS != "none" and labels is not None:
        weight["weight"] = balanced_weights(labels, cfg.MODEL.NUM_CLASSES).to(device)
    cure = "a loss is a function of logits and targets, and of weight if MODEL.CLASS_WEIGHTS is balanced"
    check_call(loss, f"MODEL.LOSS_FUNC {cfg.MODEL.LOSS_FUNC}", cure, None, None, **weight)
    return partial(loss, **weight)
