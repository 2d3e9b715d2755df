"""The optimizer inside a framework's wrapper, and the loss as its scaler passes it on."""

from __future__ import annotations

from typing import Any

from torch import Tensor

from sgdph.step import SecondOrderOptimizer

# Accelerate's, Lightning's and pytorch_optimizer's wrappers; timm's Lookahead.
_INNER = ("optimizer", "_base_optimizer")


def wrapped_sgdph(optimizer: object) -> SecondOrderOptimizer:
    """Find the :class:`sgdph.SGDPH` or :class:`sgdph.PartialHessian` in wrappers around it.

    Wrappers pass on ``step``, ``zero_grad`` and states, but not ``backward`` or ``multipliers``.

    Args:
        optimizer: An optimizer, or a wrapper around one, or around such a wrapper: Accelerate's,
            Lightning's, ``Lookahead`` of ``pytorch_optimizer`` and of timm.

    Returns:
        The optimizer inside, of either class.

    Raises:
        TypeError: There is none.

    Example:
        >>> optimizer = Lookahead(SGDPH(param_groups(model)))
        >>> wrapped_sgdph(optimizer).backward(loss)
        >>> optimizer.step()
    """
    inner: object = optimizer
    # Lightning's wrapper passes for an instance of what it wraps, so the innermost is taken.
    while (held := _held(inner)) is not None:
        inner = held
    if not isinstance(inner, SecondOrderOptimizer):
        raise TypeError(
            "expected an sgdph.SGDPH or an sgdph.PartialHessian, or a wrapper around one, got "
            + type(optimizer).__name__
            + ("" if inner is optimizer else f" around {type(inner).__name__}")
            + ": only these two take a partial Hessian"
        )
    return inner


def _held(optimizer: object) -> object | None:
    held = (getattr(optimizer, name, None) for name in _INNER)
    return next((each for each in held if each is not None), None)


def take_scaled(
    optimizer: SecondOrderOptimizer, loss: Tensor, scaler: Any, times: float = 1.0
) -> None:
    """Take the partial Hessian where one is due, of a loss that a scaler is yet to scale.

    It is scaled as its gradient will be, because what underflows in half precision there does so
    here.

    Args:
        optimizer: The optimizer, not wrapped.
        loss: The loss, not scaled.
        scaler: A ``torch.amp.GradScaler``; ``None`` where nothing scales.
        times: What the loss is too large by besides.

    Raises:
        RuntimeError: As :meth:`sgdph.SGDPH.update_hessian`.
    """
    if scaler is None:
        optimizer.update_hessian(loss, loss_scale=times)
    elif optimizer.hessian_due:
        optimizer.update_hessian(scaler.scale(loss), loss_scale=times * scaler.get_scale())
