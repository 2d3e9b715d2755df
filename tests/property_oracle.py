"""The results of plain torch for a network, and assertions that compare a step with them."""

from __future__ import annotations

import functools
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import property_random  # noqa: F401  joins the table
import property_transformers  # noqa: F401  joins the table
import torch
from property_kernels import plain_kernels
from property_nets import Case, build
from torch import Tensor

import sgdph
from sgdph.curvature.probes import rademacher_probe

BETA2 = 0.5
SEED = 3
SETTINGS: dict[str, dict[str, Any]] = {
    "row_sum": {"estimator": "row_sum"},
    "hutchinson": {"estimator": "hutchinson"},
    "joint": {"estimator": "hutchinson", "refresh": "all"},
    "exact": {"estimator": "exact"},
}


def _two_calls(optimizer: sgdph.SGDPH, loss: Tensor) -> None:
    optimizer.update_hessian(loss)
    loss.backward()


WAYS: dict[str, Callable[[sgdph.SGDPH, Tensor], None]] = {
    "backward": lambda optimizer, loss: optimizer.backward(loss),
    "low_memory": lambda optimizer, loss: optimizer.backward(loss, low_memory=True),
    "two_calls": _two_calls,
}


def optimizer_of(case: Case, setting: str = "row_sum", k: int = 0) -> sgdph.SGDPH:
    """An optimizer that refreshes the ``k``-th Newton parameter next."""
    newton = case.newton()
    chosen = {id(p) for p in newton}
    others = [p for p in case.model.parameters() if id(p) not in chosen]
    groups = [{"params": newton, "channelwise": True}, {"params": others, "channelwise": False}]
    optimizer = sgdph.SGDPH(
        [group for group in groups if group["params"]],
        lr=1e-3,
        hessian_momentum=BETA2,
        seed=SEED,
        **SETTINGS[setting],
    )
    for group in optimizer.param_groups:
        group["cursor"] = k
    return optimizer


def curvature_in(optimizer: sgdph.SGDPH, p: Tensor) -> Tensor | None:
    """The curvature that the only refresh added to the average of ``p``; ``None`` without one."""
    state = optimizer.state.get(p, {})
    return state["hessian"] / (1 - BETA2) if state.get("refreshes", 0) == 1 else None


def signed_curvature(
    loss: Tensor, newton: list[Any], setting: str, k: int
) -> dict[int, Tensor | None]:
    """Signed curvature of each refreshed parameter, by plain torch and by index; keeps the graph.

    The ``k``-th parameter is refreshed, or the next one that the loss depends on.
    """
    places = [(k + i) % len(newton) for i in range(len(newton))]
    places = [i for i in places if newton[i].requires_grad]
    if setting == "joint":
        places.sort()
    elif places:
        every = [newton[i] for i in places]
        found = torch.autograd.grad(loss, every, retain_graph=True, allow_unused=True)
        places = [i for i, g in zip(places, found, strict=True) if g is not None][:1]
    params = [newton[i] for i in places]
    if not params:
        return {}
    gradients = torch.autograd.grad(loss, params, create_graph=True, allow_unused=True)
    if setting == "exact":
        return {places[0]: None if gradients[0] is None else _diagonal(gradients[0], params[0])}
    probes = [
        torch.ones_like(p) if setting == "row_sum" else rademacher_probe(SEED, 0, i, p)
        for i, p in zip(places, params, strict=True)
    ]
    pairs = zip(gradients, probes, strict=True)
    total = sum(((g * z).sum() for g, z in pairs if g is not None), torch.zeros(()))
    products = _product(total, params)
    return {
        i: None if g is None else h * z
        for i, g, h, z in zip(places, gradients, products, probes, strict=True)
    }


def _product(total: Tensor, params: list[Tensor]) -> list[Tensor]:
    if not total.requires_grad:
        return [torch.zeros_like(p) for p in params]
    products = torch.autograd.grad(total, params, retain_graph=True, allow_unused=True)
    return [torch.zeros_like(p) if h is None else h for p, h in zip(params, products, strict=True)]


def _diagonal(gradient: Tensor, p: Tensor) -> Tensor:
    entries = gradient.flatten()
    rows = [_product(entries[i], [p])[0].flatten()[i] for i in range(p.numel())]
    return torch.stack(rows).reshape(p.shape)


def rectified(h: Tensor, setting: str) -> Tensor:
    """The curvature in the form in which it enters the average."""
    return h if setting in ("hutchinson", "joint") else h.abs()


