"""A Newton parameter that no loss reaches: no error, unless the partial Hessian was forgotten.

Its ``.grad`` may be there all the same: left over, or zeros of ``zero_grad(set_to_none=False)``.
"""

from __future__ import annotations

from collections.abc import Callable

import pytest
import torch
from small import WAYS, bn_net, by_update, loss_of, train
from torch import Tensor, nn
from torch.nn import functional

import sgdph


def without_target(model: nn.Sequential) -> Tensor:
    """A loss that does not depend on 0.bias, whose turn is first."""
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


@pytest.mark.parametrize("way", ["closure", *WAYS])
@pytest.mark.parametrize("frozen", [True, False])
def test_a_parameter_that_the_loss_does_not_reach_is_passed_over(way: str, frozen: bool) -> None:
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
    # The next one's turn is like any other.
    optimizer.zero_grad(set_to_none=False)
    WAYS["backward" if way == "closure" else way](optimizer, loss())
    optimizer.step()
    assert refreshed(model, optimizer) == ["1.weight", "1.bias"]
    # The one passed over is the first to go when it is reached again.
    model[0].bias.requires_grad_(True)
    optimizer.zero_grad(set_to_none=False)
    WAYS["backward" if way == "closure" else way](optimizer, loss_of(model))
    optimizer.step()
    assert refreshed(model, optimizer) == ["0.bias", "1.weight", "1.bias"]


@pytest.mark.parametrize("way", WAYS)
def test_a_frozen_parameter_with_a_gradient_left_over_is_passed_over(way: str) -> None:
    model = bn_net()
    optimizer = sgdph.SGDPH(model.parameters())
    loss_of(model).backward()
    model[0].bias.requires_grad_(False)
    WAYS[way](optimizer, loss_of(model))
    optimizer.step()
    assert refreshed(model, optimizer) == ["1.weight"]


@pytest.mark.parametrize("way", ["closure", *WAYS])
def test_a_parameter_frozen_for_one_backward_alone_is_passed_over(way: str) -> None:
    """As a discriminator is while the generator trains."""
    model, optimizer = with_zero_gradients()
    model[0].bias.requires_grad_(False)
    if way == "closure":
        by_closure(optimizer, lambda: loss_of(model))
    else:
        WAYS[way](optimizer, loss_of(model))
    model[0].bias.requires_grad_(True)
    optimizer.step()
    assert refreshed(model, optimizer) == ["1.weight"]


def test_gradients_with_graphs_put_there_by_hand_are_no_way() -> None:
    model = bn_net()
    optimizer = sgdph.SGDPH(model.parameters())
    params = list(model.parameters())
    gradients = torch.autograd.grad(loss_of(model), params, create_graph=True)
    for p, gradient in zip(params, gradients, strict=True):
        p.grad = gradient
    with pytest.raises(RuntimeError, match="and has none"):
        optimizer.step()


@pytest.mark.parametrize("order", ["plain first", "plain last"])
def test_a_plain_backward_beside_one_with_a_graph_still_is_an_error(order: str) -> None:
    model, optimizer = with_zero_gradients()
    feeds: list[Callable[[], None]] = [
        lambda: loss_of(model).backward(),
        lambda: without_target(model).backward(create_graph=True),
    ]
    for feed in feeds if order == "plain first" else reversed(feeds):
        feed()
    with pytest.raises(RuntimeError, match="and has none"):
        optimizer.step()


def test_a_plain_backward_that_was_cleared_is_no_error() -> None:
    """Of a step given up: its gradients are gone, and so is what it lacked."""
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


def test_another_optimizer_s_graphs_excuse_nothing() -> None:
    _, optimizer = with_zero_gradients()
    other = nn.Parameter(torch.ones(3))
    other.square().sum().backward(create_graph=True)
    with pytest.raises(RuntimeError, match="and has none"):
        optimizer.step()


def test_a_replaced_target_is_noticed_beside_zero_gradients() -> None:
    model, optimizer = with_zero_gradients()
    model[0].bias = nn.Parameter(model[0].bias.detach().clone())
    loss_of(model).backward(create_graph=True)
    with pytest.raises(RuntimeError, match=r"0\.1 is not in the loss's graph.*replaced"):
        optimizer.step()


@pytest.mark.parametrize("set_to_none", [True, False])
def test_a_miss_goes_with_the_gradients_of_its_step(set_to_none: bool) -> None:
    model, optimizer = with_zero_gradients()
    by_update(optimizer, without_target(model))
    # Skipped, as a GradScaler does. What comes next forgets the partial Hessian.
    optimizer.zero_grad(set_to_none)
    loss_of(model).backward()
    with pytest.raises(RuntimeError, match="and has none"):
        optimizer.step()
    train(model, optimizer, range(2))


@pytest.mark.parametrize("skipped", [False, True])
def test_a_miss_outlives_a_clearing_before_its_backward(skipped: bool) -> None:
    model, optimizer = with_zero_gradients()
    if skipped:
        by_update(optimizer, without_target(model))
    optimizer.update_hessian(without_target(model))
    optimizer.zero_grad(set_to_none=False)
    without_target(model).backward()
    optimizer.step()
    assert refreshed(model, optimizer) == ["1.weight"]
