"""Saving, loading, copying: a resumed run equals the uninterrupted one, bit for bit."""

from __future__ import annotations

import copy
import pickle
from collections.abc import Callable
from typing import Any

import pytest
import torch
from small import WAYS, assert_same_bits, bn_net, by_update, loss_of, stored, train
from torch import nn

import sgdph

SETTINGS: list[dict[str, Any]] = [
    {},
    {"estimator": "hutchinson", "seed": 3},
    {"estimator": "hutchinson", "refresh": "all", "hessian_momentum": 0.99},
    {"estimator": "exact", "hessian_interval": 3},
    {"momentum": 0.0, "refresh": "all"},
    {"foreach": True, "weight_decay": 1e-2},
]


@pytest.mark.parametrize("settings", SETTINGS, ids=str)
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_resumed_run_equals_uninterrupted_one(settings: dict[str, Any], dtype: torch.dtype) -> None:
    whole = bn_net(dtype)
    optimizer = sgdph.SGDPH(whole.parameters(), **settings)
    # 7 steps: neither at the start of a cycle over 3 parameters nor of an interval of 3.
    train(whole, optimizer, range(7))
    saved = stored({"model": whole.state_dict(), "optimizer": optimizer.state_dict()})
    train(whole, optimizer, range(7, 16))

    resumed = bn_net(dtype, seed=99)
    optimizer = sgdph.SGDPH(resumed.parameters(), **settings)
    resumed.load_state_dict(saved["model"])
    optimizer.load_state_dict(saved["optimizer"])
    train(resumed, optimizer, range(7, 16))
    assert_same_bits(whole, resumed)


def test_settings_are_loaded_with_the_state() -> None:
    first = sgdph.SGDPH(bn_net().parameters(), lr=0.3, second_order_lr=0.5, hessian_interval=4)
    second = sgdph.SGDPH(bn_net().parameters())
    second.load_state_dict(first.state_dict())
    group = second.param_groups[0]
    assert (group["lr"], group["second_order_lr"], group["hessian_interval"]) == (0.3, 0.5, 4)


def test_average_of_bfloat16_parameters_stays_float32() -> None:
    model = bn_net(torch.bfloat16)
    optimizer = sgdph.SGDPH(model.parameters())
    train(model, optimizer, range(9))
    state = optimizer.state[model[1].weight]
    assert state["hessian"].dtype == torch.float32
    assert not torch.equal(state["hessian"], state["hessian"].bfloat16().float())
    loaded = sgdph.SGDPH(model.parameters())
    loaded.load_state_dict(stored(optimizer.state_dict()))
    assert torch.equal(loaded.state[model[1].weight]["hessian"], state["hessian"])
    assert loaded.state[model[1].weight]["hessian"].dtype == torch.float32
    assert loaded.state[model[1].weight]["momentum_buffer"].dtype == torch.bfloat16


def test_loading_shares_no_memory() -> None:
    model = bn_net()
    optimizer = sgdph.SGDPH(model.parameters())
    train(model, optimizer, range(4))
    twin = copy.deepcopy(model)
    other = sgdph.SGDPH(twin.parameters())
    other.load_state_dict(optimizer.state_dict())
    train(model, optimizer, range(4, 9))
    train(twin, other, range(4, 9))
    assert_same_bits(model, twin)


@pytest.mark.parametrize("how", ["deepcopy", "pickle"])
def test_copies_train_to_the_same_bits(how: str) -> None:
    model = bn_net()
    settings = {"estimator": "hutchinson", "hessian_interval": 2}
    optimizer = sgdph.SGDPH(sgdph.param_groups(model), **settings)
    train(model, optimizer, range(5))
    pair = (model, optimizer)
    twin, other = copy.deepcopy(pair) if how == "deepcopy" else pickle.loads(pickle.dumps(pair))
    assert twin is not model
    for feed in WAYS.values():
        train(model, optimizer, range(5, 10), feed)
        train(twin, other, range(5, 10), feed)
    assert_same_bits(model, twin)


@pytest.mark.parametrize(
    "copied", [copy.deepcopy, copy.copy, lambda o: pickle.loads(pickle.dumps(o))]
)
def test_copies_keep_the_channelwise_flags(copied: Callable[[sgdph.SGDPH], sgdph.SGDPH]) -> None:
    optimizer = sgdph.SGDPH(sgdph.param_groups(bn_net()))
    flags = [group["channelwise"] for group in optimizer.param_groups]
    assert set(flags) == {True, False}
    twin = copied(optimizer)
    assert [group["channelwise"] for group in twin.param_groups] == flags
    assert [group["channelwise"] for group in optimizer.param_groups] == flags


def test_loading_does_not_change_the_channelwise_flag() -> None:
    model = bn_net()
    shapes = sgdph.SGDPH(model.parameters())
    flagged = sgdph.SGDPH([{"params": list(model.parameters()), "channelwise": False}])
    older = shapes.state_dict()
    older["param_groups"][0]["channelwise"] = None
    flagged.load_state_dict(older)
    assert flagged.param_groups[0]["channelwise"] is False


