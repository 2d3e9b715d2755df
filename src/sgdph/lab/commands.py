"""What ``sgdph train`` and ``sgdph compare`` do with their options, and what they say."""

from __future__ import annotations

from collections.abc import Mapping
from contextlib import ExitStack
from functools import partial
from typing import Any

from rich.console import Console

from sgdph.lab.config.run_config import RunConfig
from sgdph.lab.errors import DIVERGED, OK, LabError
from sgdph.lab.options.options import (
    DEFAULT_OPTIMIZERS,
    DEFAULT_SEEDS,
    CompareOptions,
    TrainOptions,
    parse_optimizers,
    parse_seeds,
)
from sgdph.lab.options.resolution import resolve
from sgdph.lab.options.settings import read_settings
from sgdph.lab.progress import reporter_for, say
from sgdph.lab.reports.command import say_report
from sgdph.lab.run.directory import ENDED, RunDirectory
from sgdph.lab.run.distributed import Team, joined
from sgdph.lab.run.out import check_target, default_out, placed, report_interruption
from sgdph.lab.run.start import load_data, prepare
from sgdph.lab.run.training import describe_outcome, train_run
from sgdph.lab.sweep.comparison import Comparison, ComparisonDirectory
from sgdph.lab.sweep.cores import with_default_threads
from sgdph.lab.sweep.crew import check_workers
from sgdph.lab.sweep.sweep import check_agreement, check_runs
from sgdph.lab.sweep.workers import report_failures, train_all


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
            team.from_first(lambda: load_data(config, download=options.download).name)
        with team.agreement():
            prepared = prepare(config, load_data(config, download=options.download), team)
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
        return with_default_threads(resolve(given)), None
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
    check_workers(options.jobs, "--jobs")
    check_target(directory, options)
    comparison = requested_comparison(options, given)
    if options.resume:
        comparison = directory.read().extended(comparison)
    runs = comparison.runs()
    if options.resume:
        check_agreement(directory.path, runs)
    try:
        check_runs(runs, partial(load_data, download=options.download))
        if options.overwrite:
            directory.clear()
        with directory.alone():
            directory.write(comparison)
        progress = train_all(
            directory.path,
            runs,
            load_data,
            console,
            workers=options.jobs,
        )
    except KeyboardInterrupt:
        return report_interruption(console, "compare", directory.path, directory.exists())
    if not progress.ended:
        return report_failures(console, directory.path, progress)
    with directory.alone():
        say_report(directory.path, console)
    return report_failures(console, directory.path, progress)


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
