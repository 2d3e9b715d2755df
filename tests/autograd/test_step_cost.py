"""A step computes no more than the mathematics needs: operations are counted, not timed."""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch import Tensor, nn
from torch.nn import functional
from torch.utils._pytree import tree_leaves
from torch.utils.flop_counter import FlopCounterMode

import sgdph
from sgdph.lab.cost.memory import StorageTracker

WIDTH = 8


class Block(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.body = nn.Sequential(*conv_bn(WIDTH), nn.ReLU(), *conv_bn(WIDTH))

    def forward(self, x: Tensor) -> Tensor:
        return functional.relu(self.body(x) + x)


def conv_bn(width: int) -> list[nn.Module]:
    return [nn.Conv2d(width, WIDTH, 3, padding=1, bias=False), nn.BatchNorm2d(WIDTH)]


def residual() -> nn.Module:
    torch.manual_seed(0)
    head = [nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(WIDTH, 3)]
    return nn.Sequential(*conv_bn(2), nn.ReLU(), *(Block() for _ in range(3)), *head)


def plain() -> nn.Module:
    torch.manual_seed(0)
    layers = [layer for _ in range(4) for layer in (*conv_bn(WIDTH), nn.ReLU())]
    head = [nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(WIDTH, 3)]
    return nn.Sequential(*conv_bn(2), nn.ReLU(), *layers, *head)


NETS: dict[str, Callable[[], nn.Module]] = {"residual": residual, "plain": plain}

X = torch.randn(4, 2, 12, 12, generator=torch.Generator().manual_seed(0))
Y = torch.tensor([0, 1, 2, 0])


def flops_of(run: Callable[[], Any]) -> int:
    with FlopCounterMode(display=False) as counter:
        run()
    return counter.get_total_flops()


def loss_of(model: nn.Module) -> Tensor:
    return functional.cross_entropy(model(X), Y)


def visit(optimizer: sgdph.SGDPH, k: int) -> None:
    for group in optimizer.param_groups:
        group["cursor"] = k


def newton_parameters(model: nn.Module) -> list[Tensor]:
    return [p for name, p in model.named_parameters() if p.ndim == 1][:-1]


def input_gradients(model: nn.Module, wanted: list[Tensor]) -> int:
    """FLOPs of the gradients of ``wanted``: one input gradient for each layer after them."""
    loss = loss_of(model)
    return flops_of(lambda: torch.autograd.grad(loss, wanted))


def sgdm(model: nn.Module) -> int:
    return flops_of(lambda: loss_of(model).backward())


@pytest.mark.parametrize(("low_memory", "products"), [(False, 2), (True, 3)])
@pytest.mark.parametrize("name", NETS)
def test_a_step_adds_two_or_three_products_per_later_layer(
    name: str, low_memory: bool, products: int
) -> None:
    """Two by default. Three with ``low_memory``, which computes the gradient once more."""
    model = NETS[name]()
    plain_step = sgdm(model)
    for k, p in enumerate(newton_parameters(model)):
        optimizer = sgdph.SGDPH(sgdph.param_groups(model))
        visit(optimizer, k)
        step = flops_of(lambda o=optimizer: o.backward(loss_of(model), low_memory=low_memory))
        assert step == plain_step + products * input_gradients(model, [p]), f"parameter {k}"


@pytest.mark.parametrize("name", NETS)
def test_a_joint_refresh_adds_two_products_per_layer(name: str) -> None:
    model = NETS[name]()
    optimizer = sgdph.SGDPH(
        sgdph.param_groups(model), estimator="hutchinson", refresh="all", hessian_momentum=0.99
    )
    step = flops_of(lambda: optimizer.backward(loss_of(model)))
    assert step == sgdm(model) + 2 * input_gradients(model, newton_parameters(model))


@pytest.mark.parametrize("kind", ["transposed", "grouped", "bias", "linear"])
def test_other_layer_types_add_two_products_too(kind: str) -> None:
    torch.manual_seed(0)
    layer: dict[str, Callable[[], list[nn.Module]]] = {
        "transposed": lambda: [nn.ConvTranspose2d(WIDTH, WIDTH, 3, bias=False), nn.GELU()],
        "grouped": lambda: [nn.Conv2d(WIDTH, WIDTH, 3, groups=2, bias=False), nn.GELU()],
        "bias": lambda: [nn.Conv2d(WIDTH, WIDTH, 3), nn.ReLU()],
        "linear": lambda: [nn.Linear(12, 12, bias=False), nn.GELU()],
    }
    middle = [m for _ in range(2) for m in layer[kind]()]
    model = nn.Sequential(*conv_bn(2), *middle, nn.Flatten(), nn.LazyLinear(3))
    loss_of(model)
    optimizer = sgdph.SGDPH(sgdph.param_groups(model))
    step = flops_of(lambda: optimizer.backward(loss_of(model)))
    p = newton_parameters(model)[0]
    assert step == sgdm(model) + 2 * input_gradients(model, [p])


def test_a_step_without_refresh_costs_as_much_as_sgd() -> None:
    model = residual()
    optimizer = sgdph.SGDPH(sgdph.param_groups(model), hessian_interval=2)
    optimizer.backward(loss_of(model))
    optimizer.step()
    assert flops_of(lambda: optimizer.backward(loss_of(model))) == sgdm(model)


class Memory(StorageTracker):
    """Also counts operations on large tensors."""

    def __init__(self, large: int = 1) -> None:
        super().__init__()
        self.operations: Counter[str] = Counter()
        self._large = large

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        out = super().__torch_dispatch__(func, types, args, kwargs)
        if func.is_view or func in (torch.ops.aten.detach.default,):
            return out
        if any(is_tensor(t) and t.numel() >= self._large for t in tree_leaves((out, args))):
            self.operations[str(func.overloadpacket)] += 1
        return out


def is_tensor(value: Any) -> bool:
    return isinstance(value, Tensor)


def measured(model: nn.Module, backward: Callable[[Tensor], None]) -> Memory:
    for p in model.parameters():
        p.grad = None
    backward(loss_of(model))
    for p in model.parameters():
        p.grad = None
    with Memory(large=4 * WIDTH * 12 * 12) as memory:
        backward(loss_of(model))
    return memory


ACTIVATION = 4 * WIDTH * 12 * 12 * 4
"""Bytes of one layer's output."""


@pytest.mark.parametrize("low_memory", [False, True])
def test_a_product_keeps_one_tensor_per_later_layer(low_memory: bool) -> None:
    """Batch norm's gradient in the first pass, then a tensor made from it until the second."""
    model = residual()
    base = measured(model, Tensor.backward).highest
    layers = sum(isinstance(m, nn.BatchNorm2d) for m in model.modules())
    optimizer = sgdph.SGDPH(sgdph.param_groups(model))
    visit(optimizer, 0)
    step = measured(model, lambda loss: optimizer.backward(loss, low_memory=low_memory)).highest
    assert step - base <= (layers + 4) * ACTIVATION


def test_a_later_block_costs_at_most_twenty_operations() -> None:
    model = plain()
    count = len(newton_parameters(model))

    def passes(k: int) -> int:
        optimizer = sgdph.SGDPH(sgdph.param_groups(model))
        visit(optimizer, k)
        return sum(measured(model, optimizer.backward).operations.values())

    # Between the first scale and the last are four blocks of convolution, batch norm, ReLU.
    per_block = (passes(0) - passes(count - 2)) / 4
    # Two convolutions, two of the ReLU, batch norm's two kernels and eleven elementwise, two sums.
    assert per_block <= 20


def test_gradients_of_large_weights_are_computed_last() -> None:
    """Weights larger than activations get their gradients after the product's graph is freed."""
    torch.manual_seed(0)
    model = nn.Sequential(
        *conv_bn(2), nn.Conv2d(WIDTH, 64, 12, bias=False), nn.ReLU(), nn.Flatten(), nn.Linear(64, 3)
    )
    weight = model[2].weight.numel() * 4
    optimizer = sgdph.SGDPH(sgdph.param_groups(model))
    base = measured(model, Tensor.backward).highest
    assert weight > 10 * ACTIVATION
    assert measured(model, optimizer.backward).highest - base <= ACTIVATION


@pytest.mark.parametrize("name", NETS)
def test_no_memory_outlives_the_backward(name: str) -> None:
    model = NETS[name]()
    optimizer = sgdph.SGDPH(sgdph.param_groups(model))
    with Memory() as memory:
        loss = loss_of(model)
        optimizer.backward(loss)
    with Memory() as plain_memory:
        plain_loss = loss_of(model)
        plain_loss.backward()
    # The loss variable still holds its graph, but the tensors saved in it are gone. One small
    # vector of curvature is pending.
    gradients = sum(p.numel() * 4 for p in model.parameters())
    assert memory.live <= plain_memory.live + gradients + 4 * WIDTH
