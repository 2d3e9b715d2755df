"""Pictures of accuracy over settings: heat maps for two settings, lines for one."""

from __future__ import annotations

import math
from collections.abc import Sequence
from pathlib import Path
from statistics import median
from typing import TYPE_CHECKING, Any

import numpy as np

from sgdph.lab.reports.figure import figure, legend_below, make_panels, title_panel
from sgdph.lab.reports.sensitivity import Line, Point, Surface
from sgdph.lab.reports.styles import COLOURS, REFERENCE, SMALL, WIDTH, line_style, style_places

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.cm import ScalarMappable

# If less than this share of a map is filled, points on logarithmic axes are drawn instead.
FILLED = 0.4
# An axis is logarithmic from this ratio of the largest to the smallest positive value.
DECADE = 8
PER_ROW = 2
# Maps with more values per side than this are placed below one another.
FEW = 3
COLOUR_MAP = "viridis"
GREY = (0.85, 0.85, 0.85)
BEST = COLOURS[1]


def draw_surfaces(
    surfaces: Sequence[Surface],
    path: Path,
    title: str,
    *,
    what: str = "mean final accuracy (%)",
) -> None:
    """Draw accuracy over two settings, a panel per surface, into a PNG file.

    A grid of settings is drawn as a heat map with a number in each cell, the settings sorted.
    Scattered settings, such as those of a random search, are drawn as points. Their axes are
    logarithmic if the values span a large range.

    Args:
        surfaces: At least one surface. Settings without a finished run are grey in a heat map, and
            crosses among points.
        path: The file.
        title: Title above the panels.
        what: Label of the colour bar. Panels of one task share a colour scale.
    """
    cells = max(_most_values(surface) for surface in surfaces)
    wide = min(len(surfaces), 1 if cells > FEW else PER_ROW)
    deep = math.ceil(len(surfaces) / wide)
    side = min(12.0, max(WIDTH / wide, 0.8 * cells + 1.6))
    alike = len({surface.task for surface in surfaces}) == 1
    shared = alike and cells == 0 and len({(each.x, each.y) for each in surfaces}) == 1
    with figure(path, side * wide, 0.3 + (0.75 if wide == 1 else 1.1) * side * deep, title) as made:
        panels = make_panels(made, len(surfaces), wide, shared=shared)
        colours = []
        for axes, surface in zip(panels, surfaces, strict=True):
            title_panel(axes, surface.title, side)
            beside = [each for each in surfaces if each.task == surface.task]
            colours.append(_draw_surface(axes, surface, beside))
        if alike:
            bar: Any = {"location": "bottom", "shrink": 0.7, "aspect": 40, "extend": "min"}
            made.colorbar(colours[0], ax=panels, label=what, **bar)
        else:
            for axes, colour in zip(panels, colours, strict=True):
                bar = {"location": "bottom", "aspect": 30, "extend": "min"}
                made.colorbar(colour, ax=axes, label=what, **bar)
        legend_below(made)


def _draw_surface(axes: Axes, surface: Surface, beside: Sequence[Surface]) -> ScalarMappable:
    """Draw a surface into a panel; return its colours.

    Args:
        axes: The panel.
        surface: The surface.
        beside: The surfaces with the same colours and axis scales, including this one.
    """
    colours = _colours([point for each in beside for point in each.points])
    if _is_map(surface):
        _draw_map(axes, surface, colours)
    else:
        _draw_points(axes, surface, colours)
        places = [place for each in beside for place in each.places]
        _scale(axes.set_xscale, [x for x, _ in places])
        _scale(axes.set_yscale, [y for _, y in places])
    axes.set(xlabel=surface.x, ylabel=surface.y)
    return colours


def _most_values(surface: Surface) -> int:
    if not _is_map(surface):
        return 0
    return max(len({point.x for point in surface.points}), len({p.y for p in surface.points}))


def _is_map(surface: Surface) -> bool:
    columns, rows = ({p.x for p in surface.points}, {p.y for p in surface.points})
    places = {(point.x, point.y) for point in surface.points}
    single = len(places) == len(surface.points) > 2
    return single and len(places) >= FILLED * len(columns) * len(rows)


def _colours(points: Sequence[Point]) -> ScalarMappable:
    """Make a colour scale that cuts off a few very low accuracies.

    If they were included, the other settings would have nearly the same colour.
    """
    from matplotlib.cm import ScalarMappable
    from matplotlib.colors import Normalize

    means = [100 * p.accuracy.mean for p in points if p.accuracy.mean is not None] or [0.0]
    highest = max(means)
    lowest = max(min(means), highest - 3 * (highest - median(means)))
    if lowest == highest:
        lowest = min(min(means), highest - 1)
    return ScalarMappable(Normalize(lowest, highest), COLOUR_MAP)


def _draw_map(axes: Axes, surface: Surface, colours: ScalarMappable) -> None:
    """Draw one cell per combination of settings, with a frame around the best one."""
    from matplotlib.patches import Rectangle

    columns = sorted({point.x for point in surface.points})
    rows = sorted({point.y for point in surface.points})
    image = np.ones((len(rows), len(columns), 4))
    best = _best(surface.points)
    for point in surface.points:
        place = (columns.index(point.x), rows.index(point.y))
        mean = point.accuracy.mean
        colour = GREY if mean is None else _colour(colours, mean)
        image[place[1], place[0]] = (*colour, 1.0)
        axes.text(
            *(*place, _cell_text(point)),
            ha="center",
            va="center",
            fontsize=SMALL,
            color=_readable(colour),
        )
        if point is best:
            corner = (place[0] - 0.47, place[1] - 0.47)
            axes.add_patch(Rectangle(corner, 0.94, 0.94, fill=False, edgecolor=BEST, lw=2.5))
    axes.imshow(image, origin="lower", aspect="auto")
    axes.grid(False)
    axes.spines[:].set_visible(True)
    axes.set_xticks(range(len(columns)), [f"{value:g}" for value in columns], rotation=30)
    axes.set_yticks(range(len(rows)), [f"{value:g}" for value in rows])


