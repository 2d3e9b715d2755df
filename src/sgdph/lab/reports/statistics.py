"""Means over seeds, and tests of the difference between two means."""

from __future__ import annotations

import math
import statistics
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Literal, TypeAlias

from sgdph.lab.reports.numbers import fixed

ALPHA = 0.05
# Half a point of accuracy. It was set before any runs were compared.
MARGIN = 0.005


Outcome: TypeAlias = Literal["differs", "tie", "not decided"]


@dataclass(frozen=True)
class Spread:
    """Mean and sample standard deviation (n - 1) of values.

    Attributes:
        mean: Arithmetic mean; ``None`` if there are no values.
        std: Standard deviation; ``None`` if there are fewer than two values.
        n: Number of values.
    """

    mean: float | None
    std: float | None
    n: int

    @classmethod
    def of(cls, values: Sequence[float]) -> Spread:
        """Summarise values."""
        return cls(
            # Not fmean: with its rounding, means of equal values could differ.
            float(statistics.mean(values)) if values else None,
            statistics.stdev(values) if len(values) > 1 else None,
            len(values),
        )

    def show(self, scale: float, digits: int) -> str:
        """Format as ``mean ± std``, both times ``scale``; one value alone, a dash for none."""
        mean = fixed(self.mean, digits, scale)
        return mean if self.std is None else f"{mean} ± {fixed(self.std, digits, scale)}"


@dataclass(frozen=True)
class Range:
    """Median, lowest and highest of some values."""

    median: float
    lowest: float
    highest: float

    @classmethod
    def of(cls, values: Sequence[float]) -> Range:
        """Summarise at least one value."""
        return cls(statistics.median(values), min(values), max(values))

    @classmethod
    def of_ratios(cls, values: Sequence[float], base: Sequence[float]) -> Range:
        """Summarise the ratios ``values / base``, element by element (round by round)."""
        return cls.of([value / other for value, other in zip(values, base, strict=True)])

    def reach(self, form: Callable[[float], str]) -> str:
        """Format as ``lowest to highest``."""
        return f"{form(self.lowest)} to {form(self.highest)}"

    def show(self, form: Callable[[float], str]) -> str:
        """Format as ``median (lowest to highest)``."""
        return f"{form(self.median)} ({self.reach(form)})"


@dataclass(frozen=True)
class Difference:
    """The difference of two means by Welch's method (1947), not corrected for other comparisons.

    Attributes:
        mean: The first mean minus the second.
        low: Lower end of its 95% interval.
        high: Upper end.
        n: Number of values in each mean.
        p: Two-sided p-value of the test for a difference. Equal variances are not assumed.
    """

    mean: float
    low: float
    high: float
    n: tuple[int, int]
    p: float

    @property
    def is_tie(self) -> bool:
        """Whether the whole interval lies within the margin."""
        return self.low >= -MARGIN and self.high <= MARGIN


def difference(first: Spread, second: Spread) -> Difference | None:
    """Compute the difference of two means, its interval and its p-value.

    Returns:
        The difference; ``None`` if there is no test. There is none if a side has fewer than two
        values. There is none either if both standard deviations are 0 and the means differ. If both
        are 0 and the means are equal, p is 1.
    """
    from scipy.stats import t, ttest_ind_from_stats

    if first.mean is None or second.mean is None or first.std is None or second.std is None:
        return None
    gap, n = first.mean - second.mean, (first.n, second.n)
    if first.std == second.std == 0:
        return Difference(gap, gap, gap, n, 1.0) if gap == 0 else None
    test = ttest_ind_from_stats(
        *(first.mean, first.std, first.n), *(second.mean, second.std, second.n), equal_var=False
    )
    # Squared standard errors.
    errors = first.std**2 / first.n, second.std**2 / second.n
    freedom = sum(errors) ** 2 / (errors[0] ** 2 / (n[0] - 1) + errors[1] ** 2 / (n[1] - 1))
    reach = float(t.ppf(1 - ALPHA / 2, freedom)) * math.sqrt(sum(errors))
    return Difference(gap, gap - reach, gap + reach, n, float(test.pvalue))


def outcome(p: float, found: Difference) -> Outcome:
    """Return the outcome of a comparison.

    Args:
        p: Its p-value, corrected for the number of comparisons.
        found: The difference.
    """
    if p < ALPHA:
        return "differs"
    return "tie" if found.is_tie else "not decided"


def holm(p_values: Sequence[float]) -> list[float]:
    """Adjust p-values for their number (Holm, 1979).

    A hypothesis is rejected if its adjusted p-value is at most alpha. The i-th smallest of m
    p-values is multiplied by m - i + 1, and capped at 1. An adjusted value is never below that of a
    smaller p-value.

    Returns:
        The adjusted p-values, in the order given.
    """
    order = sorted(range(len(p_values)), key=lambda i: p_values[i])
    adjusted, highest = [0.0] * len(p_values), 0.0
    for place, i in enumerate(order):
        highest = max(highest, min(1.0, p_values[i] * (len(p_values) - place)))
        adjusted[i] = highest
    return adjusted


@dataclass(frozen=True)
class Judgement:
    """The comparison of a column's best entry with the other entries.

    Attributes:
        best: The entry with the best mean; ``None`` if no entry has a value.
        adjusted: Maps every other entry that could be tested to the p-value of its difference from
            the best, adjusted by Holm's method over these comparisons.
        untested: Entries that have a value but could not be tested against the best.
        differences: Maps every other entry that could be tested to the best's mean minus its mean.
    """

    best: int | None
    adjusted: Mapping[int, float]
    untested: tuple[int, ...]
    differences: Mapping[int, Difference] = field(default_factory=dict)

    @property
    def level(self) -> tuple[int, ...]:
        """The entries that do not differ significantly from the best."""
        return tuple(row for row, p in self.adjusted.items() if p >= ALPHA)

    def outcome(self, row: int) -> Outcome:
        """Return the outcome of the comparison of the best with another entry."""
        return outcome(self.adjusted[row], self.differences[row])

    @property
    def clear(self) -> bool:
        """Whether the best differs significantly from every other entry."""
        return bool(self.adjusted) and not self.level and not self.untested


def judge(spreads: Mapping[int, Spread], better: Literal["higher", "lower"]) -> Judgement:
    """Compare the best entry of a column with every other one.

    Args:
        spreads: Maps an entry's row to its values. Entries without a value are not compared.
        better: Which values are better.
    """
    means = {row: spread.mean for row, spread in spreads.items() if spread.mean is not None}
    if not means:
        return Judgement(None, {}, ())
    sign = 1 if better == "higher" else -1
    best = max(means, key=lambda row: sign * means[row])
    pairs = {row: difference(spreads[best], spreads[row]) for row in means if row != best}
    tested = {row: found for row, found in pairs.items() if found is not None}
    adjusted = dict(zip(tested, holm([found.p for found in tested.values()]), strict=True))
    return Judgement(best, adjusted, tuple(row for row in pairs if row not in tested), tested)
