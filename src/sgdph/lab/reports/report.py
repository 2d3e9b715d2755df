"""The report on finished runs: tables, curves and pages, made from the run directories alone."""

from __future__ import annotations

import os
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from urllib.parse import quote

from sgdph.lab.errors import LabError
from sgdph.lab.files import make_directory, write_text
from sgdph.lab.reports.csv_tables import figures_table, targets_table
from sgdph.lab.reports.folder import (
    PAGE_FILES,
    TABLE,
    Page,
    check_pages,
    generator_mark,
    page_marks,
    write_folder,
)
from sgdph.lab.reports.grid import Grid, make_grids
from sgdph.lab.reports.layout import SWEEP, Layout, saved_layout
from sgdph.lab.reports.lead import COMPARISON, lead
from sgdph.lab.reports.numbers import NOTHING, percent
from sgdph.lab.reports.page import Block, Bullets, Picture, Section, machine_section
from sgdph.lab.reports.pictures import PICTURE_MEANINGS, VALIDATION, draw_pictures
from sgdph.lab.reports.table import Cell, Column, Table, latex_file
from sgdph.lab.reports.tables import make_tables
from sgdph.lab.reports.words import (
    default_title,
    describe_recipe,
    describe_settings,
    describe_task,
    notes,
    verdicts,
)
from sgdph.lab.run.archive import EPOCHS as RUN_EPOCHS
from sgdph.lab.run.archive import RUNS
from sgdph.lab.run.records import Runs, read_runs

LATEX, TARGETS = "table.tex", "targets.csv"
REPORT_FILES = (*PAGE_FILES, LATEX, TARGETS, *PICTURE_MEANINGS)
# Other files that may be in a report's directory, and what each holds. They belong to the report,
# or to a comparison, a sweep or an archive.
HOLDS = {
    LATEX: "the tables for LaTeX, with booktabs' rules",
    TARGETS: "how many runs reached a target accuracy, and in how long",
    **PICTURE_MEANINGS,
    RUN_EPOCHS: "the runs: a line per run and epoch, every figure in full",
    RUNS: "the runs: a line per run, its configuration, outcome and environment",
    COMPARISON: "what was compared; --resume reads it",
    SWEEP: "what the sweep consists of; a second call reads it",
    "*-seed*": "a folder per run: configuration, figures of each epoch, checkpoint, environment",
    "logs": "what parallel workers said, and why runs failed",
    "*.lock": "held while a process writes here, without a meaning otherwise",
}
GENERATOR = "sgdph report"
REPORT_MARKS = page_marks(GENERATOR, None, "optimizer,n,final_")
# Files that earlier versions wrote.
FORMER = {"index.html": generator_mark(GENERATOR)}


@dataclass(frozen=True)
class GridReport:
    """The part of a report on the runs that were evaluated on one kind of images."""

    grid: Grid
    lead: tuple[str, ...]
    tables: tuple[Table, ...]
    verdicts: tuple[str, ...]
    notes: tuple[str, ...]
    pictures: tuple[Picture, ...]

    @property
    def heading(self) -> str:
        """The heading, which names the images that the runs were evaluated on."""
        return {
            "test": "Evaluated on the test images",
            "validation": "Evaluated on held-out training images (validation)",
        }[self.grid.evaluated]

    @property
    def blocks(self) -> list[Block]:
        """The content of the page."""
        first, *others = self.tables
        verdicts, how = (
            Bullets(self.verdicts),
            Section("How to read this", [Bullets(self.notes)], 3),
        )
        return [Bullets(self.lead), first, verdicts, *others, how, *self.pictures]


@dataclass(frozen=True)
class Report:
    """A report.

    Attributes:
        title: Title of the report.
        runs: The reported runs, and those that were left out.
        sections: One section per kind of images that runs were evaluated on.
    """

    title: str
    runs: Runs
    sections: tuple[GridReport, ...]

    @property
    def main_tables(self) -> list[Table]:
        """The first table of each section."""
        return [section.tables[0] for section in self.sections]

    def blocks(self, out: Path) -> list[Block]:
        """Return the content of the report's page, which is written to ``out``."""
        blocks: list[Block] = []
        for section in self.sections:
            plain = len(self.sections) == 1 and section.grid.evaluated == "test"
            blocks.append(Section("" if plain else section.heading, section.blocks))
        left_out = describe_left_out(self.runs, out)
        blocks += [Section("Left out", [Bullets(left_out)])] if left_out else []
        grids = [section.grid for section in self.sections]
        settings = [
            Bullets([f"{name}: {text}" for name, text in describe_settings(grid)]) for grid in grids
        ]
        return [
            *blocks,
            Section("Settings", settings),
            Section("Runs", [runs_table(grid, out) for grid in grids], folded=True),
            machine_section(run.env for run in self.runs.records),
        ]


