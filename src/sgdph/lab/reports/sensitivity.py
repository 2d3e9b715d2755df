"""Runs of one system that differ in its settings: how much these matter."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

from sgdph.lab.config.run_config import RunConfig
from sgdph.lab.reports.grid import Grid
from sgdph.lab.reports.layout import SYSTEM, value_of
from sgdph.lab.reports.measures import final, spread
from sgdph.lab.reports.names import field_title, shown_value
from sgdph.lab.reports.statistics import Spread
from sgdph.lab.run.records import Group, differing_fields

# A surface's two axes are the first two of these that vary: the first one lies flat.
NUMERIC = (
    *("lr", "weight_decay", "newton_lr", "second_order_lr", "hessian_momentum", "eps", "momentum"),
    *("hessian_interval", "batch_size"),
)


@dataclass(frozen=True)
class Point:
    """One setting and what came of it.

    Attributes:
        x: The setting's value.
        y: The second setting's; 0 on a line.
        accuracy: The finished runs' final accuracies, 0 to 1.
        diverged: How many runs diverged.
        pruned: Whether its run was stopped early; the accuracy is then that of its last epoch.
    """

    x: float
    y: float
    accuracy: Spread
    diverged: int = 0
    pruned: bool = False


@dataclass(frozen=True)
class Surface:
    """Accuracy over two settings.

    Attributes:
        title: What was trained on what.
        x: The first setting.
        y: The second one.
        points: What was run.
        searched: The corners ``(x, y)`` between which settings were searched, where they were.
        task: Surfaces of one task have one scale of colours.
    """

    title: str
    x: str
    y: str
    points: tuple[Point, ...]
    searched: tuple[tuple[float, float], tuple[float, float]] | None = None
    task: str = ""

    @property
    def places(self) -> list[tuple[float, float]]:
        """Where something was run, or searched."""
        return [*((point.x, point.y) for point in self.points), *(self.searched or ())]


@dataclass(frozen=True)
class Line:
    """Accuracy over one setting.

    Attributes:
        panel: What it has in common with the lines that it is drawn beside.
        name: What tells it from these.
        x: The setting.
        points: Its points, by the setting.
        optimizer: The system's optimizer.
    """

    panel: str
    name: str
    x: str
    points: tuple[Point, ...]
    optimizer: str = ""


def find_sensitivity(grid: Grid) -> tuple[list[Surface], list[Line]]:
    """Find the systems that were run with several settings.

    Runs that agree in all but two numbers make a surface (of at least three points), in all but one
    a line (of at least two). Where more numbers vary there is a line for each: the longest, of at
    least three points, along which all others stand still.
    """
    surfaces: list[Surface] = []
    lines: list[Line] = []
    families = _alike(grid.groups, NUMERIC)
    for family in families:
        name = _name(family, families)
        configs = [group.config for group in family]
        varying = [field for field in NUMERIC if field in differing_fields(configs)]
        if len(varying) == 2 and len(family) > 2:
            surfaces.append(_surface(family, name, *varying))
        elif len(varying) == 1:
            lines.append(_line(family, name, varying[0]))
        elif len(varying) > 2:
            for field in varying:
                longest = max(_alike(family, [field]), key=len)
                still = [other for other in varying if other != field]
                at = f"{name} at {_values(longest[0].config, still)}"
                lines += [_line(longest, at, field)] if len(longest) > 2 else []
    return surfaces, sorted(lines, key=lambda line: (line.panel, line.x))


def _alike(groups: Sequence[Group], but: Sequence[str]) -> list[list[Group]]:
    """Put groups together that agree in all but some fields."""
    found: dict[tuple[Any, ...], list[Group]] = {}
    for group in groups:
        values = vars(group.config)
        key = tuple(value for name, value in values.items() if name not in but)
        found.setdefault(key, []).append(group)
    return list(found.values())


def _name(family: Sequence[Group], families: Sequence[Sequence[Group]]) -> str:
    """Name a family by its system, and by what tells it from others of the system on the task."""

    def kind(config: RunConfig) -> tuple[str, ...]:
        return config.dataset, config.model, str(value_of(config, SYSTEM))

    own = family[0].config
    rivals = [other[0].config for other in families if kind(other[0].config) == kind(own)]
    fields = [name for name in differing_fields(rivals) if name not in NUMERIC]
    details = _values(own, fields)
    return shown_value(SYSTEM, kind(own)[2]) + (f" ({details})" if details else "")


def _values(config: RunConfig, names: Sequence[str]) -> str:
    return ", ".join(
        f"{field_title(name)} {shown_value(name, getattr(config, name))}" for name in names
    )


def _point(group: Group, x: str, y: str | None = None) -> Point:
    return Point(
        float(getattr(group.config, x)),
        0.0 if y is None else float(getattr(group.config, y)),
        spread(group, final(group.config.evaluated)),
        group.count("diverged"),
    )


def _surface(family: Sequence[Group], name: str, x: str, y: str) -> Surface:
    points = tuple(_point(group, x, y) for group in family)
    task = _task(family[0].config)
    return Surface(f"{name}, {task}", field_title(x), field_title(y), points, task=task)


def _line(family: Sequence[Group], name: str, x: str) -> Line:
    points = sorted((_point(group, x) for group in family), key=lambda point: point.x)
    config = family[0].config
    return Line(_task(config), name, field_title(x), tuple(points), config.optimizer)


def _task(config: RunConfig) -> str:
    return f"{shown_value('dataset', config.dataset)}, {shown_value('model', config.model)}"
