"""The controls: what each one loses, and what it keeps."""

import pytest
import torch
from torch import nn

from sgdph import SGDPH, PartialHessian, param_groups
from sgdph.lab.optimizers.build import make_optimizer
from sgdph.lab.optimizers.controls import (
    CapBeside,
    CapMultiplier,
    FixedBeside,
    FixedMultiplier,
    MeanBeside,
    MeanMultiplier,
    ShuffledBeside,
    ShuffledMultiplier,
    TenfoldBeside,
    TenfoldMultiplier,
)
from sgdph.lab.optimizers.registry import BASELINES


def net() -> nn.Module:
    torch.manual_seed(0)
    return nn.Sequential(
        nn.Conv2d(1, 6, 3, bias=False), nn.BatchNorm2d(6), nn.Tanh(), nn.Flatten(), nn.Linear(96, 3)
    ).double()


def walk(kind: type[SGDPH], steps: int = 6, **settings: float) -> tuple[nn.Module, SGDPH]:
    model = net()
    optimizer = kind(param_groups(model, weight_decay=0.01), lr=0.05, **settings)
    train(model, optimizer, steps)
    return model, optimizer


def train(model: nn.Module, optimizer: SGDPH | PartialHessian, steps: int) -> None:
    generator = torch.Generator().manual_seed(1)
    for _ in range(steps):
        x = torch.randn(8, 1, 6, 6, generator=generator, dtype=torch.float64)
        y = torch.randint(3, (8,), generator=generator)
        optimizer.zero_grad()
        optimizer.backward(nn.functional.cross_entropy(model(x), y))
        optimizer.step()


def own_multipliers(optimizer: SGDPH) -> dict[str, torch.Tensor]:
    # SGD-PH's own multipliers, computed from the control's state.
    return {
        name: SGDPH.newton_multiplier(optimizer, p, group)
        for group in optimizer.param_groups
        for name, p in zip(group["param_names"], group["params"], strict=True)
        if p in optimizer._curvature.cycle
    }


def test_mean_gives_every_channel_the_mean_multiplier() -> None:
    _, optimizer = walk(MeanMultiplier)
    for name, own in own_multipliers(optimizer).items():
        assert own.unique().numel() == 6
        expected = torch.full_like(own, own.mean().item())
        torch.testing.assert_close(optimizer.multipliers()[name], expected)


def test_shuffled_applies_the_same_permutation_at_every_step() -> None:
    _, first = walk(ShuffledMultiplier, 4)
    _, second = walk(ShuffledMultiplier, 6)
    for name, own in own_multipliers(first).items():
        shown = first.multipliers()[name]
        assert not torch.equal(shown, own)
        assert torch.equal(shown.sort().values, own.sort().values)
        later = own_multipliers(second)[name]
        order = [own.tolist().index(value) for value in shown.tolist()]
        assert torch.equal(second.multipliers()[name], later[order])


def test_each_parameter_has_its_own_permutation() -> None:
    _, optimizer = walk(ShuffledMultiplier)
    orders = {
        tuple(own.tolist().index(value) for value in optimizer.multipliers()[name].tolist())
        for name, own in own_multipliers(optimizer).items()
    }
    assert len(orders) == 2


@pytest.mark.parametrize("steps", [1, 6])
def test_multiplier_10_is_a_tenfold_learning_rate_of_newton_parameters(steps: int) -> None:
    model, optimizer = walk(TenfoldMultiplier, steps)
    assert not optimizer.hessian_due
    assert all("hessian" not in state for state in optimizer.state.values())
    # SGD written out. On channel-wise parameters, weight decay is outside the momentum.
    oracle = net()
    channelwise = {"1.weight", "1.bias"}
    momenta: dict[str, torch.Tensor] = {}
    generator = torch.Generator().manual_seed(1)
    for _ in range(steps):
        x = torch.randn(8, 1, 6, 6, generator=generator, dtype=torch.float64)
        y = torch.randint(3, (8,), generator=generator)
        oracle.zero_grad()
        nn.functional.cross_entropy(oracle(x), y).backward()
        with torch.no_grad():
            for name, p in oracle.named_parameters():
                g = p.grad if name in channelwise else p.grad + 0.01 * p
                momenta[name] = 0.9 * momenta[name] + g if name in momenta else g.clone()
                d = 10 * momenta[name] + 0.01 * p if name in channelwise else momenta[name]
                p -= 0.05 * d
    for (name, p), q in zip(model.named_parameters(), oracle.parameters(), strict=True):
        torch.testing.assert_close(p, q, rtol=1e-12, atol=1e-13, msg=name)


def test_multiplier_1_equals_sgdph_without_curvature() -> None:
    first, _ = walk(FixedMultiplier)
    second, _ = walk(SGDPH, second_order_lr=1e6, eps=1e6, hessian_momentum=0.0)
    # With such a large eps, curvature has no effect, and tau / eps is 1.
    for p, q in zip(first.parameters(), second.parameters(), strict=True):
        torch.testing.assert_close(p, q, rtol=1e-4, atol=1e-6)


@pytest.mark.parametrize(
    ("alone", "beside"),
    [
        (MeanMultiplier, MeanBeside),
        (ShuffledMultiplier, ShuffledBeside),
        (FixedMultiplier, FixedBeside),
        (TenfoldMultiplier, TenfoldBeside),
        (CapMultiplier, CapBeside),
    ],
)
def test_each_control_beside_sgd_equals_that_of_sgdph_to_the_bit(
    alone: type[SGDPH], beside: type[PartialHessian]
) -> None:
    expected, optimizer = walk(alone, second_order_lr=3e-4)
    model = net()
    sgd = torch.optim.SGD(model.parameters(), lr=0.05, momentum=0.9, weight_decay=0.01)
    groups = param_groups(model, weight_decay=0.01)
    other = beside(sgd, groups, lr=0.05, second_order_lr=3e-4)
    train(model, other, 6)
    for p, q in zip(model.parameters(), expected.parameters(), strict=True):
        assert torch.equal(p, q)
    assert optimizer.multipliers().keys() == other.multipliers().keys()
    for name, multiplier in optimizer.multipliers().items():
        assert torch.equal(other.multipliers()[name], multiplier)


def test_controls_are_built_by_name() -> None:
    for name, kind in (
        ("sgdph-mean", MeanMultiplier),
        ("sgdph-shuffled", ShuffledMultiplier),
        ("sgdph-fixed1", FixedMultiplier),
        ("sgdph-fixed10", TenfoldMultiplier),
    ):
        baseline = BASELINES[name]
        assert type(make_optimizer(name, net(), baseline.defaults, 0)) is kind


def test_shuffling_accepts_the_largest_seed() -> None:
    baseline = BASELINES["sgdph-shuffled"]
    optimizer = make_optimizer("sgdph-shuffled", net(), baseline.defaults, 2**63 - 1)
    assert len(optimizer.multipliers()) == 2


def test_the_cap_control_has_multiplier_tau_over_eps() -> None:
    _, optimizer = walk(CapMultiplier, second_order_lr=3e-4, eps=1e-4)
    assert not optimizer.hessian_due
    for shown in optimizer.multipliers().values():
        torch.testing.assert_close(shown, torch.full_like(shown, 3.0))
