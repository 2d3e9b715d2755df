"""The loss as a framework's scaler passes it on to the optimizer in its wrapper."""

from __future__ import annotations

from typing import Any

from torch import Tensor

from sgdph.step import SecondOrderOptimizer
from sgdph.wrappers import wrapped_sgdph

__all__ = ["take_scaled", "wrapped_sgdph"]


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
