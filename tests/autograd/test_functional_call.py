"""``torch.func``: parameters passed to a model as arguments."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from small import WAYS, batch, bn_net, train
from torch import Tensor, nn
from torch.func import functional_call, stack_module_state, vmap
from torch.nn import functional

import sgdph


def stateless_loss(model: nn.Module, params: dict[str, Tensor], step: int) -> Tensor:
    x, y = batch(step)
    return functional.cross_entropy(functional_call(model, params, (x,)), y)


@pytest.mark.parametrize("way", WAYS)
def test_functional_call_trains_like_the_module(way: str) -> None:
    model, twin = bn_net(), bn_net()
    # Copies: the module itself is not trained, only its structure is used.
    params = {name: p.detach().clone().requires_grad_() for name, p in model.named_parameters()}
    before = [p.detach().clone() for p in model.parameters()]
    optimizer = sgdph.SGDPH(params.items())
    for step in range(12):
        optimizer.zero_grad()
        WAYS[way](optimizer, stateless_loss(model, params, step))
        optimizer.step()
    train(twin, sgdph.SGDPH(twin.named_parameters()), range(12))
    for name, p in twin.named_parameters():
        assert torch.equal(params[name], p)
    assert all(map(torch.equal, model.parameters(), before))


def test_differences_of_gradients_give_the_same_multipliers() -> None:
    model = bn_net(torch.float64)
    params = {name: p.detach().clone().requires_grad_() for name, p in model.named_parameters()}
    found: list[Any] = []
    x, y = batch(0, torch.float64)

    def loss() -> Tensor:
        return functional.cross_entropy(functional_call(model, params, (x,)), y)

    for by_closure in (False, True):
        optimizer = sgdph.SGDPH(params.items(), lr=0.0, refresh="all")
        if by_closure:
            optimizer.update_hessian(closure=loss)
        else:
            optimizer.update_hessian(loss())
        loss().backward()
        optimizer.step()
        optimizer.zero_grad()
        found.append(optimizer.multipliers())
    for name, multiplier in found[0].items():
        torch.testing.assert_close(found[1][name], multiplier, rtol=1e-4, atol=1e-6)


def test_an_ensemble_under_vmap_learns() -> None:
    nets = [nn.Sequential(nn.Linear(3, 4), nn.Tanh(), nn.Linear(4, 1)) for _ in range(3)]
    params, buffers = stack_module_state(nets)
    template = nets[0]
    x = torch.randn(8, 3, generator=torch.Generator().manual_seed(0))

    def outputs() -> Tensor:
        def one(params: dict[str, Tensor], buffers: dict[str, Tensor]) -> Tensor:
            result: Tensor = functional_call(template, (params, buffers), (x,))
            return result

        return vmap(one)(params, buffers)

    # A stacked bias has a row per net, so the groups must set channelwise.
    groups = [{"params": [p], "channelwise": name.endswith("bias")} for name, p in params.items()]
    optimizer = sgdph.SGDPH(groups, lr=0.05)
    losses = []
    for _ in range(30):
        loss = (outputs() - x[:, :1]).square().mean()
        optimizer.zero_grad()
        optimizer.backward(loss)
        optimizer.step()
        losses.append(loss.item())
    assert losses[-1] < 0.5 * losses[0]


def test_func_grad_alone_raises_an_error_at_the_step() -> None:
    model = bn_net().eval()  # running statistics cannot be changed inside torch.func.grad
    params = dict(model.named_parameters())
    optimizer = sgdph.SGDPH(params.items())
    gradients = torch.func.grad(lambda p: stateless_loss(model, p, 0))(params)
    for name, p in params.items():
        p.grad = gradients[name].detach()
    with pytest.raises(RuntimeError, match="needs a partial Hessian and has none"):
        optimizer.step()
    # Workaround: at due steps, an ordinary loss of the same parameters.
    optimizer.update_hessian(stateless_loss(model, params, 0))
    optimizer.step()
    assert any((m < 1).any() for m in optimizer.multipliers().values())
