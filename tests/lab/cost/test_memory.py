"""The tracker on programs whose peaks can be computed by hand. A float32 takes four bytes."""

from collections.abc import Callable

import pytest
import torch
from torch import Tensor, nn

from sgdph.lab.cost.memory import Peak, StorageTracker, bytes_of, watch_memory

N = 1000


def peak_of(program: Callable[[], object]) -> tuple[int, int]:
    """Return a program's peak, and the bytes that are left while its result is kept."""
    with StorageTracker() as tracker:
        tracker.start()
        result = program()
        left = tracker.live
        del result
    return tracker.peak().added, left


def test_an_allocation_counts_until_it_is_freed() -> None:
    with StorageTracker() as tracker:
        x = torch.empty(N)
        assert (tracker.live, tracker.highest) == (4 * N, 4 * N)
        y = torch.empty(N, dtype=torch.int64)
        assert tracker.live == 12 * N
        del x
        assert (tracker.live, tracker.highest) == (8 * N, 12 * N)
        del y
        assert (tracker.live, tracker.highest) == (0, 12 * N)


def test_a_freed_intermediate_is_no_longer_counted() -> None:
    def program() -> Tensor:
        x = torch.zeros(N)
        x = x + 1
        return x + 1

    assert peak_of(program) == (8 * N, 4 * N)


def test_views_and_in_place_results_are_not_counted_again() -> None:
    outside = torch.zeros(N)

    def program() -> list[Tensor]:
        outside.add_(1).mul_(2)
        x = torch.zeros(N)
        x.add_(1)
        return [x.view(2, -1).t().expand(3, N // 2, 2), *outside.split(10), outside[None]]

    assert peak_of(program) == (4 * N, 4 * N)


def test_every_output_of_an_operation_is_counted() -> None:
    x = torch.zeros(N, 3)

    def program() -> list[Tensor]:
        values, places = x.max(1)
        return [values, places, *torch._foreach_add([x, x], 1.0)]

    assert peak_of(program) == (4 * N + 8 * N + 2 * 12 * N, 36 * N)


def test_memory_that_autograd_frees_is_no_longer_counted() -> None:
    w = torch.zeros(N, requires_grad=True)

    def program() -> Tensor:
        loss = w.exp().sum()
        loss.backward()
        return loss

    # Forward: exp's result is kept for the backward pass, and the loss takes 4 bytes. Backward:
    # the 1 that it starts from takes 4 bytes, and w's gradient exists before exp's result is freed.
    assert peak_of(program) == (4 * N + 4 + 4 + 4 * N, 4 * N + 4)


def test_the_graph_of_a_gradient_counts_until_it_is_freed() -> None:
    w = torch.full((N,), 0.5, requires_grad=True)
    with StorageTracker() as tracker:
        (gradient,) = torch.autograd.grad((w * w * w).sum(), w, create_graph=True)
        with_graph = tracker.live
        (product,) = torch.autograd.grad(gradient.sum(), w)
        assert with_graph > 4 * N
        del gradient
        assert tracker.live == 4 * N
        del product
        assert tracker.live == 0


def test_a_section_counts_only_what_it_adds() -> None:
    with watch_memory(torch.device("cpu")) as watch:
        x = torch.empty(N)
        watch.start()
        y = torch.empty(2 * N)
        assert watch.peak() == Peak(added=8 * N, live=12 * N)
        del y
        watch.start()
        assert watch.peak() == Peak(added=0, live=4 * N)
        del x


@pytest.mark.parametrize("steps", [1, 3])
def test_a_training_step_leaves_only_its_gradients(steps: int) -> None:
    torch.manual_seed(0)
    net = nn.Sequential(nn.Conv2d(3, 8, 3), nn.BatchNorm2d(8), nn.Flatten(), nn.Linear(288, 10))
    x = torch.randn(4, 3, 8, 8)
    with StorageTracker() as tracker:
        for _ in range(steps):
            net.zero_grad(set_to_none=True)
            assert tracker.live == 0
            net(x).logsumexp(1).sum().backward()
            assert tracker.live == bytes_of(net.parameters())


def test_shared_storage_counts_once() -> None:
    x = torch.zeros(N)
    assert bytes_of(iter([x, x.view(-1), x[5:], torch.zeros(3)])) == 4 * N + 12
