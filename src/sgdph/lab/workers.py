"""Several processes on this machine that work through one list of runs.

A parent starts them, each with a log of its own, hands each its order over standard input and keeps
that pipe open. A worker that finds it closed stops like at Ctrl-C: so none outlives its parent,
however that ended. The claims of :mod:`sgdph.lab.sweep` do the rest.
"""

from __future__ import annotations

import _thread
import json
import os
import signal
import subprocess
import sys
import threading
from collections.abc import Callable, Sequence
from contextlib import suppress
from dataclasses import dataclass, replace
from pathlib import Path

import torch
from rich.console import Console

from sgdph.lab.config import LabError, from_yaml, to_yaml
from sgdph.lab.exit_codes import INTERRUPTED, OK
from sgdph.lab.plan import PlannedRun
from sgdph.lab.progress import LineReporter, reporter_for, say
from sgdph.lab.sweep import LOGS, Load, Progress, Work, forget_failures, progress_of
from sgdph.lab.watch import watching

# How long a worker that was told to stop may take, in seconds.
GRACE = 60.0
LOOK_EVERY = 1.0
COMMAND = (sys.executable, "-m", "sgdph.lab.workers")


@dataclass(frozen=True)
class Crew:
    """The workers of one directory.

    Attributes:
        directory: Where the runs lie.
        processes: The workers.
        logs: Their logs.
    """

    directory: Path
    processes: tuple[subprocess.Popen[bytes], ...]
    logs: tuple[Path, ...]

    def wait(self, look: Callable[[], None]) -> None:
        """Wait for all to end, looking at the runs every second.

        Args:
            look: Called every second, and once at the end.

        Raises:
            KeyboardInterrupt: When interrupted; the workers have then stopped.
        """
        try:
            for process in self.processes:
                while True:
                    look()
                    try:
                        process.wait(LOOK_EVERY)
                        break
                    except subprocess.TimeoutExpired:
                        continue
        finally:
            self.stop()
        look()

    def stop(self) -> None:
        """Have every worker stop after the step it is at, and wait until it has."""
        for process in self.processes:
            assert process.stdin is not None
            with suppress(BrokenPipeError):
                process.stdin.close()
        for process in self.processes:
            _wait_or_kill(process)

    def complaints(self) -> list[str]:
        """Say of each worker that ended otherwise than by having nothing left to do."""
        return [
            f"worker {number} ended with code {process.returncode}: see {log}"
            for number, (process, log) in enumerate(zip(self.processes, self.logs, strict=True), 1)
            if process.returncode != 0
        ]


def _wait_or_kill(process: subprocess.Popen[bytes]) -> None:
    try:
        process.wait(GRACE)
    except subprocess.TimeoutExpired:
        process.kill()
        process.wait()


def check_workers(count: int, flag: str) -> None:
    """Raise LabError unless a number of workers, asked for with a flag, is one."""
    if count < 1:
        raise LabError(f"{flag} must be at least 1; got {count}")


def train_all(
    directory: Path,
    runs: Sequence[PlannedRun],
    load: Load,
    console: Console,
    *,
    workers: int = 1,
) -> Progress:
    """Train runs to their ends, in this process or in several.

    Args:
        directory: Where the runs lie, each under its name.
        runs: The runs.
        load: Loads a run's data set, where this process trains.
        console: Where to tell of the progress.
        workers: How many processes train.

    Returns:
        How far the runs are now.

    Raises:
        KeyboardInterrupt: When interrupted; nothing is training any more then.
    """
    forget_failures(directory, runs)
    if workers == 1:
        with reporter_for(console, len(runs)) as reporter:
            Work(directory, runs, load, reporter).do()
        return progress_of(directory, runs)
    with watching(directory, runs, console) as watch:
        watch.look()
        if watch.left:
            crew = start_crew(directory, runs, min(workers, len(watch.left)))
            say(console, f"{len(crew.processes)} workers; their logs lie in {directory / LOGS}")
            crew.wait(watch.look)
            for complaint in crew.complaints():
                say(console, complaint)
    return progress_of(directory, runs)


