"""Progress of a run: bars on a terminal, one line per epoch elsewhere."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any, Protocol

from rich.console import Console
from rich.progress import (
    BarColumn,
    MofNCompleteColumn,
    Progress,
    ProgressColumn,
    TextColumn,
    TimeRemainingColumn,
)
from rich.text import Text

from sgdph.lab.output import printable


class Reporter(Protocol):
    """Receives a run's progress; the trainer's only interface to the screen."""

    def run_started(self, name: str, *, epochs: int, done: int, batches: int) -> None:
        """Report that a run starts, or resumes after ``done`` epochs."""

    def batch_finished(self) -> None:
        """Report that one optimizer step is done."""

    def epoch_finished(self, metrics: Mapping[str, Any], epochs: int) -> None:
        """Report that one epoch is done; ``metrics`` is its metrics line."""

    def run_finished(self, name: str, message: str) -> None:
        """Report that the run has ended; ``message`` says how."""


class Screen(Console):
    """A console that writes what its encoding lacks in ASCII, so that tables stay aligned."""

    def render_str(self, text: str, **options: Any) -> Text:
        """Return the text to show."""
        return super().render_str(printable(text, self.encoding), **options)


def say(console: Console, text: str) -> None:
    """Print a text unchanged: without wrapping, and without interpreting markup."""
    console.print(text, soft_wrap=True, highlight=False, markup=False)


def say_files(console: Console, directory: Path, files: Mapping[str, str]) -> None:
    """Print the paths of those files of a directory that exist.

    Args:
        console: Where to print.
        directory: The directory.
        files: Title of each file to its name.
    """
    width = max(map(len, files)) + 1
    for title, name in files.items():
        if (directory / name).exists():
            say(console, f"{title:<{width}}{(directory / name).resolve()}")


def evaluated(metrics: Mapping[str, Any]) -> str:
    """Return which images an epoch was evaluated on: ``"test"`` or ``"validation"``."""
    return "validation" if "validation_loss" in metrics else "test"


def epoch_line(metrics: Mapping[str, Any], epochs: int) -> str:
    """Format an epoch's metrics as one line."""
    split = evaluated(metrics)
    newton = f", Newton {metrics['newton_lr']:.2g}" if "newton_lr" in metrics else ""
    return (
        f"epoch {metrics['epoch']:>{len(str(epochs))}}/{epochs}  "
        f"train loss {metrics['train_loss']:.4f}  accuracy {metrics['train_accuracy']:6.2%}  |  "
        f"{split} loss {metrics[f'{split}_loss']:.4f}  "
        f"accuracy {metrics[f'{split}_accuracy']:6.2%}  |  "
        f"lr {metrics['lr']:.2g}{newton}  {metrics['seconds']:.1f} s"
    )


class LineReporter:
    """One line per epoch, for logs and pipes."""

    def __init__(self, console: Console) -> None:
        self.console = console

    def run_started(self, name: str, *, epochs: int, done: int, batches: int) -> None:
        """Print which run starts or resumes."""
        where = f", carrying on after epoch {done}" if done else ""
        say(self.console, f"{name}: {epochs} epoch{'s' * (epochs != 1)} of {batches} steps{where}")

    def batch_finished(self) -> None:
        """Print nothing."""

    def epoch_finished(self, metrics: Mapping[str, Any], epochs: int) -> None:
        """Print the epoch's line."""
        say(self.console, epoch_line(metrics, epochs))

    def run_finished(self, name: str, message: str) -> None:
        """Print how the run ended."""
        say(self.console, f"{name}: {message}")


