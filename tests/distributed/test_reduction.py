"""The curvature's mean over ranks: two processes on this machine, with gloo."""

from __future__ import annotations

import functools
from typing import Any

import pytest
import torch
import torch.distributed as dist
from ranks import (
    WAYS,
    Found,
    Job,
    Results,
    assert_near,
    assert_same_bits,
    loss_on,
    network,
    on_ranks,
    rank_batch,
)
from torch import nn
from torch.nn.parallel import DistributedDataParallel

import sgdph

pytestmark = pytest.mark.xdist_group("distributed")

RANKS = 2
STEPS = 8
MODELS = (4, 4), (4, 5)
SETTINGS: dict[str, dict[str, Any]] = {
    "default": {},
    "hutchinson": {"estimator": "hutchinson", "refresh": "all", "hessian_momentum": 0.99},
    "exact": {"estimator": "exact", "refresh": "all", "hessian_interval": 2},
}


def average_gradients(model: nn.Module) -> None:
    for p in model.parameters():
        if p.grad is not None:
            dist.all_reduce(p.grad)
            p.grad /= RANKS


def by_hand(rank: int, settings: dict[str, Any]) -> Found:
    """The training loop averages the gradients itself."""
    model = network()
    optimizer = sgdph.SGDPH(sgdph.param_groups(model), **settings)
    for step in range(STEPS):
        optimizer.zero_grad()
        loss = loss_on(model, rank, step)
        optimizer.update_hessian(loss)
        loss.backward()
        average_gradients(model)
        optimizer.step()
    return model.state_dict()


def under_ddp(rank: int, way: str) -> Found:
    model = network()
    replica = DistributedDataParallel(model)
    optimizer = sgdph.SGDPH(sgdph.param_groups(replica))
    for step in range(STEPS):
        optimizer.zero_grad()
        WAYS[way](optimizer, lambda step=step: loss_on(replica, rank, step))
        optimizer.step()
    return model.state_dict()


def one_rank_has_nothing(rank: int) -> Found:
    model = network()
    optimizer = sgdph.SGDPH(sgdph.param_groups(model))
    loss = loss_on(model, 0, 0)
    if rank == 0:
        optimizer.update_hessian(loss)
    loss.backward()
    optimizer.step()
    return {"hessian": optimizer.state[model[0].bias]["hessian"]}


def no_rank_has_anything(rank: int) -> Found:
    model = network()
    optimizer = sgdph.SGDPH(sgdph.param_groups(model))
    loss_on(model, rank, 0).backward()
    with pytest.raises(RuntimeError, match="and has none"):
        optimizer.step()
    return model.state_dict()


def alone_in_its_group(rank: int) -> Found:
    groups = [dist.new_group([r]) for r in range(RANKS)]
    model = network()
    optimizer = sgdph.SGDPH(model.parameters(), process_group=groups[rank])
    optimizer.backward(loss_on(model, rank, 0))
    optimizer.step()
    return {"hessian": optimizer.state[model[0].bias]["hessian"]}


def of_its_own(rank: int, sizes: tuple[int, int], grouped: bool) -> Found:
    """Each rank trains another model, as in a search or in an ensemble."""
    torch.manual_seed(rank)
    size = sizes[rank]
    # The first Newton parameters are equal: a norm's scales of 1 and shifts of 0.
    model = nn.Sequential(nn.Linear(3, size, bias=False), nn.LayerNorm(size), nn.Linear(size, 2))
    group = dist.new_group([rank], use_local_synchronization=True) if grouped else None
    optimizer = sgdph.SGDPH(sgdph.param_groups(model), process_group=group, hessian_momentum=0.0)
    found = {}
    for refreshed in (model[1].weight, model[1].bias):
        optimizer.zero_grad()
        loss = model(rank_batch(rank, 0).float()).pow(3).sum()
        (gradient,) = torch.autograd.grad(loss, refreshed, create_graph=True)
        (expected,) = torch.autograd.grad(gradient.sum(), refreshed, retain_graph=True)
        optimizer.backward(loss)
        # Models of one size differ in their Newton parameters only after the first step.
        if not grouped and (sizes[0] != sizes[1] or refreshed is model[1].bias):
            with pytest.raises(RuntimeError, match="parameters differ between ranks"):
                optimizer.step()
            return {}
        optimizer.step()
        found = {"hessian": optimizer.state[refreshed]["hessian"], "expected": expected.abs()}
    return found