def test_older_state_without_newer_keys_loads() -> None:
    model = bn_net()
    optimizer = sgdph.SGDPH(model.parameters(), seed=5, eps=1e-3)
    train(model, optimizer, range(3))
    old = optimizer.state_dict()
    for group in old["param_groups"]:
        for key in ("seed", "eps", "refreshes", "channelwise", "foreach", "cursor"):
            del group[key]
    fresh = sgdph.SGDPH(model.parameters(), seed=5, eps=1e-3)
    fresh.load_state_dict(old)
    assert fresh.param_groups[0]["eps"] == 1e-3
    train(model, fresh, range(3, 6))


def test_sgd_state_is_a_warm_start() -> None:
    model = bn_net()
    sgd = torch.optim.SGD(model.parameters(), lr=0.05, momentum=0.9)
    for step in range(4):
        sgd.zero_grad()
        loss_of(model, step).backward()
        sgd.step()
    optimizer = sgdph.SGDPH(model.parameters(), second_order_lr=2e-3)
    optimizer.load_state_dict(stored(sgd.state_dict()))
    for p in model.parameters():
        kept = optimizer.state[p]["momentum_buffer"]
        assert torch.equal(kept, sgd.state[p]["momentum_buffer"])
    assert optimizer.param_groups[0]["lr"] == 0.05
    assert optimizer.param_groups[0]["second_order_lr"] == 2e-3
    before = model[4].weight.detach().clone()
    optimizer.zero_grad()
    by_update(optimizer, loss_of(model, 4))
    gradient = model[4].weight.grad
    assert gradient is not None
    expected = before - 0.05 * (0.9 * sgd.state[model[4].weight]["momentum_buffer"] + gradient)
    optimizer.step()
    torch.testing.assert_close(model[4].weight.detach(), expected)


def test_sgd_state_without_momentum_loads() -> None:
    model = bn_net()
    sgd = torch.optim.SGD(model.parameters(), lr=0.05)
    loss_of(model).backward()
    sgd.step()
    optimizer = sgdph.SGDPH(model.parameters())
    optimizer.load_state_dict(sgd.state_dict())
    optimizer.param_groups[0]["momentum"] = 0.9
    train(model, optimizer, range(3))


@pytest.mark.parametrize("setting", [{"nesterov": True}, {"dampening": 0.3}])
def test_loading_an_sgd_state_takes_over_nesterov_and_dampening(setting: dict[str, Any]) -> None:
    model = bn_net()
    sgd = torch.optim.SGD(model.parameters(), lr=0.05, momentum=0.9, **setting)
    loss_of(model).backward()
    sgd.step()
    twin = copy.deepcopy(model)
    optimizer = sgdph.SGDPH([{"params": twin.parameters(), "channelwise": False}])
    optimizer.load_state_dict(sgd.state_dict())
    for each, its_optimizer in ((model, sgd), (twin, optimizer)):
        its_optimizer.zero_grad()
        loss_of(each).backward()
        its_optimizer.step()
    assert all(
        torch.equal(p, q) for p, q in zip(model.parameters(), twin.parameters(), strict=True)
    )


def test_a_bad_state_raises_an_error_and_changes_nothing() -> None:
    model = bn_net()
    optimizer = sgdph.SGDPH(model.parameters())
    train(model, optimizer, range(3))
    bad = copy.deepcopy(optimizer.state_dict())
    bad["param_groups"][0]["estimator"] = "guess"
    twin, other = copy.deepcopy((model, optimizer))
    with pytest.raises(ValueError, match="guess"):
        optimizer.load_state_dict(bad)
    train(model, optimizer, range(3, 6))
    train(twin, other, range(3, 6))
    assert_same_bits(model, twin)


def test_a_users_load_hook_is_called() -> None:
    model = bn_net()
    optimizer = sgdph.SGDPH(model.parameters())
    train(model, optimizer, range(3))
    renamed = {"inside": optimizer.state_dict(), "state": {}, "param_groups": []}
    loaded = sgdph.SGDPH(model.parameters())
    loaded.register_load_state_dict_pre_hook(lambda _, saved: saved["inside"])
    loaded.load_state_dict(renamed)
    weight = model[1].weight
    assert torch.equal(loaded.state[weight]["hessian"], optimizer.state[weight]["hessian"])


def test_loading_drops_pending_curvature() -> None:
    model = bn_net()
    optimizer = sgdph.SGDPH(model.parameters())
    optimizer.update_hessian(loss_of(model))
    optimizer.load_state_dict(optimizer.state_dict())
    loss_of(model).backward()
    with pytest.raises(RuntimeError, match="and has none"):
        optimizer.step()


