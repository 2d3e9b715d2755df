"""Comparison of a refresh of all Newton parameters at once with plain torch's double backward."""

from __future__ import annotations

import time
from collections.abc import Callable, Sequence
from typing import NamedTuple

import torch
from torch import Tensor, nn
from torch.nn.attention import SDPBackend, sdpa_kernel

import sgdph
from network_zoo.network import Built, Network
from network_zoo.plain_kernels import plain_kernels
from network_zoo.row import Row
from network_zoo.trial import SEED, Trial, computes_in, fused_attentions, seed_everything
from sgdph.curvature.probes import rademacher_probe
from sgdph.roles import newton_parameters

BETA2 = 0.99
# The largest relative error that rounding can explain.
TOLERANCES = {"float64": 1e-9, "float32": 2e-3}
# A parameter's error is relative to its own largest entry, or to this share of the largest entry of
# all parameters if that is larger. Otherwise a bias before batch norm would have a large error,
# because its curvature is only rounding.
FLOOR = 1e-3


def take_step(optimizer: sgdph.SGDPH, loss: Tensor) -> None:
    """Take a step that refreshes the curvature."""
    optimizer.backward(loss)
    optimizer.step()


def compare(network: Network, step: Callable[[sgdph.SGDPH, Tensor], None] = take_step) -> Row:
    """Take a step that refreshes all Newton parameters, and compare it with plain torch.

    Args:
        network: The network.
        step: Takes the step.

    Returns:
        The result. An error is recorded in its ``reason``.
    """
    started = time.perf_counter()
    row = Row(network.package, network.family)
    try:
        _fill(row, network, step)
    except Exception as error:
        row.reason = first_line(error)
    row.seconds = round(time.perf_counter() - started, 2)
    return row


def _fill(row: Row, network: Network, step: Callable[[sgdph.SGDPH, Tensor], None]) -> None:
    seed_everything()
    built = network.build()
    row.name = built.name
    run = _first_run(built)
    if not run.loss.isfinite():
        raise RuntimeError(f"the loss is {run.loss.item()}")
    row.dtype = "float32" if computes_in(run.loss, torch.float32) else "float64"
    row.fused_attentions = fused_attentions(run.loss)
    parameters = trainable(run.model)
    row.parameters = sum(p.numel() for p in parameters)
    row.newton = sum(p.numel() for p in newton_of(run.model))
    run.loss.backward()
    gradients = [p.grad for p in parameters]
    trial = run.trial
    del run, parameters
    expected, lack = oracle(trial)

    model = trial.model()
    optimizer = sgdph.SGDPH(
        sgdph.param_groups(model),
        hessian_momentum=BETA2,
        estimator="hutchinson",
        refresh="all",
        seed=SEED,
    )
    try:
        step(optimizer, trial.loss(model))
    except RuntimeError as error:
        if (refused := refusal(error)) is None:
            raise
        row.result, row.reason = "refused", refused
        return
    if not all(p.isfinite().all() for p in model.parameters()):
        raise RuntimeError("the step left parameters that are not finite")
    row.gradient_error = worst_error([p.grad for p in trainable(model)], gradients)
    if expected is not None:
        row.error = worst_error([curvature_in(optimizer, p) for p in newton_of(model)], expected)
    row.result, row.reason = _verdict(row, lack)


def _verdict(row: Row, lack: str) -> tuple[str, str]:
    errors = {"first gradients": row.gradient_error, "product": row.error}
    off = [
        f"{what} off by {error:.1e}"
        for what, error in errors.items()
        # Not ``error > ...``: this also catches NaN.
        if error is not None and not error <= TOLERANCES[row.dtype]
    ]
    if off:
        return "wrong", "; ".join(off)
    return ("no oracle", lack) if row.error is None else ("ok", "")


class _Run(NamedTuple):
    trial: Trial
    model: nn.Module
    loss: Tensor


