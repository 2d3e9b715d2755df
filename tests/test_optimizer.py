"""The optimizer beyond Algorithm 1 itself: paths of a step, groups, multipliers."""

from __future__ import annotations

import copy
import math
from collections.abc import Iterator
from typing import Any

import pytest
import torch
from small import WAYS, assert_same_bits, bn_net, by_update, loss_of, train
from torch import nn
from torch.utils._python_dispatch import TorchDispatchMode

import sgdph
from sgdph import MultiplierStatistics


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64, torch.bfloat16])
@pytest.mark.parametrize(
    "settings",
    [{}, {"weight_decay": 0.01, "maximize": True}, {"momentum": 0.0}, {"refresh": "all"}],
    ids=str,
)
def test_foreach_and_single_tensor_agree(dtype: torch.dtype, settings: dict[str, Any]) -> None:
    models = bn_net(dtype), bn_net(dtype)
    for model, foreach in zip(models, (True, False), strict=True):
        optimizer = sgdph.SGDPH(sgdph.param_groups(model), foreach=foreach, **settings)
        train(model, optimizer, range(8))
    if dtype == torch.bfloat16:
        # torch._foreach_mul_ rounds its scalar to bfloat16, mul_ does not: torch.optim.SGD's two
        # paths differ as well.
        for p, q in zip(models[0].parameters(), models[1].parameters(), strict=True):
            torch.testing.assert_close(p, q, rtol=2**-6, atol=2**-8)
    else:
        assert_same_bits(*models)


class NoHostSync(TorchDispatchMode):
    """Raises an error where the host would have to read a tensor's value."""

    _SYNCS = ("aten._local_scalar_dense", "aten.nonzero", "aten.equal", "aten.is_nonzero")

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        assert not str(func).startswith(self._SYNCS), f"{func} waits for the device"
        return func(*args, **(kwargs or {}))


def test_the_guard_detects_a_host_sync() -> None:
    with NoHostSync(), pytest.raises(AssertionError, match="waits"):
        torch.ones(()).item()


@pytest.mark.parametrize("way", WAYS)
@pytest.mark.parametrize("foreach", [True, False])
@pytest.mark.parametrize("settings", [{}, {"refresh": "all"}, {"estimator": "hutchinson"}], ids=str)
def test_steps_make_no_host_sync(way: str, foreach: bool, settings: dict[str, Any]) -> None:
    model = bn_net()
    optimizer = sgdph.SGDPH(model.parameters(), foreach=foreach, **settings)
    for step in range(4):
        optimizer.zero_grad()
        loss = loss_of(model, step)
        with NoHostSync():
            WAYS[way](optimizer, loss)
            optimizer.step()


def test_all_hyperparameters_are_in_defaults_and_groups() -> None:
    optimizer = sgdph.SGDPH(bn_net().parameters())
    expected = {
        "lr": 1e-2,
        "momentum": 0.9,
        "weight_decay": 0.0,
        "second_order_lr": 1e-3,
        "hessian_momentum": 0.9,
        "eps": 1e-4,
        "estimator": "row_sum",
        "refresh": "cyclic",
        "hessian_interval": 1,
        "maximize": False,
        "foreach": None,
        "eps_warmup": False,
        "seed": 0,
    }
    for name, value in expected.items():
        assert optimizer.defaults[name] == value
        assert optimizer.param_groups[0][name] == value


def test_named_parameters() -> None:
    model = bn_net()
    optimizer = sgdph.SGDPH(model.named_parameters())
    assert set(optimizer.multipliers()) == {"0.bias", "1.weight", "1.bias"}
    twin = bn_net()
    other = sgdph.SGDPH(twin.parameters())
    train(model, optimizer, range(5))
    train(twin, other, range(5))
    assert_same_bits(model, twin)


def test_eps_warmup_can_be_switched_on_in_mid_run() -> None:
    model = bn_net()
    optimizer = sgdph.SGDPH(model.named_parameters(), hessian_momentum=0.8, eps=1e-2)
    train(model, optimizer, range(5))
    plain = optimizer.multipliers()["1.weight"]
    optimizer.param_groups[0]["eps_warmup"] = True
    average = optimizer.state[model[1].weight]["hessian"].abs()
    correction = 1 - 0.8**2
    torch.testing.assert_close(plain, 1e-3 / (average / correction + 1e-2))
    warm = optimizer.multipliers()["1.weight"]
    torch.testing.assert_close(warm, 1e-3 * correction / (average + 1e-2))