def test_clearing_the_state_restarts_the_optimizer() -> None:
    model = bn_net()
    optimizer = sgdph.SGDPH(model.parameters())
    train(model, optimizer, range(6))
    optimizer.state.clear()
    assert all((m == 1).all() for m in optimizer.multipliers().values())
    twin = copy.deepcopy(model)
    fresh = sgdph.SGDPH(twin.parameters())
    train(model, optimizer, range(6, 12))
    train(twin, fresh, range(6, 12))
    assert_same_bits(model, twin)


@pytest.mark.parametrize("replaced", [True, False])
def test_multipliers_use_an_average_that_the_user_changed(replaced: bool) -> None:
    model = bn_net()
    optimizer = sgdph.SGDPH(model.parameters(), second_order_lr=1.0, eps=1.0)
    train(model, optimizer, range(4))
    assert any((m != 1).all() for m in optimizer.multipliers().values())
    for p in optimizer._curvature.cycle.newton:
        average = optimizer.state[p]["hessian"]
        if replaced:
            optimizer.state[p]["hessian"] = torch.zeros_like(average)
        else:
            average.zero_()
    assert all((m == 1).all() for m in optimizer.multipliers().values())


def test_multipliers_follow_a_conversion_of_the_dtype() -> None:
    model = bn_net()
    optimizer = sgdph.SGDPH(model.parameters())
    assert all(m.dtype == torch.float32 for m in optimizer.multipliers().values())
    model.double()
    assert all(m.dtype == torch.float64 for m in optimizer.multipliers().values())


def test_a_model_converted_before_training_trains() -> None:
    model = bn_net(torch.float32)
    optimizer = sgdph.SGDPH(model.parameters())
    model.double()
    for feed in WAYS.values():
        train(model, optimizer, range(4), feed)
    assert optimizer.state[model[1].weight]["hessian"].dtype == torch.float64


def test_converting_in_mid_training_raises_until_the_state_is_reloaded() -> None:
    model = bn_net(torch.float32)
    optimizer = sgdph.SGDPH(model.parameters())
    train(model, optimizer, range(4))
    model.double()
    before = copy.deepcopy(model.state_dict())
    with pytest.raises(RuntimeError, match=r"model\.to"):
        train(model, optimizer, range(4, 5))
    for name in ("0.weight", "1.weight"):
        assert torch.equal(before[name], model.state_dict()[name])
    optimizer.load_state_dict(optimizer.state_dict())
    train(model, optimizer, range(4, 9))


def test_replaced_parameters_raise_an_error() -> None:
    torch.__future__.set_overwrite_module_params_on_conversion(True)
    try:
        model = bn_net(torch.float32)
        optimizer = sgdph.SGDPH(model.parameters())
        model.double()
    finally:
        torch.__future__.set_overwrite_module_params_on_conversion(False)
    with pytest.raises(RuntimeError, match="none of this optimizer's parameters"):
        optimizer.update_hessian(loss_of(model))


@pytest.mark.parametrize("way", WAYS)
@pytest.mark.parametrize("trained", [0, 4])
def test_folding_weight_norm_after_construction_raises_an_error(way: str, trained: int) -> None:
    model = bn_net()
    nn.utils.parametrizations.weight_norm(model[0])
    optimizer = sgdph.SGDPH(sgdph.param_groups(model))
    train(model, optimizer, range(trained), WAYS[way])
    nn.utils.parametrize.remove_parametrizations(model[0], "weight")
    # The cycle has four parameters: one of these steps needs the length that was removed.
    with pytest.raises(RuntimeError, match=r"original0.*replaced"):
        train(model, optimizer, range(trained, trained + 4), WAYS[way])


def test_a_second_network_in_the_loss_raises_no_error() -> None:
    model, other = bn_net(), bn_net(seed=1)
    optimizer = sgdph.SGDPH(model.parameters())
    optimizer.zero_grad()
    by_update(optimizer, loss_of(model) + loss_of(other))
    optimizer.step()
    # Now the next parameter is not in the loss, but others of the same shape are.
    optimizer.zero_grad()
    by_update(optimizer, model[4].weight.square().sum() + loss_of(other))
    optimizer.step()


@pytest.mark.parametrize("stepped", [False, True])
@pytest.mark.parametrize("name", ["Adam", "AdamW", "RMSprop", "Adadelta", "Muon"])
def test_a_state_of_another_optimizer_raises_an_error(name: str, stepped: bool) -> None:
    """Its eps would be taken for SGDPH's, which caps the multipliers."""
    if not hasattr(torch.optim, name):
        pytest.skip(f"this torch has no {name}")
    weight = nn.Parameter(torch.ones(4, 3))
    other = getattr(torch.optim, name)([weight])
    if stepped:
        weight.square().sum().backward()
        other.step()
    optimizer = sgdph.SGDPH([{"params": [weight], "channelwise": False}])
    with pytest.raises(ValueError, match=r"another optimizer's.*sgdph\.PartialHessian"):
        optimizer.load_state_dict(other.state_dict())
    assert optimizer.param_groups[0]["eps"] == sgdph.SGDPH([weight]).defaults["eps"]
