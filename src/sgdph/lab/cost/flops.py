r"""FLOPs of a step, and the floor under a partial Hessian's.

A step of SGD with momentum is three products per layer: forward, input gradient, weight gradient.
Where the gradient's own pass is shared, the partial Hessian of a parameter ``p`` needs two more
products for each layer behind ``p``: the forward pass of the derivative along the vector, and its
way back; one input-gradient pass from the loss to ``p`` is one such product each.

A fused attention takes two products forward and five backward. Its second derivative takes twelve,
and the way back through it five once more: seven more than twice its backward. So

.. math::

    \text{floor}(p) = \frac{F_\text{sgdm} + 2\,F_1(p) + \tfrac{7}{5} A_1(p)}{F_\text{sgdm}}

with :math:`F_1(p)` the FLOPs of ``autograd.grad(loss, p)`` alone, and :math:`A_1(p)` those of them
that are the backward of fused attention. It is a bound for layers that are linear in their input;
in attention by plain products, whose products are of two activations, the truth lies above it.
Torch counts causal attention in full, and so does the floor: over long texts, a step whose second
derivative leaves out what no query sees can lie below it.
Elementwise work (batch norm, activations, the optimizer's own step) counts as nothing, as in torch.
"""

from __future__ import annotations

import statistics
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils.flop_counter import flop_registry

from sgdph.curvature.estimators import products_per_block
from sgdph.lab.cost.systems import System
from sgdph.validation import is_stochastic

_ATEN = torch.ops.aten
# What torch counts under another name, or in a later version.
_SAME_FORMULA: Mapping[Any, Any] = {
    _ATEN.addbmm: _ATEN.baddbmm,
    _ATEN._scaled_dot_product_flash_attention_for_cpu: _ATEN._scaled_dot_product_flash_attention,
    _ATEN._scaled_dot_product_flash_attention_for_cpu_backward: (
        _ATEN._scaled_dot_product_flash_attention_backward
    ),
}


class FlopCounter(TorchDispatchMode):  # type: ignore[no-untyped-call]
    """Counts FLOPs by torch's own formulas, of ``torch.utils.flop_counter``.

    ``FlopCounterMode`` hangs hooks on every activation to tell modules apart, and a step may go
    another way where there are hooks. It also leaves out operations in place, and counts the weight
    gradient of a grouped convolution once for each group too often.

    Attributes:
        total: FLOPs so far; a multiplication and an addition are two.
        attention_backward: Those of fused attention's backward.
    """

    def __init__(self) -> None:
        super().__init__()  # type: ignore[no-untyped-call]
        self.total = self.attention_backward = 0

    def __torch_dispatch__(
        self, func: Any, types: Any, args: tuple[Any, ...] = (), kwargs: Any = None
    ) -> Any:
        """Run the operation and count it."""
        kwargs = kwargs or {}
        out = func(*args, **kwargs)
        formula = _formula_of(func)
        if formula is not None:
            flops = int(formula(*args, **kwargs, out_val=out))
            self.total += flops
            name = func._overloadpacket.__name__
            if "attention" in name and name.endswith("backward"):
                self.attention_backward += flops
        return out


def _formula_of(func: Any) -> Callable[..., int] | None:
    """Look up the formula of an operation, or of that which it does in place."""
    packet = func._overloadpacket
    if packet is _ATEN.convolution_backward:
        return _convolution_backward
    if func.namespace == "aten" and packet not in flop_registry:
        packet = getattr(_ATEN, packet.__name__.removesuffix("_"), packet)
    found: Callable[..., int] | None = flop_registry.get(packet)
    return found or flop_registry.get(_SAME_FORMULA.get(packet))


def _convolution_backward(*args: Any, out_val: Any, **kwargs: Any) -> int:
    """Count by torch's formula, in which a weight gradient has the products of one group's."""
    *others, groups, (by_input, by_weight, _) = args
    formula = flop_registry[_ATEN.convolution_backward]
    of_input = formula(*others, groups, (by_input, False, False), out_val=out_val)
    of_weight = formula(*others, groups, (False, by_weight, False), out_val=out_val)
    return int(of_input) + int(of_weight) // int(groups)


@dataclass(frozen=True)
class ProductFlops:
    """The least FLOPs of one Hessian product, where the gradient's own pass is shared.

    Attributes:
        each: For each visited parameter alone.
        sizes: The visited parameters' numbers of elements.
        joint: For all the Newton parameters in one product.
        count: How many Newton parameters there are.
        fused_attention: Whether there is any behind a Newton parameter.
    """

    each: tuple[int, ...]
    sizes: tuple[int, ...]
    joint: int
    count: int
    fused_attention: bool = False

    @classmethod
    def of(cls, loss: Tensor, visited: Sequence[Tensor], newton: Sequence[Tensor]) -> ProductFlops:
        """Count them from a loss's graph, which stays alive."""
        each = [_count_gradient(loss, [p]) for p in visited]
        joint = _count_gradient(loss, newton)
        return cls(
            tuple(map(_product, each)),
            tuple(p.numel() for p in visited),
            _product(joint),
            len(newton),
            joint.attention_backward > 0,
        )

    def of_refresh(self, system: System) -> float | None:
        """Return the least FLOPs of a refresh, the mean over the visited parameters.

        ``None`` for a system that takes no partial Hessian.
        """
        if system.estimator is None:
            return None
        if system.refresh == "all" and is_stochastic(system.estimator):
            return self.joint
        pairs = zip(self.each, self.sizes, strict=True)
        products = [f * products_per_block(system.estimator, n) for f, n in pairs]
        return statistics.fmean(products) * (self.count if system.refresh == "all" else 1)

    def floor(self, system: System, sgdm: float) -> float | None:
        """Return the floor as a ratio to SGDM's FLOPs; ``None`` where there is none."""
        extra = self.of_refresh(system)
        return None if extra is None else 1 + extra / sgdm / system.interval


def _count_gradient(loss: Tensor, params: Sequence[Tensor]) -> FlopCounter:
    counter = FlopCounter()
    with counter:
        torch.autograd.grad(loss, params, retain_graph=True, allow_unused=True)
    return counter


def _product(gradient: FlopCounter) -> int:
    return 2 * gradient.total + 7 * gradient.attention_backward // 5
