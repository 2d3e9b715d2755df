"""FLOPs and floors against a network whose products can be counted by hand."""

import dataclasses
from collections.abc import Callable

import pytest
import torch
from torch import Tensor, nn
from torch.nn.attention import SDPBackend, sdpa_kernel
from torch.utils.flop_counter import FlopCounterMode, flop_registry

from sgdph.lab.cost.flops import FlopCounter, ProductFlops
from sgdph.lab.cost.systems import SYSTEMS

# Two images of 8x8 pixels. A multiplication and an addition are two FLOPs.
CONV1 = 2 * 2 * 64 * 9 * 3 * 4
CONV2 = 2 * 2 * 64 * 9 * 4 * 6
LINEAR = 2 * 2 * 6 * 64 * 5
SGDM = 2 * CONV1 + 3 * CONV2 + 3 * LINEAR  # The images need no gradient.


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


@pytest.mark.parametrize("groups", [2, 4])
@pytest.mark.parametrize("layer", [nn.Conv2d, nn.ConvTranspose2d])
def test_a_grouped_convolution_is_also_three_products(
    layer: Callable[..., nn.Module], groups: int
) -> None:
    net = layer(4, 8, 3, padding=1, groups=groups, bias=False)
    x = torch.randn(2, 4, 8, 8, requires_grad=True)
    with FlopCounter() as counter:
        net(x).sum().backward()
    assert counter.total == 3 * (2 * 2 * 64 * 9 * 4 * 8) // groups


def test_the_count_of_second_derivatives_equals_that_of_torchs_counter() -> None:
    def program(net: nn.Module) -> None:
        p = net[1].weight  # type: ignore[index]
        (gradient,) = torch.autograd.grad(loss_of(net), p, create_graph=True)
        torch.autograd.grad(gradient.sum(), p)

    with FlopCounter() as ours:
        program(chain())
    with FlopCounterMode(display=False) as theirs:
        program(chain())
    assert ours.total == theirs.get_total_flops() > 0


def product_flops() -> ProductFlops:
    net = chain()
    newton = [net[1].weight, net[1].bias, net[4].weight, net[4].bias]
    return ProductFlops.of(loss_of(net), [net[1].weight, net[4].bias], newton)


def test_a_hessian_product_takes_two_products_per_later_layer() -> None:
    first, last = 2 * (CONV2 + LINEAR), 2 * LINEAR
    assert product_flops() == ProductFlops((first, last), (4, 6), first, 4, fused_attention=False)


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
def test_floors_by_hand(name: str, extra: float) -> None:
    floor = product_flops().floor(SYSTEMS[name], SGDM)
    assert floor == pytest.approx(1 + extra / SGDM, rel=1e-12)


def test_systems_without_a_partial_hessian_have_no_floor() -> None:
    for name in ("sgdm", "adamw", "adahessian", "sophiah"):
        assert product_flops().floor(SYSTEMS[name], SGDM) is None


def test_torch_reaches_the_floor_behind_the_last_norm_layer() -> None:
    """There is only a linear layer behind it, of which torch computes only what is needed."""
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
    flops = dataclasses.replace(product_flops(), each=(2 * LINEAR,), sizes=(6,))
    assert both.total - forward_and_gradient == flops.of_refresh(SYSTEMS["sgdph"]) == 2 * LINEAR


# Batch size, heads, positions, and features per head.
B, H, T, D = 2, 3, 7, 4
# FLOPs of one product in attention.
ATTENTION = 2 * B * H * T * T * D


def attend(q: Tensor, k: Tensor, v: Tensor, is_causal: bool = False) -> Tensor:
    return nn.functional.scaled_dot_product_attention(q, k, v, is_causal=is_causal)


