"""How figures are written for people: dashes, ranges, p-values, counts, lists."""

from __future__ import annotations

from collections.abc import Collection, Sequence
from typing import Any

# What stands where there is no figure.
NOTHING = "–"
# Of a longer list the first few are named.
MOST_LISTED = 6


def exact(value: Any) -> str:
    """Write a value as it is, so that programs read it back; pairs of names and values as n=v."""
    if isinstance(value, tuple):
        return " ".join(
            f"{each[0]}={exact(each[1])}" if isinstance(each, tuple) else exact(each)
            for each in value
        )
    return str(value)


def fixed(value: float | None, digits: int = 2, scale: float = 1) -> str:
    """Write a figure, times ``scale``, with so many decimals."""
    return NOTHING if value is None else f"{value * scale:.{digits}f}"


def two_decimals(value: float | None) -> str:
    """Write a figure with two decimals, or two digits where it is large."""
    return fixed(value) if value is None or abs(value) < 99.995 else f"{value:.2g}"


def percent(share: float | None) -> str:
    """Write a share of 0 to 1 in percent, without the sign."""
    return fixed(share, 2, 100)


def mean_and_std(mean: float | None, std: float | None, digits: int, scale: float = 1) -> str:
    """Write ``mean ± std``, both times ``scale``; the value alone where it has no spread."""
    shown = fixed(mean, digits, scale)
    return shown if mean is None or std is None else f"{shown} ± {fixed(std, digits, scale)}"


def points(value: float) -> str:
    """Write a difference of shares in points, with its sign."""
    return f"{value * 100:+.2f}".replace("-", "−")


def shown_interval(low: float, high: float) -> str:
    """Write an interval of differences of shares in points."""
    return f"{points(low)} to {points(high)}"


def p_value(p: float, equals: str = "= ") -> str:
    """Write a p-value with its sign; ``equals`` stands before one that is not tiny."""
    return "< 0.001" if p < 0.001 else f"{equals}{p:.2g}"


def counted(number: int, singular: str, plural: str | None = None) -> str:
    """Write a number with its noun."""
    return f"{number} {singular if number == 1 else plural or singular + 's'}"


def from_to(counts: Collection[int]) -> str:
    """Write a number, or the least and the largest of several."""
    low, high = min(counts), max(counts)
    return str(low) if low == high else f"{low} to {high}"


def listed(texts: Sequence[str]) -> str:
    """Join texts as a sentence does, the first few of many."""
    more = len(texts) - MOST_LISTED
    shown = [*texts[:MOST_LISTED], *([f"{more} more"] if more > 0 else [])]
    return " and ".join(filter(None, [", ".join(shown[:-1]), shown[-1]]))
