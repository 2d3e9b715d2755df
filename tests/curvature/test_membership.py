"""Parameters replaced inside the groups without telling the optimizer."""

from __future__ import annotations

import copy
import pickle
from typing import Any

import pytest
import torch
from small import WAYS, assert_same_bits, bn_net, by_update, loss_of, train
from torch import nn

import sgdph


def exchange_scale(model: nn.Sequential, optimizer: sgdph.SGDPH) -> nn.Parameter:
    """Net surgery: replace the scale in the model and in the group; return the old one."""
    old = model[1].weight
    model[1].weight = nn.Parameter(old.detach().clone())
    params = optimizer.param_groups[0]["params"]
    params[next(i for i, p in enumerate(params) if p is old)] = model[1].weight
    return old


@pytest.mark.parametrize("way", WAYS)
@pytest.mark.parametrize("trained", [0, 1, 2])
@pytest.mark.parametrize("settings", [{}, {"refresh": "all"}], ids=str)
def test_a_replaced_newton_parameter_raises_an_error_that_names_it(
    way: str, trained: int, settings: dict[str, str]
) -> None:
    model = bn_net()
    optimizer = sgdph.SGDPH(model.named_parameters(), **settings)  # type: ignore[arg-type]
    train(model, optimizer, range(trained), WAYS[way])
    exchange_scale(model, optimizer)
    before = copy.deepcopy(model.state_dict())
    # Whichever parameter is next: the new one would silently train first-order.
    with pytest.raises(
        RuntimeError, match=r"1\.weight.*is in none of them.*\(4,\).*Build a new optimizer"
    ):
        train(model, optimizer, range(trained, trained + 1), WAYS[way])
    for name, p in model.named_parameters():
        assert torch.equal(p, before[name])
    assert optimizer.param_groups[0]["step"] == trained


def test_a_step_without_refresh_raises_the_error_too() -> None:
    model = bn_net()
    optimizer = sgdph.SGDPH(model.parameters(), hessian_interval=5)
    train(model, optimizer, range(1))
    exchange_scale(model, optimizer)
    with pytest.raises(RuntimeError, match=r"0\.2.*is in none of them"):
        train(model, optimizer, range(1, 2))


def test_a_step_that_only_creates_the_state_raises_the_error_too() -> None:
    # As torch.distributed.checkpoint does: zero gradients, a learning rate of 0.
    model = bn_net()
    optimizer = sgdph.SGDPH(model.parameters(), lr=0.0)
    exchange_scale(model, optimizer)
    for p in model.parameters():
        p.grad = torch.zeros_like(p)
    with pytest.raises(RuntimeError, match=r"0\.2.*is in none of them"):
        optimizer.step()
    assert not optimizer.state


def test_a_group_added_by_hand_raises_an_error() -> None:
    model = bn_net()
    optimizer = sgdph.SGDPH(model.parameters())
    optimizer.param_groups.append({"params": [nn.Parameter(torch.ones(4))], "lr": 0.1})
    with pytest.raises(ValueError, match="estimator must be the same in all groups"):
        optimizer.backward(loss_of(model))
    loss_of(model).backward()
    with pytest.raises(RuntimeError, match="changed by hand"):
        optimizer.step()


def test_multipliers_raise_the_error_too() -> None:
    model = bn_net()
    optimizer = sgdph.SGDPH(model.parameters())
    exchange_scale(model, optimizer)
    for read in (optimizer.multipliers, optimizer.multiplier_statistics):
        with pytest.raises(RuntimeError, match=r"0\.2.*is in none of them"):
            read()


def test_differences_of_gradients_raise_the_error_too() -> None:
    model = bn_net()
    optimizer = sgdph.SGDPH(model.parameters())
    exchange_scale(model, optimizer)
    with pytest.raises(RuntimeError, match=r"0\.2.*is in none of them"):
        optimizer.update_hessian(closure=lambda: loss_of(model))


def test_after_restoring_the_old_parameter_training_continues() -> None:
    model = bn_net()
    optimizer = sgdph.SGDPH(model.parameters())
    old = exchange_scale(model, optimizer)
    with pytest.raises(RuntimeError):
        train(model, optimizer, range(1))
    optimizer.param_groups[0]["params"][2] = old
    optimizer.add_param_group({"params": [model[1].weight]})
    # There are four Newton parameters now, and the refresh of the old one has no effect.
    train(model, optimizer, range(4))
    assert optimizer.multiplier_statistics()["1.0"].refreshes == 1
    assert optimizer.multiplier_statistics()["0.2"].refreshes == 0


def test_the_error_for_an_unknown_parameter_names_add_param_group() -> None:
    model, extra = bn_net(), nn.Parameter(torch.ones(3))
    optimizer = sgdph.SGDPH(model.parameters())
    train(model, optimizer, range(1))
    optimizer.param_groups[0]["params"].append(extra)
    with pytest.raises(RuntimeError, match=r"\(3,\).*unknown.*add_param_group"):
        train(model, optimizer, range(1, 2))


