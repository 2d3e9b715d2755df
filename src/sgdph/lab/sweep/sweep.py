"""Many runs in one directory: who trains which, skipping what is finished, never a run twice.

Every run lies in a directory of its own and is claimed by the process that trains it, so any number
of processes, on one machine or on several that share the directory, work through the same list.
"""

from __future__ import annotations

import time
import traceback
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import TypeAlias

from sgdph.lab.config.run_config import RunConfig, differences
from sgdph.lab.data.dataset import Dataset
from sgdph.lab.errors import LabError
from sgdph.lab.files import write_text
from sgdph.lab.progress import Reporter
from sgdph.lab.run.claims import Claimed
from sgdph.lab.run.directory import ENDED, LOGS, RunDirectory
from sgdph.lab.run.launch import train_in_processes
from sgdph.lab.run.start import prepare
from sgdph.lab.run.training import describe_outcome, train_run
from sgdph.lab.sweep.plan import PlannedRun

Load: TypeAlias = Callable[[RunConfig], Dataset]
"""Loads the data set of a run."""

# How often a process that finds every run claimed by others looks again, in seconds.
PATIENCE = 1.0


def check_agreement(directory: Path, runs: Sequence[PlannedRun]) -> None:
    """Raise LabError where runs that were begun differ from what is asked for now."""
    problems = []
    for planned in runs:
        run = RunDirectory(directory / planned.name)
        if run.exists():
            saved = run.read_config()
            found = differences(vars(planned.config), saved)
            # These are asked about only where they are given; here all that is asked for is.
            asked = dict(planned.config.optimizer_args or ())
            found += [
                f"{name}: the run has {value!r}, now nothing is given"
                for name, value in saved.optimizer_args or ()
                if name not in asked
            ]
            problems += [f"{planned.name}: {line}" for line in found]
    if problems:
        raise LabError(
            f"the options disagree with runs that lie in {directory}:\n  "
            + "\n  ".join(problems)
            + "\nleave these options out to carry on, or name another --out"
        )


def check_runs(runs: Sequence[PlannedRun], load: Load) -> None:
    """Raise LabError now, not after an hour, where data are missing or settings are refused.

    Loads each data set once, and prepares one run of each optimizer.
    """
    data = {task_data(run.config): run.config for run in runs}
    loaded = {key: load(config) for key, config in data.items()}
    for config in {run.config.optimizer: run.config for run in reversed(runs)}.values():
        prepare(config, loaded[task_data(config)])


def task_data(config: RunConfig) -> tuple[object, ...]:
    """Return all that a run's data set depends on."""
    return (
        config.dataset,
        config.data_dir,
        config.train_size,
        config.validation_size,
        config.image_size,
    )


@dataclass
class Work:
    """One process's way through a list of runs.

    Attributes:
        directory: Where they lie, each under its name.
        runs: The runs, in the order in which they are taken up.
        load: Loads a run's data set; the last one is kept.
        reporter: What is told of the progress.
    """

    directory: Path
    runs: Sequence[PlannedRun]
    load: Load
    reporter: Reporter
    _data: tuple[object, Dataset] | None = field(default=None, init=False)

    def do(self) -> None:
        """Train every run that is not at its end, each from its checkpoint where it has one.

        A run that fails leaves its traceback in ``logs`` and the next one is taken up. Runs that
        other processes are training are waited for, and taken over where their process dies.
        """
        left = list(self.runs)
        while left:
            busy = [planned for planned in left if not self._settle(planned)]
            if busy and len(busy) == len(left):
                time.sleep(PATIENCE)
            left = busy

    def _settle(self, planned: PlannedRun) -> bool:
        """Bring a run to its end; False where another process is at it."""
        run = RunDirectory(self.directory / planned.name)
        if run.status() in ENDED:
            outcome = describe_outcome(run.read_summary())
            self.reporter.run_finished(planned.name, f"kept; {outcome}")
        elif not failure_file(self.directory, planned.name).exists():
            try:
                self._attempt(planned, run)
            except Claimed:
                return False
        return True

    def _attempt(self, planned: PlannedRun, run: RunDirectory) -> None:
        """Train a run; where that fails, leave the traceback."""
        try:
            if planned.config.processes == 1:
                self._train(planned, run)
            else:
                self._train_in_processes(planned, run)
        except Claimed:
            raise
        except Exception as error:
            text = "".join(traceback.format_exception(error))
            note_failure(self.directory, planned.name, text)
            self.reporter.run_finished(planned.name, f"failed: {type(error).__name__}: {error}")

    def _train(self, planned: PlannedRun, run: RunDirectory) -> None:
        with run.claim():
            # Another process may have ended it between the look and the claim.
            if run.status() not in ENDED:
                prepared = prepare(planned.config, self._dataset(planned.config))
                if not run.exists():
                    run.create(planned.config)
                train_run(prepared, run, self.reporter)

    def _train_in_processes(self, planned: PlannedRun, run: RunDirectory) -> None:
        with run.claim():
            if run.status() in ENDED:
                return
            if not run.exists():
                run.create(planned.config)
        train_in_processes(planned.config, run, self.directory / LOGS / f"{planned.name}.log")
        self.reporter.run_finished(planned.name, describe_outcome(run.read_summary()))

    def _dataset(self, config: RunConfig) -> Dataset:
        key = task_data(config)
        if self._data is None or self._data[0] != key:
            # Let go of the old one first: both may not fit.
            self._data = None
            self._data = (key, self.load(config))
        return self._data[1]


def failure_file(directory: Path, name: str) -> Path:
    """Name the file that holds a failed run's traceback."""
    return directory / LOGS / f"{name}.error.txt"


def note_failure(directory: Path, name: str, text: str) -> None:
    """Record that a run failed, for other processes and for who looks for the cause."""
    (directory / LOGS).mkdir(parents=True, exist_ok=True)
    write_text(failure_file(directory, name), text)


def forget_failures(directory: Path, runs: Sequence[PlannedRun]) -> None:
    """Give failed runs another chance."""
    for planned in runs:
        failure_file(directory, planned.name).unlink(missing_ok=True)


@dataclass(frozen=True)
class Progress:
    """How far a list of runs is.

    Attributes:
        ended: Runs that are finished or diverged.
        failed: Runs whose last attempt failed, with the last line of the traceback.
        left: All the others.
    """

    ended: tuple[str, ...]
    failed: dict[str, str]
    left: tuple[str, ...]


def progress_of(directory: Path, runs: Sequence[PlannedRun]) -> Progress:
    """Look how far the runs are."""
    ended, failed, left = [], {}, []
    for planned in runs:
        failure = failure_file(directory, planned.name)
        if RunDirectory(directory / planned.name).status() in ENDED:
            ended.append(planned.name)
        elif failure.exists():
            failed[planned.name] = failure.read_text(encoding="utf-8").strip().splitlines()[-1]
        else:
            left.append(planned.name)
    return Progress(tuple(ended), failed, tuple(left))
