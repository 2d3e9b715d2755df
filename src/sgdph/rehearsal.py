"""The step that ``torch.distributed.checkpoint`` takes only to have a state made, and that state.

It fills nothing but the keys that are in the state dict it is given. So it gives a new optimizer's
parameters gradients of zero, sets every learning rate to 0, calls ``step()`` and takes for granted
that all keys of a state in mid-training are there afterwards
(``torch.distributed.checkpoint.state_dict._init_optim_state``). No loss comes before such a
rehearsal, and so no curvature.
"""

from __future__ import annotations

from collections.abc import Iterable, MutableMapping, Sequence
from typing import Any

import torch
from torch import Tensor

from sgdph.averages import start_average

Groups = Sequence[dict[str, Any]]
State = MutableMapping[Tensor, dict[str, Any]]


def is_without_learning_rate(groups: Groups) -> bool:
    """Tell whether a step would move nothing: a rehearsal, or a warm-up that begins at 0."""
    return all(bool(group["lr"] == 0) for group in groups)


def is_without_backward(groups: Groups, newton: Iterable[Tensor]) -> bool:
    """Tell whether the gradients are a rehearsal's: there for all, and zero. Waits for the device.

    Newton parameters stand for all, because theirs are never sharded, which would ask other ranks.

    Args:
        groups: The parameter groups.
        newton: The Newton parameters.
    """
    trainable = (p for group in groups for p in group["params"] if p.requires_grad)
    if any(p.grad is None for p in trainable):
        return False
    gradients = [p.grad for p in newton if p.grad is not None]
    return not any(g.is_sparse or bool(g.any()) for g in gradients)


def rehearse(groups: Groups, state: State, newton: Sequence[Tensor]) -> None:
    """Make the state that training would have, before any of it."""
    for group in groups:
        for p in group["params"]:
            if group["momentum"] != 0 and p.grad is not None:
                state[p]["momentum_buffer"] = torch.zeros_like(p)
    complete_averages(state, (p for p in newton if p.grad is not None))


def complete_averages(state: State, newton: Iterable[Tensor]) -> None:
    """Make the averages of those Newton parameters that no partial Hessian has reached yet."""
    with torch.no_grad():
        for p in newton:
            start_average(p, state[p])
