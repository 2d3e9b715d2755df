"""A rank's part of a ``DTensor``.

The average of a sharded parameter's curvature is kept whole on every rank, like the curvature
itself. It is small; no rank needs communication for its multipliers; any number of ranks can load
it. Weights and momentum are split like the gradient.
"""

from __future__ import annotations

import functools
import sys
from collections.abc import Sequence
from typing import Any, NamedTuple

import torch
from torch import Tensor

from sgdph.algorithm import newton_step


def is_dtensor(p: object) -> bool:
    """Return whether ``p`` is a ``DTensor``, from FSDP2 or tensor parallelism."""
    module = sys.modules.get("torch.distributed.tensor")
    return module is not None and isinstance(p, module.DTensor)


def split_like(t: Any, p: Any) -> Any:
    """Return the ``DTensor`` ``t`` split like ``p``: ``t`` itself if it already is."""
    return t if t.placements == p.placements else t.redistribute(placements=p.placements)


def whole(t: Any) -> Tensor:
    """Return the full tensor of a ``DTensor``, by a collective, or a plain tensor unchanged."""
    tensor: Tensor = t.full_tensor() if is_dtensor(t) else t
    return tensor


@torch.no_grad()
def part_of(gradient: Any) -> Tensor:
    """Return this rank's part of a ``DTensor``, without a graph."""
    part: Tensor = gradient.to_local()
    return part


class GradientVersions(NamedTuple):
    """The gradient of a sharded parameter, and its versions when it was last seen.

    Unlike for a plain tensor, the storage is not compared, because on ranks with an empty part it
    would not show a new gradient.
    """

    gradient: Tensor
    versions: tuple[int, int]

    @classmethod
    def of(cls, gradient: Tensor) -> GradientVersions:
        """Return the versions of a gradient."""
        # Writes to the whole do not change the version of the part, and vice versa.
        return cls(gradient, (gradient._version, part_of(gradient)._version))


def is_zero(t: Any) -> bool:
    """Return whether all entries are zero, on all ranks. Waits for the device."""
    if not is_dtensor(t):
        return not bool(t.any())
    part = t.to_local()
    found = part.ne(0).any().float()
    for dim in range(t.device_mesh.ndim):
        torch.distributed.all_reduce(found, group=t.device_mesh.get_group(dim))
    return not bool(found)


@torch.no_grad()
def part_of_whole(values: Tensor, p: Any) -> Tensor:
    """Return the entries of a plain tensor, shaped like ``p``, for this rank's part of ``p``."""
    return values.reshape(-1)[_places(p.device_mesh, tuple(p.placements), p.shape, p.device)]


# Not cached by parameter: torch cannot convert a DTensor that has a weak reference (``model.to``).
@functools.lru_cache(maxsize=256)
def _places(mesh: Any, placements: Any, shape: torch.Size, device: torch.device) -> Tensor:
    """Return the flat indices of the entries that this rank holds of a tensor of that shape."""
    from torch.distributed.tensor import DTensor, Replicate

    # DTensor's own way of splitting, uneven and empty parts included.
    places = torch.arange(shape.numel(), device=device).view(shape)
    everywhere = DTensor.from_local(places, mesh, [Replicate()] * mesh.ndim, run_check=False)
    part: Tensor = everywhere.redistribute(placements=placements).to_local()
    return part


@torch.no_grad()
def assembled(part: Tensor, p: Any) -> Tensor:
    """Return the ``DTensor``, split like ``p``, whose part on this rank is ``part``."""
    from torch.distributed.tensor import DTensor

    return DTensor.from_local(
        part, p.device_mesh, p.placements, run_check=False, shape=p.shape, stride=p.stride()
    )


@torch.no_grad()
def step_newton_parameters(
    params: Sequence[Any],
    momentum_buffers: list[Any],
    multipliers: Sequence[Tensor],
    **settings: Any,
) -> None:
    """Run :func:`~sgdph.algorithm.newton_step`; for sharded parameters, on this rank's parts.

    Args:
        params: Parameters with gradients.
        momentum_buffers: Shaped and split like the parameters. ``None`` entries are filled.
        multipliers: Shaped like the whole parameters, and not split.
        settings: The keyword arguments of :func:`~sgdph.algorithm.newton_step`.
    """
    if not any(map(is_dtensor, params)):
        grads = [p.grad for p in params]
        newton_step(list(params), grads, momentum_buffers, list(multipliers), **settings)
        return
    rows: list[tuple[Any, ...]] = []
    for i, (p, multiplier) in enumerate(zip(params, multipliers, strict=True)):
        if not is_dtensor(p):
            rows.append((p, p.grad, momentum_buffers[i], multiplier))
            continue
        if momentum_buffers[i] is not None:
            momentum_buffers[i] = split_like(momentum_buffers[i], p)
        parts = (p, split_like(p.grad, p), momentum_buffers[i])
        rows.append(
            (*(t if t is None else t.to_local() for t in parts), part_of_whole(multiplier, p))
        )
    parts_of, grads, buffers, factors = map(list, zip(*rows, strict=True))
    newton_step(parts_of, grads, buffers, factors, **settings)
    for i, (p, buffer) in enumerate(zip(params, buffers, strict=True)):
        if momentum_buffers[i] is None and buffer is not None:
            momentum_buffers[i] = assembled(buffer, p) if is_dtensor(p) else buffer
