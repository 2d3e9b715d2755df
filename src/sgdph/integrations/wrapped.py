"""The optimizer inside a framework's wrapper, and the loss as its scaler hands it on."""

from __future__ import annotations

from typing import Any

from torch import Tensor

from sgdph.optimizer import SGDPH

# Accelerate's, Lightning's and pytorch_optimizer's wrappers; timm's Lookahead.
_INNER = ("optimizer", "_base_optimizer")


def wrapped_sgdph(optimizer: object) -> SGDPH:
    """Find the :class:`sgdph.SGDPH` in an optimizer or in wrappers around one.

    Wrappers hand on ``step``, ``zero_grad`` and states, but not SGDPH's own methods.

    Args:
        optimizer: An optimizer, or a wrapper around one, or around such a wrapper: Accelerate's,
            Lightning's, ``Lookahead`` of ``pytorch_optimizer`` and of timm.

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
    if not isinstance(inner, SGDPH):
        raise TypeError(
            f"expected an sgdph.SGDPH or a wrapper around one, got {type(optimizer).__name__}"
            + ("" if inner is optimizer else f" around {type(inner).__name__}")
            + ": only SGDPH takes a partial Hessian"
        )
    return inner


def _held(optimizer: object) -> object | None:
    held = (getattr(optimizer, name, None) for name in _INNER)
    return next((each for each in held if each is not None), None)


def take_scaled(sgdph: SGDPH, loss: Tensor, scaler: Any, times: float = 1.0) -> None:
    """Take the partial Hessian where one is due, of a loss that a scaler is yet to scale.

    It is scaled as its gradient will be, because what underflows in half precision there does so
    here.

    Args:
        sgdph: The optimizer.
        loss: The loss, not scaled.
        scaler: A ``torch.amp.GradScaler``; ``None`` where nothing scales.
        times: What the loss is too large by besides.

    Raises:
        RuntimeError: As :meth:`sgdph.SGDPH.update_hessian`.
    """
    if scaler is None:
        sgdph.update_hessian(loss, loss_scale=times)
    elif sgdph.hessian_due:
        sgdph.update_hessian(scaler.scale(loss), loss_scale=times * scaler.get_scale())
