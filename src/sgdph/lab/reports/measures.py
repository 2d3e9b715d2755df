"""The figures that a table shows of each run, and how long it took to reach an accuracy."""

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
# The share of the best system's mean final accuracy that is the target where none was named.
SHARE = 0.99


@dataclass(frozen=True)
class Measure:
    """One figure of a run.

    Attributes:
        key: Its name in the CSV file.
        title: Its heading.
        meaning: What it is, for a table's caption.
        figure: Reads it from a finished run; ``None`` where the run has none.
        scale: What it is multiplied by to be shown.
        digits: Decimals shown.
        better: Which figures are better; ``None`` where a test over seeds would say nothing.
        by_median: Whether tables show the median and the range of several runs, in place of the
            mean and the standard deviation, which one disturbed run would decide.
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
        """What a table shows of several runs."""
        return MEDIAN if self.by_median else "mean ± sample standard deviation"

    def show(self, values: Sequence[float]) -> str:
        """Write what a table shows of several runs."""
        if self.by_median:
            return median_and_range(values, self.digits, self.scale)
        return Spread.of(values).show(self.scale, self.digits)


def final(split: str) -> Measure:
    """Accuracy after the last epoch: the figure to quote."""
    return Measure(
        f"final_{split}_accuracy",
        f"final {split} accuracy, %",
        f"Accuracy on the {split} images after the last epoch, %",
        lambda run: run.figure("final"),
        *(100, 2, "higher"),
    )


def best(split: str) -> Measure:
    """The highest accuracy of all epochs; no test, because it was picked on these images."""
    return Measure(
        f"best_{split}_accuracy",
        f"best {split} accuracy, %",
        f"Accuracy on the {split} images after the best epoch, picked on these images, %",
        lambda run: run.figure("best"),
        *(100, 2),
    )


def train_loss() -> Measure:
    """Mean training loss of the last epoch."""
    return Measure(
        "final_train_loss",
        "final training loss",
        "Cross-entropy on the training images over the last epoch, as it trained, nats",
        lambda run: float(run.summary["final_train_loss"]),
        *(1, 4, "lower"),
    )


def seconds_per_epoch() -> Measure:
    """Training time; no test, because what else ran on the machine decides it as well."""
    return Measure(
        "seconds_per_epoch",
        "training s / epoch",
        "Seconds of training per epoch, without evaluation",
        lambda run: float(run.summary["seconds"]) / max(1, int(run.summary["epochs"])),
        *(1, 2),
        by_median=True,
    )


def area(split: str) -> Measure:
    """Area under the accuracy curve, divided by its width."""
    return Measure(
        f"{split}_accuracy_area",
        f"{split} accuracy, mean over epochs, %",
        f"Area under the curve: mean over all epochs of the accuracy on the {split} images, %",
        lambda run: statistics.fmean(run.accuracies) if run.accuracies else None,
        *(100, 2, "higher"),
    )


def main_measures(split: str) -> tuple[Measure, ...]:
    """The figures of a comparison's table."""
    return final(split), best(split), train_loss(), seconds_per_epoch()


def median_and_range(values: Sequence[float], digits: int, scale: float = 1) -> str:
    """Write ``median (lowest to highest)``, a single figure alone, and a dash for none."""
    if len(values) < 2:
        return fixed(values[0], digits, scale) if values else NOTHING
    return Range.of(values).show(lambda value: fixed(value, digits, scale))


def figures(group: Group, measure: Measure) -> list[float]:
    """Read one figure of a group's finished runs, where they have it."""
    values = [measure.figure(run) for run in group.finished]
    return [value for value in values if value is not None]


def spread(group: Group, measure: Measure) -> Spread:
    """Summarise one figure over a group's finished runs."""
    return Spread.of(figures(group, measure))


def judge_column(grid: Grid, measure: Measure, j: int) -> Judgement | None:
    """Compare the best entry of a column with the others; ``None`` where no test says anything."""
    if measure.better is None:
        return None
    spreads = {i: spread(group, measure) for i, group in grid.column(j).items()}
    return judge(spreads, measure.better)


@dataclass(frozen=True)
class TimeToTarget:
    """How long a group's runs took to reach a target.

    Attributes:
        reached: How many of them reached it.
        runs: How many came to their end; those that diverged count as not having reached it.
        epochs: Epochs to the first that ended at the target or above, over those that reached it.
        seconds: Seconds of training up to the end of that epoch, of each run that reached it.
    """

    reached: int
    runs: int
    epochs: Spread
    seconds: tuple[float, ...]


def first_epoch(run: RunRecord, target: float) -> int | None:
    """Return the number of epochs after which a run first had an accuracy, ``None`` for never."""
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
    """Choose a column's target: 99% of the highest mean final accuracy; ``None`` without a run."""
    means = [spread(group, final(grid.evaluated)).mean for group in grid.column(j).values()]
    known = [mean for mean in means if mean is not None]
    return SHARE * max(known) if known else None


def parse_targets(text: str) -> tuple[float, ...]:
    """Read ``"0.9,0.95"``.

    Raises:
        LabError: If the text is something else, or not between 0 and 1.
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
        asked: The targets that were asked for; none for one of each column's own.
    """
    if asked:
        return [[target] * len(grid.columns) for target in asked]
    return [[choose_target(grid, j) for j in range(len(grid.columns))]]


def shown_target(target: float | None) -> str:
    """Write a target for people, in percent."""
    return NOTHING if target is None else f"{target * 100:.4g}%"