def test_first_order_parameters_may_be_replaced() -> None:
    """As in torch's optimizers. No role is lost. Accelerate does this under FSDP2."""
    models = bn_net(), bn_net()
    for model, exchanged in zip(models, (True, False), strict=True):
        optimizer = sgdph.SGDPH(sgdph.param_groups(model), momentum=0.0)
        train(model, optimizer, range(2))
        if exchanged:
            for name in ("weight", "bias"):
                old = getattr(model[4], name)
                new = nn.Parameter(old.detach().clone())
                setattr(model[4], name, new)
                for group in optimizer.param_groups:
                    group["params"] = [new if p is old else p for p in group["params"]]
        train(model, optimizer, range(2, 6))
    assert_same_bits(*models)


def test_a_parameter_moved_to_another_group_keeps_its_role() -> None:
    model = bn_net()
    optimizer = sgdph.SGDPH(model.parameters())
    params = optimizer.param_groups[0]["params"]
    later = {**optimizer.param_groups[0], "params": [params.pop(2)], "lr": 0.5}
    optimizer.param_groups.append(later)
    train(model, optimizer, range(3))
    assert optimizer.multiplier_statistics()["1.0"].refreshes == 1


@pytest.mark.parametrize("how", ["deepcopy", "pickle", "load_state_dict"])
def test_copying_or_loading_is_not_taken_for_a_replacement(how: str) -> None:
    model = bn_net()
    optimizer = sgdph.SGDPH(model.parameters())
    train(model, optimizer, range(2))
    pair = (model, optimizer)
    if how == "load_state_dict":
        optimizer.load_state_dict(copy.deepcopy(optimizer.state_dict()))
    else:
        pair = copy.deepcopy(pair) if how == "deepcopy" else pickle.loads(pickle.dumps(pair))
    train(*pair, range(2, 6))
    # A replacement afterwards still raises the error.
    exchange_scale(*pair)
    with pytest.raises(RuntimeError, match=r"0\.2.*is in none of them"):
        by_update(pair[1], loss_of(pair[0]))


@pytest.mark.parametrize("way", WAYS)
@pytest.mark.parametrize("refresh", ["cyclic", "all"])
@pytest.mark.parametrize("first", ["reached", "missed", "absent"])
@pytest.mark.parametrize("wrapped", [False, True])
def test_a_parameter_that_joins_between_micro_batches_waits_for_the_next_step(
    wrapped: bool, first: str, refresh: str, way: str
) -> None:
    """Its gradient is that of two micro-batches, and its curvature would be that of the second."""
    model = bn_net()
    own = {"reached": model[1].weight, "missed": nn.Parameter(torch.ones(5)), "absent": None}[first]
    groups = [{"params": [] if own is None else [own], "channelwise": True}]
    settings: dict[str, Any] = {"refresh": refresh, "lr": 0.0}
    optimizer: sgdph.SGDPH | sgdph.PartialHessian
    if wrapped:
        adamw = torch.optim.AdamW([model[0].weight], lr=0.0)
        optimizer = sgdph.PartialHessian(adamw, groups, **settings)
    else:
        groups.append({"params": [model[0].weight], "channelwise": False})
        optimizer = sgdph.SGDPH(groups, **settings)
    WAYS[way](optimizer, loss_of(model, 0) / 2)
    optimizer.add_param_group({"params": [model[1].bias], "channelwise": True})
    WAYS[way](optimizer, loss_of(model, 1) / 2)
    optimizer.step()
    assert "hessian" not in optimizer.state[model[1].bias]
    assert ("hessian" in optimizer.state.get(own, {})) is (first == "reached")  # type: ignore[call-overload]
    # With two reached parameters and refresh="cyclic", it is its turn in one of two steps.
    for step in (2, 3):
        optimizer.zero_grad()
        WAYS[way](optimizer, loss_of(model, step))
        optimizer.step()
    assert int(optimizer.state[model[1].bias]["refreshes"]) == (
        1 if refresh == "cyclic" and first == "reached" else 2
    )


@pytest.mark.parametrize("way", WAYS)
def test_a_parameter_that_joins_after_a_step_is_refreshed_at_once(way: str) -> None:
    model = bn_net()
    optimizer = sgdph.SGDPH([{"params": [model[1].weight], "channelwise": True}], refresh="all")
    WAYS[way](optimizer, loss_of(model, 0))
    optimizer.step()
    model[1].bias.grad = None
    optimizer.add_param_group({"params": [model[1].bias], "channelwise": True})
    optimizer.zero_grad()
    WAYS[way](optimizer, loss_of(model, 1))
    optimizer.step()
    assert int(optimizer.state[model[1].bias]["refreshes"]) == 1
