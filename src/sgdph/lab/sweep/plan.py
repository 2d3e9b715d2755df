"""From a recipe to its runs, including the options that the user changed."""

from __future__ import annotations

import dataclasses
import re
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from sgdph.lab.config.run_config import PLACE_FIELDS, RunConfig
from sgdph.lab.config.yaml import revived, with_lists
from sgdph.lab.errors import LabError
from sgdph.lab.options.defaults import defaults_for
from sgdph.lab.options.optimizer_args import overlaid
from sgdph.lab.options.resolution import resolve
from sgdph.lab.reports.layout import SYSTEM, Layout, value_of
from sgdph.lab.sweep.recipe import Recipe
from sgdph.lab.sweep.scale import Options, Scale
from sgdph.lab.sweep.settings_use import describe_limits

# These options belong to one data set, so they are not applied to another.
OF_A_DATASET = ("train_size", "image_size")


@dataclass(frozen=True)
class PlannedRun:
    """A run that is to be trained.

    Attributes:
        name: Its directory's name.
        config: Its configuration.
    """

    name: str
    config: RunConfig


@dataclass(frozen=True)
class Plan:
    """What a sweep trains: cells times seeds.

    Attributes:
        recipe: The recipe's name.
        scale: The scale's name.
        overrides: What differs from the recipe, by option.
        layout: How the runs make a table.
        cells: Each cell's name and configuration, whose seed has no meaning.
        seeds: The seeds of every cell.
        note: A sentence on it for the user, which is not recorded.
    """

    recipe: str
    scale: str
    overrides: Options
    layout: Layout
    cells: Mapping[str, RunConfig]
    seeds: tuple[int, ...]
    note: str = ""

    def runs(self) -> list[PlannedRun]:
        """List the runs seed by seed, so that a table with one seed is complete first."""
        return [
            PlannedRun(f"{name}-seed{seed}", dataclasses.replace(config, seed=seed))
            for seed in self.seeds
            for name, config in self.cells.items()
        ]

    def placed(self, place: Options) -> Plan:
        """Return the same plan with other place fields: device, threads, data directory."""
        cells = {name: dataclasses.replace(config, **place) for name, config in self.cells.items()}
        return dataclasses.replace(self, cells=cells)


def make_plan(
    recipe: Recipe,
    scale_name: str,
    given: Options,
    seeds: tuple[int, ...] | None = None,
    settings: Mapping[str, Options] | None = None,
) -> Plan:
    """Return the plan of a recipe, with the configuration of each cell.

    Each value of a cell comes from the first of these that has it: ``given``, the cell's axes,
    ``settings``, the recipe's settings of the optimizer, the scale's options, the laboratory's
    defaults. Each of the ``optimizer_args`` counts by itself. Cells that ``given`` makes equal
    become one. If ``epochs`` is given without ``schedule_every``, the latter changes in proportion.

    Args:
        recipe: The recipe.
        scale_name: The name of its scale.
        given: Fields of the configuration that differ from the recipe, including place fields.
        seeds: The seeds, in place of the recipe's.
        settings: Optimizer to settings, as in a settings file.

    Raises:
        LabError: If the recipe has no such scale, two of its cells have the same name, ``given``
            does not fit the recipe, or ``settings`` have no effect on it.
    """
    scale = recipe.scale(scale_name)
    _check_model(recipe, scale, given)
    _check_names(recipe, scale, given, settings or {})
    cells: dict[str, RunConfig] = {}
    owned: dict[str, tuple[str, Options]] = {}
    for own in scale.combinations():
        config = _resolve(scale, own, given, settings or {})
        name = cell_name(config, recipe.layout)
        # Cells of one name differed only in what ``given`` now sets for both: see _check_names.
        cells.setdefault(name, config)
        owned.setdefault(name, (config.optimizer, own))
    note = "" if settings is None else describe_limits(recipe.name, owned, settings)
    overrides = with_lists({k: v for k, v in given.items() if k not in PLACE_FIELDS})
    if seeds is not None and seeds != scale.seeds:
        overrides["seeds"] = list(seeds)
    if settings is not None:
        overrides["settings"] = {name: dict(values) for name, values in settings.items()}
    layout = dataclasses.replace(
        recipe.layout, title=describe_title(recipe.title, scale_name, overrides)
    )
    # A recipe that shows another recipe's runs uses the directory of that recipe.
    return Plan(recipe.runs_of, scale_name, overrides, layout, cells, seeds or scale.seeds, note)


