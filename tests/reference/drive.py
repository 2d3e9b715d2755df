"""The three ways to pass SGDPH a loss, with one signature, so that each test can run them all."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor

import sgdph
from reference.algorithm1 import Probe
from sgdph.curvature.probes import rademacher_probe

Feed = Callable[..., None]


def update_then_backward(optimizer: sgdph.SGDPH, loss: Tensor, scale: float = 1.0) -> None:
    """Way 1: the curvature first, then the user's own backward."""
    optimizer.update_hessian(loss, loss_scale=scale)
    loss.backward()


def joint_backward(optimizer: sgdph.SGDPH, loss: Tensor, scale: float = 1.0) -> None:
    """Way 2: both in one call."""
    optimizer.backward(loss, loss_scale=scale)


def create_graph(optimizer: sgdph.SGDPH, loss: Tensor, scale: float = 1.0) -> None:
    """Way 3: the usual call of second-order optimizers. It has no argument for a scale."""
    loss.backward(create_graph=True)


WAYS: dict[str, Feed] = {
    "update_hessian": update_then_backward,
    "backward": joint_backward,
    "create_graph": create_graph,
}


def package_probe(seed: int = 0, dtype: torch.dtype = torch.float64) -> Probe:
    """The optimizer's own probes, for the reference to use."""

    def probe(visit: int, index: int, shape: torch.Size) -> Tensor:
        return rademacher_probe(seed, visit, index, torch.empty(shape, dtype=dtype))

    return probe


def state_of(optimizer: sgdph.SGDPH, parameter: Tensor) -> dict[str, Any]:
    """The optimizer's state of one parameter, empty where it has none yet."""
    return optimizer.state.get(parameter, {})
