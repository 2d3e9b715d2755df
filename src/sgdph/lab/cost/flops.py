r"""FLOPs of a step, and their lower bound (the floor) for a step with a partial Hessian.

A step of SGD with momentum takes three products per layer: forward, input gradient, weight
gradient. If the gradient's own pass is shared, the partial Hessian of a parameter ``p`` takes two
more products for each layer after ``p``: the forward pass of the derivative along the vector, and
its backward pass. An input-gradient pass from the loss to ``p`` takes one product for each of these
layers.

A fused attention takes two products forward and five backward. Its second derivative takes twelve,
and the backward pass through it five more. These 17 are seven more than twice its backward. So

.. math::

    \text{floor}(p) = \frac{F_\text{sgdm} + 2\,F_1(p) + \tfrac{7}{5} A_1(p)}{F_\text{sgdm}}

where :math:`F_1(p)` are the FLOPs of ``autograd.grad(loss, p)`` alone, and :math:`A_1(p)` is the
part of them in the backward of fused attention. The bound is for layers that are linear in their
input. Attention by plain products multiplies two activations, so its true cost is above the bound.
Torch counts causal attention in full, and so does the floor. For long texts, a step can be below
the floor if its second derivative skips what no query attends to.
Elementwise work (batch norm, activations, the optimizer's own step) is not counted, as in torch.
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
# Operations that torch counts under another name, or in a later version.
_SAME_FORMULA: Mapping[Any, Any] = {
    _ATEN.addbmm: _ATEN.baddbmm,
    _ATEN._scaled_dot_product_flash_attention_for_cpu: _ATEN._scaled_dot_product_flash_attention,
    _ATEN._scaled_dot_product_flash_attention_for_cpu_backward: (
        _ATEN._scaled_dot_product_flash_attention_backward
    ),
}


class FlopCounter(TorchDispatchMode):  # type: ignore[no-untyped-call]
    """Counter of FLOPs by torch's own formulas, from ``torch.utils.flop_counter``.

    It replaces ``FlopCounterMode`` for three reasons. ``FlopCounterMode`` registers hooks on every
    activation to distinguish modules, and a step may take another path if there are hooks. It does
    not count in-place operations. It multiplies the weight gradient of a grouped convolution by the
    number of groups.

    Attributes:
        total: FLOPs so far; a multiplication and an addition are two.
        attention_backward: The part of them in the backward of fused attention.
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
    """Look up the formula of an operation; an in-place operation has that of its plain form."""
    packet = func._overloadpacket
    if packet is _ATEN.convolution_backward:
        return _convolution_backward
    if func.namespace == "aten" and packet not in flop_registry:
        packet = getattr(_ATEN, packet.__name__.removesuffix("_"), packet)
    found: Callable[..., int] | None = flop_registry.get(packet)
    return found or flop_registry.get(_SAME_FORMULA.get(packet))


def _convolution_backward(*args: Any, out_val: Any, **kwargs: Any) -> int:
    """Count by torch's formula, with the weight gradient divided by the number of groups."""
    *others, groups, (by_input, by_weight, _) = args
    formula = flop_registry[_ATEN.convolution_backward]
    of_input = formula(*others, groups, (by_input, False, False), out_val=out_val)
    of_weight = formula(*others, groups, (False, by_weight, False), out_val=out_val)
    return int(of_input) + int(of_weight) // int(groups)


@dataclass(frozen=True)
class ProductFlops:
    """The least FLOPs of one Hessian product, if the gradient's own pass is shared.

    Attributes:
        each: FLOPs of a product for each visited parameter alone.
        sizes: Number of elements of each visited parameter.
        joint: FLOPs of one product for all Newton parameters.
        count: Number of Newton parameters.
        fused_attention: Whether there is fused attention after any Newton parameter.
    """

    each: tuple[int, ...]
    sizes: tuple[int, ...]
    joint: int
    count: int
    fused_attention: bool = False

    @classmethod
    def of(cls, loss: Tensor, visited: Sequence[Tensor], newton: Sequence[Tensor]) -> ProductFlops:
        """Count the FLOPs from the graph of a loss, which is retained."""
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
        """Return the least FLOPs of a refresh, as a mean over the visited parameters.

        ``None`` for a system without a partial Hessian.
        """
        if system.estimator is None:
            return None
        if system.refresh == "all" and is_stochastic(system.estimator):
            return self.joint
        pairs = zip(self.each, self.sizes, strict=True)
        products = [f * products_per_block(system.estimator, n) for f, n in pairs]
        return statistics.fmean(products) * (self.count if system.refresh == "all" else 1)

    def floor(self, system: System, sgdm: float) -> float | None:
        """Return the floor as a ratio to SGDM's FLOPs; ``None`` without a partial Hessian."""
        extra = self.of_refresh(system)
        return None if extra is None else 1 + extra / sgdm / system.interval


def _count_gradient(loss: Tensor, params: Sequence[Tensor]) -> FlopCounter:
    counter = FlopCounter()
    with counter:
        torch.autograd.grad(loss, params, retain_graph=True, allow_unused=True)
    return counter


def _product(gradient: FlopCounter) -> int:
    return 2 * gradient.total + 7 * gradient.attention_backward // 5