def _best(points: Sequence[Point]) -> Point | None:
    known = [each for each in points if each.accuracy.mean is not None and not each.pruned]
    return max(known, key=lambda each: each.accuracy.mean or 0.0, default=None)


def _cell_text(point: Point) -> str:
    """Format a point's mean, standard deviation and number of runs."""
    found = point.accuracy
    lines = []
    if found.mean is not None:
        lines.append(f"{100 * found.mean:.1f}")
    if found.std is not None:
        lines.append(f"± {100 * found.std:.1f}")
    lines += [f"n = {found.n}"] if found.n else []
    lines += [f"{point.diverged} diverged"] if point.diverged else []
    lines += ["pruned"] if point.pruned else []
    return "\n".join(lines or ["no run\nfinished"])


def _colour(colours: ScalarMappable, accuracy: float) -> tuple[float, float, float]:
    red, green, blue, _ = colours.to_rgba(np.array([100 * accuracy]))[0]
    return red, green, blue


def _readable(colour: tuple[float, float, float]) -> str:
    """Choose black or white text by the brightness of the background colour."""
    red, green, blue = colour
    return "black" if 0.299 * red + 0.587 * green + 0.114 * blue > 0.5 else "white"


def _draw_points(axes: Axes, surface: Surface, colours: ScalarMappable) -> None:
    """Draw one mark per point: the best has a thick edge, one without a finished run is a cross."""
    best = _best(surface.points)
    for point in sorted(surface.points, key=lambda each: each.accuracy.mean or 0.0):
        if point.accuracy.mean is None:
            axes.scatter(point.x, point.y, marker="x", color=REFERENCE, label="none finished")
            continue
        axes.scatter(
            *(point.x, point.y, 70),
            marker="v" if point.pruned else "o",
            color=_colour(colours, point.accuracy.mean),
            edgecolors=BEST if point is best else "#555555",
            linewidths=2.5 if point is best else 0.6,
            label="best" if point is best else "pruned" if point.pruned else "finished",
            zorder=3,
        )
    if best is not None:
        axes.annotate(
            *(_cell_text(best).splitlines()[0], (best.x, best.y)),
            xytext=(8, 6),
            textcoords="offset points",
            fontsize=SMALL,
        )
    if surface.searched is not None:
        low, high = surface.searched
        corners = [low, (low[0], high[1]), high, (high[0], low[1]), low]
        axes.plot(*zip(*corners, strict=True), color=REFERENCE, ls=(0, (4, 3)), label="searched")


def _scale(set_scale: Any, values: Sequence[float]) -> None:
    """Make an axis logarithmic if its values span a large range; values of 0 stay visible."""
    positive = [value for value in values if value > 0]
    if not positive or max(positive) < DECADE * min(positive):
        return
    if min(values) < min(positive):
        set_scale("symlog", linthresh=min(positive))
    else:
        set_scale("log")


def draw_lines(lines: Sequence[Line], path: Path, title: str) -> None:
    """Draw accuracy over one setting, a panel per task and setting, into a PNG file.

    Args:
        lines: At least one line. Error bars are the sample standard deviation. A cross at the
            bottom is a setting without a finished run.
        path: The file.
        title: Title above the panels.
    """
    keys = list(dict.fromkeys((line.panel, line.x) for line in lines))
    names = list(dict.fromkeys(line.name for line in lines))
    optimizers = {line.name: line.optimizer for line in lines}
    places = style_places([optimizers[name] for name in names])
    styles = dict(zip(names, places, strict=True))
    wide = min(len(keys), PER_ROW)
    deep = math.ceil(len(keys) / wide)
    with figure(path, WIDTH, 3.2 * deep, title) as made:
        for axes, key in zip(make_panels(made, len(keys), wide), keys, strict=True):
            here = [line for line in lines if (line.panel, line.x) == key]
            for line in here:
                _draw_line(axes, line, styles[line.name])
            title_panel(axes, key[0], WIDTH / wide)
            _dress(axes, key[1], [point.x for line in here for point in line.points])
        legend_below(made, names)


def _draw_line(axes: Axes, line: Line, index: int) -> None:
    """Draw one line: means with standard deviations, and crosses for failed settings."""
    style = line_style(index)
    known = [point for point in line.points if point.accuracy.mean is not None]
    axes.errorbar(
        [point.x for point in known],
        [100 * (point.accuracy.mean or 0.0) for point in known],
        yerr=[100 * (point.accuracy.std or 0.0) for point in known],
        **style,
        markersize=5,
        capsize=3,
        label=line.name,
    )
    failed = [point.x for point in line.points if point.accuracy.mean is None]
    axes.plot(
        *(failed, [0.03] * len(failed), "x"),
        color=style["color"],
        transform=axes.get_xaxis_transform(),
    )


def _dress(axes: Axes, setting: str, values: Sequence[float]) -> None:
    """Label and scale a panel's axes; up to 8 values are themselves the ticks."""
    from matplotlib.ticker import NullFormatter, NullLocator

    _scale(axes.set_xscale, values)
    ticks = sorted(set(values))
    if len(ticks) <= 8:
        axes.set_xticks(ticks, [f"{tick:g}" for tick in ticks])
        axes.xaxis.set_minor_locator(NullLocator())
        axes.xaxis.set_minor_formatter(NullFormatter())
    axes.set(xlabel=setting, ylabel="mean final accuracy (%)")
