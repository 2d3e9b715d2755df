"""A Newton parameter that no loss reaches: no error, unless the partial Hessian was forgotten.

Its ``.grad`` may still exist: left over, or zeros from ``zero_grad(set_to_none=False)``.
"""

from __future__ import annotations

from collections.abc import Callable

import pytest
import torch
from small import WAYS, bn_net, by_update, loss_of, train
from torch import Tensor, nn
from torch.nn import functional
from user_warnings import warns_here

import sgdph


def without_target(model: nn.Sequential) -> Tensor:
    """A loss that does not depend on 0.bias, which is the first to be refreshed."""
    y: Tensor = functional.conv2d(torch.ones(8, 1, 6, 6), model[0].weight)
    return functional.cross_entropy(model[1:](y), torch.arange(8) % 3)


def with_zero_gradients() -> tuple[nn.Sequential, sgdph.SGDPH]:
    model = bn_net()
    optimizer = sgdph.SGDPH(model.parameters())
    for p in model.parameters():
        p.grad = torch.zeros_like(p)
    return model, optimizer


def refreshed(model: nn.Sequential, optimizer: sgdph.SGDPH) -> list[str]:
    counts = {name: optimizer.state[p].get("refreshes", 0) for name, p in model.named_parameters()}
    return [name for name, count in counts.items() if count > 0]


def by_closure(optimizer: sgdph.SGDPH, loss: Callable[[], Tensor]) -> None:
    optimizer.update_hessian(closure=loss)
    loss().backward()


@pytest.mark.parametrize("way", WAYS)
def test_a_head_of_a_rejected_batch_raises_no_error(way: str) -> None:
    """Its gradient is cleared to zeros, and the next loss does not reach it."""
    body, *heads = parts = nn.ModuleList([nn.Linear(3, 3), nn.Linear(3, 3), nn.Linear(3, 3)])
    optimizer = sgdph.SGDPH(sgdph.param_groups(parts), hessian_interval=2, lr=0.0)
    x = torch.linspace(-1, 1, 12).view(4, 3)

    def take(head: nn.Module) -> None:
        WAYS[way](optimizer, head(body(x).tanh()).tanh().pow(2).mean())

    for rejected in (False, False, False, True, True, False, False, True, True, True):
        optimizer.zero_grad(set_to_none=False)
        if rejected:
            take(heads[0])
            optimizer.zero_grad(set_to_none=False)
        take(heads[1])
        optimizer.step()
    assert float(optimizer.state[body.bias]["refreshes"]) > 0
    assert float(optimizer.state[heads[0].bias].get("refreshes", 0)) == 0


@pytest.mark.parametrize("way", ["closure", *WAYS])
@pytest.mark.parametrize("frozen", [True, False])
def test_a_parameter_outside_the_loss_is_skipped(way: str, frozen: bool) -> None:
    model, optimizer = with_zero_gradients()
    if frozen:
        model[0].bias.requires_grad_(False)

    def loss() -> Tensor:
        return loss_of(model) if frozen else without_target(model)

    optimizer.zero_grad(set_to_none=False)
    if way == "closure":
        by_closure(optimizer, loss)
    else:
        WAYS[way](optimizer, loss())
    optimizer.step()
    assert refreshed(model, optimizer) == ["1.weight"]
    # The next refresh is like any other.
    optimizer.zero_grad(set_to_none=False)
    WAYS["backward" if way == "closure" else way](optimizer, loss())
    optimizer.step()
    assert refreshed(model, optimizer) == ["1.weight", "1.bias"]
    # The skipped parameter comes first when a loss reaches it again.
    model[0].bias.requires_grad_(True)
    optimizer.zero_grad(set_to_none=False)
    WAYS["backward" if way == "closure" else way](optimizer, loss_of(model))
    optimizer.step()
    assert refreshed(model, optimizer) == ["0.bias", "1.weight", "1.bias"]


@pytest.mark.parametrize("way", WAYS)
def test_a_frozen_parameter_with_a_leftover_gradient_is_skipped(way: str) -> None:
    model = bn_net()
    optimizer = sgdph.SGDPH(model.parameters())
    loss_of(model).backward()
    model[0].bias.requires_grad_(False)
    WAYS[way](optimizer, loss_of(model))
    optimizer.step()
    assert refreshed(model, optimizer) == ["1.weight"]


@pytest.mark.parametrize("way", ["closure", *WAYS])
def test_a_parameter_frozen_for_one_backward_is_skipped(way: str) -> None:
    """As a discriminator is frozen while the generator trains."""
    model, optimizer = with_zero_gradients()
    model[0].bias.requires_grad_(False)
    if way == "closure":
        by_closure(optimizer, lambda: loss_of(model))
    else:
        WAYS[way](optimizer, loss_of(model))
    model[0].bias.requires_grad_(True)
    optimizer.step()
    assert refreshed(model, optimizer) == ["1.weight"]


def test_gradients_with_graphs_set_by_hand_raise_an_error() -> None:
    model = bn_net()
    optimizer = sgdph.SGDPH(model.parameters())
    params = list(model.parameters())
    gradients = torch.autograd.grad(loss_of(model), params, create_graph=True)
    for p, gradient in zip(params, gradients, strict=True):
        p.grad = gradient
    with pytest.raises(RuntimeError, match="and has none"):
        optimizer.step()


@pytest.mark.parametrize("order", ["plain first", "plain last"])
def test_a_plain_backward_next_to_one_with_a_graph_raises_an_error(order: str) -> None:
    model, optimizer = with_zero_gradients()
    feeds: list[Callable[[], None]] = [
        lambda: loss_of(model).backward(),
        lambda: without_target(model).backward(create_graph=True),
    ]
    for feed in feeds if order == "plain first" else reversed(feeds):
        feed()
    with pytest.raises(RuntimeError, match="and has none"):
        optimizer.step()


