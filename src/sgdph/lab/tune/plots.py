"""Pictures of a tuning: where good settings lie, and what the budget bought."""

from __future__ import annotations

import math
from collections.abc import Sequence
from itertools import accumulate
from pathlib import Path
from typing import TYPE_CHECKING, Any

from sgdph.lab.reports.figure import COLOURS, figure, legend_below, line_style
from sgdph.lab.tune.outcome import Search, TrialRecord
from sgdph.lab.tune.space import Range

if TYPE_CHECKING:
    from matplotlib.axes import Axes

# Colours tell apart what lies within so many points of the best; all below is as dark as that.
SPAN = 20.0
AXES = {"lr": "learning rate", "weight_decay": "weight decay"}


def draw_sensitivity(searches: Sequence[Search], path: Path, title: str) -> None:
    """Draw validation accuracy over lr and weight decay, a panel per optimizer, into a PNG file.

    Axes and colours are the same in all panels; a frame shows where each was searched.

    Args:
        searches: The optimizers' trials, at least one of which is finished.
        path: The file.
        title: What was trained on what.
    """
    from matplotlib.cm import ScalarMappable
    from matplotlib.colors import Normalize

    best = max(100 * (trial.accuracy or 0.0) for each in searches for trial in each.finished)
    worst = min(
        100 * (trial.accuracy or 0.0)
        for each in searches
        for trial in each.trials
        if trial.accuracy is not None
    )
    floor = max(worst, best - SPAN)
    colours: Any = {"cmap": "viridis", "norm": Normalize(min(floor, best - 0.1), best)}
    with figure(path, 1.6 + 4.2 * len(searches), 5.0, title) as made:
        panels = made.subplots(1, len(searches), squeeze=False, sharex=True, sharey=True)[0]
        for axes, search in zip(panels, searches, strict=True):
            _draw_panel(axes, search, colours)
        panels[0].set_ylabel(AXES["weight_decay"])
        _set_limits(panels[0], searches)
        made.colorbar(
            ScalarMappable(**colours),
            ax=list(panels),
            label="validation accuracy (%)",
            extend="min" if worst < floor else "neither",
        )
        legend_below(made, 5)


def _set_limits(axes: Axes, searches: Sequence[Search]) -> None:
    """Scale both axes so that all ranges lie in them, with as much air as half a cell needs."""
    for name, set_scale, set_limits in (
        ("lr", axes.set_xscale, axes.set_xlim),
        ("weight_decay", axes.set_yscale, axes.set_ylim),
    ):
        values = [{trial.settings[name] for trial in each.trials} for each in searches]
        cells = [len(found) for each, found in zip(searches, values, strict=True) if is_grid(each)]
        air = max([0.05, *(0.55 / (count - 1) for count in cells)])
        low, high, log = _extent([search.space[name] for search in searches], air)
        set_scale("log" if log else "linear")
        set_limits(low, high)


def _extent(ranges: Sequence[Range], air: float) -> tuple[float, float, bool]:
    """Return limits that hold all ranges with some air, and whether they are logarithmic."""
    low, high = min(each.at(-air) for each in ranges), max(each.at(1 + air) for each in ranges)
    return low, high, all(each.log for each in ranges)


