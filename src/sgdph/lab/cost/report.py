"""The page, tables and pictures of a measurement, made of its directory alone."""

from __future__ import annotations

from collections.abc import Sequence

from sgdph.lab.cost.directory import BARS, PAGE, SWEEP, TABLE, CostDirectory
from sgdph.lab.cost.figures import CellFigures, CostSettings
from sgdph.lab.cost.pictures import draw_bars, draw_sweep
from sgdph.lab.cost.summary import summarise
from sgdph.lab.cost.tables import to_csv, to_markdown
from sgdph.lab.files import write_text


def write_report(directory: CostDirectory) -> list[CellFigures]:
    """Write page, tables and pictures beside the figures that they are made of.

    Returns:
        The cells that were reported; where there is none, nothing is written.

    Raises:
        LabError: The directory cannot be read.
    """
    settings, cells = directory.read()
    if not cells:
        return cells
    line = describe(settings, cells)
    draw_bars(cells, directory.path / BARS, line)
    if len(cells) > 1:
        draw_sweep(cells, directory.path / SWEEP, line)
    write_text(directory.path / TABLE, to_csv(cells))
    write_text(directory.path / PAGE, to_page(settings, cells))
    return cells


def describe(settings: CostSettings, cells: Sequence[CellFigures]) -> str:
    """Say in one line how it was measured."""
    environment = cells[0].environment
    device = environment["device_name"] or environment["device"]
    parts = [
        str(device),
        "bfloat16 autocast" if settings.precision == "bfloat16" else settings.precision,
        "channels last" if settings.channels_last else "",
        "compiled" if settings.compile else "",
        f"{environment['threads']} CPU thread(s)",
        f"{settings.rounds} round(s)",
        f"torch {environment['torch']}",
    ]
    return ", ".join(part for part in parts if part)


def describe_cell(cell: CellFigures) -> str:
    """Put a cell's times into one line."""
    rows = summarise(cell)
    return ", ".join(f"{row.label} {row.time.median:.2f}" for row in rows)


def notes(settings: CostSettings, cells: Sequence[CellFigures]) -> list[str]:
    """Say how the table is to be read, as far as this one calls for it."""
    on_cuda = cells[0].systems[0].kinds["plain"].process_seconds is None
    clock = "wall time, the device waited for" if on_cuda else "the process's CPU time"
    lines = [
        f"Time is {clock}: per round the mean over the visited parameters, as a ratio to SGDM's in "
        "the same round; the median over rounds, lowest to highest. The systems alternate, step by "
        "step, in one process.",
        "Memory is the peak of live tensor bytes allocated during the step, on top of parameters, "
        "buffers, optimizer state and batch.",
        "FLOPs are torch's count of products; elementwise work counts as nothing. The floor is "
        "what a step with a partial Hessian cannot do without: SGDM's step, and two products per "
        "layer behind the parameter.",
    ]
    if any(len(system.kinds) > 1 for cell in cells for system in cell.systems):
        lines.append(
            "Where only every n-th step refreshes, both kinds of step were measured, and weighted "
            "1 to n - 1."
        )
    if settings.compile:
        lines.append(
            "The model is compiled; a step that takes second derivatives, which compiled models "
            "do not have, runs it uncompiled (marked eager). FLOPs are those of the uncompiled "
            "model." + ("" if on_cuda else " The memory of compiled code on the CPU is not seen.")
        )
    return lines


def to_page(settings: CostSettings, cells: Sequence[CellFigures]) -> str:
    """Write the markdown page."""
    sections = [
        "# What a training step costs",
        f"{describe(settings, cells)}.",
        *(_section(cell) for cell in cells),
        "\n".join(f"* {line}" for line in notes(settings, cells)),
        f"![Time and memory of each system]({BARS})",
    ]
    if len(cells) > 1:
        sections.append(f"![Time and memory over the cells]({SWEEP})")
    return "\n\n".join([*sections, "## Machine", _machines(cells)]) + "\n"


def _section(cell: CellFigures) -> str:
    count = f"{len(cell.visited)} of {cell.newton}"
    listed = ", ".join(f"`{name}`" for name in cell.visited)
    return (
        f"## {cell.name}\n\n{to_markdown(cell)}\n\n{cell.parameters:,} parameters; visited {count} "
        f"Newton parameters: {listed}."
    )


def _machines(cells: Sequence[CellFigures]) -> str:
    """List each machine and command once."""
    keys = ("cpu", "device", "device_name", "threads", "platform", "python", "torch", "git_commit")
    lines = []
    for cell in cells:
        known = {key: cell.environment[key] for key in keys} | cell.environment["optimizers"]
        shown = [f"{key.replace('_', ' ')} {value}" for key, value in known.items() if value]
        lines += [f"* {'; '.join(shown)}", f"* `{cell.environment['command']}`"]
    return "\n".join(dict.fromkeys(lines))
