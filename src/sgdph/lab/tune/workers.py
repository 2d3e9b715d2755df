"""Several processes of this machine that work on one tuning, and what is seen of them."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from typing import Any

from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeElapsedColumn

from sgdph.lab.errors import LabError
from sgdph.lab.progress import say
from sgdph.lab.run.directory import OVER, RunDirectory
from sgdph.lab.sweep.crew import Crew
from sgdph.lab.tune.record import WORKER_LOG, TuneDirectory, Tuning
from sgdph.lab.tune.trial import ending

WORKER = "sgdph.lab.tune.worker"
LAST_WORDS = 5


def run_workers(
    directory: TuneDirectory, tuning: Tuning, jobs: int, place: Mapping[str, Any], console: Console
) -> None:
    """Let so many processes work on a tuning until there is nothing left to take.

    Args:
        directory: The tuning's directory, which holds what it is.
        tuning: What it is.
        jobs: How many processes.
        place: Fields of the runs' configuration that hold on this machine.
        console: What is told of the progress.

    Raises:
        LabError: If one of them failed.
        KeyboardInterrupt: When interrupted, after they have recorded it.
    """
    with board(console, tuning) as ended:
        seen = set()
        for run in directory.inner_runs():
            if run.status() in OVER:
                seen.add(run.path)
                ended(run, quiet=True)

        def look() -> None:
            for run in directory.inner_runs():
                if run.path not in seen and run.status() in OVER:
                    seen.add(run.path)
                    ended(run)

        order = {"directory": str(directory.path.resolve()), "place": dict(place)}
        logs = [directory.path / WORKER_LOG.format(number) for number in range(1, jobs + 1)]
        named = ":" in str(place.get("device", ""))
        crew = Crew.start(WORKER, order, logs, split_gpus=not named)
        crew.wait(look)
    check_ends(crew)


def check_ends(crew: Crew) -> None:
    """Raise LabError, with the last lines that it wrote, if a process failed."""
    for number, (process, log) in enumerate(zip(crew.processes, crew.logs, strict=True), 1):
        if process.returncode:
            lines = log.read_text(encoding="utf-8", errors="replace").splitlines()[-LAST_WORDS:]
            raise LabError(
                f"process {number} of {len(crew.logs)} ended with code {process.returncode}; its "
                f"last lines, of {log}:\n  " + "\n  ".join(lines) + "\nwhat was finished is kept, "
                "and the same command carries on"
            )


@contextmanager
def board(console: Console, tuning: Tuning) -> Iterator[Any]:
    """Show a bar per optimizer on a terminal, and a line per trial that ends.

    Yields:
        What to call with the run directory of a trial that has ended; ``quiet`` leaves no line.
    """
    columns = (TextColumn("{task.description}"), BarColumn(), MofNCompleteColumn())
    progress = Progress(
        *columns,
        TimeElapsedColumn(),
        console=console,
        transient=True,
        disable=not console.is_terminal,
    )
    with progress:
        bars = {name: progress.add_task(name, total=tuning.trials) for name in tuning.optimizers}

        def ended(run: RunDirectory, *, quiet: bool = False) -> None:
            optimizer = run.path.parent.name
            if optimizer in bars:
                progress.advance(bars[optimizer])
            if not quiet:
                say(console, f"{optimizer} {run.path.name}: {ending(run.read_summary())}")

        yield ended
