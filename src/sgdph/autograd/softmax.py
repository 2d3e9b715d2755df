"""Second derivatives of softmax, log-softmax, and the negative log-likelihood loss."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor
from torch.autograd import Function

from sgdph.autograd.graph import (
    Gradients,
    Hook,
    Node,
    Region,
    detached,
    is_packed,
    keep_gradient,
    kept_gradient,
)

SOFTMAX = "SoftmaxBackward0"
LOG_SOFTMAX = "LogSoftmaxBackward0"
NLL_LOSSES = ("NllLossBackward0", "NllLoss2DBackward0")


def nll_loss_hook(node: Node, region: Region, once: bool) -> Hook | None:
    """Return the hook that treats the gradient of the negative log-likelihood as a constant.

    The gradient depends only on the loss's own gradient, not on the log-probabilities. Torch's
    derivative would add a tensor of zeros.

    Args:
        node: One of ``NLL_LOSSES``.
        region: The nodes between the loss and the parameters of a product.
        once: Whether only one product will be taken.
    """

    def hook(grad_inputs: Gradients, grad_outputs: Gradients) -> Gradients | None:
        grad_output = grad_outputs[0]
        if grad_output is None or grad_output.requires_grad:
            return None
        return tuple(map(detached, grad_inputs))

    return hook


def softmax_hook(node: Node, region: Region, once: bool) -> Hook | None:
    """Return the hook that gives the gradient of a softmax, or of its logarithm, a lean derivative.

    Torch's derivative is kept in half precision, and if the result was packed
    (:func:`~sgdph.autograd.graph.is_packed`).

    Args:
        node: One of type ``SOFTMAX`` or ``LOG_SOFTMAX``.
        region: The nodes between the loss and the parameters of a product.
        once: Whether only one product will be taken; it then frees the tensors kept for it.
    """
    if is_packed(node, "result"):
        return None
    function = _SoftmaxGradient if type(node).__name__ == SOFTMAX else _LogSoftmaxGradient

    def hook(grad_inputs: Gradients, grad_outputs: Gradients) -> Gradients | None:
        grad_output, gradient = grad_outputs[0], grad_inputs[0]
        if grad_output is None or gradient is None:
            return None
        try:
            result = node._saved_result
        except RuntimeError:
            return None
        if not (result.dtype == gradient.dtype == grad_output.dtype and result.dtype.itemsize >= 4):
            return None
        # Torch saves a negative dimension as an unsigned number.
        dim = node._saved_dim if node._saved_dim < 2**31 else node._saved_dim - 2**64
        return (function.apply(grad_output, result, [gradient.detach()], dim, once),)

    return hook


class _SoftmaxGradient(Function):
    r"""The gradient :math:`y \circ (g - \sum y g)` of a softmax's input, with the result :math:`y`.

    The derivative of :math:`\varphi = \langle v, y \circ (g - \sum y g) \rangle` is

    .. math::
        \partial\varphi/\partial g = y \circ (v - \sum y v), \quad
        \partial\varphi/\partial y = v \circ (g - \sum y g) - g \sum y v.
    """

    @staticmethod
    def forward(
        ctx: Any, grad_output: Tensor, result: Tensor, gradients: list[Tensor], dim: int, once: bool
    ) -> Tensor:
        ctx.save_for_backward(result)
        keep_gradient(ctx, grad_output, once)
        ctx.dim = dim
        return gradients[0]

    @staticmethod
    def backward(ctx: Any, v: Tensor) -> Gradients:
        (y,) = ctx.saved_tensors
        g = kept_gradient(ctx)
        to_g = None
        if ctx.needs_input_grad[0]:
            to_g = torch._softmax_backward_data(v, y, ctx.dim, y.dtype)
        to_y = (g - torch.linalg.vecdot(y, g, dim=ctx.dim).unsqueeze(ctx.dim)).mul_(v)
        to_y.addcmul_(g, torch.linalg.vecdot(y, v, dim=ctx.dim).unsqueeze(ctx.dim), value=-1)
        return to_g, to_y, None, None, None


class _LogSoftmaxGradient(Function):
    r"""The gradient :math:`g - e^\ell \sum g` of a log-softmax's input, with result :math:`\ell`.

    The derivative of :math:`\varphi = \langle v, g - e^\ell \sum g \rangle` is

    .. math::
        \partial\varphi/\partial g = v - \sum e^\ell v, \quad
        \partial\varphi/\partial \ell = -e^\ell v \sum g.
    """

    @staticmethod
    def forward(
        ctx: Any, grad_output: Tensor, result: Tensor, gradients: list[Tensor], dim: int, once: bool
    ) -> Tensor:
        ctx.save_for_backward(result)
        ctx.total = grad_output.detach().sum(dim, keepdim=True)
        ctx.dim = dim
        return gradients[0]

    @staticmethod
    def backward(ctx: Any, v: Tensor) -> Gradients:
        (result,) = ctx.saved_tensors
        product = result.exp().mul_(v)
        to_g = v - product.sum(ctx.dim, keepdim=True) if ctx.needs_input_grad[0] else None
        return to_g, product.mul_(ctx.total).neg_(), None, None, None
