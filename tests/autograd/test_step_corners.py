"""Graphs on which a shared backward was once wrong, or could be: each against plain torch."""

from __future__ import annotations

from collections.abc import Callable

import pytest
import torch
from torch import Tensor
from torch.nn import functional
from torch.utils.checkpoint import checkpoint

import sgdph

Leaves = dict[str, Tensor]
Build = Callable[[], tuple[Tensor, Leaves]]
"""Makes a loss and its leaves, the Newton parameter among them as ``p``."""


def leaves(**shapes: tuple[int, ...]) -> Leaves:
    generator = torch.Generator().manual_seed(0)

    def draw(shape: tuple[int, ...]) -> Tensor:
        return torch.randn(shape, generator=generator, dtype=torch.float64)

    return {name: draw(shape).requires_grad_() for name, shape in shapes.items()}


def data(*shape: int) -> Tensor:
    generator = torch.Generator().manual_seed(1)
    return torch.randn(shape, generator=generator, dtype=torch.float64)


def broadcast_before_and_behind() -> tuple[Tensor, Leaves]:
    at = leaves(w=(1, 4), p=(4,))
    encoding = at["w"].exp()
    h = (data(5, 4) + encoding).sin() * at["p"]
    return ((h + encoding).tanh() ** 2).sum(), at


def temperature_before_and_behind() -> tuple[Tensor, Leaves]:
    at = leaves(w=(), p=(4,))
    temperature = at["w"].exp()
    h = (data(5, 4) * temperature).sin() * at["p"]
    return ((h * temperature).tanh() ** 2).sum(), at


def converted_before_and_behind() -> tuple[Tensor, Leaves]:
    at = leaves(w=(5, 4), p=(4,))
    narrow = at["w"].float().exp()
    h = (data(5, 4) + narrow).sin() * at["p"]
    return ((h + narrow).tanh() ** 2).sum(), at


def frozen_after_the_forward() -> tuple[Tensor, Leaves]:
    at = leaves(first=(4, 4), p=(4,), second=(4, 4))
    h = (data(5, 4) @ at["first"] * at["p"]).sin()
    loss = ((h @ at["second"]).tanh() ** 2).sum()
    at["second"].requires_grad_(False)
    return loss, at


def large_kernel_frozen_after_the_forward() -> tuple[Tensor, Leaves]:
    at = leaves(p=(3, 1, 1), kernel=(8, 3, 5, 5))
    h = (data(2, 3, 5, 5) * at["p"]).sin()
    loss = (functional.conv2d(h, at["kernel"]).tanh() ** 2).sum()
    at["kernel"].requires_grad_(False)
    return loss, at


def input_stepped_in_the_backward() -> tuple[Tensor, Leaves]:
    """The other leaf's hook changes the input of a weight gradient that is computed late."""
    at = leaves(image=(2, 3, 5, 5), kernel=(8, 3, 5, 5), p=(8,))

    def step(leaf: Tensor) -> None:
        with torch.no_grad():
            leaf.add_(1)

    at["image"].register_post_accumulate_grad_hook(step)
    out = functional.conv2d(at["image"], at["kernel"], at["p"])
    return (out.tanh() ** 2).sum(), at


def pass_of_its_own_in_a_hook() -> tuple[Tensor, Leaves]:
    at = leaves(w=(4,), p=(4,), v=(4,))
    h = (data(5, 4) * at["w"]).sin() * at["p"]
    scaled = h * at["v"]
    behind = scaled.tanh()
    other = scaled.cos().sum()

    def differentiate(gradient: Tensor) -> None:
        torch.autograd.grad(other, [at["w"], at["v"]], retain_graph=True)

    loss = (behind**3).sum()
    behind.register_hook(differentiate)
    return loss, at


def buffer_of_a_hook() -> tuple[Tensor, Leaves]:
    at = leaves(p=(4,), bias=(5, 4))
    buffer = torch.full((5, 4), 0.5, dtype=torch.float64)
    total = (data(5, 4) * at["p"]).sin() + at["bias"]
    total.register_hook(lambda _: buffer)
    at["buffer"] = buffer
    return (total.tanh() ** 2).sum(), at


def gradient_without_memory() -> tuple[Tensor, Leaves]:
    at = leaves(w=(4,), p=(4,))
    # sgn's gradient is a zero that has no storage.
    return (at["w"] * 2 + torch.sgn(at["w"] * at["p"]) * at["p"]).sin().pow(2).sum(), at