def test_multipliers_and_their_statistics() -> None:
    model = bn_net()
    settings = {"second_order_lr": 3e-3, "eps": 1e-2, "hessian_momentum": 0.8}
    optimizer = sgdph.SGDPH(model.named_parameters(), **settings)
    assert all(torch.equal(m, torch.ones_like(m)) for m in optimizer.multipliers().values())
    assert optimizer.multiplier_statistics()["1.bias"].refreshes == 0
    train(model, optimizer, range(5))  # 0.bias and 1.weight twice, 1.bias once
    state = optimizer.state[model[1].weight]
    corrected = state["hessian"].abs() / (1 - 0.8**2)
    expected = 3e-3 / (corrected + 1e-2)
    torch.testing.assert_close(optimizer.multipliers()["1.weight"], expected)
    statistics = optimizer.multiplier_statistics()["1.weight"]
    assert statistics.refreshes == 2
    assert math.isclose(statistics.min, expected.min().item(), rel_tol=1e-5)
    assert math.isclose(statistics.mean, expected.mean().item(), rel_tol=1e-5)
    assert math.isclose(statistics.median, expected.median().item(), rel_tol=1e-5)
    assert math.isclose(statistics.max, expected.max().item(), rel_tol=1e-5)
    assert statistics.max <= 3e-3 / 1e-2


