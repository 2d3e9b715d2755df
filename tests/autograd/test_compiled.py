"""Compiled models, trained by each documented route, equal the uncompiled model."""

from __future__ import annotations

import copy
from collections.abc import Callable
from typing import Any

import pytest
import torch
import torch._dynamo
from pairwise import pairwise
from small import WAYS, assert_same_bits, bn_net, loss_of
from torch import Tensor, nn
from torch.nn import functional

import sgdph

# It uses torch's compiled autograd, but no C++ compiler, which would take half a minute.
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
def test_each_route_equals_the_uncompiled_model(route: Route, in_place: bool) -> None:
    model = bn_net()
    plain = copy.deepcopy(model)
    raw = model
    if in_place:
        # module.compile() works in place. A new Sequential of the same layers is not compiled.
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


def test_without_a_route_the_error_names_the_routes() -> None:
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
def test_compiled_optimizer_methods_equal_uncompiled_ones(
    backend: str, settings: dict[str, Any]
) -> None:
    """The methods of torch.optim.SGD can be compiled too."""
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
    # Each step refreshes another parameter, so torch would recompile it until it gives up.
    model = bn_net()
    optimizer = sgdph.SGDPH(sgdph.param_groups(model))
    seen = []
    step = torch.compile(optimizer.step, backend=lambda graph, _: seen.append(graph) or graph)
    for i in range(6):
        optimizer.zero_grad()
        optimizer.backward(loss_of(model, i))
        step()
    assert not seen


class WithLoss(nn.Module):
    """A module that returns its loss."""

    def __init__(self, model: nn.Module) -> None:
        super().__init__()
        self.model = model

    def forward(self, x: Tensor, y: Tensor) -> Tensor:
        return functional.cross_entropy(self.model(x), y)


def norm_net() -> nn.Sequential:
    torch.manual_seed(0)
    return nn.Sequential(nn.Linear(4, 6), nn.LayerNorm(6), nn.SiLU(), nn.Linear(6, 3))


X, Y = torch.linspace(-1, 1, 64).reshape(16, 4), torch.arange(16) % 3


def whole(model: nn.Module, backend: str) -> Tensor:
    loss: Tensor = torch.compile(WithLoss(model), backend=backend)(X, Y)
    return loss


def cross_entropy_alone(model: nn.Module, backend: str) -> Tensor:
    loss: Tensor = torch.compile(lambda z: functional.cross_entropy(z, Y), backend=backend)(
        model(X)
    )
    return loss


def squared_error_alone(model: nn.Module, backend: str) -> Tensor:
    loss: Tensor = torch.compile(lambda z: z.square().mean(), backend=backend)(model(X))
    return loss


def first_layers_alone(model: nn.Module, backend: str) -> Tensor:
    assert isinstance(model, nn.Sequential)
    compiled = torch.compile(model[:3], backend=backend)
    return functional.cross_entropy(model[3](compiled(X)), Y)


LOSSES = [whole, cross_entropy_alone, squared_error_alone, first_layers_alone]


@pairwise(loss_of=LOSSES, way=WAYS, name=["0.bias", "1.weight", "1.bias"])
def test_compiled_code_between_loss_and_parameter_raises_an_error(
    loss_of: Callable[[nn.Module, str], Tensor], way: str, name: str
) -> None:
    model = norm_net()
    p = model.get_parameter(name)
    optimizer = sgdph.SGDPH([{"params": [p], "channelwise": True}])

    def step() -> None:
        WAYS[way](optimizer, loss_of(model, BACKEND))
        optimizer.step()

    for _ in range(2):
        model.zero_grad()
        with pytest.raises(RuntimeError, match=r"compiled model.*closure=\.\.\."):
            step()


@pytest.mark.parametrize("look", [sgdph.hessian_block, sgdph.diagonality])
def test_diagnostics_of_compiled_code_raise_an_error(look: Callable[..., object]) -> None:
    model = norm_net()
    loss = whole(model, BACKEND)
    with pytest.raises(RuntimeError, match="compiled model"):
        look(loss, model.get_parameter("1.weight"))


@pytest.mark.parametrize("way", WAYS)
def test_compiled_code_elsewhere_changes_nothing(way: str) -> None:
    """Compiled code that leads to no Newton parameter, and a backend that compiles nothing."""

    def hessian(loss: Callable[[nn.Module], Tensor]) -> Tensor:
        model = norm_net()
        groups = [{"params": [model.get_parameter("1.weight")], "channelwise": True}]
        optimizer = sgdph.SGDPH(groups, hessian_momentum=0.0)
        WAYS[way](optimizer, loss(model))
        optimizer.step()
        result: Tensor = optimizer.state[model.get_parameter("1.weight")]["hessian"]
        return result

    def beside(model: nn.Module) -> Tensor:
        assert isinstance(model, nn.Sequential)
        first = torch.compile(model[0], backend=BACKEND)
        decay = torch.compile(lambda w: w.square().sum(), backend=BACKEND)(model[3].weight)
        return functional.cross_entropy(model[1:](first(X)), Y) + decay

    def plain(model: nn.Module) -> Tensor:
        return functional.cross_entropy(model(X), Y)

    expected = hessian(plain)
    torch.testing.assert_close(hessian(beside), expected)
    torch.testing.assert_close(hessian(lambda model: whole(model, "eager")), expected)


def test_a_closure_with_compiled_code_equals_the_uncompiled_one() -> None:
    hessians = []
    for backend in (BACKEND, None):
        model = norm_net()
        p = model.get_parameter("1.weight")
        optimizer = sgdph.SGDPH([{"params": [p], "channelwise": True}], hessian_momentum=0.0)
        loss_of = WithLoss(model)
        run = loss_of if backend is None else torch.compile(loss_of, backend=backend)
        optimizer.update_hessian(closure=lambda run=run: run(X, Y))  # type: ignore[misc]
        run(X, Y).backward()
        optimizer.step()
        hessians.append(optimizer.state[p]["hessian"])
    torch.testing.assert_close(*hessians, rtol=1e-3, atol=1e-5)
