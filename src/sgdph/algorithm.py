"""Algorithm 1 on tensors: the average of the curvature, the multiplier, the Newton step.

Everything here runs on the parameters' device and never asks the host.
"""

from __future__ import annotations

import math
from functools import cache

import torch
from torch import Tensor


def curvature_dtype(p: Tensor) -> torch.dtype:
    """Return the dtype of ``p``'s Hessian average: float32, or float64 where ``p`` is."""
    return _at_least_float32(p.dtype)


@cache
def _at_least_float32(dtype: torch.dtype) -> torch.dtype:
    # Remembered, because every parameter is asked at every step.
    return torch.promote_types(dtype, torch.float32)


def average_curvature(
    average: Tensor, refreshes: Tensor, h: Tensor, arrived: Tensor | None, beta2: float
) -> None:
    """Let ``D ← β₂ D + (1-β₂) h`` and ``v ← v + 1``, in place (Eq. 5).

    Neither moves where ``h`` has a non-finite entry or ``arrived`` is false.

    Args:
        average: D, of the parameter's shape.
        refreshes: v, a float tensor of shape ``()``.
        h: The new curvature, shaped like D: rectified already where it is to be (Eq. 4).
        arrived: A boolean of shape ``()``, or ``None`` for true.
        beta2: β₂, in [0, 1).
    """
    accepted = h.isfinite().all()
    if arrived is not None:
        accepted = accepted & arrived
    average.copy_(torch.where(accepted, average * beta2 + h * (1 - beta2), average))
    refreshes.add_(accepted)


def corrected_average(average: Tensor, refreshes: Tensor, beta2: float) -> Tensor:
    """Return ``D̂ = |D| / (1 - β₂ᵛ)``; not a number before the first refresh.

    Args:
        average: D, of any shape.
        refreshes: v, a float tensor of shape ``()``.
        beta2: β₂.
    """
    v = refreshes.to(average.dtype)
    # 1 - β₂ᵛ without the cancellation that β₂ near 1 brings in float32.
    correction = -torch.expm1(v * (math.log(beta2) if beta2 > 0 else -math.inf))
    return average.abs() / correction


def newton_multiplier(
    average: Tensor, refreshes: Tensor, *, second_order_lr: float, eps: float, beta2: float
) -> Tensor:
    """Return ``τ / (D̂ + ε)`` with ``D̂ = |D| / (1 - β₂ᵛ)``, and 1 before the first refresh.

    Args:
        average: D, of any shape.
        refreshes: v, a float tensor of shape ``()``.
        second_order_lr: τ.
        eps: ε.
        beta2: β₂.
    """
    multiplier = second_order_lr / (corrected_average(average, refreshes, beta2) + eps)
    return torch.where(refreshes > 0, multiplier, torch.ones_like(multiplier))


def newton_step(
    params: list[Tensor],
    grads: list[Tensor],
    momentum_buffers: list[Tensor | None],
    multipliers: list[Tensor],
    *,
    lr: float | Tensor,
    momentum: float,
    weight_decay: float,
    maximize: bool,
    foreach: bool | None,
) -> None:
    """Let ``m ← β₁ m + g`` and ``w ← w - lr (multiplier · m + λ w)``, in place (Eq. 6, 7).

    ``momentum_buffers`` is filled where it holds ``None`` (``m ← g`` at first), as in
    ``torch.optim.sgd.sgd``, which makes the first-order steps.
    """
    if not params:
        return
    if isinstance(lr, Tensor):
        lr = lr.item()
    if foreach is None:
        foreach = all(p.is_cuda for p in params)
    step = _newton_foreach if foreach else _newton_single_tensor
    if maximize:
        grads = [-g for g in grads]
    step(params, grads, momentum_buffers, multipliers, lr, momentum, weight_decay)


def _newton_single_tensor(
    params: list[Tensor],
    grads: list[Tensor],
    momentum_buffers: list[Tensor | None],
    multipliers: list[Tensor],
    lr: float,
    momentum: float,
    weight_decay: float,
) -> None:
    for i, (p, m) in enumerate(zip(params, grads, strict=True)):
        if momentum != 0:
            buffer = momentum_buffers[i]
            if buffer is None:
                buffer = momentum_buffers[i] = m.detach().clone()
            else:
                buffer.mul_(momentum).add_(m)
            m = buffer
        direction = m * multipliers[i]
        if weight_decay != 0:
            direction.add_(p, alpha=weight_decay)
        p.add_(direction, alpha=-lr)


def _newton_foreach(
    params: list[Tensor],
    grads: list[Tensor],
    momentum_buffers: list[Tensor | None],
    multipliers: list[Tensor],
    lr: float,
    momentum: float,
    weight_decay: float,
) -> None:
    moving = grads
    if momentum != 0:
        known = [i for i, buffer in enumerate(momentum_buffers) if buffer is not None]
        buffers = [buffer for buffer in momentum_buffers if buffer is not None]
        if known:
            torch._foreach_mul_(buffers, momentum)
            torch._foreach_add_(buffers, [grads[i] for i in known])
        moving = [
            g.detach().clone() if buffer is None else buffer
            for buffer, g in zip(momentum_buffers, grads, strict=True)
        ]
        momentum_buffers[:] = moving
    directions = torch._foreach_mul(moving, multipliers)
    if weight_decay != 0:
        torch._foreach_add_(directions, params, alpha=weight_decay)
    torch._foreach_add_(params, directions, alpha=-lr)
