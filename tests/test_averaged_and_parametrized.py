"""SWA, parametrizations, checkpointed blocks and loaders with workers: each trains with SGDPH."""

from __future__ import annotations

import functools
from collections.abc import Callable

import pytest
import torch
from small import WAYS, assert_same_bits, batch, bn_net, loss_of
from torch import Tensor, nn
from torch.nn import functional
from torch.nn.utils import parametrizations, parametrize
from torch.optim.swa_utils import SWALR, AveragedModel, update_bn
from torch.utils.checkpoint import checkpoint
from torch.utils.data import DataLoader, TensorDataset

import sgdph


def by_closure(optimizer: sgdph.SGDPH, loss: Callable[[], Tensor]) -> None:
    optimizer.update_hessian(closure=loss)
    loss().backward()


def feeds() -> dict[str, Callable[[sgdph.SGDPH, Callable[[], Tensor]], None]]:
    def of(way: str) -> Callable[[sgdph.SGDPH, Callable[[], Tensor]], None]:
        return lambda optimizer, loss: WAYS[way](optimizer, loss())

    return {**{way: of(way) for way in WAYS}, "closure": by_closure}


FEEDS = feeds()


@pytest.mark.parametrize("way", FEEDS)
def test_swa_averages_the_weights_of_its_epochs(way: str) -> None:
    model = bn_net()
    optimizer = sgdph.SGDPH(sgdph.param_groups(model), lr=0.1)
    scheduler = SWALR(optimizer, swa_lr=0.02, anneal_epochs=3)
    swa = AveragedModel(model)
    snapshots = []
    for epoch in range(6):
        for step in range(3):
            optimizer.zero_grad()
            FEEDS[way](optimizer, functools.partial(loss_of, model, step))
            optimizer.step()
        swa.update_parameters(model)
        snapshots.append([p.detach().clone() for p in model.parameters()])
        scheduler.step()
        if epoch == 3:
            assert all(group["lr"] == pytest.approx(0.02) for group in optimizer.param_groups)
    for p, *values in zip(swa.module.parameters(), *snapshots, strict=True):
        torch.testing.assert_close(p, torch.stack(values).mean(0))
    update_bn([batch(step)[0] for step in range(3)], swa)
    losses = []
    for each in (bn_net(), swa):
        each.eval()
        losses.append(float(loss_of(each, 0).detach()))
    assert losses[1] < 0.7 * losses[0]


class Softplus(nn.Module):
    """Keeps scales above zero."""

    def forward(self, x: Tensor) -> Tensor:
        return functional.softplus(x)


def orthogonal() -> nn.Module:
    model = bn_net()
    parametrizations.orthogonal(model[4])
    return model


def spectral() -> nn.Module:
    model = bn_net()
    parametrizations.spectral_norm(model[0])
    return model


def positive_scale() -> nn.Module:
    model = bn_net()
    parametrize.register_parametrization(model[1], "weight", Softplus())
    return model


@pytest.mark.parametrize("way", FEEDS)
@pytest.mark.parametrize("build", [orthogonal, spectral, positive_scale])
def test_parametrized_layers_train(build: Callable[[], nn.Module], way: str) -> None:
    model = build()
    # By role, a parameter behind a custom parametrization is first-order; by shape it is Newton.
    params = model.parameters() if build is positive_scale else sgdph.param_groups(model)
    optimizer = sgdph.SGDPH(params, lr=0.05)
    losses = []
    for _ in range(25):
        optimizer.zero_grad()
        loss = functools.partial(loss_of, model, 0)
        FEEDS[way](optimizer, loss)
        optimizer.step()
        losses.append(float(loss().detach()))
    assert losses[-1] < 0.5 * losses[0]
    assert sum("hessian" in state for state in optimizer.state.values()) == 3
    if build is orthogonal:
        gram = model[4].weight @ model[4].weight.T
        torch.testing.assert_close(gram, torch.eye(3), rtol=0, atol=1e-5)
    if build is positive_scale:
        # The Newton parameter is the learned tensor, not the transformed one that the layer uses.
        assert "hessian" in optimizer.state[model[1].parametrizations.weight.original]


class Checkpointed(nn.Module):
    """The network, whose first block is computed again in every backward."""

    def __init__(self, body: nn.Sequential) -> None:
        super().__init__()
        self.body = body

    def forward(self, x: Tensor) -> Tensor:
        h = checkpoint(self.body[:3], x, use_reentrant=False)
        out: Tensor = self.body[3:](h)
        return out


@pytest.mark.parametrize("way", FEEDS)
def test_checkpointed_blocks_train_like_plain_ones(way: str) -> None:
    def eval_norm() -> nn.Sequential:
        model = bn_net(torch.float64)
        model[1].eval()  # a block computed twice updates running statistics twice
        return model

    plain, body = eval_norm(), eval_norm()
    for model, inner in ((plain, plain), (Checkpointed(body), body)):
        optimizer = sgdph.SGDPH(sgdph.param_groups(inner), lr=0.05)
        for step in range(8):
            optimizer.zero_grad()
            FEEDS[way](optimizer, functools.partial(loss_of, model, step))
            optimizer.step()
    for p, q in zip(plain.parameters(), body.parameters(), strict=True):
        torch.testing.assert_close(p, q, rtol=0, atol=1e-10)


def test_loader_workers_do_not_change_training() -> None:
    data = TensorDataset(*[torch.cat(parts) for parts in zip(batch(0), batch(1), strict=True)])

    def train(workers: int) -> nn.Module:
        model = bn_net()
        optimizer = sgdph.SGDPH(sgdph.param_groups(model), lr=0.05)
        order = torch.Generator().manual_seed(0)
        loader = DataLoader(data, 4, shuffle=True, num_workers=workers, generator=order)
        for _ in range(2):
            for x, y in loader:
                optimizer.zero_grad()
                optimizer.backward(functional.cross_entropy(model(x), y))
                optimizer.step()
        return model

    assert_same_bits(train(0), train(2))
