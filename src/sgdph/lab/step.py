"""One training step, whatever the optimizer."""

from __future__ import annotations

import torch
from torch import Tensor


def optimization_step(optimizer: torch.optim.Optimizer, loss: Tensor) -> None:
    """Take one step down the loss; SGD-PH takes its partial Hessian along with the gradient."""
    optimizer.zero_grad()
    backward = getattr(optimizer, "backward", None)
    if backward is None:
        loss.backward()  # type: ignore[no-untyped-call]
    else:
        backward(loss)
    optimizer.step()
