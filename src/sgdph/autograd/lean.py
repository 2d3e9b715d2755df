"""Second derivatives at the cost of what a product needs of them.

A product for one parameter differentiates the gradients that pass through the layers behind it.
Torch's formulas for that are general. Here the first gradients of the layers that cost most stay as
torch computed them, to the bit, and get the one derivative that is needed:

* a convolution's is one convolution instead of two (:mod:`sgdph.autograd.convolution`);
* batch norm's is one expression instead of some twenty (:mod:`sgdph.autograd.batch_norm`);
* a ReLU's leaves out a tensor of zeros, which would be held until the product comes by again.

Some operations have no second derivative in torch. Theirs is that of a formula for the first
(:mod:`sgdph.autograd.recomputed`): hardsigmoid (:mod:`sgdph.autograd.elementwise`), the multi-class
margin losses (:mod:`sgdph.autograd.margin_losses`) and CTC (:mod:`sgdph.autograd.ctc`). So is that
of a weight-normalised weight's direction, which torch gets wrong
(:mod:`sgdph.autograd.weight_norm_gradients`).

All else is left to torch, and so is a convolution whose weight itself depends on the parameter
(weight normalisation), batch norm in evaluation, a layer whose node has a hook of the user's, and
what a checkpoint will compute anew.
"""

from __future__ import annotations

import contextlib
from collections.abc import Iterator
from typing import Any

import torch
from torch import Tensor
from torch.autograd import Function

from sgdph.autograd.batch_norm import BATCH_NORMS, batch_norm_hook, is_lean_batch_norm
from sgdph.autograd.convolution import CONVOLUTION, convolution_hook, is_lean_convolution
from sgdph.autograd.ctc import CTC, refuse_ctc_without_inputs
from sgdph.autograd.elementwise import ELEMENTWISE
from sgdph.autograd.graph import Gradients, Hook, Node, Region, has_hooks, is_packed
from sgdph.autograd.margin_losses import MARGIN_LOSSES
from sgdph.autograd.recomputed import Operation, PackedArguments, recomputed_hook
from sgdph.autograd.weight_norm_gradients import WEIGHT_NORM, weight_norm_hook

RELU = "ReluBackward0"
_LEAN = frozenset({CONVOLUTION, RELU, *BATCH_NORMS})
_RECOMPUTED: dict[str, Operation] = {**ELEMENTWISE, **MARGIN_LOSSES, **CTC}


@contextlib.contextmanager
def lean_second_derivatives(region: Region, once: bool, *, lean: bool = True) -> Iterator[None]:
    """Give the gradients taken meanwhile, with ``create_graph=True``, lean derivatives.

    Args:
        region: What lies behind the parameters that the gradients are taken of.
        once: Whether there will be a single product.
        lean: Whether to replace torch's derivatives too, and not only to bring those it lacks.

    Raises:
        RuntimeError: The region holds an operation whose second derivative cannot be had.
    """
    refuse_ctc_without_inputs(region)
    recomputed = [node for node in region.nodes if type(node).__name__ in _RECOMPUTED]
    packed = PackedArguments.of(recomputed, _RECOMPUTED)
    hooks = [(node, _lean_hook(node, region, once)) for node in region.nodes if lean]
    hooks += [
        (node, recomputed_hook(node, _RECOMPUTED[type(node).__name__], once, packed))
        for node in recomputed
        if not has_hooks(node)
    ]
    hooks += [
        (node, weight_norm_hook(node, region, once))
        for node in region.nodes
        if type(node).__name__ == WEIGHT_NORM
    ]
    handles = [node.register_hook(hook) for node, hook in hooks if hook is not None]
    try:
        with packed or contextlib.nullcontext():
            yield
    finally:
        for handle in handles:
            handle.remove()


def _lean_hook(node: Node, region: Region, once: bool) -> Hook | None:
    name = type(node).__name__
    if name not in _LEAN or has_hooks(node):
        return None
    if name == CONVOLUTION and is_lean_convolution(node, region):
        return convolution_hook(node)
    if name in BATCH_NORMS and is_lean_batch_norm(node):
        return batch_norm_hook(node, region, once)
    if name == RELU and not is_packed(node, "result"):
        return _relu_hook(node)
    return None


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
