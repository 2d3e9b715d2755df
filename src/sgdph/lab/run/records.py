"""Runs read from directories or archives, in groups whose runs differ only in the seed."""

from __future__ import annotations

import dataclasses
import os
from collections.abc import Sequence
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any

from sgdph.lab.config.run_config import RunConfig, without_place
from sgdph.lab.config.yaml import FORMAT
from sgdph.lab.errors import LabError
from sgdph.lab.run.archive import RUNS, read_archive
from sgdph.lab.run.content import check_content, is_number
from sgdph.lab.run.directory import CHECKPOINT, CONFIG, METRICS, OVER, SUMMARY, RunDirectory

# The format marks of all versions begin like this.
MARK = FORMAT.rstrip("0123456789")


@dataclass(frozen=True)
class RunRecord:
    """The content of one run's directory, or of its part of an archive.

    Attributes:
        path: The directory; for an archived run, it need not exist.
        config: The run's configuration.
        summary: Its outcome; empty if training had not begun.
        metrics: The metrics lines of its epochs.
        env: The environment of its first session; may be empty like the summary.
    """

    path: Path
    config: RunConfig
    summary: dict[str, Any]
    metrics: list[dict[str, Any]]
    env: dict[str, Any]

    def figure(self, kind: str) -> float | None:
        """Return ``"final"`` or ``"best"`` accuracy on the images evaluated on, 0 to 1, or None."""
        value = self.summary.get(f"{kind}_{self.config.evaluated}_accuracy")
        return None if value is None else float(value)

    @property
    def status(self) -> str:
        """The recorded status; ``"running"`` if there is none yet."""
        return str(self.summary.get("status", "running"))

    @cached_property
    def accuracies(self) -> tuple[float, ...]:
        """Accuracy after each epoch on the images it was evaluated on, 0 to 1."""
        return tuple(float(line[f"{self.config.evaluated}_accuracy"]) for line in self.metrics)

    @cached_property
    def losses(self) -> tuple[float, ...]:
        """Mean training loss of each epoch, in nats."""
        return tuple(float(line["train_loss"]) for line in self.metrics)

    @cached_property
    def seconds(self) -> tuple[float, ...]:
        """Seconds of training up to the end of each epoch; empty if they were not recorded."""
        total, sums = 0.0, []
        for line in self.metrics:
            if not is_number(line.get("seconds")):
                return ()
            total += float(line["seconds"])
            sums.append(total)
        return tuple(sums)

    @cached_property
    def key(self) -> RunConfig:
        """The configuration without seed, place and kept checkpoints: equal within a group."""
        return dataclasses.replace(without_place(self.config), seed=0)


@dataclass(frozen=True)
class Unreadable:
    """A run's directory that cannot be read, and why."""

    path: Path
    reason: str


@dataclass(frozen=True)
class Runs:
    """The runs that were found.

    Attributes:
        records: The runs, one for each configuration and seed.
        unreadable: Run directories and archives that cannot be read.
        duplicates: Runs that are left out, each with the run of the same configuration and seed
            that is used instead.
    """

    records: tuple[RunRecord, ...]
    unreadable: tuple[Unreadable, ...]
    duplicates: tuple[tuple[RunRecord, RunRecord], ...]


@dataclass(frozen=True)
class Group:
    """Runs of one configuration over several seeds.

    Attributes:
        config: Their common configuration; its seed and place have no meaning.
        runs: The runs, sorted by seed.
    """

    config: RunConfig
    runs: tuple[RunRecord, ...]

    @property
    def finished(self) -> tuple[RunRecord, ...]:
        """The runs that reached their end with a finite loss."""
        return tuple(run for run in self.runs if run.status == "finished")

    def count(self, status: str) -> int:
        """Count the runs with a status."""
        return sum(run.status == status for run in self.runs)

    @property
    def unfinished(self) -> int:
        """How many runs are running or were interrupted."""
        return sum(run.status not in OVER for run in self.runs)


