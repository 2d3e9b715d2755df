"""The command ``sgdph reproduce``: what it does with its options, and what it prints."""

from __future__ import annotations

import sys
from collections.abc import Mapping
from functools import partial
from pathlib import Path
from typing import Any

from rich.console import Console

from sgdph.lab.config.run_config import PLACE_FIELDS
from sgdph.lab.cost.command import cost
from sgdph.lab.cost.directory import CostDirectory
from sgdph.lab.cost.options import CostOptions
from sgdph.lab.errors import INTERRUPTED, OK, LabError
from sgdph.lab.options.options import parse_seeds
from sgdph.lab.options.settings import read_settings
from sgdph.lab.output import shell_command
from sgdph.lab.progress import say
from sgdph.lab.run.out import check_contradiction
from sgdph.lab.sweep.choice import chosen
from sgdph.lab.sweep.dry_run import dry_run
from sgdph.lab.sweep.plan import Plan, make_plan
from sgdph.lab.sweep.recipe import Recipe, load_recipe, recipe_names
from sgdph.lab.sweep.reproduce_options import ReproduceOptions
from sgdph.lab.sweep.scale import Scale
from sgdph.lab.sweep.state import report_failures, state_of
from sgdph.lab.sweep.sweep import train_and_report
from sgdph.lab.sweep.sweep_directory import SweepDirectory


def reproduce(options: ReproduceOptions, console: Console) -> int:
    """Run what is left of one of the paper's experiments, and report.

    Returns:
        The exit code: 0 if every requested run has ended (including diverged ones), 1 if one failed
        or has not ended, 130 if interrupted.

    Raises:
        LabError: If the options cannot be followed.
    """
    if options.list:
        list_recipes(console)
        return OK
    if options.name is None:
        raise LabError(f"name a recipe: one of {', '.join(recipe_names())}; --list describes each")
    check_contradiction(options)
    recipe = load_recipe(options.name)
    scale = recipe.scale(options.scale)
    out = options.out or Path("runs") / f"{runs_name(recipe, options.name)}-{options.scale}"
    if scale.cost is not None:
        return reproduce_cost(recipe, scale, out, options, console)
    if options.overwrite and options.only is not None:
        raise LabError(
            f"--overwrite deletes all runs in {out}, also those that --only leaves out. Leave out "
            "--only, or delete the folders of the runs that you mean, without --overwrite"
        )
    given = options.given()
    seeds = None if options.seeds is None else parse_seeds(options.seeds)
    settings = None if options.settings is None else read_settings(options.settings)
    plan = make_plan(recipe, options.scale, given, seeds, settings)
    place = {name: value for name, value in given.items() if name in PLACE_FIELDS}
    if plan.note:
        say(console, plan.note)
    directory = SweepDirectory(out)
    if options.dry_run:
        plan = plan if options.overwrite else directory.agreed(plan, place)
        say(console, plan.layout.title or recipe.title)
        say(console, f"{scale.description}\nTime given by the recipe: {scale.time}")
        runs, overwrite = chosen(plan, options.only), options.overwrite
        dry_run(plan, runs, out, options.jobs, console, overwrite=overwrite)
        say_settings(scale, plan, console)
        return OK
    return train_plan(directory, plan, place, options, console)


def train_plan(
    directory: SweepDirectory,
    plan: Plan,
    place: Mapping[str, Any],
    options: ReproduceOptions,
    console: Console,
) -> int:
    """Train what is left of a plan and write its report; return the exit code."""
    try:
        if options.overwrite:
            directory.check_clearable()
        plan = plan if options.overwrite else directory.agreed(plan, place)
        record = partial(directory.join, plan, place)
        runs = chosen(plan, options.only)
        state = train_and_report(directory, plan, runs, record, options, console)
    except KeyboardInterrupt:
        say(console, f"Interrupted. The finished runs are in {directory.path.resolve()}.")
        command = shell_command(["sgdph", *sys.argv[1:]])
        say(console, f"Continue with the same command:\n  {command}")
        return INTERRUPTED
    rest = len(plan.runs()) - len(state_of(directory.path, plan.runs()).ended)
    if rest and options.only is not None:
        say(console, f"{rest} of the sweep's {len(plan.runs())} runs have not ended yet")
    return report_failures(console, directory.path, state)


def runs_name(recipe: Recipe, asked: str) -> str:
    """Return the name of the default folder of a recipe's runs.

    For a file called recipe.yaml, this is the name of the file's folder: each folder of
    results/evidence has such a file, and their runs must not share a directory.
    """
    path = Path(asked)
    if path.name in ("recipe.yaml", "recipe.yml"):
        return path.resolve().parent.name or recipe.runs_of
    return recipe.runs_of


def list_recipes(console: Console) -> None:
    """Print every recipe with the time that each scale takes."""
    for name in recipe_names():
        recipe = load_recipe(name)
        say(console, f"{name}: {recipe.title}")
        for key, scale in recipe.scales.items():
            say(console, f"  --scale {key:<9}{scale.time}")
    say(
        console,
        "sgdph reproduce RECIPE --scale SCALE --dry-run estimates the time on this machine.",
    )


def say_settings(scale: Scale, plan: Plan, console: Console) -> None:
    """Print where each optimizer's settings come from."""
    used = {config.optimizer for config in plan.cells.values()}
    for optimizer, settings in scale.settings.items():
        if optimizer in used and settings:
            parts = [f"{name} {each.value} ({each.source})" for name, each in settings.items()]
            say(console, f"{optimizer}: {', '.join(parts)}")
    if "settings" in plan.overrides:
        say(console, "The settings of --settings take precedence over these.")


def reproduce_cost(
    recipe: Recipe, scale: Scale, out: Path, options: ReproduceOptions, console: Console
) -> int:
    """Make a recipe's measurement of cost, or continue an existing one; return the exit code."""
    assert scale.cost is not None
    given = options.given()
    misfits = set(given) - {"model", "batch_size", "device", "threads"}
    misfits |= {name for name in ("seeds", "settings", "only") if getattr(options, name)}
    if misfits:
        flags = ", ".join("--" + name.replace("_", "-") for name in sorted(misfits))
        raise LabError(
            f"{recipe.name} measures single steps and cannot use {flags}; it takes --model, "
            "--batch-size, --device and --threads; sgdph cost has more options"
        )
    values = {**scale.cost, **given}
    # As on the command line of sgdph cost, where it may be a list.
    values["batch_size"] = str(values["batch_size"])
    if options.dry_run:
        flags = " ".join(
            f"--{key.replace('_', '-')}" + ("" if value is True else f" {value}")
            for key, value in values.items()
        )
        say(console, f"{recipe.title} (scale {options.scale})\n{scale.description}")
        say(console, f"Time given by the recipe: {scale.time}\nsgdph cost {flags} --out {out}")
        return OK
    carry_on = CostDirectory(out).exists() and not options.overwrite
    return cost(
        CostOptions(out=out, resume=carry_on, overwrite=options.overwrite, **values), console
    )
