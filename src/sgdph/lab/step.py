"""One training step, whatever the optimizer."""

from __future__ import annotations

import warnings

import torch
from torch import Tensor


def optimization_step(optimizer: torch.optim.Optimizer, loss: Tensor) -> None:
    """Take one step down the loss; SGD-PH takes its partial Hessian along with the gradient.

    AdaHessian and SophiaH differentiate the gradients in their step, where their
    ``create_graph_due`` says so. Such gradients hold their graph, and it holds them: they are let
    go once the step is taken.
    """
    optimizer.zero_grad()
    backward = getattr(optimizer, "backward", None)
    graph = getattr(optimizer, "create_graph_due", False)
    if backward is not None:
        backward(loss)
    elif graph:
        backward_with_graph(loss)
    else:
        loss.backward()  # type: ignore[no-untyped-call]
    optimizer.step()
    if graph:
        optimizer.zero_grad()


def backward_with_graph(loss: Tensor) -> None:
    """Compute gradients that can be differentiated; who calls it clears them."""
    with warnings.catch_warnings():
        warnings.filterwarnings("ignore", "Using backward\\(\\) with create_graph=True")
        loss.backward(create_graph=True)  # type: ignore[no-untyped-call]
