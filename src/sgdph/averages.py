"""The curvature averages of the Newton parameters, and the multipliers made of them."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, NamedTuple

import torch
from torch import Tensor

from sgdph.algorithm import average_curvature, curvature_dtype, newton_multiplier


class _Remembered(NamedTuple):
    """A multiplier, and what it was made of.

    The average is held itself, because the ``id`` of one that is gone may be another's by now.
    """

    average: Tensor | None
    made_of: tuple[object, ...]
    multiplier: Tensor


def start_average(p: Tensor, state: dict[str, Any]) -> None:
    """Let a Newton parameter have an average, of nothing as yet, unless it has one."""
    if "hessian" not in state:
        state["hessian"] = torch.zeros_like(p, dtype=curvature_dtype(p))
        state["refreshes"] = torch.zeros((), dtype=torch.float32, device=p.device)


class CurvatureAverages:
    """Moves ``D`` and ``v`` in a parameter's state, and remembers the multiplier in between.

    A cyclic refresh reaches one parameter of many, so most multipliers are those of the step
    before. The averages live in the optimizer's state, where others may clear, load or move them,
    so a remembered multiplier is looked at before it is used again.
    """

    def __init__(self) -> None:
        self._multipliers: dict[int, _Remembered] = {}

    def add(
        self, p: Tensor, state: dict[str, Any], h: Tensor, arrived: Tensor | None, beta2: float
    ) -> None:
        """Let ``h`` enter the average of ``p``; see :func:`average_curvature`."""
        with torch.no_grad():
            start_average(p, state)
            average_curvature(state["hessian"], state["refreshes"], h, arrived, beta2)

    def multiplier(self, p: Tensor, state: Mapping[str, Any], group: Mapping[str, Any]) -> Tensor:
        """Return ``τ / (D̂ + ε)``, shaped like ``p``, under its group's hyperparameters."""
        tau, eps, beta2 = group["second_order_lr"], group["eps"], group["hessian_momentum"]
        average = state.get("hessian")
        # None of it asks the device. A write moves the version, but not an exchange of the data.
        if average is None:
            made_of = (tau, eps, beta2, p.get_device(), p.dtype)
        else:
            made_of = (tau, eps, beta2, average.get_device(), average._version)
        known = self._multipliers.get(id(p))
        if known is not None and known.average is average and known.made_of == made_of:
            return known.multiplier
        if average is None:
            multiplier = torch.ones_like(p, dtype=curvature_dtype(p))
        else:
            multiplier = newton_multiplier(
                average, state["refreshes"], second_order_lr=tau, eps=eps, beta2=beta2
            )
        self._multipliers[id(p)] = _Remembered(average, made_of, multiplier)
        return multiplier
