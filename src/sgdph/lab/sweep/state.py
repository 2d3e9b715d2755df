"""The progress of the runs in a directory, and the records of those that failed."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path

from rich.console import Console

from sgdph.lab.errors import FAILED, OK
from sgdph.lab.files import make_directory, write_text
from sgdph.lab.progress import say
from sgdph.lab.run.directory import ENDED, LOGS, RunDirectory
from sgdph.lab.sweep.plan import PlannedRun

_FAILURE = ".error.txt"


def failure_file(directory: Path, name: str) -> Path:
    """Return the path of the file with a failed run's traceback."""
    return directory / LOGS / (name.replace("/", "-") + _FAILURE)


def note_failure(directory: Path, name: str, text: str) -> None:
    """Record that a run failed, for other processes and for users who look for the cause."""
    make_directory(directory / LOGS)
    write_text(failure_file(directory, name), text)


def failures(directory: Path) -> dict[str, str]:
    """Return the failed runs' names, each with the last line of its traceback."""
    files = sorted((directory / LOGS).glob(f"*{_FAILURE}"))
    return {
        file.name.removesuffix(_FAILURE): file.read_text(encoding="utf-8").strip().splitlines()[-1]
        for file in files
    }


def forget_failures(directory: Path, names: Iterable[str]) -> None:
    """Delete the records of failed runs, so that they are tried again."""
    for name in names:
        failure_file(directory, name).unlink(missing_ok=True)


@dataclass(frozen=True)
class SweepState:
    """The progress of a list of runs.

    Attributes:
        ended: Runs that are finished or diverged.
        failed: Runs whose last attempt failed, with the last line of the traceback.
        left: All the others.
    """

    ended: tuple[str, ...]
    failed: dict[str, str]
    left: tuple[str, ...]


def state_of(directory: Path, runs: Sequence[PlannedRun]) -> SweepState:
    """Return the progress of the runs."""
    failed, names = failures(directory), [planned.name for planned in runs]
    others = [name for name in names if name not in failed]
    ended = [name for name in others if RunDirectory(directory / name).status() in ENDED]
    return SweepState(
        tuple(ended),
        # Also a run that has ended, but with other settings than this sweep's.
        {name: failed[name] for name in names if name in failed},
        tuple(name for name in others if name not in ended),
    )


def report_failures(console: Console, directory: Path, state: SweepState) -> int:
    """Print which runs failed or are not finished, and return the exit code."""
    for name, reason in state.failed.items():
        say(console, f"failed: {name}: {reason} (see {failure_file(directory, name)})")
    if state.left:
        say(console, f"not finished: {', '.join(state.left)}")
    return FAILED if state.failed or state.left else OK
