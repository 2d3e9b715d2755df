"""Which blocks fit a budget of time: what each would take, and a choice over depth and kinds."""

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
from sgdph.lab.inspect.measure import draw_batches, loss_on, training_mode, wait_for
from sgdph.lab.inspect.parameters import NewtonParameter, newton_parameters
from sgdph.lab.run.start import PreparedRun

# How many blocks are drawn.
PICTURED = 4
# What else the machine does only ever makes a product seem longer.
TIMINGS = 3
# The share of the budget that may be spent on whole blocks for the sake of better estimates.
TRIAL_SHARE = 0.05


def make_plan(candidates: Sequence[Candidate], budget: float, layers: str | None) -> Plan:
    """Choose the blocks.

    Args:
        candidates: All Newton parameters, in registration order.
        budget: Seconds that the chosen blocks may take. Not asked where ``layers`` chooses.
        layers: Patterns of names, separated by commas; ``None`` leaves the choice to the budget.

    Raises:
        LabError: No block fits the budget, or a pattern fits no parameter.
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
    """Find the names that a list of patterns like ``stem.*,*.bias`` fits.

    Raises:
        LabError: A pattern fits none.
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
    """Take candidates in order while they fit.

    At first none that would take more than half of what is left, so that one costly block does not
    keep all others out; then those too, where they still fit.
    """
    left, taken = budget, set[str]()
    for share in (0.5, 1.0):
        for each in order:
            if each.name not in taken and each.estimated_seconds <= share * left:
                taken.add(each.name)
                left -= each.estimated_seconds
    return taken


def spread_over_kinds(candidates: Sequence[Candidate]) -> list[Candidate]:
    """Order candidates so that any first few of them are spread over depth and kinds."""
    kinds = dict.fromkeys(each.kind for each in candidates)
    queues = []
    for kind in kinds:
        members = [each for each in candidates if each.kind == kind]
        queues.append([members[i] for i in spread(len(members))])
    turns = itertools.zip_longest(*queues)
    return [each for turn in turns for each in turn if each is not None]


def spread(count: int) -> list[int]:
    """Order ``range(count)``: the first, the last, then whichever lies farthest from all before."""
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