class WithoutFloat64(torch.Tensor):
    """A tensor on a device without float64, such as Apple's: only the CPU can convert it."""

    @classmethod
    def __torch_function__(cls, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        result = super().__torch_function__(func, types, args, kwargs or {})
        if func is torch.Tensor.to and "cpu" in args:
            return result.as_subclass(torch.Tensor)
        if isinstance(result, torch.Tensor) and result.dtype == torch.float64:
            raise TypeError("the device doesn't support float64")
        return result


def test_statistics_work_on_devices_without_float64() -> None:
    on_device = torch.tensor([[3.0], [1.0], [2.0]]).as_subclass(WithoutFloat64)
    with pytest.raises(TypeError, match="float64"):
        on_device.double()
    found = MultiplierStatistics.of(on_device, torch.tensor(2.0))
    assert found == MultiplierStatistics(min=1.0, median=2.0, mean=2.0, max=3.0, refreshes=2)


def test_reading_multipliers_visits_each_parameter_only_a_few_times() -> None:
    """A search for each parameter's name would look at all the others each time."""

    class Counting(list[nn.Parameter]):
        looked = 0

        def __iter__(self) -> Iterator[nn.Parameter]:
            for p in super().__iter__():
                type(self).looked += 1
                yield p

    count = 200
    optimizer = sgdph.SGDPH([nn.Parameter(torch.ones(1)) for _ in range(count)])
    optimizer.param_groups[0]["params"] = Counting(optimizer.param_groups[0]["params"])
    for read in (optimizer.multipliers, optimizer.multiplier_statistics):
        Counting.looked = 0
        assert len(read()) == count - 1
        assert Counting.looked <= 10 * count


@pytest.mark.parametrize("tau", [1e-3, torch.tensor(1e-3)], ids=["number", "tensor"])
def test_multipliers_follow_a_schedule_of_tau(tau: Any) -> None:
    model = bn_net()
    optimizer = sgdph.SGDPH(model.named_parameters(), second_order_lr=copy.copy(tau))
    train(model, optimizer, range(3))
    before = optimizer.multipliers()["1.bias"]
    optimizer.param_groups[0]["second_order_lr"] *= 2
    torch.testing.assert_close(optimizer.multipliers()["1.bias"], 2 * before)


def test_writing_into_the_returned_multipliers_changes_nothing() -> None:
    model = bn_net()
    optimizer = sgdph.SGDPH(model.named_parameters())
    train(model, optimizer, range(3))
    twin, other = copy.deepcopy((model, optimizer))
    for multiplier in optimizer.multipliers().values():
        multiplier.zero_()
    train(model, optimizer, range(3, 6))
    train(twin, other, range(3, 6))
    assert_same_bits(model, twin)


def test_weight_decay_by_role() -> None:
    """Weights decay through their gradient; channel-wise parameters have no decay here."""
    model = bn_net(torch.float64)
    groups = sgdph.param_groups(model, weight_decay=0.1, channelwise_weight_decay=0.0)
    optimizer = sgdph.SGDPH(groups, lr=0.5)
    by_update(optimizer, loss_of(model))
    before = {name: p.detach().clone() for name, p in model.named_parameters()}
    gradients = {name: p.grad for name, p in model.named_parameters()}
    optimizer.step()
    after = dict(model.named_parameters())
    # Not refreshed yet, or first-order: the plain step, without decay.
    for name in ("1.weight", "1.bias", "4.bias"):
        torch.testing.assert_close(after[name].detach(), before[name] - 0.5 * gradients[name])
    expected = before["4.weight"] - 0.5 * (gradients["4.weight"] + 0.1 * before["4.weight"])
    torch.testing.assert_close(after["4.weight"].detach(), expected)


def test_with_an_interval_every_newton_parameter_is_refreshed() -> None:
    model = bn_net()
    optimizer = sgdph.SGDPH(model.named_parameters(), hessian_interval=3)
    train(model, optimizer, range(9))
    counts = {name: s.refreshes for name, s in optimizer.multiplier_statistics().items()}
    assert counts == {"0.bias": 1, "1.weight": 1, "1.bias": 1}


def test_a_group_added_later_trains_and_can_be_copied() -> None:
    model = bn_net()
    extra = nn.BatchNorm1d(3)
    optimizer = sgdph.SGDPH(model.parameters())
    train(model, optimizer, range(2))
    optimizer.add_param_group({"params": extra.parameters(), "second_order_lr": 1e-2})
    whole = nn.Sequential(*model, extra)
    train(whole, optimizer, range(2, 7))
    assert optimizer.multiplier_statistics()["1.0"].refreshes == 1
    twin, other = copy.deepcopy((whole, optimizer))
    train(whole, optimizer, range(7, 14))
    train(twin, other, range(7, 14))
    assert_same_bits(whole, twin)


@pytest.mark.parametrize("how", ["loaded", "set"])
def test_a_group_added_later_takes_the_settings_of_the_others(how: str) -> None:
    model, head = bn_net(), nn.Linear(3, 3)
    settings = {"hessian_interval": 4, "estimator": "hutchinson", "seed": 7}
    optimizer = sgdph.SGDPH(model.parameters())
    if how == "loaded":
        optimizer.load_state_dict(sgdph.SGDPH(model.parameters(), **settings).state_dict())
    else:
        optimizer.param_groups[0].update(settings)
    optimizer.add_param_group({"params": head.parameters()})
    assert {name: optimizer.param_groups[1][name] for name in settings} == settings
    train(nn.Sequential(*model, head), optimizer, range(6))


def test_closure_returns_the_loss() -> None:
    model = bn_net()
    optimizer = sgdph.SGDPH(model.parameters())

    def closure() -> torch.Tensor:
        optimizer.zero_grad()
        loss = loss_of(model)
        optimizer.backward(loss)
        return loss

    before = loss_of(model)
    with torch.no_grad():
        first = optimizer.step(closure)
        last = first
        for _ in range(20):
            last = optimizer.step(closure)
    torch.testing.assert_close(first, before)
    assert last < first


def test_loss_scale_in_step_undoes_the_scale_of_create_graph() -> None:
    models = bn_net(torch.float64), bn_net(torch.float64)
    for model, scale in zip(models, (1.0, 64.0), strict=True):
        optimizer = sgdph.SGDPH(model.parameters())
        for step in range(4):
            optimizer.zero_grad()
            (scale * loss_of(model, step)).backward(create_graph=True)
            with torch.no_grad():
                for p in model.parameters():
                    p.grad = p.grad / scale
            optimizer.step(loss_scale=scale)
    for p, q in zip(models[0].parameters(), models[1].parameters(), strict=True):
        torch.testing.assert_close(p, q, rtol=0, atol=1e-12)


def test_low_memory_gives_the_same_bits() -> None:
    models = bn_net(), bn_net()
    for model, low_memory in zip(models, (True, False), strict=True):
        optimizer = sgdph.SGDPH(model.parameters())
        for step in range(4):
            optimizer.zero_grad()
            optimizer.backward(loss_of(model, step), low_memory=low_memory)
            optimizer.step()
    assert_same_bits(*models)
