"""Train the runs of a plan to their ends, each as a task of the engine."""

from __future__ import annotations

import time
from collections.abc import Callable, Sequence
from dataclasses import replace
from functools import partial
from pathlib import Path

from rich.console import Console

from sgdph.lab.options.options import ManyRunsOptions
from sgdph.lab.progress import Reporter, say
from sgdph.lab.reports.command import say_report
from sgdph.lab.run.claims import Claimed
from sgdph.lab.run.directory import ENDED, LOGS, RunDirectory
from sgdph.lab.run.launch import train_in_processes
from sgdph.lab.run.start import load_data, prepare
from sgdph.lab.run.training import describe_outcome, train_run
from sgdph.lab.sweep.checks import check_agreement, check_runs
from sgdph.lab.sweep.cores import default_jobs, default_threads, threads_each
from sgdph.lab.sweep.engine import Expected, Place, compute
from sgdph.lab.sweep.plan import Plan, PlannedRun
from sgdph.lab.sweep.state import (
    SweepState,
    failure_file,
    forget_failures,
    state_of,
)
from sgdph.lab.sweep.sweep_directory import SweepDirectory
from sgdph.lab.sweep.worker import Task, Worker

# Seconds that a process waits when another process has claimed a run, before it continues.
PATIENCE = 1.0


def train_and_report(
    directory: SweepDirectory,
    plan: Plan,
    runs: Sequence[PlannedRun],
    record: Callable[[], None],
    asked: ManyRunsOptions,
    console: Console,
) -> SweepState:
    """Train what is left of a plan's runs, and write the report of the directory.

    Args:
        directory: The sweep's directory; it need not exist yet.
        plan: The plan.
        runs: Those of the plan's runs that are asked for.
        record: Records in the directory what is asked for.
        asked: The training options.
        console: Where to report the progress.

    Returns:
        The progress of the runs after training.

    Raises:
        LabError: If the runs cannot be trained as asked.
        KeyboardInterrupt: If interrupted.
    """
    ended = () if asked.overwrite else state_of(directory.path, runs).ended
    check_agreement(directory.path, [] if asked.overwrite else runs)
    unended = [planned for planned in runs if planned.name not in ended]
    check_runs(unended, partial(load_data, download=asked.download))
    if asked.overwrite:
        directory.clear()
    record()
    title = f"{plan.layout.title}: " if plan.layout.title else ""
    say(console, f"{title}{len(runs)} runs, {len(unended)} of them left to train")
    state = train_all(directory.path, runs, console, jobs=asked.jobs, ray=asked.ray)
    if any(run.exists() for run in directory.inner_runs()):
        with directory.alone():
            say_report(directory.path, console)
    return state


def train_all(
    directory: Path,
    runs: Sequence[PlannedRun],
    console: Console,
    *,
    jobs: int | None = 1,
    ray: str | None = None,
) -> SweepState:
    """Train runs to their ends, in this process, in several, or on Ray.

    A run without a number of threads gets one here (:mod:`sgdph.lab.sweep.cores`).

    Args:
        directory: The directory of the runs, each in a folder of its name.
        runs: The runs.
        console: Where to report the progress.
        jobs: How many are trained at once; ``None`` for as many as there is room for.
        ray: Ray's address; ``None`` trains on this machine.

    Returns:
        The progress of the runs after training.

    Raises:
        LabError: If Ray is not available, or has no machine with enough cores for a run.
        KeyboardInterrupt: If interrupted; nothing trains any more then.
    """
    # Other processes or machines may have another working directory.
    directory = directory.resolve()
    forget_failures(directory, [planned.name for planned in runs])
    runs, jobs = arranged(directory, runs, jobs, on_ray=ray is not None)
    left = state_of(directory, runs).left
    if jobs is not None:
        jobs = max(1, min(jobs, len(left)))
    expected = Expected(
        lambda: {
            planned.name: (RunDirectory(directory / planned.name), planned.config.epochs)
            for planned in runs
        },
        len(runs),
        sum(planned.config.epochs for planned in runs),
    )
    place = Place(jobs, ray, fit_one_gpu(runs))
    compute(directory, map(partial(task_of, directory), runs), expected, place, console)
    return state_of(directory, runs)


