"""Ranks with different numbers of batches: what a rank does once it has run out of them.

Inside ``torch.distributed.algorithms.join.Join([model, optimizer])`` such a rank keeps taking part
in the collectives of the others. When all have run out, it takes over their result.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import torch
import torch.distributed as dist
from torch import Tensor
from torch.distributed import ProcessGroup
from torch.optim.optimizer import Optimizer

from sgdph.curvature.curvature import Curvature
from sgdph.roles import Groups

# Group entries that stay each rank's own: what a scheduler sets, and which parameters there are.
_OF_THE_RANK = {
    *("params", "param_names", "lr", "initial_lr", "max_lr", "min_lr", "swa_lr", "momentum"),
    *("base_momentum", "max_momentum", "betas", "weight_decay"),
}


class JoinableOptimizer(Optimizer):
    """An optimizer with curvature that can be a member of ``Join([model, optimizer])``."""

    _curvature: Curvature

    @property
    def _groups(self) -> Groups:
        """The parameter groups."""
        return Groups(self.param_groups, self.param_groups)

    def join_hook(self, **settings: Any) -> CurvatureJoinHook:
        """Return the hook for ``Join([model, optimizer])``, for ranks with uneven inputs.

        ``Join`` is in ``torch.distributed.algorithms.join``. Each forward of the model must then
        be followed by a ``step``: no accumulation, no skipped steps.
        """
        return CurvatureJoinHook(self, self._curvature, settings)

    @property
    def join_device(self) -> torch.device:
        """The device of a join context's collectives."""
        params = (p for group in self.param_groups for p in group["params"])
        device: torch.device = next(params).device
        return device

    @property
    def join_process_group(self) -> ProcessGroup | None:
        """The ranks of a join context."""
        return self._curvature.ranks.process_group or torch.distributed.group.WORLD

    def __setattr__(self, name: str, value: Any) -> None:
        # A join context sets its configuration as this attribute before it begins.
        if name == "_join_config":
            refuse_to_lead(value)
            if value.enable:
                self._curvature.ranks.join_begins()
        super().__setattr__(name, value)


class CurvatureJoinHook:
    """The hook by which a rank without batches takes part in the optimizer's collectives.

    Args:
        optimizer: The rank's own optimizer.
        curvature: The optimizer's curvature.
        settings: The keyword arguments of the join context.
    """

    def __init__(
        self, optimizer: JoinableOptimizer, curvature: Curvature, settings: Mapping[str, Any]
    ) -> None:
        self._optimizer = optimizer
        self._curvature = curvature
        curvature.ranks.over_active = not settings.get("divide_by_initial_world_size", True)

    def main_hook(self) -> None:
        """Shadow one step of the other ranks: this rank's curvature and gradient count as zero."""
        groups = self._optimizer._groups
        due = self._curvature.is_due(groups)
        collected = self._curvature.collect(groups, None, active=False) if due else []
        self._curvature.advance(groups, collected, due=due)
        self._curvature.finish_step(groups)

    def post_hook(self, is_last_joiner: bool) -> None:
        """Take over momenta and averages from a rank that ran to the end, like the model's weights.

        Settings such as learning rates stay each rank's own, because a scheduler sets them.
        """
        # There may have been no step inside the context.
        self._curvature.ranks.accept_join(self._curvature.cycle.newton)
        optimizer, group = self._optimizer, self._curvature.ranks.process_group
        rank = dist.get_rank(group)
        device = optimizer.join_device
        candidate = torch.tensor([rank if is_last_joiner else -1], device=device)
        dist.all_reduce(candidate, op=dist.ReduceOp.MAX, group=group)
        last = int(candidate.item())
        package = [_on_cpu(optimizer.state_dict()) if rank == last else None]
        source = last if group is None else dist.get_global_rank(group, last)
        dist.broadcast_object_list(package, source, group=group)
        sent = package[0]
        if rank != last and sent is not None:
            mine = optimizer.state_dict()
            mine["state"] = sent["state"]
            for ours, theirs in zip(mine["param_groups"], sent["param_groups"], strict=True):
                # Counters that optimizers keep in their groups, such as the place in the cycle.
                ours.update((key, theirs[key]) for key in theirs.keys() - _OF_THE_RANK)
            optimizer.load_state_dict(mine)


def refuse_to_lead(join_config: Any) -> None:
    """Raise an error if the optimizer is the first member of a join context.

    The first member must be a model, because the context counts its forwards.

    Raises:
        ValueError: The context is enabled, and the optimizer is its first member.
    """
    if join_config.enable and join_config.is_first_joinable:
        raise ValueError(
            "pass the model first: Join([model, optimizer]). The model's forward tells the "
            "context that a rank still has batches"
        )


def _on_cpu(state_dict: dict[str, Any]) -> dict[str, Any]:
    # Unpickling puts a tensor on the device it was pickled from, which is another rank's.
    states = {
        index: {
            key: value.cpu() if isinstance(value, Tensor) else value for key, value in kept.items()
        }
        for index, kept in state_dict["state"].items()
    }
    return {**state_dict, "state": states}
