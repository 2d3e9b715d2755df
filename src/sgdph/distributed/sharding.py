"""Errors for parameters that are sharded in a way that is not supported."""

from __future__ import annotations

import sys
from collections.abc import Iterable, Mapping
from typing import Any

from torch import Tensor

from sgdph.distributed.dtensor import is_dtensor
from sgdph.distributed.fully_sharded import fully_sharded
from sgdph.roles import is_newton

_ZERO = "torch.distributed.optim.zero_redundancy_optimizer"
# How many calling frames are searched: ZeroRedundancyOptimizer's method, SGDPH's constructor, this
# module, and subclasses in between.
_DEEPEST = 8


def is_sharded(p: Tensor) -> bool:
    """Return whether ``p`` is a ``DTensor`` or a shard of FSDP1."""
    return is_dtensor(p) or bool(getattr(p, "_fsdp_flattened", False))


def refuse_sharded(group: Mapping[str, Any]) -> None:
    """Raise an error for Newton parameters that are sharded by anything but ``fully_shard``.

    FSDP1 frees and gathers weights around a backward, and the shape of its shards does not show a
    parameter's role. Tensor parallelism leaves its parameters in the graph as ``DTensor``.

    Raises:
        ValueError: A parameter is sharded like this, and is channel-wise by its group's flag or its
            shape.
    """
    suspects = [p for p in group["params"] if is_sharded(p) and is_newton(p, group)]
    held = fully_sharded() if suspects else set()
    for p in suspects:
        if id(p) not in held:
            raise ValueError(
                f"a parameter of shape {tuple(p.shape)} is sharded ({type(p).__name__}; by "
                "FullyShardedDataParallel or tensor parallelism), so no partial Hessian of it can "
                "be taken. Use fully_shard with sgdph.integrations.fsdp.backward, or "
                "DistributedDataParallel; leave norms and biases out of the tensor-parallel plan; "
                "or give the groups of sharded parameters channelwise=False: they then train as "
                "torch.optim.SGD does"
            )


def refuse_zero(groups: Iterable[Mapping[str, Any]]) -> None:
    """Raise an error if ``ZeroRedundancyOptimizer`` builds this optimizer with Newton groups.

    It gives each rank different parameters, but a parameter's curvature is a mean over all ranks.

    Raises:
        ValueError: It is building this optimizer, and a group is not flagged ``channelwise=False``.
    """
    if all(group.get("channelwise") is False for group in groups):
        return
    frame = sys._getframe(1)
    for _ in range(_DEEPEST):
        if frame.f_globals.get("__name__") == _ZERO:
            raise ValueError(
                "ZeroRedundancyOptimizer gives each rank its own parameters, but SGDPH averages "
                "each parameter's curvature over all ranks. Give ZeroRedundancyOptimizer "
                "torch.optim.SGD and the first-order groups of sgdph.param_groups, and SGDPH the "
                "channel-wise groups: together they take the same steps"
            )
        if frame.f_back is None:
            return
        frame = frame.f_back
