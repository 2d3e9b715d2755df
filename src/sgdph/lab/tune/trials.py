"""The trials of a tuning, as tasks of the engine."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from functools import partial
from typing import Any

from rich.console import Console

from sgdph.lab.errors import LabError
from sgdph.lab.progress import say
from sgdph.lab.run.directory import OVER, RunDirectory
from sgdph.lab.sweep.engine import Expected, Place, compute
from sgdph.lab.sweep.state import failure_file, failures, forget_failures
from sgdph.lab.sweep.worker import Task
from sgdph.lab.tune.record import TuneDirectory
from sgdph.lab.tune.study import Studies
from sgdph.lab.tune.trial import train_next_trial


def train_trials(
    directory: TuneDirectory,
    place: Mapping[str, Any],
    jobs: int | None,
    ray: str | None,
    console: Console,
) -> None:
    """Take and train trials until there is none to take.

    Args:
        directory: The tuning's directory, which holds ``tune.yaml``.
        place: Fields of the runs' configuration that apply on this machine.
        jobs: How many run at once; with Ray, ``None`` for as many as it has room for.
        ray: Ray's address; ``None`` trains on this machine.
        console: Where to report the progress.

    Raises:
        LabError: If a trial failed, Ray is not available, or the directory of a trial is gone.
        KeyboardInterrupt: If interrupted.
    """
    # Other processes or machines may have another working directory.
    path = directory.path.resolve()
    forget_failures(path, failures(path))
    gone = Studies(directory).without_run()
    if gone:
        raise LabError(
            f"{directory.path} lacks the directories of {', '.join(gone)}, whose results the "
            "search has used. Put them back, or search anew with --overwrite or with another --out"
        )
    tuning = directory.read()
    over = {run.path for run in directory.inner_runs() if run.status() in OVER}
    epochs = tuning.config(tuning.optimizers[0]).epochs
    left = tuning.budget - len(over)
    named = ":" in str(place.get("device", ""))
    if jobs is not None:
        jobs = max(1, min(jobs, left))

    def find() -> dict[str, tuple[RunDirectory, int]]:
        runs = [run for run in directory.inner_runs() if run.path not in over]
        return {f"{run.path.parent.name}/{run.path.name}": (run, epochs) for run in runs}

    compute(
        path,
        tasks(directory, place, len(over)),
        Expected(find, left, left * epochs),
        Place(jobs, ray, split_gpus=not named),
        console,
    )
    for name, reason in failures(path).items():
        raise LabError(
            f"{name} failed: {reason} (see {failure_file(path, name)}). Finished trials are kept; "
            "run the same command again to continue"
        )
    running = Studies(directory).running()
    if running:
        say(console, f"{running} trials are still running in other processes.")


def tasks(directory: TuneDirectory, place: Mapping[str, Any], over: int) -> Iterator[Task]:
    """Yield a task for each trial that may be left, until one fails.

    Args:
        directory: The tuning's directory.
        place: Fields of the runs' configuration that apply on this machine.
        over: How many trials were over at the beginning.
    """
    begun = 0
    # Read again each time: the budget may have been raised meanwhile.
    while begun < directory.read().budget - over and not failures(directory.path):
        begun += 1
        yield Task(
            f"task-{begun}",
            partial(train_next_trial, directory.path.resolve(), place),
            cores=place.get("threads") or 1,
            gpus=0 if place.get("device") == "cpu" else 1,
        )