def _draw_panel(axes: Axes, search: Search, colours: dict[str, Any]) -> None:
    """Draw one optimizer's trials, and the frame that they were drawn from."""
    from matplotlib.patches import Rectangle

    lr, decay = search.space["lr"], search.space["weight_decay"]
    axes.add_patch(
        Rectangle(
            (lr.low, decay.low),
            lr.high - lr.low,
            decay.high - decay.low,
            fill=False,
            edgecolor="#999999",
            linestyle=(0, (4, 3)),
            label="searched",
            zorder=2,
        )
    )
    if is_grid(search):
        _draw_cells(axes, search, colours)
    kinds: tuple[tuple[str, dict[str, Any]], ...] = (
        ("pruned", {"marker": "v", "s": 46, "linewidths": 0.6}),
        ("finished", {"marker": "o", "s": 80, "linewidths": 0.6}),
    )
    for status, style in kinds:
        drawn = [t for t in search.trials if t.status == status and t.accuracy is not None]
        if drawn:
            lrs, decays = _places(drawn)
            axes.scatter(
                lrs,
                decays,
                c=[100 * (trial.accuracy or 0.0) for trial in drawn],
                edgecolors="#333333",
                label="pruned (its last epoch's)" if status == "pruned" else status,
                zorder=3,
                **style,
                **colours,
            )
    diverged = [trial for trial in search.trials if trial.status == "diverged"]
    if diverged:
        axes.scatter(*_places(diverged), marker="x", color=COLOURS[1], s=50, label="diverged")
    if search.best is not None:
        axes.scatter(
            *_places([search.best]),
            marker="*",
            s=330,
            facecolor="none",
            edgecolor=COLOURS[1],
            linewidths=1.6,
            label="best",
            zorder=4,
        )
    found = f"best {100 * (search.best.accuracy or 0):.1f}%" if search.best else "none finished"
    axes.set(xlabel=AXES["lr"])
    axes.set_title(f"{search.optimizer}: {found}")


def is_grid(search: Search) -> bool:
    """Whether the trials are the points of a grid over lr and weight decay, each point once."""
    places = list(zip(*_places(search.trials), strict=True))
    sides = [len(set(values)) for values in zip(*places, strict=True)]
    whole = len(set(places)) == len(places) == math.prod(sides)
    return len(search.space) == 2 and whole and min(sides) > 1


def _draw_cells(axes: Axes, search: Search, colours: dict[str, Any]) -> None:
    """Fill the cell around each point of a grid with its accuracy's colour."""
    rows, columns = (search.space[name] for name in ("weight_decay", "lr"))
    lrs, decays = (sorted(set(values)) for values in _places(search.trials))
    found = {
        (trial.settings["weight_decay"], trial.settings["lr"]): 100 * (trial.accuracy or 0.0)
        for trial in search.trials
        if trial.status != "diverged"
    }
    cells = [[found.get((decay, lr), math.nan) for lr in lrs] for decay in decays]
    axes.pcolormesh(_borders(columns, len(lrs)), _borders(rows, len(decays)), cells, **colours)


def _borders(each: Range, count: int) -> list[float]:
    """Return the borders of cells around so many values, spread evenly over a range."""
    return [each.at((i - 0.5) / (count - 1)) for i in range(count + 1)]


def _places(trials: Sequence[TrialRecord]) -> tuple[list[float], list[float]]:
    return (
        [trial.settings["lr"] for trial in trials],
        [trial.settings["weight_decay"] for trial in trials],
    )


def draw_budget(searches: Sequence[Search], path: Path, title: str) -> None:
    """Draw the best validation accuracy so far over trials and over seconds, into a PNG file.

    Args:
        searches: The optimizers' trials.
        path: The file.
        title: What was trained on what.
    """
    with figure(path, 10, 4.4, title) as made:
        by_trial, by_seconds = made.subplots(1, 2, sharey=True)
        for index, search in enumerate(searches):
            course = [None if best is None else 100 * best for best in search.best_so_far()]
            spent = list(accumulate(trial.seconds for trial in search.trials))
            style: Any = {
                **line_style(index),
                "markersize": 3.5,
                "drawstyle": "steps-post",
                "label": search.optimizer,
            }
            known = [(i, best) for i, best in enumerate(course) if best is not None]
            by_trial.plot([i + 1 for i, _ in known], [best for _, best in known], **style)
            by_seconds.plot([spent[i] for i, _ in known], [best for _, best in known], **style)
        by_trial.set(xlabel="trials", ylabel="best validation accuracy so far (%)")
        by_trial.xaxis.get_major_locator().set_params(integer=True, min_n_ticks=1)
        by_seconds.set(xlabel="seconds of all trials, one after another")
        by_seconds.set_xlim(left=0)
        by_trial.legend(loc="lower right")
