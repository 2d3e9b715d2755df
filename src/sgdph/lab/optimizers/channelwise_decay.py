"""Weight decay of norm layers and biases, if it differs from that of the weights."""

from __future__ import annotations

from typing import Any

import torch
from torch import nn

from sgdph import param_groups


def set_channelwise_decay(optimizer: torch.optim.Optimizer, model: nn.Module, decay: str) -> None:
    """Exempt norm layers and biases from an optimizer's own weight decay; apply ``decay`` instead.

    Coupled decay adds λ w to the gradient, as in ``torch.optim.SGD`` and ``Adam``. Decoupled decay
    multiplies w by 1 - lr λ before the step (Loshchilov & Hutter, "Decoupled Weight Decay
    Regularization", ICLR 2019). λ and lr are those of the parameter's group. The biases include
    that of the output layer.

    Args:
        optimizer: An optimizer over all parameters of the model that has not stepped yet.
        model: The model.
        decay: ``"none"``, ``"coupled"`` or ``"decoupled"``.
    """
    groups = param_groups(model, 1.0, channelwise_weight_decay=0.0)
    ours = {id(p) for group in groups if group["weight_decay"] == 0 for p in group["params"]}
    split: list[dict[str, Any]] = []
    for group in optimizer.param_groups:
        for chosen in (False, True):
            params = [p for p in group["params"] if (id(p) in ours) == chosen]
            if params:
                own = {"channelwise_decay": group["weight_decay"], "weight_decay": 0.0}
                split.append({**group, **(own if chosen else {}), "params": params})
    # In place, because other code may hold the list.
    optimizer.param_groups[:] = split
    if decay != "none":
        optimizer.register_step_pre_hook(_add_to_gradients if decay == "coupled" else _shrink)


@torch.no_grad()
def _add_to_gradients(optimizer: torch.optim.Optimizer, *_: Any) -> None:
    for group in optimizer.param_groups:
        for p in group["params"] if "channelwise_decay" in group else ():
            if p.grad is not None:
                p.grad = p.grad.add(p, alpha=group["channelwise_decay"])


@torch.no_grad()
def _shrink(optimizer: torch.optim.Optimizer, *_: Any) -> None:
    for group in optimizer.param_groups:
        for p in group["params"] if "channelwise_decay" in group else ():
            if p.grad is not None:
                p.mul_(1 - group["lr"] * group["channelwise_decay"])
