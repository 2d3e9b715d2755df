"""Second derivatives at the cost of what a product needs of them.

A product for one parameter differentiates the gradients that pass through the layers behind it.
Torch's formulas for that are general. Here the first gradients of the layers that cost most stay as
torch computed them, to the bit, and get the one derivative that is needed:

* a convolution's is one convolution instead of two (:mod:`sgdph.autograd.convolution`);
* batch norm's is one expression instead of some twenty (:mod:`sgdph.autograd.batch_norm`);
* layer norm's, RMS norm's and group norm's are one expression (:mod:`sgdph.autograd.row_norm`);
* a matrix product's keeps nothing but its weight (:mod:`sgdph.autograd.matmul`);
* those of activations are their formulas (:mod:`sgdph.autograd.activations`), and a ReLU's leaves
  out a tensor of zeros;
* softmax's, its logarithm's and the loss's behind it keep what they need
  (:mod:`sgdph.autograd.softmax`).

Those of fused attention and of RoI align are registered with torch
(:mod:`sgdph.autograd.attention`, :mod:`sgdph.autograd.roi_align`).

Some operations have no second derivative in torch. Theirs is that of a formula for the first
(:mod:`sgdph.autograd.recomputed`): hardsigmoid (:mod:`sgdph.autograd.activations`), the multi-class
margin losses (:mod:`sgdph.autograd.margin_losses`) and CTC (:mod:`sgdph.autograd.ctc`). So is that
of a weight-normalised weight's direction, which torch gets wrong
(:mod:`sgdph.autograd.weight_norm_gradients`).

All else is left to torch, and so is a layer whose node has a hook of the user's, and what a
checkpoint will compute anew.
"""

from __future__ import annotations

import contextlib
from collections.abc import Callable, Iterator
from typing import TypeAlias

from sgdph.autograd.activations import ACTIVATIONS, ELEMENTWISE, RELU, elementwise_hook, relu_hook
from sgdph.autograd.attention import make_attention_twice_differentiable
from sgdph.autograd.batch_norm import BATCH_NORMS, batch_norm_hook
from sgdph.autograd.convolution import CONVOLUTION, convolution_hook
from sgdph.autograd.ctc import CTC, CTC_WITHOUT_INPUTS, refuse_ctc_without_inputs
from sgdph.autograd.graph import Hook, Node, Region, has_hooks
from sgdph.autograd.group_norm import GROUP_NORM, group_norm_hook
from sgdph.autograd.layer_norm import LAYER_NORM, RMS_NORM, layer_norm_hook
from sgdph.autograd.margin_losses import MARGIN_LOSSES
from sgdph.autograd.matmul import MATRIX_PRODUCTS, matrix_product_hook
from sgdph.autograd.recomputed import Operation, PackedArguments, recomputed_hook
from sgdph.autograd.released import ReleasedInputs
from sgdph.autograd.roi_align import make_roi_align_twice_differentiable
from sgdph.autograd.shared_backward import SharedBackward
from sgdph.autograd.softmax import LOG_SOFTMAX, NLL_LOSSES, SOFTMAX, nll_loss_hook, softmax_hook
from sgdph.autograd.weight_norm_gradients import WEIGHT_NORM, weight_norm_hook

HookFactory: TypeAlias = Callable[[Node, Region, bool], Hook | None]
"""Makes the hook for a node, a region, and whether there will be a single product; or none."""

# By the type of their nodes: those with a leaner derivative than torch's ...
LEAN: dict[str, HookFactory] = {
    CONVOLUTION: convolution_hook,
    **dict.fromkeys(BATCH_NORMS, batch_norm_hook),
    **dict.fromkeys(ELEMENTWISE, elementwise_hook),
    **dict.fromkeys((LAYER_NORM, RMS_NORM), layer_norm_hook),
    GROUP_NORM: group_norm_hook,
    **dict.fromkeys((SOFTMAX, LOG_SOFTMAX), softmax_hook),
    **dict.fromkeys(NLL_LOSSES, nll_loss_hook),
}
# ... those that may besides let go of what they saved ...
RELEASING: dict[str, Callable[[Node, Region, ReleasedInputs | None], Hook | None]] = {
    **dict.fromkeys(MATRIX_PRODUCTS, matrix_product_hook),
    RELU: relu_hook,
}
# ... those whose derivative in torch is wrong ...
CORRECTED: dict[str, HookFactory] = {
    WEIGHT_NORM: weight_norm_hook,
    **dict.fromkeys(CTC_WITHOUT_INPUTS, refuse_ctc_without_inputs),
}
# ... and those that have none in torch.
RECOMPUTED: dict[str, Operation] = {**ACTIVATIONS, **MARGIN_LOSSES, **CTC}


def register_second_derivatives() -> None:
    """Register with torch, once, the second derivatives of kernels that it has none of."""
    make_attention_twice_differentiable()
    make_roi_align_twice_differentiable()


@contextlib.contextmanager
def lean_second_derivatives(
    region: Region, once: bool, *, lean: bool = True, shared: SharedBackward | None = None
) -> Iterator[None]:
    """Give the gradients taken meanwhile, with ``create_graph=True``, lean derivatives.

    Args:
        region: What lies behind the parameters that the gradients are taken of.
        once: Whether there will be a single product.
        lean: Whether to replace torch's derivatives too, and not only to bring those it lacks.
        shared: The backward that is to go on from here, where one is: layers' inputs that it will
            not need are let go of.

    Raises:
        RuntimeError: The region holds an operation whose second derivative cannot be had.
    """
    hooks: list[tuple[Node, Hook | None]] = []
    recomputed: list[tuple[Node, Operation]] = []
    for node in region.nodes:
        name = type(node).__name__
        if name in CORRECTED:
            hooks.append((node, CORRECTED[name](node, region, once)))
        elif name in RECOMPUTED:
            recomputed.append((node, RECOMPUTED[name]))
        elif lean and name in RELEASING and not has_hooks(node):
            released = None if shared is None else shared.released_at(node)
            hooks.append((node, RELEASING[name](node, region, released)))
        elif lean and name in LEAN and not has_hooks(node):
            hooks.append((node, LEAN[name](node, region, once)))
    packed = PackedArguments.of(recomputed) if recomputed else None
    hooks += [
        (node, recomputed_hook(node, operation, once, packed))
        for node, operation in recomputed
        if not has_hooks(node)
    ]
    handles = [node.register_hook(hook) for node, hook in hooks if hook is not None]
    try:
        with packed or contextlib.nullcontext():
            yield
    finally:
        for handle in handles:
            handle.remove()
