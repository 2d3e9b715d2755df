"""Formatting of numbers for display: dashes, ranges, p-values, counts, lists."""

from __future__ import annotations

from collections.abc import Collection, Sequence
from typing import Any

# Shown in place of a missing value.
NOTHING = "–"
# A longer list is cut after this many items.
MOST_LISTED = 6


def exact(value: Any) -> str:
    """Format a value in full, for machine-readable files; pairs become ``name=value``."""
    if isinstance(value, tuple):
        return " ".join(
            f"{each[0]}={exact(each[1])}" if isinstance(each, tuple) else exact(each)
            for each in value
        )
    return str(value)


def fixed(value: float | None, digits: int = 2, scale: float = 1) -> str:
    """Format a number times ``scale`` with a fixed number of decimals."""
    return NOTHING if value is None else f"{value * scale:.{digits}f}"


def two_decimals(value: float | None) -> str:
    """Format a number with two decimals, or with two significant digits from 99.995 on."""
    return fixed(value) if value is None or abs(value) < 99.995 else f"{value:.2g}"


def percent(share: float | None) -> str:
    """Format a share between 0 and 1 in percent, without the percent sign."""
    return fixed(share, 2, 100)


def points(value: float) -> str:
    """Format a difference of shares in percentage points, with its sign."""
    return f"{value * 100:+.2f}".replace("-", "−")


def shown_interval(low: float, high: float) -> str:
    """Format an interval of differences of shares in percentage points."""
    return f"{points(low)} to {points(high)}"


def p_value(p: float, equals: str = "= ") -> str:
    """Format a p-value: ``< 0.001``, or two significant digits after the prefix ``equals``."""
    return "< 0.001" if p < 0.001 else f"{equals}{p:.2g}"


def counted(number: int, singular: str, plural: str | None = None) -> str:
    """Format a number with its noun, like ``3 seeds``."""
    return f"{number} {singular if number == 1 else plural or singular + 's'}"


def from_to(counts: Collection[int]) -> str:
    """Format the range of some numbers, or the number alone if all are equal."""
    low, high = min(counts), max(counts)
    return str(low) if low == high else f"{low} to {high}"


def listed(texts: Sequence[str]) -> str:
    """Join texts with commas and "and"; of a long list, only the first few."""
    more = len(texts) - MOST_LISTED
    shown = [*texts[:MOST_LISTED], *([f"{more} more"] if more > 0 else [])]
    return " and ".join(filter(None, [", ".join(shown[:-1]), shown[-1]]))
