"""The machine-readable tables of a report: one row per entry, values in full precision."""

from __future__ import annotations

from collections.abc import Sequence
from statistics import median
from typing import Any

from sgdph.lab.reports.grid import Grid
from sgdph.lab.reports.layout import SYSTEM, value_of
from sgdph.lab.reports.measures import (
    Measure,
    area,
    column_targets,
    figures,
    final,
    judge_column,
    main_measures,
    seconds_per_epoch,
    spread,
    time_to,
)
from sgdph.lab.reports.statistics import Judgement, Spread
from sgdph.lab.reports.table import Table
from sgdph.lab.run.records import Group


def figures_table(grids: Sequence[Grid]) -> Table:
    """Make the machine-readable table: one row per entry, values in full precision.

    The columns of a comparison come first. ``p_against_best`` is the p-value of Welch's test on the
    final accuracy, with Holm's correction within the entry's column of the grid. The best entry has
    none. The 95% interval of the difference is not corrected for other comparisons.
    """
    rows = []
    for grid in grids:
        for j in range(len(grid.columns)):
            judgement = judge_column(grid, final(grid.evaluated), j)
            for i, group in grid.column(j).items():
                seconds = figures(group, seconds_per_epoch())
                rows.append(
                    {
                        "optimizer": _system(grid, i, j),
                        "n": len(group.finished),
                        **_figures(group, main_measures(grid.evaluated)),
                        "diverged": group.count("diverged"),
                        "unfinished": group.unfinished,
                        **_figures(group, [area(grid.evaluated)]),
                        "seconds_per_epoch_median": median(seconds) if seconds else None,
                        "p_against_best": judgement and judgement.adjusted.get(i),
                        **_distance(judgement, i),
                        **_place(grid, i, j),
                    }
                )
    return Table.of_records(rows)


def _distance(judgement: Judgement | None, row: int) -> dict[str, Any]:
    """Return the difference between the best of a column and an entry, and the outcome."""
    found = judgement.differences.get(row) if judgement else None
    return {
        "best_minus_this": found and found.mean,
        "interval_low": found and found.low,
        "interval_high": found and found.high,
        "outcome": judgement.outcome(row) if judgement and found else None,
    }


def _figures(group: Group, measures: Sequence[Measure]) -> dict[str, float | None]:
    spreads = {measure.key: spread(group, measure) for measure in measures}
    return {
        f"{key}_{part}": value
        for key, found in spreads.items()
        for part, value in (("mean", found.mean), ("std", found.std))
    }


def targets_table(grids: Sequence[Grid], targets: Sequence[float]) -> Table:
    """Make the machine-readable table of how many runs reached a target, and how long it took."""
    rows = []
    for grid in grids:
        for by_column in column_targets(grid, targets):
            for (i, j), group in sorted(grid.entries.items()):
                target = by_column[j]
                if target is None:
                    continue
                found = time_to(group, target)
                seconds = Spread.of(found.seconds)
                rows.append(
                    {
                        "optimizer": _system(grid, i, j),
                        "target": target,
                        "runs": found.runs,
                        "reached": found.reached,
                        "epochs_mean": found.epochs.mean,
                        "epochs_std": found.epochs.std,
                        "seconds_mean": seconds.mean,
                        "seconds_std": seconds.std,
                        "seconds_median": median(found.seconds) if found.seconds else None,
                        **_place(grid, i, j),
                    }
                )
    return Table.of_records(rows)


def _system(grid: Grid, i: int, j: int) -> str:
    """Name an entry's system, with the details that distinguish its row from similar rows."""
    if SYSTEM in grid.layout.rows:
        return grid.rows[i].plain
    return str(value_of(grid.entries[i, j].config, SYSTEM))


def _place(grid: Grid, i: int, j: int) -> dict[str, Any]:
    """Return an entry's position: its evaluation split, and the fields of its row and column."""
    config = grid.entries[i, j].config
    names = (*grid.layout.columns, *grid.layout.rows, *grid.rows[i].details)
    fields = {name: value_of(config, name) for name in names if name != SYSTEM}
    return {"evaluated": grid.evaluated, **fields}
