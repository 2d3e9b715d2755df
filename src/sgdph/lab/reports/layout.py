"""The layout of runs in a table: which fields make its rows, and which make its columns."""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import yaml

from sgdph.lab.config.run_config import WITHIN_ENTRY, RunConfig
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
        LabError: If a field is unknown, is in both rows and columns, or may differ within an entry.
    """

    rows: tuple[str, ...] = (SYSTEM,)
    columns: tuple[str, ...] = ("dataset", "model")
    title: str | None = None
    turned: bool = False

    def __post_init__(self) -> None:
        names = self.rows + self.columns
        within = [name for name in names if name in WITHIN_ENTRY]
        if within:
            raise LabError(
                f"--rows and --columns cannot be {', '.join(within)}: runs that differ only in "
                f"{', '.join(sorted(WITHIN_ENTRY))} are one entry. Leave it out, or report on the "
                "directories of these runs one by one"
            )
        known = {SYSTEM, *(field.name for field in dataclasses.fields(RunConfig))} - WITHIN_ENTRY
        for name in names:
            if name not in known:
                listed = f"expected {SYSTEM} or a name in the config.yaml of a run, like lr"
                what = "field of --rows or --columns"
                raise LabError(unknown_name(what, name, sorted(known), listed))
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
    swept = (directory / SWEEP).is_file()
    file = directory / (SWEEP if swept else RUNS)
    if not file.is_file():
        return Layout()
    # Outside of the context below: if an archive is damaged, its layout is not what to correct.
    asked = None if swept else read_layout(directory)
    try:
        if swept:
            values = yaml.safe_load(file.read_text(encoding="utf-8"))
            asked = (values or {}).get("layout")
        return Layout() if asked is None else layout_from(asked)
    except (OSError, AttributeError, TypeError, ValueError, yaml.YAMLError) as error:
        raise LabError(
            f"the layout in {file} cannot be read ({error}); correct it under 'layout', or give "
            "--rows and --columns"
        ) from error
