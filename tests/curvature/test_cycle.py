"""Which Newton parameter is refreshed next, if losses do not reach all of them."""

from __future__ import annotations

import copy
import warnings
from collections.abc import Callable
from typing import Any

import pytest
import torch
from pairwise import pairwise
from reference.algorithm1 import ReferenceSGDPH
from reference.drive import WAYS, package_probe
from torch import Tensor, nn
from torch.nn import functional

import sgdph

F64 = torch.float64


def network() -> nn.ModuleList:
    """A shared layer and three parts. A loss reaches only some of the parts."""
    torch.manual_seed(0)
    parts = [nn.Sequential(nn.Linear(4, 5), nn.Tanh(), nn.Linear(5, 3)) for _ in range(3)]
    return nn.ModuleList([nn.Linear(4, 4), *parts]).to(F64)


def loss_of(model: nn.ModuleList, parts: tuple[int, ...], seed: int) -> Tensor:
    generator = torch.Generator().manual_seed(seed)
    x = torch.randn(6, 4, generator=generator, dtype=F64)
    y = torch.randint(0, 3, (6,), generator=generator)
    h = model[0](x).tanh()
    return torch.stack([functional.cross_entropy(model[1 + i](h), y) for i in parts]).sum()


def groups(model: nn.Module) -> list[dict[str, Any]]:
    return [{"params": [p], "channelwise": p.ndim == 1} for p in model.parameters()]


def schedule(kind: str, step: int) -> list[tuple[int, ...]]:
    """Which parts each micro-batch of a step reaches."""
    generator = torch.Generator().manual_seed(100 + step)
    if kind == "alternating":
        return [(step % 2,)]
    if kind == "one unused":
        return [(step % 2, 1)]
    if kind == "micro-batches":
        return [(step % 3,), ((step + 1) % 3,)]
    chosen = [i for i in range(3) if torch.rand((), generator=generator) < 0.4]
    return [tuple(chosen) or (0,)]


@pytest.mark.filterwarnings("ignore:no partial Hessian has reached")
@pairwise(
    kind=["alternating", "one unused", "micro-batches", "random"],
    settings=[("row_sum", "cyclic", 4), ("hutchinson", "cyclic", 1), ("hutchinson", "all", 4)],
    way=WAYS,
)
def test_refreshes_follow_the_reference(
    way: str, kind: str, settings: tuple[str, str, int]
) -> None:
    estimator, refresh, interval = settings
    options = {"estimator": estimator, "refresh": refresh, "hessian_interval": interval}
    values = {"lr": 0.05, "weight_decay": 0.01, "hessian_momentum": 0.99}
    ours, theirs = network(), network()
    optimizer = sgdph.SGDPH(groups(ours), **options, **values)  # type: ignore[arg-type]
    reference = ReferenceSGDPH(groups(theirs), probe=package_probe(), **options, **values)  # type: ignore[arg-type]
    for step in range(30):
        assert optimizer.hessian_due == reference.due
        optimizer.zero_grad()
        losses = schedule(kind, step)
        for seed, parts in enumerate(losses):
            WAYS[way](optimizer, loss_of(ours, parts, 10 * step + seed))
        optimizer.step()
        reference.step(
            [
                lambda parts=parts, seed=seed: loss_of(theirs, parts, 10 * step + seed)  # noqa: B023
                for seed, parts in enumerate(losses)
            ]
        )
        if step == 17:
            again = sgdph.SGDPH(groups(ours), lr=9.0)
            again.load_state_dict(copy.deepcopy(optimizer.state_dict()))
            optimizer = again
    for p, q in zip(ours.parameters(), theirs.parameters(), strict=True):
        torch.testing.assert_close(p, q, rtol=1e-10, atol=1e-12)


def biases(count: int) -> list[nn.Parameter]:
    return [nn.Parameter(torch.full((2,), 0.5 + i)) for i in range(count)]


def train(
    optimizer: sgdph.SGDPH, loss: Callable[[int], Tensor], steps: int, way: str = "backward"
) -> list[bool]:
    due = []
    for step in range(steps):
        due.append(optimizer.hessian_due)
        optimizer.zero_grad()
        WAYS[way](optimizer, loss(step))
        optimizer.step()
    return due


def test_alternating_losses_refresh_every_parameter() -> None:
    """A former bug: with an even interval the second network was never refreshed."""
    for interval, count in ((10, 2), (1, 2), (10, 3), (7, 4)):
        actor, critic = biases(count), biases(count)
        both = {"params": [*actor, *critic], "channelwise": True}
        optimizer = sgdph.SGDPH([both], lr=1e-4, hessian_interval=interval)

        def loss(step: int, turns: tuple[list[nn.Parameter], ...] = (actor, critic)) -> Tensor:
            return torch.stack([p.pow(4).sum() for p in turns[step % 2]]).sum()

        train(optimizer, loss, 40 * interval)
        counts = [int(s.refreshes) for s in optimizer.multiplier_statistics().values()]
        assert 2 * min(counts) >= max(counts), (interval, count, counts)


def test_if_losses_reach_all_parameters_the_cycle_is_regular() -> None:
    params = biases(4)
    optimizer = sgdph.SGDPH([{"params": params, "channelwise": True}], hessian_interval=3)
    due = train(optimizer, lambda _: torch.stack([p.pow(4).sum() for p in params]).sum(), 30)
    assert due == [step % 3 == 0 for step in range(30)]
    assert [int(optimizer.state[p]["refreshes"]) for p in params] == [3, 3, 2, 2]
    assert {k: optimizer.param_groups[0][k] for k in ("cursor", "refreshes")} == {
        "cursor": 2,
        "refreshes": 10,
    }


