"""The tables of a tuning."""

from __future__ import annotations

from collections.abc import Sequence

from sgdph.lab.reports.numbers import percent
from sgdph.lab.reports.table import Cell, Column, Table
from sgdph.lab.tune.outcome import Search, TrialRecord, show_settings

STATUSES = ("finished", "pruned", "diverged", "unfinished")


def best_table(searches: Sequence[Search]) -> Table:
    """Make the table of the best settings."""
    columns = (
        Column("optimizer", "left"),
        Column("best, %", form=percent),
        Column("its settings", "left"),
        *map(Column, STATUSES),
    )
    rows = tuple(
        (
            search.optimizer,
            search.best and search.best.accuracy,
            search.best and show_settings(search.best.settings),
            *map(search.count, STATUSES),
        )
        for search in searches
    )
    return Table(columns, rows, "Best settings on the validation images")


def spent_table(searches: Sequence[Search]) -> Table:
    """Make a table of the epochs and seconds that each optimizer's trials took."""
    columns = (
        Column("optimizer", "left"),
        Column("trials"),
        Column("epochs"),
        Column("seconds", form=",.0f"),
    )
    rows = tuple(
        (
            search.optimizer,
            len(search.trials),
            sum(len(trial.run.metrics) for trial in search.trials),
            sum(trial.seconds for trial in search.trials),
        )
        for search in searches
    )
    return Table(columns, rows)


def trials_table(search: Search) -> Table:
    """Make a table of an optimizer's trials, the best first."""
    columns = (
        Column(search.optimizer, "left"),
        *(Column(name, form="g") for name in search.space),
        Column("status", "left"),
        Column("epochs"),
        Column("validation accuracy, %", form=percent),
        Column("loss", form=".4f"),
    )
    rows = tuple(
        (
            Cell(name := trial.run.path.name, link=f"{search.optimizer}/{name}/"),
            *(trial.settings[each] for each in search.space),
            trial.status,
            len(trial.run.metrics),
            trial.accuracy,
            trial.loss,
        )
        for trial in sorted(search.trials, key=_rank)
    )
    return Table(columns, rows)


def figures_table(searches: Sequence[Search]) -> Table:
    """Make the table for programs: a row per trial."""
    return Table.of_records(
        [
            {
                "trial": f"{search.optimizer}/{trial.run.path.name}",
                "optimizer": search.optimizer,
                "status": trial.status,
                "validation_accuracy": trial.accuracy,
                "validation_loss": trial.loss,
                "epochs": len(trial.run.metrics),
                "seconds": trial.seconds,
                **trial.settings,
            }
            for search in searches
            for trial in search.trials
        ]
    )


def _rank(trial: TrialRecord) -> tuple[bool, float, float, int]:
    return (
        trial.status != "finished",
        -(trial.accuracy or 0.0),
        trial.loss or 0.0,
        trial.number,
    )
