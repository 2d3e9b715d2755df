"""Several processes of this machine that work on one tuning, and what is seen of them."""

from __future__ import annotations

import json
import signal
import subprocess
import sys
from collections.abc import Iterator, Mapping, Sequence
from contextlib import ExitStack, contextmanager
from typing import Any

from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeElapsedColumn

from sgdph.lab.config import LabError
from sgdph.lab.progress import say
from sgdph.lab.runs import OVER, RunDirectory
from sgdph.lab.tune.record import WORKER_LOG, TuneDirectory, Tuning
from sgdph.lab.tune.trial import ending

# Seconds between two looks at what the processes have done.
LOOK = 0.5
# Seconds that an interrupted process is given to record that it was.
GRACE = 20
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
    with ExitStack() as logs, board(console, tuning) as ended:
        seen = {run.path for run in directory.inner_runs() if run.status() in OVER}
        for path in seen:
            ended(RunDirectory(path), quiet=True)
        processes = []
        for number in range(1, jobs + 1):
            log = logs.enter_context((directory.path / WORKER_LOG.format(number)).open("ab"))
            processes.append(
                subprocess.Popen(
                    worker_command(directory, place), stdout=log, stderr=subprocess.STDOUT
                )
            )
        try:
            while any(process.poll() is None for process in processes):
                for process in processes:
                    if not ends_within(process, LOOK):
                        break
                for run in directory.inner_runs():
                    if run.path not in seen and run.status() in OVER:
                        seen.add(run.path)
                        ended(run)
        except BaseException:
            stop(processes)
            raise
    check_ends(directory, [process.returncode for process in processes])


def worker_command(directory: TuneDirectory, place: Mapping[str, Any]) -> list[str]:
    """Write the command of one process."""
    module = "sgdph.lab.tune.worker"
    return [sys.executable, "-m", module, str(directory.path.resolve()), json.dumps(dict(place))]


def stop(processes: Sequence[subprocess.Popen[bytes]]) -> None:
    """Wait for processes that Ctrl-C has reached as well; interrupt those that it has not."""
    for process in processes:
        if not ends_within(process, GRACE / 4):
            process.send_signal(signal.SIGINT)
    for process in processes:
        if not ends_within(process, GRACE):
            process.kill()
            process.wait()


def ends_within(process: subprocess.Popen[bytes], seconds: float) -> bool:
    """Wait for a process, so long at most, and tell whether it has ended."""
    try:
        process.wait(seconds)
    except subprocess.TimeoutExpired:
        return False
    return True


def check_ends(directory: TuneDirectory, codes: Sequence[int]) -> None:
    """Raise LabError, with the last lines that it wrote, if a process failed."""
    for number, code in enumerate(codes, 1):
        if code:
            log = directory.path / WORKER_LOG.format(number)
            lines = log.read_text(encoding="utf-8", errors="replace").splitlines()[-LAST_WORDS:]
            raise LabError(
                f"process {number} of {len(codes)} ended with code {code}; its last lines, of "
                f"{log}:\n  " + "\n  ".join(lines) + "\nwhat was finished is kept, and the same "
                "command carries on"
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
