"""Pictures of a tuning: where good settings are, and the best accuracy over the budget."""

from __future__ import annotations

from collections.abc import Sequence
from itertools import accumulate
from pathlib import Path
from typing import Any

from sgdph.lab.reports.figure import figure, legend_below
from sgdph.lab.reports.numbers import percent
from sgdph.lab.reports.sensitivity import Point, Surface
from sgdph.lab.reports.sensitivity_pictures import draw_surfaces
from sgdph.lab.reports.statistics import Spread
from sgdph.lab.reports.styles import WIDTH, line_style, style_places
from sgdph.lab.tune.outcome import Search, TrialRecord


def draw_sensitivity(searches: Sequence[Search], path: Path, title: str) -> None:
    """Draw validation accuracy over lr and weight decay, a panel per optimizer, into a PNG file.

    Args:
        searches: The optimizers' trials; at least one trial is finished.
        path: The file.
        title: What was trained, and on which data.
    """
    surfaces = [_surface(search) for search in searches]
    draw_surfaces(surfaces, path, title, what="validation accuracy (%)")


def _surface(search: Search) -> Surface:
    lr, decay = search.space["lr"], search.space["weight_decay"]
    found = f"best {percent(search.best.accuracy)}%" if search.best else "none finished"
    ended = [trial for trial in search.trials if trial.status != "unfinished"]
    # Among equal accuracies, the first one counts as the best.
    ended.sort(key=lambda trial: trial is not search.best)
    return Surface(
        f"{search.optimizer}: {found}",
        "learning rate",
        "weight decay",
        tuple(map(_point, ended)),
        ((lr.low, decay.low), (lr.high, decay.high)),
    )


def _point(trial: TrialRecord) -> Point:
    diverged = trial.status == "diverged"
    return Point(
        trial.settings["lr"],
        trial.settings["weight_decay"],
        Spread.of([] if diverged or trial.accuracy is None else [trial.accuracy]),
        int(diverged),
        trial.status == "pruned",
    )


def draw_budget(searches: Sequence[Search], path: Path, title: str) -> None:
    """Draw the best validation accuracy so far over trials and over seconds, into a PNG file.

    Args:
        searches: The optimizers' trials.
        path: The file.
        title: What was trained, and on which data.
    """
    places = style_places([search.optimizer for search in searches])
    with figure(path, WIDTH, 5.6, title) as made:
        by_trial, by_seconds = made.subplots(2, 1, sharey=True)
        for index, search in zip(places, searches, strict=True):
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
        for axes in (by_trial, by_seconds):
            axes.set_ylabel("best validation\naccuracy so far (%)")
        by_trial.set_xlabel("trials")
        by_trial.xaxis.get_major_locator().set_params(integer=True, min_n_ticks=1)
        by_seconds.set(xlabel="seconds of all trials, one after another")
        by_seconds.set_xlim(left=0)
        legend_below(made)
