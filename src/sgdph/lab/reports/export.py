"""A report's figures for programs: CSV, figures in full, empty where there is none."""

from __future__ import annotations

import csv
import io
from collections.abc import Mapping, Sequence
from typing import Any

from sgdph.lab.reports.grid import Grid
from sgdph.lab.reports.layout import SYSTEM, value_of
from sgdph.lab.reports.measures import Measure, area, final, judge_column, main_measures, spread
from sgdph.lab.reports.targets import column_targets, time_to
from sgdph.lab.run.records import Group


def to_csv(grids: Sequence[Grid]) -> str:
    """Write a row per entry.

    The columns of a comparison come first. ``p_against_best`` is of the final accuracy, Welch's
    test with Holm's correction within the entry's column of the table; the best has none.
    """
    rows = []
    for grid in grids:
        for j in range(len(grid.columns)):
            judgement = judge_column(grid, final(grid.evaluated), j)
            for i, group in grid.column(j).items():
                rows.append(
                    {
                        "optimizer": _system(grid, i, j),
                        "n": len(group.finished),
                        **_figures(group, main_measures(grid.evaluated)),
                        "diverged": group.count("diverged"),
                        "unfinished": group.unfinished,
                        **_figures(group, [area(grid.evaluated)]),
                        "p_against_best": judgement and judgement.adjusted.get(i),
                        **_place(grid, i, j),
                    }
                )
    return _write(rows)


def _figures(group: Group, measures: Sequence[Measure]) -> dict[str, float | None]:
    spreads = {measure.key: spread(group, measure) for measure in measures}
    return {
        f"{key}_{part}": value
        for key, found in spreads.items()
        for part, value in (("mean", found.mean), ("std", found.std))
    }


def targets_to_csv(grids: Sequence[Grid], targets: Sequence[float]) -> str:
    """Write a row per entry and target: how many runs reached it, in how long."""
    rows = []
    for grid in grids:
        for by_column in column_targets(grid, targets):
            for (i, j), group in sorted(grid.entries.items()):
                target = by_column[j]
                if target is None:
                    continue
                found = time_to(group, target)
                rows.append(
                    {
                        "optimizer": _system(grid, i, j),
                        "target": target,
                        "runs": found.runs,
                        "reached": found.reached,
                        "epochs_mean": found.epochs.mean,
                        "epochs_std": found.epochs.std,
                        "seconds_mean": found.seconds.mean,
                        "seconds_std": found.seconds.std,
                        **_place(grid, i, j),
                    }
                )
    return _write(rows)


def _system(grid: Grid, i: int, j: int) -> str:
    """Name an entry's system, with what else tells its row from others of that system."""
    if SYSTEM in grid.layout.rows:
        return grid.rows[i].plain
    return str(value_of(grid.entries[i, j].config, SYSTEM))


def _place(grid: Grid, i: int, j: int) -> dict[str, Any]:
    """Name where an entry stands: what it was evaluated on, and the fields of row and column."""
    config = grid.entries[i, j].config
    names = (*grid.layout.columns, *grid.layout.rows, *grid.rows[i].details)
    fields = {name: value_of(config, name) for name in names if name != SYSTEM}
    return {"evaluated": grid.evaluated, **fields}


def _write(rows: Sequence[Mapping[str, Any]]) -> str:
    """Write rows under the names that any of them has."""
    stream = io.StringIO()
    names = list(dict.fromkeys(name for row in rows for name in row))
    writer = csv.writer(stream, lineterminator="\n")
    writer.writerow(names)
    writer.writerows([[_shown(row.get(name)) for name in names] for row in rows])
    return stream.getvalue()


def _shown(value: Any) -> str:
    if isinstance(value, tuple):
        pairs = ("=".join(map(str, each)) if isinstance(each, tuple) else each for each in value)
        return " ".join(map(str, pairs))
    if isinstance(value, float):
        return repr(value)
    return "" if value is None else str(value)
