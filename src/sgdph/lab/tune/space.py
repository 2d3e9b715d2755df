"""The settings that are searched, and their bounds.

Every optimizer gets ranges of the same width: lr and weight decay each go from a thirtieth to
thirty times a middle value, three decades on a logarithmic scale. The middle is the optimizer's
documented default (:mod:`sgdph.lab.optimizers.registry` names the sources), never a value that was
tuned on a data set here.

| setting | middle | why |
|---|---|---|
| lr | the default | of the paper, or of the optimizer's authors |
| weight_decay | the default; 5e-4 where that is 0 | 0 has no logarithm; 5e-4 is common on CIFAR |
| newton_lr | the default, beside the partial Hessian | of the paper |

Other settings and arguments whose default is a float are searched if they are named.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import TypeAlias

from sgdph.lab.errors import LabError
from sgdph.lab.optimizers.newton import NEWTON_LR
from sgdph.lab.optimizers.registry import BASELINES

WIDTH = 30.0
USUAL_WEIGHT_DECAY = 5e-4
# Endings of the names of settings whose order of magnitude matters.
LOGARITHMIC = ("lr", "weight_decay", "wd", "eps")
# Endings of the names of settings that are below 1. No setting that is searched may be negative.
BELOW_ONE, MOST_BELOW_ONE = ("momentum", "beta"), 0.999
SYNTAX = "sgdm.lr=1e-3:1:log,sgdph.eps=1e-5:1e-3 (low:high, then log or linear)"
# The part of a range, measured on its scale, that counts as its edge.
EDGE = 0.05


@dataclass(frozen=True)
class Range:
    """Bounds of a setting.

    Attributes:
        low: The lower bound.
        high: The upper bound.
        log: Whether values are spread evenly over the logarithm.
    """

    low: float
    high: float
    log: bool

    def __post_init__(self) -> None:
        if not (math.isfinite(self.low) and math.isfinite(self.high)):
            raise LabError(f"a range's bounds must be finite; got {self}")
        if self.low >= self.high:
            raise LabError(f"a range's lower bound must come first and be smaller; got {self}")
        if self.log and self.low <= 0:
            raise LabError(
                f"a logarithmic range must begin above 0; got {self}; end it with ':linear', or "
                "begin it above 0"
            )

    def __str__(self) -> str:
        return f"{self.low:g}:{self.high:g}:{'log' if self.log else 'linear'}"

    def place(self, value: float) -> float:
        """Return a value's place on the range's scale: 0 at the lower bound, 1 at the upper."""
        if self.log:
            return math.log(value / self.low) / math.log(self.high / self.low)
        return (value - self.low) / (self.high - self.low)

    def at(self, place: float) -> float:
        """Return the value at a place on the scale; places 0 and 1 give exactly the bounds."""
        if place in (0, 1):
            return self.high if place else self.low
        if self.log:
            return float(self.low * (self.high / self.low) ** place)
        return self.low + place * (self.high - self.low)

    def rounded(self, value: float) -> float:
        """Round a value to three digits, which are easy to type, within the bounds."""
        return min(max(float(f"{value:.3g}"), self.low), self.high)

    def edge(self, value: float) -> str | None:
        """Return the end that a value is at, ``"low"`` or ``"high"``, or None."""
        place = self.place(value)
        if place <= EDGE:
            return "low"
        return "high" if place >= 1 - EDGE else None


Space: TypeAlias = Mapping[str, Range]
"""An optimizer's settings that are searched, lr and weight decay first."""


def default_space(optimizer: str) -> dict[str, Range]:
    """Return an optimizer's default ranges: lr, weight decay, and newton_lr if it has one."""
    defaults = BASELINES[optimizer].defaults
    middles = {
        "lr": defaults["lr"],
        "weight_decay": defaults["weight_decay"] or USUAL_WEIGHT_DECAY,
    }
    if NEWTON_LR in defaults:
        middles[NEWTON_LR] = defaults[NEWTON_LR]
    return {name: _around(middle) for name, middle in middles.items()}


def _around(middle: float) -> Range:
    return Range(float(f"{middle / WIDTH:.2g}"), float(f"{middle * WIDTH:.2g}"), log=True)


