"""Activations: cheaper second derivatives than torch's, and those that torch lacks."""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import Any, NamedTuple

import torch
from torch import Tensor
from torch.autograd import Function
from torch.nn import functional

from sgdph.autograd.graph import (
    Gradients,
    Hook,
    Node,
    Region,
    exact_dtype,
    is_packed,
    keep_gradient,
    kept_gradient,
    piece_size,
)
from sgdph.autograd.recomputed import Formula, Operation, Saved
from sgdph.autograd.released import ReleasedInputs

RELU = "ReluBackward0"

# How many entries are computed at a time. On the CPU, temporary tensors of this size reuse recent
# memory; larger ones would need new pages each time.
PIECE = 2**16


def relu_hook(node: Node, region: Region, released: ReleasedInputs | None) -> Hook | None:
    """Return the hook that gives a ReLU's gradient a derivative without a tensor of zeros.

    Torch's derivative would hold that tensor until the product passes. Torch's derivative is kept
    if the result was packed (:func:`~sgdph.autograd.graph.is_packed`).

    Args:
        node: One of type ``RELU``.
        region: The nodes between the loss and the parameters of a product.
        released: Releases saved tensors that are no longer needed; ``None`` releases nothing.
    """
    if is_packed(node, "result"):
        return None

    def hook(grad_inputs: Gradients, grad_outputs: Gradients) -> Gradients | None:
        grad_output, gradient = grad_outputs[0], grad_inputs[0]
        if grad_output is None or gradient is None or not grad_output.requires_grad:
            return None
        try:
            result = node._saved_result.detach()
        except RuntimeError:
            return None
        if released is not None:
            positive = released.release_all_but_signs(node, "result")
            result = result if positive is None else positive
        return (_ReluGradient.apply(grad_output, result, [gradient.detach()]),)

    return hook


class _ReluGradient(Function):
    """The gradient of a ReLU's input as a function of its output's gradient."""

    @staticmethod
    def forward(ctx: Any, grad_output: Tensor, result: Tensor, gradients: list[Tensor]) -> Tensor:
        ctx.save_for_backward(result)
        return gradients[0]

    @staticmethod
    def backward(ctx: Any, v: Tensor) -> Gradients:
        (result,) = ctx.saved_tensors
        return torch.ops.aten.threshold_backward(v, result.to(v.dtype), 0), None, None


def elementwise_hook(node: Node, region: Region, once: bool) -> Hook | None:
    """Return the hook that gives an activation's gradient a lean derivative.

    Torch's derivative is kept if the input was packed (:func:`~sgdph.autograd.graph.is_packed`).

    Args:
        node: One of ``ELEMENTWISE``.
        region: The nodes between the loss and the parameters of a product.
        once: Whether only one product will be taken; it then frees the tensors kept for it.
    """
    if is_packed(node, "self"):
        return None
    activation = ELEMENTWISE[type(node).__name__](node)

    def hook(grad_inputs: Gradients, grad_outputs: Gradients) -> Gradients | None:
        grad_output, gradient = grad_outputs[0], grad_inputs[0]
        if grad_output is None or gradient is None:
            return None
        try:
            x = node._saved_self
        except RuntimeError:
            return None
        gradient = gradient.detach()
        if activation.is_composite:
            with torch.no_grad():
                gradient = activation.gradient(grad_output, x)
        return (_ElementwiseGradient.apply(grad_output, x, [gradient], activation, once),)

    return hook


class _Activation(NamedTuple):
    """The derivatives of a function of one number.

    Attributes:
        gradient: Returns the input's gradient, given the output's gradient and the input.
        bend: Returns the second derivative at the input.
        is_composite: Whether torch uses another formula, which rounds differently, for a gradient
            that will be differentiated.
    """

    gradient: Callable[[Tensor, Tensor], Tensor]
    bend: Callable[[Tensor], Tensor]
    is_composite: bool = False


class _ElementwiseGradient(Function):
    r"""The gradient :math:`g f'(x)` of an activation's input.

    The derivative of :math:`\langle v, g f'(x) \rangle` is :math:`v f'(x)` with respect to
    :math:`g`, and :math:`v g f''(x)` with respect to :math:`x`. Half precision is computed in
    float32.
    """

    @staticmethod
    def forward(
        ctx: Any,
        grad_output: Tensor,
        x: Tensor,
        gradients: list[Tensor],
        activation: _Activation,
        once: bool,
    ) -> Tensor:
        ctx.save_for_backward(x)
        keep_gradient(ctx, grad_output, once)
        ctx.activation = activation
        return gradients[0]

    @staticmethod
    def backward(ctx: Any, v: Tensor) -> Gradients:
        (x,) = ctx.saved_tensors
        g = kept_gradient(ctx)
        to_g = ctx.activation.gradient(v, x) if ctx.needs_input_grad[0] else None
        return to_g, _to_input(ctx.activation, x, g, v), None, None, None


def _to_input(activation: _Activation, x: Tensor, g: Tensor, v: Tensor) -> Tensor:
    """Return ``v g f''(x)``, computed a piece at a time if all tensors are contiguous."""
    exact = exact_dtype(x.dtype)
    if not (x.is_contiguous() and g.is_contiguous() and v.is_contiguous()):
        return activation.bend(x.to(exact)).mul_(g).mul_(v).to(x.dtype)
    total = torch.empty_like(x)
    size = piece_size(PIECE, x.device)
    flat = (torch.split(t.view(-1), size) for t in (x, g, v, total))
    for x_part, g_part, v_part, part in zip(*flat, strict=True):
        torch.mul(activation.bend(x_part.to(exact)).mul_(g_part), v_part, out=part)
    return total