def test_a_cleared_plain_backward_raises_no_error() -> None:
    """The step was given up. Its gradients are gone, so its curvature is no longer missing."""
    for clear in (
        lambda model, optimizer: optimizer.zero_grad(set_to_none=False),
        lambda model, optimizer: model.zero_grad(),
    ):
        model, optimizer = with_zero_gradients()
        loss_of(model).backward()
        clear(model, optimizer)
        without_target(model).backward(create_graph=True)
        optimizer.step()
        assert refreshed(model, optimizer) == ["1.weight"]


def test_graphs_of_other_parameters_do_not_prevent_the_error() -> None:
    _, optimizer = with_zero_gradients()
    other = nn.Parameter(torch.ones(3))
    other.square().sum().backward(create_graph=True)
    with pytest.raises(RuntimeError, match="and has none"):
        optimizer.step()


def test_a_replaced_parameter_with_zero_gradients_raises_an_error() -> None:
    model, optimizer = with_zero_gradients()
    model[0].bias = nn.Parameter(model[0].bias.detach().clone())
    loss_of(model).backward(create_graph=True)
    with pytest.raises(RuntimeError, match=r"0\.1 is not in the loss's graph.*replaced"):
        optimizer.step()


def test_a_replacement_is_found_where_a_tensor_was_that_is_gone() -> None:
    """Python may give it the id of an input that the optimizer has seen before."""
    for _ in range(20):
        branches = [nn.Linear(4, 4), nn.Linear(4, 4)]
        params = [p for branch in branches for p in branch.parameters()]
        optimizer = sgdph.SGDPH([{"params": params, "channelwise": True}], refresh="all")
        for turn in (0, 1, 0, 1):
            optimizer.zero_grad()
            x = nn.Parameter(torch.randn(1, 4))
            optimizer.backward(branches[turn](x).square().sum())
            optimizer.step()
        del x
        branches[1].bias = nn.Parameter(torch.zeros(4))
        with pytest.raises(RuntimeError, match=r"is not in the loss's graph.*replaced"):
            optimizer.backward(branches[1](torch.randn(1, 4)).square().sum())


def test_a_sparse_tensor_in_the_loss_is_no_replacement() -> None:
    branches = [nn.Linear(3, 3), nn.Linear(3, 3)]
    params = [p for branch in branches for p in branch.parameters()]
    optimizer = sgdph.SGDPH([{"params": params, "channelwise": True}], refresh="all")
    mixing = torch.eye(3).to_sparse().requires_grad_()
    for turn in (0, 1, 0):
        optimizer.zero_grad()
        optimizer.backward(torch.sparse.mm(mixing, branches[turn](torch.ones(3, 3))).square().sum())
        optimizer.step()


def test_a_second_network_is_no_replacement_of_what_was_frozen_beside_it() -> None:
    first, second, critic = (nn.Linear(4, 4) for _ in range(3))
    first.requires_grad_(False)
    both = [*first.parameters(), *second.parameters()]
    optimizer = sgdph.SGDPH([{"params": both, "channelwise": True}], refresh="all")
    for way in (lambda x: second(first(x)), second):
        optimizer.zero_grad()
        optimizer.backward(critic(way(torch.randn(5, 4))).square().mean())
        optimizer.step()
        first.requires_grad_(True)


def test_a_second_network_is_no_replacement_of_what_was_beside_it() -> None:
    """Like a critic with an optimizer of its own, behind two generators in turn."""
    torch.manual_seed(0)
    first, second, critic = (nn.Sequential(nn.Linear(4, 6), nn.Linear(6, 4)) for _ in range(3))
    both = nn.ModuleList([first, second])
    optimizer = sgdph.SGDPH([{"params": list(both.parameters()), "channelwise": True}])
    with warns_here("unknown to the optimizer"):
        optimizer.backward(critic(first(torch.randn(5, 4))).square().mean())
    for turn in (second, first, second, first):
        optimizer.step()
        optimizer.zero_grad()
        optimizer.backward(critic(turn(torch.randn(5, 4))).square().mean())
    for layer in first:
        layer.bias = nn.Parameter(layer.bias.detach().clone())

    def train_on() -> None:
        for _ in range(4):
            optimizer.step()
            optimizer.zero_grad()
            optimizer.backward(critic(first(torch.randn(5, 4))).square().mean())

    with pytest.raises(RuntimeError, match=r"is not in the loss's graph.*replaced"):
        train_on()


@pytest.mark.parametrize("set_to_none", [True, False])
def test_clearing_the_gradients_clears_a_recorded_miss(set_to_none: bool) -> None:
    model, optimizer = with_zero_gradients()
    by_update(optimizer, without_target(model))
    # Skipped, as by a GradScaler. The next step forgets the partial Hessian.
    optimizer.zero_grad(set_to_none)
    loss_of(model).backward()
    with pytest.raises(RuntimeError, match="and has none"):
        optimizer.step()
    train(model, optimizer, range(2))


@pytest.mark.parametrize("skipped", [False, True])
def test_clearing_before_the_backward_keeps_a_recorded_miss(skipped: bool) -> None:
    model, optimizer = with_zero_gradients()
    if skipped:
        by_update(optimizer, without_target(model))
    optimizer.update_hessian(without_target(model))
    optimizer.zero_grad(set_to_none=False)
    without_target(model).backward()
    optimizer.step()
    assert refreshed(model, optimizer) == ["1.weight"]
