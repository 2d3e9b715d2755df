"""Conversion of a run's configuration to YAML and back."""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping
from pathlib import Path
from typing import Any, get_args

import yaml

from sgdph.lab.config.run_config import RunConfig, field_types
from sgdph.lab.errors import LabError, unknown_name
from sgdph.lab.files import check_mark, parse_yaml
from sgdph.lab.optimizers.baseline import Setting

FORMAT = "sgdph-run-1"
WHAT = "a run's configuration"
# Earlier name of a field to its current name, so that older files can still be read.
RENAMED = {"workers": "data_workers"}


def to_yaml(config: RunConfig) -> str:
    """Write a configuration as YAML: a format mark, then one key per field, in the fields' order.

    Fields that are ``None`` are left out, such as settings that the optimizer does not have.
    """
    values = {name: value for name, value in vars(config).items() if value is not None}
    if "optimizer_args" in values:
        values["optimizer_args"] = with_lists(dict(values["optimizer_args"]))
    content = {"format": FORMAT, **with_lists(values)}
    return yaml.safe_dump(content, sort_keys=False, allow_unicode=True)


def with_lists(values: Mapping[str, Any]) -> dict[str, Any]:
    """Replace tuples by lists, for YAML and JSON."""
    return {name: list(each) if isinstance(each, tuple) else each for name, each in values.items()}


def with_tuples(values: Mapping[str, Any]) -> dict[str, Any]:
    """Replace lists by tuples, and earlier names of options by their current names."""
    return {
        RENAMED.get(name, name): tuple(each) if isinstance(each, list) else each
        for name, each in values.items()
    }


def from_yaml(text: str, source: Path | str = "the configuration") -> RunConfig:
    """Read what :func:`to_yaml` wrote.

    Args:
        text: The YAML text.
        source: Where the text came from, for error messages.

    Raises:
        LabError: If the text is not YAML, lacks the format mark or a key, has an unknown key, or
            holds a value of the wrong type.
    """
    return from_marked(parse_yaml(text, FORMAT, source, WHAT), source)


def from_marked(content: object, source: Path | str) -> RunConfig:
    """Make a configuration from the content of a file with the format mark.

    Raises:
        LabError: As for :func:`from_yaml`.
    """
    values = check_mark(content, FORMAT, source, WHAT)
    return from_mapping({key: value for key, value in values.items() if key != "format"}, source)


def from_mapping(values: Mapping[str, Any], source: Path | str = "the configuration") -> RunConfig:
    """Make a configuration from the content of a file.

    Args:
        values: Field name to value, tuples as lists.
        source: Where the values came from, for error messages.

    Raises:
        LabError: If a key is missing or unknown, or a value has the wrong type.
    """
    try:
        given = revived(values)
        needed = [f.name for f in dataclasses.fields(RunConfig) if f.default is dataclasses.MISSING]
        if missing := [name for name in needed if name not in given]:
            raise LabError(f"missing keys: {', '.join(missing)}")
        return RunConfig(**given)
    except LabError as error:
        raise LabError(f"{source}: {error}") from error


def revived(values: Mapping[str, Any]) -> dict[str, Any]:
    """Convert values from YAML to the values of the fields with the same names.

    Raises:
        LabError: If a name is not that of a field.
    """
    hints = field_types()
    given = {}
    for key, value in values.items():
        name = RENAMED.get(key, key)
        if name not in hints:
            raise LabError(unknown_name("key", name, tuple(hints)))
        given[name] = _revive(value, hints[name])
    if isinstance(given.get("optimizer_args"), Mapping):
        given["optimizer_args"] = as_pairs(given["optimizer_args"])
    return given


def as_pairs(arguments: Mapping[str, Any]) -> tuple[tuple[str, Setting], ...]:
    """Convert an optimizer's arguments from a file to the sorted pairs of :class:`RunConfig`."""
    return tuple((name, _revive(value, float)) for name, value in sorted(arguments.items()))


def _revive(value: Any, hint: Any) -> Any:
    """Restore a value from YAML, which turns tuples into lists and reads ``1e-3`` as text."""
    if isinstance(value, list):
        return tuple(_revive(item, float) for item in value)
    if isinstance(value, str) and _takes_floats(hint):
        try:
            return float(value)
        except ValueError:
            return value
    return value


def _takes_floats(hint: Any) -> bool:
    """Return whether a type is float, possibly with bounds or in a union with ``None``."""
    return hint is float or any(map(_takes_floats, get_args(hint)))
