"""The curvature averages of the Newton parameters, and the multipliers made of them."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import torch
from torch import Tensor

from sgdph.algorithm import average_curvature, curvature_dtype, newton_multiplier


class CurvatureAverages:
    """Moves ``D`` and ``v`` in a parameter's state, and remembers the multiplier in between.

    A cyclic refresh reaches one parameter of many, so most multipliers are those of the step
    before.
    """

    def __init__(self) -> None:
        self._multipliers: dict[int, tuple[tuple[float, ...], Tensor]] = {}

    def add(
        self, p: Tensor, state: dict[str, Any], h: Tensor, arrived: Tensor | None, beta2: float
    ) -> None:
        """Let ``h`` enter the average of ``p``; see :func:`average_curvature`."""
        with torch.no_grad():
            if "hessian" not in state:
                state["hessian"] = torch.zeros_like(p, dtype=curvature_dtype(p))
                state["refreshes"] = torch.zeros((), dtype=torch.float32, device=p.device)
            average_curvature(state["hessian"], state["refreshes"], h, arrived, beta2)
        self._multipliers.pop(id(p), None)

    def multiplier(self, p: Tensor, state: Mapping[str, Any], group: Mapping[str, Any]) -> Tensor:
        """Return ``τ / (D̂ + ε)``, shaped like ``p``, under its group's hyperparameters."""
        tau, eps, beta2 = group["second_order_lr"], group["eps"], group["hessian_momentum"]
        cached = self._multipliers.get(id(p))
        if cached is not None and cached[0] == (tau, eps, beta2):
            return cached[1]
        if "hessian" in state:
            multiplier = newton_multiplier(
                state["hessian"], state["refreshes"], second_order_lr=tau, eps=eps, beta2=beta2
            )
        else:
            multiplier = torch.ones_like(p, dtype=curvature_dtype(p))
        self._multipliers[id(p)] = ((tau, eps, beta2), multiplier)
        return multiplier

    def forget_multipliers(self) -> None:
        """Compute them anew when next asked, because the averages were replaced."""
        self._multipliers.clear()
