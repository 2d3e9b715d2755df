"""What ``sgdph tune`` does with its options, and what it says."""

from __future__ import annotations

import uuid
from collections.abc import Iterator, Mapping, Sequence
from functools import partial
from typing import Any
from urllib.parse import urlsplit

from rich.console import Console

from sgdph.lab.config.run_config import PLACE_FIELDS
from sgdph.lab.errors import INTERRUPTED, OK, LabError
from sgdph.lab.options.options import DEFAULT_OPTIMIZERS, parse_optimizers
from sgdph.lab.options.resolution import DEFAULTS
from sgdph.lab.output import printable, shell_word
from sgdph.lab.progress import say
from sgdph.lab.run.directory import OVER, RunDirectory
from sgdph.lab.run.environment import describe_environment
from sgdph.lab.run.out import check_contradiction, default_out
from sgdph.lab.run.start import load_data, pick_device, prepare
from sgdph.lab.sweep.cores import check_jobs, default_threads, threads_each
from sgdph.lab.sweep.engine import Expected, Place, compute
from sgdph.lab.sweep.state import failure_file, failures, forget_failures
from sgdph.lab.sweep.worker import Task
from sgdph.lab.tune.options import TuneOptions
from sgdph.lab.tune.outcome import Search
from sgdph.lab.tune.page import to_rich, warnings, write_outcome
from sgdph.lab.tune.record import (
    BEST,
    BUDGET,
    DEFAULT_PRUNERS,
    PAGE,
    SEARCH_DEFAULTS,
    SENSITIVITY,
    TRIALS,
    TUNING,
    TuneDirectory,
    Tuning,
)
from sgdph.lab.tune.space import Range, complete, parse_space
from sgdph.lab.tune.study import JOURNAL_FILE, SQLITE, Studies, open_storage
from sgdph.lab.tune.trial import train_next_trial

# Of the training images, the part that is held out where no number was given.
HELD_OUT = 5


def tune(options: TuneOptions, console: Console) -> int:
    """Search settings for every optimizer, from where it stands, and report.

    Returns:
        The exit code: 0 when there was nothing left to take, 130 when interrupted.

    Raises:
        LabError: If the options cannot be followed.
    """
    given = options.given()
    directory = TuneDirectory(options.out or default_out(given, "tune"))
    check_options(directory, options)
    place = {name: value for name, value in given.items() if name in PLACE_FIELDS}
    jobs = options.jobs or 1
    try:
        if options.overwrite:
            directory.check_clearable()
        tuning = requested(directory, options, given)
        first = tuning.config(tuning.optimizers[0], place=place)
        threads = first.threads or default_threads(first, threads_each(jobs))
        if threads is not None or jobs > 1:
            place["threads"] = threads or threads_each(jobs)
        data = load_data(tuning.config(first.optimizer, place=place), download=options.download)
        for optimizer in tuning.optimizers:
            prepare(tuning.config(optimizer, place=place), data)
        tuning = begin(directory, options, given, tuning)
        train_trials(
            directory,
            place,
            None if options.ray and not options.jobs else jobs,
            options.ray,
            console,
        )
    except KeyboardInterrupt:
        return report_interruption(directory, console)
    device = pick_device(tuning.config(tuning.optimizers[0], place=place).device)
    searches = write_outcome(directory, directory.read(), describe_environment(device))
    show(directory, directory.read(), searches, console)
    return OK


def train_trials(
    directory: TuneDirectory,
    place: Mapping[str, Any],
    jobs: int | None,
    ray: str | None,
    console: Console,
) -> None:
    """Have trials taken and trained until there is none to take.

    Args:
        directory: The tuning's directory, which holds what it is.
        place: Fields of the runs' configuration that hold on this machine.
        jobs: How many at once; with Ray ``None`` for as many as it has room for.
        ray: Ray's address; ``None`` trains on this machine.
        console: Where to tell of the progress.

    Raises:
        LabError: If a trial failed, or Ray cannot be had.
        KeyboardInterrupt: When interrupted.
    """
    # Other processes, or machines, may not be where this one is.
    path = directory.path.resolve()
    forget_failures(path, failures(path))
    tuning, over = directory.read(), {run.path for run in directory.inner_runs() if is_over(run)}
    epochs = tuning.config(tuning.optimizers[0]).epochs
    left = tuning.budget - len(over)
    named = ":" in str(place.get("device", ""))
    if jobs is not None:
        jobs = max(1, min(jobs, left))

    def find() -> dict[str, tuple[RunDirectory, int]]:
        runs = [run for run in directory.inner_runs() if run.path not in over]
        return {f"{run.path.parent.name}/{run.path.name}": (run, epochs) for run in runs}

    compute(
        path,
        tasks(directory, place, len(over)),
        Expected(find, left, left * epochs),
        Place(jobs, ray, split_gpus=not named),
        console,
    )
    for name, reason in failures(path).items():
        raise LabError(
            f"{name} failed: {reason} (see {failure_file(path, name)}); what was finished is kept, "
            "and the same command carries on"
        )
    running = Studies(directory).running()
    if running:
        say(console, f"{running} trials are in the hands of other processes, which go on.")


