"""The first lines of a report: what was trained, the result, the cost, and the next steps."""

from __future__ import annotations

import shlex
import statistics
from collections.abc import Sequence
from pathlib import Path

from sgdph.lab.config.option import options_of
from sgdph.lab.config.run_config import RunConfig
from sgdph.lab.optimizers.registry import flag
from sgdph.lab.options.defaults import defaults_for
from sgdph.lab.reports.grid import Grid
from sgdph.lab.reports.measures import final, judge_column, seconds_per_epoch, spread
from sgdph.lab.reports.names import field_title, shown_value
from sgdph.lab.reports.numbers import (
    MOST_LISTED,
    counted,
    from_to,
    listed,
    percent,
    points,
    shown_interval,
)
from sgdph.lab.reports.statistics import Judgement
from sgdph.lab.reports.words import FEW, is_untuned, with_untuned_settings
from sgdph.lab.run.records import Group

# The suggested number of seeds, at least. Few comparisons are decided by more.
SEEDS = 10
# The file that is needed to resume a comparison.
COMPARISON = "comparison.yaml"
# The settings that a tuning must share with the runs that it is for.
TASK = (
    *("model", "epochs", "batch_size", "train_size", "image_size"),
    *("schedule", "schedule_every", "precision"),
)
# Settings that change the time of an epoch, and all that should be alike in a comparison.
TIMED = ("train_size", "image_size", "batch_size", "precision")
ALIKE = ("epochs", *TIMED, "validation_size", "schedule", "schedule_every")


def lead(grid: Grid, task: str, out: Path) -> list[str]:
    """Summarise a report in a few lines.

    Args:
        grid: The entries.
        task: Data set, sizes, network and recipe.
        out: The report's directory.
    """
    lines = [f"Trained: {_systems(grid)}. {task}.", *not_alike(grid)]
    for j, heading in enumerate(grid.columns):
        judgement = judge_column(grid, final(grid.evaluated), j)
        assert judgement is not None
        where = f" on {heading.text}" if len(grid.columns) > 1 else ""
        lines.append(f"Result{where}: {_result(grid, j, judgement)}")
    lines += [f"Cost: {cost}" for cost in _costs(grid)]
    return [*lines, *(f"Next: {step}" for step in _next_steps(grid, out))]


def not_alike(grid: Grid) -> list[str]:
    """Describe which of the settings in :data:`ALIKE` differ between the compared runs.

    Returns:
        One line; empty if there is no difference outside the layout.
    """
    found = grid.differing(ALIKE)
    if not found:
        return []
    parts = [
        f"{field_title(name)} ({listed([_shown_setting(name, value) for value in values])})"
        for name, values in found.items()
    ]
    return [
        f"Not alike: the compared runs differ in {listed(parts)}, which may explain the result."
    ]


def _shown_setting(name: str, value: object) -> str:
    return options_of(RunConfig)[name][1].shown if value is None else shown_value(name, value)


def _systems(grid: Grid) -> str:
    rows = [heading.text for heading in grid.rows]
    names = _listed(rows) if len(rows) <= FEW else f"{len(rows)} systems"
    counts = [len(group.finished) for group in grid.groups]
    each = " each" if len(counts) > 1 else ""
    seeds = (
        f"{counted(counts[0], 'seed')}{each}"
        if len(set(counts)) == 1
        else f"{from_to(counts)} seeds{each}"
    )
    return f"{names}, {seeds}"


def _listed(names: Sequence[str]) -> str:
    """Join names, with semicolons if a name contains a comma; of many, only the first few."""
    if not any("," in name for name in names):
        return listed(names)
    more = len(names) - MOST_LISTED
    return "; ".join([*names[:MOST_LISTED], *([f"{more} more"] if more > 0 else [])])


def _result(grid: Grid, j: int, judgement: Judgement) -> str:
    """Describe which system is best, or say that this is not decided."""
    if judgement.best is None:
        return "no run is finished."
    best = grid.rows[judgement.best].text
    reached = f"{_shown_mean(grid, j, judgement.best)}% final {grid.evaluated} accuracy"
    if len(grid.column(j)) == 1:
        return f"{best} reached {reached}; there is nothing to compare with."
    if not judgement.adjusted:
        return (
            f"not decided. {best} has the highest mean, {reached}. A comparison needs at least 2 "
            "finished seeds of each system, with different accuracies."
        )
    if judgement.clear:
        return f"{best} is best with {reached}. {_distance(grid, judgement)}"
    if not _is_open(judgement):
        if len(judgement.level) == len(judgement.adjusted):
            return f"a tie within half a point. {_distance(grid, judgement)}"
        names = _listed([grid.rows[i].text for i in judgement.level])
        return (
            f"{best} has the highest mean, {reached}. It ties within half a point with {names}. "
            "It differs significantly from the others."
        )
    values = {_shown_mean(grid, j, i) for i in grid.column(j)}
    highest = (
        f"All have the same mean, {reached}"
        if len(values) == 1
        else f"{best} has the highest mean, {reached}"
    )
    return f"not decided. {highest}. {_distance(grid, judgement)}"


def _is_open(judgement: Judgement) -> bool:
    """Return whether more seeds may change the outcome for the best."""
    if judgement.best is None or judgement.untested or not judgement.adjusted:
        return True
    return any(judgement.outcome(i) == "not decided" for i in judgement.level)


def _shown_mean(grid: Grid, j: int, i: int) -> str:
    return percent(spread(grid.column(j)[i], final(grid.evaluated)).mean)


