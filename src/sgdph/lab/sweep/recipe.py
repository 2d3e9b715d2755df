"""Recipes: the paper's tables and figures as data.

A recipe is a YAML file (:mod:`sgdph.lab.recipes` holds the paper's)::

    format: sgdph-recipe-1
    title: the heading of the table
    paper: what the paper did, and which of its details are lost
    layout: {rows: [...], columns: [...]}          # sgdph.lab.reports.layout
    settings:                                      # of each optimizer, for all scales
      sgdm: {lr: {value: 0.1, source: paper}}
    scales:
      cpu:
        description: what is smaller than in the paper
        time: how long it takes, and where
        seeds: [0, 1]
        options: {epochs: 10}                      # of every run
        settings: {}                               # override those above at this scale
        axes:                                      # every combination makes a cell
        - model: [resnet8, resnet20]
        - [{optimizer: sgdm, label: SGDM}]         # or options that belong together

Every setting of an optimizer names its source. With ``runs_of: table1`` in place of layout and
scales, a recipe shows another recipe's runs. A scale with ``cost`` in place of runs is measured by
``sgdph cost``.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, replace
from importlib import resources
from pathlib import Path
from typing import Literal, get_args

from sgdph.lab.errors import LabError, unknown_name
from sgdph.lab.files import parse_yaml
from sgdph.lab.reports.layout import Layout, layout_from
from sgdph.lab.sweep.scale import Scale, as_mapping, check_keys, parse_scale, parse_settings

FORMAT = "sgdph-recipe-1"
ScaleName = Literal["paper", "gpu-hour", "cpu"]
_KEYS = ("format", "title", "paper", "layout", "settings", "scales", "runs_of")
# A recipe that shows the runs of another one has no other keys.
_RUNS_OF_KEYS = ("format", "title", "paper", "runs_of")
_LAYOUT_KEYS = ("rows", "columns", "turned")


@dataclass(frozen=True)
class Recipe:
    """One table or figure.

    Attributes:
        name: Its name on the command line.
        title: The heading of the table or figure.
        paper: What the paper did, and which of its details are lost.
        layout: How its runs make a table.
        scales: Its scales, by name.
        runs_of: The name of the recipe whose runs it shows.
    """

    name: str
    title: str
    paper: str
    layout: Layout
    scales: Mapping[str, Scale]
    runs_of: str

    def scale(self, name: str) -> Scale:
        """Return one of its scales.

        Raises:
            LabError: If it has no scale of that name.
        """
        if name not in self.scales:
            raise LabError(
                f"{self.name} has no scale {name!r}; expected one of {', '.join(self.scales)}"
            )
        return self.scales[name]


def recipe_names() -> list[str]:
    """Return the names of the paper's recipes: tables, figures, the cost study."""
    files = resources.files("sgdph.lab.recipes").iterdir()
    names = [file.name.removesuffix(".yaml") for file in files if file.name.endswith(".yaml")]
    kinds = ("table", "figure", "cost")
    return sorted(names, key=lambda name: (kinds.index(name.rstrip("0123456789")), name))


def load_recipe(name: str) -> Recipe:
    """Read one of the paper's recipes, or a recipe file of your own.

    Args:
        name: Like ``"table1"``, or the path of a ``.yaml`` file.

    Raises:
        LabError: If there is no such recipe, or the file is not a recipe.
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
    """Parse the text of a recipe file.

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
            check_keys(values, _RUNS_OF_KEYS, source, "key beside runs_of")
            origin = load_recipe(values["runs_of"])
            return replace(origin, name=name, title=values["title"], paper=values["paper"])
        check_keys(values, _KEYS, source)
        settings = parse_settings(values.get("settings"), source)
        scales = {
            key: parse_scale(scale, settings, f"{source}, scale {key}")
            for key, scale in values["scales"].items()
        }
        unknown = set(scales) - set(get_args(ScaleName))
        if unknown:
            raise LabError(
                f"{source}: scales must be of {', '.join(get_args(ScaleName))}; got "
                f"{', '.join(sorted(unknown))}"
            )
        layout_values = as_mapping(values.get("layout"), f"{source}: layout")
        check_keys(layout_values, _LAYOUT_KEYS, f"{source}, layout")
        layout = replace(layout_from(layout_values), title=values["title"])
        return Recipe(name, values["title"], values["paper"], layout, scales, name)
    except KeyError as error:
        raise LabError(f"{source}: the key {error} is missing") from error
    except (AttributeError, TypeError, ValueError) as error:
        if isinstance(error, LabError):
            raise
        raise LabError(f"{source} is not a valid recipe: {error}") from error
