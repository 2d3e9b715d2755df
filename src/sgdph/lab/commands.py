"""What the commands do with their options, and what they say."""

from __future__ import annotations

import dataclasses
import shlex
from collections.abc import Mapping, Sequence
from contextlib import ExitStack
from pathlib import Path
from typing import Any, Protocol

from rich.console import Console

from sgdph.lab.comparison import Comparison, ComparisonDirectory
from sgdph.lab.config import PLACE_FIELDS, LabError, RunConfig, differences
from sgdph.lab.crew import check_workers
from sgdph.lab.data import Dataset, load_dataset
from sgdph.lab.distributed import ALONE, Team, joined
from sgdph.lab.exit_codes import DIVERGED, FAILED, INTERRUPTED, OK
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
from sgdph.lab.runs import ENDED, RecordDirectory, RunDirectory
from sgdph.lab.settings import read_settings
from sgdph.lab.start import prepare
from sgdph.lab.sweep import Progress, check_agreement, check_runs, failure_file
from sgdph.lab.training import describe_outcome, train_run
from sgdph.lab.workers import train_all


def train(options: TrainOptions, console: Console) -> int:
    """Train one run.

    Returns:
        The exit code: 0 when finished (now or before), 1 when diverged, 130 when interrupted.

    Raises:
        LabError: If the options cannot be followed.
    """
    with joined() as team:
        console = console if team.first else Console(quiet=True, force_terminal=False)
        return _train(options, team, console)


def _train(options: TrainOptions, team: Team, console: Console) -> int:
    given = {**options.given(), "processes": team.size}
    directory = RunDirectory(options.out or default_out(given, "{optimizer}-seed{seed}"))
    config, summary = team.from_first(lambda: requested_run(directory, options, given))
    if summary is not None:
        say(console, f"Nothing left to do: {describe_outcome(summary)}")
        say(console, f"The run lies in {directory.path.resolve()}")
        return OK if summary["status"] == "finished" else DIVERGED
    try:
        if options.download:
            # The others find it there.
            team.from_first(lambda: load(config, options).name)
        with team.agreement():
            prepared = prepare(config, load(config, options), team)
        with ExitStack() as stack:
            with team.agreement():
                if team.first:
                    stack.enter_context(directory.claim())
                    begin(directory, config, options)
            reporter = stack.enter_context(reporter_for(console))
            summary = train_run(prepared, directory, reporter)
    except KeyboardInterrupt:
        begun = team.first and directory.exists()
        return report_interruption(console, "train", directory.path, begun, team)
    say(console, f"The run lies in {directory.path.resolve()}")
    return OK if summary["status"] == "finished" else DIVERGED


def requested_run(
    directory: RunDirectory, options: TrainOptions, given: Mapping[str, Any]
) -> tuple[RunConfig, dict[str, Any] | None]:
    """Return the configuration asked for, and the summary where the run is at its end already.

    Raises:
        LabError: If the options cannot be followed.
    """
    check_target(directory, options)
    if not options.resume:
        return resolve(given), None
    config = resumed_config(directory, given)
    ended = directory.status() in ENDED
    return config, directory.read_summary() if ended else None


def begin(directory: RunDirectory, config: RunConfig, options: TrainOptions) -> None:
    """Make the claimed directory ready for a run that is begun or carried on."""
    if options.overwrite:
        directory.clear()
    if not options.resume:
        directory.create(config)