def write_report(directory: Path) -> Report:
    """Write the report on the runs under a directory into this directory.

    Args:
        directory: The directory with the runs, and with the layout of the tables if one is saved
            (see :func:`saved_layout`).

    Raises:
        LabError: If there is no readable run, or the saved layout cannot be read.
    """
    return report_on([directory], directory, saved_layout(directory), ())


def report_on(
    paths: Sequence[Path],
    out: Path,
    layout: Layout,
    targets: Sequence[float],
    coming: tuple[str, ...] = (),
) -> Report:
    """Write the report on all runs under some directories.

    Args:
        paths: The directories.
        out: Directory for the report. It is created if it does not exist.
        layout: Rows and columns of the tables, and the title.
        targets: Accuracies between 0 and 1. The report says how long the runs took to reach them.
            If empty, each column gets one target of its own.
        coming: Files that the caller writes to ``out`` right afterwards.

    Raises:
        LabError: If there is no readable run, or a path is not a directory.
    """
    runs = read_runs(paths)
    grids = make_grids(runs.records, layout)
    make_directory(out)
    figures = figures_table(grids)
    # Before the pictures, which have no mark: the next report replaces those of an interrupted one.
    write_text(out / TABLE, figures.csv())
    sections = tuple(
        _report_on_grid(grid, out, VALIDATION if place else "", targets)
        for place, grid in enumerate(grids)
    )
    report = Report(layout.title or default_title(grids), runs, sections)
    tables = [table for section in sections for table in section.tables]
    said = [f"{section.heading}. {line}" for section in sections for line in section.notes]
    write_text(out / TARGETS, targets_table(grids, targets).csv())
    write_text(out / LATEX, latex_file(tables, said))
    page = Page(report.title, tuple(report.blocks(out)), GENERATOR)
    write_folder(out, page, figures, HOLDS, coming, FORMER)
    return report


def _report_on_grid(grid: Grid, out: Path, suffix: str, targets: Sequence[float]) -> GridReport:
    records = [run for group in grid.groups for run in group.runs]
    task = describe_task(records)
    recipe = describe_recipe(records)
    return GridReport(
        grid,
        tuple(lead(grid, f"{task}; {recipe}" if recipe else task, out)),
        tuple(make_tables(grid, targets)),
        tuple(line for line in verdicts(grid) if line),
        tuple(notes(grid, targets)),
        tuple(draw_pictures(grid, out, suffix, task)),
    )


def runs_table(grid: Grid, out: Path) -> Table:
    """Make the table of a grid's runs, with their paths relative to the report's directory."""
    rows = []
    runs = [run for group in grid.groups for run in group.runs]
    for run in sorted(runs, key=lambda each: each.path):
        name = Path(os.path.relpath(run.path, out)).as_posix()
        # An archived run has no directory to link to.
        link = quote(os.fsencode(name)) + "/" if run.path.is_dir() else ""
        best = run.figure("best")
        epoch = run.summary.get("best_epoch", NOTHING)
        rows.append(
            (
                Cell(name, link=link),
                run.config.seed,
                run.status,
                percent(run.figure("final")),
                NOTHING if best is None else f"{percent(best)} ({epoch})",
            )
        )
    columns = (
        Column("run", "left"),
        Column("seed"),
        Column("status", "left"),
        Column(f"final {grid.evaluated} accuracy, %"),
        Column("best (epoch)"),
    )
    return Table(columns, tuple(rows))


def describe_left_out(runs: Runs, out: Path) -> list[str]:
    """List the runs that were left out, and why."""

    def seen(path: Path) -> str:
        return Path(os.path.relpath(path, out)).as_posix()

    return [
        *(f"Unreadable, left out: {seen(each.path)}: {each.reason}" for each in runs.unreadable),
        *(
            f"The same configuration and seed as {seen(kept.path)}, left out: {seen(run.path)}"
            for run, kept in runs.duplicates
        ),
    ]


def verdict(report: Report) -> str:
    """Return what the final accuracies show, as lines of text."""
    return "\n".join(line for section in report.sections for line in section.verdicts)


def check_out(out: Path) -> None:
    """Raise LabError if ``out`` is a file, or if a report would overwrite files of another kind.

    Inspections and cost studies have tables and pages with the same names.
    """
    if out.exists() and not out.is_dir():
        raise LabError(
            f"{out} is a file; give directories of runs, and a directory for the report (--out DIR)"
        )
    # A file without a mark of its own belongs to a report if a page or table of a report is there.
    check_pages(out, {**dict.fromkeys(REPORT_FILES), **REPORT_MARKS}, GENERATOR)
