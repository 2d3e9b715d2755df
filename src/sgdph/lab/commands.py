"""What the commands do with their options, and what they say."""

from __future__ import annotations

import dataclasses
import shlex
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, Protocol

from rich.console import Console

from sgdph.lab.config import PLACE_FIELDS, LabError, RunConfig, differences
from sgdph.lab.data import Dataset, load_dataset
from sgdph.lab.options import (
    DEFAULT_OPTIMIZERS,
    DEFAULT_SEEDS,
    CommonOptions,
    CompareOptions,
    TrainOptions,
    defaults_for,
    parse_optimizers,
    parse_seeds,
    resolve,
)
from sgdph.lab.progress import reporter_for, say
from sgdph.lab.report import write_report
from sgdph.lab.reports.command import show_report
from sgdph.lab.runs import RecordDirectory, RunDirectory
from sgdph.lab.start import prepare
from sgdph.lab.sweep import (
    Comparison,
    ComparisonDirectory,
    check_agreement,
    check_all,
    run_all,
)
from sgdph.lab.training import describe_outcome, train_run

OK, DIVERGED, INTERRUPTED = 0, 1, 130


def train(options: TrainOptions, console: Console) -> int:
    """Train one run.

    Returns:
        The exit code: 0 when finished (now or before), 1 when diverged, 130 when interrupted.

    Raises:
        LabError: If the options cannot be followed.
    """
    given = options.given()
    directory = RunDirectory(options.out or default_out(given, "{optimizer}-seed{seed}"))
    check_target(directory, options)
    config = resumed_config(directory, given) if options.resume else resolve(given)
    if options.resume and directory.status() in ("finished", "diverged"):
        summary = directory.read_summary()
        say(console, f"Nothing left to do: {describe_outcome(summary)}")
        say(console, f"The run lies in {directory.path.resolve()}")
        return OK if summary["status"] == "finished" else DIVERGED
    try:
        prepared = prepare(config, load(config, options))
        if options.overwrite:
            directory.clear()
        if not options.resume:
            directory.create(config)
        with reporter_for(console) as reporter:
            summary = train_run(prepared, directory, reporter)
    except KeyboardInterrupt:
        return report_interruption(console, "train", directory.path, directory.exists())
    say(console, f"The run lies in {directory.path.resolve()}")
    return OK if summary["status"] == "finished" else DIVERGED


def compare(options: CompareOptions, console: Console) -> int:
    """Train every optimizer with every seed, and report.

    Returns:
        The exit code: 0 when all runs came to an end (diverged ones too), 130 when interrupted.

    Raises:
        LabError: If the options cannot be followed.
    """
    given = options.given()
    directory = ComparisonDirectory(options.out or default_out(given, "compare"))
    check_target(directory, options)
    comparison = requested_comparison(options, given)
    if options.resume:
        comparison = directory.read().extended(comparison)
    configs = comparison.runs()
    if options.resume:
        check_agreement(directory, configs)
    try:
        data = load(configs[0], options)
        check_all(configs, data)
        if options.overwrite:
            directory.clear()
        directory.write(comparison)
        with reporter_for(console, len(configs)) as reporter:
            run_all(directory, configs, data, reporter)
    except KeyboardInterrupt:
        return report_interruption(console, "compare", directory.path, directory.exists())
    show_report(write_report(directory.path), directory.path, console)
    say(console, f"runs   {directory.path.resolve()}")
    return OK


def default_out(given: Mapping[str, Any], name: str) -> Path:
    """Name the directory of what was not given one."""
    values = {**defaults_for(given), **given}
    return Path("runs") / ("{dataset}-{model}-" + name).format_map(values)


class TargetOptions(Protocol):
    """The options about what is there already."""

    @property
    def resume(self) -> bool:
        """Carry it on."""

    @property
    def overwrite(self) -> bool:
        """Delete it."""


def check_target(directory: RecordDirectory, options: TargetOptions) -> None:
    """Raise LabError if the directory may not be used in the way the options say."""
    if options.resume and options.overwrite:
        raise LabError(
            "--resume and --overwrite contradict each other: one carries on what is in --out, the "
            "other deletes it; give one of them"
        )
    if options.overwrite:
        directory.check_clearable()
    elif not options.resume:
        directory.check_free()


def resumed_config(directory: RunDirectory, given: Mapping[str, Any]) -> RunConfig:
    """Return the configuration that a run is carried on with: its own, at the place asked for now.

    Raises:
        LabError: If there is no run, or it was another one than what is asked for.
    """
    way_out = "leave these options out to carry it on, or name another --out for a new run"
    what = f"the run that lies in {directory.path}"
    return placed(directory.read_config(), given, what, way_out)


def placed(saved: RunConfig, given: Mapping[str, Any], what: str, way_out: str) -> RunConfig:
    """Return a saved configuration at the place asked for now.

    Raises:
        LabError: If other options disagree with it; the message names ``what`` has it and ends
            with the ``way_out``.
    """
    problems = differences(given, saved)
    if problems:
        raise LabError(disagreement(what, problems, way_out))
    place = {name: value for name, value in given.items() if name in PLACE_FIELDS}
    return dataclasses.replace(saved, **place)


def disagreement(what: str, problems: Sequence[str], way_out: str) -> str:
    """Say how the options disagree with what is there."""
    return "\n".join([f"the options disagree with {what}:", *(f"  {p}" for p in problems), way_out])


def requested_comparison(options: CompareOptions, given: Mapping[str, Any]) -> Comparison:
    """Read the comparison off the options; what a resumed one leaves unset stays empty."""
    optimizers: tuple[str, ...] = () if options.resume else DEFAULT_OPTIMIZERS
    seeds: tuple[int, ...] = () if options.resume else DEFAULT_SEEDS
    if options.optimizers is not None:
        optimizers = parse_optimizers(options.optimizers)
    if options.seeds is not None:
        seeds = parse_seeds(options.seeds)
    return Comparison(optimizers, seeds, given)


def load(config: RunConfig, options: CommonOptions) -> Dataset:
    """Load the data set of a run."""
    return load_dataset(
        config.dataset,
        data_dir=Path(config.data_dir) if config.data_dir is not None else None,
        train_size=config.train_size,
        download=options.download,
    )


def report_interruption(console: Console, command: str, path: Path, begun: bool) -> int:
    """Say how to carry on, and return the exit code of an interrupted command."""
    if not begun:
        say(console, "Interrupted before anything was recorded.")
        return INTERRUPTED
    place = path.resolve()
    say(console, f"Interrupted. What was finished lies in {place}; carry on with:")
    say(console, f"  sgdph {command} --out {shlex.quote(str(place))} --resume")
    return INTERRUPTED