def parse_space(text: str, optimizers: Sequence[str]) -> dict[str, dict[str, Range]]:
    """Parse ``"sgdm.lr=1e-3:1:log,sgdph.eps=1e-5:1e-3"``.

    Args:
        text: The text. A setting without an optimizer applies to all optimizers that have it.
        optimizers: The optimizers that are tuned.

    Returns:
        Optimizer to setting to range, only what the text names.

    Raises:
        LabError: If the text has another form, names an optimizer that is not tuned, names a
            setting twice, names one that the optimizer does not have or whose value is not a
            number, or has bounds that are not a range.
    """
    spaces: dict[str, dict[str, Range]] = {}
    for part in text.split(","):
        name, equals, bounds = part.strip().partition("=")
        optimizer, dot, setting = name.rpartition(".")
        if not (equals and setting):
            raise LabError(f"--space must be like {SYNTAX}; got {part!r}")
        if dot and optimizer not in optimizers:
            raise LabError(
                f"--space names {optimizer}, which is not tuned; the optimizers are "
                f"{', '.join(optimizers)}; got {part!r}"
            )
        found = [optimizer] if dot else [each for each in optimizers if setting in tunable(each)]
        for each in found:
            if setting not in tunable(each):
                raise LabError(_no_setting(each, setting, part))
            if setting in spaces.setdefault(each, {}):
                raise LabError(f"--space names {each}.{setting} twice: {text!r}; name it once")
            spaces[each][setting] = _parse_range(bounds, setting, part)
        if not found:
            raise LabError(_no_setting(" and ".join(optimizers), setting, part))
    return spaces


def tunable(optimizer: str) -> list[str]:
    """Return the names of an optimizer's settings and arguments whose values are floats."""
    baseline = BASELINES[optimizer]
    values = {**baseline.defaults, **baseline.arguments}
    return [name for name, value in values.items() if isinstance(value, float)]


def _no_setting(optimizer: str, setting: str, part: str) -> str:
    known = {each: ", ".join(tunable(each)) for each in optimizer.split(" and ")}
    has = "; ".join(f"{each} has {names}" for each, names in known.items())
    return f"--space cannot search {setting} of {optimizer} (got {part!r}); {has}"


def _parse_range(text: str, setting: str, part: str) -> Range:
    words = text.split(":")
    scales = {"log": True, "linear": False}
    try:
        low, high = (float(word) for word in words[:2])
        log = scales[words[2]] if len(words) == 3 else setting.endswith(LOGARITHMIC)
    except (ValueError, KeyError) as error:
        raise LabError(f"--space must be like {SYNTAX}; got {part!r}") from error
    if len(words) > 3:
        raise LabError(f"--space must be like {SYNTAX}; got {part!r}")
    try:
        return Range(low, high, log)
    except LabError as error:
        raise LabError(f"--space {part}: {error}") from error


def complete(optimizer: str, named: Space) -> dict[str, Range]:
    """Return all ranges of an optimizer: the named ones, and the defaults of the others."""
    return {**default_space(optimizer), **named}


def grid(space: Space, trials: int) -> list[dict[str, float]]:
    """Return a grid of exactly ``trials`` points over a space, including its ends.

    Returns:
        The points; the value of the last setting changes fastest.

    Raises:
        LabError: If ``trials`` is not a product of one factor of at least 2 for each setting.
    """
    sides = _sides(trials, len(space))
    points: list[dict[str, float]] = [{}]
    for (name, each), side in zip(space.items(), sides, strict=True):
        values = [each.rounded(each.at(i / (side - 1))) for i in range(side)]
        points = [{**point, name: value} for point in points for value in values]
    return points


def _sides(trials: int, settings: int) -> list[int]:
    """Split a number into one factor for each setting, as equal as possible."""
    sides, left = [], trials
    for remaining in range(settings - 1, 0, -1):
        ideal = left ** (1 / (remaining + 1))
        # Enough must be left for the remaining settings: 28 is 2 x 2 x 7, but 4 x 7 ends there.
        factors = [
            side
            for side in range(2, left)
            if left % side == 0 and _prime_factors(left // side) >= remaining
        ]
        if not factors:
            break
        side = min(factors, key=lambda factor: (round(abs(math.log(factor / ideal)), 9), -factor))
        sides.append(side)
        left //= side
    sides.append(left)
    if len(sides) < settings or min(sides) < 2:
        example = 4**settings
        raise LabError(
            f"a grid over {settings} settings needs a number of trials that is a product of "
            f"{settings} whole numbers of at least 2, like {example} = "
            f"{' x '.join(['4'] * settings)}; got --trials {trials}"
        )
    return sides


def _prime_factors(number: int) -> int:
    """Count a number's prime factors, repeated ones included."""
    for factor in range(2, number + 1):
        if number % factor == 0:
            return 1 + _prime_factors(number // factor)
    return 0
