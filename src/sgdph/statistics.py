"""What the Newton multipliers are, for a logger."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor


@dataclass(frozen=True)
class MultiplierStatistics:
    """``τ / (D̂ + ε)`` over the entries of one parameter: how many times SGD's step it takes.

    Attributes:
        min: Smallest, where the curvature is largest.
        median: The lower median.
        mean: Arithmetic mean.
        max: Largest; at most τ/ε.
        refreshes: How many partial Hessians have entered the average.
    """

    min: float
    median: float
    mean: float
    max: float
    refreshes: int

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
