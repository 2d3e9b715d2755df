"""One training step, with any optimizer."""

from __future__ import annotations

import contextlib
import warnings
from contextlib import AbstractContextManager

import torch
from torch import Tensor
from torch.nn.attention import SDPBackend, sdpa_kernel


def attention_for(optimizer: torch.optim.Optimizer) -> AbstractContextManager[object]:
    """Return the context for the forward pass: plain attention if gradients are differentiated.

    Torch has no second derivative of fused attention. SGD-PH does not need this context.
    """
    if not getattr(optimizer, "create_graph_due", False):
        return contextlib.nullcontext()
    context: AbstractContextManager[object] = sdpa_kernel(SDPBackend.MATH)
    return context


def optimization_step(
    optimizer: torch.optim.Optimizer, loss: Tensor, scaler: torch.amp.GradScaler | None = None
) -> None:
    """Take one optimization step; SGD-PH computes its partial Hessian along with the gradient.

    AdaHessian and SophiaH differentiate the gradients in their step if their ``create_graph_due``
    is true. Such gradients and their graph refer to each other, so this function clears the
    gradients after the step.

    Args:
        optimizer: The optimizer.
        loss: The loss, not scaled.
        scaler: The loss scaler; ``None`` or a disabled one has no effect.
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
    """Choose what the next step refreshes, for timing.

    Optimizers that refresh one parameter per step, or only at every n-th step, keep their position
    in their parameter groups. If only some groups take Newton steps, these keep it.

    Args:
        optimizer: The optimizer.
        cursor: Which Newton parameter is next, if they are refreshed one by one.
        due: Whether the next step refreshes, for an optimizer that does not refresh at every step.
            ``None`` leaves this unchanged.
    """
    newton = [group for group in optimizer.param_groups if "cursor" in group]
    for group in newton:
        group["cursor"] = cursor
    if due is not None:
        for group in newton or optimizer.param_groups:
            group["step"] = 0 if due else 1


def wait_for(device: torch.device) -> None:
    """Wait until the device has finished its queued work, for timing."""
    if device.type == "cuda":
        torch.cuda.synchronize(device)


def backward_with_graph(loss: Tensor) -> None:
    """Compute gradients that can be differentiated; the caller must clear them."""
    with warnings.catch_warnings():
        warnings.filterwarnings("ignore", "Using backward\\(\\) with create_graph=True")
        loss.backward(create_graph=True)  # type: ignore[no-untyped-call]
