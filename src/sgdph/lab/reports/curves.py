"""Curves over training: mean over seeds, with a band from the lowest to the highest."""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal, TypeAlias

import numpy as np
from numpy.typing import NDArray

from sgdph.lab.reports.figure import figure, legend_below, title_panel, without_maths
from sgdph.lab.reports.grid import Grid
from sgdph.lab.reports.measures import final, spread
from sgdph.lab.reports.numbers import from_to
from sgdph.lab.reports.styles import FIXED, SMALL, WIDTH, line_style, style_places
from sgdph.lab.run.records import Group, RunRecord

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

Floats: TypeAlias = NDArray[np.float64]
Curve: TypeAlias = Callable[[RunRecord], Sequence[float]]
Over: TypeAlias = Literal["epochs", "seconds"]
# More lines than this cannot be distinguished in one panel.
MOST = 14
PER_ROW = 2
# An axis of seconds ends at this multiple of the median time of the systems.
BEYOND = 2


@dataclass(frozen=True)
class Band:
    """Mean and range of several runs' curves.

    Attributes:
        places: Positions on the x axis: epochs, or seconds of training.
        mean: Mean over the runs at each position.
        lowest: Lowest value at each position.
        highest: Highest value at each position.
    """

    places: Floats
    mean: Floats
    lowest: Floats
    highest: Floats


def band_over_epochs(runs: Sequence[RunRecord], curve: Curve) -> Band | None:
    """Combine curves epoch by epoch, up to the last epoch that all runs have."""
    curves = [curve(run) for run in runs]
    length = min(map(len, curves), default=0)
    if length == 0:
        return None
    return _band(np.arange(1, length + 1, dtype=np.float64), [each[:length] for each in curves])


def band_over_seconds(runs: Sequence[RunRecord], curve: Curve) -> Band | None:
    """Combine curves over seconds of training.

    A run's curve is interpolated linearly between the ends of its epochs. After the run's end it
    keeps its last value. The positions are the ends of the epochs of all runs, because the mean is
    linear between them. They start where every run has finished an epoch.
    """
    timed = [run for run in runs if run.seconds]
    if not timed:
        return None
    start = max(run.seconds[0] for run in timed)
    ends = np.unique(np.concatenate([np.asarray(run.seconds) for run in timed]))
    places = ends[ends >= start]
    return _band(places, [np.interp(places, run.seconds, curve(run)) for run in timed])


def _band(places: Floats, curves: Sequence[Any]) -> Band:
    values = np.asarray(curves, dtype=np.float64)
    return Band(places, values.mean(axis=0), values.min(axis=0), values.max(axis=0))


def draw_curves(grid: Grid, over: Over, path: Path, title: str) -> None:
    """Draw accuracy and training loss, a panel per column of the table, into a PNG file.

    Args:
        grid: The entries. Only finished runs are drawn.
        over: The quantity on the x axis.
        path: The file.
        title: Title above the panels.
    """
    rows = chosen_rows(grid)
    styles = row_styles(grid, rows)
    count = len(grid.columns)
    wide = min(count, PER_ROW)
    deep = 2 * math.ceil(count / wide)
    with figure(path, WIDTH, (2.9 if wide == 1 else 2.3) * deep, title) as made:
        panels = made.subplots(deep, wide, squeeze=False).flatten()
        half = len(panels) // 2
        for j, heading in enumerate(grid.columns):
            for metric, axes in (("accuracy", panels[j]), ("loss", panels[half + j])):
                column = grid.column(j)
                for i in rows:
                    if i in column:
                        draw_band(axes, column[i], metric, over, styles[i])
                dress(axes, metric, over, grid.evaluated)
                if over == "seconds":
                    end_axis(axes, {grid.rows[i].text: column[i] for i in rows if i in column})
                what = {"accuracy": f"{grid.evaluated} accuracy", "loss": "training loss"}[metric]
                single = what[0].upper() + what[1:]
                title_panel(axes, single if count == 1 else heading.text, WIDTH / wide)
        for axes in (*panels[count:half], *panels[half + count :]):
            axes.set_visible(False)
        _add_legend(made, legend_names(grid, rows), styles)


def chosen_rows(grid: Grid) -> list[int]:
    """Choose the rows to draw: all, or the :data:`MOST` with the highest final accuracy.

    The first rows of SGDM and SGD-PH are always among them.
    """
    if len(grid.rows) <= MOST:
        return list(range(len(grid.rows)))
    measure = final(grid.evaluated)

    def height(i: int) -> float:
        here = [group for (row, _), group in grid.entries.items() if row == i]
        means = [spread(group, measure).mean for group in here]
        known = [mean for mean in means if mean is not None]
        return sum(known) / len(known) if known else -math.inf

    optimizers = {i: group.config.optimizer for (i, _), group in sorted(grid.entries.items())}
    rows = range(len(grid.rows))
    always = [next((i for i in rows if optimizers.get(i) == name), None) for name in FIXED]
    kept = [i for i in always if i is not None]
    others = sorted((i for i in rows if i not in kept), key=height, reverse=True)
    return sorted([*kept, *others[: MOST - len(kept)]])


