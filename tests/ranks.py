"""Run tests about ranks in several processes on this machine, with gloo."""

from __future__ import annotations

import datetime
import os
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import torch
import torch.distributed as dist
import torch.multiprocessing as mp
from torch import Tensor, nn

import sgdph

Found = dict[str, Tensor]
Job = Callable[[int], Any]
Results = list[dict[Any, Any]]


def network() -> nn.Module:
    """Newton: 0.bias, 1.weight, 1.bias, by shape and by role. No batch statistics."""
    torch.manual_seed(0)
    return nn.Sequential(nn.Linear(3, 4), nn.LayerNorm(4), nn.Tanh(), nn.Linear(4, 2)).double()


def rank_batch(rank: int, step: int, size: int = 5) -> Tensor:
    generator = torch.Generator().manual_seed(100 * step + rank)
    return torch.randn(size, 3, generator=generator, dtype=torch.float64)


def loss_on(model: nn.Module, rank: int, step: int, size: int = 5) -> Tensor:
    loss: Tensor = model(rank_batch(rank, step, size)).square().mean()
    return loss


def by_update(optimizer: sgdph.SGDPH, loss: Callable[[], Tensor]) -> None:
    value = loss()
    optimizer.update_hessian(value)
    value.backward()


def by_backward(optimizer: sgdph.SGDPH, loss: Callable[[], Tensor]) -> None:
    optimizer.backward(loss())


def by_closure(optimizer: sgdph.SGDPH, loss: Callable[[], Tensor]) -> None:
    optimizer.update_hessian(closure=loss)
    loss().backward()


WAYS = {"update_hessian": by_update, "backward": by_backward, "closure": by_closure}


def everything(model: nn.Module, optimizer: sgdph.SGDPH | sgdph.PartialHessian) -> Found:
    """The weights, the optimizer's tensors, and the position in the cycle."""
    group = optimizer.param_groups[-1]
    place = {name: torch.tensor(group[name]) for name in ("step", "cursor", "refreshes")}
    found = {f"weight {name}": p.detach().clone() for name, p in model.named_parameters()}
    for i, p in enumerate(model.parameters()):
        kept = optimizer.state.get(p, {})
        found |= {f"{key} {i}": value.clone() for key, value in kept.items()}
    return found | place


def assert_same_bits(first: Found, second: Found) -> None:
    assert first.keys() == second.keys()
    for name, value in first.items():
        assert value.dtype == second[name].dtype, name
        assert torch.equal(value, second[name]), name


def assert_near(found: Found, expected: Found, tolerance: float = 1e-10) -> None:
    assert found.keys() == expected.keys()
    for name, value in expected.items():
        torch.testing.assert_close(found[name], value, rtol=tolerance, atol=tolerance)


def _worker(rank: int, jobs: Mapping[Any, Job], ranks: int, folder: str) -> None:
    torch.set_num_threads(1)
    store = f"file://{folder}/store"
    # If ranks wait for each other forever, a test should fail and not hang.
    patience = datetime.timedelta(seconds=120)
    dist.init_process_group(
        "gloo", init_method=store, rank=rank, world_size=ranks, timeout=patience
    )
    try:
        torch.save({name: job(rank) for name, job in jobs.items()}, f"{folder}/{rank}.pt")
    finally:
        dist.destroy_process_group()
    # If a thread of gloo frees the last message while Python exits, the process aborts.
    os._exit(0)


def on_ranks(jobs: Mapping[Any, Job], ranks: int, folder: Path) -> Results:
    """Run all jobs on every rank, one after the other, and return each rank's results by job.

    All jobs share one start, because starting processes costs more than the jobs do.
    """
    mp.start_processes(  # type: ignore[no-untyped-call]
        _worker, (jobs, ranks, str(folder)), nprocs=ranks, start_method="forkserver"
    )
    return [torch.load(folder / f"{rank}.pt") for rank in range(ranks)]


def of(results: Results, job: str) -> list[Any]:
    """The results of one job on all ranks."""
    return [found[job] for found in results]