def describe_title(title: str, scale: str, overrides: Options) -> str:
    """Return a table's title: the recipe, its scale, and the deviations from the recipe."""
    changed = [
        "tuned settings" if name == "settings" else f"{name.replace('_', ' ')} {_short(value)}"
        for name, value in overrides.items()
    ]
    deviation = f"; deviates from the recipe: {', '.join(changed)}" if changed else ""
    return f"{title} (scale {scale}{deviation})"


def _short(value: Any) -> str:
    return ", ".join(map(str, value)) if isinstance(value, list) else str(value)


def _resolve(
    scale: Scale, own: Options, given: Options, settings: Mapping[str, Options]
) -> RunConfig:
    """Return the configuration of one cell."""
    optimizer = own.get("optimizer", scale.options.get("optimizer"))
    sourced = scale.settings.get(str(optimizer), {})
    base = dict(scale.options)
    cell = dict(own)
    if "dataset" in given:
        for name in OF_A_DATASET:
            base.pop(name, None)
            cell.pop(name, None)
    recipes = {name: setting.value for name, setting in sourced.items()}
    file = settings.get(str(optimizer), {})
    values: dict[str, Any] = {}
    for options in (base, recipes, file, cell, given):
        values = overlaid(values, options)
    values["seed"] = 0
    if "epochs" in given and "schedule_every" in values and "schedule_every" not in given:
        planned = cell.get("epochs", base.get("epochs", defaults_for({**base, **own})["epochs"]))
        shrunk = round(values["schedule_every"] * given["epochs"] / planned)
        values["schedule_every"] = max(1, shrunk)
    return complete(values)


def complete(values: Mapping[str, Any]) -> RunConfig:
    """Complete options with the laboratory's defaults, as ``sgdph train`` does.

    Args:
        values: Field to value, as in YAML: lists for tuples, a mapping of arguments.

    Raises:
        LabError: If a value is out of its bounds, or is not one of the optimizer's settings.
    """
    return resolve(revived(values))


def cell_name(config: RunConfig, layout: Layout) -> str:
    """Name a cell after the fields that distinguish it from the others in its table."""
    parts: list[str] = []
    for name in dict.fromkeys([*layout.columns, *layout.rows, SYSTEM]):
        value = value_of(config, name)
        field = "" if name in ("dataset", "model", SYSTEM) else name.replace("_", "-")
        parts.append(f"{field}{value}")
    return re.sub(r"[^A-Za-z0-9.+-]+", "-", "-".join(parts))


def _check_names(
    recipe: Recipe, scale: Scale, given: Options, settings: Mapping[str, Options]
) -> None:
    """Raise LabError if two of a recipe's own cells have the same name: one would be lost."""
    place = {name: value for name, value in given.items() if name in PLACE_FIELDS}
    cells: dict[str, RunConfig] = {}
    for own in scale.combinations():
        config = _resolve(scale, own, place, settings)
        name = cell_name(config, recipe.layout)
        other = vars(cells.setdefault(name, config))
        differing = [key for key, value in vars(config).items() if value != other[key]]
        if differing:
            raise LabError(
                f"{recipe.name}: two cells would both be called {name}, and differ in "
                f"{', '.join(differing)}; add that to the layout's rows or columns, or give each "
                "cell a label of its own"
            )


def _check_model(recipe: Recipe, scale: Scale, given: Options) -> None:
    """Raise LabError if ``--model`` would make a table's systems meaningless."""
    if "model" not in given or "model" in recipe.layout.rows + recipe.layout.columns:
        return
    models = dict.fromkeys(own["model"] for own in scale.combinations() if "model" in own)
    if len(models) > 1:
        raise LabError(
            f"--model does not fit {recipe.name}, whose systems differ in their networks "
            f"({', '.join(models)}); leave it out, or take another --scale"
        )