def start_crew(directory: Path, runs: Sequence[PlannedRun], count: int) -> Crew:
    """Start workers.

    Args:
        directory: Where the runs lie.
        runs: The runs. Where their threads are left open, each worker takes its share of the cores.
        count: How many workers.
    """
    logs = directory / LOGS
    logs.mkdir(parents=True, exist_ok=True)
    shared = share_cores(runs, count)
    order = {
        "directory": str(directory),
        "runs": {planned.name: to_yaml(planned.config) for planned in shared},
        # Runs say by which command they were made.
        "argv": sys.argv,
    }
    processes, paths = [], []
    for number in range(1, count + 1):
        path = logs / f"worker-{number}.log"
        with path.open("ab") as log:
            process = subprocess.Popen(
                COMMAND,
                stdin=subprocess.PIPE,
                stdout=log,
                stderr=subprocess.STDOUT,
                env={**os.environ, **visible_device(number - 1)},
                # Ctrl-C goes to the parent alone, which then stops each once.
                start_new_session=True,
            )
        assert process.stdin is not None
        with suppress(BrokenPipeError):
            process.stdin.write(json.dumps(order).encode() + b"\n")
            process.stdin.flush()
        processes.append(process)
        paths.append(path)
    return Crew(directory, tuple(processes), tuple(paths))


def share_cores(runs: Sequence[PlannedRun], count: int) -> list[PlannedRun]:
    """Give each of so many workers its share of the cores, where runs do not say their threads."""
    threads = threads_each(count)
    return [
        planned
        if planned.config.threads is not None
        else replace(planned, config=replace(planned.config, threads=threads))
        for planned in runs
    ]


def threads_each(count: int) -> int:
    """Return how many CPU threads each of so many processes gets."""
    return max(1, available_cores() // count)


def available_cores() -> int:
    """Count the cores that this process may use."""
    if hasattr(os, "sched_getaffinity"):
        return len(os.sched_getaffinity(0))
    return os.cpu_count() or 1


def visible_device(index: int) -> dict[str, str]:
    """Return the environment that gives the worker of this index, from 0, one of the GPUs."""
    if not torch.cuda.is_available():
        return {}
    named = os.environ.get("CUDA_VISIBLE_DEVICES")
    devices = named.split(",") if named else [str(k) for k in range(torch.cuda.device_count())]
    return {"CUDA_VISIBLE_DEVICES": devices[index % len(devices)].strip()}


def watch_parent() -> None:
    """Interrupt this process when its standard input ends."""

    def watch() -> None:
        # Not through sys.stdin, whose lock would be in the way when the process ends.
        while os.read(0, 1024):
            pass
        _thread.interrupt_main()

    threading.Thread(target=watch, daemon=True).start()


def read_order() -> dict[str, object]:
    """Read the parent's line; nothing follows it."""
    line = b""
    while not line.endswith(b"\n"):
        piece = os.read(0, 65536)
        if not piece:
            raise SystemExit("the parent ended before it gave an order")
        line += piece
    order: dict[str, object] = json.loads(line)
    return order


def main() -> int:
    """Work through the order that comes over standard input.

    Returns:
        0 when nothing is left to do, 130 when stopped.
    """
    # A program started in the background of a script ignores Ctrl-C, and so would its children.
    signal.signal(signal.SIGINT, signal.default_int_handler)
    order = read_order()
    sys.argv = list(order["argv"])  # type: ignore[call-overload]
    runs = [
        PlannedRun(name, from_yaml(text))
        for name, text in order["runs"].items()  # type: ignore[attr-defined]
    ]
    console = Console(width=140)
    # Not at the top: the commands start workers.
    from sgdph.lab.commands import load_for

    work = Work(Path(str(order["directory"])), runs, load_for, LineReporter(console))
    try:
        watch_parent()
        work.do()
    except KeyboardInterrupt:
        console.print("stopped")
        return INTERRUPTED
    return OK


if __name__ == "__main__":
    sys.exit(main())