@dataclass
class Outcome:
    """The state after a backward."""

    gradients: dict[str, Tensor | None]
    buffers: dict[str, Tensor]
    random_state: Tensor

    @classmethod
    def of(cls, case: Case) -> Outcome:
        gradients = {name: leaf.grad for name, leaf in case.leaves().items()}
        buffers = {name: b.clone() for name, b in case.model.named_buffers()}
        return cls(gradients, buffers, torch.get_rng_state())


@functools.cache
def plain_outcome(name: str, dtype: torch.dtype = torch.float64) -> Outcome:
    """The state after ``loss.backward()``."""
    case = build(name, dtype)
    case.loss().backward()
    return Outcome.of(case)


@functools.lru_cache(maxsize=8)
def _plain_graph(name: str, dtype: torch.dtype) -> tuple[Tensor, list[Any]]:
    case = build(name, dtype)
    return case.loss(), case.newton()


@functools.cache
def plain_curvature(
    name: str, setting: str, k: int, dtype: torch.dtype = torch.float64
) -> dict[int, Tensor | None]:
    """The result of ``signed_curvature`` for the network of that name."""
    # Checkpoints recompute their forward here, which needs the plain kernels.
    with plain_kernels():
        loss, newton = _plain_graph(name, dtype)
        return signed_curvature(loss, newton, setting, k)


@functools.cache
@plain_kernels()
def plain_micro_batches(name: str, k: int) -> tuple[Outcome, dict[int, Tensor | None]]:
    """Gradients and row sums of the loss and of -0.4 times the loss, added up."""
    case = build(name)
    total: dict[int, Tensor | None] = {}
    for factor in (1.0, -0.4):
        loss = factor * case.loss()
        for i, h in signed_curvature(loss, case.newton(), "row_sum", k).items():
            before = total.get(i)
            total[i] = h if before is None or h is None else before + h
        loss.backward()
    return Outcome.of(case), total


@functools.cache
def newton_count(name: str) -> int:
    return len(build(name).newton())


def assert_near(actual: Tensor, expected: Tensor, what: str, tolerance: float = 1e-12) -> None:
    """Check equality to ``tolerance``, relative to the largest entry if that is above 1."""
    assert actual.shape == expected.shape, what
    assert actual.dtype == expected.dtype, what
    if actual.numel() == 0:
        return
    actual, expected = actual.detach(), expected.detach()
    scale = max(float(expected.abs().max()), 1.0)
    error = float((actual - expected).abs().max())
    assert error <= tolerance * scale, f"{what}: off by {error:.3e} at scale {scale:.3e}"


def assert_gradients(
    found: dict[str, Tensor | None],
    expected: dict[str, Tensor | None],
    what: str,
    tolerance: float = 1e-12,
) -> None:
    """Check for the values of plain torch, without a graph, each in its own memory."""
    places = set()
    for name, gradient in expected.items():
        label, actual = f"gradient of {name}, {what}", found[name]
        assert (actual is None) == (gradient is None), label
        if actual is None or gradient is None:
            continue
        assert actual.grad_fn is None, label
        assert not actual.requires_grad, label
        assert actual.is_sparse == gradient.is_sparse, label
        if actual.is_sparse:
            actual, gradient = actual.to_dense(), gradient.to_dense()
        assert actual.stride() == gradient.stride(), label
        assert_near(actual, gradient, label, tolerance)
        places.add(actual.data_ptr())
    assert len(places) == sum(g is not None for g in expected.values()), f"shared memory, {what}"


def assert_outcome(found: Outcome, expected: Outcome, what: str, tolerance: float = 1e-12) -> None:
    assert_gradients(found.gradients, expected.gradients, what, tolerance)
    for name, buffer in expected.buffers.items():
        assert torch.equal(found.buffers[name], buffer), f"{name}, {what}"
    assert torch.equal(found.random_state, expected.random_state), f"random state, {what}"


def assert_curvature(
    optimizer: sgdph.SGDPH,
    newton: list[Any],
    expected: dict[int, Tensor | None],
    setting: str,
    what: str,
    tolerance: float = 1e-12,
) -> None:
    """Check that one step gave the oracle's curvature, and none to other parameters."""
    for i, p in enumerate(newton):
        label, h = f"curvature {i}, {what}", expected.get(i)
        actual = curvature_in(optimizer, p)
        assert (actual is None) == (h is None), label
        if actual is not None and h is not None:
            assert_near(actual, rectified(h, setting).to(actual.dtype), label, tolerance)
