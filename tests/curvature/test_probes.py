"""Hutchinson's probes: each is Rademacher, and a parameter's are orthogonal over its visits."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor, nn

import sgdph
from sgdph.curvature.probes import rademacher_probe

SIZES = [1, 2, 3, 16, 31, 33]


def period_of(n: int) -> int:
    """The least power of two that is at least ``n``."""
    return next(2**k for k in range(20) if 2**k >= n)


def walk(n: int, visits: range, *, seed: int = 0, index: int = 0) -> Tensor:
    """The probes of one parameter, ``(visits, n)``."""
    like = torch.empty(n, dtype=torch.float64)
    return torch.stack([rademacher_probe(seed, v, index, like) for v in visits])


def symmetric(n: int) -> Tensor:
    generator = torch.Generator().manual_seed(5)
    block = torch.randn(n, n, generator=generator, dtype=torch.float64)
    return block + block.T


def test_probes_are_signs_that_depend_on_seed_visit_and_index() -> None:
    like = torch.empty(64, 1, 1, 1, dtype=torch.float64)
    keys = [(s, v, k) for s in (0, 1, 7) for v in (0, 1, 2, 40) for k in (0, 1, 2, 40)]
    probes = {key: rademacher_probe(*key, like) for key in keys}
    for key, z in probes.items():
        assert z.shape == like.shape
        assert z.dtype == like.dtype
        assert ((z == 1) | (z == -1)).all()
        assert torch.equal(z, rademacher_probe(*key, like))
    flat = torch.stack([z.flatten() for z in probes.values()])
    agreement = (flat @ flat.T) / flat.shape[1]
    agreement.fill_diagonal_(0)
    assert agreement.abs().max() < 0.75  # no two alike, none the negative of another


@pytest.mark.parametrize("visit", [0, 1, 6])
def test_each_probe_is_rademacher(visit: int) -> None:
    # Over seeds, the entries of two parameters: balanced, and independent in pairs.
    like, draws = torch.empty(4, dtype=torch.float64), 4000
    z = torch.stack(
        [torch.cat([rademacher_probe(s, visit, k, like) for k in range(2)]) for s in range(draws)]
    )
    bound = 5 / draws**0.5
    assert z.mean(dim=0).abs().max() < bound
    correlation = z.T @ z / len(z)
    assert (correlation - torch.eye(8, dtype=torch.float64)).abs().max() < bound
    # All sixteen patterns are equally likely. A column without random signs has only eight.
    patterns = ((z[:, :4] > 0).long() * torch.tensor([1, 2, 4, 8])).sum(dim=1)
    shares = patterns.bincount(minlength=16) / draws
    assert (shares - 1 / 16).abs().max() < 5 * (1 / 16 / draws) ** 0.5


@pytest.mark.parametrize("start", [0, 1, 13])
@pytest.mark.parametrize("n", SIZES)
def test_probes_are_orthogonal_over_a_period(n: int, start: int) -> None:
    period = period_of(n)
    z = walk(n, range(start, start + period), seed=2, index=3)
    assert torch.equal(z.T @ z, period * torch.eye(n, dtype=torch.float64))


@pytest.mark.parametrize("n", SIZES)
def test_the_mean_over_a_period_is_the_exact_diagonal(n: int) -> None:
    block = symmetric(n)
    z = walk(n, range(5, 5 + period_of(n)))
    torch.testing.assert_close((z * (z @ block)).mean(dim=0), block.diagonal())


def test_the_mean_over_seeds_is_the_diagonal() -> None:
    # Also for an average that stops within a period and weights its visits unequally.
    block, draws, weights = symmetric(6), 3000, torch.tensor([0.2, 0.3, 0.5], dtype=torch.float64)
    z = torch.stack([walk(6, range(4, 7), seed=s) for s in range(draws)])
    averages = (weights[:, None] * z * (z @ block)).sum(dim=1)
    standard_error = averages.std(dim=0) / draws**0.5
    assert (standard_error > 0).all()
    assert ((averages.mean(dim=0) - block.diagonal()).abs() <= 5 * standard_error).all()


def test_the_moving_average_has_less_noise_than_independent_probes() -> None:
    # Independent probes leave the squared off-diagonal part times (1 - beta2) / (1 + beta2).
    n, visits, beta2 = 16, 60, 0.9
    block = symmetric(n)
    off_diagonal = block - block.diagonal().diag()
    ages = torch.arange(visits - 1, -1, -1, dtype=torch.float64)
    weights = (1 - beta2) * beta2**ages
    noise = 0.0
    for seed in range(40):
        z = walk(n, range(visits), seed=seed)
        noise += float((weights @ (z * (z @ off_diagonal))).square().sum()) / 40
    assert noise < 0.4 * float(off_diagonal.square().sum()) * (1 - beta2) / (1 + beta2)


def test_probes_of_other_parameters_and_seeds_are_uncorrelated() -> None:
    # Without a random sign at each visit, the product of two periodic sequences would be periodic.
    # In a joint draw, the noise of one layer in another's estimate would then never fade.
    visits = range(4000)
    z, other = walk(4, visits, index=0), walk(4, visits, index=1)
    assert (z.T @ other / len(visits)).abs().max() < 5 / len(visits) ** 0.5
    again = walk(4, visits, seed=1)
    assert (z.T @ again / len(visits)).abs().max() < 5 / len(visits) ** 0.5


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float16])
def test_probes_have_the_dtype_of_the_parameter(dtype: torch.dtype) -> None:
    z = rademacher_probe(0, 0, 0, torch.empty(5, dtype=dtype))
    assert z.dtype == dtype
    assert (z.abs() == 1).all()


def test_an_empty_tensor_has_an_empty_probe() -> None:
    assert rademacher_probe(0, 3, 0, torch.empty(0)).shape == (0,)


def quadratic(sizes: list[int]) -> tuple[list[nn.Parameter], Tensor]:
    """Parameters, and the joint Hessian of a loss that :func:`loss_of` gives them."""
    params = [nn.Parameter(torch.ones(n, dtype=torch.float64)) for n in sizes]
    return params, symmetric(sum(sizes))


def loss_of(params: list[nn.Parameter], hessian: Tensor) -> Tensor:
    x = torch.cat(list(params))
    return x @ hessian @ x / 2


def estimates(
    optimizer: sgdph.SGDPH, params: list[nn.Parameter], hessian: Tensor, steps: int
) -> list[list[Tensor]]:
    """Return the curvature that entered each parameter's average at each of its visits."""
    found: list[list[Tensor]] = [[] for _ in params]
    for _ in range(steps):
        before = [dict(optimizer.state.get(p, {})) for p in params]
        before = [{k: v.clone() for k, v in s.items() if v is not None} for s in before]
        optimizer.zero_grad()
        optimizer.backward(loss_of(params, hessian))
        optimizer.step()
        for p, old, visits in zip(params, before, found, strict=True):
            state = optimizer.state[p]
            if state.get("refreshes", 0) > old.get("refreshes", 0):
                beta2 = optimizer.param_groups[0]["hessian_momentum"]
                earlier = beta2 * old.get("hessian", torch.zeros_like(p))
                visits.append((state["hessian"] - earlier).detach() / (1 - beta2))
    return found