def with_a_part_of_its_own(rank: int) -> Found:
    """As with experts, or tables of embeddings, that are spread over the ranks."""
    model, own = network(), nn.Parameter(torch.full((3,), 1.0 + rank).double())
    groups = [*sgdph.param_groups(model), {"params": [("own", own)], "channelwise": False}]
    optimizer = sgdph.SGDPH(groups)
    for step in range(3):
        optimizer.zero_grad()
        optimizer.backward(loss_on(model, rank, step) + own.square().sum())
        average_gradients(model)
        optimizer.step()
    return model.state_dict()


def hutchinson_of(rank: int, process_group: dist.ProcessGroup | None = None) -> Found:
    model = network()
    optimizer = sgdph.SGDPH(model.parameters(), estimator="hutchinson", process_group=process_group)
    optimizer.backward(loss_on(model, rank, 0))
    optimizer.step()
    return {"hessian": optimizer.state[model[0].bias]["hessian"]}


def outside_its_group(rank: int) -> Found:
    # Both ranks create both groups. If only a group's members did, torch 2.6 would give the other
    # rank None.
    groups = [dist.new_group([member]) for member in range(RANKS)]
    return hutchinson_of(rank, groups[1 - rank])


JOBS: dict[str, Job] = {
    **{name: functools.partial(by_hand, settings=settings) for name, settings in SETTINGS.items()},
    **{way: functools.partial(under_ddp, way=way) for way in ("update_hessian", "backward")},
    "one has nothing": one_rank_has_nothing,
    "none has anything": no_rank_has_anything,
    "alone": alone_in_its_group,
    "a part of its own": with_a_part_of_its_own,
    **{
        f"{grouped} {sizes}": functools.partial(of_its_own, sizes=sizes, grouped=grouped)
        for grouped in (False, True)
        for sizes in MODELS
    },
    "outside": outside_its_group,
}


@pytest.fixture(scope="module")
def ranks(tmp_path_factory: pytest.TempPathFactory) -> Results:
    return on_ranks(JOBS, RANKS, tmp_path_factory.mktemp("ranks"))


def in_one_process(settings: dict[str, Any]) -> Found:
    model = network()
    optimizer = sgdph.SGDPH(sgdph.param_groups(model), **settings)
    for step in range(STEPS):
        optimizer.zero_grad()
        optimizer.backward((loss_on(model, 0, step) + loss_on(model, 1, step)) / 2)
        optimizer.step()
    return model.state_dict()


@pytest.mark.parametrize("name", SETTINGS)
def test_two_ranks_equal_one_process_on_the_joined_batch(name: str, ranks: Results) -> None:
    first, second = (found[name] for found in ranks)
    assert_same_bits(first, second)
    assert_near(first, in_one_process(SETTINGS[name]))


@pytest.mark.parametrize("way", ["update_hessian", "backward"])
def test_ddp_equals_one_process_on_the_joined_batch(way: str, ranks: Results) -> None:
    first, second = (found[way] for found in ranks)
    assert_same_bits(first, second)
    assert_near(first, in_one_process({}))


def test_a_rank_without_curvature_counts_as_zero(ranks: Results) -> None:
    first, second = (found["one has nothing"]["hessian"] for found in ranks)
    assert torch.equal(first, second)
    model = network()
    optimizer = sgdph.SGDPH(sgdph.param_groups(model))
    optimizer.backward(loss_on(model, 0, 0))
    optimizer.step()
    torch.testing.assert_close(first, optimizer.state[model[0].bias]["hessian"] / 2)


def test_if_no_rank_has_curvature_all_raise_an_error(ranks: Results) -> None:
    for found in ranks:
        assert_same_bits(found["none has anything"], dict(network().state_dict()))


def test_ranks_in_separate_process_groups_are_not_averaged(ranks: Results) -> None:
    first, second = (found["alone"]["hessian"] for found in ranks)
    assert not torch.equal(first, second)


def test_first_order_parameters_may_differ_between_ranks(ranks: Results) -> None:
    first, second = (found["a part of its own"] for found in ranks)
    assert_same_bits(first, second)


@pytest.mark.parametrize("sizes", MODELS)
def test_models_of_their_own_need_groups_of_their_own(
    sizes: tuple[int, int], ranks: Results
) -> None:
    for found in ranks:
        assert found[f"False {sizes}"] == {}
        torch.testing.assert_close(*found[f"True {sizes}"].values())


def test_a_rank_outside_its_process_group_uses_its_own_curvature(ranks: Results) -> None:
    # torch says that such a group has -1 ranks. Hutchinson keeps the sign; a row sum would hide it.
    for rank, found in enumerate(ranks):
        assert_same_bits(found["outside"], hutchinson_of(rank))
