"""Two processes train a small network with and without sharding: python sharding.py."""

from __future__ import annotations

import copy
import os
import socket
from typing import Any

import torch
from torch import nn
from torch.nn.parallel import DistributedDataParallel

from slowfast.config import get_cfg
from slowfast.config.extensions import add_choice
from slowfast.engine.start import new_state
from slowfast.engine.state import TrainState
from slowfast.optim.build import OPTIMIZERS, set_learning_rate, step_unless
from slowfast.optim.sharded import ShardedOptimizer
from slowfast.run.rendezvous import join_group
from slowfast.utils import distributed

CPU = torch.device("cpu")


class Slowing(torch.optim.Optimizer):
    """SGD whose groups count the steps, as those of some optimizers do; each step is smaller than the one before."""

    @torch.no_grad()
    def step(self, closure: Any = None) -> None:
        for group in self.param_groups:
            group["steps"] = group.get("steps", 0) + 1
            for parameter in group["params"]:
                parameter.sub_(parameter.grad * group["lr"] / group["steps"])
                self.state[parameter]["updated"] = True


add_choice("SOLVER.OPTIMIZING_METHOD", "slowing")
OPTIMIZERS["slowing"] = lambda groups, solver: Slowing(groups, {"lr": solver.BASE_LR})


def start(method: str, sharding: str) -> tuple[TrainState, nn.Module]:
    torch.manual_seed(0)
    model = nn.Sequential(nn.Conv2d(3, 8, 2), nn.BatchNorm2d(8), nn.Flatten(), nn.Linear(32, 5))
    cfg = get_cfg()
    options = {"SOLVER.OPTIMIZING_METHOD": method, "SOLVER.BASE_LR": 0.1, "DDP.SHARDING": sharding}
    cfg.merge_from_list([item for pair in options.items() for item in pair])
    return new_state(cfg, model, 10, CPU), DistributedDataParallel(model, gradient_as_bucket_view=True)


def train(state: TrainState, network: nn.Module, steps: int) -> None:
    for _ in range(steps):
        torch.manual_seed(10 * state.step + distributed.rank())
        network(torch.randn(4, 3, 3, 3)).square().mean().backward()
        set_learning_rate(state.optimizer, 0.1 / (1 + state.step))
        step_unless(torch.tensor(state.step == 1), state.optimizer)
        state.optimizer.zero_grad()
        state.step += 1


def same(a: Any, b: Any) -> bool:
    if isinstance(a, dict):
        return a.keys() == b.keys() and all(same(a[key], b[key]) for key in a)
    if isinstance(a, list):
        return len(a) == len(b) and all(map(same, a, b))
    return torch.equal(a, b) if torch.is_tensor(a) else a == b


def process(rank: int, port: int) -> None:
    os.environ |= {"RANK": str(rank), "WORLD_SIZE": "2", "MASTER_ADDR": "127.0.0.1", "MASTER_PORT": str(port)}
    join_group("gloo", CPU, timeout=60, check=lambda: None)
    for method in ("adamw", "sgd", "adam", "slowing"):
        whole, sharded = start(method, "none"), start(method, "zero1")
        assert isinstance(sharded[0].optimizer, ShardedOptimizer)
        for state, network in (whole, sharded):
            train(state, network, 3)
        saved = [copy.deepcopy(state.state_dict()) for state, _ in (whole, sharded)]
        assert same(saved[0]["model_state"], saved[1]["model_state"]), method
        assert rank or same(saved[0]["optimizer_state"], saved[1]["optimizer_state"]), method
        assert len(sharded[0].optimizer.state) < len(whole[0].optimizer.state), method
        train(*whole, 2)
        content = distributed.broadcast(saved[1])  # a checkpoint is written by the main process
        for kind in ("none", "zero1"):
            resumed = start(method, kind)
            resumed[0].load_state_dict(copy.deepcopy(content))
            train(*resumed, 2)
            assert same(resumed[0].model.state_dict(), whole[0].model.state_dict()), (method, kind)
    distributed.destroy_process_group()


if __name__ == "__main__":
    with socket.socket() as listener:
        listener.bind(("127.0.0.1", 0))
        free = listener.getsockname()[1]
    # forked, so that they do not import everything again
    torch.multiprocessing.start_processes(process, (free,), nprocs=2, start_method="fork")
