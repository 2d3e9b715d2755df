"""One training step, whatever the optimizer."""

from __future__ import annotations

import torch
from torch import Tensor


def optimization_step(
    optimizer: torch.optim.Optimizer, loss: Tensor, scaler: torch.amp.GradScaler
) -> None:
    """Take one step down the loss; SGD-PH takes its partial Hessian along with the gradient.

    Args:
        optimizer: The optimizer.
        loss: The loss, not scaled.
        scaler: Its scaler; a disabled one does nothing.
    """
    optimizer.zero_grad()
    scaled = scaler.scale(loss)
    backward = getattr(optimizer, "backward", None)
    if backward is None:
        scaled.backward()  # type: ignore[no-untyped-call]
    else:
        backward(scaled, loss_scale=scaler.get_scale())
    scaler.step(optimizer)
    scaler.update()
