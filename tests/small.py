"""A small batch-norm network and the loop that trains it, for tests about bookkeeping."""

from __future__ import annotations

import io
from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional

import sgdph

CLASSES = 3


def bn_net(dtype: torch.dtype = torch.float32, seed: int = 0) -> nn.Sequential:
    """Newton by shape: 0.bias, 1.weight, 1.bias. First-order: the weights, and the last bias."""
    torch.manual_seed(seed)
    layers = [
        nn.Conv2d(1, 4, 3),
        nn.BatchNorm2d(4),
        nn.ReLU(),
        nn.Flatten(),
        nn.Linear(64, CLASSES),
    ]
    return nn.Sequential(*layers).to(dtype)


def batch(step: int = 0, dtype: torch.dtype = torch.float32) -> tuple[Tensor, Tensor]:
    generator = torch.Generator().manual_seed(1000 + step)
    x = torch.randn(8, 1, 6, 6, generator=generator, dtype=torch.float64).to(dtype)
    return x, torch.randint(0, CLASSES, (8,), generator=generator)


def loss_of(model: nn.Module, step: int = 0) -> Tensor:
    x, y = batch(step, next(model.parameters()).dtype)
    return functional.cross_entropy(model(x), y)


Feed = Callable[[sgdph.SGDPH, Tensor], None]


def by_update(optimizer: sgdph.SGDPH, loss: Tensor) -> None:
    optimizer.update_hessian(loss)
    loss.backward()


def by_backward(optimizer: sgdph.SGDPH, loss: Tensor) -> None:
    optimizer.backward(loss)


def by_create_graph(optimizer: sgdph.SGDPH, loss: Tensor) -> None:
    loss.backward(create_graph=True)


WAYS: dict[str, Feed] = {
    "update_hessian": by_update,
    "backward": by_backward,
    "create_graph": by_create_graph,
}


def train(
    model: nn.Module,
    optimizer: sgdph.SGDPH,
    steps: range,
    feed: Feed = by_update,
) -> None:
    for step in steps:
        optimizer.zero_grad()
        feed(optimizer, loss_of(model, step))
        optimizer.step()


def stored(value: object) -> Any:
    """Write a value as a checkpoint does, and read it again."""
    buffer = io.BytesIO()
    torch.save(value, buffer)
    buffer.seek(0)
    return torch.load(buffer, weights_only=True)


def assert_same_bits(a: nn.Module, b: nn.Module) -> None:
    for (name, p), q in zip(a.state_dict().items(), b.state_dict().values(), strict=True):
        assert torch.equal(p, q), f"{name} differs by {(p - q).abs().max()}"
