"""The tables of a report: entries of a grid, in words."""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence

from sgdph.lab.reports.grid import Grid, describe_fields
from sgdph.lab.reports.measures import (
    Measure,
    area,
    best,
    final,
    judge_column,
    main_measures,
    seconds_per_epoch,
    spread,
    train_loss,
)
from sgdph.lab.reports.statistics import Judgement
from sgdph.lab.reports.table import Cell, TextTable
from sgdph.lab.reports.targets import column_targets, shown_target, time_to
from sgdph.lab.run.records import Group

NOTHING = "–"


def make_tables(grid: Grid, targets: Sequence[float]) -> list[TextTable]:
    """Make a grid's tables, the most telling first.

    With one column a table has the figures side by side; with several there is a table per figure.

    Args:
        grid: The entries.
        targets: The accuracies whose times are told; none for one of each column's own.
    """
    if len(grid.columns) == 1:
        return [summary(grid), course(grid, targets)]
    split = grid.evaluated
    measures = (final(split), best(split), area(split), train_loss(), seconds_per_epoch())
    tables = [measure_table(grid, measure) for measure in measures]
    for place, by_column in enumerate(column_targets(grid, targets)):
        tables += time_tables(grid, by_column, place)
    return tables


def summary(grid: Grid) -> TextTable:
    """Make the table of a grid with one column."""
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
        rows.append((grid.rows[i].text, tuple(cells)))
    headings = ["n", *(measure.title for measure in measures), *shown]
    where = grid.columns[0].text
    return TextTable(
        f"{grid.evaluated}-summary",
        f"{where + ': ' if where else ''}mean ± sample standard deviation over n seeds",
        grid.corner,
        tuple((heading,) for heading in headings),
        tuple(rows),
    )


def measure_cell(group: Group, measure: Measure, judgement: Judgement | None, row: int) -> Cell:
    """Write one figure of one group, with what a test says of it."""
    found = spread(group, measure)
    return Cell(
        found.show(measure.scale, measure.digits),
        bold=judgement is not None and judgement.clear and judgement.best == row,
        level=judgement is not None
        and bool(judgement.level)
        and row in (judgement.best, *judgement.level),
    )


def measure_table(grid: Grid, measure: Measure) -> TextTable:
    """Make the table of one figure over several columns."""
    usual = usual_count(grid)
    cells: dict[tuple[int, int], Cell] = {}
    for j in range(len(grid.columns)):
        judgement = judge_column(grid, measure, j)
        for i, group in grid.column(j).items():
            cell = measure_cell(group, measure, judgement, i)
            cells[i, j] = Cell(cell.text, cell.bold, cell.level, state_note(group, usual))
    caption = f"{measure.meaning}: mean ± sample standard deviation over {usual} seeds"
    return _laid_out(grid, measure.key, caption, cells)


def usual_count(grid: Grid) -> int:
    """Return the number of finished seeds that most entries have."""
    counts = Counter(len(group.finished) for group in grid.groups)
    return max(counts, key=lambda count: (counts[count], count))


def state_note(group: Group, usual: int) -> str:
    """Say what is unusual about an entry's runs."""
    finished, diverged, pruned = (group.count(s) for s in ("finished", "diverged", "pruned"))
    parts = [f"n = {finished}"] if finished != usual else []
    parts += [f"{diverged} diverged"] if diverged else []
    parts += [f"{pruned} pruned"] if pruned else []
    parts += [f"{group.unfinished} unfinished"] if group.unfinished else []
    return f"({', '.join(parts)})" if parts else ""


def _laid_out(grid: Grid, name: str, caption: str, cells: dict[tuple[int, int], Cell]) -> TextTable:
    if grid.layout.turned:
        turned = [
            (heading.text, tuple(cells.get((i, j), Cell("")) for i in range(len(grid.rows))))
            for j, heading in enumerate(grid.columns)
        ]
        systems = tuple((heading.text,) for heading in grid.rows)
        return TextTable(
            name, caption, describe_fields(grid.layout.columns), systems, tuple(turned)
        )
    rows = [
        (heading.text, tuple(cells.get((i, j), Cell("")) for j in range(len(grid.columns))))
        for i, heading in enumerate(grid.rows)
    ]
    columns = tuple(heading.parts for heading in grid.columns)
    return TextTable(name, caption, grid.corner, columns, tuple(rows))


def course(grid: Grid, targets: Sequence[float]) -> TextTable:
    """Make the table of how a grid with one column came to its figures."""
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
        rows.append((grid.rows[i].text, tuple(cells)))
    return TextTable(
        f"{split}-course",
        "The way there: mean accuracy over all epochs, and the time until an accuracy was first "
        "reached, over the runs that reached it",
        grid.corner,
        tuple((heading,) for heading in headings),
        tuple(rows),
    )


def time_cells(group: Group, target: float | None) -> list[Cell]:
    """Write how many runs reached a target, in how many epochs and in how many seconds."""
    if target is None:
        return [Cell(NOTHING)] * 3
    found = time_to(group, target)
    return [
        Cell(f"{found.reached} of {found.runs}"),
        Cell(found.epochs.show(1, 1)),
        Cell(found.seconds.show(1, 1)),
    ]


def time_tables(grid: Grid, targets: Sequence[float | None], place: int) -> list[TextTable]:
    """Make the tables of epochs and of seconds to a target, over several columns.

    Args:
        grid: The entries.
        targets: The target of each column.
        place: Which of the targets it is.
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
