"""What a run says while it trains: bars on a terminal, a line per epoch elsewhere."""

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
    """Receives a run's progress; the trainer knows no more of the screen than this."""

    def run_started(self, name: str, *, epochs: int, done: int, batches: int) -> None:
        """A run begins or carries on after ``done`` of its epochs."""

    def batch_finished(self) -> None:
        """One optimizer step is done."""

    def epoch_finished(self, metrics: Mapping[str, Any], epochs: int) -> None:
        """One epoch is done; ``metrics`` is its metrics line."""

    def run_finished(self, name: str, message: str) -> None:
        """The run ended; ``message`` says how."""


class Screen(Console):
    """A console that shows what its encoding lacks in ASCII, so that tables stay aligned."""

    def render_str(self, text: str, **options: Any) -> Text:
        """Make a text to show."""
        return super().render_str(printable(text, self.encoding), **options)


def screen(width: int | None = None) -> Console:
    """Make the console that a command writes to.

    Args:
        width: Columns; ``None`` for the terminal's.
    """
    return Screen(width=width)


def say(console: Console, text: str) -> None:
    """Print a text as it is: no line breaks inside paths, nothing taken for markup."""
    console.print(text, soft_wrap=True, highlight=False, markup=False)


def say_files(console: Console, directory: Path, files: Mapping[str, str]) -> None:
    """Say where the files of a directory lie, as far as they are there.

    Args:
        console: Where it is said.
        directory: The directory.
        files: What each is, and its name.
    """
    width = max(map(len, files)) + 1
    for title, name in files.items():
        if (directory / name).exists():
            say(console, f"{title:<{width}}{(directory / name).resolve()}")


def evaluated(metrics: Mapping[str, Any]) -> str:
    """Tell which images an epoch's line was evaluated on: ``"test"`` or ``"validation"``."""
    return "validation" if "validation_loss" in metrics else "test"


def epoch_line(metrics: Mapping[str, Any], epochs: int) -> str:
    """Put an epoch's metrics into one line."""
    split = evaluated(metrics)
    newton = f", Newton {metrics['newton_lr']:.2g}" if "newton_lr" in metrics else ""
    return (
        f"epoch {metrics['epoch']:>{len(str(epochs))}}/{epochs}  "
        f"train loss {metrics['train_loss']:.4f}  accuracy {metrics['train_accuracy']:6.2%}  |  "
        f"{split} loss {metrics[f'{split}_loss']:.4f}  "
        f"accuracy {metrics[f'{split}_accuracy']:6.2%}  |  "
        f"lr {metrics['lr']:.2g}{newton}  {metrics['seconds']:.1f} s"
    )


class Lines:
    """Says what it has to say in lines."""

    def __init__(self, console: Console) -> None:
        self.console = console

    def _say(self, text: str) -> None:
        say(self.console, text)


class LineReporter(Lines):
    """A line per epoch, for logs and pipes."""

    def run_started(self, name: str, *, epochs: int, done: int, batches: int) -> None:
        """Say which run begins."""
        where = f", carrying on after epoch {done}" if done else ""
        self._say(f"{name}: {epochs} epoch{'s' * (epochs != 1)} of {batches} steps{where}")

    def batch_finished(self) -> None:
        """Say nothing."""

    def epoch_finished(self, metrics: Mapping[str, Any], epochs: int) -> None:
        """Print the epoch's line."""
        self._say(epoch_line(metrics, epochs))

    def run_finished(self, name: str, message: str) -> None:
        """Say how the run ended."""
        self._say(f"{name}: {message}")


