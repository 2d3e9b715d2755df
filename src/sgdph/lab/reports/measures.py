"""The measures that tables show for each run, and the time that a run took to reach an accuracy."""

from __future__ import annotations

import statistics
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Literal

from sgdph.lab.errors import LabError
from sgdph.lab.reports.grid import Grid
from sgdph.lab.reports.numbers import NOTHING, fixed
from sgdph.lab.reports.statistics import Judgement, Range, Spread, judge
from sgdph.lab.run.directory import ENDED
from sgdph.lab.run.records import Group, RunRecord

MEDIAN = "median (lowest to highest)"
# The default target, as a share of the best system's mean final accuracy.
SHARE = 0.99


@dataclass(frozen=True)
class Measure:
    """One value that is measured for each run.

    Attributes:
        key: Its name in the CSV file.
        title: Its heading.
        meaning: What it is, for a table's caption.
        figure: Reads the value from a finished run. Returns ``None`` if the run has none.
        scale: Factor that the value is multiplied by for display.
        digits: Number of decimals for display.
        better: Which values are better. ``None`` if a test over seeds would be meaningless.
        by_median: Whether tables show median and range over several runs. Otherwise they show mean
            and standard deviation, which a single disturbed run would dominate.
    """

    key: str
    title: str
    meaning: str
    figure: Callable[[RunRecord], float | None]
    scale: float
    digits: int
    better: Literal["higher", "lower"] | None = None
    by_median: bool = False

    @property
    def summary(self) -> str:
        """The statistic that a table shows for several runs."""
        return MEDIAN if self.by_median else "mean ± sample standard deviation"

    def show(self, values: Sequence[float]) -> str:
        """Format the statistic that a table shows for several runs."""
        if self.by_median:
            return median_and_range(values, self.digits, self.scale)
        return Spread.of(values).show(self.scale, self.digits)


def final(split: str) -> Measure:
    """Return the measure of the accuracy after the last epoch: the value to quote."""
    return Measure(
        f"final_{split}_accuracy",
        f"final {split} accuracy, %",
        f"Accuracy on the {split} images after the last epoch, %",
        lambda run: run.figure("final"),
        *(100, 2, "higher"),
    )


def best(split: str) -> Measure:
    """Return the measure of the best epoch's accuracy.

    It is not tested, because the epoch was picked on the same images.
    """
    return Measure(
        f"best_{split}_accuracy",
        f"best {split} accuracy, %",
        f"Accuracy on the {split} images after the best epoch, picked on these images, %",
        lambda run: run.figure("best"),
        *(100, 2),
    )


def train_loss() -> Measure:
    """Return the measure of the mean training loss over the last epoch."""
    return Measure(
        "final_train_loss",
        "final training loss",
        "Cross-entropy on the training images over the last epoch, as it trained, nats",
        lambda run: float(run.summary["final_train_loss"]),
        *(1, 4, "lower"),
    )


def seconds_per_epoch() -> Measure:
    """Return the measure of the training time per epoch.

    It is not tested, because it also depends on what else ran on the machine.
    """
    return Measure(
        "seconds_per_epoch",
        "training s / epoch",
        "Seconds of training per epoch, without evaluation",
        lambda run: float(run.summary["seconds"]) / max(1, int(run.summary["epochs"])),
        *(1, 2),
        by_median=True,
    )


def area(split: str) -> Measure:
    """Return the measure of the area under the accuracy curve, divided by the curve's width."""
    return Measure(
        f"{split}_accuracy_area",
        f"{split} accuracy, mean over epochs, %",
        f"Area under the curve: mean over all epochs of the accuracy on the {split} images, %",
        lambda run: statistics.fmean(run.accuracies) if run.accuracies else None,
        *(100, 2, "higher"),
    )


def main_measures(split: str) -> tuple[Measure, ...]:
    """Return the measures in the table of a comparison."""
    return final(split), best(split), train_loss(), seconds_per_epoch()


