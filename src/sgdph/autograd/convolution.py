r"""A convolution's gradients, and the one convolution that is their derivative.

The convolution :math:`y = A x` of any kind has the input gradient :math:`A^\top g`, linear in
:math:`g`, so that the derivative of :math:`\langle v, A^\top g\rangle` is :math:`A v`: the forward
convolution, without its bias. Torch's own formula computes the weight's second gradient besides, as
much work again, also where nobody asks for it.
"""

from __future__ import annotations

from collections.abc import Callable, Container, Sequence
from typing import Any

import torch
from torch import Tensor
from torch.autograd import Function

from sgdph.autograd.graph import Gradients, Hook, Node, Region, detached, is_packed, per_channel

CONVOLUTION = "ConvolutionBackward0"


def convolution_hook(node: Node, region: Region, once: bool) -> Hook | None:
    """Make the hook that gives a convolution's gradients a lean derivative.

    They keep torch's where the product passes through the weight too, and where the weight was
    packed (:func:`is_packed`).
    """
    if not region.leads_on(node, 0) or region.leads_on(node, 1) or is_packed(node, "weight"):
        return None

    def hook(grad_inputs: Gradients, grad_outputs: Gradients) -> Gradients | None:
        grad_output = grad_outputs[0]
        if grad_output is None or not grad_output.requires_grad:
            return None
        try:
            weight = node._saved_weight.detach()
        except RuntimeError:
            return None
        input_gradient, weight_gradient, bias_gradient = map(detached, grad_inputs)
        input_gradient, bias_gradient = _ConvolutionGradients.apply(
            grad_output,
            weight,
            [input_gradient, bias_gradient],
            Convolution(node).arguments,
        )
        return input_gradient, weight_gradient, bias_gradient

    return hook


class Convolution:
    """What a convolution's node remembers of its forward.

    Args:
        node: The node.

    Attributes:
        arguments: Stride, padding, dilation, transposed, output padding and groups.
    """

    def __init__(self, node: Node) -> None:
        self._node = node
        self.arguments = (
            node._saved_stride,
            node._saved_padding,
            node._saved_dilation,
            node._saved_transposed,
            node._saved_output_padding,
            node._saved_groups,
        )

    def gradients(self, grad_output: Tensor, places: Container[int]) -> Gradients:
        """Compute the gradients of input, weight and bias (places 0, 1, 2), those that are wanted.

        Raises:
            RuntimeError: The graph was freed.
        """
        node = self._node
        return _convolution_gradients(
            grad_output,
            node._saved_input,
            node._saved_weight,
            node._saved_bias_sym_sizes_opt,
            self.arguments,
            [place in places for place in range(3)],
        )

    def weight_gradient(self, grad_output: Tensor) -> Callable[[], Tensor]:
        """Prepare the weight's gradient, to be computed even when the graph is freed."""
        x, weight = self._node._saved_input.detach(), self._node._saved_weight.detach()
        arguments = self.arguments

        def compute() -> Tensor:
            only_weight = [False, True, False]
            return _convolution_gradients(grad_output, x, weight, None, arguments, only_weight)[1]

        return compute


def _convolution_gradients(
    grad_output: Tensor,
    x: Tensor,
    weight: Tensor,
    bias_sizes: Sequence[int] | None,
    arguments: tuple[Any, ...],
    mask: list[bool],
) -> tuple[Tensor, Tensor, Tensor]:
    gradients: tuple[Tensor, Tensor, Tensor] = torch.ops.aten.convolution_backward(
        grad_output, x, weight, bias_sizes, *arguments, mask
    )
    return gradients


class _ConvolutionGradients(Function):
    """The gradients of a convolution's input and bias, as functions of its output's gradient."""

    @staticmethod
    def forward(
        ctx: Any,
        grad_output: Tensor,
        weight: Tensor,
        gradients: list[Tensor | None],
        arguments: tuple[Any, ...],
    ) -> Gradients:
        ctx.save_for_backward(weight)
        ctx.arguments = arguments
        ctx.shape = grad_output.shape
        ctx.set_materialize_grads(False)
        return tuple(gradients)

    @staticmethod
    def backward(ctx: Any, v: Tensor | None, v_bias: Tensor | None) -> Gradients:
        (weight,) = ctx.saved_tensors
        gradient = None
        if v is not None:
            gradient = torch.ops.aten.convolution(v, weight, None, *ctx.arguments)
        if v_bias is not None:
            broadcast = per_channel(v_bias, len(ctx.shape))
            gradient = broadcast.expand(ctx.shape) if gradient is None else gradient.add_(broadcast)
        return gradient, None, None, None
