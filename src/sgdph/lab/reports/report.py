"""A report on finished runs: tables, curves and pages, made of their directories alone."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from sgdph.lab.errors import LabError
from sgdph.lab.files import write_text
from sgdph.lab.reports.export import targets_to_csv, to_csv
from sgdph.lab.reports.grid import Grid, make_grids
from sgdph.lab.reports.latex import to_latex
from sgdph.lab.reports.layout import Layout, saved_layout
from sgdph.lab.reports.page import Section, to_html_page, to_markdown_page
from sgdph.lab.reports.pictures import EPOCHS, VALIDATION, draw_pictures, picture_names
from sgdph.lab.reports.table import TextTable
from sgdph.lab.reports.tables import make_tables
from sgdph.lab.reports.words import (
    default_title,
    describe_recipe,
    describe_task,
    notes,
    verdicts,
)
from sgdph.lab.run.records import Runs, read_runs

REPORT, PAGE, TABLE, LATEX, TARGETS, PLOT = (
    "report.md",
    "index.html",
    "table.csv",
    "table.tex",
    "targets.csv",
    EPOCHS,
)
REPORT_FILES = (REPORT, PAGE, TABLE, LATEX, TARGETS, *picture_names())
# The beginnings of files that only a report of ours can have left.
_OURS = {PAGE: 'content="sgdph report"', TABLE: "optimizer,n,final_"}


@dataclass(frozen=True)
class Report:
    """What was reported.

    Attributes:
        title: Its title.
        runs: The runs that it is made of, and what was left out.
        sections: A section per kind of images that runs were evaluated on.
    """

    title: str
    runs: Runs
    sections: tuple[Section, ...]

    @property
    def main_tables(self) -> list[TextTable]:
        """Each section's first table."""
        return [section.tables[0] for section in self.sections]


def write_report(directory: Path, layout: Layout | None = None) -> Report:
    """Write the report on the runs under a directory into it.

    Args:
        directory: Holds the runs.
        layout: What the tables' rows and columns are; that of the directory's own sweep where
            ``None``.

    Raises:
        LabError: If there is no run that can be read.
    """
    return report_on([directory], directory, layout or saved_layout(directory), ())


def report_on(paths: Sequence[Path], out: Path, layout: Layout, targets: Sequence[float]) -> Report:
    """Write the report on all runs under some directories.

    Args:
        paths: The directories.
        out: Where the report goes; made if it is not there.
        layout: What the tables' rows and columns are, and the title.
        targets: Accuracies between 0 and 1 whose times are told; none for one of each column's own.

    Raises:
        LabError: If there is no run that can be read, or a path is no directory.
    """
    runs = read_runs(paths)
    grids = make_grids(runs.records, layout)
    out.mkdir(parents=True, exist_ok=True)
    title = layout.title or default_title(grids)
    sections = tuple(
        _section(grid, out, VALIDATION if place else "", targets)
        for place, grid in enumerate(grids)
    )
    tables = [table for section in sections for table in section.tables]
    said = [f"{section.heading}. {line}" for section in sections for line in section.notes]
    write_text(out / TABLE, to_csv(grids))
    write_text(out / TARGETS, targets_to_csv(grids, targets))
    write_text(out / LATEX, to_latex(tables, said))
    write_text(out / REPORT, to_markdown_page(title, sections, runs, out))
    write_text(out / PAGE, to_html_page(title, sections, runs, out))
    return Report(title, runs, sections)


def _section(grid: Grid, out: Path, suffix: str, targets: Sequence[float]) -> Section:
    records = [run for group in grid.groups for run in group.runs]
    task = describe_task(records)
    recipe = describe_recipe(records)
    return Section(
        grid,
        f"{task}; {recipe}" if recipe else task,
        tuple(make_tables(grid, targets)),
        tuple(line for line in verdicts(grid) if line),
        tuple(notes(grid, targets)),
        tuple(draw_pictures(grid, out, suffix, task)),
    )


def verdict(report: Report) -> str:
    """Say what the final accuracies show, a line per column."""
    return "\n".join(line for section in report.sections for line in section.verdicts)


def check_out(out: Path) -> None:
    """Raise LabError if a report would go over files that are not a report's.

    Inspections and cost studies have tables and pages of the same names.
    """
    if out.exists() and not out.is_dir():
        raise LabError(f"{out} is a file; --out must name a directory")
    there = [name for name in REPORT_FILES if (out / name).exists()]
    if there and not any(_begins(out / name, mark) for name, mark in _OURS.items()):
        raise LabError(
            f"{out} holds {', '.join(there)} that no report has written; name another --out"
        )


def _begins(file: Path, mark: str) -> bool:
    if not file.is_file():
        return False
    with file.open(encoding="utf-8", errors="replace") as stream:
        return mark in stream.read(1000)