def median_and_range(values: Sequence[float], digits: int, scale: float = 1) -> str:
    """Format as ``median (lowest to highest)``; a single value stands alone, a dash means none."""
    if len(values) < 2:
        return fixed(values[0], digits, scale) if values else NOTHING
    return Range.of(values).show(lambda value: fixed(value, digits, scale))


def figures(group: Group, measure: Measure) -> list[float]:
    """Return a measure's values over a group's finished runs, without the runs that lack it."""
    values = [measure.figure(run) for run in group.finished]
    return [value for value in values if value is not None]


def spread(group: Group, measure: Measure) -> Spread:
    """Summarise a measure over a group's finished runs."""
    return Spread.of(figures(group, measure))


def judge_column(grid: Grid, measure: Measure, j: int) -> Judgement | None:
    """Compare the best entry of a column with the others.

    Returns:
        The result; ``None`` if the measure is not tested.
    """
    if measure.better is None:
        return None
    spreads = {i: spread(group, measure) for i, group in grid.column(j).items()}
    return judge(spreads, measure.better)


@dataclass(frozen=True)
class TimeToTarget:
    """How long a group's runs took to reach a target.

    Attributes:
        reached: Number of runs that reached it.
        runs: Number of runs that finished or diverged. Diverged runs count as not reaching it.
        epochs: Number of epochs until an epoch ended at or above the target, over the runs that
            reached it.
        seconds: Seconds of training up to the end of that epoch, for each run that reached it.
    """

    reached: int
    runs: int
    epochs: Spread
    seconds: tuple[float, ...]


def first_epoch(run: RunRecord, target: float) -> int | None:
    """Return the number of epochs until a run first reached an accuracy; ``None`` if never."""
    for epoch, accuracy in enumerate(run.accuracies, 1):
        if accuracy >= target:
            return epoch
    return None


def time_to(group: Group, target: float) -> TimeToTarget:
    """Measure how long a group's runs took to reach a target, an accuracy between 0 and 1."""
    there = [(run, first_epoch(run, target)) for run in group.finished]
    reached = [(run, epoch) for run, epoch in there if epoch is not None]
    return TimeToTarget(
        len(reached),
        sum(run.status in ENDED for run in group.runs),
        Spread.of([epoch for _, epoch in reached]),
        tuple(run.seconds[epoch - 1] for run, epoch in reached if run.seconds),
    )


def choose_target(grid: Grid, j: int) -> float | None:
    """Choose a column's target: 99% of its highest mean final accuracy.

    Returns:
        The target; ``None`` if no run of the column has finished.
    """
    means = [spread(group, final(grid.evaluated)).mean for group in grid.column(j).values()]
    known = [mean for mean in means if mean is not None]
    return SHARE * max(known) if known else None


def parse_targets(text: str) -> tuple[float, ...]:
    """Parse target accuracies like ``"0.9,0.95"``.

    Raises:
        LabError: If the text is not a list of numbers, or a number is not above 0 and at most 1.
    """
    try:
        targets = tuple(float(part) for part in text.split(","))
    except ValueError as error:
        raise LabError(f"--target must be accuracies like 0.9,0.95; got {text!r}") from error
    if not all(0 < target <= 1 for target in targets):
        raise LabError(f"--target must lie above 0 and at most at 1 (0.9 is 90%); got {text!r}")
    return tuple(dict.fromkeys(targets))


def column_targets(grid: Grid, asked: Sequence[float]) -> list[list[float | None]]:
    """Return the targets of each column, by target and then column.

    Args:
        grid: The entries.
        asked: The requested targets. If empty, each column gets one target of its own.
    """
    if asked:
        return [[target] * len(grid.columns) for target in asked]
    return [[choose_target(grid, j) for j in range(len(grid.columns))]]


def shown_target(target: float | None) -> str:
    """Format a target in percent."""
    return NOTHING if target is None else f"{target * 100:.4g}%"
