"""The table of a comparison: one row per group of runs, as CSV, markdown or for the terminal."""

from __future__ import annotations

import csv
import io
import statistics
from collections.abc import Callable, Sequence
from dataclasses import dataclass

from rich.table import Table

from sgdph.lab.records import Group, RunRecord


@dataclass(frozen=True)
class Spread:
    """Mean and sample standard deviation (n - 1) of some runs' figures.

    Attributes:
        mean: Arithmetic mean; ``None`` of no figures.
        std: Standard deviation; ``None`` of fewer than two figures, of which there is none.
    """

    mean: float | None
    std: float | None

    @classmethod
    def of(cls, values: Sequence[float]) -> Spread:
        """Summarise figures."""
        return cls(
            statistics.fmean(values) if values else None,
            statistics.stdev(values) if len(values) > 1 else None,
        )

    def show(self, scale: float, digits: int) -> str:
        """Write ``mean ± std``, both times ``scale``, with a dash for what there is not."""
        mean, std = (
            "–" if value is None else f"{value * scale:.{digits}f}"
            for value in (self.mean, self.std)
        )
        return f"{mean} ± {std}" if self.mean is not None else "–"


@dataclass(frozen=True)
class Column:
    """One figure of the table.

    Attributes:
        key: Its name in the CSV file.
        title: Its heading.
        figure: Reads it from a finished run.
        scale: What it is multiplied by to be shown.
        digits: Decimals shown.
    """

    key: str
    title: str
    figure: Callable[[RunRecord], float]
    scale: float
    digits: int


def _seconds_per_epoch(run: RunRecord) -> float:
    return float(run.summary["seconds"]) / max(1, int(run.summary["epochs"]))


FINAL = Column(
    "final_test_accuracy",
    "final test accuracy, %",
    lambda run: run.figure("final") or 0.0,
    100,
    2,
)
COLUMNS = (
    FINAL,
    Column(
        "best_test_accuracy",
        "best test accuracy, %",
        lambda run: run.figure("best") or 0.0,
        100,
        2,
    ),
    Column(
        "final_train_loss",
        "final training loss",
        lambda run: float(run.summary["final_train_loss"]),
        1,
        4,
    ),
    Column("seconds_per_epoch", "training s / epoch", _seconds_per_epoch, 1, 2),
)


def spread(group: Group, column: Column) -> Spread:
    """Summarise one figure over a group's finished runs."""
    return Spread.of([column.figure(run) for run in group.finished])


def _states(groups: Sequence[Group]) -> list[str]:
    """Name the states other than finished that occur and so deserve a column."""
    shown = {"diverged": ("diverged",), "unfinished": ("running", "interrupted")}
    return [
        title
        for title, states in shown.items()
        if any(group.count(state) for group in groups for state in states)
    ]


def _count(group: Group, title: str) -> int:
    if title == "unfinished":
        return group.count("running") + group.count("interrupted")
    return group.count(title)


def cells(groups: Sequence[Group]) -> tuple[list[str], list[list[str]]]:
    """Lay the table out as texts.

    Returns:
        The headings, and one row per group; columns for diverged and unfinished runs only where
        there are any.
    """
    states = _states(groups)
    headings = ["optimizer", "n", *(column.title for column in COLUMNS), *states]
    rows = [
        [
            group.label,
            str(len(group.finished)),
            *(spread(group, column).show(column.scale, column.digits) for column in COLUMNS),
            *(str(_count(group, state)) for state in states),
        ]
        for group in groups
    ]
    return headings, rows


def to_rich(groups: Sequence[Group]) -> Table:
    """Make the table for the terminal."""
    headings, rows = cells(groups)
    table = Table(title="mean ± standard deviation over n seeds", title_justify="left")
    for index, heading in enumerate(headings):
        table.add_column(heading, justify="left" if index == 0 else "right")
    for row in rows:
        table.add_row(*row)
    return table


def to_markdown(groups: Sequence[Group]) -> str:
    """Make the table for a markdown page."""
    headings, rows = cells(groups)
    rule = ["---", *("---:" for _ in headings[1:])]
    return "".join(f"| {' | '.join(line)} |\n" for line in [headings, rule, *rows])


def to_csv(groups: Sequence[Group]) -> str:
    """Make the table as CSV: fractions and seconds in full, empty where there is no figure."""
    stream = io.StringIO()
    writer = csv.writer(stream, lineterminator="\n")
    figures = [f"{column.key}_{part}" for column in COLUMNS for part in ("mean", "std")]
    writer.writerow(["optimizer", "n", *figures, "diverged", "unfinished"])
    for group in groups:
        spreads = [spread(group, column) for column in COLUMNS]
        values = [value for each in spreads for value in (each.mean, each.std)]
        writer.writerow(
            [
                group.label,
                len(group.finished),
                *("" if value is None else repr(value) for value in values),
                _count(group, "diverged"),
                _count(group, "unfinished"),
            ]
        )
    return stream.getvalue()
