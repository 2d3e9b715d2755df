"""The tables of a report for readers, made from the entries of a grid."""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence

from sgdph.lab.reports.grid import Grid, describe_fields
from sgdph.lab.reports.measures import (
    MEDIAN,
    Measure,
    area,
    best,
    column_targets,
    figures,
    final,
    judge_column,
    main_measures,
    median_and_range,
    seconds_per_epoch,
    shown_target,
    time_to,
    train_loss,
)
from sgdph.lab.reports.numbers import NOTHING, counted, p_value, points, shown_interval
from sgdph.lab.reports.statistics import Judgement
from sgdph.lab.reports.table import Cell, Column, Table
from sgdph.lab.run.records import Group


def make_tables(grid: Grid, targets: Sequence[float]) -> list[Table]:
    """Make a grid's tables, the most important first.

    If the grid has one column, a table shows all measures side by side. Otherwise there is one
    table per measure.

    Args:
        grid: The entries.
        targets: Target accuracies for the times until they are reached. If empty, each column gets
            one target of its own.
    """
    if len(grid.columns) == 1:
        return [summary(grid), *differences(grid), course(grid, targets)]
    split = grid.evaluated
    measures = (final(split), best(split), area(split), train_loss(), seconds_per_epoch())
    first, *others = (measure_table(grid, measure) for measure in measures)
    tables = [first, *differences(grid), *others]
    for place, by_column in enumerate(column_targets(grid, targets)):
        tables += time_tables(grid, by_column, place)
    return tables


def summary(grid: Grid) -> Table:
    """Make the main table of a grid with one column."""
    measures = main_measures(grid.evaluated)
    judgements = [judge_column(grid, measure, 0) for measure in measures]
    states = {
        "diverged": [group.count("diverged") for group in grid.groups],
        "pruned": [group.count("pruned") for group in grid.groups],
        "unfinished": [group.unfinished for group in grid.groups],
    }
    shown = {name: counts for name, counts in states.items() if any(counts)}
    rows = []
    for place, (i, group) in enumerate(grid.column(0).items()):
        cells = [Cell(str(len(group.finished)))]
        cells += [
            measure_cell(group, measure, judgement, i)
            for measure, judgement in zip(measures, judgements, strict=True)
        ]
        cells += [Cell(str(counts[place])) for counts in shown.values()]
        rows.append((grid.rows[i].text, *cells))
    where = grid.columns[0].text
    most = max(len(group.finished) for group in grid.groups)
    return Table(
        _columns(grid.corner, ["n", *(measure.title for measure in measures), *shown]),
        tuple(rows),
        f"{where + ': ' if where else ''}{describe_spread(most, 'n seeds')}"
        + (f"; of seconds the {MEDIAN}" if most > 1 else ""),
        f"{grid.evaluated}-summary",
    )


def _columns(corner: str, headings: Sequence[str | tuple[str, ...]]) -> tuple[Column, ...]:
    return (Column(corner, "left"), *map(Column, headings))


def measure_cell(group: Group, measure: Measure, judgement: Judgement | None, row: int) -> Cell:
    """Format a measure of a group, with marks for the result of the test."""
    return Cell(
        measure.show(figures(group, measure)),
        bold=judgement is not None and judgement.clear and judgement.best == row,
        level=judgement is not None
        and bool(judgement.level)
        and row in (judgement.best, *judgement.level),
    )


def differences(grid: Grid) -> list[Table]:
    """Make the table of differences between each column's best and its other entries.

    Returns:
        The table; no table if no entry was tested.
    """
    split, rows = grid.evaluated, []
    for j, heading in enumerate(grid.columns):
        judgement = judge_column(grid, final(split), j)
        if judgement is None or judgement.best is None:
            continue
        best = grid.rows[judgement.best].text
        for i, found in judgement.differences.items():
            where = (heading.text,) if len(grid.columns) > 1 else ()
            rows.append(
                (
                    *(*where, f"{best} − {grid.rows[i].text}"),
                    *(points(found.mean), shown_interval(found.low, found.high)),
                    *(f"{found.n[0]}, {found.n[1]}", p_value(judgement.adjusted[i], "")),
                    judgement.outcome(i),
                )
            )
    where = ("column",) if len(grid.columns) > 1 else ()
    names = [*where, "difference", "points", "95% interval", "n", "p", "outcome"]
    words = {*where, "difference", "outcome"}
    columns = tuple(Column(name, "left" if name in words else "right") for name in names)
    caption = f"Final {split} accuracy: the best of each column less every other"
    return [Table(columns, tuple(rows), caption, f"{split}-differences")] if rows else []


