"""Checks before anything is trained: data, settings, and existing runs."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from pathlib import Path

from sgdph.lab.config.run_config import RunConfig, differences
from sgdph.lab.data.dataset import Dataset
from sgdph.lab.errors import LabError
from sgdph.lab.run.directory import RunDirectory
from sgdph.lab.run.out import disagreement
from sgdph.lab.run.start import prepare
from sgdph.lab.sweep.plan import PlannedRun
from sgdph.lab.sweep.worker import data_key


def check_agreement(directory: Path, runs: Sequence[PlannedRun]) -> None:
    """Raise LabError if existing runs differ from what is asked for now."""
    problems = []
    for planned in runs:
        run = RunDirectory(directory / planned.name)
        if run.exists():
            saved = run.read_config()
            found = differences(vars(planned.config), saved)
            # differences() compares only given arguments, but here a missing one is a difference.
            asked = dict(planned.config.optimizer_args or ())
            found += [
                f"{name}: the run has {value!r}, this call gives none"
                for name, value in saved.optimizer_args or ()
                if name not in asked
            ]
            problems += [f"{planned.name}: {line}" for line in found]
    if problems:
        workaround = "leave these options out to continue, or name another --out"
        raise LabError(disagreement(f"the runs in {directory}", problems, workaround))


def check_runs(runs: Sequence[PlannedRun], load: Callable[[RunConfig], Dataset]) -> None:
    """Raise LabError now, not after an hour, if data are missing or settings are rejected.

    Loads each data set once, and prepares one run of each optimizer.
    """
    data = {data_key(run.config): run.config for run in runs}
    loaded = {key: load(config) for key, config in data.items()}
    for config in {run.config.optimizer: run.config for run in reversed(runs)}.values():
        prepare(config, loaded[data_key(config)])