def is_over(run: RunDirectory) -> bool:
    """Whether nothing is left to do for a trial's run."""
    return run.status() in OVER


def tasks(directory: TuneDirectory, place: Mapping[str, Any], over: int) -> Iterator[Task]:
    """Yield a task for each trial that may be left, until one fails.

    Args:
        directory: The tuning's directory.
        place: Fields of the runs' configuration that hold on this machine.
        over: How many trials were over at the beginning.
    """
    begun = 0
    # Read again each time: the budget may have been raised meanwhile.
    while begun < directory.read().budget - over and not failures(directory.path):
        begun += 1
        yield Task(
            f"task-{begun}",
            partial(train_next_trial, directory.path.resolve(), place),
            cores=place.get("threads") or 1,
            gpus=0 if place.get("device") == "cpu" else 1,
        )


def check_options(directory: TuneDirectory, options: TuneOptions) -> None:
    """Raise LabError for options that cannot be followed, whatever lies in the directory."""
    check_contradiction(options)
    if options.jobs is not None:
        check_jobs(options.jobs, "--jobs")
    storage = options.storage or SQLITE
    if storage not in (SQLITE, JOURNAL_FILE) and "://" not in storage:
        raise LabError(f"--storage must be sqlite, journal or a database's URL; got {storage!r}")
    if urlsplit(storage).password:
        raise LabError(
            "--storage holds a password, which would be written into files; leave it out, and let "
            "the database's client find it (for PostgreSQL, PGPASSWORD or ~/.pgpass)"
        )
    if directory.path.exists() and not directory.path.is_dir():
        raise LabError(f"{directory.path} is a file; --out must name a directory")


def requested(directory: TuneDirectory, options: TuneOptions, given: Mapping[str, Any]) -> Tuning:
    """Return what is asked for: what lies there with what is added, or a new tuning.

    Raises:
        LabError: If the options disagree with what lies there, or it is no tuning.
    """
    optimizers = parse_optimizers(options.optimizers) if options.optimizers is not None else ()
    if options.overwrite or not (options.resume or directory.exists()):
        return new(directory, options, given, optimizers or DEFAULT_OPTIMIZERS)
    saved = directory.read()
    known = tuple(dict.fromkeys((*saved.optimizers, *optimizers)))
    return saved.joined(optimizers, ranges(options, known), options.search(), given)


def ranges(options: TuneOptions, optimizers: Sequence[str]) -> dict[str, dict[str, Range]]:
    """Read the ranges that were named."""
    return parse_space(options.space, optimizers) if options.space is not None else {}


def new(
    directory: TuneDirectory,
    options: TuneOptions,
    given: Mapping[str, Any],
    optimizers: Sequence[str],
) -> Tuning:
    """Make a tuning of the options."""
    named = ranges(options, optimizers)
    search = {**SEARCH_DEFAULTS, **options.search()}
    search.setdefault("pruner", DEFAULT_PRUNERS[search["sampler"]])
    spaces = {each: complete(each, named.get(each, {})) for each in optimizers}
    values = {"seed": DEFAULTS["seed"], **given}
    name = printable(f"{directory.path.resolve().name}-{uuid.uuid4().hex[:8]}")
    tuning = Tuning(name, spaces, **search, given=values)
    if "validation_size" in values:
        return tuning
    whole = load_data(tuning.config(optimizers[0]), download=options.download)
    held_out = max(1, whole.train_count // HELD_OUT)
    return Tuning(name, spaces, **search, given={**values, "validation_size": held_out})


def begin(
    directory: TuneDirectory, options: TuneOptions, given: Mapping[str, Any], asked: Tuning
) -> Tuning:
    """Record what is asked for, unless another process just has, and return what then holds."""
    with directory.lock():
        if options.overwrite:
            directory.clear()
        if (directory.path / TUNING).is_file():
            # Another process may have begun it, or added to it, since it was looked at.
            asked = requested(directory, options, given)
        if asked.storage not in (SQLITE, JOURNAL_FILE):
            # Before anything is recorded of a database that cannot be had.
            open_storage(asked.storage, directory.path)
        directory.write(asked)
    return asked


def report_interruption(directory: TuneDirectory, console: Console) -> int:
    """Say how to carry on, and return the exit code of an interrupted command."""
    if not directory.exists():
        say(console, "Interrupted before anything was recorded.")
        return INTERRUPTED
    place = directory.path.resolve()
    say(console, f"Interrupted. What was finished lies in {place}; carry on with:")
    say(console, f"  sgdph tune --out {shell_word(place)}")
    return INTERRUPTED


def show(
    directory: TuneDirectory, tuning: Tuning, searches: Sequence[Search], console: Console
) -> None:
    """Print the table, what speaks against it, and where everything lies."""
    console.print(to_rich(searches))
    for line in warnings(tuning, searches):
        say(console, line)
    files = {
        "settings": BEST,
        "page": PAGE,
        "trials": TRIALS,
        "sensitivity": SENSITIVITY,
        "budget": BUDGET,
    }
    for title, name in files.items():
        if (directory.path / name).exists():
            say(console, f"{title:<13}{(directory.path / name).resolve()}")
    say(console, f"{'runs':<13}{directory.path.resolve()}")
