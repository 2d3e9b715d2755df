"""Compiled models train by the documented routes, each as the uncompiled model does."""

from __future__ import annotations

import copy
from collections.abc import Callable
from typing import Any

import pytest
import torch
import torch._dynamo
from small import assert_same_bits, bn_net, loss_of
from torch import nn

import sgdph

# torch's compiled autograd without a compiler of C++, which takes half a minute.
BACKEND = "aot_eager"

Route = Callable[[sgdph.SGDPH, nn.Module, nn.Module, int], None]


def by_stance(optimizer: sgdph.SGDPH, model: nn.Module, compiled: nn.Module, step: int) -> None:
    stance = "force_eager" if optimizer.hessian_due else "default"
    with torch.compiler.set_stance(stance):
        optimizer.backward(loss_of(compiled, step))


def by_uncompiled_loss(
    optimizer: sgdph.SGDPH, model: nn.Module, compiled: nn.Module, step: int
) -> None:
    optimizer.backward(loss_of(model if optimizer.hessian_due else compiled, step))


ROUTES: dict[str, Route] = {"stance": by_stance, "uncompiled": by_uncompiled_loss}


@pytest.fixture(autouse=True)
def _forget_what_was_compiled() -> None:
    torch._dynamo.reset()


@pytest.mark.parametrize("route", ROUTES.values(), ids=ROUTES)
@pytest.mark.parametrize("in_place", [False, True], ids=["torch.compile", "module.compile"])
def test_a_route_equals_the_uncompiled_model(route: Route, in_place: bool) -> None:
    model = bn_net()
    plain = copy.deepcopy(model)
    raw = model
    if in_place:
        # module.compile() has no uncompiled twin: its forward is one.
        model.compile(backend=BACKEND)
        compiled, raw = model, nn.Sequential(*model) if route is by_uncompiled_loss else model
    else:
        compiled = torch.compile(model, backend=BACKEND)
    optimizer = sgdph.SGDPH(sgdph.param_groups(compiled), hessian_interval=2)
    expected = sgdph.SGDPH(sgdph.param_groups(plain), hessian_interval=2)
    for step in range(6):
        optimizer.zero_grad()
        expected.zero_grad()
        route(optimizer, raw, compiled, step)
        expected.backward(loss_of(plain, step))
        optimizer.step()
        expected.step()
    assert len(optimizer.multipliers()) == len(expected.multipliers()) == 3
    for (name, p), q in zip(model.state_dict().items(), plain.state_dict().values(), strict=True):
        torch.testing.assert_close(p, q, rtol=1e-5, atol=1e-6, msg=name)


def test_without_a_route_the_error_names_them() -> None:
    model = bn_net()
    compiled = torch.compile(model, backend=BACKEND)
    optimizer = sgdph.SGDPH(sgdph.param_groups(model))
    with pytest.raises(RuntimeError, match=r"force_eager.*update_hessian\(closure=\.\.\.\)"):
        optimizer.backward(loss_of(compiled))


@pytest.mark.parametrize("backend", ["eager", BACKEND])
@pytest.mark.parametrize(
    "settings",
    [
        {"momentum": 0.9, "weight_decay": 1e-2},
        {"momentum": 0.0, "refresh": "all"},
        {"estimator": "hutchinson", "hessian_interval": 2, "foreach": True},
    ],
    ids=str,
)
def test_a_compiled_step_is_the_uncompiled_one(backend: str, settings: dict[str, Any]) -> None:
    """As are the optimizer's other methods; torch.optim.SGD's can be compiled as well."""
    models = bn_net(), bn_net()
    for model, compiled in zip(models, (True, False), strict=True):
        optimizer = sgdph.SGDPH(sgdph.param_groups(model), lr=0.1, **settings)
        schedule = torch.optim.lr_scheduler.StepLR(optimizer, 3, 0.5)
        methods = [optimizer.zero_grad, optimizer.update_hessian, optimizer.backward]
        methods.append(optimizer.step)
        if compiled:
            methods = [torch.compile(method, backend=backend) for method in methods]
        zero_grad, update_hessian, backward, step = methods
        for i in range(8):
            zero_grad()
            loss = loss_of(model, i)
            if i % 2:
                update_hessian(loss)
                loss.backward()
            else:
                backward(loss)
            step()
            schedule.step()
    assert_same_bits(*models)


def test_a_compiled_step_is_not_traced() -> None:
    # Its turns would have it compiled anew, until torch gives up.
    model = bn_net()
    optimizer = sgdph.SGDPH(sgdph.param_groups(model))
    seen = []
    step = torch.compile(optimizer.step, backend=lambda graph, _: seen.append(graph) or graph)
    for i in range(6):
        optimizer.zero_grad()
        optimizer.backward(loss_of(model, i))
        step()
    assert not seen
