r"""Linear layers and matrix products: one product as the derivative of an input's gradient.

For :math:`Y = \alpha A B` the gradient :math:`\alpha G B^\top` of :math:`A` is linear in :math:`G`.
So the derivative of :math:`\langle V, \alpha G B^\top \rangle` is :math:`\alpha V B`. Torch
computes the same. But it also keeps :math:`G` to differentiate the gradient of the weight
:math:`B`, which is not needed.
"""

from __future__ import annotations

from typing import Any, NamedTuple

import torch
from torch import Tensor
from torch.autograd import Function

from sgdph.autograd.graph import Gradients, Hook, Node, Region, detached, is_packed
from sgdph.autograd.released import ReleasedInputs


class _Product(NamedTuple):
    """The two factors of a node: their places among its inputs, and the names it saves them by."""

    left: tuple[int, str]
    right: tuple[int, str]


MATRIX_PRODUCTS = {
    "AddmmBackward0": _Product((1, "mat1"), (2, "mat2")),
    "MmBackward0": _Product((0, "self"), (1, "mat2")),
    "BmmBackward0": _Product((0, "self"), (1, "mat2")),
    "BaddbmmBackward0": _Product((1, "batch1"), (2, "batch2")),
}


def matrix_product_hook(node: Node, region: Region, released: ReleasedInputs | None) -> Hook | None:
    """Return the hook that gives a matrix product's gradients a lean derivative.

    Torch's derivative is kept if the product passes through both factors, or if the factor that it
    does not pass through was packed (:func:`~sgdph.autograd.graph.is_packed`).

    Args:
        node: One of ``MATRIX_PRODUCTS``.
        region: The nodes between the loss and the parameters of a product.
        released: Releases a layer's input that is no longer needed; ``None`` releases nothing.
    """
    left, right = MATRIX_PRODUCTS[type(node).__name__]
    passes_left, passes_right = (region.leads_on(node, place) for place, _ in (left, right))
    if passes_left == passes_right:
        return None
    (place, own), (other_place, other) = (left, right) if passes_left else (right, left)
    if is_packed(node, other):
        return None

    def hook(grad_inputs: Gradients, grad_outputs: Gradients) -> Gradients | None:
        grad_output, gradient = grad_outputs[0], grad_inputs[place]
        if grad_output is None or gradient is None or not grad_output.requires_grad:
            return None
        try:
            factor = getattr(node, f"_saved_{other}").detach()
        except RuntimeError:
            return None
        if factor.layout is not torch.strided or gradient.layout is not torch.strided:
            return None
        lean = list(grad_inputs)
        lean[place] = _InputGradient.apply(
            grad_output, factor, getattr(node, "_saved_alpha", 1), passes_left, [gradient.detach()]
        )
        lean[other_place] = detached(lean[other_place])
        if released is not None:
            released.release(node, own)
        return tuple(lean)

    return hook


class _InputGradient(Function):
    """The gradient of one factor as a function of the product's gradient."""

    @staticmethod
    def forward(
        ctx: Any,
        grad_output: Tensor,
        factor: Tensor,
        alpha: Any,
        left: bool,
        gradients: list[Tensor],
    ) -> Tensor:
        ctx.save_for_backward(factor)
        ctx.alpha = alpha
        ctx.left = left
        return gradients[0]

    @staticmethod
    def backward(ctx: Any, v: Tensor) -> Gradients:
        (factor,) = ctx.saved_tensors
        gradient = torch.matmul(v, factor) if ctx.left else torch.matmul(factor, v)
        return gradient if ctx.alpha == 1 else gradient.mul_(ctx.alpha), None, None, None, None
