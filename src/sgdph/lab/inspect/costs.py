"""What the dense blocks of a run's parameters would take, in seconds."""

from __future__ import annotations

import dataclasses
import time
from collections.abc import Sequence

import torch
from torch import Tensor

from sgdph import hessian_block
from sgdph.lab.inspect.choice import Candidate, spread_over_kinds
from sgdph.lab.inspect.figures import InspectSettings
from sgdph.lab.inspect.measure import draw_batches, loss_on, training_mode, wait_for
from sgdph.lab.inspect.parameters import NewtonParameter, newton_parameters
from sgdph.lab.run.start import PreparedRun

# What else the machine does only ever makes a product seem longer.
TIMINGS = 3
# The share of the budget that may be spent on whole blocks for the sake of better estimates.
TRIAL_SHARE = 0.05


def estimate_costs(
    run: PreparedRun, settings: InspectSettings, checkpoints: int
) -> list[Candidate]:
    """Estimate what each Newton parameter's blocks take on all batches of all checkpoints.

    First from one timed product. That is too much where products are batched, so some blocks,
    spread over depth and kinds, are then taken once as a trial.

    Args:
        run: At any checkpoint.
        settings: Decides the number of batches and the budget.
        checkpoints: How many checkpoints are to be measured.
    """
    parameters = newton_parameters(run.state.model)
    device = run.data.device
    blocks = 2 * settings.batches * checkpoints
    with training_mode(run.state.model):
        loss = loss_on(run, next(draw_batches(run, 1)), 0, settings.float64)
        # The first time also builds what the later ones find ready.
        _time_products(loss, parameters[0], device)
        seconds = [blocks * _time_products(loss, each, device) for each in parameters]
        candidates = [
            Candidate(each.name, each.label, each.kind, each.size, estimate)
            for each, estimate in zip(parameters, seconds, strict=True)
        ]
        trials = _try_blocks(loss, parameters, candidates, blocks, TRIAL_SHARE * settings.budget)
    return [
        dataclasses.replace(each, estimated_seconds=trials.get(each.name, each.estimated_seconds))
        for each in candidates
    ]


def _time_products(loss: Tensor, parameter: NewtonParameter, device: torch.device) -> float:
    """Return the seconds of a gradient with a graph and of a block's products, one by one."""
    p, started = parameter.tensor, time.perf_counter()
    (gradient,) = torch.autograd.grad(loss, p, create_graph=True)
    wait_for(device)
    first, products = time.perf_counter() - started, []
    for _ in range(TIMINGS):
        started = time.perf_counter()
        torch.autograd.grad(gradient.sum(), p, retain_graph=True, allow_unused=True)
        wait_for(device)
        products.append(time.perf_counter() - started)
    return first + parameter.size * min(products)


def _try_blocks(
    loss: Tensor,
    parameters: Sequence[NewtonParameter],
    candidates: Sequence[Candidate],
    blocks: int,
    allowance: float,
) -> dict[str, float]:
    """Take whole blocks while they fit an allowance of seconds; return their better estimates."""
    tensors = {each.name: each.tensor for each in parameters}
    found: dict[str, float] = {}
    for each in spread_over_kinds(candidates):
        if each.estimated_seconds / blocks > allowance:
            continue
        started = time.perf_counter()
        hessian_block(loss, tensors[each.name])
        wait_for(loss.device)
        seconds = time.perf_counter() - started
        allowance -= seconds
        found[each.name] = blocks * seconds
    return found
