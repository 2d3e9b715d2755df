"""Pictures of a measurement, made of its figures alone."""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import TYPE_CHECKING

from sgdph.lab.cost.figures import CellFigures
from sgdph.lab.cost.summary import Row, summarise
from sgdph.lab.reports.figure import COLOURS, REFERENCE, figure, legend_below, line_style

if TYPE_CHECKING:
    from matplotlib.axes import Axes

TIME, MEMORY, FLOOR = COLOURS[0], COLOURS[4], COLOURS[1]
TITLE = "What a training step costs"
LEGEND = ("time, median of rounds", "floor, in FLOPs", "mean peak memory", "worst peak")


def draw_bars(cells: Sequence[CellFigures], path: Path, subtitle: str) -> None:
    """Draw every system's time and memory as bars, a panel per cell, into a PNG file."""
    rows = max(len(cell.systems) for cell in cells)
    height = 1.3 + len(cells) * (0.9 + 0.46 * rows)
    with figure(path, 10.5, height, f"{TITLE}\n{subtitle}") as made:
        panels = made.subplots(len(cells), 1, squeeze=False)[:, 0]
        for axes, cell in zip(panels, cells, strict=True):
            draw_cell(axes, summarise(cell))
            axes.set_title(cell.name, loc="left")
        panels[-1].set_xlabel("ratio to a step of SGDM")
        legend_below(made, 4, LEGEND)


def draw_cell(axes: Axes, rows: Sequence[Row]) -> None:
    """Draw one cell's bars into a panel."""
    heights = range(len(rows))
    widths = [row.time.median for row in rows]
    reach = [
        [row.time.median - row.time.lowest for row in rows],
        [row.time.highest - row.time.median for row in rows],
    ]
    axes.barh([y - 0.19 for y in heights], widths, 0.36, color=TIME, label=LEGEND[0])
    axes.errorbar(
        widths, [y - 0.19 for y in heights], xerr=reach, fmt="none", ecolor="#333333", capsize=2
    )
    seen = [(y, row.mean_peak, row.worst_peak) for y, row in zip(heights, rows, strict=True)]
    memory = [(y + 0.19, mean, worst) for y, mean, worst in seen if mean is not None]
    if memory:
        places, means, worsts = zip(*memory, strict=True)
        axes.barh(places, means, 0.36, color=MEMORY, label=LEGEND[2])
        axes.plot(worsts, places, "|", color=MEMORY, markersize=11, mew=2, label=LEGEND[3])
    floors = [(row.floor, y) for y, row in zip(heights, rows, strict=True) if row.floor is not None]
    for i, (floor, y) in enumerate(floors):
        label = LEGEND[1] if i == 0 else None
        axes.plot([floor, floor], [y - 0.42, y + 0.02], color=FLOOR, linewidth=2.2, label=label)
    for y, row in zip(heights, rows, strict=True):
        # A floor that lies beyond the bar must not cross its figure.
        end = max(row.time.highest, row.floor or 0.0)
        _write(axes, end, y - 0.19, f"{row.time.median:.2f}")
        if row.mean_peak is not None and row.worst_peak is not None:
            alike = row.worst_peak < row.mean_peak + 0.005
            worst = "" if alike else f", worst {row.worst_peak:.2f}"
            _write(axes, row.worst_peak, y + 0.19, f"{row.mean_peak:.2f}{worst}")
    axes.axvline(1.0, color=REFERENCE, linewidth=0.8, zorder=0)
    axes.set_yticks(list(heights), [row.label for row in rows])
    axes.invert_yaxis()
    axes.margins(x=0.08, y=0.01)
    axes.set_xlim(left=0)
    axes.grid(False)


def _write(axes: Axes, behind: float, y: float, text: str) -> None:
    axes.annotate(
        text,
        (behind, y),
        xytext=(5, 0),
        textcoords="offset points",
        va="center",
        fontsize="x-small",
        color="#333333",
    )


def draw_sweep(cells: Sequence[CellFigures], path: Path, subtitle: str) -> None:
    """Draw the ratios of time and memory over the cells, a line per system, into a PNG file."""
    tables = [summarise(cell) for cell in cells]
    panels: list[tuple[str, Callable[[Row], float | None]]] = [
        (LEGEND[0], lambda row: row.time.median),
        (LEGEND[2], lambda row: row.mean_peak),
    ]
    with figure(path, 12, 6.8, f"{TITLE}\n{subtitle}") as made:
        for axes, (title, figure_of) in zip(made.subplots(1, 2), panels, strict=True):
            for i, row in enumerate(tables[0][1:], 1):
                figures = [figure_of(table[i]) for table in tables]
                values = [math.nan if value is None else value for value in figures]
                axes.plot(values, label=row.label, markersize=4.5, **line_style(i - 1))
            axes.axhline(1.0, color=REFERENCE, linewidth=0.8)
            axes.set_xticks(range(len(cells)), _names(cells))
            axes.set_title(title)
            axes.set_ylim(bottom=0)
            axes.grid(False, axis="x")
        made.axes[0].set_ylabel("ratio to a step of SGDM")
        legend_below(made, 3)


def _names(cells: Sequence[CellFigures]) -> list[str]:
    """Name the cells by what tells them apart."""
    if len({cell.model for cell in cells}) == 1:
        return [f"batch {cell.batch_size}" for cell in cells]
    if len({cell.batch_size for cell in cells}) == 1:
        return [cell.model for cell in cells]
    return [f"{cell.model}\nbatch {cell.batch_size}" for cell in cells]
