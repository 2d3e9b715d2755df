r"""A convolution's gradients, and the one convolution that is their derivative.

Any convolution :math:`y = A x` has the input gradient :math:`A^\top g`, which is linear in
:math:`g`. So the derivative of :math:`\langle v, A^\top g\rangle` is :math:`A v`: the forward
convolution without its bias. Torch's own formula also computes the weight's second gradient, even
if it is not needed, which doubles the work.

A weight that itself depends on the parameter (weight normalisation) has the gradient
:math:`B(x, g)`, linear in both, with :math:`\langle w, B(x, g) \rangle = \langle g, A_w x \rangle`.
So the derivative of :math:`\langle w, B(x, g) \rangle` is :math:`A_w x` with respect to :math:`g`,
and :math:`A_w^\top g` with respect to :math:`x`. The derivative of
:math:`\langle v, A^\top g \rangle` with respect to the weight is :math:`B(v, g)`.
"""

from __future__ import annotations

from collections.abc import Callable, Container, Sequence
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
    per_channel,
)

CONVOLUTION = "ConvolutionBackward0"


def convolution_hook(node: Node, region: Region, once: bool) -> Hook | None:
    """Return the hook that gives a convolution's gradients a lean derivative.

    Torch's derivative is kept if a saved tensor that is needed was packed (:func:`is_packed`).

    Args:
        node: One of type ``CONVOLUTION``.
        region: The nodes between the loss and the parameters of a product.
        once: Whether only one product will be taken; it then frees the tensors kept for it.
    """
    by_input, by_weight = region.leads_on(node, 0), region.leads_on(node, 1)
    if is_packed(node, "weight") or (by_weight and is_packed(node, "input")):
        return None
    if not by_input and not by_weight:
        return None

    def hook(grad_inputs: Gradients, grad_outputs: Gradients) -> Gradients | None:
        grad_output = grad_outputs[0]
        if grad_output is None or not (by_weight or grad_output.requires_grad):
            return None
        try:
            weight = node._saved_weight
            x = node._saved_input if by_weight else None
        except RuntimeError:
            return None
        plain = list(map(detached, grad_inputs))
        lean = _ConvolutionGradients.apply(
            grad_output,
            x if by_input else detached(x),
            weight if by_weight else weight.detach(),
            plain,
            Convolution(node).arguments,
            once,
        )
        return tuple(
            new if on else old
            for on, new, old in zip((by_input, by_weight, True), lean, plain, strict=True)
        )

    return hook


class Convolution:
    """The data that a convolution's node saved in its forward.

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
        """Compute the gradients of input, weight and bias (places 0, 1, 2) that are in ``places``.

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
        """Return a function that computes the weight's gradient, even after the graph is freed."""
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
    """A convolution's gradients as functions of its output's gradient, its input and its weight."""

    @staticmethod
    def forward(
        ctx: Any,
        grad_output: Tensor,
        x: Tensor | None,
        weight: Tensor,
        gradients: list[Tensor | None],
        arguments: tuple[Any, ...],
        once: bool,
    ) -> Gradients:
        ctx.save_for_backward(x, weight)
        # It is read only for derivatives with respect to the weight or the input.
        keep_gradient(ctx, None if x is None else grad_output, once)
        ctx.shape = grad_output.shape
        ctx.arguments = arguments
        ctx.set_materialize_grads(False)
        return tuple(gradients)

    @staticmethod
    def backward(
        ctx: Any, v: Tensor | None, v_weight: Tensor | None, v_bias: Tensor | None
    ) -> Gradients:
        x, weight = ctx.saved_tensors
        g = kept_gradient(ctx)
        needs_g, needs_x, needs_weight = ctx.needs_input_grad[:3]
        to_g = to_x = to_weight = None
        if needs_g:
            for of_input, of_weight in ((v, weight), (x, v_weight)):
                if of_input is not None and of_weight is not None:
                    part = torch.ops.aten.convolution(of_input, of_weight, None, *ctx.arguments)
                    to_g = part if to_g is None else to_g.add_(part)
            if v_bias is not None:
                broadcast = per_channel(v_bias, len(ctx.shape)).expand(ctx.shape)
                to_g = broadcast if to_g is None else to_g.add_(broadcast)
        if needs_x and v_weight is not None:
            wanted = [True, False, False]
            to_x = _convolution_gradients(g, x, v_weight, None, ctx.arguments, wanted)[0]
        if needs_weight and v is not None:
            wanted = [False, True, False]
            to_weight = _convolution_gradients(g, v, weight, None, ctx.arguments, wanted)[1]
        return to_g, to_x, to_weight, None, None, None
