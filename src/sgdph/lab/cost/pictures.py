"""Pictures of a measurement, made from its results alone."""

from __future__ import annotations

import math
import textwrap
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from sgdph.lab.cost.directory import TITLE
from sgdph.lab.cost.figures import CellFigures
from sgdph.lab.cost.summary import Row, summarise
from sgdph.lab.reports.figure import figure, legend_below
from sgdph.lab.reports.styles import COLOURS, REFERENCE, SMALL, WIDTH, line_style, style_places

if TYPE_CHECKING:
    from matplotlib.axes import Axes

TIME, MEMORY, FLOOR = COLOURS[5], COLOURS[4], COLOURS[6]
RATIO = "ratio to a step of SGDM"
LEGEND = ("time, median of rounds", "floor, in FLOPs", "mean peak memory", "worst peak")


def draw_bars(cells: Sequence[CellFigures], path: Path, subtitle: str) -> None:
    """Draw each system's time and memory as bars, a panel per cell, into a PNG file."""
    rows = max(len(cell.systems) for cell in cells)
    height = 0.6 + len(cells) * (0.7 + 0.5 * rows)
    with figure(path, WIDTH, height, f"{TITLE}\n{subtitle}") as made:
        panels = made.subplots(len(cells), 1, squeeze=False, sharex=True)[:, 0]
        for axes, cell in zip(panels, cells, strict=True):
            draw_cell(axes, summarise(cell))
            axes.set_title(cell.name, loc="left")
            axes.tick_params(labelbottom=True)
        # Leave room for the numbers to the right of the longest bar.
        panels[-1].set_xlim(0, 1.35 * max(axes.dataLim.x1 for axes in panels))
        panels[-1].set_xlabel(RATIO)
        legend_below(made, LEGEND)


def draw_cell(axes: Axes, rows: Sequence[Row]) -> None:
    """Draw one cell's bars into a panel."""
    from matplotlib.patheffects import withStroke

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
        # Dark with a light outline, so that it is visible on a bar and on the page.
        axes.plot(
            *([floor, floor], [y - 0.44, y + 0.04]),
            color=FLOOR,
            linewidth=2.2,
            label=label,
            zorder=4,
            path_effects=[withStroke(linewidth=4.5, foreground="white")],
        )
    for y, row in zip(heights, rows, strict=True):
        # A floor to the right of the bar must not cross the number.
        end = max(row.time.highest, row.floor or 0.0)
        _write(axes, end, y - 0.19, f"{row.time.median:.2f}")
        if row.mean_peak is not None and row.worst_peak is not None:
            alike = row.worst_peak < row.mean_peak + 0.005
            worst = "" if alike else f", worst {row.worst_peak:.2f}"
            _write(axes, row.worst_peak, y + 0.19, f"{row.mean_peak:.2f}{worst}")
    axes.axvline(1.0, color=REFERENCE, linewidth=0.8, zorder=0)
    axes.set_yticks(list(heights), [textwrap.fill(row.label, 20) for row in rows])
    axes.invert_yaxis()
    axes.margins(y=0.01)
    axes.grid(False)


def _write(axes: Axes, behind: float, y: float, text: str) -> None:
    axes.annotate(
        text,
        (behind, y),
        xytext=(5, 0),
        textcoords="offset points",
        va="center",
        fontsize=SMALL,
        color="#333333",
    )


def draw_sweep(cells: Sequence[CellFigures], path: Path, subtitle: str) -> None:
    """Draw the ratios of time and memory over the cells, into a PNG file.

    If all cells have the same network, lines join its batch sizes. Otherwise the cells are drawn as
    points.
    """
    tables = [summarise(cell) for cell in cells]
    panels: list[tuple[str, Callable[[Row], float | None]]] = [
        (LEGEND[0], lambda row: row.time.median),
        (LEGEND[2], lambda row: row.mean_peak),
    ]
    joined = len({cell.model for cell in cells}) == 1
    height = 2.6 if joined else 0.7 + 0.16 * len(cells) * len(tables[0])
    with figure(path, WIDTH, 2 * height, f"{TITLE}\n{subtitle}") as made:
        drawn = made.subplots(2, 1, sharex=True, sharey=True)
        for axes, (title, figure_of) in zip(drawn, panels, strict=True):
            values = [[figure_of(row) for row in table] for table in tables]
            shown = [[math.nan if each is None else each for each in row] for row in values]
            draw = draw_over_batches if joined else draw_networks
            draw(axes, cells, shown)
            axes.set_title(title)
            axes.tick_params(labelbottom=True)
        made.axes[-1].set_xlabel("batch size" if joined else RATIO)
        legend_below(made)


def draw_over_batches(
    axes: Axes, cells: Sequence[CellFigures], values: Sequence[Sequence[float]]
) -> None:
    """Draw one line per system over the batch sizes; ``values`` has one row per cell."""
    sizes = [cell.batch_size for cell in cells]
    for k, label, style in _systems(cells):
        axes.plot(sizes, [row[k] for row in values], label=label, markersize=4.5, **style)
    axes.axhline(1.0, color=REFERENCE, linewidth=0.8)
    axes.set_xscale("log", base=2)
    axes.set_xticks(sizes, [str(size) for size in sizes])
    axes.minorticks_off()
    axes.set_ylim(bottom=0)
    axes.set_ylabel(RATIO)


def draw_networks(
    axes: Axes, cells: Sequence[CellFigures], values: Sequence[Sequence[float]]
) -> None:
    """Draw one point per system and cell; ``values`` has one row per cell."""
    systems = _systems(cells)
    for place, (k, label, style) in enumerate(systems):
        shift = 0.7 * ((place + 0.5) / len(systems) - 0.5)
        heights = [y + shift for y in range(len(cells))]
        points = [row[k] for row in values]
        axes.plot(points, heights, label=label, markersize=5, **{**style, "linestyle": "none"})
    axes.axvline(1.0, color=REFERENCE, linewidth=0.8)
    for y in range(1, len(cells)):
        axes.axhline(y - 0.5, color="#dddddd", linewidth=0.8)
    axes.set_yticks(range(len(cells)), _names(cells))
    axes.set_ylim(len(cells) - 0.5, -0.5)
    axes.grid(False, axis="y")


def _systems(cells: Sequence[CellFigures]) -> list[tuple[int, str, dict[str, Any]]]:
    """List the systems other than SGDM: their index in a cell, label and style."""
    systems = cells[0].systems
    styles = style_places([system.name for system in systems])
    return [(k, systems[k].label, line_style(styles[k])) for k in range(1, len(systems))]


def _names(cells: Sequence[CellFigures]) -> list[str]:
    """Name the cells by network, and by batch size if these differ."""
    if len({cell.batch_size for cell in cells}) == 1:
        return [cell.model for cell in cells]
    return [f"{cell.model}\nbatch {cell.batch_size}" for cell in cells]
