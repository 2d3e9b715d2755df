"""How the accuracy of a system depends on its settings."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

from sgdph.lab.config.run_config import RunConfig
from sgdph.lab.reports.grid import Grid
from sgdph.lab.reports.layout import SYSTEM, value_of
from sgdph.lab.reports.measures import final, spread
from sgdph.lab.reports.names import field_title, shown_field, shown_value
from sgdph.lab.reports.statistics import Spread
from sgdph.lab.run.records import Group, differing_fields

# The axes of a surface are the two of these that vary, in this order: the first is horizontal.
NUMERIC = (
    *("lr", "weight_decay", "newton_lr", "second_order_lr", "hessian_momentum", "eps", "momentum"),
    *("hessian_interval", "batch_size"),
)


@dataclass(frozen=True)
class Point:
    """The result of one combination of settings.

    Attributes:
        x: Value of the first setting.
        y: Value of the second setting; 0 on a line.
        accuracy: Final accuracies of the finished runs, 0 to 1.
        diverged: Number of runs that diverged.
        pruned: Whether its run was stopped early. The accuracy is then that of its last epoch.
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
        title: Title of the panel.
        x: Name of the first setting.
        y: Name of the second setting.
        points: The results.
        searched: Two opposite corners ``(x, y)`` of the region that was searched; ``None`` if there
            was no search.
        task: What the system was trained on. Surfaces of one task share a colour scale.
    """

    title: str
    x: str
    y: str
    points: tuple[Point, ...]
    searched: tuple[tuple[float, float], tuple[float, float]] | None = None
    task: str = ""

    @property
    def places(self) -> list[tuple[float, float]]:
        """The coordinates of the points, and of the searched region's corners."""
        return [*((point.x, point.y) for point in self.points), *(self.searched or ())]


@dataclass(frozen=True)
class Line:
    """Accuracy over one setting.

    Attributes:
        panel: What the lines in one panel have in common: data set and network.
        name: What distinguishes it from the other lines in the panel.
        x: Name of the setting.
        points: Its points, sorted by the setting.
        optimizer: The system's optimizer.
    """

    panel: str
    name: str
    x: str
    points: tuple[Point, ...]
    optimizer: str = ""


def find_sensitivity(grid: Grid) -> tuple[list[Surface], list[Line]]:
    """Find the systems that were run with several settings.

    Runs that differ in exactly two of :data:`NUMERIC` make a surface of at least three points. Runs
    that differ in one make a line of at least two points. If more than two vary, there is at most
    one line for each: the longest along which all others are fixed, of at least three points.
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
    """Collect groups that agree in all fields except ``but``, and in which of those they lack."""
    found: dict[tuple[Any, ...], list[Group]] = {}
    for group in groups:
        values = vars(group.config)
        key = tuple(value is None if name in but else value for name, value in values.items())
        found.setdefault(key, []).append(group)
    return list(found.values())


def _name(family: Sequence[Group], families: Sequence[Sequence[Group]]) -> str:
    """Name a family by its system, and by its differences from this system's other families."""

    def kind(config: RunConfig) -> tuple[str, ...]:
        return config.dataset, config.model, shown_value(SYSTEM, value_of(config, SYSTEM))

    own = family[0].config
    rivals = [other[0].config for other in families if kind(other[0].config) == kind(own)]
    fields = [
        name
        for name in differing_fields(rivals)
        if name not in NUMERIC or getattr(own, name) is None
    ]
    details = _values(own, fields)
    return kind(own)[2] + (f" ({details})" if details else "")


def _values(config: RunConfig, names: Sequence[str]) -> str:
    return ", ".join(shown_field(name, getattr(config, name)) for name in names)


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