def read_runs(paths: Sequence[Path]) -> Runs:
    """Read all runs in and below some directories, including archived ones.

    Of several runs with the same configuration and seed, one is used: preferably one that is over,
    then the first in this order: run directories by path, then archives by path. Better results do
    not matter for the choice.

    Args:
        paths: Directories; a run that is found twice is read once.

    Raises:
        LabError: If a path is not a directory, or no run can be read.
    """
    read = [_try_to_read(path) for path in find_runs(paths)]
    there = {each.path.resolve() for each in read}
    archives = sorted(place for place, files in _walk(paths) if RUNS in files)
    archived = [run for place in archives for run in _try_to_read_archive(place)]
    read += [run for run in archived if run.path.resolve() not in there]
    found = [each for each in read if isinstance(each, RunRecord)]
    unreadable = [each for each in read if isinstance(each, Unreadable)]
    if not found:
        places = ", ".join(map(str, paths))
        broken = "".join(f"\n  {each.path}: {each.reason}" for each in unreadable)
        raise LabError(
            f"{places} holds no run{' that can be read:' + broken if broken else ''}; give the "
            "--out directories of train, compare or reproduce, or a directory above them"
        )
    counted: dict[tuple[RunConfig, int], RunRecord] = {}
    duplicates = []
    for run in sorted(found, key=lambda run: run.status not in OVER):
        first = counted.setdefault((run.key, run.config.seed), run)
        if first is not run:
            duplicates.append((run, first))
    records = sorted(counted.values(), key=lambda run: run.path)
    return Runs(tuple(records), tuple(unreadable), tuple(duplicates))


def find_runs(paths: Sequence[Path]) -> list[Path]:
    """List the run directories in and below some directories, each once, sorted by path.

    Raises:
        LabError: If a path is not a directory.
    """
    return sorted(place for place, files in _walk(paths) if _is_run(place, files))


def _walk(paths: Sequence[Path]) -> list[tuple[Path, list[str]]]:
    """List directories and all directories below them, each once, with their files.

    Links are followed after everything else. So a directory that can be reached without a link has
    the path without it.
    """
    for root in paths:
        if not root.is_dir():
            raise LabError(f"{root} is not a directory; name one that holds runs")
    found: dict[Path, tuple[Path, list[str]]] = {}
    # The links that are found are added while this list is walked.
    roots = list(paths)
    for root in roots:
        for name, directories, files in os.walk(root):
            place = Path(name)
            if place.resolve() in found:
                directories.clear()
                continue
            found[place.resolve()] = (place, files)
            directories[:] = sorted(name for name in directories if not name.startswith("."))
            roots += [place / name for name in directories if (place / name).is_symlink()]
    return list(found.values())


def _is_run(path: Path, files: Sequence[str]) -> bool:
    """Return whether a directory is a run's, even if its configuration is damaged or missing."""
    if METRICS in files and (SUMMARY in files or (CONFIG in files and CHECKPOINT in files)):
        return True
    if CONFIG not in files:
        return False
    try:
        text = (path / CONFIG).read_text(encoding="utf-8", errors="replace")
    except OSError:
        return False
    return f"format: {MARK}" in text


def _try_to_read(path: Path) -> RunRecord | Unreadable:
    try:
        return read_run(path)
    except LabError as error:
        return Unreadable(path, str(error))


def _try_to_read_archive(directory: Path) -> Sequence[RunRecord | Unreadable]:
    try:
        runs = read_archive(directory)
        records = [
            RunRecord(directory / run.name, run.config, run.summary, run.metrics, run.env)
            for run in runs
        ]
        for run in runs:
            check_content(run.config, run.summary, run.metrics, run.env)
    except LabError as error:
        return [Unreadable(directory / RUNS, str(error))]
    return records


def read_run(path: Path) -> RunRecord:
    """Read one run's directory.

    Raises:
        LabError: If one of its files is damaged, or lacks what a report needs.
    """
    directory = RunDirectory(path)
    try:
        if not (path / CONFIG).exists():
            raise LabError(f"{CONFIG} is missing; restore it from a copy, or train the run again")
        record = RunRecord(
            path,
            directory.read_config(),
            directory.read_summary(),
            directory.read_metrics(),
            directory.read_env(),
        )
    except LabError:
        raise
    except (OSError, ValueError) as error:
        raise LabError(f"a file in it cannot be read: {error}") from error
    check_content(record.config, record.summary, record.metrics, record.env)
    return record


def group_runs(records: Sequence[RunRecord]) -> list[Group]:
    """Group the runs with the same :attr:`RunRecord.key`, in the order of their first runs."""
    groups: dict[RunConfig, list[RunRecord]] = {}
    for record in records:
        groups.setdefault(record.key, []).append(record)
    return [
        Group(key, tuple(sorted(runs, key=lambda run: run.config.seed)))
        for key, runs in groups.items()
    ]


def differing_fields(configs: Sequence[RunConfig]) -> list[str]:
    """Return the names of the fields in which configurations differ, in the fields' order."""
    return [
        field.name
        for field in dataclasses.fields(RunConfig)
        if len({getattr(config, field.name) for config in configs}) > 1
    ]
