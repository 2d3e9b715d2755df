"""The optimizer inside a framework's wrapper, and the loss as its scaler hands it on."""

from __future__ import annotations

from typing import Any

from torch import Tensor

from sgdph.optimizer import SGDPH


def wrapped_sgdph(optimizer: object) -> SGDPH:
    """Find the :class:`sgdph.SGDPH` in an optimizer or in wrappers around one.

    Args:
        optimizer: An optimizer, or a wrapper that holds one as its attribute ``optimizer``, as
            Accelerate's and Lightning's do.

    Raises:
        TypeError: There is none.
    """
    inner: object = optimizer
    # Lightning's wrapper passes for an instance of what it wraps, so the innermost is taken.
    while getattr(inner, "optimizer", None) is not None:
        inner = inner.optimizer  # type: ignore[attr-defined]
    if not isinstance(inner, SGDPH):
        raise TypeError(
            f"expected an sgdph.SGDPH or a wrapper around one, got {type(optimizer).__name__}"
            + ("" if inner is optimizer else f" around {type(inner).__name__}")
            + ": only SGDPH takes a partial Hessian"
        )
    return inner


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