# Torch 2.6 has no formula for the CPU's kernel.
@pytest.mark.parametrize("registered", [True, False])
@pytest.mark.parametrize("is_causal", [True, False])
def test_fused_attention_is_two_products_and_five_backward(
    is_causal: bool, registered: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    if not registered:
        aten = torch.ops.aten
        for_cpu = aten._scaled_dot_product_flash_attention_for_cpu
        monkeypatch.delitem(flop_registry, for_cpu, raising=False)
        backward = aten._scaled_dot_product_flash_attention_for_cpu_backward
        monkeypatch.delitem(flop_registry, backward, raising=False)
    inputs = [torch.randn(B, H, T, D, requires_grad=True) for _ in range(3)]
    with FlopCounter() as forward:
        y = attend(*inputs, is_causal=is_causal)
    assert (forward.total, forward.attention_backward) == (2 * ATTENTION, 0)
    with FlopCounter() as backward:
        y.sum().backward()
    assert backward.total == backward.attention_backward == 5 * ATTENTION


def test_math_attention_is_two_products_and_four_backward() -> None:
    inputs = [torch.randn(B, H, T, D, requires_grad=True) for _ in range(3)]
    with FlopCounter() as counter, sdpa_kernel(SDPBackend.MATH):
        attend(*inputs).sum().backward()
    assert (counter.total, counter.attention_backward) == (6 * ATTENTION, 0)


X, Y = torch.randn(5, 2, 3), torch.randn(5, 3, 4)
IN_PLACE: dict[str, Callable[[], Tensor]] = {
    "baddbmm_": lambda: torch.zeros(5, 2, 4).baddbmm_(X, Y, beta=0.5, alpha=2),
    "addbmm_": lambda: torch.zeros(2, 4).addbmm_(X, Y),
    "addbmm": lambda: torch.addbmm(torch.zeros(2, 4), X, Y),
    "addmm_": lambda: torch.zeros(10, 4).addmm_(X.flatten(0, 1), Y[0]),
    "bmm out": lambda: torch.bmm(X, Y, out=torch.empty(0)),
    "mm out": lambda: torch.mm(X.flatten(0, 1), Y[0], out=torch.empty(0)),
    "addmm out": lambda: torch.addmm(
        torch.zeros(4), X.flatten(0, 1), Y[0], alpha=2, out=torch.empty(0)
    ),
    "baddbmm out": lambda: torch.baddbmm(torch.zeros(4), X, Y, beta=2, out=torch.empty(0)),
}


@pytest.mark.parametrize("name", IN_PLACE)
def test_in_place_and_out_products_count_like_the_others(name: str) -> None:
    with FlopCounter() as counter:
        IN_PLACE[name]()
    assert counter.total == 2 * 5 * 2 * 3 * 4


def test_elementwise_operations_count_as_zero_flops() -> None:
    with FlopCounter() as counter:
        X.clone().add_(1).mul_(2).sin_()
    assert counter.total == 0


class AttentionNet(nn.Module):
    """A norm layer, a linear layer for queries, keys and values, attention, a linear layer."""

    def __init__(self) -> None:
        super().__init__()
        self.norm = nn.LayerNorm(H * D)
        self.qkv = nn.Linear(H * D, 3 * H * D)
        self.fc = nn.Linear(H * D, 5)

    def forward(self, x: Tensor) -> Tensor:
        q, k, v = self.qkv(self.norm(x)).unflatten(-1, (3, H, D)).permute(2, 0, 3, 1, 4)
        return self.fc(attend(q, k, v).transpose(1, 2).flatten(2))  # type: ignore[no-any-return]


@pytest.mark.parametrize(
    ("kernel", "attention"), [(SDPBackend.FLASH_ATTENTION, 17), (SDPBackend.MATH, 8)]
)
def test_attention_adds_17_fused_or_8_math_products_to_a_hessian_product(
    kernel: SDPBackend, attention: int
) -> None:
    net = AttentionNet()
    linear = 2 * B * T * H * D
    with sdpa_kernel(kernel):
        loss = net(torch.randn(B, T, H * D)).logsumexp(-1).sum()
    visited = [net.norm.weight, net.qkv.bias, net.fc.bias]
    found = ProductFlops.of(loss, visited, visited)
    behind_attention = 2 * linear * 5 + attention * ATTENTION
    first = 2 * linear * 3 * H * D + behind_attention
    fused = kernel != SDPBackend.MATH
    assert found == ProductFlops((first, behind_attention, 0), (12, 36, 5), first, 3, fused)
    for name, products in (
        ("sgdph", first + behind_attention),
        ("sgdph-hutchinson-all", 3 * first),
    ):
        assert found.floor(SYSTEMS[name], 1000.0) == pytest.approx(1 + products / 3 / 1000)
