"""Comparison of each system with SGDM: the values in ``systems.md`` and its picture."""

from __future__ import annotations

import statistics
from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

from sgdph.lab.reports.statistics import Difference, Spread, difference, holm, outcome
from sgdph.lab.run.records import RunRecord, read_runs

BASELINE = "SGDM"


@dataclass(frozen=True)
class Row:
    """One system compared with the baseline.

    Attributes:
        final: Final test accuracy of each run, 0 to 1.
        area: Mean accuracy over all epochs of each run, 0 to 1.
        times: Seconds per epoch as ratios to the baseline's mean; empty if not comparable.
        p: Welch's p-value of the final accuracy against the baseline's, corrected by Holm's method
            for the number of tests; ``None`` for the baseline, or if there is no test.
    """

    final: tuple[float, ...]
    area: tuple[float, ...]
    times: tuple[float, ...]
    p: float | None

    def over(self, baseline: Row) -> Difference | None:
        """Return the difference of mean final accuracies, ``None`` if there is no test."""
        return difference(Spread.of(self.final), Spread.of(baseline.final))

    def outcome(self, baseline: Row) -> str:
        """Return the outcome of the comparison with the baseline, empty if there is no test."""
        found = self.over(baseline)
        return "" if self.p is None or found is None else outcome(self.p, found)


def by_system(folder: Path, labels: Sequence[str] = ()) -> dict[str, list[RunRecord]]:
    """Read the finished runs of each label, in the order of ``labels`` if it is given."""
    runs = [run for run in read_runs([folder]).records if run.status == "finished"]
    names = labels or list(dict.fromkeys(run.config.label or "" for run in runs))
    found = {label: [run for run in runs if run.config.label == label] for label in names}
    return {label: group for label, group in found.items() if group}


def compare(
    systems: Mapping[str, Sequence[RunRecord]], untimed: Collection[str] = ()
) -> dict[str, Row]:
    """Compare every system with the baseline.

    Args:
        systems: Maps labels to runs, including the baseline.
        untimed: Labels of systems whose seconds are not comparable.
    """
    finals = {
        label: [run.figure("final") or 0.0 for run in runs] for label, runs in systems.items()
    }
    spreads = {label: Spread.of(values) for label, values in finals.items()}
    tests = {
        label: difference(spread, spreads[BASELINE])
        for label, spread in spreads.items()
        if label != BASELINE
    }
    # With a single seed there is no test, so the others are not corrected for it.
    known = {label: found.p for label, found in tests.items() if found is not None}
    adjusted = dict(zip(known, holm(list(known.values())), strict=True))
    plain = statistics.mean(_seconds(run) for run in systems[BASELINE])
    return {
        label: Row(
            tuple(finals[label]),
            tuple(statistics.mean(run.accuracies) for run in runs),
            () if label in untimed else tuple(_seconds(run) / plain for run in runs),
            adjusted.get(label),
        )
        for label, runs in systems.items()
    }


def _seconds(run: RunRecord) -> float:
    """Return the seconds of training per epoch."""
    return run.seconds[-1] / len(run.seconds)


def percent(values: Sequence[float]) -> str:
    """Format mean ± sample standard deviation of shares in percent."""
    return Spread.of(values).show(100, 2)