class BarReporter(LineReporter):
    """Bars for runs (where there are several), epochs and batches; finished runs leave a line."""

    def __init__(self, console: Console, progress: Progress, runs: int) -> None:
        super().__init__(console)
        self.progress = progress
        self.runs = progress.add_task("runs", total=runs, visible=runs > 1, note="")
        self.epochs = progress.add_task("epochs", total=None, note="")
        self.batches = progress.add_task("batches", total=None, note="")

    def run_started(self, name: str, *, epochs: int, done: int, batches: int) -> None:
        """Set the bars for a run."""
        self.progress.reset(self.epochs, total=epochs, completed=done)
        self.progress.update(self.epochs, description=name, note="")
        self.progress.reset(self.batches, total=batches)

    def batch_finished(self) -> None:
        """Move the batch bar."""
        self.progress.advance(self.batches)

    def epoch_finished(self, metrics: Mapping[str, Any], epochs: int) -> None:
        """Move the epoch bar and show the latest figures beside it."""
        split = evaluated(metrics)
        accuracy = metrics[f"{split}_accuracy"]
        note = f"loss {metrics['train_loss']:.4f}  {split} {accuracy:.2%}"
        self.progress.update(self.epochs, advance=1, note=note)
        self.progress.reset(self.batches)

    def run_finished(self, name: str, message: str) -> None:
        """Move the run bar and leave a line above the bars."""
        self.progress.advance(self.runs)
        super().run_finished(name, message)


def _bars(console: Console, *more: ProgressColumn) -> Progress:
    columns = (
        TextColumn("{task.description}"),
        BarColumn(),
        MofNCompleteColumn(),
        TimeRemainingColumn(),
    )
    # Drawn four times a second: each takes milliseconds from the thread that launches a GPU's work.
    return Progress(*columns, *more, console=console, transient=True, refresh_per_second=4)


@contextmanager
def reporter_for(console: Console, runs: int = 1) -> Iterator[Reporter]:
    """Yield bars where the console is a terminal, lines where it is not.

    Args:
        console: Where to write.
        runs: How many runs are to come.
    """
    if not console.is_terminal:
        yield LineReporter(console)
        return
    with _bars(console, TextColumn("{task.fields[note]}")) as progress:
        yield BarReporter(console, progress, runs)


class StepReporter(Protocol):
    """Receives the progress of a measurement of steps."""

    def cell_started(self, name: str, steps: int) -> None:
        """A cell of so many steps begins."""

    def step_finished(self) -> None:
        """One of them is done."""

    def cell_finished(self, name: str, message: str) -> None:
        """The cell is done, or was before; ``message`` says what came out."""


class StepLines(Lines):
    """A line where a cell begins and where it ends; a cell consists of so many ``units``."""

    def __init__(self, console: Console, units: str) -> None:
        super().__init__(console)
        self.units = units

    def cell_started(self, name: str, steps: int) -> None:
        """Say which cell begins."""
        self._say(f"{name}: {steps} {self.units}")

    def step_finished(self) -> None:
        """Say nothing."""

    def cell_finished(self, name: str, message: str) -> None:
        """Say what came out."""
        self._say(f"{name}: {message}")


class StepBars(StepLines):
    """A bar for cells (where there are several) and one for the steps of a cell."""

    def __init__(self, console: Console, units: str, progress: Progress, cells: int) -> None:
        super().__init__(console, units)
        self.progress = progress
        self.cells = progress.add_task("cells", total=cells, visible=cells > 1)
        self.steps = progress.add_task(units, total=None)

    def cell_started(self, name: str, steps: int) -> None:
        """Set the bar for a cell."""
        self.progress.reset(self.steps, total=steps)
        self.progress.update(self.steps, description=name)

    def step_finished(self) -> None:
        """Move the bar."""
        self.progress.advance(self.steps)

    def cell_finished(self, name: str, message: str) -> None:
        """Move the bar of cells, and leave a line above."""
        self.progress.advance(self.cells)
        super().cell_finished(name, message)


@contextmanager
def step_reporter_for(console: Console, cells: int, units: str = "turns") -> Iterator[StepReporter]:
    """Yield bars where the console is a terminal, lines where it is not.

    Args:
        console: Where to write.
        cells: How many cells are to come.
        units: What a cell consists of.
    """
    if not console.is_terminal:
        yield StepLines(console, units)
        return
    with _bars(console) as progress:
        yield StepBars(console, units, progress, cells)
