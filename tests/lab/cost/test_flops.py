"""FLOPs and floors against a network whose products can be counted by hand."""

import dataclasses

import pytest
import torch
from torch import Tensor, nn
from torch.utils.flop_counter import FlopCounterMode

from sgdph.lab.cost.flops import FlopCounter, GradientFlops
from sgdph.lab.cost.systems import SYSTEMS

# Two images of 8x8 pixels; a multiplication and an addition are two.
CONV1 = 2 * 2 * 64 * 9 * 3 * 4
CONV2 = 2 * 2 * 64 * 9 * 4 * 6
LINEAR = 2 * 2 * 6 * 64 * 5
SGDM = 2 * CONV1 + 3 * CONV2 + 3 * LINEAR  # Nobody asks for the images' gradient.


def chain() -> nn.Sequential:
    torch.manual_seed(0)
    return nn.Sequential(
        nn.Conv2d(3, 4, 3, padding=1, bias=False),
        nn.BatchNorm2d(4),
        nn.ReLU(),
        nn.Conv2d(4, 6, 3, padding=1, bias=False),
        nn.BatchNorm2d(6),
        nn.Flatten(),
        nn.Linear(6 * 64, 5),
    )


def loss_of(net: nn.Module) -> Tensor:
    x = torch.randn(2, 3, 8, 8, generator=torch.Generator().manual_seed(1))
    return net(x).logsumexp(1).sum()


def test_a_training_step_is_three_products_per_layer() -> None:
    with FlopCounter() as counter:
        loss_of(chain()).backward()
    assert counter.total == SGDM


def test_torchs_own_counter_counts_the_same_twice_differentiated() -> None:
    def program(net: nn.Module) -> None:
        p = net[1].weight  # type: ignore[index]
        (gradient,) = torch.autograd.grad(loss_of(net), p, create_graph=True)
        torch.autograd.grad(gradient.sum(), p)

    with FlopCounter() as ours:
        program(chain())
    with FlopCounterMode(display=False) as theirs:
        program(chain())
    assert ours.total == theirs.get_total_flops() > 0


def gradient_flops() -> GradientFlops:
    net = chain()
    newton = [net[1].weight, net[1].bias, net[4].weight, net[4].bias]
    return GradientFlops.of(loss_of(net), [net[1].weight, net[4].bias], newton)


def test_a_restricted_gradient_is_the_input_gradients_behind_the_parameter() -> None:
    assert gradient_flops() == GradientFlops((CONV2 + LINEAR, LINEAR), (4, 6), CONV2 + LINEAR, 4)


@pytest.mark.parametrize(
    ("name", "extra"),
    [
        ("sgdph", CONV2 + 2 * LINEAR),
        ("sgdph-plain", CONV2 + 2 * LINEAR),
        ("authors", CONV2 + 2 * LINEAR),
        ("sgdph-interval10", (CONV2 + 2 * LINEAR) / 10),
        ("sgdph-hutchinson-interval10", (CONV2 + 2 * LINEAR) / 10),
        ("sgdph-hutchinson-all", 2 * (CONV2 + LINEAR)),
        ("sgdph-hutchinson-all-interval10", 2 * (CONV2 + LINEAR) / 10),
        ("sgdph-row-sum-all", 4 * (CONV2 + 2 * LINEAR)),
        ("sgdph-exact", 4 * (CONV2 + LINEAR) + 6 * LINEAR),
    ],
)
def test_floors(name: str, extra: float) -> None:
    floor = gradient_flops().floor(SYSTEMS[name], SGDM)
    assert floor == pytest.approx(1 + extra / SGDM, rel=1e-12)


def test_who_takes_no_partial_hessian_has_no_floor() -> None:
    for name in ("sgdm", "adamw", "adahessian", "sophiah"):
        assert gradient_flops().floor(SYSTEMS[name], SGDM) is None


def test_the_floor_is_reached_where_torch_wastes_nothing() -> None:
    """Behind the last norm layer lies a linear layer, and torch computes of it what is asked."""
    net = chain()
    p = net[4].weight
    head = nn.Sequential(*net[5:])
    features = net[:4](torch.randn(2, 3, 8, 8)).detach()

    def gradient(weight: Tensor) -> Tensor:
        y = torch.func.functional_call(net[4], {"weight": weight}, (features,))
        return torch.autograd.grad(head(y).logsumexp(1).sum(), weight, create_graph=True)[0]

    with FlopCounter() as first:
        loss = head(torch.func.functional_call(net[4], {"weight": p}, (features,)))
        torch.autograd.grad(loss.logsumexp(1).sum(), p)
    forward_and_gradient = first.total
    assert forward_and_gradient == 2 * LINEAR
    with FlopCounter() as both:
        torch.autograd.grad(gradient(p).sum(), p)
    flops = dataclasses.replace(gradient_flops(), each=(LINEAR,), sizes=(6,))
    assert both.total - forward_and_gradient == flops.of_refresh(SYSTEMS["sgdph"]) == 2 * LINEAR
