"""Activations: a leaner second derivative of ReLU, and those that torch has none of."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor
from torch.autograd import Function

from sgdph.autograd.graph import Gradients, Hook, Node, Region, is_packed
from sgdph.autograd.recomputed import Formula, Operation, Saved

RELU = "ReluBackward0"


def relu_hook(node: Node, region: Region, once: bool) -> Hook | None:
    """Make the hook that gives a ReLU's gradient a derivative without a tensor of zeros.

    Torch's would be held until the product comes by again. It is kept where the result was packed
    (:func:`~sgdph.autograd.graph.is_packed`).
    """
    return None if is_packed(node, "result") else _relu_hook(node)


def _relu_hook(node: Node) -> Hook:
    def hook(grad_inputs: Gradients, grad_outputs: Gradients) -> Gradients | None:
        grad_output, gradient = grad_outputs[0], grad_inputs[0]
        if grad_output is None or gradient is None or not grad_output.requires_grad:
            return None
        try:
            result = node._saved_result.detach()
        except RuntimeError:
            return None
        return (_ReluGradient.apply(grad_output, result, [gradient.detach()]),)

    return hook


class _ReluGradient(Function):
    """The gradient of a ReLU's input, as a function of its output's gradient."""

    @staticmethod
    def forward(ctx: Any, grad_output: Tensor, result: Tensor, gradients: list[Tensor]) -> Tensor:
        ctx.save_for_backward(result)
        return gradients[0]

    @staticmethod
    def backward(ctx: Any, v: Tensor) -> Gradients:
        (result,) = ctx.saved_tensors
        return torch.ops.aten.threshold_backward(v, result, 0), None, None


def _hardsigmoid(saved: Saved) -> Formula:
    r"""``relu6(x + 3) / 6`` (Howard et al., 2019, "Searching for MobileNetV3").

    The gradient :math:`g / 6` inside :math:`(-3, 3)`, 0 outside, depends on :math:`g` alone. The
    slope is the kernel's own: in float64 too, its sixth is one of float32.
    """

    def gradient(g: Tensor, x: Tensor) -> tuple[Tensor]:
        with torch.no_grad():
            slope = torch.ops.aten.hardsigmoid_backward(torch.ones_like(g), x)
        return (g * slope,)

    return gradient


ACTIVATIONS = {"HardsigmoidBackward0": Operation(("self",), _hardsigmoid, "hardsigmoid_backward")}