def measure_table(grid: Grid, measure: Measure) -> Table:
    """Make the table of one measure over several columns."""
    usual = usual_count(grid)
    cells: dict[tuple[int, int], Cell] = {}
    for j in range(len(grid.columns)):
        judgement = judge_column(grid, measure, j)
        for i, group in grid.column(j).items():
            cell = measure_cell(group, measure, judgement, i)
            cells[i, j] = Cell(cell.text, cell.bold, cell.level, state_note(group, usual))
    caption = f"{measure.meaning}: {describe_spread(usual, kind=measure.summary)}"
    return _laid_out(grid, measure.key, caption, cells)


def usual_count(grid: Grid) -> int:
    """Return the most frequent number of finished seeds; the largest of several."""
    counts = Counter(len(group.finished) for group in grid.groups)
    return max(counts, key=lambda count: (counts[count], count))


def describe_spread(
    seeds: int, shown: str = "", kind: str = "mean ± sample standard deviation"
) -> str:
    """Describe the statistic in the entries of a table, with the number of seeds."""
    if seeds == 1:
        return "of 1 seed"
    return f"{kind} over {shown or counted(seeds, 'seed')}"


def state_note(group: Group, usual: int) -> str:
    """Describe what is unusual about an entry's runs; empty if nothing is."""
    finished, diverged, pruned = (group.count(s) for s in ("finished", "diverged", "pruned"))
    parts = [f"n = {finished}"] if finished != usual else []
    parts += [f"{diverged} diverged"] if diverged else []
    parts += [f"{pruned} pruned"] if pruned else []
    parts += [f"{group.unfinished} unfinished"] if group.unfinished else []
    return f"({', '.join(parts)})" if parts else ""


def _laid_out(grid: Grid, name: str, caption: str, cells: dict[tuple[int, int], Cell]) -> Table:
    columns = _columns(grid.corner, [each.parts for each in grid.columns])
    rows, places = grid.rows, range(len(grid.columns))
    if grid.layout.turned:
        titles = [each.text for each in grid.rows]
        columns = _columns(describe_fields(grid.layout.columns), titles)
        rows, places = grid.columns, range(len(grid.rows))
        cells = {(j, i): cell for (i, j), cell in cells.items()}
    lines = (
        (each.text, *(cells.get((i, j), Cell("")) for j in places)) for i, each in enumerate(rows)
    )
    return Table(columns, tuple(lines), caption, name)


def course(grid: Grid, targets: Sequence[float]) -> Table:
    """Make the table of accuracies during training, for a grid with one column."""
    split = grid.evaluated
    measure = area(split)
    judgement = judge_column(grid, measure, 0)
    wanted = [by_column[0] for by_column in column_targets(grid, targets)]
    headings = [measure.title]
    for target in wanted:
        shown = shown_target(target)
        headings += [f"reached {shown}", f"epochs to {shown}", f"seconds to {shown}"]
    rows = []
    for i, group in grid.column(0).items():
        cells = [measure_cell(group, measure, judgement, i)]
        for target in wanted:
            cells += time_cells(group, target)
        rows.append((grid.rows[i].text, *cells))
    return Table(
        _columns(grid.corner, headings),
        tuple(rows),
        "During training: the mean accuracy over all epochs, and when an accuracy was first "
        "reached, for the runs that reached it",
        f"{split}-course",
    )


def time_cells(group: Group, target: float | None) -> list[Cell]:
    """Format how many runs reached a target, and after how many epochs and seconds."""
    if target is None:
        return [Cell(NOTHING)] * 3
    found = time_to(group, target)
    return [
        Cell(f"{found.reached} of {found.runs}"),
        Cell(found.epochs.show(1, 1)),
        Cell(median_and_range(found.seconds, 1)),
    ]


def time_tables(grid: Grid, targets: Sequence[float | None], place: int) -> list[Table]:
    """Make the tables of epochs and of seconds until a target, for several columns.

    Args:
        grid: The entries.
        targets: The target of each column.
        place: Index of this target among all targets, for the table's name.
    """
    units = ("epochs", "seconds")
    cells: dict[str, dict[tuple[int, int], Cell]] = {unit: {} for unit in units}
    for j, target in enumerate(targets):
        for i, group in grid.column(j).items():
            reached, *times = time_cells(group, target)
            for unit, cell in zip(units, times, strict=True):
                cells[unit][i, j] = Cell(cell.text, note=f"({reached.text})")
    distinct = set(targets)
    if len(distinct) == 1:
        what = f"{shown_target(targets[0])} {grid.evaluated} accuracy"
    else:
        each = ", ".join(
            f"{heading.text} {shown_target(target)}"
            for heading, target in zip(grid.columns, targets, strict=True)
        )
        what = f"the column's target of {grid.evaluated} accuracy ({each})"
    titles = {"epochs": "Epochs", "seconds": "Seconds of training"}
    return [
        _laid_out(
            grid,
            f"{grid.evaluated}-{unit}-to-target-{place + 1}",
            f"{titles[unit]} until {what} was first reached, over the runs that reached it (how "
            "many of those that came to their end)",
            cells[unit],
        )
        for unit in units
    ]
