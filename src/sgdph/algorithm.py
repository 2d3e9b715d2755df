"""Algorithm 1 on tensors: the average of the curvature, the multiplier, the Newton step.

Only the statistics, and an ``lr`` tensor, make the host wait for the parameters' device.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import cache
from typing import Any, NamedTuple

import torch
from torch import Tensor


def curvature_dtype(p: Tensor) -> torch.dtype:
    """Return the dtype of ``p``'s Hessian average: float32, or float64 if ``p`` is float64."""
    return _at_least_float32(p.dtype)


@cache
def _at_least_float32(dtype: torch.dtype) -> torch.dtype:
    # Cached, because every step calls it for every parameter.
    return torch.promote_types(dtype, torch.float32)


def average_curvature(
    average: Tensor, refreshes: Tensor, h: Tensor, valid: Tensor | None, beta2: float
) -> None:
    """Set ``D ← β₂ D + (1-β₂) h`` and ``v ← v + 1``, in place (Eq. 5).

    Neither changes if ``h`` has a non-finite entry or ``valid`` is false.

    Args:
        average: D, of the parameter's shape.
        refreshes: v, a float tensor of shape ``()``.
        h: The new curvature, shaped like D. The caller has rectified it, if needed (Eq. 4).
        valid: A boolean of shape ``()``, or ``None`` for true.
        beta2: β₂, in [0, 1).
    """
    accepted = h.isfinite().all()
    if valid is not None:
        accepted = accepted & valid
    average.copy_(torch.where(accepted, average * beta2 + h * (1 - beta2), average))
    refreshes.add_(accepted)


def corrected_average(average: Tensor, refreshes: Tensor, beta2: float) -> Tensor:
    """Return ``D̂ = |D| / (1 - β₂ᵛ)``; it is NaN before the first refresh.

    Args:
        average: D, of any shape.
        refreshes: v, a float tensor of shape ``()``.
        beta2: β₂.
    """
    return average.abs() / bias_correction(refreshes, average.dtype, beta2)


def bias_correction(refreshes: Tensor, dtype: torch.dtype, beta2: float) -> Tensor:
    """Return ``1 - β₂ᵛ``, without the float32 cancellation for β₂ near 1."""
    exponent = math.log(beta2) if beta2 > 0 else -math.inf
    return -torch.expm1(refreshes.to(dtype) * exponent)


