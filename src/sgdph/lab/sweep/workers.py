"""Several processes on this machine that work through one list of runs.

The claims of :mod:`sgdph.lab.sweep.sweep` keep them out of each other's way.
"""

from __future__ import annotations

import sys
from collections.abc import Iterable, Sequence
from dataclasses import replace
from pathlib import Path

from rich.console import Console

from sgdph.lab.config.run_config import RunConfig
from sgdph.lab.config.yaml import from_yaml, to_yaml
from sgdph.lab.errors import FAILED, INTERRUPTED, OK
from sgdph.lab.progress import LineReporter, reporter_for, say, screen
from sgdph.lab.run.directory import LOGS, RunDirectory
from sgdph.lab.run.start import load_data
from sgdph.lab.sweep.cores import default_jobs, default_threads
from sgdph.lab.sweep.crew import Crew, read_order, threads_each, watch_parent
from sgdph.lab.sweep.plan import PlannedRun
from sgdph.lab.sweep.sweep import Load, Progress, Work, failure_file, forget_failures, progress_of
from sgdph.lab.sweep.watch import watching


def train_all(
    directory: Path,
    runs: Sequence[PlannedRun],
    load: Load,
    console: Console,
    *,
    workers: int | None = 1,
) -> Progress:
    """Train runs to their ends, in this process or in several.

    A run that does not say its threads gets them here (:mod:`sgdph.lab.sweep.cores`).

    Args:
        directory: Where the runs lie, each under its name.
        runs: The runs.
        load: Loads a run's data set, where this process trains.
        console: Where to tell of the progress.
        workers: How many processes train; ``None`` for as many as the cores have room for.

    Returns:
        How far the runs are now.

    Raises:
        KeyboardInterrupt: When interrupted; nothing is training any more then.
    """
    forget_failures(directory, runs)
    runs, workers = arranged(directory, runs, workers)
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


def report_failures(console: Console, directory: Path, progress: Progress) -> int:
    """Say which runs are not at their end, and return the exit code."""
    for name, reason in progress.failed.items():
        say(console, f"failed: {name}: {reason} (see {failure_file(directory, name)})")
    if progress.left:
        say(console, f"not at their end: {', '.join(progress.left)}")
    return FAILED if progress.failed or progress.left else OK


def start_crew(directory: Path, runs: Sequence[PlannedRun], count: int) -> Crew:
    """Start workers.

    Args:
        directory: Where the runs lie.
        runs: The runs.
        count: How many workers.
    """
    logs = directory / LOGS
    logs.mkdir(parents=True, exist_ok=True)
    order = {
        "directory": str(directory),
        "runs": {planned.name: to_yaml(planned.config) for planned in runs},
    }
    paths = [logs / f"worker-{number}.log" for number in range(1, count + 1)]
    configs = [planned.config for planned in runs]
    return Crew.start("sgdph.lab.sweep.workers", order, paths, split_gpus=fit_one_gpu(configs))


def fit_one_gpu(configs: Iterable[RunConfig]) -> bool:
    """Whether each run may see one of the GPUs alone: it needs no more, and names none."""
    return all(config.processes == 1 and ":" not in config.device for config in configs)


def arranged(
    directory: Path, runs: Sequence[PlannedRun], workers: int | None
) -> tuple[list[PlannedRun], int]:
    """Decide how many threads each run takes, where it does not say, and how many processes train.

    Args:
        directory: Where the runs lie.
        runs: The runs.
        workers: How many processes were asked for; ``None`` for as many as the cores have room for.

    Returns:
        The runs with their threads, and the number of processes.
    """
    cores = threads_each(workers or 1)
    arranged = []
    for planned in as_begun(directory, runs):
        # One that was begun with torch's choice of threads goes on with it.
        if not RunDirectory(directory / planned.name).exists() and planned.config.threads is None:
            planned = with_threads(planned, default_threads(planned.config, cores))
        arranged.append(planned)
    if workers is None:
        left = progress_of(directory, runs).left
        workers = default_jobs(arranged, [each for each in arranged if each.name in left])
    if workers > 1:
        arranged = share_cores(arranged, workers)
    return arranged, workers


def as_begun(directory: Path, runs: Sequence[PlannedRun]) -> list[PlannedRun]:
    """Let runs that lie there go on with the threads that they began with, if none are asked for.

    With another number sums are added in another order, and another run would come of it.
    """
    return [
        with_threads(planned, RunDirectory(directory / planned.name).read_config().threads)
        if RunDirectory(directory / planned.name).exists()
        else planned
        for planned in runs
    ]


def share_cores(runs: Sequence[PlannedRun], count: int) -> list[PlannedRun]:
    """Give each of so many workers its share of the cores, where runs do not say their threads.

    Args:
        runs: The runs.
        count: How many workers were asked for; with fewer runs left it is no fewer, so that a sweep
            that is carried on trains as the one that never stopped.
    """
    return [with_threads(planned, threads_each(count)) for planned in runs]


def with_threads(planned: PlannedRun, threads: int | None) -> PlannedRun:
    """Fill in the threads where a run does not say them."""
    if planned.config.threads is not None:
        return planned
    return replace(planned, config=replace(planned.config, threads=threads))


def main() -> int:
    """Work through the order that comes over standard input.

    Returns:
        0 when nothing is left to do, 130 when stopped.
    """
    order = read_order()
    runs = [PlannedRun(name, from_yaml(text)) for name, text in order["runs"].items()]
    console = screen(140)
    work = Work(Path(order["directory"]), runs, load_data, LineReporter(console))
    try:
        watch_parent()
        work.do()
    except KeyboardInterrupt:
        console.print("stopped")
        return INTERRUPTED
    return OK


if __name__ == "__main__":
    sys.exit(main())
