"""Join contexts of two ranks: one has run out of batches, or the optimizer is left out."""

from __future__ import annotations

import pytest
import torch
from ranks import (
    Found,
    Job,
    Results,
    assert_same_bits,
    everything,
    loss_on,
    network,
    of,
    on_ranks,
    rank_batch,
)
from torch import Tensor, nn
from torch.distributed.algorithms.join import Join
from torch.nn.parallel import DistributedDataParallel

import sgdph

pytestmark = pytest.mark.xdist_group("join")

RANKS = 2


class TwoBiases(nn.Module):
    """Two biases. A batch may leave out the first."""

    def __init__(self) -> None:
        super().__init__()
        self.first = nn.Parameter(torch.full((3,), 0.1, dtype=torch.float64))
        self.second = nn.Parameter(torch.full((3,), 0.2, dtype=torch.float64))

    def forward(self, x: Tensor, both: bool) -> Tensor:
        y = (x + self.first).tanh() if both else x
        return (y + self.second).tanh()


def target_left_out_after_one_rank_ran_out(rank: int) -> Found:
    model = TwoBiases()
    optimizer = sgdph.SGDPH([{"params": model.parameters(), "channelwise": True}], lr=0.05)
    replica = DistributedDataParallel(model, find_unused_parameters=True)
    # Next to refresh: first, second, first again. Then no rank with a batch reaches it.
    batches = [True, True] if rank == 0 else [True, True, False, True]
    with Join([replica, optimizer]):
        for step, both in enumerate(batches):
            optimizer.zero_grad()
            optimizer.backward(replica(rank_batch(rank, step), both).square().mean())
            optimizer.step()
    return everything(model, optimizer)


def test_a_rank_without_batches_stays_equal_to_the_other(ranks: Results) -> None:
    first, second = of(ranks, "target left out")
    assert_same_bits(first, second)
    assert int(first["step"]) == 4
    # Each was next twice, but one refresh of the first had no effect.
    assert [float(first[f"refreshes {i}"]) for i in (0, 1)] == [1, 2]


def model_alone_after_both(rank: int) -> list[str]:
    model = network()
    optimizer = sgdph.SGDPH(sgdph.param_groups(model), lr=0.05)
    replica = DistributedDataParallel(model)

    def step(k: int) -> None:
        optimizer.zero_grad()
        optimizer.backward(loss_on(replica, rank, k))
        optimizer.step()

    refused = []
    for k in range(2):
        with Join([replica, optimizer]):
            step(3 * k)
        step(3 * k + 1)
        with pytest.raises(RuntimeError, match="does not include") as error, replica.join():
            step(3 * k + 2)
        refused.append(str(error.value))
    # A context without a step, or one that is switched off, does not allow it either.
    for enable in (True, False):
        with Join([replica, optimizer], enable=enable):
            pass
        step(6)
        with pytest.raises(RuntimeError, match="does not include") as error, replica.join():
            step(7)
        refused.append(str(error.value))
    return refused


def test_each_join_context_without_the_optimizer_raises_an_error(ranks: Results) -> None:
    assert [len(refused) for refused in of(ranks, "model alone")] == [4, 4]


JOBS: dict[str, Job] = {
    "target left out": target_left_out_after_one_rank_ran_out,
    "model alone": model_alone_after_both,
}


@pytest.fixture(scope="module")
def ranks(tmp_path_factory: pytest.TempPathFactory) -> Results:
    return on_ranks(JOBS, RANKS, tmp_path_factory.mktemp("ranks"))