BUILDS: dict[str, Build] = {
    build.__name__: build
    for build in (
        broadcast_before_and_behind,
        temperature_before_and_behind,
        converted_before_and_behind,
        frozen_after_the_forward,
        large_kernel_frozen_after_the_forward,
        input_stepped_in_the_backward,
        pass_of_its_own_in_a_hook,
        buffer_of_a_hook,
        gradient_without_memory,
    )
}


def optimizer_of(at: Leaves) -> sgdph.SGDPH:
    return sgdph.SGDPH([{"params": [at["p"]], "channelwise": True}], hessian_momentum=0.5)


@pytest.mark.parametrize("low_memory", [False, True])
@pytest.mark.parametrize("name", BUILDS)
def test_gradients_and_curvature_equal_plain_torch(name: str, low_memory: bool) -> None:
    loss, expected = BUILDS[name]()
    (gradient,) = torch.autograd.grad(loss, expected["p"], create_graph=True)
    (h,) = torch.autograd.grad(gradient.sum(), expected["p"], retain_graph=True, allow_unused=True)
    loss.backward()

    loss, found = BUILDS[name]()
    optimizer = optimizer_of(found)
    optimizer.backward(loss, low_memory=low_memory)
    for key, leaf in expected.items():
        torch.testing.assert_close(found[key].grad, leaf.grad, rtol=1e-6, atol=1e-12)
    optimizer.step()
    if name not in ("buffer_of_a_hook", "input_stepped_in_the_backward"):
        torch.testing.assert_close(optimizer.state[found["p"]]["hessian"], h.abs() / 2)


def test_gradients_share_no_memory_with_other_tensors() -> None:
    kept: list[Tensor] = []
    at = leaves(p=(4,), bias=(5, 4))
    total = (data(5, 4) * at["p"]).sin() + at["bias"]
    total.register_hook(kept.append)
    optimizer_of(at).backward((total.tanh() ** 2).sum())
    before = [g.clone() for g in kept]
    assert at["bias"].grad is not None
    at["bias"].grad.zero_()
    assert all(map(torch.equal, kept, before))

    loss, at = buffer_of_a_hook()
    optimizer = optimizer_of(at)
    optimizer.backward(loss)
    at["bias"].grad.add_(1)
    assert torch.equal(at["buffer"], torch.full_like(at["buffer"], 0.5))


@pytest.mark.parametrize("kind", ["convolution", "batch norm", "relu"])
def test_a_layer_with_a_node_hook_keeps_torch_s_derivative(kind: str) -> None:
    def build() -> tuple[Tensor, Leaves]:
        at = leaves(p=(3, 1, 1), kernel=(3, 3, 3, 3), gamma=(3,), beta=(3,))
        a = functional.conv2d(data(4, 3, 5, 5).sin() * at["p"], at["kernel"], padding=1)
        b = functional.batch_norm(a, None, None, at["gamma"], at["beta"], True)
        c = b.relu()
        node = {"convolution": a, "batch norm": b, "relu": c}[kind].grad_fn
        node.register_hook(lambda ins, _: tuple(None if g is None else 0.7 * g for g in ins))
        return (c.tanh() ** 3).sum(), at

    loss, expected = build()
    (gradient,) = torch.autograd.grad(loss, expected["p"], create_graph=True)
    (h,) = torch.autograd.grad(gradient.sum(), expected["p"])
    for low_memory in (False, True):
        loss, found = build()
        optimizer = optimizer_of(found)
        optimizer.backward(loss, low_memory=low_memory)
        optimizer.step()
        torch.testing.assert_close(optimizer.state[found["p"]]["hessian"], h.abs() / 2)


def test_a_checkpoint_is_computed_no_more_often_than_with_low_memory() -> None:
    calls = 0

    def block(h: Tensor, w: Tensor) -> Tensor:
        nonlocal calls
        calls += 1
        return (h * w).sin() * h

    counts = {}
    for low_memory in (False, True):
        at = leaves(first=(4,), p=(4,), w=(4,))
        h = (data(5, 4) * at["first"]).sin()
        inner = h * at["p"]
        calls = 0
        out = checkpoint(block, inner, at["w"], use_reentrant=False) + h
        optimizer_of(at).backward((out.tanh() ** 2).sum(), low_memory=low_memory)
        counts[low_memory] = calls
    assert counts[False] <= counts[True]


def test_a_hook_removed_during_the_backward_does_not_fire() -> None:
    fired = []
    at = leaves(p=(4,))
    handle = at["p"].register_hook(fired.append)
    h = (data(5, 4) * at["p"]).sin()
    h.register_hook(lambda _: handle.remove())
    optimizer = optimizer_of(at)
    optimizer.backward((h**2).sum())
    optimizer.backward(((data(5, 4) * at["p"]).sin() ** 2).sum())
    assert fired == []