@pytest.mark.parametrize("interval", [1, 2])
def test_the_optimizer_s_mean_over_a_period_is_the_exact_diagonal(interval: int) -> None:
    # lr is 0, so the Hessian does not change. Two parameters join late, so the cycle grows to four.
    # A probe numbered by the refresh, not by the visit, would then use only two columns.
    sizes = [4, 8, 3, 8]
    params, hessian = quadratic(sizes)
    groups = [{"params": params[:2], "channelwise": True}]
    settings = {"estimator": "hutchinson", "hessian_interval": interval}
    optimizer = sgdph.SGDPH(groups, lr=0.0, hessian_momentum=0.5, **settings)
    estimates(optimizer, params[:2], hessian[:12, :12], 7 * interval)
    optimizer.add_param_group({"params": params[2:], "channelwise": True})
    found = estimates(optimizer, params, hessian, len(params) * 8 * interval)
    for visits, diagonal in zip(found, hessian.diagonal().split(sizes), strict=True):
        assert len(visits) == 8
        torch.testing.assert_close(torch.stack(visits).mean(dim=0), diagonal)
        if len(diagonal) == 8:
            assert not torch.allclose(torch.stack(visits[:4]).mean(dim=0), diagonal, rtol=0.01)


@pytest.mark.parametrize("refresh", ["cyclic", "all"])
def test_a_resumed_optimizer_continues_its_probes(refresh: str) -> None:
    settings = {"lr": 0.0, "estimator": "hutchinson", "refresh": refresh, "seed": 4}
    params, hessian = quadratic([4, 8])
    groups = [{"params": params, "channelwise": True}]
    optimizer = sgdph.SGDPH(groups, hessian_momentum=0.99, **settings)
    estimates(optimizer, params, hessian, 5)
    saved = optimizer.state_dict()
    resumed_params, _ = quadratic([4, 8])
    groups = [{"params": resumed_params, "channelwise": True}]
    resumed = sgdph.SGDPH(groups, hessian_momentum=0.99, **settings)
    resumed.load_state_dict(saved)
    straight = estimates(optimizer, params, hessian, 9)
    again = estimates(resumed, resumed_params, hessian, 9)
    for visits, others in zip(straight, again, strict=True):
        assert len(visits) == len(others) > 0
        for h, other in zip(visits, others, strict=True):
            assert torch.equal(h, other)
