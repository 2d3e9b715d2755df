"""The command ``sgdph tune``: what it does with its options, and what it prints."""

from __future__ import annotations

import uuid
from collections.abc import Mapping, Sequence
from typing import Any
from urllib.parse import urlsplit

from rich.console import Console

from sgdph.lab.config.run_config import PLACE_FIELDS
from sgdph.lab.errors import OK, LabError
from sgdph.lab.options.defaults import DEFAULTS
from sgdph.lab.options.options import DEFAULT_OPTIMIZERS, parse_optimizers
from sgdph.lab.output import printable
from sgdph.lab.progress import say, say_files
from sgdph.lab.reports.folder import PAGE, TABLE, TEXT
from sgdph.lab.run.environment import describe_environment
from sgdph.lab.run.out import check_contradiction, default_out, report_interruption
from sgdph.lab.run.start import load_data, pick_device, prepare
from sgdph.lab.sweep.cores import default_threads, threads_each
from sgdph.lab.tune.options import TuneOptions
from sgdph.lab.tune.outcome import Search
from sgdph.lab.tune.page import warnings, write_outcome
from sgdph.lab.tune.record import (
    BEST,
    BUDGET,
    DEFAULT_PRUNERS,
    SEARCH_DEFAULTS,
    SENSITIVITY,
    TRIALS,
    TUNING,
    TuneDirectory,
    Tuning,
)
from sgdph.lab.tune.space import Range, complete, parse_space
from sgdph.lab.tune.study import JOURNAL_FILE, SQLITE, open_storage
from sgdph.lab.tune.tables import best_table
from sgdph.lab.tune.trials import train_trials

# By default, one of this many training images is held out.
HELD_OUT = 5


def tune(options: TuneOptions, console: Console) -> int:
    """Search settings for every optimizer, continuing an existing search, and report.

    Returns:
        The exit code: 0 if no trial is left to take, 130 if interrupted.

    Raises:
        LabError: If the options cannot be followed, or a trial fails.
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
        return report_interruption(console, "tune", directory.path, directory.exists())
    device = pick_device(tuning.config(tuning.optimizers[0], place=place).device)
    searches = write_outcome(directory, directory.read(), describe_environment(device))
    show(directory, directory.read(), searches, console)
    return OK


def check_options(directory: TuneDirectory, options: TuneOptions) -> None:
    """Raise LabError for options that cannot be followed, whatever the directory holds."""
    check_contradiction(options)
    storage = options.storage or SQLITE
    if storage not in (SQLITE, JOURNAL_FILE) and "://" not in storage:
        raise LabError(f"--storage must be sqlite, journal or a database's URL; got {storage!r}")
    if urlsplit(storage).password:
        raise LabError(
            "--storage contains a password, which would be written into files. Leave it out and "
            "use the database client's own way (for PostgreSQL, PGPASSWORD or ~/.pgpass)"
        )
    if directory.path.exists() and not directory.path.is_dir():
        raise LabError(f"{directory.path} is a file; --out must name a directory")


def requested(directory: TuneDirectory, options: TuneOptions, given: Mapping[str, Any]) -> Tuning:
    """Return the requested tuning: the existing one with what is added, or a new one.

    Raises:
        LabError: If the options disagree with what exists, or that is not a tuning.
    """
    optimizers = parse_optimizers(options.optimizers) if options.optimizers is not None else ()
    if options.overwrite or not (options.resume or directory.exists()):
        return new(directory, options, given, optimizers or DEFAULT_OPTIMIZERS)
    saved = directory.read()
    directory.check_own()
    known = tuple(dict.fromkeys((*saved.optimizers, *optimizers)))
    return saved.joined(optimizers, ranges(options, known), options.search(), given)


def ranges(options: TuneOptions, optimizers: Sequence[str]) -> dict[str, dict[str, Range]]:
    """Parse the ranges that ``--space`` names."""
    return parse_space(options.space, optimizers) if options.space is not None else {}


def new(
    directory: TuneDirectory,
    options: TuneOptions,
    given: Mapping[str, Any],
    optimizers: Sequence[str],
) -> Tuning:
    """Create a tuning from the options."""
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
    """Record the requested tuning, merged with what others recorded meanwhile, and return it."""
    with directory.lock():
        if options.overwrite:
            directory.clear()
        if (directory.path / TUNING).is_file():
            # Another process may have begun the tuning, or added to it, since it was read.
            asked = requested(directory, options, given)
        if asked.storage not in (SQLITE, JOURNAL_FILE):
            # Raise the error about an unavailable database before anything is recorded.
            open_storage(asked.storage, directory.path)
        directory.write(asked)
    return asked


def show(
    directory: TuneDirectory, tuning: Tuning, searches: Sequence[Search], console: Console
) -> None:
    """Print the best settings, the reasons against using them, and where all files are."""
    console.print(best_table(searches).rich())
    for line in warnings(tuning, searches):
        say(console, line)
    files = {
        "settings": BEST,
        "page": PAGE,
        "report": TEXT,
        "table": TABLE,
        "trials": TRIALS,
        "sensitivity": SENSITIVITY,
        "budget": BUDGET,
    }
    say_files(console, directory.path, {**files, "runs": ""})
