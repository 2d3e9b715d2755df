"""The layout of runs in a table: which fields make its rows, and which make its columns."""

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

# Stands for a run's label, or for its optimizer if it has no label.
SYSTEM = "system"
# The file in a sweep's directory that may contain a layout.
SWEEP = "sweep.yaml"


@dataclass(frozen=True)
class Layout:
    """The rows and columns of a table of runs.

    Attributes:
        rows: Fields of :class:`RunConfig`, or :data:`SYSTEM`. Their values name the rows.
        columns: Fields whose values name the columns.
        title: Title above the table.
        turned: Whether to swap rows and columns for display if there are several columns, like the
            tables of the SGD-PH paper. Comparisons are still between the entries of ``rows``.

    Raises:
        LabError: If a field is unknown, or is in both rows and columns.
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
    """Make a layout from the content of a file: lists of names under ``rows`` and ``columns``."""
    names = {key: tuple(values[key]) for key in ("rows", "columns") if key in values}
    return Layout(title=values.get("title"), turned=bool(values.get("turned", False)), **names)


def value_of(config: RunConfig, name: str) -> Any:
    """Return the value of a layout's field in a run's configuration."""
    return (config.label or config.optimizer) if name == SYSTEM else getattr(config, name)


def parse_fields(text: str, flag: str) -> tuple[str, ...]:
    """Parse field names like ``"dataset,model"``.

    Args:
        text: The text to parse.
        flag: The option, for error messages.

    Raises:
        LabError: If a name is empty or is given twice.
    """
    names = tuple(part.strip() for part in text.split(","))
    if "" in names or len(set(names)) < len(names):
        raise LabError(f"{flag} must be names like dataset,model, each once; got {text!r}")
    return names


def saved_layout(directory: Path) -> Layout:
    """Return the layout that is saved in a sweep or an archive; the default if there is none.

    Raises:
        LabError: If the saved layout cannot be read.
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
