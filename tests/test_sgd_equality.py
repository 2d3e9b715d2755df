"""Where SGDPH takes no Newton step, it equals torch.optim.SGD to the bit."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from pairwise import pairwise
from reference.drive import WAYS
from torch import Tensor, nn
from torch.nn import functional

import sgdph

STEPS = 50
DTYPES = [torch.float32, torch.bfloat16, torch.float64]
FOREACH = [True, False, None]


def seeded(make: Any, dtype: torch.dtype) -> nn.Module:
    with torch.random.fork_rng():
        torch.manual_seed(0)
        model: nn.Module = make()
    return model.to(dtype)


def no_channelwise() -> nn.Module:
    return nn.Sequential(
        *(nn.Linear(6, 8, bias=False), nn.Tanh(), nn.Linear(8, 5, bias=False)),
        *(nn.Tanh(), nn.Linear(5, 3, bias=False)),
    )


def mixed() -> nn.Module:
    return nn.Sequential(nn.Linear(6, 8), nn.LayerNorm(8), nn.Tanh(), nn.Linear(8, 3))


def embedding() -> nn.Module:
    # Sparse gradients of an embedding, and dense ones of the layer after it.
    return nn.Sequential(nn.Embedding(10, 6, sparse=True), nn.Tanh(), nn.Linear(6, 3, bias=False))


def data(step: int, dtype: torch.dtype) -> tuple[Tensor, Tensor]:
    generator = torch.Generator().manual_seed(step)
    x = torch.randn(4, 6, generator=generator).to(dtype)
    return x, torch.randint(3, (4,), generator=generator)


def tokens(step: int) -> tuple[Tensor, Tensor]:
    generator = torch.Generator().manual_seed(step)
    return (
        torch.randint(10, (4,), generator=generator),
        torch.randint(3, (4,), generator=generator),
    )


def assert_equal(model: nn.Module, twin: nn.Module, step: int) -> None:
    for (name, p), q in zip(model.named_parameters(), twin.parameters(), strict=True):
        assert torch.equal(p, q), f"{name} differs after step {step}"


def compare(
    make: Any,
    dtype: torch.dtype,
    settings: dict[str, Any],
    *,
    foreach: bool | None,
    way: str = "update_hessian",
    flagged: bool = False,
    every_step: Any = None,
) -> None:
    """Train one model with each optimizer; everything else is the same."""
    model, twin = seeded(make, dtype), seeded(make, dtype)
    params: Any = model.parameters()
    if flagged:
        params = [{"params": params, "channelwise": False}]
    optimizer = sgdph.SGDPH(params, foreach=foreach, **settings)
    sgd = torch.optim.SGD(twin.parameters(), foreach=foreach, **settings)
    for step in range(STEPS):
        inputs, labels = tokens(step) if make is embedding else data(step, dtype)
        optimizer.zero_grad()
        WAYS[way](optimizer, functional.cross_entropy(model(inputs), labels))
        optimizer.step()
        sgd.zero_grad()
        functional.cross_entropy(twin(inputs), labels).backward()
        sgd.step()
        assert_equal(model, twin, step)
        for p, q in zip(model.parameters(), twin.parameters(), strict=True):
            ours = optimizer.state[p].get("momentum_buffer")
            theirs = sgd.state[q].get("momentum_buffer")
            assert (ours is None) == (theirs is None)
            if theirs is not None:
                assert torch.equal(ours.to_dense(), theirs.to_dense())
        if every_step is not None:
            every_step(step, optimizer, sgd)


SETTINGS = [
    {"lr": 0.1, "momentum": 0.0},
    {"lr": 0.1, "momentum": 0.9},
    {"lr": 0.1, "momentum": 0.0, "weight_decay": 0.01},
    {"lr": 0.05, "momentum": 0.9, "weight_decay": 0.01},
    {"lr": 0.001, "momentum": 0.9, "weight_decay": 0.01, "maximize": True},
    {"lr": 0.001, "momentum": 0.0, "maximize": True},
]


@pairwise(settings=SETTINGS, foreach=FOREACH, dtype=DTYPES)
def test_a_model_without_channelwise_parameters_equals_sgd(
    settings: dict[str, Any], foreach: bool | None, dtype: torch.dtype
) -> None:
    compare(no_channelwise, dtype, settings, foreach=foreach)


@pairwise(settings=SETTINGS, foreach=FOREACH, dtype=DTYPES)
def test_groups_flagged_first_order_equal_sgd(
    settings: dict[str, Any], foreach: bool | None, dtype: torch.dtype
) -> None:
    compare(mixed, dtype, settings, foreach=foreach, flagged=True)


@pytest.mark.parametrize("foreach", FOREACH)
@pytest.mark.parametrize("way", WAYS)
def test_all_three_ways_equal_sgd(way: str, foreach: bool | None) -> None:
    compare(no_channelwise, torch.float32, SETTINGS[3], foreach=foreach, way=way)
    compare(mixed, torch.float32, SETTINGS[3], foreach=foreach, way=way, flagged=True)


@pytest.mark.parametrize("foreach", FOREACH)
def test_without_newton_parameters_no_curvature_is_needed(foreach: bool | None) -> None:
    model, twin = seeded(no_channelwise, torch.float32), seeded(no_channelwise, torch.float32)
    optimizer = sgdph.SGDPH(model.parameters(), foreach=foreach, lr=0.1)
    sgd = torch.optim.SGD(twin.parameters(), foreach=foreach, lr=0.1, momentum=0.9)
    assert not optimizer.hessian_due
    for step in range(STEPS):
        inputs, labels = data(step, torch.float32)
        for m, o in ((model, optimizer), (twin, sgd)):
            o.zero_grad()
            functional.cross_entropy(m(inputs), labels).backward()
            o.step()
        assert_equal(model, twin, step)


@pairwise(settings=SETTINGS, foreach=FOREACH, dtype=DTYPES)
def test_first_order_parameters_of_a_mixed_model_equal_sgd(
    settings: dict[str, Any], foreach: bool | None, dtype: torch.dtype
) -> None:
    model, twin = seeded(mixed, dtype), seeded(mixed, dtype)
    optimizer = sgdph.SGDPH(model.parameters(), foreach=foreach, **settings)
    # The two matrices, and the head's bias as the last channel-wise parameter.
    names = ["0.weight", "3.weight", "3.bias"]
    ours, theirs = dict(model.named_parameters()), dict(twin.named_parameters())
    sgd = torch.optim.SGD([theirs[n] for n in names], foreach=foreach, **settings)
    for step in range(STEPS):
        inputs, labels = data(step, dtype)
        optimizer.zero_grad()
        loss = functional.cross_entropy(model(inputs), labels)
        optimizer.update_hessian(loss)
        loss.backward()
        for name in names:  # the Newton steps differ from SGD's, so SGD gets these gradients
            theirs[name].grad = ours[name].grad.clone()
        optimizer.step()
        sgd.step()
        for name in names:
            assert torch.equal(ours[name], theirs[name]), f"{name} differs after step {step}"
    assert float(optimizer.state[ours["1.weight"]]["refreshes"]) > 10  # Newton steps were taken


@pytest.mark.parametrize("foreach", FOREACH)
@pytest.mark.parametrize(
    "settings",
    [
        {"lr": 0.1, "momentum": 0.0},
        {"lr": 0.1, "momentum": 0.9},
        {"lr": 0.01, "momentum": 0.9, "maximize": True},
    ],
    ids=str,
)
@pytest.mark.parametrize("way", ["update_hessian", "backward"])
def test_sparse_gradients_of_an_embedding(
    way: str, settings: dict[str, Any], foreach: bool | None
) -> None:
    compare(embedding, torch.float32, settings, foreach=foreach, way=way)


@pytest.mark.parametrize("dtype", DTYPES, ids=str)
@pytest.mark.parametrize("foreach", FOREACH)
def test_settings_changed_in_mid_run_equal_sgd(foreach: bool | None, dtype: torch.dtype) -> None:
    def change(step: int, *optimizers: torch.optim.Optimizer) -> None:
        for optimizer in optimizers:
            group = optimizer.param_groups[0]
            group["lr"] *= 0.97
            if step == 20:
                group["momentum"], group["weight_decay"] = 0.5, 0.1
            if step == 30:
                group["momentum"] = 0.0
            if step == 40:
                group["momentum"] = 0.8

    settings = {"lr": 0.1, "momentum": 0.9}
    compare(no_channelwise, dtype, settings, foreach=foreach, every_step=change)


@pytest.mark.parametrize("dtype", DTYPES, ids=str)
@pytest.mark.parametrize("foreach", FOREACH)
def test_a_tensor_learning_rate_equals_sgd(foreach: bool | None, dtype: torch.dtype) -> None:
    def change(step: int, *optimizers: torch.optim.Optimizer) -> None:
        for optimizer in optimizers:
            optimizer.param_groups[0]["lr"].mul_(0.97)

    model, twin = seeded(no_channelwise, dtype), seeded(no_channelwise, dtype)
    # One tensor each: the schedule changes it in place.
    optimizer = sgdph.SGDPH(model.parameters(), lr=torch.tensor(0.1), foreach=foreach)
    sgd = torch.optim.SGD(twin.parameters(), lr=torch.tensor(0.1), momentum=0.9, foreach=foreach)
    for step in range(STEPS):
        inputs, labels = data(step, dtype)
        for m, o in ((model, optimizer), (twin, sgd)):
            o.zero_grad()
            functional.cross_entropy(m(inputs), labels).backward()
            o.step()
        assert_equal(model, twin, step)
        change(step, optimizer, sgd)


@pytest.mark.parametrize("foreach", FOREACH)
def test_a_tensor_learning_rate_also_moves_newton_parameters(foreach: bool | None) -> None:
    with_float, with_tensor = seeded(mixed, torch.float64), seeded(mixed, torch.float64)
    rate = torch.tensor(0.03125)  # a power of two is the same number in any dtype
    for model, lr in ((with_float, float(rate)), (with_tensor, rate)):
        optimizer = sgdph.SGDPH(model.parameters(), lr=lr, foreach=foreach, weight_decay=0.01)
        for step in range(10):
            inputs, labels = data(step, torch.float64)
            optimizer.zero_grad()
            optimizer.backward(functional.cross_entropy(model(inputs), labels))
            optimizer.step()
    for p, q in zip(with_float.parameters(), with_tensor.parameters(), strict=True):
        torch.testing.assert_close(p, q, rtol=1e-13, atol=1e-14)