def compare(options: CompareOptions, console: Console) -> int:
    """Train every optimizer with every seed, and report.

    Returns:
        The exit code: 0 when all runs came to an end (diverged ones too), 1 when one failed, 130
        when interrupted.

    Raises:
        LabError: If the options cannot be followed.
    """
    given = options.given()
    directory = ComparisonDirectory(options.out or default_out(given, "compare"))
    check_workers(options.parallel, "--parallel")
    check_target(directory, options)
    comparison = requested_comparison(options, given)
    if options.resume:
        comparison = directory.read().extended(comparison)
    runs = comparison.runs()
    if options.resume:
        check_agreement(directory.path, runs)
    try:
        check_runs(runs, lambda config: load(config, options))
        if options.overwrite:
            directory.clear()
        directory.write(comparison)
        progress = train_all(
            directory.path,
            runs,
            load_for,
            console,
            workers=options.parallel,
        )
    except KeyboardInterrupt:
        return report_interruption(console, "compare", directory.path, directory.exists())
    if not progress.ended:
        return report_failures(console, directory.path, progress)
    say_report(directory.path, console)
    return report_failures(console, directory.path, progress)


def say_report(directory: Path, console: Console) -> None:
    """Write the report of the runs under a directory, show its table and say where it all lies."""
    show_report(write_report(directory), directory, console)
    say(console, f"runs   {directory.resolve()}")


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


def check_contradiction(options: TargetOptions) -> None:
    """Raise LabError if what is there is to be both carried on and deleted."""
    if options.resume and options.overwrite:
        raise LabError(
            "--resume and --overwrite contradict each other: one carries on what is in --out, the "
            "other deletes it; give one of them"
        )


def check_target(directory: RecordDirectory, options: TargetOptions) -> None:
    """Raise LabError if the directory may not be used in the way the options say."""
    check_contradiction(options)
    if options.overwrite:
        directory.check_clearable()
    elif not options.resume:
        directory.check_free()


def resumed_config(directory: RunDirectory, given: Mapping[str, Any]) -> RunConfig:
    """Return the configuration that a run is carried on with: its own, at the place asked for now.

    Raises:
        LabError: If there is no run, or it was another one than what is asked for.
    """
    saved, processes = directory.read_config(), given.get("processes", 1)
    if saved.processes != processes:
        raise LabError(
            f"the run that lies in {directory.path} is one of {saved.processes} processes, and "
            f"there are {processes}: each has its own batch statistics, so it would become another "
            f"run; carry it on with torchrun --nproc-per-node {saved.processes}"
        )
    way_out = "leave these options out to carry it on, or name another --out for a new run"
    what = f"the run that lies in {directory.path}"
    return placed(saved, given, what, way_out)


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
    settings = {} if options.settings is None else read_settings(options.settings)
    return Comparison(optimizers, seeds, given, settings)


def load(config: RunConfig, options: CommonOptions) -> Dataset:
    """Load the data set of a run."""
    return load_for(config, download=options.download)


def load_for(config: RunConfig, *, download: bool = False) -> Dataset:
    """Load the data set of a run, downloading it where that was asked for."""
    return load_dataset(
        config.dataset,
        data_dir=Path(config.data_dir) if config.data_dir is not None else None,
        train_size=config.train_size,
        validation_size=config.validation_size,
        download=download,
        image_size=config.image_size,
        workers=config.workers,
    )


def report_failures(console: Console, directory: Path, progress: Progress) -> int:
    """Say which runs are not at their end, and return the exit code."""
    for name, reason in progress.failed.items():
        say(console, f"failed: {name}: {reason} (see {failure_file(directory, name)})")
    if progress.left:
        say(console, f"not at their end: {', '.join(progress.left)}")
    return FAILED if progress.failed or progress.left else OK


def report_interruption(
    console: Console, command: str, path: Path, begun: bool, team: Team = ALONE
) -> int:
    """Say how to carry on, and return the exit code of an interrupted command."""
    if not begun:
        say(console, "Interrupted before anything was recorded.")
        return INTERRUPTED
    place = path.resolve()
    say(console, f"Interrupted. What was finished lies in {place}; carry on with:")
    program = "sgdph" if team.size == 1 else "torchrun … -m sgdph.lab"
    say(console, f"  {program} {command} --out {shlex.quote(str(place))} --resume")
    return INTERRUPTED
