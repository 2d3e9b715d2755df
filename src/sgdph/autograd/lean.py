"""Second derivatives that compute only what a product needs.

A product for one parameter differentiates the gradients that pass through the layers between the
loss and the parameter. Torch's formulas for this are general. Here the first gradients of the most
expensive layers stay as torch computed them, bit for bit, and get only the derivative that is
needed:

* a convolution's is one convolution instead of two (:mod:`sgdph.autograd.convolution`);
* batch norm's is one expression instead of about twenty (:mod:`sgdph.autograd.batch_norm`);
* layer norm's, RMS norm's and group norm's are one expression (:mod:`sgdph.autograd.row_norm`);
* a matrix product's keeps only its weight (:mod:`sgdph.autograd.matmul`);
* those of activations are their formulas, and a ReLU's omits a tensor of zeros
  (:mod:`sgdph.autograd.activations`);
* those of softmax, log-softmax and the loss after it keep only what they need
  (:mod:`sgdph.autograd.softmax`).

Those of fused attention and of RoI align are registered with torch
(:mod:`sgdph.autograd.attention`, :mod:`sgdph.autograd.roi_align`).

Some operations have no second derivative in torch. Here it is the derivative of a formula for the
first one (:mod:`sgdph.autograd.recomputed`). These are hardsigmoid
(:mod:`sgdph.autograd.activations`), the multi-class margin losses
(:mod:`sgdph.autograd.margin_losses`) and CTC (:mod:`sgdph.autograd.ctc`). The same is done for the
direction of a weight-normalised weight, whose second derivative is wrong in torch
(:mod:`sgdph.autograd.weight_norm_gradients`). So is that of a norm with a shift and no scale
(:mod:`sgdph.autograd.norm_shift`).

Everything else is left to torch. So are layers whose node has a user's hook, and lean derivatives
that would have to read a tensor that a checkpoint will recompute.
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
from sgdph.autograd.norm_shift import may_lack_scale, norm_shift_hook
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
# ... those that may also release what they saved ...
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
    """Register second derivatives of kernels that have none in torch, once per process."""
    make_attention_twice_differentiable()
    make_roi_align_twice_differentiable()


@contextlib.contextmanager
def lean_second_derivatives(
    region: Region, once: bool, *, lean: bool = True, shared: SharedBackward | None = None
) -> Iterator[None]:
    """Give gradients taken inside the context, with ``create_graph=True``, lean derivatives.

    Args:
        region: The nodes between the loss and the parameters of the gradients.
        once: Whether only one product will be taken.
        lean: Whether to also replace torch's correct derivatives, and not only to correct wrong
            ones and add missing ones.
        shared: The backward that continues from here, if there is one. Inputs of layers that it
            will not need are released.

    Raises:
        RuntimeError: The region contains an operation that cannot get a second derivative.
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
        # After the lean derivative, which a norm may lack.
        if may_lack_scale(node):
            hooks.append((node, norm_shift_hook(node, region)))
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
