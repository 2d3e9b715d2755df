r"""Fused attention's second derivative, which torch lacks.

Torch's fused kernels (flash attention on the CPU; flash, memory-efficient and cuDNN attention on
CUDA; Dao et al., 2022, "FlashAttention") compute attention and its first derivative without storing
the T x T matrix of scores. The kernels of the first derivative cannot be differentiated. Here they
get a derivative, which :func:`make_attention_twice_differentiable` registers as their autograd
kernel. The gradients stay torch's, bit for bit. Their derivative recomputes the scores, a few heads
or rows at a time. It works for ``loss.backward(create_graph=True)`` and ``torch.autograd.grad``,
but not for ``torch.func.grad`` taken twice.
"""

from __future__ import annotations

import functools
from collections.abc import Callable, Iterable, Sequence
from typing import Any

import torch
from torch import Tensor
from torch._functorch.utils import enable_single_level_autograd_function
from torch.autograd import forward_ad
from torch.autograd.function import _SingleLevelFunction
from torch.autograd.graph import get_gradient_edge

from sgdph.autograd.attention_derivative import AttentionDerivative, AttentionSettings
from sgdph.autograd.graph import Gradients, without_autocast

# The kernels of the first derivative, and the devices that have them.
_KERNELS = {
    "_scaled_dot_product_flash_attention_for_cpu_backward": "AutogradCPU",
    "_scaled_dot_product_flash_attention_backward": "AutogradCUDA",
    "_scaled_dot_product_efficient_attention_backward": "AutogradCUDA",
    "_scaled_dot_product_cudnn_attention_backward": "AutogradCUDA",
}

DROPOUT_IN_FUSED_ATTENTION = (
    "no partial Hessian can be taken from this loss: a fused attention kernel draws its dropout "
    "itself, and the same dropout cannot be drawn again. Run the forward under "
    "torch.nn.attention.sdpa_kernel(torch.nn.attention.SDPBackend.MATH), set the attention's "
    "dropout to 0, or use differences of gradients: update_hessian(closure=...)"
)

PART_OF_AN_ATTENTION = (
    "no partial Hessian can be taken from this loss: a fused attention kernel received some of "
    "the keys and the result for all of them, as in blockwise and ring attention. The second "
    "derivative needs all keys at once. Use torch's scaled_dot_product_attention, or differences "
    "of gradients: update_hessian(closure=...)"
)

THIRD_DERIVATIVE_OF_FUSED_ATTENTION = (
    "fused attention has no third derivative. A loss that contains a gradient needs one, and "
    "torch.func prepares for one at each derivative. Run the forward under "
    "torch.nn.attention.sdpa_kernel(torch.nn.attention.SDPBackend.MATH)"
)


@functools.cache
def make_attention_twice_differentiable() -> torch.library.Library:
    """Register the second derivative of torch's fused attention, once per process.

    Ordinary backwards do not change.

    Returns:
        The library that holds the registration. The registration lasts as long as this object.
    """
    library = torch.library.Library("aten", "IMPL")  # type: ignore[no-untyped-call]
    for name, device in _KERNELS.items():
        if hasattr(torch.ops.aten, name):
            kernel = _autograd_kernel(getattr(torch.ops.aten, name).default)
            library.impl(name, kernel, device)  # type: ignore[no-untyped-call]
    return library


def _autograd_kernel(kernel: Any) -> Callable[..., Gradients]:
    """Wrap a kernel of attention's first derivative, so that its gradients have a derivative."""
    names = [argument.name.rstrip("_") for argument in kernel._schema.arguments]

    def gradients_of(*arguments: Any, **named: Any) -> Gradients:
        if forward_ad._current_level >= 0:
            _refuse_tangents((*arguments, *named.values()))
        with torch._C._AutoDispatchBelowAutograd():
            gradients: Gradients = kernel(*arguments, **named)
        if not torch.is_grad_enabled():
            return gradients
        known = {**dict(zip(names, arguments, strict=False)), **named}
        inputs = [known[name] for name in ("grad_out", "query", "key", "value")]
        bias = known.get("attn_mask", known.get("attn_bias"))
        if not any(t.requires_grad for t in (*inputs, bias) if t is not None):
            return gradients
        wants_bias = len(gradients) > 3 and known["grad_input_mask"][3]
        settings = AttentionSettings(
            known.get("is_causal", False), known.get("scale"), known["dropout_p"]
        )
        is_whole = _is_whole(known["out"], inputs[1:])
        # A transform of torch.func has already entered its level, and must not enter it again.
        with enable_single_level_autograd_function():
            return _AttentionGradients.apply(  # type: ignore[attr-defined,no-any-return]
                *inputs,
                bias if wants_bias or bias is None else bias.detach(),
                # Detached, because the formulas include its dependence on the inputs.
                known["out"].detach(),
                settings,
                is_whole,
                # In a list: as arguments of their own they would be returned as views.
                list(gradients),
            )

    return gradients_of


def _is_whole(out: Tensor, inputs: Sequence[Tensor]) -> bool:
    """Return whether an attention's result was computed from these queries, keys and values.

    Code that computes attention in parts, over blocks or ranks, calls the kernel with some of the
    keys and with the result for all keys.
    """
    if torch._C._are_functorch_transforms_active():
        # A third derivative raises an error anyway, and the edges belong to another level.
        return True
    edges = () if out.grad_fn is None else out.grad_fn.next_functions
    return len(edges) >= 3 and all(
        get_gradient_edge(t)[:2] == edge
        for t, edge in zip(inputs, edges, strict=False)
        if t.requires_grad
    )


def _refuse_tangents(arguments: Iterable[Any]) -> None:
    """Raise an error under forward-mode differentiation, as torch does.

    Raises:
        NotImplementedError: One of the tensors has a tangent.
    """
    for t in arguments:
        if not isinstance(t, Tensor):
            continue
        if forward_ad.unpack_dual(t).tangent is not None:  # type: ignore[no-untyped-call]
            raise NotImplementedError(
                "fused attention's gradient has no forward-mode derivative: run the forward under "
                "torch.nn.attention.sdpa_kernel(torch.nn.attention.SDPBackend.MATH)"
            )


class _AttentionGradients(_SingleLevelFunction):
    """The gradients of an attention's inputs, as functions of everything they depend on."""

    @staticmethod
    def forward(ctx: Any, *arguments: Any) -> Gradients:
        *tensors, ctx.settings, ctx.is_whole, gradients = arguments
        ctx.save_for_backward(*tensors)
        ctx.set_materialize_grads(False)
        return tuple(gradients)

    @staticmethod
    def backward(ctx: Any, *cotangents: Tensor | None) -> Gradients:
        if torch.is_grad_enabled():
            raise RuntimeError(THIRD_DERIVATIVE_OF_FUSED_ATTENTION)
        if not ctx.is_whole:
            raise RuntimeError(PART_OF_AN_ATTENTION)
        if ctx.settings.dropout:
            raise RuntimeError(DROPOUT_IN_FUSED_ATTENTION)
        *inputs, bias, output = ctx.saved_tensors
        found: list[Tensor | None] = [None] * 9
        if any(t is not None for t in cotangents):
            with without_autocast(output.device):
                found[:5] = AttentionDerivative(
                    inputs, bias, output, ctx.settings, cotangents, ctx.needs_input_grad
                ).compute()
        return tuple(found)