def task_of(directory: Path, planned: PlannedRun) -> Task:
    """Return the task that trains a run."""
    config = planned.config
    return Task(
        planned.name,
        partial(train_planned, directory, planned),
        cores=(config.threads or 1) * config.processes,
        gpus=0 if config.device == "cpu" else config.processes,
    )


def fit_one_gpu(runs: Sequence[PlannedRun]) -> bool:
    """Return whether one visible GPU is enough for each run: one process, no GPU named."""
    configs = [planned.config for planned in runs]
    return all(config.processes == 1 and ":" not in config.device for config in configs)


def arranged(
    directory: Path, runs: Sequence[PlannedRun], jobs: int | None, *, on_ray: bool = False
) -> tuple[list[PlannedRun], int | None]:
    """Set the number of threads of runs without one, and decide how many runs train at once.

    Args:
        directory: The directory of the runs.
        runs: The runs.
        jobs: How many at once were asked for; ``None`` for as many as the cores have room for.
        on_ray: Whether Ray decides if ``jobs`` is ``None``.

    Returns:
        The runs with their threads, and how many train at once; ``None`` leaves that to Ray.
    """
    cores = threads_each(jobs or 1)
    arranged = []
    for planned in as_begun(directory, runs):
        # A run that began with torch's choice of threads keeps it, unless jobs > 1 (below).
        if not RunDirectory(directory / planned.name).exists() and planned.config.threads is None:
            planned = with_threads(planned, default_threads(planned.config, cores))
        arranged.append(planned)
    if jobs is None and not on_ray:
        left = state_of(directory, runs).left
        jobs = default_jobs(arranged, [each for each in arranged if each.name in left])
    if jobs is not None and jobs > 1:
        # A given number of jobs does not shrink when few runs are left. So a resumed sweep uses the
        # same threads as one that was never interrupted.
        arranged = [with_threads(planned, threads_each(jobs)) for planned in arranged]
    return arranged, jobs


def as_begun(directory: Path, runs: Sequence[PlannedRun]) -> list[PlannedRun]:
    """Give existing runs the number of threads that they began with, unless one is asked for.

    Another number of threads would change the order of sums, and so the run's result.
    """
    return [
        with_threads(planned, RunDirectory(directory / planned.name).read_config().threads)
        if RunDirectory(directory / planned.name).exists()
        else planned
        for planned in runs
    ]


def with_threads(planned: PlannedRun, threads: int | None) -> PlannedRun:
    """Set a run's number of threads, if it has none."""
    if planned.config.threads is not None:
        return planned
    return replace(planned, config=replace(planned.config, threads=threads))


def train_planned(directory: Path, planned: PlannedRun, worker: Worker) -> bool:
    """Train a run to its end, unless it has already ended or failed.

    A run that fails leaves its traceback in ``logs``.

    Args:
        directory: The directory of the runs, each in a folder of its name.
        planned: The run.
        worker: The worker of this process.

    Returns:
        False if another process is training the run; otherwise True.
    """
    run = RunDirectory(directory / planned.name)
    if failure_file(directory, planned.name).exists():
        return True
    try:
        with worker.noting_failure(directory, planned.name):
            if run.status() in ENDED:
                check_agreement(directory, [planned])
                outcome = describe_outcome(run.read_summary())
                worker.reporter.run_finished(planned.name, f"kept; {outcome}")
            elif planned.config.processes == 1:
                _train_here(directory, planned, run, worker)
            else:
                _train_in_processes(directory, planned, run, worker.reporter)
    except Claimed:
        time.sleep(PATIENCE)
        return False
    return True


def _train_here(directory: Path, planned: PlannedRun, run: RunDirectory, worker: Worker) -> None:
    with run.claim():
        # Another process may have begun or ended it since, even with other settings.
        check_agreement(directory, [planned])
        if run.status() not in ENDED:
            prepared = prepare(planned.config, worker.dataset(planned.config))
            if not run.exists():
                run.create(planned.config)
            train_run(prepared, run, worker.reporter)


def _train_in_processes(
    directory: Path, planned: PlannedRun, run: RunDirectory, reporter: Reporter
) -> None:
    with run.claim():
        check_agreement(directory, [planned])
        if run.status() in ENDED:
            return
        if not run.exists():
            run.create(planned.config)
    train_in_processes(planned.config, run, directory / LOGS / f"{planned.name}.log")
    reporter.run_finished(planned.name, describe_outcome(run.read_summary()))