def _gelu(node: Node) -> _Activation:
    """Return GELU's derivatives (Hendrycks & Gimpel, 2016, "Gaussian Error Linear Units").

    Both the exact form and the tanh form are supported.
    """
    approximate = node._saved_approximate
    return _Activation(
        lambda v, x: torch.ops.aten.gelu_backward(v, x, approximate=approximate),
        _bend_of_gelu_tanh if approximate == "tanh" else _bend_of_gelu,
    )


def _bend_of_gelu(x: Tensor) -> Tensor:
    r"""Return :math:`\varphi(x) (2 - x^2)`, with the standard normal density :math:`\varphi`."""
    density = torch.addcmul(x.new_full((), -0.5 * math.log(2 * math.pi)), x, x, value=-0.5).exp_()
    return torch.addcmul(x.new_full((), 2.0), x, x, value=-1).mul_(density)


def _bend_of_gelu_tanh(x: Tensor) -> Tensor:
    r"""Return :math:`(1 - t^2) (u' + x u'' / 2 - x t u'^2)`.

    Here :math:`t = \tanh u` and :math:`u = \sqrt{2 / \pi} (x + 0.044715 x^3)`.
    """
    root, cubic = math.sqrt(2 / math.pi), 0.044715
    square = x * x
    slope = (square * (3 * root * cubic)).add_(root)
    # With q = sigmoid(-2 |u|), |t| = 1 - 2 q and 1 - t^2 = 4 q (1 - q). There is no cancellation,
    # and torch computes the sigmoid several times as fast as the tanh.
    size = x.abs()
    q = (square * (-2 * root * cubic)).sub_(2 * root).mul_(size).sigmoid_()
    bend = square.mul_(3 * root * cubic).add_(slope)
    bend.addcmul_(slope.square_().mul_(size), 1 - 2 * q, value=-1)
    return bend.mul_(q.sub_(q.square()).mul_(4))


def _silu(node: Node) -> _Activation:
    """Return SiLU's derivatives (Elfwing et al., 2018, "Sigmoid-weighted linear units")."""
    return _Activation(torch.ops.aten.silu_backward, _bend_of_silu, is_composite=True)


def _bend_of_silu(x: Tensor) -> Tensor:
    r"""Return :math:`\sigma (1 - \sigma) (2 + x (1 - 2 \sigma))`; σ is the logistic function."""
    sigmoid = x.sigmoid()
    bend = (sigmoid * -2).add_(1).mul_(x).add_(2)
    return bend.mul_(sigmoid).mul_(sigmoid.neg_().add_(1))


def _mish(node: Node) -> _Activation:
    """Return Mish's derivatives (Misra, 2019).

    The paper is "Mish: A Self Regularized Non-Monotonic Activation Function".
    """
    return _Activation(torch.ops.aten.mish_backward, _bend_of_mish, is_composite=True)


def _bend_of_mish(x: Tensor) -> Tensor:
    r"""Return :math:`t' (2 + x (1 - \sigma - 2 t \sigma))`.

    Here :math:`t = \tanh(\ln(1 + e^x))`, with the slope :math:`t' = (1 - t^2) \sigma`.
    """
    sigmoid = x.sigmoid()
    t = functional.softplus(x).tanh_()
    bend = torch.addcmul(1 - sigmoid, t, sigmoid, value=-2).mul_(x).add_(2)
    return bend.mul_(sigmoid).mul_(t.square_().neg_().add_(1))


def _hardswish(node: Node) -> _Activation:
    """Return hardswish's derivatives (Howard et al., 2019, "Searching for MobileNetV3")."""
    return _Activation(torch.ops.aten.hardswish_backward, _bend_of_hardswish)


def _bend_of_hardswish(x: Tensor) -> Tensor:
    r"""Return :math:`1 / 3` inside :math:`(-3, 3)`, and 0 outside."""
    return (x.abs() < 3).to(x.dtype).mul_(1 / 3)


ELEMENTWISE: dict[str, Callable[[Node], _Activation]] = {
    "GeluBackward0": _gelu,
    "SiluBackward0": _silu,
    "MishBackward0": _mish,
    "HardswishBackward0": _hardswish,
}


def _hardsigmoid(saved: Saved) -> Formula:
    r"""Return the gradient's formula for ``relu6(x + 3) / 6`` (Howard et al., 2019).

    The paper is "Searching for MobileNetV3". The gradient is :math:`g / 6` inside :math:`(-3, 3)`,
    and 0 outside, so only :math:`g` gets a derivative. The slope comes from torch's kernel, whose
    1/6 is a float32 number even in float64.
    """

    def gradient(g: Tensor, x: Tensor) -> tuple[Tensor]:
        with torch.no_grad():
            slope = torch.ops.aten.hardsigmoid_backward(torch.ones_like(g), x)
        return (g * slope,)

    return gradient


ACTIVATIONS = {"HardsigmoidBackward0": Operation(("self",), _hardsigmoid, "hardsigmoid_backward")}