def _distance(grid: Grid, judgement: Judgement) -> str:
    """Describe how the best compares with the others, and name those that could not be tested."""
    said = _tested_distance(grid, judgement)
    if not judgement.untested:
        return said
    names = _listed([grid.rows[i].text for i in judgement.untested])
    best = "It" if len(judgement.adjusted) > 1 else grid.rows[judgement.best or 0].text
    return (
        f"{said} {best} is not compared with {names}: a test needs at least 2 finished seeds of "
        "each, with different accuracies."
    )


def _tested_distance(grid: Grid, judgement: Judgement) -> str:
    """Give the difference from the only other system, or the others that do not differ."""
    assert judgement.best is not None
    tested = " that could be tested" if judgement.untested else ""
    if len(judgement.adjusted) > 1:
        others, level = len(judgement.adjusted), judgement.level
        if not level:
            return f"It differs significantly from each of the {others} others{tested}."
        names = _listed([grid.rows[i].text for i in level])
        count = "any" if len(level) == others else str(len(level))
        which = names if len(level) <= FEW else f"{count} of the {others} others{tested}"
        return f"It does not differ significantly from {which}."
    ((i, found),) = judgement.differences.items()
    return (
        f"{grid.rows[judgement.best].text} minus {grid.rows[i].text}: {points(found.mean)} points, "
        f"95% interval {shown_interval(found.low, found.high)}."
    )


def _costs(grid: Grid) -> list[str]:
    """Describe the time per epoch as a ratio to SGDM's, or to the first row's without SGDM.

    Returns:
        One line; empty if there are fewer than two systems with known times, or their epochs
        cannot be compared because of a setting in :data:`TIMED`.
    """
    if grid.differing(TIMED):
        return []
    seconds = {i: _median_seconds(grid, i) for i in range(len(grid.rows))}
    known = {i: value for i, value in seconds.items() if value}
    base = next((i for i in known if _optimizer(grid, i) == "sgdm"), min(known, default=None))
    if base is None or len(known) < 2:
        return []
    ratios = {i: value / known[base] for i, value in known.items() if i != base}
    of_base = f"{grid.rows[base].text}'s training time per epoch"
    low, high = min(ratios, key=ratios.__getitem__), max(ratios, key=ratios.__getitem__)
    said = f"{grid.rows[low].text} took {ratios[low]:.2f} times {of_base}"
    if low != high:
        said = (
            f"from {ratios[low]:.2f} times {of_base} ({grid.rows[low].text}) to "
            f"{ratios[high]:.2f} times ({grid.rows[high].text})"
        )
    return [f"{said} (medians over seeds). Compare times only of runs on an equally idle machine."]


def _median_seconds(grid: Grid, i: int) -> float | None:
    """Return a row's seconds per epoch: the median over seeds, then the mean over columns.

    ``None`` if a column has no finished run of this row.
    """
    groups: list[Group] = [group for (row, _), group in grid.entries.items() if row == i]
    figure = seconds_per_epoch().figure
    medians = [
        statistics.median([value for run in group.finished if (value := figure(run)) is not None])
        for group in groups
        if group.finished
    ]
    return statistics.fmean(medians) if len(medians) == len(grid.columns) else None


def _optimizer(grid: Grid, i: int) -> str:
    return next(group.config.optimizer for (row, _), group in grid.entries.items() if row == i)


def _next_steps(grid: Grid, out: Path) -> list[str]:
    """List what to do next, if something is not decided, not finished or not tuned."""
    steps = []
    most = max(len(group.finished) for group in grid.groups)
    judged = [judge_column(grid, final(grid.evaluated), j) for j in range(len(grid.columns))]
    is_open = any(
        each is not None
        and sum(bool(group.finished) for group in grid.column(j).values()) > 1
        and _is_open(each)
        for j, each in enumerate(judged)
    )
    if is_open:
        more = f"0-{max(SEEDS, 2 * most) - 1}"
        command = f": sgdph compare --out DIR --resume --seeds {more}, DIR being this folder"
        resumed = command if (out / COMPARISON).is_file() else f" (--seeds {more})"
        steps.append(f"train more seeds, to decide it{resumed}.")
    steps += _without_result(grid)
    untuned = with_untuned_settings(grid)
    configs = [group.config for group in grid.groups]
    if untuned and len({config.dataset for config in configs}) == 1:
        command = tune_command([config for config in configs if is_untuned(config)])
        steps.append(
            f"tune lr and weight decay for these data; {_listed(untuned)} had defaults. Run "
            f"{command}, then sgdph compare --settings with its best.yaml."
        )
    return steps


def _without_result(grid: Grid) -> list[str]:
    """List what to do for the entries without a finished run."""
    unfinished: list[str] = []
    failed: list[str] = []
    for (i, j), group in sorted(grid.entries.items()):
        if not group.finished:
            where = f" on {grid.columns[j].text}" if len(grid.columns) > 1 else ""
            (unfinished if group.unfinished else failed).append(grid.rows[i].text + where)
    steps = []
    if failed:
        steps.append(f"change the settings of {_listed(failed)}; all runs diverged or were pruned.")
    if unfinished:
        steps.append(f"finish the runs of {_listed(unfinished)}; none is finished.")
    return steps


def tune_command(configs: Sequence[RunConfig]) -> str:
    """Return the command that tunes the runs' optimizers on their task, which is one data set."""
    dataset = configs[0].dataset
    defaults = defaults_for({"dataset": dataset})
    words = ["sgdph tune --dataset", shlex.quote(dataset)]
    for name in TASK:
        values = {getattr(config, name) for config in configs}
        if len(values) == 1 and values != {defaults.get(name, getattr(RunConfig, name, None))}:
            words += [flag(name), shlex.quote(str(values.pop()))]
    optimizers = dict.fromkeys(config.optimizer for config in configs)
    return " ".join([*words, "--optimizers", ",".join(optimizers)])