class BarReporter(LineReporter):
    """Bars for runs (if there are several), epochs and batches; each finished run leaves a line."""

    def __init__(self, console: Console, progress: Progress, runs: int) -> None:
        super().__init__(console)
        self.progress = progress
        self.runs = progress.add_task("runs", total=runs, visible=runs > 1, note="")
        self.epochs = progress.add_task("epochs", total=None, note="")
        self.batches = progress.add_task("batches", total=None, note="")

    def run_started(self, name: str, *, epochs: int, done: int, batches: int) -> None:
        """Reset the bars for a run."""
        self.progress.reset(self.epochs, total=epochs, completed=done)
        self.progress.update(self.epochs, description=name, note="")
        self.progress.reset(self.batches, total=batches)

    def batch_finished(self) -> None:
        """Advance the batch bar."""
        self.progress.advance(self.batches)

    def epoch_finished(self, metrics: Mapping[str, Any], epochs: int) -> None:
        """Advance the epoch bar and show the latest figures beside it."""
        split = evaluated(metrics)
        accuracy = metrics[f"{split}_accuracy"]
        note = f"loss {metrics['train_loss']:.4f}  {split} {accuracy:.2%}"
        self.progress.update(self.epochs, advance=1, note=note)
        self.progress.reset(self.batches)

    def run_finished(self, name: str, message: str) -> None:
        """Advance the run bar and print a line above the bars."""
        self.progress.advance(self.runs)
        super().run_finished(name, message)


def _bars(console: Console, *more: ProgressColumn) -> Progress:
    columns = (
        TextColumn("{task.description}"),
        BarColumn(),
        MofNCompleteColumn(),
        TimeRemainingColumn(),
    )
    # Only four redraws a second: each costs milliseconds of the thread that launches GPU kernels.
    return Progress(*columns, *more, console=console, transient=True, refresh_per_second=4)


@contextmanager
def reporter_for(console: Console, runs: int = 1) -> Iterator[Reporter]:
    """Yield a reporter: bars if the console is a terminal, lines otherwise.

    Args:
        console: Where to write.
        runs: Number of runs to come.
    """
    if not console.is_terminal:
        yield LineReporter(console)
        return
    with _bars(console, TextColumn("{task.fields[note]}")) as progress:
        yield BarReporter(console, progress, runs)


class StepReporter(Protocol):
    """Receives the progress of a measurement of steps, one cell after another."""

    def cell_started(self, name: str, steps: int) -> None:
        """Report that a cell of ``steps`` steps starts."""

    def step_finished(self) -> None:
        """Report that one step of the cell is done."""

    def cell_finished(self, name: str, message: str) -> None:
        """Report that the cell is done, now or earlier; ``message`` gives its result."""


class StepLines:
    """A line at the start and the end of each cell; ``units`` is what the steps are called."""

    def __init__(self, console: Console, units: str) -> None:
        self.console = console
        self.units = units

    def cell_started(self, name: str, steps: int) -> None:
        """Print which cell starts."""
        say(self.console, f"{name}: {steps} {self.units}")

    def step_finished(self) -> None:
        """Print nothing."""

    def cell_finished(self, name: str, message: str) -> None:
        """Print the result of the cell."""
        say(self.console, f"{name}: {message}")


class StepBars(StepLines):
    """A bar for cells (if there are several) and one for the steps of a cell."""

    def __init__(self, console: Console, units: str, progress: Progress, cells: int) -> None:
        super().__init__(console, units)
        self.progress = progress
        self.cells = progress.add_task("cells", total=cells, visible=cells > 1)
        self.steps = progress.add_task(units, total=None)

    def cell_started(self, name: str, steps: int) -> None:
        """Reset the step bar for a cell."""
        self.progress.reset(self.steps, total=steps)
        self.progress.update(self.steps, description=name)

    def step_finished(self) -> None:
        """Advance the step bar."""
        self.progress.advance(self.steps)

    def cell_finished(self, name: str, message: str) -> None:
        """Advance the cell bar and print a line above the bars."""
        self.progress.advance(self.cells)
        super().cell_finished(name, message)


@contextmanager
def step_reporter_for(console: Console, cells: int, units: str = "turns") -> Iterator[StepReporter]:
    """Yield a reporter: bars if the console is a terminal, lines otherwise.

    Args:
        console: Where to write.
        cells: Number of cells to come.
        units: What the steps of a cell are called.
    """
    if not console.is_terminal:
        yield StepLines(console, units)
        return
    with _bars(console) as progress:
        yield StepBars(console, units, progress, cells)
