"""Read the configuration: the optimizer, the learning rate of an epoch, the loss."""

from __future__ import annotations

from collections.abc import Callable

import torch
from fvcore.common.config import CfgNode
from torch import Tensor, nn

from slowfast.optim.groups import parameter_groups
from slowfast.optim.losses import LOSSES
from slowfast.optim.schedules import cosine_lr, steps_lr, warmup_lr


def build_optimizer(model: nn.Module, cfg: CfgNode) -> torch.optim.Optimizer:
    """AdamW, Adam or SGD over the recipe's parameter groups."""
    groups = parameter_groups(
        model,
        weight_decay=cfg.SOLVER.WEIGHT_DECAY,
        bn_weight_decay=cfg.BN.WEIGHT_DECAY,
        zero_wd_1d=cfg.SOLVER.ZERO_WD_1D_PARAM,
        backbone_lr_ratio=cfg.SOLVER.BACKBONE_LR_RATIO,
    )
    if cfg.SOLVER.OPTIMIZING_METHOD in ("adamw", "adam"):
        method = torch.optim.AdamW if cfg.SOLVER.OPTIMIZING_METHOD == "adamw" else torch.optim.Adam
        # fused: with a loss scaler, the others would read from the GPU at every step
        fused = next(model.parameters()).is_cuda
        return method(groups, lr=cfg.SOLVER.BASE_LR, betas=(0.9, 0.999), eps=1e-8, fused=fused)
    assert cfg.SOLVER.OPTIMIZING_METHOD == "sgd", cfg.SOLVER.OPTIMIZING_METHOD
    return torch.optim.SGD(
        groups,
        lr=cfg.SOLVER.BASE_LR,
        momentum=cfg.SOLVER.MOMENTUM,
        dampening=cfg.SOLVER.DAMPENING,
        nesterov=cfg.SOLVER.NESTEROV,
    )


def learning_rate(epoch: float, cfg: CfgNode) -> float:
    """Learning rate at the fractional `epoch`: warm-up, then the policy; scaled by the number of nodes when asked."""
    solver = cfg.SOLVER
    shards = cfg.NUM_SHARDS if solver.BASE_LR_SCALE_NUM_SHARDS else 1

    def policy(epoch: float) -> float:
        if solver.LR_POLICY == "cosine":
            start = solver.WARMUP_EPOCHS if solver.COSINE_AFTER_WARMUP else 0.0
            return cosine_lr(epoch, solver.BASE_LR * shards, solver.COSINE_END_LR * shards, start, solver.MAX_EPOCH)
        assert solver.LR_POLICY == "steps_with_relative_lrs", solver.LR_POLICY
        return steps_lr(epoch, solver.BASE_LR * shards, solver.STEPS, solver.LRS)

    if epoch < solver.WARMUP_EPOCHS:
        return warmup_lr(epoch, solver.WARMUP_START_LR * shards, policy(solver.WARMUP_EPOCHS), solver.WARMUP_EPOCHS)
    return policy(epoch)


def set_learning_rate(optimizer: torch.optim.Optimizer, lr: float) -> None:
    """Give every group `lr` times its own factor."""
    for group in optimizer.param_groups:
        group["lr"] = lr * group["lr_scale"]


def build_loss(cfg: CfgNode) -> Callable[[Tensor, Tensor], Tensor]:
    """The loss named by MODEL.LOSS_FUNC, over logits and targets."""
    return LOSSES[cfg.MODEL.LOSS_FUNC]
