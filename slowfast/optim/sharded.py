"""Divide the state of an optimizer among processes (ZeRO stage 1, arXiv:1910.02054, section 5.1)."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any

import torch
from torch import Tensor, distributed
from torch.optim import Optimizer

from slowfast.utils.distributed import is_main, rank, world_size

Groups = list[dict[str, Any]]


class ShardedOptimizer:
    """An optimizer of all parameters, of which each process updates a part and keeps the state of that part only.

    All processes must call `step` and `state_dict`. The optimizer must treat each parameter by itself.

    Args:
        build: from groups of parameters to an optimizer.
        groups: of all parameters; each process must have the same. The optimizer must keep them.

    Attributes:
        numbers: per process, the numbers of its parameters, in the order of `groups`.
        local: the optimizer of the part of this process.
        param_groups: groups of all parameters; `step` reads their learning rates.

    Raises:
        ValueError: the optimizer has other groups.
    """

    def __init__(self, build: Callable[[Groups], Optimizer], groups: Groups) -> None:
        self.parameters: list[Tensor] = [parameter for group in groups for parameter in group["params"]]
        owners = divide([parameter.numel() for parameter in self.parameters], world_size())
        self.numbers = [[n for n, owner in enumerate(owners) if owner == part] for part in range(world_size())]
        owned = {id(self.parameters[n]) for n in self.numbers[rank()]}
        self.local = build([{**g, "params": [p for p in g["params"] if id(p) in owned]} for g in groups])
        if (found := len(self.local.param_groups)) != len(groups):
            raise ValueError(
                f"the optimizer makes {found} parameter groups of {len(groups)}, so its state cannot be divided among "
                "processes"
            )
        self.param_groups: Groups = [
            {**own, "params": group["params"]} for own, group in zip(self.local.param_groups, groups, strict=True)
        ]

    @property
    def state(self) -> Mapping[Tensor, dict[str, Any]]:
        """The state of the parameters of this process."""
        return self.local.state

    def zero_grad(self, set_to_none: bool = True) -> None:
        """Remove the gradients of all parameters."""
        assert set_to_none
        for parameter in self.parameters:
            parameter.grad = None

    @torch.no_grad()
    def step(self) -> None:
        """Update the parameters of this process, then send them to the others."""
        for own, group in zip(self.local.param_groups, self.param_groups, strict=True):
            own["lr"] = group["lr"]
        self.local.step()
        for owner, numbers in enumerate(self.numbers):
            if parameters := [self.parameters[n] for n in numbers]:
                flat = torch.cat([parameter.flatten() for parameter in parameters])
                distributed.broadcast(flat, owner)
                pieces = flat.split([parameter.numel() for parameter in parameters])
                for parameter, piece in zip(parameters, pieces, strict=True):
                    parameter.copy_(piece.view(parameter.shape))

    def state_dict(self) -> dict[str, Any]:
        """Return the state of the whole optimizer, as it is without sharding, in the main process; a part in others."""
        mine = {
            n: {key: value.cpu() if torch.is_tensor(value) else value for key, value in values.items()}
            for n in self.numbers[rank()]
            if (values := self.state.get(self.parameters[n]))
        }
        found: list[Any] | None = [None] * world_size() if is_main() else None
        distributed.gather_object(mine, found)
        state = {number: values for part in found or [mine] for number, values in part.items()}
        numbers = iter(range(len(self.parameters)))
        groups = [
            own | {"params": [next(numbers) for _ in group["params"]]}  # an optimizer may count its steps in `own`
            for own, group in zip(self.local.param_groups, self.param_groups, strict=True)
        ]
        return {"state": dict(sorted(state.items())), "param_groups": groups}

    def part_of(self, state: Mapping[str, Any]) -> dict[str, Any]:
        """Return the part of a whole state that `local` can load."""
        own = self.numbers[rank()]
        sizes = [len(group["params"]) for group in self.local.param_groups]
        numbers = iter(range(len(own)))
        if [len(group["params"]) for group in state["param_groups"]] != [len(g["params"]) for g in self.param_groups]:
            raise ValueError("its groups of parameters differ")
        groups = [
            group | {"params": [next(numbers) for _ in range(size)]}
            for group, size in zip(state["param_groups"], sizes, strict=True)
        ]
        values = {place: state["state"][number] for place, number in enumerate(own) if number in state["state"]}
        return {"state": values, "param_groups": groups}


def divide(sizes: list[int], count: int) -> list[int]:
    """Return the number of the part of each size, so that `count` parts have about the same sum."""
    sums, parts = [0] * count, [0] * len(sizes)
    for number in sorted(range(len(sizes)), key=lambda number: -sizes[number]):
        parts[number] = min(range(count), key=lambda part: sums[part])
        sums[parts[number]] += sizes[number]
    return parts
