"""FSDP2 (``fully_shard``): ``backward`` in place of ``loss.backward()``, and clipping.

``fully_shard`` frees a layer's weights as soon as a backward has passed the layer, but a second
derivative needs them. ``backward`` keeps them for the product.
"""

from __future__ import annotations

from collections.abc import Iterable
from typing import Any

import torch
from torch import Tensor, nn

from sgdph.distributed.fully_sharded import fsdp_modules
from sgdph.distributed.norm import clip_gradients, total_norm
from sgdph.roles import parameter_names
from sgdph.wrappers import wrapped_sgdph


def backward(
    model: nn.Module,
    optimizer: Any,
    loss: Tensor,
    *,
    loss_scale: float | Tensor | None = None,
) -> None:
    """Take the partial Hessian if one is due, run ``loss.backward()``, average ignored gradients.

    Call it at every step, for every micro-batch, on every rank. On due steps the weights between
    the loss and the parameter stay gathered until the backward has passed them. Gradients of
    parameters that ``fully_shard`` ignores (``ignored_params``) are averaged over the ranks.

    After an error in the backward, FSDP2 needs ``model.reset_iter_state()`` (if torch has it), with
    or without this function.

    Args:
        model: The outermost module that ``fully_shard`` was called for.
        optimizer: The :class:`sgdph.SGDPH` or :class:`sgdph.PartialHessian`, or a wrapper around
            one. It is built from the parameters of the sharded model.
        loss: This rank's loss. The gradient is the mean over the ranks.
        loss_scale: See :meth:`sgdph.SGDPH.update_hessian`.

    Raises:
        TypeError: ``model`` is not a module; ``optimizer`` contains neither optimizer.
        ValueError: ``model`` is not sharded, or is not the optimizer's model; it is sharded over
            other ranks than the curvature is averaged over; the ranks have different values of a
            channel-wise parameter that ``fully_shard`` ignores.
        RuntimeError: As in :meth:`sgdph.SGDPH.update_hessian`.

    Example:
        >>> for block in model.blocks:
        ...     fully_shard(block)
        >>> fully_shard(model)
        >>> optimizer = SGDPH(param_groups(model), lr=0.01)
        >>> for x, y in loader:
        ...     optimizer.zero_grad()
        ...     backward(model, optimizer, loss_fn(model(x), y))
        ...     clip_grad_norm_(model, 1.0)
        ...     optimizer.step()
    """
    inner = wrapped_sgdph(optimizer)
    curvature, newton = inner._curvature, inner.newton_parameters
    sharded, pending, ranks = curvature.sharded, curvature.pending, curvature.ranks
    names = parameter_names(inner.param_groups)
    params = [(names[id(p)], p) for group in inner.param_groups for p in group["params"]]
    modules = sharded.check_model(model, newton, params, ranks)
    sharded.drop_cleared(newton, pending, ranks)
    if inner.hessian_due:
        with sharded.gathered(modules):
            inner.update_hessian(loss, loss_scale)
    try:
        loss.backward()  # type: ignore[no-untyped-call]
    except BaseException:
        pending.drop_fresh()
        raise
    sharded.note_gradients(newton)
    sharded.average(model, newton, params, pending, ranks)


def clip_grad_norm_(
    parameters: nn.Module | Tensor | Iterable[Tensor],
    max_norm: float,
    norm_type: float = 2.0,
    error_if_nonfinite: bool = False,
    foreach: bool | None = None,
) -> Tensor:
    """Clip the norm of all gradients, sharded and plain ones together, as a single process would.

    ``torch.nn.utils.clip_grad_norm_`` takes sharded parameters or plain ones, and raises an error
    for both at once. Every rank must call this function, with the same parameters in the same
    order.

    Args:
        parameters: The sharded model, or some of its parameters.
        max_norm: The largest allowed norm.
        norm_type: The p of the p-norm, above 0; ``"inf"`` or ``math.inf`` is the largest entry.
        error_if_nonfinite: Whether to raise an error if the norm is not finite.
        foreach: Use the multi-tensor functions. ``None`` leaves it to torch.

    Returns:
        The norm before clipping, a plain tensor of shape ``()``, the same on every rank.

    Raises:
        RuntimeError: The norm is not finite, and ``error_if_nonfinite`` is set.

    Example:
        >>> norm = clip_grad_norm_(model, 1.0)
    """
    if isinstance(parameters, nn.Module):
        for module in fsdp_modules(parameters):
            # While weights are gathered, the module's parameters have no gradients.
            module.reshard()
        parameters = parameters.parameters()
    params = [parameters] if isinstance(parameters, Tensor) else list(parameters)
    live = [p for p in params if p.grad is not None]
    norm = total_norm(live, float(norm_type), foreach)
    if error_if_nonfinite and not bool(norm.isfinite()):
        raise RuntimeError(
            f"the total norm of order {float(norm_type)} of the gradients is not finite, so they "
            "cannot be clipped. Skip the step, or leave error_if_nonfinite unset"
        )
    clip_gradients(live, torch.clamp(max_norm / (norm + 1e-6), max=1.0), foreach)
    return norm