def test_a_cursor_set_by_hand_starts_the_cycle_there() -> None:
    params = biases(4)
    optimizer = sgdph.SGDPH([{"params": params, "channelwise": True}])

    def loss(_: int) -> Tensor:
        return torch.stack([p.pow(4).sum() for p in params]).sum()

    train(optimizer, loss, 1)
    optimizer.param_groups[0]["cursor"] = 3
    train(optimizer, loss, 2)
    assert [int("hessian" in optimizer.state[p]) for p in params] == [1, 0, 0, 1]
    assert int(optimizer.state[params[0]]["refreshes"]) == 2
    assert optimizer.param_groups[0]["cursor"] == 1


def test_a_cursor_set_by_hand_is_saved() -> None:
    params = biases(4)
    optimizer = sgdph.SGDPH([{"params": params, "channelwise": True}])

    def loss(_: int) -> Tensor:
        return torch.stack([p.pow(4).sum() for p in params]).sum()

    train(optimizer, loss, 6)
    optimizer.param_groups[0]["cursor"] = 1
    again = sgdph.SGDPH([{"params": params, "channelwise": True}])
    again.load_state_dict(copy.deepcopy(optimizer.state_dict()))
    cursors: list[list[int]] = []
    for each in (optimizer, again):
        cursors.append([])
        for _ in range(4):
            train(each, loss, 1)
            cursors[-1].append(each.param_groups[0]["cursor"])
    assert cursors == [[2, 3, 0, 1]] * 2


@pytest.mark.parametrize("unused", [1, 12])
def test_a_joint_refresh_searches_for_all_missed_parameters_at_once(unused: int) -> None:
    used, left = biases(3), biases(unused)
    optimizer = sgdph.SGDPH(
        [{"params": [*used, *left], "channelwise": True}],
        lr=1e-4,
        hessian_interval=10,
        refresh="all",
    )
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        due = train(optimizer, lambda _: torch.stack([p.pow(4).sum() for p in used]).sum(), 200)
    assert sum(due) == 20 + 2 * 9


def test_an_unused_parameter_is_searched_for_rarely_and_named() -> None:
    used, unused = biases(3), nn.Parameter(torch.ones(2))
    named = [("unused", unused), *((f"p{i}", p) for i, p in enumerate(used))]
    optimizer = sgdph.SGDPH([{"params": named, "channelwise": True}], lr=1e-4, hessian_interval=5)
    unused.grad = torch.zeros(2)
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always")
        due = train(optimizer, lambda _: torch.stack([p.pow(4).sum() for p in used]).sum(), 400)
    assert all(due[step] for step in range(0, 400, 5))
    # One search at first and one after ten sweeps. Each lasts until the next refresh.
    assert sum(due) - 80 == 8
    texts = [str(w.message) for w in caught if "no partial Hessian has reached" in str(w.message)]
    assert len(texts) == 1
    assert "parameter unused" in texts[0]
    # While frozen, it is neither searched for nor named. This time does not count as waiting.
    unused.requires_grad_(False)
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        train(optimizer, lambda _: torch.stack([p.pow(4).sum() for p in used]).sum(), 400)
        unused.requires_grad_(True)
        everything = [*used, unused]
        train(optimizer, lambda _: torch.stack([p.pow(4).sum() for p in everything]).sum(), 50)
    assert optimizer.state[unused]["refreshes"] > 0


@pytest.mark.parametrize("way", WAYS)
def test_a_search_step_may_have_no_curvature(way: str) -> None:
    """Users who count due steps themselves compute no curvature there, and get no error."""
    a, b = biases(2)
    optimizer = sgdph.SGDPH([{"params": [a, b], "channelwise": True}], lr=0.0, hessian_interval=2)
    WAYS[way](optimizer, b.pow(4).sum())
    optimizer.step()
    assert optimizer.hessian_due
    optimizer.zero_grad()
    (a.pow(4).sum() + b.pow(4).sum()).backward()
    optimizer.step()
    assert "hessian" not in optimizer.state[a]


@pytest.mark.parametrize("refresh", ["cyclic", "all"])
def test_an_old_state_without_turns_resumes_as_before(refresh: str) -> None:
    """States saved before turns were counted per parameter give the same targets and probes."""
    params, copies = biases(3), biases(3)
    settings = {"lr": 0.01, "estimator": "hutchinson", "hessian_momentum": 0.99}
    kept = [
        sgdph.SGDPH([{"params": these, "channelwise": True}], refresh=refresh, **settings)  # type: ignore[arg-type]
        for these in (params, copies)
    ]

    def loss(these: list[nn.Parameter]) -> Callable[[int], Tensor]:
        return lambda step: torch.cat(list(these)).pow(3).sum().cos() * (1 + step)

    train(kept[0], loss(params), 5)
    old = copy.deepcopy(kept[0].state_dict())
    for state in old["state"].values():
        del state["turn"]
    for group in old["param_groups"]:
        del group["sought"]
    for p, q in zip(params, copies, strict=True):
        q.data.copy_(p)
    kept[1].load_state_dict(old)
    for optimizer, these in zip(kept, (params, copies), strict=True):
        train(optimizer, loss(these), 7)
    for p, q in zip(params, copies, strict=True):
        assert torch.equal(p, q)
