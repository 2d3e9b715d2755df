"""Groups of runs, arranged in the rows and columns of a layout."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field, fields, replace
from typing import Any

from sgdph.lab.config.run_config import RunConfig
from sgdph.lab.reports.layout import SYSTEM, Layout, value_of
from sgdph.lab.reports.names import field_title, rank, shown_field, shown_value
from sgdph.lab.reports.numbers import exact
from sgdph.lab.run.records import Group, RunRecord, differing_fields, group_runs

# The values of these fields need no name in a heading.
SPEAKING = (SYSTEM, "optimizer", "dataset", "model", "label", "estimator", "schedule")


@dataclass(frozen=True)
class Heading:
    """The name of a row or a column.

    Attributes:
        values: Maps each field of the layout to its value.
        details: Further fields that distinguish it from others with the same values or name.
        in_full: Fields whose values are shown in full, with the terms of the command line.
    """

    values: Mapping[str, Any]
    details: Mapping[str, Any] = field(default_factory=dict)
    in_full: frozenset[str] = frozenset()

    @property
    def parts(self) -> tuple[str, ...]:
        """The layout's values for display, with the field's name where it is needed.

        The last part includes the details.
        """
        parts = [self._shown(name, value) for name, value in self.values.items()]
        details = ", ".join(self._shown(name, value, True) for name, value in self.details.items())
        if details:
            parts[-1:] = [" ".join([*parts[-1:], f"({details})"])]
        return tuple(parts)

    @property
    def text(self) -> str:
        """The whole name, for display."""
        return ", ".join(self.parts)

    @property
    def plain(self) -> str:
        """The whole name with the terms of the command line, for machine-readable files."""
        details = ", ".join(f"{name}={value}" for name, value in self.details.items())
        values = ", ".join(str(value) for value in self.values.values())
        return values + (f" ({details})" if details else "")

    def _shown(self, name: str, value: Any, named: bool = False) -> str:
        """Format a value, with the field's name if it is needed or asked for."""
        if name not in SPEAKING or value is None:
            named = True
        if name in self.in_full:
            return f"{field_title(name)} {exact(value)}" if named else exact(value)
        return shown_field(name, value) if named else shown_value(name, value)


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
    headings = [Heading(dict(zip(layout.columns, c, strict=True))) for c in columns]
    placed = [(place, group.config) for place, group in entries.items()]
    by_row = [[config for (i, _), config in placed if i == row] for row in range(len(rows))]
    by_column = [[config for (_, j), config in placed if j == k] for k in range(len(columns))]
    return Grid(
        groups[0].config.evaluated,
        layout,
        _distinguish(rows, by_row, layout),
        _distinguish(headings, by_column, layout),
        entries,
    )


def _distinguish(
    headings: Sequence[Heading], configs: Sequence[Sequence[RunConfig]], layout: Layout
) -> tuple[Heading, ...]:
    """Add details to headings that show the same text, such as sgdm and a run labelled SGDM.

    Args:
        headings: The headings of all rows, or of all columns.
        configs: The configurations in each row or column.
        layout: Its fields are not details, because the headings have their values.
    """
    found = list(headings)
    while same := _same_texts(found):
        before = list(found)
        for places in same:
            names = _constant_differences([configs[i] for i in places], layout)
            for i in places:
                more = {name: getattr(configs[i][0], name) for name in names}
                found[i] = replace(found[i], details={**found[i].details, **more})
        if found == before:
            # They differ in what a short text rounds or renames.
            for places in same:
                full = _differing_values([found[i] for i in places])
                for i in places:
                    found[i] = replace(found[i], in_full=found[i].in_full | full)
        if found == before:
            break
    return tuple(found)


def _same_texts(headings: Sequence[Heading]) -> list[list[int]]:
    """Return the places of headings that show the same text, a list for each such text."""
    places: dict[str, list[int]] = {}
    for i, heading in enumerate(headings):
        places.setdefault(heading.text, []).append(i)
    return [each for each in places.values() if len(each) > 1]


def _differing_values(headings: Sequence[Heading]) -> frozenset[str]:
    """Return the fields whose values, among those that are shown, differ between headings."""
    shown = [{**each.values, **each.details} for each in headings]
    names = {name for values in shown for name in values}
    return frozenset(name for name in names if len({each.get(name) for each in shown}) > 1)


def _constant_differences(configs: Sequence[Sequence[RunConfig]], layout: Layout) -> list[str]:
    """Return the fields that are constant within each heading, and differ between headings.

    The label alone is enough if each heading has its own.
    """
    values = {
        each.name: [{getattr(config, each.name) for config in here} for here in configs]
        for each in fields(RunConfig)
        if each.name not in layout.rows + layout.columns
    }
    distinct = {
        name: len(set().union(*sets))
        for name, sets in values.items()
        if all(len(each) == 1 for each in sets)
    }
    if distinct.get("label") == len(configs):
        return ["label"]
    return [name for name, count in distinct.items() if count > 1]


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
