"""Recipes: the paper's tables and figures as data.

A recipe is a YAML file (:mod:`sgdph.lab.recipes` holds the paper's)::

    format: sgdph-recipe-1
    title: what stands above the table
    paper: what the paper did and what of it is lost
    layout: {rows: [...], columns: [...]}          # sgdph.lab.reports.layout
    settings:                                      # each optimizer's, for all scales
      sgdm: {lr: {value: 0.1, source: paper}}
    scales:
      cpu:
        description: what is smaller than in the paper
        time: how long it takes, and where
        seeds: [0, 1]
        options: {epochs: 10}                      # of every run
        settings: {}                               # this scale's, before those above
        axes:                                      # every combination makes a cell
        - model: [resnet8, resnet20]
        - [{optimizer: sgdm, label: SGDM}]         # or options that go together

An optimizer's setting always says its source. ``runs_of: table1`` in place of layout and scales
makes a figure of another recipe's runs; a scale with ``cost`` in place of runs is measured by
``sgdph cost``.
"""

from __future__ import annotations

import itertools
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field, replace
from importlib import resources
from pathlib import Path
from typing import Any, Literal, TypeAlias, get_args

from sgdph.lab.errors import LabError, unknown_name
from sgdph.lab.files import parse_yaml
from sgdph.lab.reports.layout import Layout, layout_from

FORMAT = "sgdph-recipe-1"
ScaleName = Literal["paper", "gpu-hour", "cpu"]
Options: TypeAlias = Mapping[str, Any]
"""Fields of a run's configuration to values."""


@dataclass(frozen=True)
class Sourced:
    """A value that says where it is from."""

    value: Any
    source: str


@dataclass(frozen=True)
class Scale:
    """A recipe at one size.

    Attributes:
        description: What is smaller than in the paper, and what stands in for what was lost.
        time: How long it takes, and on what machine.
        seeds: The seeds of every cell.
        options: What all runs have in common.
        settings: Each optimizer's settings, with their sources.
        axes: Sets of options; every combination, one of each axis, makes a cell.
        cost: Options of ``sgdph cost``, where this is a measurement of cost and has no runs.
    """

    description: str
    time: str
    seeds: tuple[int, ...] = ()
    options: Options = field(default_factory=dict)
    settings: Mapping[str, Mapping[str, Sourced]] = field(default_factory=dict)
    axes: tuple[tuple[Options, ...], ...] = ()
    cost: Options | None = None

    def combinations(self) -> Iterator[dict[str, Any]]:
        """Yield what each cell has of its own, the first axis slowest."""
        for parts in itertools.product(*self.axes):
            yield {name: value for part in parts for name, value in part.items()}


@dataclass(frozen=True)
class Recipe:
    """One table or figure.

    Attributes:
        name: What it is called on the command line.
        title: What stands above it.
        paper: What the paper did, and what of that is lost.
        layout: How its runs make a table.
        scales: Its sizes.
        runs_of: The recipe whose runs these are.
    """

    name: str
    title: str
    paper: str
    layout: Layout
    scales: Mapping[str, Scale]
    runs_of: str

    def scale(self, name: str) -> Scale:
        """Return one of its sizes.

        Raises:
            LabError: If it has none of that name.
        """
        if name not in self.scales:
            raise LabError(
                f"{self.name} has no scale {name!r}; expected one of {', '.join(self.scales)}"
            )
        return self.scales[name]


def recipe_names() -> list[str]:
    """Name the paper's recipes: tables, figures, the cost study."""
    files = resources.files("sgdph.lab.recipes").iterdir()
    names = [file.name.removesuffix(".yaml") for file in files if file.name.endswith(".yaml")]
    kinds = ("table", "figure", "cost")
    return sorted(names, key=lambda name: (kinds.index(name.rstrip("0123456789")), name))


def load_recipe(name: str) -> Recipe:
    """Read one of the paper's recipes, or a file of one's own.

    Args:
        name: Like ``"table1"``, or the path of a ``.yaml`` file.

    Raises:
        LabError: If there is none, or the file is not a recipe.
    """
    if name.endswith((".yaml", ".yml")):
        try:
            text = Path(name).read_text(encoding="utf-8")
        except (OSError, ValueError) as error:
            raise LabError(f"the recipe {name} cannot be read: {error}") from error
        return parse_recipe(text, Path(name).stem, name)
    if name not in recipe_names():
        listed = "`sgdph reproduce --list` lists them; you can also give the path of a .yaml file"
        raise LabError(unknown_name("recipe", name, recipe_names(), listed))
    file = resources.files("sgdph.lab.recipes") / f"{name}.yaml"
    return parse_recipe(file.read_text(encoding="utf-8"), name, f"{name}.yaml")


def parse_recipe(text: str, name: str, source: str) -> Recipe:
    """Make a recipe of a file's text.

    Args:
        text: The text.
        name: The recipe's name.
        source: The file, for error messages.

    Raises:
        LabError: If the text is not a recipe.
    """
    values = parse_yaml(text, FORMAT, source, "a recipe")
    try:
        if "runs_of" in values:
            origin = load_recipe(values["runs_of"])
            return replace(origin, name=name, title=values["title"], paper=values["paper"])
        scales = {
            key: _scale(scale, values.get("settings", {}), f"{source}, scale {key}")
            for key, scale in values["scales"].items()
        }
        unknown = set(scales) - set(get_args(ScaleName))
        if unknown:
            raise LabError(
                f"{source}: scales must be of {', '.join(get_args(ScaleName))}; got "
                f"{', '.join(sorted(unknown))}"
            )
        layout = replace(layout_from(values.get("layout", {})), title=values["title"])
        return Recipe(name, values["title"], values["paper"], layout, scales, name)
    except KeyError as error:
        raise LabError(f"{source}: the key {error} is missing") from error
    except (AttributeError, TypeError, ValueError) as error:
        if isinstance(error, LabError):
            raise
        raise LabError(f"{source} is not a valid recipe: {error}") from error


def _scale(values: Mapping[str, Any], settings: Mapping[str, Any], source: str) -> Scale:
    described = {"description": values["description"].strip(), "time": values["time"].strip()}
    if "cost" in values:
        return Scale(**described, cost=dict(values["cost"]))
    own = values.get("settings") or {}
    return Scale(
        **described,
        seeds=tuple(values["seeds"]),
        options=dict(values["options"]),
        settings={
            optimizer: {
                name: _sourced(value, f"{source}, {optimizer}'s {name}")
                for name, value in {**settings.get(optimizer, {}), **own.get(optimizer, {})}.items()
            }
            for optimizer in dict.fromkeys([*settings, *own])
        },
        axes=tuple(_axis(axis, source) for axis in values["axes"]),
    )


def _sourced(value: Any, what: str) -> Sourced:
    if not isinstance(value, Mapping) or set(value) != {"value", "source"}:
        raise LabError(f"{what} must be {{value: ..., source: ...}}; got {value!r}")
    return Sourced(value["value"], str(value["source"]))


def _axis(axis: Any, source: str) -> tuple[Options, ...]:
    """Read ``{field: [values]}``, or a list of options that go together."""
    if isinstance(axis, Mapping):
        if len(axis) != 1:
            raise LabError(f"{source}: an axis must have one field or be a list; got {axis!r}")
        ((name, choices),) = axis.items()
        return tuple({name: choice} for choice in choices)
    return tuple(dict(options) for options in axis)
