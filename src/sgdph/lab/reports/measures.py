"""The figures that a table shows of each run."""

from __future__ import annotations

import statistics
from collections.abc import Callable
from dataclasses import dataclass
from typing import Literal

from sgdph.lab.reports.grid import Grid
from sgdph.lab.reports.statistics import Judgement, Spread, judge
from sgdph.lab.run.records import Group, RunRecord


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
    """

    key: str
    title: str
    meaning: str
    figure: Callable[[RunRecord], float | None]
    scale: float
    digits: int
    better: Literal["higher", "lower"] | None = None


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


def spread(group: Group, measure: Measure) -> Spread:
    """Summarise one figure over a group's finished runs."""
    values = [measure.figure(run) for run in group.finished]
    return Spread.of([value for value in values if value is not None])


def judge_column(grid: Grid, measure: Measure, j: int) -> Judgement | None:
    """Compare the best entry of a column with the others; ``None`` where no test says anything."""
    if measure.better is None:
        return None
    spreads = {i: spread(group, measure) for i, group in grid.column(j).items()}
    return judge(spreads, measure.better)
