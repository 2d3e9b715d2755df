"""Choice of blocks that fit a time budget: cost estimates, and a spread over depth and kinds."""

from __future__ import annotations

import dataclasses
import fnmatch
import itertools
import time
from collections.abc import Sequence

import torch
from torch import Tensor

from sgdph import hessian_block
from sgdph.lab.errors import LabError
from sgdph.lab.inspect.figures import Candidate, InspectSettings, Plan
from sgdph.lab.inspect.measure import draw_batches, loss_on, training_mode
from sgdph.lab.inspect.parameters import NewtonParameter, newton_parameters
from sgdph.lab.run.start import PreparedRun
from sgdph.lab.run.step import wait_for

# Number of blocks that are drawn.
PICTURED = 4
# Each product is timed this often. The minimum counts, as other load only makes it seem slower.
TIMINGS = 3
# Share of the budget that may be spent on trial blocks, for better estimates.
TRIAL_SHARE = 0.05


def make_plan(candidates: Sequence[Candidate], budget: float, layers: str | None) -> Plan:
    """Choose the blocks.

    Args:
        candidates: All Newton parameters, in registration order.
        budget: Seconds that the chosen blocks may take. Has no effect if ``layers`` is given.
        layers: Patterns of names, separated by commas. ``None`` leaves the choice to the budget.

    Raises:
        LabError: If no block fits the budget, or a pattern matches no parameter.
    """
    order = spread_over_kinds(candidates)
    if layers is None:
        names = fill(order, budget)
    else:
        names = matching([each.name for each in candidates], layers)
    chosen = [each for each in order if each.name in names]
    if not chosen:
        least = min(candidates, key=lambda each: each.estimated_seconds)
        raise LabError(
            f"no block fits --budget {budget:g} s: the quickest, {least.label} ({least.size} "
            f"rows), would take about {least.estimated_seconds:.2g} s; raise --budget, or take "
            "fewer --batches or --checkpoints"
        )
    names = {each.name for each in chosen}
    return Plan(
        tuple(each.name for each in candidates if each.name in names),
        tuple(each.name for each in chosen[:PICTURED]),
        tuple(candidates),
    )


def matching(names: Sequence[str], layers: str) -> set[str]:
    """Find the names that match a list of patterns like ``stem.*,*.bias``.

    Raises:
        LabError: If a pattern matches no name.
    """
    found: set[str] = set()
    for pattern in (part.strip() for part in layers.split(",")):
        hits = fnmatch.filter(names, pattern)
        if not hits:
            raise LabError(
                f"--layers {pattern!r} fits no Newton parameter; there are {', '.join(names)}"
            )
        found.update(hits)
    return found


def fill(order: Sequence[Candidate], budget: float) -> set[str]:
    """Choose candidates in order, while they fit the budget.

    The first pass skips candidates that would take more than half of the remaining budget, so that
    one costly block does not exclude all others. The second pass adds those that still fit.
    """
    left, taken = budget, set[str]()
    for share in (0.5, 1.0):
        for each in order:
            if each.name not in taken and each.estimated_seconds <= share * left:
                taken.add(each.name)
                left -= each.estimated_seconds
    return taken


def spread_over_kinds(candidates: Sequence[Candidate]) -> list[Candidate]:
    """Order candidates so that any first few are spread over depth and kinds."""
    kinds = dict.fromkeys(each.kind for each in candidates)
    queues = []
    for kind in kinds:
        members = [each for each in candidates if each.kind == kind]
        queues.append([members[i] for i in spread(len(members))])
    turns = itertools.zip_longest(*queues)
    return [each for turn in turns for each in turn if each is not None]


def spread(count: int) -> list[int]:
    """Order ``range(count)``: first, last, then always the one farthest from all before it."""
    order = [0, count - 1][:count]
    rest = set(range(count)) - set(order)
    while rest:
        farthest = max(rest, key=lambda i: (min(abs(i - j) for j in order), -i))
        order.append(farthest)
        rest.remove(farthest)
    return order


def estimate_costs(
    run: PreparedRun, settings: InspectSettings, checkpoints: int
) -> list[Candidate]:
    """Estimate the seconds for each Newton parameter's blocks, on all batches of all checkpoints.

    The first estimate is from the time of one product. It is too high if products are batched. So
    some blocks, spread over depth and kinds, are then computed once as a trial.

    Args:
        run: The run, at any checkpoint.
        settings: The settings, with the number of batches and the budget.
        checkpoints: Number of checkpoints to measure.
    """
    parameters = newton_parameters(run.state.model)
    device = run.data.device
    blocks = 2 * settings.batches * checkpoints
    with training_mode(run.state.model):
        loss = loss_on(run, next(draw_batches(run, 1)), 0, settings.float64)
        # The first call also does one-time initialisation, so its time is not used.
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
    """Return the seconds for a gradient with a graph, plus a block's products one by one."""
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
    """Compute whole blocks while they fit an allowance in seconds; return improved estimates."""
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
