r"""FLOPs of a step, and the floor under a partial Hessian's.

A step of SGD with momentum is three products per layer: forward, input gradient, weight gradient.
Where the gradient's own pass is shared, the partial Hessian of a parameter ``p`` needs two more
products for each layer behind ``p``: the forward pass of the derivative along the vector, and its
way back; one input-gradient pass from the loss to ``p`` is one such product each. So

.. math:: \text{floor}(p) = \frac{F_\text{sgdm} + 2\,F_1(p)}{F_\text{sgdm}}

with :math:`F_1(p)` the FLOPs of ``autograd.grad(loss, p)`` alone. It is a bound for layers that are
linear in their input; in attention, whose products are of two activations, the truth lies above it.
Elementwise work (batch norm, activations, the optimizer's own step) counts as nothing, as in torch.
"""

from __future__ import annotations

import statistics
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils.flop_counter import flop_registry

from sgdph.curvature.estimators import products_per_block
from sgdph.lab.cost.systems import System
from sgdph.validation import is_stochastic


class FlopCounter(TorchDispatchMode):  # type: ignore[no-untyped-call]
    """Counts FLOPs by torch's own formulas, of ``torch.utils.flop_counter``.

    ``FlopCounterMode`` counts the same, but hangs hooks on every activation to tell modules apart,
    and a step may go another way where there are hooks.

    Attributes:
        total: FLOPs so far; a multiplication and an addition are two.
    """

    def __init__(self) -> None:
        super().__init__()  # type: ignore[no-untyped-call]
        self.total = 0

    def __torch_dispatch__(
        self, func: Any, types: Any, args: tuple[Any, ...] = (), kwargs: Any = None
    ) -> Any:
        """Run the operation and count it."""
        kwargs = kwargs or {}
        out = func(*args, **kwargs)
        formula = flop_registry.get(func._overloadpacket)
        if formula is not None:
            self.total += int(formula(*args, **kwargs, out_val=out))
        return out


@dataclass(frozen=True)
class GradientFlops:
    """FLOPs of restricted gradients of one loss: input gradients down to the parameter.

    Attributes:
        each: Of each visited parameter's gradient alone.
        sizes: The visited parameters' numbers of elements.
        joint: Of all the Newton parameters' gradients in one pass.
        count: How many Newton parameters there are.
    """

    each: tuple[int, ...]
    sizes: tuple[int, ...]
    joint: int
    count: int

    @classmethod
    def of(cls, loss: Tensor, visited: Sequence[Tensor], newton: Sequence[Tensor]) -> GradientFlops:
        """Count them from a loss's graph, which stays alive."""
        return cls(
            tuple(_flops_of_gradient(loss, [p]) for p in visited),
            tuple(p.numel() for p in visited),
            _flops_of_gradient(loss, newton),
            len(newton),
        )

    def of_refresh(self, system: System) -> float | None:
        """Return the least FLOPs of a refresh, the mean over the visited parameters.

        ``None`` for a system that takes no partial Hessian.
        """
        if system.estimator is None:
            return None
        if system.refresh == "all" and is_stochastic(system.estimator):
            return 2 * self.joint
        pairs = zip(self.each, self.sizes, strict=True)
        products = [2 * f * products_per_block(system.estimator, n) for f, n in pairs]
        return statistics.fmean(products) * (self.count if system.refresh == "all" else 1)

    def floor(self, system: System, sgdm: float) -> float | None:
        """Return the floor as a ratio to SGDM's FLOPs; ``None`` where there is none."""
        extra = self.of_refresh(system)
        return None if extra is None else 1 + extra / sgdm / system.interval


def _flops_of_gradient(loss: Tensor, params: Sequence[Tensor]) -> int:
    counter = FlopCounter()
    with counter:
        torch.autograd.grad(loss, params, retain_graph=True, allow_unused=True)
    return counter.total
