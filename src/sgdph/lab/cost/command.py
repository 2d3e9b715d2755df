"""The command ``sgdph cost``: what it does with its options, and what it prints."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import torch
from rich.console import Console

from sgdph.lab.cost.directory import BARS, FIGURES, SWEEP, CostDirectory
from sgdph.lab.cost.figures import CellFigures, CostSettings
from sgdph.lab.cost.measure import check_cells, measure_cell
from sgdph.lab.cost.options import CostOptions, default_cost_out, resolve_cost
from sgdph.lab.cost.report import cost_tables, describe, describe_cell, notes, write_report
from sgdph.lab.errors import OK, LabError
from sgdph.lab.progress import StepReporter, say, say_files, step_reporter_for
from sgdph.lab.reports.folder import PAGE, TABLE, TEXT
from sgdph.lab.run.out import (
    check_target,
    disagreement,
    report_interruption,
    setting_differences,
)
from sgdph.lab.run.start import pick_device


def cost(options: CostOptions, console: Console) -> int:
    """Measure the cost of a training step, cell by cell, and write a report.

    Returns:
        The exit code: 0 if all cells were measured (now or before), 130 if interrupted.

    Raises:
        LabError: If the options are invalid, or a cell cannot be measured.
    """
    given = options.given()
    requested = resolve_cost(given)
    directory = CostDirectory(options.out or default_cost_out(requested))
    check_target(directory, options)
    settings, cells = resumed(directory, given) if options.resume else (requested, [])
    check_cells(settings)
    device = pick_device(settings.device)
    torch.set_num_threads(settings.threads)
    if options.overwrite:
        directory.clear()
    directory.write(settings, cells)
    try:
        with step_reporter_for(console, len(settings.cells)) as reporter:
            measure_all(directory, settings, cells, device, reporter)
    except KeyboardInterrupt:
        write_report(directory)
        return report_interruption(console, "cost", directory.path, directory.exists())
    write_report(directory)
    show(directory, settings, cells, console)
    return OK


def resumed(
    directory: CostDirectory, given: Mapping[str, Any]
) -> tuple[CostSettings, list[CellFigures]]:
    """Return the saved settings and finished cells of a measurement that is resumed.

    Raises:
        LabError: If there is no measurement, or its settings differ from the given ones.
    """
    saved, cells = directory.read()
    problems = setting_differences(given, saved)
    if problems:
        what = f"the measurement in {directory.path}"
        workaround = "leave these options out to continue it, or name another --out for a new one"
        raise LabError(disagreement(what, problems, workaround))
    return saved, cells


def measure_all(
    directory: CostDirectory,
    settings: CostSettings,
    cells: list[CellFigures],
    device: torch.device,
    reporter: StepReporter,
) -> None:
    """Measure every cell that is not in ``cells`` yet, and add it there."""
    finished = {(cell.model, cell.batch_size) for cell in cells}
    for model, batch_size in settings.cells:
        if (model, batch_size) in finished:
            reporter.cell_finished(f"{model}, batch {batch_size}", "kept")
            continue
        cells.append(measure_cell(model, batch_size, settings, device, reporter))
        directory.write(settings, cells)
        reporter.cell_finished(cells[-1].name, describe_cell(cells[-1]))


def show(
    directory: CostDirectory, settings: CostSettings, cells: list[CellFigures], console: Console
) -> None:
    """Print the tables, how to read them, and the paths of the files."""
    for cell in cells:
        for table in cost_tables(cell):
            console.print(table.rich())
    say(console, f"{describe(settings, cells)}.")
    for line in notes(settings, cells):
        say(console, line)
    files = {"page": PAGE, "report": TEXT, "table": TABLE}
    files |= {"plot": BARS, "sweep": SWEEP, "figures": FIGURES}
    say_files(console, directory.path, files)
