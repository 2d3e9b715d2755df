"""Taking the partial Hessian of a loss that a framework's scaler will scale."""

from __future__ import annotations

from typing import Any

from torch import Tensor

from sgdph.step import SecondOrderOptimizer
from sgdph.wrappers import wrapped_sgdph

__all__ = ["take_scaled", "wrapped_sgdph"]


def take_scaled(
    optimizer: SecondOrderOptimizer, loss: Tensor, scaler: Any, times: float = 1.0
) -> None:
    """Take the partial Hessian, if one is due, of a loss that a scaler has not scaled yet.

    The loss is scaled for the partial Hessian as for the gradient, because both may underflow in
    half precision.

    Args:
        optimizer: The optimizer, not wrapped.
        loss: The loss, not scaled.
        scaler: A ``torch.amp.GradScaler``; ``None`` if the loss will not be scaled.
        times: A further factor by which the loss is too large.

    Raises:
        RuntimeError: As in :meth:`sgdph.SGDPH.update_hessian`.
    """
    if scaler is None:
        optimizer.update_hessian(loss, loss_scale=times)
    elif optimizer.hessian_due:
        optimizer.update_hessian(scaler.scale(loss), loss_scale=times * scaler.get_scale())
