"""Groups of runs, arranged in the rows and columns of a layout."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

from sgdph.lab.config.run_config import RunConfig
from sgdph.lab.reports.layout import SYSTEM, Layout, value_of
from sgdph.lab.reports.names import field_title, rank, shown_value
from sgdph.lab.run.records import Group, RunRecord, differing_fields, group_runs


@dataclass(frozen=True)
class Heading:
    """The name of a row or a column.

    Attributes:
        values: Maps each field of the layout to its value.
        details: Further fields that distinguish this row from others with the same values.
    """

    values: Mapping[str, Any]
    details: Mapping[str, Any] = field(default_factory=dict)

    @property
    def parts(self) -> tuple[str, ...]:
        """The layout's values for display, with the field's name where it is needed."""
        return tuple(_named(name, shown_value(name, each)) for name, each in self.values.items())

    @property
    def text(self) -> str:
        """The whole name, for display."""
        details = ", ".join(
            f"{field_title(name)} {shown_value(name, value)}"
            for name, value in self.details.items()
        )
        return ", ".join(self.parts) + (f" ({details})" if details else "")

    @property
    def plain(self) -> str:
        """The whole name with the terms of the command line, for machine-readable files."""
        details = ", ".join(f"{name}={value}" for name, value in self.details.items())
        values = ", ".join(str(value) for value in self.values.values())
        return values + (f" ({details})" if details else "")


def _named(name: str, value: str) -> str:
    speaks = name in (SYSTEM, "optimizer", "dataset", "model", "label", "estimator", "schedule")
    return value if speaks else f"{field_title(name)} {value}"


@dataclass(frozen=True)
class Grid:
    """The entries of a table, all evaluated on the same kind of images.

    Attributes:
        evaluated: ``"test"`` or ``"validation"``.
        layout: The fields that name rows and columns.
        rows: The rows, in order.
        columns: The columns, in order.
        entries: Maps row and column to the runs there.
    """

    evaluated: str
    layout: Layout
    rows: tuple[Heading, ...]
    columns: tuple[Heading, ...]
    entries: Mapping[tuple[int, int], Group]

    def column(self, j: int) -> dict[int, Group]:
        """Return a column's entries by row."""
        return {i: self.entries[i, j] for i in range(len(self.rows)) if (i, j) in self.entries}

    def differing(self, names: Iterable[str]) -> dict[str, list[Any]]:
        """Return the fields in which entries of one column differ, each with its values.

        Fields of the layout are left out, because the headings name their values.
        """
        found: dict[str, dict[Any, RunConfig]] = {}
        for name in names:
            for j in range(len(self.columns)):
                values = {
                    getattr(each.config, name): each.config for each in self.column(j).values()
                }
                if len(values) > 1 and name not in self.layout.rows + self.layout.columns:
                    found.setdefault(name, {}).update(values)
        return {
            name: [
                value for value, _ in sorted(values.items(), key=lambda each: rank(each[1], name))
            ]
            for name, values in found.items()
        }

    @property
    def groups(self) -> list[Group]:
        """All entries, row by row."""
        return [self.entries[place] for place in sorted(self.entries)]

    @property
    def corner(self) -> str:
        """The description of the rows, for the table's top left cell."""
        return describe_fields(self.layout.rows)


def describe_fields(names: Iterable[str]) -> str:
    """Describe fields of a layout for display."""
    titles = {SYSTEM: "optimizer"}
    return ", ".join(titles.get(name, field_title(name)) for name in names)


def make_grids(records: Sequence[RunRecord], layout: Layout) -> list[Grid]:
    """Arrange runs in grids: one for runs evaluated on test images, one for held-out images.

    Runs that differ in more than the seed never share an entry. Their row is split into several,
    which are named by the fields in which the runs differ.
    """
    splits = ("test", "validation")
    chosen = [[run for run in records if run.config.evaluated == split] for split in splits]
    return [_make_grid(group_runs(runs), layout) for runs in chosen if runs]


def _make_grid(groups: Sequence[Group], layout: Layout) -> Grid:
    columns = list(_by_values(groups, layout.columns))
    rows: list[Heading] = []
    entries: dict[tuple[int, int], Group] = {}
    for name, members in _by_values(groups, layout.rows).items():
        extra = _details(members, layout)
        for detail, here in _by_values(members, extra).items():
            for group in here:
                place = columns.index(_values(group.config, layout.columns))
                entries[len(rows), place] = group
            values = dict(zip(layout.rows, name, strict=True))
            rows.append(Heading(values, dict(zip(extra, detail, strict=True))))
    headings = tuple(Heading(dict(zip(layout.columns, c, strict=True))) for c in columns)
    return Grid(groups[0].config.evaluated, layout, tuple(rows), headings, entries)


def _values(config: RunConfig, names: Iterable[str]) -> tuple[Any, ...]:
    return tuple(value_of(config, name) for name in names)


def _by_values(groups: Sequence[Group], names: Sequence[str]) -> dict[tuple[Any, ...], list[Group]]:
    """Collect groups that agree in some fields, sorted by these fields."""
    found: dict[tuple[Any, ...], list[Group]] = {}
    for group in sorted(groups, key=lambda each: [rank(each.config, name) for name in names]):
        found.setdefault(_values(group.config, names), []).append(group)
    return found


def _details(groups: Sequence[Group], layout: Layout) -> list[str]:
    """Return the fields that distinguish groups of one row that would share an entry."""
    names = dict.fromkeys(
        name
        for here in _by_values(groups, layout.columns).values()
        for name in differing_fields([group.config for group in here])
    )
    systems = {"optimizer", "label"} & set(names)
    if systems and SYSTEM not in layout.rows + layout.columns:
        # SYSTEM replaces both, unless it would hide a difference.
        kinds = {(group.config.optimizer, group.config.label) for group in groups}
        if len({value_of(group.config, SYSTEM) for group in groups}) == len(kinds):
            names = dict.fromkeys([SYSTEM, *(name for name in names if name not in systems)])
    return list(names)
