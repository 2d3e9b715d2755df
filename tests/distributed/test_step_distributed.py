"""A step under DistributedDataParallel equals one process on the joined batch: gloo, two ranks."""

from __future__ import annotations

import contextlib
import functools
from typing import Any

import pytest
import torch
from property_nets import Case, build
from property_oracle import (
    WAYS,
    assert_near,
    curvature_in,
    newton_count,
    optimizer_of,
    signed_curvature,
)
from ranks import on_ranks
from torch import Tensor, nn
from torch.nn.parallel import DistributedDataParallel

RANKS = 2
NETWORK = "without_batch_statistics"
STEPS = 2

SETUPS: dict[str, dict[str, Any]] = {
    "default": {},
    "find_unused": {"find_unused_parameters": True},
    "bucket_views": {"gradient_as_bucket_view": True},
    "buffers_apart": {"broadcast_buffers": False},
    "small_buckets": {"bucket_cap_mb": 1e-4},
    "static_graph": {"static_graph": True},
    "accumulating": {},
    "accumulating_in_views": {"gradient_as_bucket_view": True},
}
COUNT = newton_count(NETWORK)
RUNS = [
    *[("default", "backward", k) for k in range(COUNT)],
    *[(setup, "backward", k) for setup in list(SETUPS)[1:] for k in (0, COUNT // 2)],
    *[(setup, way, 2) for setup in SETUPS for way in ("low_memory", "two_calls")],
]
Record = dict[str, Tensor]


class WithUnused(nn.Module):
    """The network, and a layer that no loss depends on."""

    def __init__(self, body: nn.Module) -> None:
        super().__init__()
        self.body = body
        self.unused = nn.Linear(2, 2).double()

    def forward(self, x: Tensor) -> Tensor:
        return self.body(x)


def case_for(setup: str) -> Case:
    case = build(NETWORK)
    if setup == "find_unused":
        torch.manual_seed(1)
        case.model = WithUnused(case.model)
    return case


def batch(rank: int, step: int, micro: int) -> Tensor:
    generator = torch.Generator().manual_seed(100 * step + 10 * micro + rank)
    return torch.randn(3, 2, 5, 5, generator=generator, dtype=torch.float64)


def micro_batches(setup: str) -> range:
    return range(2 if setup.startswith("accumulating") else 1)


def record(case: Case, optimizer: Any, step: int) -> Record:
    """Record the gradients, take a step, and record the parameters."""
    named = dict(case.model.named_parameters())
    found = {f"{step} gradient {n}": p.grad.clone() for n, p in named.items() if p.grad is not None}
    optimizer.step()
    return {**found, **{f"{step} parameter {n}": p.detach().clone() for n, p in named.items()}}


def on_a_rank(rank: int, setup: str, way: str, k: int) -> Record:
    case = case_for(setup)
    replica = DistributedDataParallel(case.model, **SETUPS[setup])
    optimizer = optimizer_of(case, "row_sum", k)
    found: Record = {}
    for step in range(STEPS):
        optimizer.zero_grad()
        for micro in micro_batches(setup):
            last = micro == micro_batches(setup)[-1]
            with contextlib.nullcontext() if last else replica.no_sync():
                WAYS[way](optimizer, case.loss_of(replica, batch(rank, step, micro)))
        found.update(record(case, optimizer, step))
        if step == 0:
            found["curvature"] = curvature_in(optimizer, case.newton()[k]).clone()
    return found


def in_one_process(setup: str, k: int) -> Record:
    case = case_for(setup)
    optimizer = optimizer_of(case, "row_sum", k)
    found: Record = {}
    for step in range(STEPS):
        optimizer.zero_grad()
        curvature = torch.zeros(())
        for micro in micro_batches(setup):
            losses = [case.loss_of(case.model, batch(rank, step, micro)) for rank in range(RANKS)]
            loss = sum(losses) / RANKS
            curvature = curvature + signed_curvature(loss, case.newton(), "row_sum", k)[k]
            optimizer.update_hessian(loss)
            loss.backward()
        found.update(record(case, optimizer, step))
        if step == 0:
            found["curvature"] = curvature.abs()
    return found


@pytest.fixture(scope="module")
def ranks(tmp_path_factory: pytest.TempPathFactory) -> list[dict[Any, Record]]:
    """All results of both ranks, from one start: the start costs more than all jobs."""
    jobs = {run: functools.partial(on_a_rank, setup=run[0], way=run[1], k=run[2]) for run in RUNS}
    return on_ranks(jobs, RANKS, tmp_path_factory.mktemp("ranks"))


@pytest.mark.xdist_group("step_distributed")
@pytest.mark.parametrize("setup", SETUPS)
def test_ddp_equals_one_process(setup: str, ranks: list[dict[Any, Record]]) -> None:
    for run in [run for run in RUNS if run[0] == setup]:
        expected = in_one_process(setup, run[2])
        first, second = ranks[0][run], ranks[1][run]
        assert first.keys() == second.keys() == expected.keys(), run
        for name, value in expected.items():
            assert torch.equal(first[name], second[name]), f"ranks differ in {name}, {run}"
            assert_near(first[name], value, f"{name}, {run}", tolerance=1e-10)
