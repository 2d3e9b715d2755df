"""The norm of gradients: those that are split over ranks, and those that all ranks hold."""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Any

import torch
import torch.distributed as dist
from torch import Tensor

from sgdph.distributed.dtensor import is_dtensor, split_like


@torch.no_grad()
def total_norm(params: Sequence[Any], norm_type: float, foreach: bool | None) -> Tensor:
    """Return the norm of all gradients together, identical bit for bit on every rank.

    Args:
        params: Parameters with gradients, in the same order on every rank.
        norm_type: The p of the p-norm; infinity is the largest entry.
        foreach: Use the multi-tensor functions; ``None`` leaves it to torch.
    """
    if not params:
        return torch.tensor(0.0)
    norms = _norms([_own_part(p) for p in params], norm_type, foreach)
    # For each mesh and split, gather the ranks' norms of their parts, and join them in rank order.
    kinds: dict[Any, list[int]] = {}
    for i, p in enumerate(params):
        if is_dtensor(p):
            kinds.setdefault((p.device_mesh, tuple(p.placements)), []).append(i)
    for (mesh, placements), places in kinds.items():
        joined = torch.stack([norms[i] for i in places])
        for dim, placement in enumerate(placements):
            if not placement.is_replicate():
                joined = _joined(joined, mesh.get_group(dim), norm_type)
        for i, norm in zip(places, joined, strict=True):
            norms[i] = norm
    device = norms[0].device
    total: Tensor = torch.linalg.vector_norm(torch.stack([n.to(device) for n in norms]), norm_type)
    return total


@torch.no_grad()
def clip_gradients(params: Sequence[Any], factor: Tensor, foreach: bool | None) -> None:
    """Multiply all gradients by a factor of shape ``()``, in place."""
    parts = [p.grad.to_local() if is_dtensor(p.grad) else p.grad for p in params]
    by_device: dict[torch.device, list[Tensor]] = {}
    for part in parts:
        by_device.setdefault(part.device, []).append(part)
    for device, together in by_device.items():
        if foreach is False:
            for part in together:
                part.mul_(factor.to(device))
        else:
            torch._foreach_mul_(together, factor.to(device))


def _own_part(p: Any) -> Tensor:
    gradient = p.grad.detach()
    part: Tensor = split_like(gradient, p).to_local() if is_dtensor(p) else gradient
    return part


def _norms(parts: Sequence[Tensor], norm_type: float, foreach: bool | None) -> list[Tensor]:
    # The largest entry of an empty tensor is undefined; a rank with an empty part has norm 0.
    whole = [part if part.numel() else part.new_zeros(1) for part in parts]
    if foreach is False:
        return [torch.linalg.vector_norm(part, norm_type) for part in whole]
    return list(torch._foreach_norm(whole, norm_type))


def _joined(norms: Tensor, group: dist.ProcessGroup, norm_type: float) -> Tensor:
    of_ranks = [torch.empty_like(norms) for _ in range(dist.get_world_size(group))]
    dist.all_gather(of_ranks, norms, group=group)
    # A sum of powers would overflow half precision.
    if math.isinf(norm_type):
        return torch.stack(of_ranks).amax(0)
    joined: Tensor = torch.linalg.vector_norm(torch.stack(of_ranks), norm_type, dim=0)
    return joined
