"""How runs are laid out in a table: which of their fields make its rows, and which its columns."""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import yaml

from sgdph.lab.config.run_config import RunConfig
from sgdph.lab.errors import LabError, unknown_name
from sgdph.lab.run.archive import RUNS, read_layout

# A run's label, or where it has none, its optimizer.
SYSTEM = "system"
# The file of a sweep's directory that may hold a layout.
SWEEP = "sweep.yaml"


@dataclass(frozen=True)
class Layout:
    """A table over runs; runs that agree in all its fields and differ in seed make one entry.

    Attributes:
        rows: Fields of :class:`RunConfig`, or :data:`SYSTEM`, whose values name the rows.
        columns: Likewise for the columns.
        title: What stands above the table.
        turned: Whether a table of several columns is shown with rows and columns changed round, as
            the SGD-PH paper has its own. Whatever is compared are still the rows.
    """

    rows: tuple[str, ...] = (SYSTEM,)
    columns: tuple[str, ...] = ("dataset", "model")
    title: str | None = None
    turned: bool = False

    def __post_init__(self) -> None:
        known = {SYSTEM, *(field.name for field in dataclasses.fields(RunConfig))} - {"seed"}
        for name in self.rows + self.columns:
            if name not in known:
                raise LabError(
                    unknown_name(
                        "field of --rows or --columns",
                        name,
                        sorted(known),
                        "docs/reports.md lists them",
                    )
                )
        twice = set(self.rows) & set(self.columns)
        if twice:
            raise LabError(f"{', '.join(sorted(twice))} cannot be in both --rows and --columns")


def layout_from(values: Mapping[str, Any]) -> Layout:
    """Make a layout of what a file held: lists of names under ``rows`` and ``columns``."""
    names = {key: tuple(values[key]) for key in ("rows", "columns") if key in values}
    return Layout(title=values.get("title"), turned=bool(values.get("turned", False)), **names)


def value_of(config: RunConfig, name: str) -> Any:
    """Read one of a layout's fields from a run's configuration."""
    return (config.label or config.optimizer) if name == SYSTEM else getattr(config, name)


def parse_fields(text: str, flag: str) -> tuple[str, ...]:
    """Read ``"dataset,model"``.

    Args:
        text: What was given.
        flag: The option, for error messages.

    Raises:
        LabError: If a name is missing or stands twice.
    """
    names = tuple(part.strip() for part in text.split(","))
    if "" in names or len(set(names)) < len(names):
        raise LabError(f"{flag} must be names like dataset,model, each once; got {text!r}")
    return names


def saved_layout(directory: Path) -> Layout:
    """Return the layout that a sweep or an archive asks for, the usual one where it asks for none.

    Raises:
        LabError: If what lies there is not a layout.
    """
    file = directory / SWEEP
    try:
        if file.is_file():
            values = yaml.safe_load(file.read_text(encoding="utf-8"))
            asked = (values or {}).get("layout")
        else:
            asked = read_layout(directory) if (directory / RUNS).is_file() else None
        return Layout() if asked is None else layout_from(asked)
    except (OSError, AttributeError, TypeError, ValueError, yaml.YAMLError) as error:
        raise LabError(
            f"the layout in {file} cannot be read ({error}); correct it under 'layout', or move "
            "the file away and give --rows and --columns"
        ) from error