def newton_multiplier(
    average: Tensor,
    refreshes: Tensor,
    *,
    second_order_lr: float,
    eps: float,
    beta2: float,
    eps_warmup: bool = False,
) -> Tensor:
    """Return ``τ / (D̂ + ε)`` with ``D̂ = |D| / (1 - β₂ᵛ)``, or 1 before the first refresh.

    With ``eps_warmup`` it is ``τ (1 - β₂ᵛ) / (|D| + ε)``, as in the released code of the authors
    of SGD-PH (Sun, Yong & Zhang, 2024). ε is then bias-corrected like D, so the cap starts at
    ``(1 - β₂) τ/ε`` and grows to τ/ε.

    Args:
        average: D, of any shape.
        refreshes: v, a float tensor of shape ``()``.
        second_order_lr: τ.
        eps: ε.
        beta2: β₂.
        eps_warmup: Whether ε is bias-corrected too.
    """
    if eps_warmup:
        correction = bias_correction(refreshes, average.dtype, beta2)
        multiplier = second_order_lr * correction / (average.abs() + eps)
    else:
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
    """Set ``m ← β₁ m + g`` and ``w ← w - lr (multiplier · m + λ w)``, in place (Eq. 6, 7).

    Entries of ``momentum_buffers`` that are ``None`` are filled (``m ← g``), as in
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


class _Remembered(NamedTuple):
    """A cached multiplier, and what it was computed from.

    The average itself is kept, because another tensor may reuse the ``id`` of a freed one.
    """

    average: Tensor | None
    made_of: tuple[object, ...]
    multiplier: Tensor


def start_average(p: Tensor, state: dict[str, Any]) -> None:
    """Give a Newton parameter a zero average, unless it has one."""
    if "hessian" not in state:
        state["hessian"] = _zeros_like(p)
        state["refreshes"] = torch.zeros((), dtype=torch.float32, device=p.device)


def _zeros_like(p: Tensor) -> Tensor:
    """Make a plain tensor of zeros like ``p``, also for a ``DTensor``: averages are whole."""
    layout = torch.empty_strided(p.shape, p.stride(), device="meta")
    return torch.zeros_like(layout, dtype=curvature_dtype(p), device=p.device)


class CurvatureAverages:
    """The averages ``D`` and ``v`` in the parameters' states, and a cache of the multipliers.

    A cyclic refresh changes one parameter of many, so most multipliers are the same as at the
    previous step. The averages live in the optimizer's state, where other code may clear, load or
    move them. So a cached multiplier is checked before it is used again.
    """

    def __init__(self) -> None:
        self._multipliers: dict[int, _Remembered] = {}

    def add(
        self, p: Tensor, state: dict[str, Any], h: Tensor, valid: Tensor | None, beta2: float
    ) -> None:
        """Add ``h`` to the average of ``p``; see :func:`average_curvature`."""
        with torch.no_grad():
            start_average(p, state)
            average_curvature(state["hessian"], state["refreshes"], h, valid, beta2)

    def multiplier(self, p: Tensor, state: Mapping[str, Any], group: Mapping[str, Any]) -> Tensor:
        """Return ``τ / (D̂ + ε)``, shaped like ``p``, with its group's hyperparameters."""
        settings = group["second_order_lr"], group["eps"], group["hessian_momentum"]
        warmup, average = bool(group["eps_warmup"]), state.get("hessian")
        # Nothing here waits for the device. Writes change the version; assigning .data does not.
        writes = [s._version for s in settings if isinstance(s, Tensor) and not s.is_inference()]
        if average is None:
            made_of: tuple[object, ...] = (*settings, writes, p.get_device(), p.dtype)
        else:
            made_of = (*settings, writes, warmup, average.get_device(), average._version)
        known = self._multipliers.get(id(p))
        if known is not None and known.average is average and known.made_of == made_of:
            return known.multiplier
        if average is None:
            multiplier = _zeros_like(p).fill_(1)
        else:
            (tau, eps, beta2), v = settings, state["refreshes"]
            multiplier = newton_multiplier(
                average, v, second_order_lr=tau, eps=eps, beta2=beta2, eps_warmup=warmup
            )
        self._multipliers[id(p)] = _Remembered(average, made_of, multiplier)
        return multiplier


@dataclass(frozen=True)
class MultiplierStatistics:
    """``τ / (D̂ + ε)`` over the entries of one parameter: its step as a multiple of SGD's.

    Attributes:
        min: Smallest, where the curvature is largest.
        median: The lower median.
        mean: Arithmetic mean.
        max: Largest; at most τ/ε once refreshed.
        refreshes: How many partial Hessians have entered the average.
    """

    min: float
    median: float
    mean: float
    max: float
    refreshes: int

    @classmethod
    def of_each(
        cls, multipliers: Sequence[Tensor], refreshes: Sequence[Tensor | None]
    ) -> list[MultiplierStatistics]:
        """Summarise several multipliers like :meth:`of`. Waits for the device only twice."""
        counts = iter(_on_cpu([count for count in refreshes if count is not None]))
        here = [None if count is None else next(counts) for count in refreshes]
        return [cls.of(*pair) for pair in zip(_on_cpu(multipliers), here, strict=True)]

    @classmethod
    def of(cls, multiplier: Tensor, refreshes: Tensor | None) -> MultiplierStatistics:
        """Summarise a multiplier of any shape; ``refreshes`` is its parameter's ``v``, if any."""
        # On the CPU, because not every device has float64.
        values = multiplier.detach().to("cpu", torch.float64).flatten()
        if values.numel() == 0:
            return cls(1.0, 1.0, 1.0, 1.0, 0)
        return cls(
            min=values.min().item(),
            median=values.median().item(),
            mean=values.mean().item(),
            max=values.max().item(),
            refreshes=0 if refreshes is None else int(refreshes.item()),
        )


def _on_cpu(tensors: Sequence[Tensor]) -> list[Tensor]:
    """Copy tensors to the CPU, flattened, with one transfer per device and dtype."""
    kinds = [(tensor.device, tensor.dtype) for tensor in tensors]
    found: dict[int, Tensor] = {}
    for kind in dict.fromkeys(kinds):
        places = [place for place, each in enumerate(kinds) if each == kind]
        parts = [tensors[place].detach().flatten() for place in places]
        copied = torch.split(torch.cat(parts).cpu(), [part.numel() for part in parts])
        found.update(zip(places, copied, strict=True))
    return [found[place] for place in range(len(tensors))]
