"""The command ``sgdph compare``: what it does with its options, and what it prints."""

from __future__ import annotations

from collections.abc import Mapping
from functools import partial
from typing import Any

from rich.console import Console

from sgdph.lab.errors import OK
from sgdph.lab.options.options import (
    DEFAULT_OPTIMIZERS,
    DEFAULT_SEEDS,
    CompareOptions,
    parse_optimizers,
    parse_seeds,
)
from sgdph.lab.options.settings import read_settings
from sgdph.lab.progress import say
from sgdph.lab.run.out import check_target, default_out, report_interruption
from sgdph.lab.sweep.comparison import Comparison, ComparisonDirectory
from sgdph.lab.sweep.dry_run import dry_run
from sgdph.lab.sweep.settings_use import check_effect
from sgdph.lab.sweep.state import report_failures
from sgdph.lab.sweep.sweep import train_and_report


def compare(options: CompareOptions, console: Console) -> int:
    """Train every optimizer with every seed, and report.

    Returns:
        The exit code: 0 if all runs have ended (including diverged ones), 1 if one failed or has
        not ended, 130 if interrupted.

    Raises:
        LabError: If the options cannot be followed.
    """
    given = options.given()
    directory = ComparisonDirectory(options.out or default_out(given, "compare"))
    check_target(directory, options)
    asked = comparison = requested_comparison(options, given)
    if options.resume:
        comparison = directory.read_comparison().extended(asked)
    if options.settings is not None:
        check_effect(options.settings, asked.settings, comparison.optimizers)
    plan = comparison.plan()
    for line in comparison.describe_settings(plan):
        say(console, line)
    if options.dry_run:
        overwrite = options.overwrite
        dry_run(plan, plan.runs(), directory.path, options.jobs, console, overwrite=overwrite)
        return OK
    record = partial(directory.write_comparison, comparison)
    try:
        state = train_and_report(directory, plan, plan.runs(), record, options, console)
    except KeyboardInterrupt:
        return report_interruption(console, "compare", directory.path, directory.exists())
    return report_failures(console, directory.path, state)


def requested_comparison(options: CompareOptions, given: Mapping[str, Any]) -> Comparison:
    """Return the comparison that the options ask for; with ``--resume``, unset parts are empty."""
    optimizers: tuple[str, ...] = () if options.resume else DEFAULT_OPTIMIZERS
    seeds: tuple[int, ...] = () if options.resume else DEFAULT_SEEDS
    if options.optimizers is not None:
        optimizers = parse_optimizers(options.optimizers)
    if options.seeds is not None:
        seeds = parse_seeds(options.seeds)
    settings = {} if options.settings is None else read_settings(options.settings)
    return Comparison(optimizers, seeds, given, settings)
