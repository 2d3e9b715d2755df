"""Plain loops over the same batches, with which the frameworks' loops are compared."""

from __future__ import annotations

import contextlib
from collections.abc import Callable
from typing import Any

import pytest
import torch
from small import batch, bn_net
from torch import Tensor, nn
from torch.nn import functional
from torch.utils.data import DataLoader

import sgdph
from sgdph.step import SecondOrderOptimizer

SETTINGS: dict[str, Any] = {
    "lr": 0.02,
    "weight_decay": 5e-3,
    "second_order_lr": 0.01,
    "eps": 1e-2,
}


# SGDPH; PartialHessian over one optimizer, and over two of different classes.
KINDS = ["sgdph", "adamw", "adamw and rmsprop"]


def optimizer_of(model: nn.Module, kind: str = "sgdph", **settings: Any) -> SecondOrderOptimizer:
    settings = SETTINGS | settings
    params = [*model.named_parameters()]
    if kind == "sgdph":
        return sgdph.SGDPH(params, **settings)
    if kind == "adamw":
        return sgdph.PartialHessian(first_order_of(params), params, **settings)
    if kind == "schedule-free":
        free = pytest.importorskip("schedulefree").AdamWScheduleFree(params, lr=3e-3)
        return sgdph.PartialHessian(free, params, **settings)
    assert kind == "adamw and rmsprop"
    head = torch.optim.RMSprop(params[-2:], lr=1e-3, momentum=0.5)
    return sgdph.PartialHessian([first_order_of(params[:-2]), head], params, **settings)


def first_order_of(params: list[tuple[str, nn.Parameter]]) -> torch.optim.AdamW:
    """AdamW with the usual groups: no decay for vectors. PartialHessian may empty their group.

    Its learning rate differs from the Newton half's, and schedulers have to keep the two apart.
    """
    matrices = [(name, p) for name, p in params if p.ndim > 1]
    vectors = [(name, p) for name, p in params if p.ndim <= 1]
    groups = [{"params": matrices, "weight_decay": 0.1}, {"params": vectors, "weight_decay": 0.0}]
    return torch.optim.AdamW(groups, lr=3e-3)


def loader(count: int) -> DataLoader[tuple[Tensor, Tensor]]:
    """Return a loader of batches in a fixed order."""
    return DataLoader([batch(i) for i in range(count)], batch_size=None)


def plain_loop(
    count: int,
    *,
    accumulate: int = 1,
    clip: float | None = None,
    autocast: torch.dtype | None = None,
    scaler: torch.amp.GradScaler | None = None,
    schedule: Callable[[Any], Any] | None = None,
    epochs: int = 1,
    build: Callable[..., SecondOrderOptimizer] = optimizer_of,
    **settings: Any,
) -> tuple[nn.Module, SecondOrderOptimizer]:
    """Train ``bn_net`` as the frameworks promise to, but in plain torch."""
    model = bn_net()
    optimizer = build(model, **settings)
    scheduler = None if schedule is None else schedule(optimizer)
    scaler = scaler or torch.amp.GradScaler("cpu", enabled=False)
    cast = contextlib.nullcontext if autocast is None else lambda: torch.autocast("cpu", autocast)
    for step in [*range(count)] * epochs:
        x, y = batch(step)
        with cast():
            loss = functional.cross_entropy(model(x), y)
        loss = scaler.scale(loss / accumulate)
        optimizer.update_hessian(loss, loss_scale=scaler.get_scale())
        loss.backward()
        if (step + 1) % accumulate == 0:
            scaler.unscale_(optimizer)
            if clip is not None:
                # In the order of the groups, because the last bit of the norm depends on it.
                groups = optimizer.param_groups
                nn.utils.clip_grad_norm_([p for g in groups for p in g["params"]], clip)
            scaler.step(optimizer)
            scaler.update()
            optimizer.zero_grad()
            if scheduler is not None:
                scheduler.step()
    return model, optimizer


def assert_same_run(
    model: nn.Module,
    optimizer: Any,
    expected: tuple[nn.Module, SecondOrderOptimizer],
    bound: float = 0.0,
) -> None:
    """Weights, buffers, momenta, averages, counts: all as in the plain loop."""
    for (name, p), q in zip(
        model.state_dict().items(), expected[0].state_dict().values(), strict=True
    ):
        assert (p - q).abs().max() <= bound, f"{name} differs by {(p - q).abs().max():.1e}"
    ours, theirs = optimizer.state_dict()["state"], expected[1].state_dict()["state"]
    assert ours.keys() == theirs.keys()
    assert any("hessian" in state for state in theirs.values())
    for index, state in theirs.items():
        for key, value in state.items():
            torch.testing.assert_close(
                ours[index][key],
                value,
                rtol=bound,
                atol=bound,
                msg=lambda m, k=key, i=index: f"{k} of {i} differs: {m}",
            )
    for mine, other in zip(optimizer.param_groups, expected[1].param_groups, strict=True):
        for key in mine.keys() & other.keys() - {"params", "initial_lr", "max_lr", "min_lr"}:
            assert mine[key] == other[key], key


def two_by_two() -> nn.Module:
    """A network without batch statistics, for ranks to share: in float64, to be exact."""
    torch.manual_seed(0)
    layers = [nn.Linear(3, 4), nn.LayerNorm(4), nn.Tanh(), nn.Linear(4, 2)]
    return nn.Sequential(*layers).double()


def pieces(count: int) -> list[tuple[Tensor, Tensor]]:
    """Examples one by one; consecutive pairs are the two ranks' shares of one step."""
    generator = torch.Generator().manual_seed(7)
    x = torch.randn(count, 3, generator=generator, dtype=torch.float64)
    y = torch.randint(0, 2, (count,), generator=generator)
    return [*zip(x, y, strict=True)]


def joined_loop(count: int, size: int, kind: str = "sgdph") -> nn.Module:
    """One process on the joined batches."""
    model = two_by_two()
    optimizer = optimizer_of(model, kind)
    for x, y in DataLoader(pieces(count), batch_size=size):
        optimizer.zero_grad()
        optimizer.backward(functional.cross_entropy(model(x), y))
        optimizer.step()
    return model


def gap(model: nn.Module, other: nn.Module) -> float:
    pairs = zip(model.parameters(), other.parameters(), strict=True)
    return max(float((p - q).detach().abs().max()) for p, q in pairs)
