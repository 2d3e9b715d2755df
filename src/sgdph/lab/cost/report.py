"""The page, tables and pictures of a measurement, made from its directory alone."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace

from sgdph.lab.cost.directory import (
    BARS,
    FORMER,
    GENERATOR,
    HOLDS,
    SWEEP,
    TITLE,
    CostDirectory,
)
from sgdph.lab.cost.figures import BASE, MATH_BASE, CellFigures, CostSettings
from sgdph.lab.cost.pictures import draw_bars, draw_sweep
from sgdph.lab.cost.summary import summarise
from sgdph.lab.reports.folder import Page, write_folder
from sgdph.lab.reports.numbers import counted, fixed
from sgdph.lab.reports.page import Block, Bullets, Picture, Section, machine_section
from sgdph.lab.reports.statistics import Range
from sgdph.lab.reports.table import Column, Table

COLUMNS = (
    Column("time", form=".2f"),
    Column("lowest to highest"),
    Column("time of a refresh", form=".2f"),
    Column("mean peak memory", form=".2f"),
    Column("worst peak", form=".2f"),
    Column("FLOPs", form=".2f"),
    Column("floor", form=".2f"),
)


def write_report(directory: CostDirectory) -> list[CellFigures]:
    """Write page, tables and pictures into the measurement's directory.

    Returns:
        The reported cells. If there are none, nothing is written.

    Raises:
        LabError: If the directory cannot be read.
    """
    settings, cells = directory.read()
    if not cells:
        return cells
    line, path = describe(settings, cells), directory.path
    pictures = [Picture(path / BARS, "Time and memory of each system")]
    draw_bars(cells, path / BARS, line)
    if len(cells) > 1:
        pictures.append(Picture(path / SWEEP, "Time and memory over the cells"))
        draw_sweep(cells, path / SWEEP, line)
    blocks: list[Block] = [
        f"{line}.",
        *map(_section, cells),
        Bullets(notes(settings, cells)),
        *pictures,
        machine_section(cell.environment for cell in cells),
    ]
    page = Page(TITLE, tuple(blocks), GENERATOR)
    write_folder(path, page, figures_table(cells), HOLDS, former=FORMER)
    return cells


def cost_tables(cell: CellFigures) -> list[Table]:
    """Make a cell's tables of ratios: to SGDM's step, and to SGDM's step with math attention.

    The second table is made only if SGDM with math attention was measured.
    """
    measured = {system.name for system in cell.systems}
    return [cost_table(cell, base) for base in (BASE, MATH_BASE) if base in measured]


def cost_table(cell: CellFigures, base: str = BASE) -> Table:
    """Make a cell's table of ratios to the step of a base system, with one row per system."""
    (label,) = (system.label for system in cell.systems if system.name == base)
    rows = tuple(
        (
            row.label,
            row.time.median,
            row.time.reach(fixed),
            row.refresh,
            row.mean_peak,
            row.worst_peak,
            row.flops,
            row.floor,
        )
        for row in summarise(cell, base)
    )
    return Table((Column(f"{label} = 1.00", "left"), *COLUMNS), rows, cell.name)


def figures_table(cells: Sequence[CellFigures]) -> Table:
    """Make the machine-readable table: one row per cell and system, with all ratios."""
    return Table.of_records(
        [
            {
                "model": cell.model,
                "batch_size": cell.batch_size,
                "system": system.name,
                "label": row.label,
                "seconds": row.seconds,
                **_parts("process", row.process),
                **_parts("wall", row.wall),
                "refresh": row.refresh,
                "mean_peak": row.mean_peak,
                "worst_peak": row.worst_peak,
                "mean_total_peak": row.mean_total_peak,
                "worst_total_peak": row.worst_total_peak,
                "flops": row.flops,
                "floor": row.floor,
            }
            for cell in cells
            for system, row in zip(cell.systems, summarise(cell), strict=True)
        ]
    )


def _parts(clock: str, ratio: Range | None) -> dict[str, float | None]:
    return {
        f"{clock}_{part}": None if ratio is None else getattr(ratio, part)
        for part in ("median", "lowest", "highest")
    }


def _section(cell: CellFigures) -> Section:
    count = f"{len(cell.visited)} of {cell.newton}"
    listed = ", ".join(f"`{name}`" for name in cell.visited)
    visited = f"{cell.parameters:,} parameters; visited {count} Newton parameters: {listed}."
    tables = [replace(table, caption="") for table in cost_tables(cell)]
    return Section(cell.name, [*tables, visited])


def describe(settings: CostSettings, cells: Sequence[CellFigures]) -> str:
    """Describe in one line how it was measured."""
    environment = cells[0].environment
    device = environment["device_name"] or environment["device"]
    parts = [
        str(device),
        "bfloat16 autocast" if settings.precision == "bfloat16" else settings.precision,
        "channels last" if settings.channels_last else "",
        "compiled" if settings.compile else "",
        counted(environment["threads"], "CPU thread"),
        counted(settings.rounds, "round"),
        f"torch {environment['torch']}",
    ]
    return ", ".join(part for part in parts if part)


def describe_cell(cell: CellFigures) -> str:
    """Summarise a cell's times in one line."""
    rows = summarise(cell)
    return ", ".join(f"{row.label} {row.time.median:.2f}" for row in rows)


def notes(settings: CostSettings, cells: Sequence[CellFigures]) -> list[str]:
    """Explain how to read the tables, with the notes that apply to this measurement."""
    on_cuda = cells[0].systems[0].kinds["plain"].process_seconds is None
    clock = "wall time, the device waited for" if on_cuda else "the process's CPU time"
    lines = [
        f"Time is {clock}: per round the mean over the visited parameters, as a ratio to SGDM's in "
        "the same round; the median over rounds, lowest to highest. The systems alternate, step by "
        "step, in one process.",
        "Memory is the peak of live tensor bytes allocated during the step, on top of parameters, "
        "buffers, optimizer state and batch.",
        "FLOPs are torch's count of products; elementwise work is not counted. The floor is the "
        "least that a step with a partial Hessian needs: SGDM's step, and for each layer after "
        "the parameter two products more, for each fused attention seventeen (causal or not).",
    ]
    if any(len(system.kinds) > 1 for cell in cells for system in cell.systems):
        lines.append(
            "If only every n-th step refreshes, both kinds of step were measured and weighted 1 "
            "to n - 1."
        )
    if settings.compile:
        lines.append(
            "The model is compiled. Steps that take second derivatives run it uncompiled (marked "
            "eager), because compiled models have none. FLOPs are those of the uncompiled model."
            + ("" if on_cuda else " The memory of compiled code on the CPU is not seen.")
        )
    return lines
