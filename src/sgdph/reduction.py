"""The mean of the partial curvature over the ranks of a process group."""

from __future__ import annotations

import contextlib
from collections.abc import Iterator, Sequence
from functools import reduce
from typing import NamedTuple

import torch
import torch.distributed as dist
from torch import Tensor

from sgdph.checkpoint import curvature_dtype
from sgdph.region import Region


def world_size(process_group: dist.ProcessGroup | None) -> int:
    """Return the number of ranks: 1 where ``torch.distributed`` is not running."""
    if not (dist.is_available() and dist.is_initialized()):
        return 1
    return dist.get_world_size(process_group)


_ENQUEUED = "_static_graph_delay_allreduce_enqueued"


@contextlib.contextmanager
def static_graph_unnoticed(region: Region) -> Iterator[None]:
    """Keep ``DistributedDataParallel(static_graph=True)`` from taking a pass for its backward.

    The first time that a gradient comes out of the wrapped model, it puts a reduction of all
    gradients at the end of the running backward. In a pass that only looks, there are none, and it
    would never reduce any.
    """
    waiting = []
    for node in region.nodes:
        if type(node).__name__ == "_DDPSinkBackward":
            wrapper = node.ddp_weakref()
            if not getattr(wrapper, _ENQUEUED, True):
                waiting.append(wrapper)
    for wrapper in waiting:
        setattr(wrapper, _ENQUEUED, True)
    try:
        yield
    finally:
        for wrapper in waiting:
            setattr(wrapper, _ENQUEUED, False)


class Arrival(NamedTuple):
    """Curvature that came for a parameter.

    Attributes:
        p: The parameter.
        h: Its curvature, signed, shaped like it; ``None`` where none came.
        valid: A boolean of shape ``()`` on the device; ``None`` is true.
    """

    p: Tensor
    h: Tensor | None
    valid: Tensor | None = None


def mean_over_ranks(
    arrivals: Sequence[Arrival], process_group: dist.ProcessGroup | None
) -> list[Arrival]:
    """Average signed curvature over the ranks, in one collective.

    The mean is unweighted, as DDP's of the gradients; a rank that has nothing counts as zero.

    Args:
        arrivals: This rank's, for the same parameters in the same order on every rank.
        process_group: ``None`` for the default group.

    Returns:
        The means, valid where any rank had something.
    """
    params = [a.p for a in arrivals]
    dtype = reduce(torch.promote_types, (curvature_dtype(p) for p in params))
    device = params[0].device
    parts = [
        torch.zeros(p.numel(), dtype=dtype, device=device)
        if h is None
        else h.reshape(-1).to(device, dtype)
        for p, h, _ in arrivals
    ]
    counts = torch.tensor([h is not None for _, h, _ in arrivals], dtype=dtype)
    vector = torch.cat([*parts, counts.to(device, non_blocking=True)])
    dist.all_reduce(vector, group=process_group)

    sizes = [*(p.numel() for p in params), len(params)]
    *sums, present = torch.split(vector, sizes)
    ranks = dist.get_world_size(process_group)
    return [
        Arrival(
            p,
            (total / ranks).view(p.shape).to(p.device, curvature_dtype(p)),
            count.gt(0).to(p.device),
        )
        for p, total, count in zip(params, sums, present, strict=True)
    ]
