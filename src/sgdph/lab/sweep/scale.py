"""A recipe's scale: its runs as data, and how its part of the file is read."""

from __future__ import annotations

import itertools
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from typing import Any, TypeAlias

from sgdph.lab.errors import LabError, unknown_name
from sgdph.lab.optimizers.registry import BASELINES

Options: TypeAlias = Mapping[str, Any]
"""Fields of a run's configuration to values."""

_KEYS = ("description", "time", "seeds", "options", "settings", "axes", "cost")
# A measurement of cost has no runs.
_COST_KEYS = ("description", "time", "cost")


@dataclass(frozen=True)
class Sourced:
    """A value with its source."""

    value: Any
    source: str


@dataclass(frozen=True)
class Scale:
    """A recipe at one scale.

    Attributes:
        description: What is smaller than in the paper, and what replaces its lost details.
        time: How long it takes, and on what machine.
        seeds: The seeds of every cell.
        options: The options that all runs have in common.
        settings: Each optimizer's settings, with their sources.
        axes: Alternative options on each axis; every combination, with one from each axis, makes a
            cell.
        cost: Options of ``sgdph cost``, if the scale is a measurement of cost and has no runs.
    """

    description: str
    time: str
    seeds: tuple[int, ...] = ()
    options: Options = field(default_factory=dict)
    settings: Mapping[str, Mapping[str, Sourced]] = field(default_factory=dict)
    axes: tuple[tuple[Options, ...], ...] = ()
    cost: Options | None = None

    def combinations(self) -> Iterator[dict[str, Any]]:
        """Yield the options of each cell; the first axis changes slowest."""
        for parts in itertools.product(*self.axes):
            yield {name: value for part in parts for name, value in part.items()}


def parse_scale(values: Mapping[str, Any], settings: Mapping[str, Options], source: str) -> Scale:
    """Parse a scale of a recipe.

    Args:
        values: The content of the file under the scale's name.
        settings: Each optimizer's settings for all scales, as :func:`parse_settings` returns them.
        source: The file and the scale, for error messages.

    Raises:
        LabError: If a key is unknown, or a value has another form.
        KeyError: If a key is missing.
    """
    if "cost" in values:
        check_keys(values, _COST_KEYS, source, "key beside cost")
    else:
        check_keys(values, _KEYS, source)
    described = {"description": values["description"].strip(), "time": values["time"].strip()}
    if "cost" in values:
        return Scale(**described, cost=dict(values["cost"]))
    own = parse_settings(values.get("settings"), source)
    options = as_mapping(values["options"], f"{source}: options")
    _check_label(options, source)
    return Scale(
        **described,
        seeds=_seeds(values["seeds"], source),
        options=dict(options),
        settings={
            optimizer: {
                name: _sourced(value, f"{source}, {optimizer}'s {name}")
                for name, value in {**settings.get(optimizer, {}), **own.get(optimizer, {})}.items()
            }
            for optimizer in dict.fromkeys([*settings, *own])
        },
        axes=_axes(values["axes"], source),
    )


def check_keys(
    values: Mapping[str, Any], known: tuple[str, ...], source: str, what: str = "key"
) -> None:
    """Raise LabError if a key is unknown: it would have no effect."""
    for name in values:
        if name not in known:
            listed = f"expected one of {', '.join(known)}"
            raise LabError(f"{source}: {unknown_name(what, name, known, listed)}")


def as_mapping(value: Any, what: str) -> Options:
    """Return a mapping; a key without a value has an empty one."""
    if value is not None and not isinstance(value, Mapping):
        raise LabError(f"{what} must be a mapping like {{name: value}}; got {value!r}")
    return value or {}


def parse_settings(values: Any, source: str) -> dict[str, Options]:
    """Return each optimizer's settings; an empty line stands for none.

    Raises:
        LabError: If a name is not an optimizer's, or a value is not a mapping.
    """
    settings = as_mapping(values, f"{source}: settings")
    for optimizer in settings:
        if optimizer not in BASELINES:
            unknown = unknown_name("optimizer", optimizer, tuple(BASELINES))
            raise LabError(f"{source}, settings: {unknown}")
    return {
        name: as_mapping(own, f"{source}: settings of {name}") for name, own in settings.items()
    }


def _sourced(value: Any, what: str) -> Sourced:
    if not isinstance(value, Mapping) or set(value) != {"value", "source"}:
        raise LabError(f"{what} must be {{value: ..., source: ...}}; got {value!r}")
    return Sourced(value["value"], str(value["source"]))


def _seeds(values: Any, source: str) -> tuple[int, ...]:
    """Parse the list of seeds."""
    # A bool is an int, but no seed.
    if not isinstance(values, list) or not all(type(seed) is int and seed >= 0 for seed in values):
        raise LabError(
            f"{source}: seeds must be a list of whole numbers like [0, 1, 2]; got {values!r}"
        )
    if not values:
        raise LabError(f"{source}: seeds is empty; name at least one, like [0]")
    if len(set(values)) < len(values):
        raise LabError(f"{source}: seeds names a seed twice: {values}; name each once")
    return tuple(values)


def _axes(axes: Any, source: str) -> tuple[tuple[Options, ...], ...]:
    """Parse the list of axes."""
    if not isinstance(axes, list):
        raise LabError(
            f"{source}: axes must be a list of axes like [{{lr: [0.1, 0.2]}}]; got {axes!r}"
        )
    return tuple(_axis(axis, source) for axis in axes)


def _axis(axis: Any, source: str) -> tuple[Options, ...]:
    """Parse ``{field: [values]}``, or a list of mappings, each of options that belong together."""
    found = axis
    if isinstance(axis, Mapping) and len(axis) == 1:
        ((name, choices),) = axis.items()
        found = [{name: choice} for choice in choices] if isinstance(choices, list) else choices
    if not found or not isinstance(found, list) or not all(isinstance(x, Mapping) for x in found):
        raise LabError(
            f"{source}: an axis must be one field with a list of values, like {{lr: [0.1, 0.2]}}, "
            f"or a list of cells, like [{{optimizer: sgdm, lr: 0.1}}]; got {axis!r}"
        )
    for options in found:
        _check_label(options, f"{source}, cell {options}")
    return tuple(dict(options) for options in found)


def _check_label(options: Options, source: str) -> None:
    """Raise LabError if the label is not a text, such as a number without quotes."""
    label = options.get("label")
    if label is not None and not isinstance(label, str):
        raise LabError(f"{source}: label must be a text; got {label!r}; write it in quotes")
