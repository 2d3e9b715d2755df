"""One training step, whatever the optimizer."""

from __future__ import annotations

import contextlib
import warnings
from contextlib import AbstractContextManager

import torch
from torch import Tensor
from torch.nn.attention import SDPBackend, sdpa_kernel


def attention_for(optimizer: torch.optim.Optimizer) -> AbstractContextManager[object]:
    """Return the context of the forward: plain attention where the gradients are differentiated.

    Torch has no second derivative of fused attention. SGD-PH needs no such context.
    """
    if not getattr(optimizer, "create_graph_due", False):
        return contextlib.nullcontext()
    context: AbstractContextManager[object] = sdpa_kernel(SDPBackend.MATH)
    return context


def optimization_step(
    optimizer: torch.optim.Optimizer, loss: Tensor, scaler: torch.amp.GradScaler | None = None
) -> None:
    """Take one step down the loss; SGD-PH takes its partial Hessian along with the gradient.

    AdaHessian and SophiaH differentiate the gradients in their step, where their
    ``create_graph_due`` says so. Such gradients hold their graph, and it holds them: they are let
    go once the step is taken.

    Args:
        optimizer: The optimizer.
        loss: The loss, not scaled.
        scaler: Its scaler; none, or a disabled one, does nothing.
    """
    scaler = torch.amp.GradScaler(enabled=False) if scaler is None else scaler
    optimizer.zero_grad()
    scaled = scaler.scale(loss)
    backward = getattr(optimizer, "backward", None)
    graph = getattr(optimizer, "create_graph_due", False)
    if backward is not None:
        backward(scaled, loss_scale=scaler.get_scale())
    elif graph:
        backward_with_graph(scaled)
    else:
        scaled.backward()  # type: ignore[no-untyped-call]
    scaler.step(optimizer)
    scaler.update()
    if graph:
        optimizer.zero_grad()


def go_to(optimizer: torch.optim.Optimizer, cursor: int, *, due: bool | None = None) -> None:
    """Choose what the coming step refreshes, for timing.

    Optimizers that refresh one parameter per step, or refresh at every n-th step, keep their place
    in their groups: in those of the Newton steps, where there are others beside them.

    Args:
        optimizer: The optimizer.
        cursor: The Newton parameter that is next, where they are refreshed one by one.
        due: Whether the coming step refreshes, of an optimizer that does not at every step.
            ``None`` leaves it as it is.
    """
    newton = [group for group in optimizer.param_groups if "cursor" in group]
    for group in newton:
        group["cursor"] = cursor
    if due is not None:
        for group in newton or optimizer.param_groups:
            group["step"] = 0 if due else 1


def backward_with_graph(loss: Tensor) -> None:
    """Compute gradients that can be differentiated; who calls it clears them."""
    with warnings.catch_warnings():
        warnings.filterwarnings("ignore", "Using backward\\(\\) with create_graph=True")
        loss.backward(create_graph=True)  # type: ignore[no-untyped-call]
