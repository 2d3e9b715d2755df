"""The command ``sgdph report``: it follows the options and prints the result."""

from __future__ import annotations

from pathlib import Path

from rich.console import Console

from sgdph.lab.errors import OK, LabError
from sgdph.lab.progress import say, say_files
from sgdph.lab.reports.archive import archive_report, check_archive, check_earlier_archive
from sgdph.lab.reports.folder import PAGE, TABLE, TEXT
from sgdph.lab.reports.lead import not_alike
from sgdph.lab.reports.options import ReportOptions
from sgdph.lab.reports.pictures import EPOCHS as PLOT
from sgdph.lab.reports.report import (
    LATEX,
    Report,
    check_out,
    report_on,
    verdict,
    write_report,
)
from sgdph.lab.run.archive import EPOCHS, RUNS


def report(options: ReportOptions, console: Console) -> int:
    """Write a report on runs, and print it.

    Returns:
        The exit code, 0.

    Raises:
        LabError: If the options are invalid, or there is no run.
    """
    if not options.runs:
        raise LabError("sgdph report needs a directory that holds runs, like: sgdph report runs")
    layout, targets = options.layout(), options.targets()
    check_out(options.place)
    if options.archive:
        check_archive(options.runs, options.place)
    else:
        check_earlier_archive(options.runs, options.place)
    coming = (EPOCHS, RUNS) if options.archive else ()
    made = report_on(options.runs, options.place, layout, targets, coming)
    if options.archive:
        archive_report(made, options.place, layout)
    show_report(made, options.place, console)
    return OK


def show_report(made: Report, out: Path, console: Console) -> None:
    """Print a report's first tables and verdicts, and the paths of its files."""
    for table in made.main_tables:
        console.print(table.rich())
    for section in made.sections:
        for line in not_alike(section.grid):
            say(console, line)
    say(console, verdict(made))
    for broken in made.runs.unreadable:
        say(console, f"Unreadable, left out: {broken.path}: {broken.reason}")
    if made.runs.duplicates:
        count = len(made.runs.duplicates)
        say(console, f"{count} run(s) of the same configuration and seed as another: left out.")
    files = {"page": PAGE, "latex": LATEX, "report": TEXT, "table": TABLE, "plot": PLOT}
    say_files(console, out, {**files, "runs": EPOCHS})


def say_report(directory: Path, console: Console) -> None:
    """Write the report on the runs under a directory, and print its tables and paths."""
    show_report(write_report(directory), directory, console)
    say(console, f"runs   {directory.resolve()}")
