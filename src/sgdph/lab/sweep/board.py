"""The progress of runs that other processes train, read from their directories."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import TypeAlias

from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeRemainingColumn

from sgdph.lab.progress import epoch_line, say
from sgdph.lab.run.directory import OVER, RunDirectory
from sgdph.lab.run.training import describe_outcome
from sgdph.lab.sweep.state import failure_file

Find: TypeAlias = Callable[[], Mapping[str, tuple[RunDirectory, int]]]
"""Returns the runs that there are by now, by their names, and how many epochs each has."""


@dataclass
class Board:
    """Prints a line for each run that ends, and shows finished epochs in bars, or else in lines.

    Attributes:
        directory: The directory that the runs belong to.
        find: Finds the runs.
        runs: The total number of runs.
        epochs: The total number of their epochs.
        console: Where to write.
        bars: The bars of a terminal; ``None`` elsewhere.
    """

    directory: Path
    find: Find
    runs: int
    epochs: int
    console: Console
    bars: Progress | None = None
    # How many epochs of each run were reported, and the runs that are over.
    _told: dict[str, int] = field(default_factory=dict)
    _over: set[str] = field(default_factory=set)
    _settled_epochs: int = 0

    def __post_init__(self) -> None:
        if self.bars is not None:
            self._runs_bar = self.bars.add_task("runs", total=self.runs)
            self._epochs_bar = self.bars.add_task("epochs", total=self.epochs)
        for name, (run, epochs) in self.find().items():
            # Epochs that were finished before are not reported.
            self._told[name] = len(run.read_metrics())
            if run.status() in OVER:
                self._end(name, f"kept; {describe_outcome(run.read_summary())}", epochs)
        self.look()

    def look(self) -> None:
        """Check and report the progress of every run that was not over before."""
        running = 0
        for name, (run, epochs) in self.find().items():
            if name in self._over:
                continue
            summary = run.read_summary()
            self._look_at_epochs(name, run, epochs)
            running += self._told[name]
            if summary.get("status") in OVER:
                self._end(name, describe_outcome(summary), epochs)
            elif failure_file(self.directory, name).exists():
                self._end(name, "failed", epochs)
        if self.bars is not None:
            self.bars.update(self._runs_bar, completed=len(self._over))
            self.bars.update(self._epochs_bar, completed=self._settled_epochs + running)

    def _end(self, name: str, message: str, epochs: int) -> None:
        self._over.add(name)
        # A run that diverged, was pruned or failed has no epochs left either.
        self._settled_epochs += epochs
        say(self.console, f"{_shown(name)}: {message}")

    def _look_at_epochs(self, name: str, run: RunDirectory, epochs: int) -> None:
        """Count a run's finished epochs; without bars, print the new ones."""
        lines = run.read_metrics()
        first = self._told.get(name, 0)
        if self.bars is None:
            for line in lines[first:]:
                say(self.console, f"{_shown(name)}: {epoch_line(line, epochs)}")
        self._told[name] = max(first, len(lines))


def _shown(name: str) -> str:
    return name.replace("/", " ")


@contextmanager
def board_for(
    directory: Path,
    find: Find,
    runs: int,
    epochs: int,
    console: Console,
) -> Iterator[Board]:
    """Yield the board that reports the runs' progress: in bars on a terminal, in lines elsewhere.

    Args:
        directory: The directory that the runs belong to.
        find: Finds the runs.
        runs: The total number of runs.
        epochs: The total number of their epochs.
        console: Where to write.
    """
    if not console.is_terminal:
        yield Board(directory, find, runs, epochs, console)
        return
    columns = (
        TextColumn("{task.description:<8}"),
        BarColumn(),
        MofNCompleteColumn(),
        TimeRemainingColumn(),
    )
    with Progress(*columns, console=console) as bars:
        yield Board(directory, find, runs, epochs, console, bars)
