"""Which blocks fit a budget of time, spread over depth and kinds."""

from __future__ import annotations

import fnmatch
import itertools
from collections.abc import Sequence
from dataclasses import dataclass

from sgdph.lab.errors import LabError


@dataclass(frozen=True)
class Candidate:
    """A block that could be taken.

    Attributes:
        name: The parameter's name.
        label: Its name in tables.
        kind: What it is.
        size: Rows of the block.
        estimated_seconds: What its dense blocks on all batches of all checkpoints would take.
    """

    name: str
    label: str
    kind: str
    size: int
    estimated_seconds: float


@dataclass(frozen=True)
class Plan:
    """What is measured, what is not, and what is drawn.

    Attributes:
        chosen: Names of the parameters whose blocks are taken, in registration order.
        pictured: Those of them whose blocks are drawn.
        candidates: All Newton parameters.
    """

    chosen: tuple[str, ...]
    pictured: tuple[str, ...]
    candidates: tuple[Candidate, ...]

    @property
    def left_out(self) -> list[Candidate]:
        """The parameters whose blocks are not taken."""
        return [each for each in self.candidates if each.name not in self.chosen]


PICTURED = 4


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
