"""The command ``sgdph train``."""

from __future__ import annotations

from collections.abc import Mapping
from contextlib import ExitStack
from typing import Any

from rich.console import Console

from sgdph.lab.config.run_config import RunConfig
from sgdph.lab.errors import DIVERGED, OK, LabError
from sgdph.lab.options.options import TrainOptions
from sgdph.lab.options.resolution import resolve
from sgdph.lab.progress import reporter_for, say
from sgdph.lab.run.directory import ENDED, RunDirectory
from sgdph.lab.run.distributed import Team, joined
from sgdph.lab.run.out import check_target, default_out, placed, report_interruption
from sgdph.lab.run.start import load_data, prepare
from sgdph.lab.run.training import describe_outcome, train_run
from sgdph.lab.sweep.cores import with_default_threads


def train(options: TrainOptions, console: Console) -> int:
    """Train one run.

    Returns:
        The exit code: 0 when finished (now or before), 1 when diverged, 130 when interrupted.

    Raises:
        LabError: If the run cannot be trained as requested.
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
            # The other processes then find the files.
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
    """Return the requested configuration, and the summary if a resumed run has already ended.

    Raises:
        LabError: If the options are invalid or contradict the directory.
    """
    check_target(directory, options)
    if not options.resume:
        return with_default_threads(resolve(given)), None
    config = resumed_config(directory, given)
    ended = directory.status() in ENDED
    return config, directory.read_summary() if ended else None


def begin(directory: RunDirectory, config: RunConfig, options: TrainOptions) -> None:
    """Prepare the claimed directory for a run that is started or resumed."""
    if options.overwrite:
        directory.clear()
    if not options.resume:
        directory.create(config)


def resumed_config(directory: RunDirectory, given: Mapping[str, Any]) -> RunConfig:
    """Return the configuration to resume a run with.

    This is the saved one, with the fields of :data:`PLACE_FIELDS` that are given now.

    Raises:
        LabError: If there is no run, or the given options differ from those of the saved run.
    """
    saved, processes = directory.read_config(), given.get("processes", 1)
    if saved.processes != processes:
        raise LabError(
            f"the run in {directory.path} has {saved.processes} processes, but {processes} were "
            "started. Batch statistics differ with the number of processes, so resume it with "
            f"torchrun --nproc-per-node {saved.processes}"
        )
    workaround = "leave these options out to continue it, or name another --out for a new run"
    what = f"the run that lies in {directory.path}"
    return placed(saved, given, what, workaround)
