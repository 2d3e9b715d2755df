"""The progress of runs that other processes train, read off their directories."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path

from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeRemainingColumn

from sgdph.lab.progress import epoch_line, say
from sgdph.lab.run.directory import ENDED, RunDirectory
from sgdph.lab.run.training import describe_outcome
from sgdph.lab.sweep.plan import PlannedRun
from sgdph.lab.sweep.sweep import failure_file


class Watch:
    """Tells of runs as they come to their ends, and of epochs: in a bar where there is one.

    Args:
        directory: Where the runs lie.
        runs: The runs.
        console: Where to write.
        bars: The bars of a terminal; ``None`` elsewhere.
    """

    def __init__(
        self, directory: Path, runs: Sequence[PlannedRun], console: Console, bars: Progress | None
    ) -> None:
        self.directory = directory
        self.console = console
        self.bars = bars
        self.left = {planned.name: planned for planned in runs}
        self.count = len(runs)
        self.settled_epochs = 0
        # How many epochs of each run were told of, and how often was looked.
        self.told: dict[str, int] = {}
        self.looks = 0
        if bars is not None:
            total = sum(planned.config.epochs for planned in runs)
            self.runs_bar = bars.add_task("runs", total=len(runs))
            self.epochs_bar = bars.add_task("epochs", total=total)

    def look(self) -> None:
        """Look how far every run is that was not at its end before."""
        epochs = 0
        for name, planned in list(self.left.items()):
            run = RunDirectory(self.directory / name)
            failed = failure_file(self.directory, name).exists()
            summary = run.read_summary()
            if summary.get("status") in ENDED or failed:
                if name in self.told:
                    self._look_at_epochs(planned, run)
                del self.left[name]
                # A run that diverged or failed has no epochs left either.
                self.settled_epochs += planned.config.epochs
                say(self.console, f"{name}: {'failed' if failed else describe_outcome(summary)}")
            else:
                epochs += self._look_at_epochs(planned, run)
        self.looks += 1
        if self.bars is not None:
            self.bars.update(self.runs_bar, completed=self.count - len(self.left))
            self.bars.update(self.epochs_bar, completed=self.settled_epochs + epochs)

    def _look_at_epochs(self, planned: PlannedRun, run: RunDirectory) -> int:
        """Count a run's finished epochs; where there is no bar, tell of those that are new."""
        lines = run.read_metrics()
        # What lay there before is told of by nobody.
        first = self.told.setdefault(planned.name, len(lines) if self.looks == 0 else 0)
        if self.bars is None:
            for line in lines[first:]:
                say(self.console, f"{planned.name}: {epoch_line(line, planned.config.epochs)}")
        self.told[planned.name] = max(first, len(lines))
        return len(lines)


@contextmanager
def watching(directory: Path, runs: Sequence[PlannedRun], console: Console) -> Iterator[Watch]:
    """Yield what tells of the runs' progress: in bars on a terminal, in lines elsewhere."""
    if not console.is_terminal:
        yield Watch(directory, runs, console, None)
        return
    columns = (
        TextColumn("{task.description:<8}"),
        BarColumn(),
        MofNCompleteColumn(),
        TimeRemainingColumn(),
    )
    with Progress(*columns, console=console) as bars:
        yield Watch(directory, runs, console, bars)
