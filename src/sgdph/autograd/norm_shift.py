r"""The gradient of a norm's shift, whose derivative torch drops if the norm has no scale.

A shift's gradient is the sum of the output's gradient :math:`g`, :math:`g_\beta = \sum g`. Torch's
double backwards of layer norm and batch norm leave out its part of the derivative if the scale is
``None`` (seen in torch 2.15). So without a correction the shift's own curvature would be zero.
"""

from __future__ import annotations

from typing import Any

from torch import Tensor
from torch.autograd import Function

from sgdph.autograd.batch_norm import BATCH_NORMS
from sgdph.autograd.graph import TELLS_PACKED, Gradients, Hook, Node, Region, has_hooks, is_packed
from sgdph.autograd.layer_norm import LAYER_NORM

_NORMS = frozenset((LAYER_NORM, *BATCH_NORMS))
_SHIFT = 2


def may_lack_scale(node: Node) -> bool:
    """Return whether a node is a layer norm or batch norm with a shift, and no trainable scale."""
    if type(node).__name__ not in _NORMS:
        return False
    (scale, _), (shift, _) = node.next_functions[1:]
    return shift is not None and scale is None


def lacks_scale(node: Node) -> bool:
    """Return whether such a norm has no scale, and not a frozen one."""
    if not TELLS_PACKED:
        # Reading the scale might recompute a checkpoint. So a frozen one is refused here as well.
        return True
    # A scale that is not there is never packed.
    if is_packed(node, "weight"):
        return False
    try:
        return node._saved_weight is None
    except RuntimeError:
        # The graph was freed. No product can be taken from it.
        return False


def norm_shift_hook(node: Node, region: Region) -> Hook | None:
    """Return the hook that gives the shift's gradient its true derivative.

    Args:
        node: A norm's node that may lack a scale.
        region: The nodes between the loss and the parameters of a product.

    Returns:
        The hook; ``None`` if no product passes through the shift. With a frozen scale torch's
        derivative is right, and the hook's is the same.

    Raises:
        RuntimeError: The hook is needed, but a user's hook on the node prevents it.
    """
    if not region.leads_on(node, _SHIFT):
        return None
    if has_hooks(node):
        if not lacks_scale(node):
            return None
        raise RuntimeError(
            "no partial Hessian can be taken from this loss: a hook on the graph node of a norm "
            "with a shift and no scale prevents the correction of torch's second derivative. "
            "Register the hook on a tensor or module instead"
        )

    def hook(grad_inputs: Gradients, grad_outputs: Gradients) -> Gradients | None:
        gradient, grad_output = grad_inputs[_SHIFT], grad_outputs[0]
        if gradient is None or grad_output is None or not grad_output.requires_grad:
            return None
        is_last = type(node).__name__ == LAYER_NORM
        shift = _ShiftGradient.apply(grad_output, [gradient.detach()], is_last)
        return *grad_inputs[:_SHIFT], shift

    return hook


class _ShiftGradient(Function):
    """The shift's gradient as torch computed it, as a function of the output's gradient.

    The shift has the output's last dimensions (layer norm) or its second one (batch norm).
    """

    @staticmethod
    def forward(ctx: Any, grad_output: Tensor, gradient: list[Tensor], is_last: bool) -> Tensor:
        ctx.shape, ctx.dtype, ctx.is_last = grad_output.shape, grad_output.dtype, is_last
        return gradient[0]

    @staticmethod
    def backward(ctx: Any, v: Tensor) -> tuple[Tensor, None, None]:
        if not ctx.is_last:
            v = v.reshape(-1, *[1] * (len(ctx.shape) - 2))
        return v.to(ctx.dtype).expand(ctx.shape), None, None