def legend_names(grid: Grid, rows: Sequence[int]) -> dict[int, str]:
    """Return the label of each row, with its numbers of finished and diverged seeds."""
    names = {}
    for i in rows:
        here = [group for (row, _), group in grid.entries.items() if row == i]
        numbers = from_to([len(group.finished) for group in here])
        diverged = sum(group.count("diverged") for group in here)
        text = f"{grid.rows[i].text}, n = {numbers}"
        text += f" ({diverged} diverged)" if diverged else ""
        names[i] = text
    return names


def row_styles(grid: Grid, rows: Sequence[int]) -> dict[int, int]:
    """Return the style index of each row that is drawn."""
    optimizers = {i: group.config.optimizer for (i, _), group in sorted(grid.entries.items())}
    return dict(zip(rows, style_places([optimizers[i] for i in rows]), strict=True))


def end_axis(axes: Axes, groups: Mapping[str, Group]) -> None:
    """End an axis of seconds at the latest at :data:`BEYOND` times the systems' median time.

    The names of systems that usually take longer are written into the panel.

    Args:
        axes: The panel.
        groups: Maps each name in the panel to its runs.
    """
    ends = {
        name: [run.seconds[-1] for run in group.finished if run.seconds]
        for name, group in groups.items()
    }
    # The median, so that a single seed that was slowed down does not matter.
    usual = {name: float(np.median(each)) for name, each in ends.items() if each}
    if not usual:
        return
    limit = BEYOND * float(np.median(list(usual.values())))
    if limit == 0:
        return
    axes.set_xlim(0, 1.03 * min(limit, max(end for each in ends.values() for end in each)))
    beyond = [f"{name}: to {end:.0f} s" for name, end in usual.items() if end > limit]
    if beyond:
        text = without_maths("\n".join(["beyond the axis →", *beyond]))
        place: Any = {
            "xy": (0.98, 0.04),
            "xycoords": "axes fraction",
            "ha": "right",
            "va": "bottom",
        }
        if axes.get_yscale() == "log":
            place |= {"xy": (0.98, 0.96), "va": "top"}
        axes.annotate(text, fontsize=SMALL, **place)


def draw_band(axes: Axes, group: Group, metric: str, over: Over, index: int) -> None:
    """Draw one group's mean line and its band from the lowest to the highest run into a panel.

    Args:
        axes: The panel.
        group: The runs. Only finished ones are drawn.
        metric: ``"accuracy"``, drawn in percent, or ``"loss"``.
        over: The quantity on the x axis.
        index: The group's style index.
    """
    make = band_over_epochs if over == "epochs" else band_over_seconds
    band = make(group.finished, accuracy_percent if metric == "accuracy" else training_loss)
    if band is None:
        return
    style = line_style(index)
    every = max(1, len(band.places) // 12)
    axes.plot(band.places, band.mean, **style, markersize=3.5, markevery=every)
    axes.fill_between(
        *(band.places, band.lowest, band.highest), color=style["color"], alpha=0.16, linewidth=0
    )


def accuracy_percent(run: RunRecord) -> list[float]:
    """Return a run's accuracy after each epoch, in percent."""
    return [100 * accuracy for accuracy in run.accuracies]


def training_loss(run: RunRecord) -> list[float]:
    """Return a run's mean training loss of each epoch."""
    return list(run.losses)


def dress(axes: Axes, metric: str, over: Over, split: str) -> None:
    """Label and scale a panel's axes."""
    from matplotlib.ticker import LogLocator, MaxNLocator, NullFormatter

    axes.set_xlabel("epoch" if over == "epochs" else "seconds of training")
    if over == "epochs":
        axes.xaxis.set_major_locator(MaxNLocator(integer=True, min_n_ticks=1))
    if metric == "accuracy":
        axes.set_ylabel(f"{split} accuracy (%)")
    else:
        axes.set(ylabel="training cross-entropy\n(nats, log scale)", yscale="log")
        # Ticks at 1, 2 and 5 in each decade: the values may not include a power of ten.
        axes.yaxis.set_major_locator(LogLocator(subs=(1, 2, 5)))
        axes.yaxis.set_major_formatter("{x:g}")
        axes.yaxis.set_minor_formatter(NullFormatter())


def _add_legend(made: Figure, names: Mapping[int, str], styles: Mapping[int, int]) -> None:
    """Put one legend under all panels."""
    from matplotlib.lines import Line2D

    handles = {name: Line2D([], [], **line_style(styles[i]), ms=4) for i, name in names.items()}
    legend_below(made, handles=handles)
