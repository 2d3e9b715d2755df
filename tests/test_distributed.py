"""The curvature's mean over ranks: two processes on this machine, with gloo."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
import torch.distributed as dist
import torch.multiprocessing as mp
from torch import nn
from torch.nn.parallel import DistributedDataParallel

import sgdph

RANKS = 2


def network() -> nn.Module:
    torch.manual_seed(0)
    return nn.Sequential(nn.Linear(3, 4), nn.LayerNorm(4), nn.Tanh(), nn.Linear(4, 2)).double()


def rank_batch(rank: int, step: int) -> torch.Tensor:
    generator = torch.Generator().manual_seed(10 * step + rank)
    return torch.randn(5, 3, generator=generator, dtype=torch.float64)


def loss_on(model: nn.Module, rank: int, step: int) -> torch.Tensor:
    return model(rank_batch(rank, step)).square().mean()


def average_gradients(model: nn.Module) -> None:
    for p in model.parameters():
        if p.grad is not None:
            dist.all_reduce(p.grad)
            p.grad /= RANKS


def equal_to_one_process(rank: int, settings: dict[str, Any]) -> dict[str, torch.Tensor]:
    model = network()
    optimizer = sgdph.SGDPH(sgdph.param_groups(model), **settings)
    for step in range(8):
        optimizer.zero_grad()
        loss = loss_on(model, rank, step)
        optimizer.update_hessian(loss)
        loss.backward()
        average_gradients(model)
        optimizer.step()
    return model.state_dict()


def under_ddp(rank: int, settings: dict[str, Any]) -> dict[str, torch.Tensor]:
    model = network()
    replica = DistributedDataParallel(model)
    optimizer = sgdph.SGDPH(sgdph.param_groups(replica))
    for step in range(8):
        optimizer.zero_grad()
        loss = loss_on(replica, rank, step)
        if settings["in_one_call"]:
            optimizer.backward(loss)
        else:
            optimizer.update_hessian(loss)
            loss.backward()
        optimizer.step()
    return model.state_dict()


def one_rank_has_nothing(rank: int, settings: dict[str, Any]) -> dict[str, torch.Tensor]:
    model = network()
    optimizer = sgdph.SGDPH(sgdph.param_groups(model), **settings)
    loss = loss_on(model, 0, 0)
    if rank == 0:
        optimizer.update_hessian(loss)
    loss.backward()
    optimizer.step()
    return {"hessian": optimizer.state[model[0].bias]["hessian"]}


def no_rank_has_anything(rank: int, settings: dict[str, Any]) -> dict[str, torch.Tensor]:
    model = network()
    optimizer = sgdph.SGDPH(sgdph.param_groups(model), **settings)
    loss_on(model, rank, 0).backward()
    with pytest.raises(RuntimeError, match="none came"):
        optimizer.step()
    return model.state_dict()


def alone_in_its_group(rank: int, settings: dict[str, Any]) -> dict[str, torch.Tensor]:
    groups = [dist.new_group([r]) for r in range(RANKS)]
    model = network()
    optimizer = sgdph.SGDPH(model.parameters(), process_group=groups[rank], **settings)
    optimizer.backward(loss_on(model, rank, 0))
    optimizer.step()
    return {"hessian": optimizer.state[model[0].bias]["hessian"]}


Job = Callable[[int, dict[str, Any]], dict[str, torch.Tensor]]


def _worker(rank: int, job: Job, settings: dict[str, Any], folder: str) -> None:
    torch.set_num_threads(1)
    store = f"file://{folder}/store"
    dist.init_process_group("gloo", init_method=store, rank=rank, world_size=RANKS)
    try:
        torch.save(job(rank, settings), f"{folder}/{rank}.pt")
    finally:
        dist.destroy_process_group()


def on_two_ranks(job: Job, folder: Path, **settings: Any) -> list[dict[str, torch.Tensor]]:
    mp.spawn(_worker, (job, settings, str(folder)), nprocs=RANKS)  # type: ignore[no-untyped-call]
    return [torch.load(folder / f"{rank}.pt") for rank in range(RANKS)]


@pytest.mark.parametrize(
    "settings",
    [
        {},
        {"estimator": "hutchinson", "refresh": "all", "hessian_momentum": 0.99},
        {"estimator": "exact", "refresh": "all", "hessian_interval": 2},
    ],
    ids=["default", "hutchinson-all", "exact-all"],
)
def test_two_ranks_equal_one_process_on_the_joined_batch(
    settings: dict[str, Any], tmp_path: Path
) -> None:
    first, second = on_two_ranks(equal_to_one_process, tmp_path, **settings)
    model = network()
    optimizer = sgdph.SGDPH(sgdph.param_groups(model), **settings)
    for step in range(8):
        optimizer.zero_grad()
        loss = (loss_on(model, 0, step) + loss_on(model, 1, step)) / 2
        optimizer.backward(loss)
        optimizer.step()
    for name, value in model.state_dict().items():
        assert torch.equal(first[name], second[name])
        torch.testing.assert_close(first[name], value, rtol=0, atol=1e-10)


@pytest.mark.parametrize("in_one_call", [True, False])
def test_ddp_equals_one_process_on_the_joined_batch(in_one_call: bool, tmp_path: Path) -> None:
    first, second = on_two_ranks(under_ddp, tmp_path, in_one_call=in_one_call)
    model = network()
    optimizer = sgdph.SGDPH(sgdph.param_groups(model))
    for step in range(8):
        optimizer.zero_grad()
        optimizer.backward((loss_on(model, 0, step) + loss_on(model, 1, step)) / 2)
        optimizer.step()
    for name, value in model.state_dict().items():
        assert torch.equal(first[name], second[name])
        torch.testing.assert_close(first[name], value, rtol=0, atol=1e-10)


def test_a_rank_with_nothing_counts_as_zero(tmp_path: Path) -> None:
    first, second = on_two_ranks(one_rank_has_nothing, tmp_path)
    assert torch.equal(first["hessian"], second["hessian"])
    model = network()
    optimizer = sgdph.SGDPH(sgdph.param_groups(model))
    optimizer.backward(loss_on(model, 0, 0))
    optimizer.step()
    alone = optimizer.state[model[0].bias]["hessian"]
    torch.testing.assert_close(first["hessian"], alone / 2)


def test_no_rank_has_anything(tmp_path: Path) -> None:
    states = on_two_ranks(no_rank_has_anything, tmp_path)
    for name, value in network().state_dict().items():
        assert torch.equal(states[0][name], value)


def test_process_group_of_ones_own(tmp_path: Path) -> None:
    first, second = on_two_ranks(alone_in_its_group, tmp_path)
    assert not torch.equal(first["hessian"], second["hessian"])