def _first_run(built: Built) -> _Run:
    """Run a network in float64, or in float32 if it cannot run in float64."""
    try:
        return _run(Trial(built, torch.float64))
    except RuntimeError:
        # Some kernels support at most float32.
        return _run(Trial(built, torch.float32))


def _run(trial: Trial) -> _Run:
    model = trial.model()
    return _Run(trial, model, trial.loss(model))


def trainable(model: nn.Module) -> list[Tensor]:
    """List the parameters that require gradients."""
    return [p for p in model.parameters() if p.requires_grad]


def newton_of(model: nn.Module) -> list[Tensor]:
    """List the Newton parameters, in the order of their probes."""
    return newton_parameters(sgdph.param_groups(model))


def oracle(trial: Trial) -> tuple[list[Tensor | None] | None, str]:
    """Return the signed curvature by plain torch, or ``None`` and the reason that it is missing."""
    model = trial.model()
    try:
        with sdpa_kernel(SDPBackend.MATH), plain_kernels():
            found = double_backward(trial.loss(model), newton_of(model))
    except RuntimeError as error:
        return None, first_line(error)
    if not all(h is None or h.isfinite().all() for h in found):
        return None, "torch's product is not finite"
    if not any(h is not None and h.any() for h in found):
        return None, "torch's product is zero"
    return found, ""


def double_backward(loss: Tensor, newton: Sequence[Tensor]) -> list[Tensor | None]:
    """Return ``z * (H z)`` for each parameter, from one product for all of them."""
    asked = [(i, p) for i, p in enumerate(newton) if p.requires_grad]
    params = [p for _, p in asked]
    gradients = torch.autograd.grad(loss, params, create_graph=True, allow_unused=True)
    probes = [rademacher_probe(SEED, 0, i, p) for i, p in asked]
    pairs = [(g, z) for g, z in zip(gradients, probes, strict=True) if g is not None]
    total = torch.stack([(g * z).sum() for g, z in pairs]).sum()
    products = torch.autograd.grad(total, params, allow_unused=True)
    found: list[Tensor | None] = [None] * len(newton)
    for (i, p), g, h, z in zip(asked, gradients, products, probes, strict=True):
        if g is not None:
            found[i] = torch.zeros_like(p) if h is None else h * z
    return found


def curvature_in(optimizer: sgdph.SGDPH, p: Tensor) -> Tensor | None:
    """Return the curvature from the only refresh so far; ``None`` if there was none."""
    state = optimizer.state.get(p, {})
    return state["hessian"] / (1 - BETA2) if state.get("refreshes", 0) == 1 else None


def worst_error(found: Sequence[Tensor | None], expected: Sequence[Tensor | None]) -> float:
    """Return the largest relative error over the parameters.

    It is infinite if only one of the two values of a parameter is ``None``, and NaN if an error is.
    """
    if any((a is None) != (b is None) for a, b in zip(found, expected, strict=True)):
        return float("inf")
    pairs = [(a, b) for a, b in zip(found, expected, strict=True) if a is not None and a.numel()]
    largest = max((float(b.abs().max()) for _, b in pairs), default=0.0)
    worst = 0.0
    for a, b in pairs:
        difference = float((a - b).abs().max())
        if difference != 0:
            scale = max(float(b.abs().max()), FLOOR * largest)
            worst = max(worst, difference / scale) if scale else float("inf")
            if difference != difference:
                return float("nan")
    return worst


def first_line(error: BaseException) -> str:
    """Return the type of an error and the first line of its message."""
    lines = str(error).strip().splitlines() or [""]
    return f"{type(error).__name__}: {lines[0]}"


def refusal(error: RuntimeError) -> str | None:
    """Return why there is no partial Hessian, without workarounds; ``None`` for other errors."""
    _, sign, reason = str(error).partition("no partial Hessian can be taken from this loss: ")
    if not sign:
        return None
    reason, _, torch_says = reason.partition("(torch says: ")
    clause = reason.partition(":")[0]
    return f"{clause} ({torch_says.rstrip(')')})" if torch_says else clause
