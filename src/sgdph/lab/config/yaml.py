"""A run's configuration as text: to YAML and back."""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping
from pathlib import Path
from typing import Any, get_args

import yaml

from sgdph.lab.config.run_config import RunConfig, field_types
from sgdph.lab.errors import LabError
from sgdph.lab.files import parse_yaml
from sgdph.lab.optimizers.baseline import Setting

FORMAT = "sgdph-run-1"
# Earlier name of a field to its name now: what was saved under it is still read.
RENAMED = {"workers": "data_workers"}


def to_yaml(config: RunConfig) -> str:
    """Write a configuration as YAML: a format mark, then one key per field, in the fields' order.

    Settings that the optimizer does not have are left out.
    """
    optional = {"data_dir", "train_size", "threads"}
    values: dict[str, Any] = {"format": FORMAT}
    for field in dataclasses.fields(config):
        value = getattr(config, field.name)
        if value is None and field.name not in optional:
            continue
        values[field.name] = _plain(field.name, value)
    return yaml.safe_dump(values, sort_keys=False, allow_unicode=True)


def _plain(name: str, value: Any) -> Any:
    """Write a field's value as YAML has it: tuples as lists, pairs of name and value as mapping."""
    if name == "optimizer_args":
        return {key: _plain("", item) for key, item in value}
    return list(value) if isinstance(value, tuple) else value


def with_lists(values: Mapping[str, Any]) -> dict[str, Any]:
    """Write options as YAML and JSON have them: tuples as lists."""
    return {name: list(each) if isinstance(each, tuple) else each for name, each in values.items()}


def with_tuples(values: Mapping[str, Any]) -> dict[str, Any]:
    """Undo :func:`with_lists`, and give options that were renamed since their names of now."""
    return {
        RENAMED.get(name, name): tuple(each) if isinstance(each, list) else each
        for name, each in values.items()
    }


def from_yaml(text: str, source: Path | str = "the configuration") -> RunConfig:
    """Read what :func:`to_yaml` wrote.

    Args:
        text: The YAML text.
        source: Where it came from, for error messages.

    Raises:
        LabError: If the text is not YAML, lacks the format mark or a key, has an unknown key, or
            holds a value of the wrong kind.
    """
    values = parse_yaml(text, FORMAT, source, "a run's configuration")
    return from_mapping({key: value for key, value in values.items() if key != "format"}, source)


def from_mapping(values: Mapping[str, Any], source: Path | str = "the configuration") -> RunConfig:
    """Make a configuration of what a file held, by field name.

    Args:
        values: Field name to value, tuples as lists.
        source: Where it came from, for error messages.

    Raises:
        LabError: If a key is missing or unknown, or a value is of the wrong kind.
    """
    values = {RENAMED.get(name, name): value for name, value in values.items()}
    known = {field.name: field for field in dataclasses.fields(RunConfig)}
    unknown = [str(key) for key in values if key not in known]
    missing = [
        name
        for name, field in known.items()
        if field.default is dataclasses.MISSING and name not in values
    ]
    if unknown or missing:
        problems = [f"unknown keys: {', '.join(unknown)}"] if unknown else []
        problems += [f"missing keys: {', '.join(missing)}"] if missing else []
        raise LabError(f"{source}: {'; '.join(problems)}")
    try:
        return RunConfig(**revived(values))
    except LabError as error:
        raise LabError(f"{source}: {error}") from error


def revived(values: Mapping[str, Any]) -> dict[str, Any]:
    """Turn values as YAML has them into those of the fields that they are named after.

    Raises:
        LabError: If a name is not a field's.
    """
    hints = field_types()
    values = {RENAMED.get(name, name): value for name, value in values.items()}
    strangers = [name for name in values if name not in hints]
    if strangers:
        raise LabError(f"a run has no {', '.join(strangers)}; it has {', '.join(hints)}")
    given = {name: _revive(value, hints[name]) for name, value in values.items()}
    if isinstance(given.get("optimizer_args"), Mapping):
        given["optimizer_args"] = as_pairs(given["optimizer_args"])
    return given


def as_pairs(arguments: Mapping[str, Any]) -> tuple[tuple[str, Setting], ...]:
    """Write an optimizer's arguments, as a file has them, as :class:`RunConfig` holds them."""
    return tuple((name, _revive(value, float)) for name, value in sorted(arguments.items()))


def _revive(value: Any, hint: Any) -> Any:
    """Undo what YAML does to values: tuples became lists, and ``1e-3`` (no dot) reads as text."""
    if isinstance(value, list):
        return tuple(_revive(item, float) for item in value)
    if isinstance(value, str) and (hint is float or float in get_args(hint)):
        try:
            return float(value)
        except ValueError:
            return value
    return value
