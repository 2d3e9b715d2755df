"""How long the runs took to reach an accuracy."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from sgdph.lab.errors import LabError
from sgdph.lab.reports.grid import Grid
from sgdph.lab.reports.measures import final, spread
from sgdph.lab.reports.statistics import Spread
from sgdph.lab.run.directory import ENDED
from sgdph.lab.run.records import Group, RunRecord

# The share of the best system's mean final accuracy that is the target where none was named.
SHARE = 0.99


@dataclass(frozen=True)
class TimeToTarget:
    """How long a group's runs took to reach a target.

    Attributes:
        reached: How many of them reached it.
        runs: How many came to their end; those that diverged count as not having reached it.
        epochs: Epochs to the first that ended at the target or above, over those that reached it.
        seconds: Seconds of training up to the end of that epoch, likewise.
    """

    reached: int
    runs: int
    epochs: Spread
    seconds: Spread


def first_epoch(run: RunRecord, target: float) -> int | None:
    """Return the number of epochs after which a run first had an accuracy, ``None`` for never."""
    for epoch, accuracy in enumerate(run.accuracies, 1):
        if accuracy >= target:
            return epoch
    return None


def time_to(group: Group, target: float) -> TimeToTarget:
    """Measure how long a group's runs took to reach a target, an accuracy between 0 and 1."""
    there = [(run, first_epoch(run, target)) for run in group.finished]
    reached = [(run, epoch) for run, epoch in there if epoch is not None]
    return TimeToTarget(
        len(reached),
        sum(run.status in ENDED for run in group.runs),
        Spread.of([epoch for _, epoch in reached]),
        Spread.of([run.seconds[epoch - 1] for run, epoch in reached if run.seconds]),
    )


def choose_target(grid: Grid, j: int) -> float | None:
    """Choose a column's target: 99% of the highest mean final accuracy; ``None`` without a run."""
    means = [spread(group, final(grid.evaluated)).mean for group in grid.column(j).values()]
    known = [mean for mean in means if mean is not None]
    return SHARE * max(known) if known else None


def parse_targets(text: str) -> tuple[float, ...]:
    """Read ``"0.9,0.95"``.

    Raises:
        LabError: If the text is something else, or not between 0 and 1.
    """
    try:
        targets = tuple(float(part) for part in text.split(","))
    except ValueError as error:
        raise LabError(f"--target must be accuracies like 0.9,0.95; got {text!r}") from error
    if not all(0 < target <= 1 for target in targets):
        raise LabError(f"--target must lie above 0 and at most at 1 (0.9 is 90%); got {text!r}")
    return tuple(dict.fromkeys(targets))


def column_targets(grid: Grid, asked: Sequence[float]) -> list[list[float | None]]:
    """Return the targets of each column, by target and then column.

    Args:
        grid: The entries.
        asked: The targets that were asked for; none for one of each column's own.
    """
    if asked:
        return [[target] * len(grid.columns) for target in asked]
    return [[choose_target(grid, j) for j in range(len(grid.columns))]]


def shown_target(target: float | None) -> str:
    """Write a target for people, in percent."""
    return "–" if target is None else f"{target * 100:.4g}%"
